"""Studies: what is played, what is compared with what, what survives a stop, and what a bad file is told."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from desim_fl.errors import RunDirectoryError, RunError, ScenarioError
from desim_fl.export import export
from desim_fl.report import reach_charts, study_charts, study_page, study_reading, study_words
from desim_fl.report.figures import Figure
from desim_fl.run import execute
from desim_fl.scenario import load as load_scenario
from desim_fl.study import conduct, crew, digest, effects, load, tuning
from desim_fl.study.document import Target, Tuning
from desim_fl.study.playing import Task, key_of
from desim_fl.study.variants import settings_of, variants

BASE = """
[data]
name = "quadratic"
curvature = [1.0, 2.0, 3.0, 4.0]
optimum = [1.0, -1.0, 2.0, 0.0]
[clients]
count = 4
seconds_per_step = 0.5
jitter_factor = { law = "exponential", mean = 1.0 }
[training]
steps = 2
lr = 0.05
[strategy]
name = "fedasync"
[run]
concurrency = 2
max_updates = 30
eval_every_versions = 3
"""
STUDY = """
scenario = "base.toml"
seeds = [0, 1, 2]
[[factors]]
name = "delay"
key = "run.delay_scale"
values = [1, 3]
[[factors]]
name = "server"
levels = [
  { label = "FedAsync" },
  { label = "FedBuff", set = { strategy = { name = "fedbuff", buffer_size = 3 } } },
]
"""


def write(folder: Path, study: str = STUDY, base: str = BASE) -> Path:
    """Write a study and its base scenario."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.toml").write_text(base)
    (folder / "study.toml").write_text(study)
    return folder / "study.toml"


def table(folder: Path, name: str) -> pl.DataFrame:
    """Read a table of a study."""
    return pl.read_parquet(folder / f"{name}.parquet")


@pytest.fixture(autouse=True)
def _validated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every chart of these tests compared with the schema of Vega-Lite, which a report does not."""
    plain = Figure.spec
    monkeypatch.setattr(Figure, "spec", lambda self: plain(self, validate=True))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four variants and three seeds, with a target."""
    folder = tmp_path_factory.mktemp("study")
    conduct(load(write(folder, STUDY + '[target]\nmetric = "loss"\nvalue = 3.0\n')), folder / "out", 1)
    return folder / "out"


def test_every_variant_plays_with_every_seed(done: Path) -> None:
    """Rows are variants times seeds, the baseline first, each with the levels that it has."""
    runs = table(done, "runs")
    assert runs["variant"].unique(maintain_order=True).to_list() == [
        "1 · FedAsync",
        "1 · FedBuff",
        "3 · FedAsync",
        "3 · FedBuff",
    ]
    assert runs["seed"].to_list() == [0, 1, 2] * 4
    assert runs["status"].unique().to_list() == ["finished"]
    assert runs.filter(pl.col("variant") == "3 · FedBuff")["level: delay"].unique().to_list() == ["3"]


def test_a_run_of_a_study_is_the_run_by_hand(done: Path) -> None:
    """The same scenario, setting and seed played alone give the same timeline, loss and virtual time."""
    base = done.parent / "base.toml"
    alone = execute(load_scenario(base, ["run.delay_scale=3"], 2), None)
    row = table(done, "runs").filter((pl.col("variant") == "3 · FedAsync") & (pl.col("seed") == 2)).row(0, named=True)
    assert row["timeline_sha256"] == alone["timeline_sha256"]
    assert row["loss"] == alone["summary"]["loss"]
    assert row["virtual_time_s"] == alone["summary"]["virtual_time_s"]


def test_a_uniform_delay_scale_is_a_control(done: Path) -> None:
    """Three times all durations takes exactly three times as long, pair by pair, and learns the same."""
    effects = table(done, "effects").filter(pl.col("factor") == "delay")
    time = effects.filter(pl.col("metric") == "virtual_time_s")
    assert time["ratio"].to_list() == pytest.approx([3.0, 3.0])
    assert time["ratio_low"].to_list() == pytest.approx([3.0, 3.0])
    assert effects.filter(pl.col("metric") == "loss")["difference"].to_list() == [0.0, 0.0]


def test_a_factor_is_compared_at_equal_levels_of_the_others(done: Path) -> None:
    """FedBuff at delay 3 is compared with FedAsync at delay 3, and with FedBuff at delay 1; never across both."""
    pairs = table(done, "effects").select("factor", "variant", "against").unique(maintain_order=True).rows()
    assert set(pairs) == {
        ("server", "1 · FedBuff", "1 · FedAsync"),
        ("delay", "3 · FedAsync", "1 · FedAsync"),
        ("delay", "3 · FedBuff", "1 · FedBuff"),
        ("server", "3 · FedBuff", "3 · FedAsync"),
    }


def test_times_to_the_target_come_from_the_curves(done: Path) -> None:
    """The first evaluation at or below the target counts; a run without one is censored at its end."""
    runs, curves = table(done, "runs"), table(done, "curves")
    for row in runs.iter_rows(named=True):
        mine = curves.filter((pl.col("variant") == row["variant"]) & (pl.col("seed") == row["seed"]))
        there = mine.filter(pl.col("loss") <= 3.0)
        expected = there["time_s"].min() if there.height else row["virtual_time_s"]
        assert row["time_to_target_s"] == expected
        assert row["reached"] == bool(there.height)


def test_a_stopped_study_goes_on(tmp_path: Path) -> None:
    """Rows that are there are not played again; a half-written line at the end is passed over."""
    plan = load(write(tmp_path))
    whole = conduct(plan, tmp_path / "whole", 1)
    assert whole["played_now"] == 12
    (tmp_path / "part").mkdir()
    lines = (tmp_path / "whole" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "part" / "journal.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:40])
    assert conduct(plan, tmp_path / "part", 1)["played_now"] == 7
    assert conduct(plan, tmp_path / "part", 1)["played_now"] == 0
    for name in ("variants", "effects", "curves"):
        assert table(tmp_path / "part", name).equals(table(tmp_path / "whole", name))


def test_a_changed_study_plays_only_what_is_new(tmp_path: Path) -> None:
    """One more level of a factor adds its runs; the others come from the journal."""
    conduct(load(write(tmp_path)), tmp_path / "out", 1)
    more = conduct(load(write(tmp_path, STUDY.replace("[1, 3]", "[1, 3, 5]"))), tmp_path / "out", 1)
    assert (more["runs"], more["played_now"]) == (18, 6)


def test_equal_variants_are_played_once(tmp_path: Path) -> None:
    """Two variants whose scenarios are equal share their runs."""
    text = 'scenario = "base.toml"\nseeds = [0]\ndesign = "list"\n[[variants]]\nlabel = "a"\n[[variants]]\nlabel = "b"\nset = { "run.delay_scale" = 1.0 }\n'
    found = conduct(load(write(tmp_path, text)), tmp_path / "out", 1)
    assert (found["runs"], found["distinct"], found["played_now"]) == (2, 1, 1)


def test_several_processes_give_the_same_tables(done: Path, tmp_path: Path) -> None:
    """Two workers change nothing but the order in which rows come."""
    plan = load(write(tmp_path, STUDY + '[target]\nmetric = "loss"\nvalue = 3.0\n'))
    conduct(plan, tmp_path / "out", 2)
    for name in ("variants", "effects", "reach", "survival", "curves"):
        assert table(tmp_path / "out", name).equals(table(done, name))


def test_a_failing_variant_takes_no_other_down(tmp_path: Path) -> None:
    """A model that does not learn but fails leaves a failed row, and the comparison of the others."""
    (tmp_path / "broken.py").write_text("def make(**_):\n    raise RuntimeError('no such model')\n")
    text = STUDY.replace(
        "levels = [", 'levels = [\n  { label = "broken", set = { "strategy" = { name = "nowhere:Nothing" } } },'
    )
    with pytest.raises(ScenarioError):
        load(write(tmp_path, text.replace("nowhere:Nothing", "nowhere")))
    found = conduct(load(write(tmp_path, text)), tmp_path / "out", 1)
    assert found["status"] == "failed"
    assert len(found["failed"]) == 6
    assert "nowhere" in found["failed"][0]
    runs = table(tmp_path / "out", "runs")
    assert runs.filter(pl.col("status") == "finished").height == 12
    assert "6 runs failed" in (tmp_path / "out" / "report.html").read_text()


def test_a_process_that_dies_is_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose process is killed twice becomes a row that says so; the others finish."""
    base = write(tmp_path).parent / "base.toml"
    good = [load_scenario(base, (), seed) for seed in range(3)]
    (tmp_path / "deadly.py").write_text(
        "import os, signal\nclass Now:\n    def __init__(self):\n        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    deadly = load_scenario(base, ['strategy={name="deadly:Now"}'], 0)
    tasks = [Task(key_of(scenario, timing_only=True), scenario, timing_only=True) for scenario in [deadly, *good]]
    monkeypatch.syspath_prepend(tmp_path)  # worker processes inherit the path
    rows = {row["key"]: row for row in crew.Processes(2).played(tasks)}
    assert [rows[task.key]["status"] for task in tasks] == ["failed", "finished", "finished", "finished"]
    assert "code -9" in rows[tasks[0].key]["error"]


def test_tuning_chooses_on_seeds_of_its_own(tmp_path: Path) -> None:
    """The rate with the smallest mean loss on the tuning seeds is set in every variant; a diverging one never is."""
    text = (
        STUDY
        + '[tuning]\nkey = "training.lr"\nvalues = [0.001, 0.1, 1e6]\nseeds = [50, 51]\nby = ["server"]\nsplit = "test"\n'
    )
    found = conduct(load(write(tmp_path, text)), tmp_path / "out", 1)
    tried = table(tmp_path / "out", "tuning")
    best = tried.filter(pl.col("value") != "1e+06").sort("for", "mean").unique("for", keep="first", maintain_order=True)
    assert tried.filter("chosen").sort("for")["value"].to_list() == best["value"].to_list()
    assert found["tuned"]["chosen"] == dict(best.select("for", "value").iter_rows())
    chosen = best.filter(pl.col("for") == "FedAsync")["value"][0]
    alone = execute(load_scenario(tmp_path / "base.toml", [f"training.lr={chosen}"], 0), None)
    row = table(tmp_path / "out", "runs").row(0, named=True)
    assert (row["variant"], row["loss"]) == ("1 · FedAsync", alone["summary"]["loss"])


def a_row(end: float | None, *points: tuple[float, float]) -> dict[str, Any]:
    """Row of a run with test losses at seconds; ``end`` is its last loss, ``None`` for one that diverged."""
    curve = [[int(second * 1e6), 0, 0, "test", loss, None] for second, loss in (*points, (100.0, end))]
    return {"status": "finished", "curve": curve, "summary": {"virtual_time_s": 100.0, "updates": 1}}


@pytest.mark.parametrize(
    ("slow", "fast", "chosen"),
    [
        ([a_row(0.1, (50, 0.9)), a_row(0.1, (70, 0.9))], [a_row(0.9, (20, 0.9)), a_row(0.9, (40, 1.0))], 1),  # in 60 and 30 s
        ([a_row(0.1, (50, 0.9)), a_row(0.1, (70, 0.9))], [a_row(0.9, (1, 0.9)), a_row(3.0)], 0),  # both against one of two
        ([a_row(3.0), a_row(4.0)], [a_row(3.0), a_row(2.0)], 1),  # nobody gets there: the lower end
        ([a_row(3.0), a_row(4.0)], [a_row(0.9, (1, 0.9)), a_row(None, (1, 0.9))], 0),  # one diverged
        ([a_row(0.1, (50, 0.9))] * 2, [a_row(0.1, (50, 0.9))] * 2, 0),  # a tie goes to the earlier value
    ],
)  # fmt: skip
def test_tuning_by_time_asks_first_who_gets_there(slow: list[Any], fast: list[Any], chosen: int) -> None:
    """Fewest runs without the target, then the least mean time of those with it, then the best end; a diverged run never."""
    asked = Tuning(key="training.lr", values=(1, 2), seeds=(5, 6), metric="time")
    rows = [(tuning.Trial((), place, 5, ()), row) for place, runs in enumerate((slow, fast)) for row in runs]
    best, table = tuning.choices(asked, Target(metric="loss", value=1.0), rows)
    assert best == {(): chosen}
    assert table["chosen"].to_list() == [place == chosen for place in (0, 1)]
    if chosen == 1 and slow[0]["curve"][0][4] == 0.9:
        assert table["mean"].to_list() == [60.0, 30.0]


@pytest.mark.parametrize(("hold", "expected"), [(1, (10.0, 1)), (2, (40.0, 1)), (3, (40.0, 1)), (4, (100.0, 0))])
def test_a_run_that_swings_through_the_target_has_not_got_there(hold: int, expected: tuple[float, int]) -> None:
    """With ``hold`` so many evaluations on end must be that good, and the first of them counts; the end cuts none short."""
    row = a_row(0.5, (0, 9.0), (10, 0.5), (20, 3.0), (40, 1.0), (50, 0.9))
    found = effects.arrival(row, Target(metric="loss", value=1.0, hold=hold))
    assert (found["time_to_target_s"], found["reached"]) == expected


def test_the_digest_tells_means_and_what_is_only_a_bound(tmp_path: Path) -> None:
    """A row a variant with mean and sd, how many got there, and paired ratios; where a side did not get there, bounds or nothing."""
    text = STUDY.replace("[0, 1, 2]", "[0, 1]") + '[target]\nmetric = "loss"\nvalue = 1e9\n'
    conduct(load(write(tmp_path, text)), tmp_path / "out", 1)
    lines = (tmp_path / "out" / "digest.md").read_text().splitlines()
    assert "Seeds 0, 1; mean ± standard deviation. Target: test loss of at most 1e+09." in lines
    assert lines[6].startswith("| variant | runs | got there | Virtual time to the target (s) |")
    runs = table(tmp_path / "out", "runs").filter(pl.col("variant") == "1 · FedAsync")
    mean, sd = runs["loss"].mean(), runs["loss"].std()
    assert lines[8].startswith("| 1 · FedAsync | 2 | 2/2 | 0 ± 0 | 0 ± 0 |")
    assert f"| {mean:.4g} ± {sd:.2g} |" in lines[8]
    assert (
        "| 1 · FedBuff | 1 · FedAsync | Updates received to the target | 2 | \N{EN DASH} |" in lines
    )  # of zeros there is no ratio
    variant, against, short = "1 · FedBuff", "1 · FedAsync", {("1 · FedBuff", "time_to_target_s")}
    row = {
        "variant": variant,
        "against": against,
        "metric": "time_to_target_s",
        "ratio": 2.5,
        "ratio_low": 2.0,
        "ratio_high": 3.1,
    }
    assert digest._ratio(row, set()) == "2.5 (2 to 3.1)"
    assert digest._ratio(row, short) == "above 2.5"
    assert digest._ratio({**row, "variant": against, "against": variant}, short) == "below 2.5"
    assert digest._ratio(row, short | {(against, "time_to_target_s")}) == "\N{EN DASH}"


def test_where_nothing_can_be_tuned_the_study_says_so(tmp_path: Path) -> None:
    """If every value of the grid diverges there is nothing to choose: an error that names key and group."""
    text = STUDY + '[tuning]\nkey = "training.lr"\nvalues = [1e9]\nseeds = [50]\nby = ["server"]\nsplit = "test"\n'
    with pytest.raises(RunError, match=r"training\.lr.*FedAsync"):
        conduct(load(write(tmp_path, text)), tmp_path / "out", 1)


def test_a_sample_is_drawn_once_and_holds_the_baseline(tmp_path: Path) -> None:
    """A random part of a grid: the baseline first, distinct, the same for the same seed."""
    text = STUDY.replace("[1, 3]", "[1, 2, 3, 4, 5, 6, 7, 8]").replace(
        "seeds", 'design = "sample"\nsample = 5\nseeds', 1
    )
    found = [variant.levels for variant in load(write(tmp_path, text)).variants]
    assert found[0] == ("1", "FedAsync")
    assert len(set(found)) == len(found) == 6
    assert [variant.levels for variant in load(write(tmp_path, text)).variants] == found
    other = load(write(tmp_path, text.replace("sample = 5", "sample = 5\nsample_seed = 1")))
    assert [variant.levels for variant in other.variants] != found


def test_settings_merge_tables_and_replace_variants(tmp_path: Path) -> None:
    """Keys of an inner table are set one by one; a table with a name takes the place of the whole; unset leaves a key out."""
    text = 'scenario = "base.toml"\nunset = ["run.eval_every_versions"]\n[set]\nrun = { max_updates = 5 }\nstrategy = { name = "fedbuff" }\n'
    study = load(write(tmp_path, text)).study
    assert settings_of(study) == (
        (("run", "eval_every_versions"), None), (("run", "max_updates"), 5), (("strategy",), {"name": "fedbuff"}),
    )  # fmt: skip
    scenario = load(tmp_path / "study.toml").scenarios[0]
    assert (scenario.run.max_updates, scenario.run.concurrency, scenario.run.eval_every_versions) == (5, 2, None)
    assert len(variants(study)) == 1


BAD = {
    'scenario = "base.toml"\n[tuning]\nkey = "training.lr"\nvalues = [1]\nseeds = [9]\nmetric = "time"\n': ':6: metric = "time" needs a [target]',
    'scenario = "base.toml"\n[target]\nvalue = 1\n[tuning]\nkey = "training.lr"\nvalues = [1]\nseeds = [9]\nmetric = "time"\nsplit = "test"\n': ":9: split must not be given",
    'scenario = "base.toml"\nsedes = [1]\n': ':2: has no key "sedes"; did you mean "seeds"?',
    "seeds = [1]\n": 'needs the key "scenario"',
    'scenario = "base.toml"\nseeds = [1, 1]\n': ":2: a seed stands there twice",
    'scenario = "none.toml"\n': "none.toml: cannot be read",
    'scenario = "base.toml"\n[[factors]]\nname = "x"\nkey = "run.delay_scale"\n': ":2: a factor has either key and values, or levels",
    'scenario = "base.toml"\n[[factors]]\nname = "x"\nkey = "run.dely_scale"\nvalues = [1]\n': '"delay_scale"',
    'scenario = "base.toml"\n[[factors]]\nname = "x"\nkey = "run.delay_scale"\nvalues = [-1]\n': 'variant "-1"',
    'scenario = "base.toml"\n[set]\n"run.seed" = 1\n': "run.seed cannot be set",
    'scenario = "base.toml"\ndesign = "list"\n': 'design = "list" needs [[variants]]',
    'scenario = "base.toml"\ndesign = "sample"\n': 'sample belongs to design = "sample"',
    'scenario = "base.toml"\nbaseline = { x = "y" }\n': 'there is no factor "x"',
    'scenario = "base.toml"\nconfidence = 2\n': ":2: ",
    'scenario = "base.toml"\ntiming_only = true\n[target]\nvalue = 1\n': ":2: without training",
    'scenario = "base.toml"\n[tuning]\nkey = "training.lr"\nvalues = [1]\nseeds = [0]\n': "one of the study's own",
    'scenario = "base.toml"\n[tuning]\nkey = "training.lr"\nvalues = [1]\nseeds = [9]\nby = ["z"]\n': 'there is no factor "z"',
    'scenario = "base.toml"\n[target]\nvalue = 1\n[[published]]\nlabel = "p"\nagainst = "y"\nvalues = { base = 1 }\n': ':6: there is no factor "y"',
    'scenario = "base.toml"\n[target]\nvalue = 1\n[[published]]\nlabel = "p"\nvalues = { x = 1 }\n': ':6: there is no variant "x"; there are base',
    'scenario = "base.toml"\n[[published]]\nlabel = "p"\nvalues = { base = 1 }\n': ":2: published numbers are about the time to a target",
    "scenario = \n": ":1: is not TOML",
    'scenario = "base.toml"\nunset = ["run.nothing"]\n[set]\n"a b" = 1\n': "is not a key",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_a_bad_study_is_told_what_is_wrong(tmp_path: Path, text: str) -> None:
    """Each mistake has file, line, key and a way out, and nothing is written."""
    with pytest.raises(ScenarioError) as caught:
        load(write(tmp_path, text))
    assert BAD[text] in str(caught.value)
    assert "study.toml" in str(caught.value) or "none.toml" in str(caught.value)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """A folder that holds other things is refused."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    with pytest.raises(RunDirectoryError, match="give another --out"):
        conduct(load(write(tmp_path)), tmp_path / "out", 1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["letter.txt"]


def command(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    call = [sys.executable, "-m", "desim_fl", "study", str(folder / "study.toml"), "--out", str(folder / "out"), *more]
    return subprocess.run(call, capture_output=True, text=True, check=False, cwd=folder, env=_environment())


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": root + os.pathsep + os.environ.get("PYTHONPATH", "")}


def test_the_command_prints_one_object_and_the_first_seeds_only(tmp_path: Path) -> None:
    """--json prints one JSON object; --seeds 1 plays the first seed; a bad file is exit code 2 without a traceback."""
    write(tmp_path, STUDY.replace('scenario = "base.toml"', 'scenario = "base.toml"\ntiming_only = true'))
    done = command(tmp_path, "--json", "--seeds", "1", "--workers", "1")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["seeds"], found["runs"], found["timing_only"]) == ([0], 4, True)
    write(tmp_path, "nothing = 1\n")
    done = command(tmp_path)
    assert done.returncode == 2
    assert "study.toml:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_study_that_is_interrupted_keeps_what_it_has(tmp_path: Path) -> None:
    """Ctrl-C ends a study with exit code 130; the rows so far are in the journal, and the same command goes on."""
    write(tmp_path, STUDY.replace("[0, 1, 2]", str(list(range(400)))))
    call = [sys.executable, "-m", "desim_fl", "study", "study.toml", "--out", "out", "--workers", "1"]
    with subprocess.Popen(
        call, cwd=tmp_path, env=_environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        journal = tmp_path / "out" / "journal.jsonl"
        while process.poll() is None and not (journal.exists() and journal.stat().st_size):
            pass
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130, said.decode()
    kept = len(journal.read_bytes().splitlines())
    assert 0 < kept < 1600
    write(tmp_path)
    found = conduct(load(tmp_path / "study.toml"), tmp_path / "out", 1)
    assert found["played_now"] <= 12


def test_hostile_labels_are_shown_as_text(tmp_path: Path) -> None:
    """Markup, script ends and template syntax in labels, names and descriptions are words of the page."""
    nasty = "</script><script>alert(1)</script>{{ 7 * 7 }}"
    text = STUDY.replace('label = "FedBuff"', f"label = '{nasty}'").replace(
        "seeds", f"name = '<b>x</b>'\ndescription = '{nasty}'\nseeds", 1
    )
    conduct(load(write(tmp_path, text)), tmp_path / "out", 1)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page


MEAN = re.compile(r"Variant: ([^;]+); Mean: ([^;]+); From: ([^;]+); To: ([^;]+); Runs: ([0-9]+)")


def test_the_charts_of_a_study_are_files(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means, spans and ratios drawn are those of the tables, published numbers stand beside them, and the same folder gives the same bytes."""
    out, text = tmp_path / "out", (
        STUDY + '[target]\nmetric = "loss"\nvalue = 1.7\n[[published]]\nlabel = "a paper"\nvalues = { "3 · FedBuff" = 25.5 }\n'
        '[[published]]\nlabel = "a theorem"\nagainst = "delay"\nvalues = { "3 · FedAsync" = 2.5 }\n'
    )  # fmt: skip
    shutil.copytree(done, out)
    assert conduct(load(write(tmp_path, text)), out, 1)["played_now"] == 0
    wanted = ("reach-time_to_target_s", "ratio-time_to_target_s-1", "curves-loss-time", "bands-loss")
    figures = [figure for figure in study_page.figures(study_reading.read(out)) if figure.id in wanted]
    monkeypatch.setattr(study_page, "figures", lambda _: figures)
    files = {path.stem: path.read_text() for path in export(out, "svg", tmp_path / "svg")}
    assert files["reach-time_to_target_s"].count("Published: a paper; value: 25.5") == 1
    assert files["ratio-time_to_target_s-1"].count("Published: a theorem; value: 2.5") == 1
    there = table(out, "runs").filter(pl.col("reached") == 1)
    assert there.height == 12
    drawn = {name: row for name, *row in MEAN.findall(files["reach-time_to_target_s"])}
    assert list(drawn) == there["variant"].unique(maintain_order=True).to_list()
    for name, row in drawn.items():
        times = there.filter(pl.col("variant") == name)["time_to_target_s"].to_list()
        expected = [sum(times) / len(times), min(times), max(times), len(times)]
        assert [float(value.replace(",", "")) for value in row] == pytest.approx(expected, rel=1e-4)
    ratios = {name: float(mean) for name, mean, *_ in MEAN.findall(files["ratio-time_to_target_s-1"])}
    assert ratios == pytest.approx({"3 · FedAsync": 3.0, "3 · FedBuff": 3.0})
    figures[:] = [figures[1], figures[3]]  # curves, whose marks are clipped in the page, and bands
    for path in export(out, "svg", tmp_path / "again"):
        assert path.read_text() == files[path.stem]
    assert [path.read_bytes()[:4] for path in export(out, "png", tmp_path / "png")] == [b"\x89PNG"] * 2
    with pytest.raises(RunDirectoryError, match="holds no study"):
        export(tmp_path / "svg", "svg", tmp_path / "none")


def test_many_variants_are_drawn_as_medians_by_factor(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a line for each combination is too many: the median over the variants of a level with their span; a factor without bearing has no chart."""
    study = study_reading.read(done)
    assert [figure.id for figure in study_charts.by_level(study, "virtual_time_s")] == ["by-virtual_time_s"]
    monkeypatch.setattr(study_charts, "MOST_LINES", 1)
    assert [figure.id for figure in study_charts.by_level(study, "loss")] == [
        "by-loss-2"
    ]  # a delay of all alike has none
    drawn = study_charts.by_level(study, "virtual_time_s")
    assert drawn[0].id == "by-virtual_time_s-1"
    times = study.variants.filter(pl.col("metric") == "virtual_time_s").select("variant", "mean").rows()
    for row in drawn[0].numbers["by_virtual_time_s_1"].frame.iter_rows(named=True):
        low, high = sorted(mean for name, mean in times if name.split(" · ")[0] == row["level"])
        assert [row["bar_low"], row["mean"], row["bar_high"]] == pytest.approx([low, (low + high) / 2, high])


def test_the_paragraph_of_a_study_has_units_and_tells_ties(done: Path) -> None:
    """Times are durations, who shares the best value is counted, and a ratio is called clear only where its interval leaves 1 out."""
    study = study_reading.read(done)
    words = study_words.paragraph(study)
    factors = " and ".join(study.factors)
    assert words.startswith(
        f"4 variants that differ in {factors}, named after these in this order, were played with 3 seeds each"
    )
    plain = replace(study, manifest={**study.manifest, "target": None})
    loss = study.variants.filter(pl.col("metric") == "loss").sort("mean", maintain_order=True)
    assert f"Test loss at the end is smallest with “{loss['variant'][0]}” and 1 other alike (" in study_words.paragraph(
        plain
    )
    apart = study.effects.with_columns(low=pl.lit(1.0), high=pl.lit(2.0), ratio=pl.lit(1.5), ratio_high=pl.lit(1.9))
    for low, clear in ((1.2, True), (0.9, False)):
        told = study_words.paragraph(replace(study, effects=apart.with_columns(ratio_low=pl.lit(low))))
        assert ("clear ratio of virtual time to the target is 1.5 (95% interval 1.2 to 1.9)" in told) == clear
    short = replace(
        study, reach=study.reach.with_columns(reached=pl.lit(0)), effects=apart.with_columns(ratio_low=pl.lit(1.2))
    )
    assert "clear ratio" not in study_words.paragraph(short)  # who never got there has no time to it
    few = replace(study, manifest={**study.manifest, "seeds": [0]})
    assert "Common random numbers" not in study_words.paragraph(few)
    assert study_words.notices(few)[0].text.startswith("With 1 seed there are no intervals")
    assert study_words.valued("virtual_time_s", 9750.0) == "2 h 42 min"


def test_levels_that_are_numbers_in_words_stand_in_their_order() -> None:
    """Labels that differ in one number only are sorted by it; others stay as they stand."""
    assert reach_charts.ordered(["sigma 1", "sigma 0.25", "sigma 10"]) == ["sigma 0.25", "sigma 1", "sigma 10"]
    assert reach_charts.ordered(["b 2", "a 1"]) == ["b 2", "a 1"]
    assert reach_charts.ordered(["h 10, messages 0", "h 1, messages 5"]) == ["h 10, messages 0", "h 1, messages 5"]


def test_a_run_that_does_not_get_there_is_kept_until_its_end(done: Path) -> None:
    """Against a target that nothing reaches every run counts as censored at its end, with no median and its whole time."""
    folder = done.parent
    path = folder / "hard.toml"
    path.write_text(STUDY + '[target]\nmetric = "loss"\nvalue = 0.0001\n')
    conduct(load(path), folder / "hard", 1)
    runs, reach = table(folder / "hard", "runs"), table(folder / "hard", "reach")
    assert runs["reached"].to_list() == [0.0] * 12
    assert runs["time_to_target_s"].to_list() == runs["virtual_time_s"].to_list()
    assert reach["reached"].to_list() == [0] * 8
    assert reach["median"].null_count() == 8
    ends = runs.filter(pl.col("variant") == "1 · FedAsync")["virtual_time_s"].to_list()
    first = reach.filter((pl.col("variant") == "1 · FedAsync") & (pl.col("measure") == "time_to_target_s"))
    assert first["restricted_mean"].item() == pytest.approx(min(ends))
    assert "It was never reached by" in (folder / "hard" / "report.html").read_text()
