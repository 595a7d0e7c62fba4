"""The report: its numbers, its safety, its size and its bytes."""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fake_runs import EVENTS, METRICS, Made, make

from desim_fl import report
from desim_fl.errors import RunDirectoryError
from desim_fl.report import (
    curves,
    facts,
    learning_charts,
    page,
    path_charts,
    reading,
    rooms,
    sheet,
    story,
    theme,
    thinning,
    trips,
)
from desim_fl.report.figures import Figure, Numbers, named

HOSTILE = ("<b>x</b>", "</script><script>alert(1)</script>", "{{ 7 * 7 }}", "'\"&<!--")
CASES = {
    "normal": Made(updates=120),
    "quadratic": Made(clients=3, accuracy=False, classes=0, updates=60, buffer=3, concurrency=3, wait=False),
    "diverged": Made(updates=120, nan_from=7, names=HOSTILE, name="</title><script>alert(2)</script>"),
    "plan": Made(updates=120, trained=False),
    "failed": Made(updates=0, trained=False, status="failed", error="JobError: <i>no</i> memory"),
    "nothing published": Made(updates=60, publishes=False, status="interrupted"),
}


@pytest.fixture(autouse=True)
def _validated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every chart of these tests compared with the schema of Vega-Lite, which a report does not; pages are the same."""
    plain = Figure.spec
    monkeypatch.setattr(Figure, "spec", lambda self: plain(self, validate=True))


class Page(html.parser.HTMLParser):
    """What a reader of the page finds: elements, addresses, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.hidden = ""
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.tags.append((tag, dict(attrs)))
        self.hidden = tag if tag in ("script", "style") else self.hidden

    def handle_endtag(self, tag: str) -> None:
        """Note that a script or style is over."""
        self.hidden = "" if tag == self.hidden else self.hidden

    def handle_data(self, data: str) -> None:
        """Keep the text of scripts apart from words."""
        if self.hidden == "script":
            self.scripts.append(data)
        elif not self.hidden:
            self.words.append(data)

    @property
    def text(self) -> str:
        """All words, with single blanks."""
        return re.sub(r"\s+", " ", "".join(self.words))

    def values(self) -> list[str | None]:
        """Return the machine-readable headline numbers."""
        return [attributes["value"] for tag, attributes in self.tags if tag == "data"]


def payload(text: str) -> dict[str, Any]:
    """Parse the JSON of the page as a browser does: NaN and Infinity are errors."""

    def refuse(token: str) -> None:
        pytest.fail(f"{token} in the JSON of the page")

    (block,) = re.findall(r'<script type="application/json" id="payload">(.*?)</script>', text, re.DOTALL)
    return json.loads(block, parse_constant=refuse)


def written(tmp_path: Path, made: Made) -> str:
    """Make a run, report on it and return the page."""
    return report.write(make(tmp_path / "run", made)).read_text(encoding="utf-8")


def column(table: dict[str, Any], name: str) -> list[Any]:
    """Return a column of a table in the page's JSON."""
    at = table["columns"].index(name)
    return [row[at] for row in table["rows"]]


@pytest.mark.parametrize("case", CASES)
def test_re_03_every_kind_of_run_gives_a_page_of_strict_json(tmp_path: Path, case: str) -> None:
    """A normal, quadratic, diverged, planned, failed or unpublished run builds a report whose JSON is strict."""
    text = written(tmp_path, CASES[case])
    data = payload(text)
    ids = {f"chart-{chart['id']}" for chart in data["charts"]}
    places = {
        attributes.get("id")
        for tag, attributes in Page(text).tags
        if tag == "div" and attributes.get("class") == "chart"
    }
    assert ids == places
    for chart in data["charts"]:
        assert set(re.findall(r'"data": \{"name": "(\w+)"\}', json.dumps(chart["spec"]))) <= set(chart["data"])
        assert set(chart["data"]) <= set(data["tables"])


@pytest.mark.parametrize("case", CASES)
def test_re_03_nothing_is_fetched(tmp_path: Path, case: str) -> None:
    """No element of the page names an address outside it, and the content policy forbids any."""
    tags = Page(written(tmp_path, CASES[case])).tags
    addresses = [
        value
        for _, attributes in tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action")
    ]
    assert all(address and address.startswith(("#", "data:")) for address in addresses)
    (policy,) = [
        attributes["content"] for _, attributes in tags if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def test_re_03_divergence_is_stated(tmp_path: Path) -> None:
    """A loss that is NaN from version 7 on is said to have diverged at version 7, in words and in both curves."""
    text = written(tmp_path, CASES["diverged"])
    assert "Training diverged at version 7:" in Page(text).text
    data = payload(text)
    assert json.dumps(data["charts"]).count("diverged at version 7") == 2
    learning = data["tables"]["learning"]
    losses = dict(zip(column(learning, "version"), column(learning, "loss"), strict=True))
    assert losses[6] is not None
    assert losses[7] is None


def test_re_03_names_are_text(tmp_path: Path) -> None:
    """Names with markup, script ends or template syntax appear as they are, and add no element to the page."""
    hostile = Page(written(tmp_path / "a", CASES["diverged"]))
    plain = Page(written(tmp_path / "b", Made(updates=120, nan_from=7)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    for name in (*HOSTILE, "</title><script>alert(2)</script>"):
        assert re.sub(r"\s+", " ", name) in hostile.text


def test_re_03_a_value_that_is_not_finite_stops_the_report() -> None:
    """Should a NaN reach the page's data, rendering raises instead of writing a page without charts."""
    template = sheet._template("report.html")
    with pytest.raises(ValueError, match="JSON compliant"):
        template.environment.from_string("{{ value | tojson }}").render(value={"loss": float("nan")})


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a long run with many clients."""
    return make(tmp_path_factory.mktemp("big"), Made(clients=500, updates=20_000, concurrency=100, slow=20, seed=3))


def test_re_02_a_long_run_gives_a_small_page(big: Path) -> None:
    """20,000 updates by 500 clients: under 5 MB, no table of more than 2,000 rows a series, the last accuracy exact."""
    began = time.perf_counter()
    text = report.write(big).read_text(encoding="utf-8")
    assert time.perf_counter() - began < 60
    assert len(text.encode()) < 5_000_000
    data = payload(text)
    learning = data["tables"].pop("learning")
    assert all(len(table["rows"]) <= 2000 for table in data["tables"].values())
    metrics = pl.read_parquet(big / "metrics.parquet")
    for split in ("test", "validation"):
        full = metrics.filter(pl.col("split") == split)
        shown = [row for row, part in zip(learning["rows"], column(learning, "part"), strict=True) if part == split]
        assert len(shown) <= 2000 < full.height + 1500
        for name in ("loss", "accuracy"):
            values = [row[learning["columns"].index(name)] for row in shown]
            kept = full[name]
            assert (values[0], values[-1], min(values), max(values)) == (kept[0], kept[-1], kept.min(), kept.max())
    last = metrics.filter(pl.col("split") == "test")["accuracy"][-1]
    assert repr(last) in Page(text).values()


def test_re_02_thinning_keeps_the_shape() -> None:
    """First, last, least and greatest value of every measure survive thinning; a short series is left alone."""
    rows = [(at, float((at * 7919) % 10_007), None if at % 3 else -float(at)) for at in range(50_000)]
    frame = pl.DataFrame(rows, schema={"at": pl.Int64, "a": pl.Float64, "b": pl.Float64}, orient="row")
    thin = thinning.thin(frame, ["a", "b"], 2000)
    assert 1000 < thin.height <= 2000
    assert thin["at"].is_sorted()
    assert (thin["at"][0], thin["at"][-1]) == (0, 49_999)
    for name in ("a", "b"):
        assert (thin[name].min(), thin[name].max()) == (frame[name].min(), frame[name].max())
    assert thinning.thin(frame.head(9), ["a"], 9).equals(frame.head(9))


def test_re_01_integers_first_do_not_spoil_later_floats(tmp_path: Path) -> None:
    """150 evaluations with whole or missing values, then 0.5 and 1.25: both reach the page exactly as floats."""
    folder = make(tmp_path / "run", Made(updates=20))
    rows = [(at, float(at), at, at, "test", None, 0, 10) for at in range(150)] + [
        (150, 150.0, 150, 150, "test", 1.25, 0.5, 10)
    ]
    pl.DataFrame(rows, schema=METRICS, orient="row").write_parquet(folder / "metrics.parquet")
    learning = payload(report.write(folder).read_text(encoding="utf-8"))["tables"]["learning"]
    assert column(learning, "accuracy") == [0.0] * 150 + [0.5]
    assert column(learning, "loss") == [None] * 150 + [1.25]


def test_the_same_directory_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two fresh processes with other hash seeds, and a second report in this process, write identical files."""
    folder = make(tmp_path / "run", Made(updates=60, names=HOSTILE))
    pages = []
    for seed in ("1", "2"):
        code = f"import desim_fl.report as r, pathlib; r.write(pathlib.Path({str(folder)!r}))"
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": str(Path(report.__file__).parents[2])},
        )
        pages.append((folder / "report.html").read_bytes())
    again = [report.write(folder).read_bytes() for _ in range(2)]
    assert pages[0] == pages[1] == again[0] == again[1]
    assert sorted(path.name for path in folder.iterdir() if "report" in path.name) == ["report.html"]


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    """A table that cannot be read is a named error, and the report written before stays as it was."""
    folder = make(tmp_path / "run", Made(updates=20))
    before = report.write(folder).read_bytes()
    (folder / "metrics.parquet").write_bytes(b"not a table")
    with pytest.raises(RunDirectoryError, match=r"metrics\.parquet cannot be read"):
        report.write(folder)
    assert (folder / "report.html").read_bytes() == before


def test_what_is_no_run_directory_is_named(tmp_path: Path) -> None:
    """A missing folder, a missing manifest and a missing column are each named with their place."""
    with pytest.raises(RunDirectoryError, match="no such folder"):
        report.write(tmp_path / "none")
    with pytest.raises(RunDirectoryError, match=r"manifest\.json"):
        report.write(tmp_path)
    folder = make(tmp_path / "run", Made(updates=20))
    pl.read_parquet(folder / "metrics.parquet").drop("loss").write_parquet(folder / "metrics.parquet")
    with pytest.raises(RunDirectoryError, match=r"metrics\.parquet lacks a column"):
        report.write(folder)


def test_a_run_without_tables_still_gives_a_page(tmp_path: Path) -> None:
    """A run that failed before it wrote any table says so, with its error as text."""
    folder = make(tmp_path / "run", CASES["failed"])
    for name in ("metrics.parquet", "clients.parquet", "events/part-00000.parquet", "events/part-00001.parquet"):
        (folder / name).unlink()
    text = Page(report.write(folder).read_text(encoding="utf-8")).text
    assert "This run failed after 0 s of virtual time, at version 0: JobError: <i>no</i> memory" in text


def test_a_plan_says_that_nothing_was_learned(tmp_path: Path) -> None:
    """A timeline played without training has no curve, and both words and headline numbers say why."""
    text = Page(written(tmp_path, CASES["plan"])).text
    assert "This is a plan" in text
    assert "This run holds no evaluation" in text
    assert "30 clients were simulated under fedbuff" in text


def test_a_run_without_accuracy_speaks_of_loss(tmp_path: Path) -> None:
    """Where accuracy has no meaning, neither words, headline numbers nor charts mention it."""
    text = written(tmp_path, CASES["quadratic"])
    words = Page(text).text
    assert "Test loss fell from" in words
    assert "accuracy" not in words.lower()
    assert len(payload(text)["charts"][0]["spec"]["vconcat"]) == 1


def hand_log() -> pl.DataFrame:
    """Two jobs: one arrives at 5 s with staleness 1 and is published with scale 1/2, one is lost at 3 s."""
    rows: list[dict[str, Any]] = [
        {"ticks": 0, "kind": "dispatch", "client": 4, "job": 0, "version": 0, "lr": 0.1, "bytes": 10},
        {"ticks": 0, "kind": "dispatch", "client": 2, "job": 1, "version": 0, "lr": 0.2, "bytes": 10},
        {"ticks": 1_000_000, "kind": "downloaded", "client": 4, "job": 0},
        {"ticks": 2_000_000, "kind": "downloaded", "client": 2, "job": 1},
        {"ticks": 3_000_000, "kind": "lose", "client": 2, "job": 1, "staleness": 0},
        {"ticks": 4_500_000, "kind": "computed", "client": 4, "job": 0},
        {"ticks": 5_000_000, "kind": "arrive", "client": 4, "job": 0, "staleness": 1, "weight": 0.5, "loss": 1.5, "bytes": 7},
        {"ticks": 5_000_000, "kind": "publish", "client": 4, "job": 0, "version": 1, "scale": 0.5},
    ]  # fmt: skip
    full = [dict.fromkeys(EVENTS) | {"seq": at} | row for at, row in enumerate(rows)]
    frame = pl.DataFrame(full, schema=EVENTS)
    return frame.select([pl.col(name).cast(dtype) for name, dtype in reading.EVENTS.items()])


def test_jobs_are_put_together_from_their_rows() -> None:
    """By hand: legs 1 s, 3.5 s and 0.5 s, an applied weight of 1/2 x 1/2, and a job lost while computing."""
    jobs = trips.trips(hand_log())
    assert jobs["fate"].to_list() == ["accepted", "lost"]
    assert jobs["applied"].to_list() == [0.25, None]
    assert trips.returned(jobs)["away_s"].to_list() == [5.0]
    legs = trips.legs(jobs, 5_000_000).filter(pl.col("job") == 0)
    assert legs.select("leg", "start", "stop").rows() == [
        ("download", 0, 1_000_000),
        ("compute", 1_000_000, 4_500_000),
        ("upload", 4_500_000, 5_000_000),
    ]
    cut = trips.legs(jobs, 5_000_000).filter((pl.col("job") == 1) & pl.col("last"))
    assert cut.select("leg", "start", "stop").rows() == [("compute", 2_000_000, 3_000_000)]
    assert trips.in_flight(jobs, 5_000_000).rows() == [(0, 2), (3_000_000, 1), (5_000_000, 0)]


def test_only_accepted_updates_have_an_applied_weight(tmp_path: Path) -> None:
    """An update that was turned away, or that no publish followed, counted nothing and is in no chart of weights."""
    run = reading.read(make(tmp_path / "run", Made(updates=200, concurrency=25, max_staleness=1)))
    jobs = trips.trips(run.events)
    weighed = jobs.filter(pl.col("applied").is_not_null())
    assert set(weighed["fate"]) == {"accepted"}
    assert weighed.height == facts.facts(run, jobs).versions * 10
    assert weighed.filter(pl.col("staleness") == 1)["applied"].unique().to_list() == [pytest.approx(2**-0.5 / 10)]


def test_headline_numbers_add_up(tmp_path: Path) -> None:
    """Every dispatched job is counted once: received, lost, cancelled or in flight."""
    run = reading.read(make(tmp_path / "run", Made(updates=200, concurrency=25, max_staleness=1)))
    jobs = trips.trips(run.events)
    known = facts.facts(run, jobs)
    assert known.received == 200
    assert known.rejected > 0
    assert jobs.height == known.received + known.lost + known.cancelled + known.in_flight
    assert f"{known.rejected} were rejected" in story.paragraph(known)


def test_words_say_who_worked_why_the_run_ended_and_what_was_lost(tmp_path: Path) -> None:
    """Clients without a job did not train; a rule is told in words, all three reasons of losses with their counts; non-finite updates are an alarm."""
    run = reading.read(make(tmp_path / "run", Made(updates=20, concurrency=5)))
    known = facts.facts(run, trips.trips(run.events))
    assert known.active == run.events.filter(pl.col("kind") == "arrive")["client"].n_unique()
    known = known._replace(
        clients=30, busy=4, received=10, not_finite=10, lost=6, cancelled=0, in_flight=4, stop="max_updates", status="finished",
        reasons=(("crash", 3), ("client left", 2), ("timeout", 1)),
    )  # fmt: skip
    words = story.paragraph(known)
    assert words.startswith("4 of 30 clients trained under fedbuff")
    assert "the run ended when the set number of updates had come." in words
    assert "Of 20 jobs sent out, " in words
    assert "6 were lost (crash: 3, client left: 2, timeout: 1)." in words
    assert [notice.text.split(" (")[0] for notice in story.notices(known)] == ["Every update was not finite"]
    part = story.notices(known._replace(not_finite=5))
    assert part[0].text.startswith("5 of 10 updates were not finite")
    assert story.notices(known._replace(not_finite=4)) == []


def test_an_axis_of_one_value_shows_that_value() -> None:
    """A loss of 2.4 throughout lies in the middle of an axis that is not one number wide."""
    scale = learning_charts._scale(pl.Series([2.4, None, 2.4])).to_dict()
    assert scale["domain"] == [pytest.approx(2.16), pytest.approx(2.64)]
    assert "domain" not in learning_charts._scale(pl.Series([2.4, 2.5])).to_dict()


def test_staleness_bars_count_every_update(tmp_path: Path) -> None:
    """The bars in versions and in seconds each hold all updates, and the marks are quantiles of the log itself."""
    run = reading.read(make(tmp_path / "run", Made(updates=300, concurrency=25)))
    back = trips.returned(trips.trips(run.events))
    assert curves.staleness_versions(back)["updates"].sum() == 300
    cuts, _ = thinning.edges(back["away_s"])
    assert thinning.histogram(back["away_s"], cuts)["count"].sum() == 300
    arrived = run.events.filter(pl.col("kind") == "arrive")["staleness"].sort()
    assert curves.marks(back["staleness"].cast(pl.Float64), 9)["value"].to_list() == [
        arrived[150],
        arrived[297],
        arrived[299],
    ]


def test_a_long_tail_gets_logarithmic_bins() -> None:
    """Where the 99th percentile is over 20 times the median, bins grow by a factor and still hold every value."""
    values = pl.Series([1.0] * 90 + [10.0**power for power in range(1, 6)] * 2, dtype=pl.Float64)
    cuts, logarithmic = thinning.edges(values)
    assert logarithmic
    assert thinning.histogram(values, cuts)["count"].sum() == 100


def test_every_chart_has_a_table_and_a_description(tmp_path: Path) -> None:
    """The numbers of every chart stand in a captioned table, and every chart has words for a screen reader."""
    run = reading.read(make(tmp_path / "run", Made(updates=100)))
    jobs = trips.trips(run.events)
    figures = [
        figure
        for room in rooms.rooms(run, jobs, facts.facts(run, jobs), path_charts.told(run, None))
        for figure in room.figures
    ]
    assert len(figures) >= 15
    for figure in figures:
        assert figure.chart is not None
        assert any(numbers.headings for numbers in figure.numbers.values())
        assert figure.spec()["description"].startswith(figure.heading)


def test_a_chart_names_no_colour() -> None:
    """Charts take every colour from the theme, so that light and dark differ by the theme alone."""
    folder = Path(page.__file__).parent
    assert not re.search(r"#[0-9a-fA-F]{6}", "".join(path.read_text() for path in folder.glob("*_charts.py")))
    light, dark = theme.config(theme.LIGHT), theme.config(theme.DARK)
    assert light.keys() == dark.keys()
    assert light["range"] != dark["range"]


def test_two_figures_share_one_table() -> None:
    """A table that two charts read is printed below the first only."""
    frame = pl.DataFrame({"a": [1]}, schema={"a": pl.Int64})
    numbers = {"shared": Numbers("Shared", frame, {"a": "A"})}
    figures = [Figure(name, name, "", named("shared"), numbers) for name in ("one", "two")]  # type: ignore[arg-type]
    assert [len(sheet.shown(figure, figures).tables) for figure in figures] == [1, 0]
