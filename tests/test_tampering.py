"""verify says what is wrong with a run directory that was tampered with, also where every hash was put right again."""

from __future__ import annotations

import json
import random
import shutil

import polars as pl
import pytest
import tampering
from safetensors.numpy import load_file, save_file
from tampering import HOST, REAL, TRAINED, changed, leaves, of_the_host, put_right, said_otherwise, spoiled, tables

from desim_fl import inventory, replay, report, rundir
from desim_fl import verify as checking
from desim_fl.learning.sizes import ModelFacts
from desim_fl.run import execute, resume
from desim_fl.scenario import load
from desim_fl.verify import inspected, verify
from scenarios import BLOBS, QUADRATIC, played, write

SINGLE = 25  # single tamperings of any kind; python tests/tampering.py does as many as you like
OF_THE_LOG = {"arrivals", "bytes_up", "steps"}  # of clients: what the sums of the log tell before


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Sound run directories: with waits, stale updates and bills; with samples and updates that are not finite; on a shared link."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda folder: (folder / "report.html").write_text("page"))
        return tampering.sound(tmp_path_factory.mktemp("sound"))


def copied(run, folder):
    """A copy to tamper with."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder)
    return folder


def test_sound_directories_are_sound_and_hold_every_column(sound):
    """Nothing is said of them; each table is there, and each column has a value in one of them."""
    assert [inspected(run) for run in sound.values()] == [([], [])] * len(sound)
    full = {
        (name, column.name)
        for run in sound.values()
        for name, path in tables(run).items()
        for column in pl.read_parquet(path)
        if column.null_count() < len(column)
    }
    every = {(name, column) for name, schema in inventory.SCHEMAS.items() for column in schema}
    assert every - full == set()


def test_every_column_is_compared(sound, tmp_path, monkeypatch):
    """A cell changed in every column at once, every hash put right: each column of each table is told by its name."""
    monkeypatch.setattr(checking, "_MOST", 1000)
    told, every = set(), set()
    for name, run in sound.items():
        chance = random.Random(name)
        for table, path in tables(run).items():
            if table in {"partition", "kept_back"}:
                continue  # told as a whole, below
            folder = copied(run, tmp_path / "run")
            before = after = pl.read_parquet(path)
            every |= {(table, column) for column in before.columns}
            for column in before.columns:
                made = changed(after, column, "change", chance)
                after = changed(after, column, "fill", chance) if made is None else made
                after = before if after is None else after
            if table == "clients":  # the first column says which client it is: by itself
                after = after.with_columns(before["client"])
            after.write_parquet(tables(folder)[table])
            put_right(folder)
            said = verify(folder)
            told |= {
                (table, column)
                for column in before.columns
                if any(f"says {column} = " in each or f"holds a {column} " in each for each in said)
            }
    missing = {pair for pair in every - told if pair[0] not in {"wall", "links"}}
    assert missing <= TRAINED | {("clients", "client")}


def test_a_row_too_few_or_too_many_at_the_end_is_told(sound, tmp_path):
    """The last row of each table left out, or written twice, every hash put right: the table is named."""
    for table, path in tables(sound["network"]).items():
        before = pl.read_parquet(path)
        for after in (before[:-1], pl.concat([before, before[-1:]])) if len(before) else ():
            folder = copied(sound["network"], tmp_path / "run")
            after.write_parquet(tables(folder)[table])
            put_right(folder)
            told = " ".join(verify(folder))
            assert f"table {table}" in told or table in {"wall", "events"}, (table, len(after) - len(before))
            assert told or (table == "wall" and len(after) < len(before))  # which jobs a host timed is its own affair


def test_whatever_is_tampered_with_is_told(sound, tmp_path):
    """Single changes of cells, rows, claims and files of any kind, drawn by a seed."""
    assert [told for seed in range(SINGLE) if (told := tampering.one(sound, tmp_path / "copy", seed))] == []


def test_every_file_is_guarded(sound, tmp_path):
    """Removed, cut, with one bit flipped or exchanged for another: each file of a run directory is named, exit code 1."""
    chance, run = random.Random(5), sound["network"]
    files = [path.relative_to(run).as_posix() for path in sorted(run.rglob("*")) if path.is_file()]
    assert {path.partition("/")[0] for path in files} >= {
        "events",
        "manifest.json",
        "scenario.toml",
        "model.safetensors",
        "report.html",
    }
    for name in files:
        for how in ("removed", "cut", "flipped", "exchanged"):
            folder = copied(run, tmp_path / "run")
            if not spoiled(folder, name, how, chance):
                continue
            manifest = rundir.known_manifest(folder)
            told = verify(folder) if manifest is None else list(inventory.faults(folder, manifest))
            assert any(name in each for each in told), (name, how)


def test_every_claim_is_guarded(sound, tmp_path, monkeypatch):
    """Each value of a manifest changed: its own hash tells; with that put right, what follows from files and scenario still does."""
    monkeypatch.setattr(checking, "_MOST", 1000)
    folder = copied(sound["network"], tmp_path / "run")
    manifest = rundir.read_manifest(folder)
    whole, kept, alone = (
        manifest,
        [],
        {"wall_fields", "status", "timing_only", "scenario_sha256", "partition_sha256", "virtual_time_s"},
    )
    for path, _ in leaves(manifest):
        if path[0] == "files":
            continue
        assert "manifest.json is not what the run wrote" in list(
            inventory.faults(folder, said_otherwise(manifest, path))
        )
        if not of_the_host(path) and path[-1] not in alone:
            kept.append(path)
            whole = said_otherwise(whole, path)
    rundir.write_manifest(folder, whole)
    said = verify(folder)
    for path in kept:
        name = path[1] if path[0] == "summary" else path[0]
        assert any(each.startswith((f"the manifest says {name} = ", f"{name}: ")) for each in said), path
    for path in (("summary", name) if name == "virtual_time_s" else (name,) for name in sorted(alone)):
        rundir.write_manifest(folder, said_otherwise(manifest, path))
        assert any(path[-1] in each for each in verify(folder)), path
    assert len(kept) > 40
    assert HOST & {path[0] for path in kept} == set()


def test_what_training_gave_is_found_by_training_again(sound, tmp_path, monkeypatch):
    """A loss, a score and a parameter changed to others that are possible: only --rerun can tell, and does."""
    monkeypatch.setattr(report, "write", lambda folder: folder)
    for table, column in (("events", "loss"), ("metrics", "loss")):
        folder = copied(sound["scalar"], tmp_path / table)
        before = pl.read_parquet(tables(folder)[table])
        values = before[column].to_list()
        row = next(number for number, value in enumerate(values) if value is not None)
        values[row] += 0.25
        before.with_columns(pl.Series(column, values)).write_parquet(tables(folder)[table])
        put_right(folder)
        assert verify(folder) == []
        assert any(f"table {table}, row {row}" in each and column in each for each in verify(folder, rerun=True))
    folder = copied(sound["scalar"], tmp_path / "model")
    path = folder / "model.safetensors"
    save_file({"x": load_file(path)["x"] + 1.0}, path, rundir.MODEL_METADATA)
    put_right(folder, model_sha256=rundir.file_sha256(path))
    assert verify(folder) == []
    assert any("model_sha256" in each for each in verify(folder, rerun=True))
    assert {("wall", "train_s")} == REAL


def test_another_seed_or_another_deal_is_another_run(sound, tmp_path):
    """With another seed everywhere, or two samples exchanged between clients, the streams of the tables are not that seed's."""
    folder = copied(sound["scalar"], tmp_path / "seed")
    text = (folder / "scenario.toml").read_text()
    (folder / "scenario.toml").write_text(text.replace("seed = 7", "seed = 8"))
    put_right(folder, seed=8, scenario_sha256=load(folder / "scenario.toml").sha256())
    assert any("of the table events says ticks" in each for each in verify(folder))
    folder = copied(sound["network"], tmp_path / "deal")
    table = pl.read_parquet(folder / "partition.parquet")
    owners = table["client"].to_list()
    one, other = owners.index(0), owners.index(1)
    indices = table["index"].to_list()
    indices[one], indices[other] = indices[other], indices[one]
    table.with_columns(pl.Series("index", indices)).write_parquet(folder / "partition.parquet")
    put_right(folder)
    assert "the table partition does not hold the samples of client 0 that the scenario and its seed give" in verify(
        folder
    )
    held = [number if owner >= 0 else number + 1 for owner, number in table.select("client", "index").iter_rows()]
    table.with_columns(pl.Series("index", held)).write_parquet(folder / "partition.parquet")
    put_right(folder)
    due = "the table partition does not hold the validation samples that the scenario and its seed give"
    assert due in verify(folder)


def test_a_run_that_did_not_finish_says_so_and_is_compared_as_far_as_it_came(tmp_path, monkeypatch):
    """Interrupted, killed and killed before it began: what is there is checked and told; a changed cell is found all the same."""
    monkeypatch.setattr(report, "write", lambda folder: (folder / "report.html").write_text("page"))
    monkeypatch.setattr("desim_fl.eventlog._BATCH_ROWS", 10)
    monkeypatch.setattr("desim_fl.eventlog.EventLog.__init__.__defaults__", (None, 25))
    killed = tmp_path / "killed"

    def stop(session):
        if session.engine.ledger.arrived == 40 and session.engine.between_instants:
            shutil.copytree(session.folder, killed)  # what kill -9 would leave
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        played(tmp_path, QUADRATIC, "checkpoint.every_versions=2", watch=stop)
    for run, word in ((tmp_path / "run", "interrupted at"), (killed, "it was killed, or is still going")):
        problems, notes = inspected(run)
        assert problems == []
        assert len(notes) == 1
        assert word in notes[0]
        assert f"desim-fl resume {run}" in notes[0]
        part = run / "events" / "part-00001.parquet"
        sound = pl.read_parquet(part)
        made = changed(sound, "wait_s", "change", random.Random(1))
        assert made is not None
        made.write_parquet(part)
        assert "of the table events says wait_s" in verify(run)[0]
        part.unlink()
        assert "events/part-00001.parquet is missing, though later ones are there" in verify(run)
        sound.write_parquet(part, compression="zstd", compression_level=1, statistics=False)
        stored = max((run / "checkpoints").iterdir())
        content = stored.read_bytes()
        stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert verify(run) == [f"checkpoints/{stored.name}: it is damaged: its content is not what was written"]
        stored.write_bytes(content)
    (killed / "events" / "part-00009.parquet.partial").write_bytes(b"half")
    assert "part-00009.parquet.partial was left half-written" in inspected(killed).notes[-1]
    assert resume(killed)[0]["status"] == "finished"
    assert inspected(killed) == ([], [])
    for name in ("manifest.json", "model.safetensors", "report.html"):
        (killed / name).unlink()
    assert verify(killed) == ["manifest.json is missing, and without it nothing else can be checked"]
    begun = tmp_path / "begun"
    begun.mkdir()
    write(begun, name="scenario.toml")
    assert inspected(begun) == ([], [f"the run was killed before it began; desim-fl resume {begun} begins it"])


def test_a_failed_run_says_so_and_one_without_its_page_too(tmp_path, monkeypatch):
    """The note tells the error, or what could not be written; the same error comes when the timeline is played again."""

    def broken(_):
        raise ValueError("no ink")

    monkeypatch.setattr(report, "write", broken)
    with pytest.raises(Exception, match="no ink"):
        played(tmp_path, QUADRATIC)
    problems, (note,) = inspected(tmp_path / "run")
    assert problems == []
    assert "not everything was written: report.html could not be written: ValueError: no ink" in note


def test_code_of_a_scenarios_own_is_not_run_to_look(tmp_path, monkeypatch):
    """A strategy of one's own is not played: the note says so; a model of one's own is not made: the file tells its size."""
    monkeypatch.setattr(report, "write", lambda folder: (folder / "report.html").write_text("page"))
    own = QUADRATIC.replace('name = "fedbuff"\nbuffer_size = 2', 'name = "desim_fl.strategies.fedasync:FedAsync"')
    folder, _ = played(tmp_path, own, "run.max_updates=5", out="strategy")
    text = BLOBS.replace('name = "mlp"\nhidden = [16]', 'name = "test_resume:batchnorm"')
    facts = ModelFacts(244, 976, 136)  # 8 x 16 + 16, 16 + 16, 16 x 4 + 4 floats; two statistics of 16, and a count
    monkeypatch.setattr("desim_fl.build.model_facts", lambda *_: facts)
    model, _ = played(tmp_path, text, "run.max_updates=5", out="model")
    assert rundir.model_bytes(model) == facts.total_bytes
    monkeypatch.setattr("desim_fl.strategies.build", None)
    problems, (note,) = inspected(folder)
    assert problems == []
    assert "FedAsync is code of the scenario's own, which only --rerun runs" in note
    monkeypatch.undo()
    monkeypatch.setattr("desim_fl.build.model_facts", None)
    assert inspected(model) == ([], [])
    table = pl.read_parquet(tables(model)["events"])
    table.with_columns(pl.col("bytes") * 2).write_parquet(tables(model)["events"])
    assert any("says bytes" in each for each in verify(model))


def test_timelines_that_read_trained_values_are_followed(tmp_path, monkeypatch):
    """Selections by reported loss, jobs and runs that stop early, a target: played again from the tables, and tampering is told."""
    monkeypatch.setattr(report, "write", lambda folder: (folder / "report.html").write_text("page"))
    worlds = {
        "oort": ("run.selection=oort", "run.concurrency=2"),
        "choice": ("run.selection=power_of_choice", "run.poc_candidates=3", "run.concurrency=2"),
        "jobs": ("training.patience=1", "training.epochs=6", "training.lr=1.0"),
        "run": ("run.patience=2", "run.eval_every_versions=2", "run.max_updates=400", "training.lr=2.0"),
        "target": ("run.target_accuracy=0.6", "run.eval_every_versions=2"),
    }
    for name, keys in worlds.items():
        folder, manifest = played(tmp_path, BLOBS, *keys, out=name)
        assert inspected(folder) == ([], []), name
        assert manifest["summary"]["stop"] == {"run": "patience", "target": "target_accuracy"}.get(name, "max_updates")
    losses = pl.read_parquet(tables(tmp_path / "choice")["events"])
    turned = losses.with_columns(loss=-pl.col("loss"))
    turned.write_parquet(tables(tmp_path / "choice")["events"])
    put_right(tmp_path / "choice")
    assert any("says client" in each for each in verify(tmp_path / "choice"))
    stopped = pl.read_parquet(tables(tmp_path / "jobs")["events"])
    assert (stopped["reason"] == "stopped early").any()
    stopped.with_columns(reason=pl.lit(None, pl.String)).write_parquet(tables(tmp_path / "jobs")["events"])
    put_right(tmp_path / "jobs")
    assert any("says reason = None; played again it is 'stopped early'" in each for each in verify(tmp_path / "jobs"))


def test_what_cannot_be_played_again_is_said(tmp_path, monkeypatch):
    """A trace that is gone, another NumPy, another version: notes, and no problem."""
    monkeypatch.setattr(report, "write", lambda folder: (folder / "report.html").write_text("page"))
    folder, manifest = played(tmp_path, BLOBS, "run.max_updates=5")
    manifest["versions"] = {**manifest["versions"], "numpy": "1.0"}
    rundir.write_manifest(folder, manifest)
    problems, notes = inspected(folder)
    assert problems == []
    assert any("written with numpy 1.0" in note for note in notes)
    assert any("the partition was not drawn again: NumPy 1.0 drew it" in note for note in notes)

    def gone(*_arguments, **_options):
        raise replay.ScenarioError("no such file: trace.csv")

    monkeypatch.setattr(replay, "build", gone)
    assert any("the timeline was not played again: no such file" in note for note in inspected(folder).notes)
    assert json.loads((folder / "manifest.json").read_text())["files"]["manifest.json"]


def test_a_plan_is_checked_like_a_run(tmp_path, monkeypatch):
    """A plan's directory, also one that assumes full work: sound as written; a loss that nobody trained is told."""
    monkeypatch.setattr(report, "write", lambda folder: (folder / "report.html").write_text("page"))
    folder = tmp_path / "plan"
    execute(load(write(tmp_path), ["run.selection=oort"]), folder, timing_only=True, assume_full_work=True)
    assert inspected(folder) == ([], [])
    table = pl.read_parquet(tables(folder)["events"])
    table.with_columns(loss=pl.when(pl.col("kind") == "arrive").then(0.5)).write_parquet(tables(folder)["events"])
    put_right(folder)
    assert any("says loss = 0.5; played again it is None" in each for each in verify(folder))
