"""A seeded sample of the campaign of bad input, and what it cannot meet by chance.

Tens of thousands more: ``PYTHONPATH=.:tests python tests/campaign.py 20000``, or ``CAMPAIGN=20000 pytest
tests/test_campaign.py``.
"""

from __future__ import annotations

import html.parser
import os
import random
import shutil
from pathlib import Path

import bad_scenarios
import campaign
import polars as pl
import pytest

import scenarios
from desim_fl import checkpoint, footprint, run, rundir, verify
from desim_fl.datasets import archive
from desim_fl.errors import CheckpointError, DataError, RefusedError, RunDirectoryError
from desim_fl.scenario import load, reading

COUNT = int(os.environ.get("CAMPAIGN", "480"))
TURNS = 8


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A campaign with its sound run directories; nobody waits long for a pipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIPE_WAIT_S", 0.1)
        yield campaign.Campaign(tmp_path_factory.mktemp("campaign"))


@pytest.mark.parametrize("turn", range(TURNS))
def test_bad_input_is_played_or_refused_by_name(bad, turn):
    """Whatever comes in: exit code 2 and a place, or a sound run; no traceback, no warning, nothing written; CASES CF-01."""
    share = COUNT // TURNS
    found = [bad.one(seed) for seed in range(turn * share, (turn + 1) * share)]
    assert [fault for _, _, fault in found if fault] == []
    refused = [answer for _, answer, _ in found if answer is not None and answer.code == 2]
    assert len(refused) > share // 3  # else the generator has lost its edge


@pytest.mark.parametrize("family", campaign.FAMILIES)
def test_each_family_of_bad_input_is_met(bad, family):
    """Some inputs of each family, so that none is left out of the sample by chance."""
    found = [bad.one(1_000_000 + seed, family) for seed in range(12)]
    assert [fault for _, _, fault in found if fault] == []


SOUND = ["plan", "small.toml"]
REFUSED = campaign.Answer(2, "", 'small.toml:3: [run] has no key "x"\n')


@pytest.mark.parametrize(
    ("answer", "after", "fault"),
    [
        (REFUSED, {}, None),
        (campaign.Answer(None, "", "Traceback"), {}, "crashed"),
        (campaign.Answer(2, "", ""), {}, "nothing is said"),
        (campaign.Answer(2, "", "no key x\n"), {}, "neither"),
        (campaign.Answer(2, "", "small.toml:3: \x1b[2J\n"), {}, "steers"),
        (REFUSED, {"left": b""}, "wrote"),
        (campaign.Answer(3, "", "small.toml\n"), {}, "exit code 3"),
        (campaign.Answer(0, "", "RuntimeWarning: overflow"), {}, "warned"),
        (campaign.Answer(1, "", "small.toml\n"), {}, "without words"),
    ],
)
def test_the_judge_of_the_campaign_sees_each_fault(answer, after, fault):
    """A crash, silence, a message without place, an escape sequence, a file left behind: each is called a fault."""
    found = campaign.verdict(answer, bad_scenarios.Asked(SOUND), {}, after)
    assert found is None if fault is None else fault in (found or "")


def test_what_must_be_refused_may_not_be_played(tmp_path):
    """Exit code 0 for a folder given as scenario, or for what the JSON Schema turns down, is a fault."""
    played = campaign.Answer(0, "", "")
    assert "cannot be played" in (campaign.verdict(played, bad_scenarios.Asked(SOUND, refused=True), {}, {}) or "")
    path = scenarios.write(tmp_path, scenarios.QUADRATIC.replace("seed = 7", "seed = -7"))
    assert "JSON Schema" in (campaign.verdict(played, bad_scenarios.Asked(["plan", str(path)]), {}, {}) or "")


# ---- faults that the campaign found, each by itself


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["clients.count=4000000000"], "[clients] count = 4000000000"),
        (["data.examples=10000000", "data.features=10000000"], "[data] features = 10000000"),
        (["data.classes=10000000", "clients.count=100000", "data.examples=10000000"], "[data] classes = 10000000"),
        (["model.hidden=[65536,65536,65536,65536,65536,65536,65536]"], "[model] hidden = [65536, 65536"),
    ],
)
def test_what_cannot_fit_into_memory_is_refused_by_the_key_that_counts(tmp_path, monkeypatch, overrides, named):
    """Billions of clients, features or weights: a refusal before anything is allocated, not a killed process; CASES RS-01."""
    monkeypatch.setattr(footprint, "memory", lambda: 64 << 30)
    text = scenarios.BLOBS.replace('partition = "dirichlet"\nalpha = 0.5\n', "")
    loaded = load(scenarios.write(tmp_path, text), overrides)
    with pytest.raises(RefusedError) as caught:
        run.execute(loaded, tmp_path / "run")
    assert named in str(caught.value)
    assert "this machine has 68.7 GB; lower " in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_machine_that_says_nothing_of_its_memory_refuses_nothing(tmp_path, monkeypatch):
    """Where the system does not tell, the run is tried; a small machine's own limit counts where it does."""
    loaded = load(scenarios.write(tmp_path))
    monkeypatch.setattr(footprint, "memory", lambda: None)
    footprint.require(loaded, timing_only=True)
    monkeypatch.setattr(footprint, "memory", lambda: 4 * footprint.CLIENT - 1)
    with pytest.raises(RefusedError, match="count = 4"):
        footprint.require(loaded, timing_only=True)
    monkeypatch.setattr(footprint, "memory", lambda: 4 * footprint.CLIENT)
    footprint.require(loaded, timing_only=True)


def test_a_model_of_ones_own_that_cannot_fit_is_named(tmp_path, monkeypatch):
    """Where nothing in the file sets the size, the factory is named, and the words do not ask to lower a name."""
    monkeypatch.setattr(footprint, "memory", lambda: 1 << 30)
    text = scenarios.BLOBS.replace('name = "mlp"\nhidden = [16]', 'name = "shop:net"')
    loaded = load(scenarios.write(tmp_path, text))
    footprint.require_model((1 << 29) - 1, loaded)
    with pytest.raises(RefusedError, match=r"\[model\] name = shop:net: at least 1.1 GB .*; choose a smaller model"):
        footprint.require_model((1 << 29) + 1, loaded)


def test_memory_that_runs_out_all_the_same_is_named(tmp_path, monkeypatch):
    """A MemoryError from anywhere is one line and exit code 1."""
    monkeypatch.setattr(footprint, "require", _no_more)
    answer = campaign.call(["plan", str(scenarios.write(tmp_path))], tmp_path)
    assert (answer.code, answer.err) == (1, "error: this machine has too little memory for that (12 GiB asked for)\n")


def _no_more(*_arguments, **_options):
    raise MemoryError("12 GiB asked for")


def test_nobody_waits_for_ever_at_a_pipe(tmp_path, monkeypatch):
    """A scenario may come through a pipe; one into which nothing is written is refused after a while."""
    monkeypatch.setattr(reading, "PIPE_WAIT_S", 0.1)
    os.mkfifo(tmp_path / "pipe.toml")
    answer = campaign.call(["plan", "pipe.toml"], tmp_path)
    assert answer.code == 2
    assert answer.err == "pipe.toml: cannot be read: it is a pipe into which nobody has written for 0.1 s\n"
    path = tmp_path / "pipe.toml"
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    os.write(descriptor, scenarios.QUADRATIC.encode())
    with pytest.raises(Exception, match="nobody has written"):  # the writer has not closed it
        load(path)
    os.close(descriptor)


def test_what_comes_through_a_pipe_is_read_whole(tmp_path):
    """The text of a scenario that another process writes, then closes, is a scenario."""
    path = tmp_path / "pipe.toml"
    os.mkfifo(path)
    if os.fork() == 0:
        path.write_text(scenarios.QUADRATIC)
        os._exit(0)
    assert load(path).clients.count == 4
    os.wait()


@pytest.mark.parametrize("command", ["verify", "report", "plan"])
def test_a_path_that_no_file_can_have_is_refused(tmp_path, command):
    """A name that is too long, or holds a NUL or an escape sequence, is told without steering the terminal."""
    for name in ("x" * 300, "a\0b", "a\x1b]0;owned\x07b"):
        answer = campaign.call([command, name], tmp_path)
        assert answer.code == 2
        assert not set(answer.err) & {"\x1b", "\0"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 300, "cannot write to"),
        ("link", "is a link that leads nowhere"),
        ("small.toml", "is a file"),
    ],
)
def test_a_run_directory_that_cannot_be_made_is_refused(tmp_path, name, said):
    """--out of a name that is too long, a NUL, a link to nowhere, a file: exit code 2, and nothing is written."""
    scenarios.write(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = campaign.snapshot(tmp_path)
    answer = campaign.call(["plan", "small.toml", "--out", name], tmp_path)
    assert answer.code == 2
    assert said in answer.err
    assert "give another --out" in answer.err
    assert campaign.snapshot(tmp_path) == before
    with pytest.raises(RunDirectoryError, match="cannot write to"), rundir.claimed(tmp_path / "a\0b"):
        pytest.fail("it was made")


def test_empty_cells_of_the_timeline_are_named(tmp_path):
    """A log whose timeline columns hold nulls is no reason to crash: verify says which."""
    folder, _ = scenarios.played(tmp_path)
    part = folder / "events" / "part-00000.parquet"
    table = pl.read_parquet(part)
    table.with_columns(pl.lit(None, pl.Int64).alias("version")).write_parquet(part)
    assert verify.verify(folder)[0] == "the table events has empty cells in version"


@pytest.mark.parametrize("name", ["metrics", "clients", "partition"])
def test_tables_of_another_form_are_named(tmp_path, name):
    """Columns of another type, in another order or with empty cells are told before anything is counted from them; CASES RE-01."""
    folder, _ = scenarios.played(tmp_path, scenarios.BLOBS)
    path = folder / f"{name}.parquet"
    table = pl.read_parquet(path)
    first = table.columns[0]
    for changed in (table.with_columns(pl.lit(float("nan")).alias(first)), table.select(reversed(table.columns))):
        changed.write_parquet(path)
        assert verify.verify(folder)[0] == f"the table {name} does not have the schema that this version writes"
    table.with_columns(pl.lit(None, pl.Int64).alias(first)).write_parquet(path)
    assert verify.verify(folder)[0] == f"the table {name} has empty cells in {first}"


def test_a_tensor_that_its_bytes_do_not_hold_is_a_damaged_checkpoint():
    """Torch's own complaint about impossible shapes is told as what it is; CASES CK-03."""
    state = {".": "tensor", "data": "0", "shape": [-1], "strides": [10**12], "dtype": "float32", "on": "cpu"}
    chance = random.Random(0)
    chance.choice = lambda _values: state  # type: ignore[method-assign]
    content = campaign._other_state(chance, checkpoint.encoded({"a": campaign.np.arange(4.0)}))
    with pytest.raises(CheckpointError, match="cannot be made"):
        checkpoint.decoded(content)


# ---- hostile content


class _Tags(html.parser.HTMLParser):
    """Counts the tags of a page, and collects what its scripts and images refer to."""

    def __init__(self):
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href", "onerror", "onload"} and value]


def tags(page):
    """The tags of a page by name, and its references."""
    reader = _Tags()
    reader.feed(page)
    return sorted(reader.tags), reader.links


def test_hostile_texts_do_no_harm(tmp_path):
    """Names that are HTML, paths or escape sequences: the page has no other tags, and no file lies outside the run; CASES RE-03."""
    plain, _ = scenarios.played(
        tmp_path, scenarios.QUADRATIC.replace("count = 4", 'count = 4\nnames = ["a", "b", "c", "d"]')
    )
    words = [word for word in bad_scenarios.HOSTILE if 0 < len(word) <= 200]
    expected = tags((plain / "report.html").read_text())
    for at in range(0, len(words) - 3, 4):
        folder = tmp_path / f"hostile-{at}"
        folder.mkdir()
        names = words[at : at + 4]
        document = bad_scenarios.tomllib.loads(scenarios.QUADRATIC)
        document["clients"]["names"] = names
        document["name"] = names[0]
        path = folder / "x.toml"
        path.write_text(bad_scenarios.tomli_w.dumps(document), newline="")
        answer = campaign.call(["run", "x.toml", "--set", "run.max_updates=60"], folder)
        assert answer.code == 0, answer.err
        made = {Path(name).parts[:2] for name in campaign.snapshot(folder) if name not in {"x.toml", "reports"}}
        assert len(made) == 1
        assert next(iter(made))[0] == "reports"
        found = tags(next((folder / "reports").glob("*/report.html")).read_text())
        assert (found[0], found[1]) == expected
        assert campaign.call(["verify", str(next((folder / "reports").iterdir()))], folder).code == 0


def test_no_code_runs_unless_it_is_named(tmp_path):
    """A module that lies beside a scenario is imported only where "module:attr" names it; even then --print-config does not."""
    (tmp_path / "bomb.py").write_text(
        "import pathlib\npathlib.Path('exploded').touch()\ndef explode():\n    return None\n"
    )
    text = scenarios.QUADRATIC.replace("[data]", 'name = "bomb:explode"\ndescription = "bomb:explode"\n[data]', 1)
    text = text.replace(
        "count = 4", 'count = 4\nnames = ["bomb:explode", "bomb", "import bomb", "__import__(\'bomb\')"]'
    )
    (tmp_path / "x.toml").write_text(text)
    assert campaign.call(["plan", "x.toml"], tmp_path).code == 0
    assert campaign.call(["plan", "x.toml", "--set", "strategy.normalize=bomb:explode"], tmp_path).code == 2
    named = ["x.toml", "--set", 'strategy={name="bomb:explode"}']
    assert campaign.call(["plan", *named, "--print-config"], tmp_path).code == 0
    assert not (tmp_path / "exploded").exists()


def test_a_panic_of_the_parquet_reader_is_a_named_error(tmp_path, monkeypatch, capfd):
    """Bits can be flipped so that polars' own asserts fail: verify and report say which table, without a backtrace."""
    folder, _ = scenarios.played(tmp_path)

    def panic(_frame, *_arguments, **_options):
        os.write(2, b"thread panicked\nstack backtrace:\n")
        raise pl.exceptions.PanicException("an assert in Rust")

    capfd.readouterr()
    monkeypatch.setattr(pl.LazyFrame, "collect", panic)
    for command, code in (("verify", 1), ("report", 2)):
        answer = campaign.call([command, str(folder)], tmp_path)
        assert answer.code == code
        assert "cannot be read" in answer.err
        assert "the file is damaged (an assert in Rust)" in answer.err
    os.write(2, b"this is seen\n")
    assert capfd.readouterr().err == "this is seen\n"


def test_a_constant_law_with_a_cap_is_played_like_the_bare_number(tmp_path):
    """A cap on a constant is allowed and without effect, in every place that takes a law."""
    text = scenarios.QUADRATIC
    hashes = set()
    for law in ("2", '{ law = "constant", value = 2 }', '{ law = "constant", value = 2, cap = 3 }'):
        places = ("clients.wait_s", "clients.device_factor", "network.latency_s", "network.up_mbps")
        loaded = load(scenarios.write(tmp_path, text), [f"{place}={law}" for place in places])
        hashes.add(run.execute(loaded, None, timing_only=True)["timeline_sha256"])
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "change",
    [lambda table: table.head(0), lambda table: table.sort("client", descending=True), lambda table: table.head(3)],
)
def test_clients_that_are_missing_from_their_table_are_told(tmp_path, change):
    """An empty, turned or cut table of clients is one problem, not a division by zero."""
    folder, _ = scenarios.played(tmp_path)
    change(pl.read_parquet(folder / "clients.parquet")).write_parquet(folder / "clients.parquet")
    assert verify.verify(folder)[0] == "the table clients does not hold the 4 clients in order"


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + bytes(30), b"\x93NUMPY", b"not an archive"])
def test_an_archive_of_data_that_is_none_is_named(tmp_path, content):
    """Empty and cut archives are the data's error, with the file's name."""
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        archive.member("train_labels", path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "[" * 100_000])
def test_a_manifest_that_is_no_strict_json_is_named(bad, tmp_path, value):
    """What Python reads although JSON has no such numbers, or nests without end: told, by whoever shows or checks the run."""
    folder = tmp_path / "run"
    shutil.copytree(bad.sound[0], folder)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"virtual_time_s": ', f'"virtual_time_s": {value}, "x": ', 1))
    for command in (["verify", "run"], ["report", "run"], ["compare", "run", str(bad.sound[1])]):
        answer = campaign.call(command, tmp_path)
        assert answer.code in {1, 2}, command
        assert "manifest" in answer.err + answer.out
        assert "Traceback" not in answer.err
