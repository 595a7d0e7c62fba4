"""Stopped at any instant and resumed, a run is the one that never stopped: law 4, and CASES CK-01 to CK-05."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import polars as pl
import pytest
from test_expressiveness import Worst
from test_random_worlds import a_setting, engine_of
from worlds import FloatExecutor, Plain, Played, ScriptedTrips, selector

from desim_fl import checkpoint, checkpointing, durable, eventlog, report, rundir
from desim_fl.assignment import Assignment
from desim_fl.checkpointing import asleep
from desim_fl.continuation import ResumableEngine
from desim_fl.core import Alarm, Model, Reply, Send, Stop
from desim_fl.engine import Engine
from desim_fl.errors import CheckpointError, DesimError, JobError, RunDirectoryError, ScenarioError, StalledError
from desim_fl.eventlog import EventLog, MemorySink
from desim_fl.learning.sizes import ModelFacts
from desim_fl.readings import Read
from desim_fl.run import execute, resume
from desim_fl.scenario import load
from desim_fl.verify import inspected, verify
from desim_fl.world import Evaluations, StopRules, World
from scenarios import BLOBS, QUADRATIC, commanded, played, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# ---- the engine alone, on worlds of floats


def held_everywhere(played: Played) -> list[bytes]:
    """Play a world and return what it held at the end of each instant, as it would be stored."""
    found = []

    def watch(engine: ResumableEngine) -> None:
        if engine.between_instants and engine.why is None:
            engine.settle()
            found.append(checkpoint.encoded((engine.held(), tuple(played.evaluations))))

    played.engine = ResumableEngine(played.engine.world, EventLog(played.sink), played.evaluations.append)
    played.sha256 = played.engine.run(watch)
    return found


def everything(played: Played) -> list:
    """All that law 4 speaks of: rows and what stands beside them, model, accounts, evaluations."""
    engine = played.engine
    notes = [played.sink.notes(name) for name in eventlog.schema() if name in BESIDE]
    usage = (engine.usage.total(), sorted(engine.usage.staleness.items()), engine.usage.arrivals)
    return [played.sha256, played.sink.tuples(), notes, engine.model, engine.ledger, usage, engine.why]


BESIDE = (
    "nth",
    "steps",
    "examples",
    "loss",
    "lr",
    "weight",
    "scale",
    "bytes",
    "wait_s",
    "reason",
    "outcome",
    "bad_key",
)


def check_resumes(make: Callable[[], Played], pick) -> int:
    """Resume a world from some of its instants, after a round trip through bytes; returns from how many."""
    whole = make()
    try:
        stored = held_everywhere(whole)
    except StalledError:
        return 0
    chosen = sorted({pick(range(len(stored))) for _ in range(3)}) if stored else []
    for place in chosen:
        held, evaluations = checkpoint.decoded(stored[place])
        again = make()
        world = asleep(again.engine.world)
        kept = list(evaluations)
        again.engine = ResumableEngine(
            world, EventLog(again.sink), lambda e, kept=kept, held=held: kept.append(e) if e.ticks > held.tick else None
        )
        again.sha256 = again.engine.resume(held)
        assert everything(again) == everything(whole)
        assert kept == whole.evaluations
    return len(chosen)


@pytest.fixture
def small_batches(monkeypatch):
    """Settle after few records, so that a stop falls before, in and after batches."""
    monkeypatch.setattr(eventlog, "_BATCH_ROWS", 7)


@pytest.mark.parametrize("batch", [3, 11, 16_384])
def test_random_worlds_resume_at_any_instant(batch, monkeypatch):
    """Every strategy, with ties, losses, deadlines, non-finite updates and stragglers in flight at the stop."""
    monkeypatch.setattr(eventlog, "_BATCH_ROWS", batch)
    chance = random.Random(batch)
    worlds = [a_setting(chance.choice) for _ in range(150)]
    assert sum(check_resumes(lambda s=setting: engine_of(s), chance.choice) for setting in worlds) > 150


class Memory(NamedTuple):
    """A state with an older version, arithmetic on what clients sent, an update that waits for a second, and a count."""

    first: Model
    control: object
    waiting: object
    rung: int


class Everything(Plain):
    """Starts jobs from an old version, broadcasts, reads memory and caches, sets alarms, waits for clients, publishes in twos."""

    def start(self, view):
        return Memory(view.model, 0.0, None, 0), Reply(sends=(Send(3, extra=0.0),), alarms=(Alarm("tick", 1.25),))

    def arrive(self, state, view, update):
        control = state.control + update.outcome.extra
        step = update.delta - (0.0 if update.cache is None else update.cache)
        again = Send(clients=((update.job.client + 2) % view.clients,), extra=control, start=state.first)
        reply = Reply(keep=((update.job.client, step),), sends=(again,), weight=0.5)
        if state.waiting is None:
            return state._replace(control=control, waiting=step), reply
        return state._replace(control=control, waiting=None), reply._replace(params=view.params + state.waiting + step)

    def alarm(self, state, view, name):
        return state._replace(rung=state.rung + 1), Reply(alarms=(Alarm(name, 1.25),), sends=())


def test_old_versions_broadcasts_memories_caches_buffers_and_alarms_resume(small_batches):
    """What only the strategy, idle clients, the desk, a half-full buffer or the engine's tables hold is there again."""

    def make() -> Played:
        def outcome(job, steps, plain):
            own = 0.5 * (job.memory or 0.0) + 1.0 + job.client
            params = 0.1 * job.params + 0.1 * job.extra - own
            return plain._replace(params=params, buffers={"b": params}, memory=own, extra=0.25)

        def average(base, members):
            return {"b": 0.5 * base["b"] + sum(share * buffers["b"] for share, buffers in members)}

        executor, sink, evaluations = FloatExecutor([1] * 7), MemorySink(), []
        executor.outcome = outcome
        world = World(
            strategy=Everything(), selector=selector("longest_idle", 7),
            trips=ScriptedTrips([0.5, [0.3, 0.7], 1.1, 0.4, 0.9, 0.2, 0.6]),
            executor=executor, assignment=Assignment([1] * 7), sizes=[1] * 7, model=Model(0, 1.0, {"b": 2.0}),
            average=average, stops=StopRules(max_updates=40), concurrency=3, evaluations=Evaluations(None, 150_000),
        )  # fmt: skip
        return Played(Engine(world, EventLog(sink), evaluations.append), sink, "", executor, evaluations)

    chance = random.Random(1)
    assert sum(check_resumes(make, chance.choice) for _ in range(12)) > 30


class Choosy(Plain):
    """Publishes moves over 0.6 only, turns those under 0.35 away, cancels on a large one, waits longer after a small one."""

    def start(self, view):
        return 0.0, Reply(alarms=(Alarm("look", 1.0),))

    def arrive(self, state, view, update):
        move = update.delta
        if move < 0.35:
            return state + move, Reply(reject="too small")
        stops = tuple(Stop(job, "cancel") for job in list(view.flying)[: int(move > 1.3)])
        return state, Reply(params=view.params + move if move > 0.6 else None, weight=move, stops=stops)

    def alarm(self, state, view, name):
        busy = {flight.client for flight in view.flying.values()}
        free = min(client for client in range(view.clients) if client not in busy)
        sends = (Send(clients=(free,), extra=state),) if state > 0.1 else ()
        return 0.0, Reply(alarms=(Alarm(name, 1.0 + state),), sends=sends)


class Worse(Worst):
    """The same, where a loss may be missing or no number."""

    def hear(self, state, client, loss):
        return super().hear(state, client, -1.0 if loss is None else -2.0 if math.isnan(loss) else loss)


@pytest.mark.parametrize("batch", [5, 16_384])
def test_timelines_that_read_trained_values_resume(batch, monkeypatch):
    """Replies of a strategy and losses heard by a selector are told again; nothing that had arrived is trained again."""
    monkeypatch.setattr(eventlog, "_BATCH_ROWS", batch)
    trained = []

    def learn(job):
        trained.append(job.id)
        return job.params + (0.37 * (job.client + 1) * (job.nth + 1)) % 1.5

    def make() -> Played:
        executor, sink, evaluations = FloatExecutor([1] * 6, learn), MemorySink(), []
        executor.outcome = lambda job, _, plain: plain._replace(
            loss=None if job.id % 5 == 0 else float("nan") if job.id % 7 == 0 else 1.0 / (1 + job.params * job.client)
        )
        world = World(
            strategy=Choosy(reads_outcomes=True), selector=Worse(), trips=ScriptedTrips([0.5, [0.3, 0.7], 1.1, 0.4, 0.9, 0.2]),
            executor=executor, assignment=Assignment([1] * 6), sizes=[1] * 6, model=Model(0, 0.0), average=lambda base, _: base,
            stops=StopRules(max_updates=60), concurrency=3, evaluations=Evaluations(4, None),
        )  # fmt: skip
        return Played(Engine(world, EventLog(sink), evaluations.append), sink, "", executor, evaluations)

    whole = make()
    stored = held_everywhere(whole)
    kinds = [row[1] for row in whole.sink.tuples()]
    assert {"publish", "reject", "cancel", "alarm"} <= set(kinds)
    for place in range(0, len(stored), 3):
        held, _ = checkpoint.decoded(stored[place])
        again = make()
        again.engine = ResumableEngine(asleep(again.engine.world), EventLog(again.sink), again.evaluations.append)
        trained.clear()
        again.sha256 = again.engine.resume(held)
        assert repr(everything(again)) == repr(everything(whole))  # a loss may be NaN
        assert (
            len(set(trained))
            == len(trained)
            == 60 - sum(1 for row in whole.sink.tuples() if row[1] == "arrive" and row[0] <= held.tick)
        )


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_readings_that_are_not_of_this_run_are_refused(change):
    """A checkpoint with a value too many, or too few, belongs to another run."""

    def make() -> Played:
        executor, sink = FloatExecutor([1] * 3), MemorySink()
        world = World(
            strategy=Plain(), selector=Worst(), trips=ScriptedTrips([1.0, 1.5, 2.0]), executor=executor,
            assignment=Assignment([1] * 3), sizes=[1] * 3, model=Model(0, 0.0), average=lambda base, _: base,
            stops=StopRules(max_updates=20), concurrency=2,
        )  # fmt: skip
        return Played(Engine(world, EventLog(sink)), sink, "", executor, [])

    held, _ = checkpoint.decoded(held_everywhere(make())[8])
    read = Read(held.read.values + bytes(8), held.read.known + b"\1") if change == "more" else Read()
    again = make()
    engine = ResumableEngine(asleep(again.engine.world), EventLog(again.sink))
    with pytest.raises(CheckpointError, match="belongs to another run"):
        engine.resume(held._replace(read=read))


def test_another_timeline_is_refused():
    """A checkpoint of a world in which one job takes a microsecond longer is not gone on from."""
    chance = random.Random(3)
    refused = 0
    for _ in range(40):
        setting = a_setting(chance.choice)
        try:
            stored = held_everywhere(engine_of(setting))
        except StalledError:
            continue
        slower = setting._replace(trips=tuple(
            tuple(legs._replace(compute=legs.compute + 1) for legs in client) for client in setting.trips
        ))  # fmt: skip
        for content in stored[-1:]:
            held, _ = checkpoint.decoded(content)
            other = engine_of(slower)
            engine = ResumableEngine(asleep(other.engine.world), EventLog(other.sink))
            with pytest.raises((CheckpointError, StalledError)):
                engine.resume(held)
            refused += 1
    assert refused > 10


# ---- run directories


@pytest.fixture
def no_report(monkeypatch):
    """Leave the page out where only tables matter; it takes most of the time."""
    monkeypatch.setattr(report, "write", lambda folder: folder)


@pytest.fixture
def small_segments(monkeypatch):
    """Break segments after few rows, so that some are on the disk before any stop."""
    monkeypatch.setattr(eventlog, "_BATCH_ROWS", 20)
    monkeypatch.setattr(eventlog, "SEGMENT_ROWS", 50)
    monkeypatch.setattr(EventLog.__init__, "__defaults__", (None, 50))


def copies(folder: Path, text: str, *overrides: str, points: set[int]) -> tuple[Path, list[Path]]:
    """Play a scenario; return its directory, and copies of it as it was after the landings in ``points``.

    A copy holds what kill -9 would have left at that moment.
    """
    count, found = 0, []

    def watch(session) -> None:
        nonlocal count
        count += 1
        if count in points:
            found.append(folder / f"killed-{count}")
            shutil.copytree(session.folder, found[-1])

    whole, _ = played(folder, text, *overrides, out="whole", watch=watch)
    return whole, found


def facts(manifest: dict) -> dict:
    """A manifest without its wall fields."""
    kept = {name: value for name, value in manifest.items() if name not in manifest["wall_fields"]}
    return {**kept, "summary": {name: value for name, value in manifest["summary"].items() if name != "wall_s"}}


def assert_equal_runs(one: Path, other: Path) -> None:
    """Law 4: model, partition, scenario, and the content of events, metrics, clients and manifest are equal."""
    for name in ("model.safetensors", "scenario.toml", "partition.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    for name in ("metrics", "clients"):
        assert pl.read_parquet(one / f"{name}.parquet").equals(pl.read_parquet(other / f"{name}.parquet")), name
    parts = [sorted(path.name for path in (folder / "events").iterdir()) for folder in (one, other)]
    assert parts[0] == parts[1]
    for part in parts[0]:
        assert (one / "events" / part).read_bytes() == (other / "events" / part).read_bytes(), part
    assert facts(rundir.read_manifest(one)) == facts(rundir.read_manifest(other))


OFTEN = "checkpoint.every_versions=2"
SCENARIOS = {
    "fedasync": (BLOBS, ()),
    "fedbuff": (BLOBS, ("strategy.name=fedbuff", "strategy.buffer_size=3", "strategy.flush_at_end=true")),
    "fedavg": (BLOBS, ("strategy.name=fedavg", "strategy.clients_per_round=3", "strategy.over_selection=1.5", "run.concurrency")),
    "batchnorm, momentum": (
        BLOBS,
        ("model.name=test_resume:batchnorm", "training.momentum=0.9", "network.down_mbps=0.1", "network.up_mbps=0.05"),
    ),
    "FedBN": (BLOBS, ("model.name=test_resume:batchnorm", "training.buffers=local")),
    "diverging": (BLOBS, ("training.lr=1e12", "strategy.name=fedbuff", "strategy.buffer_size=2")),
    "delay-aware": (BLOBS, ("training.delay_aware.meaning=drawn", "training.delay_aware.gamma_0=0.1", "training.delay_aware.alpha_lr=0.1", "training.lr", "clients.wait_s.law=uniform", "clients.wait_s.low=0.0",
                            "clients.wait_s.high=1.0")),
    "vmap": (BLOBS, ("executor.name=vmap", "executor.width=2", "run.concurrency=5")),
    "quadratic": (QUADRATIC, ()),
}  # fmt: skip


def batchnorm():
    """Dropout and BatchNorm on the blobs."""
    from torch import nn  # noqa: PLC0415  (a world of floats needs no torch)

    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 4))


def overrides_of(name: str) -> tuple[str, list[str]]:
    """A scenario of the table as text and overrides."""
    text, given = SCENARIOS[name]
    if any("test_resume:batchnorm" in entry for entry in given):
        text = text.replace("hidden = [16]\n", "")
    for entry in given:
        if "=" not in entry:  # take this key out
            text = re.sub(rf"^{entry.split('.')[1]} = .*\n", "", text, flags=re.MULTILINE)
    return text, [*(entry for entry in given if "=" in entry), OFTEN, "run.max_updates=30"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(name, tmp_path, no_report, small_segments):
    """After kills in the first moment, early, late and just before the end every file is the undisturbed run's; CASES CK-01."""
    text, given = overrides_of(name)
    whole, killed = copies(tmp_path, text, *given, points={1, 9, 17, 29})
    assert len(killed) >= 3
    for folder in killed:
        manifest, faults = resume(folder)
        assert faults == []
        assert manifest["status"] == "finished"
        assert_equal_runs(whole, folder)
    assert any(rundir.read_manifest(folder)["resumed_at_s"] for folder in killed)
    assert verify(killed[-1]) == []


def test_the_report_is_the_same_page(tmp_path):
    """With the same wall times, a resumed run has the page of the undisturbed one."""
    whole, killed = copies(tmp_path, QUADRATIC, OFTEN, points={20})
    resume(killed[0])
    assert_equal_runs(whole, killed[0])
    manifests = [rundir.read_manifest(folder) for folder in (whole, killed[0])]
    for name in manifests[0]["wall_fields"]:
        table, _, key = name.rpartition(".")
        left, right = (manifest[table] if table else manifest for manifest in manifests)
        right[key] = left[key]
    rundir.write_manifest(killed[0], manifests[1])
    shutil.copy(whole / "wall.parquet", killed[0] / "wall.parquet")
    for folder in (whole, killed[0]):
        report.write(folder)
    assert (whole / "report.html").read_text() == (killed[0] / "report.html").read_text()


def test_resuming_twice(tmp_path, no_report):
    """A resumed run that is killed again is resumed again."""
    whole, killed = copies(tmp_path, QUADRATIC, OFTEN, points={25})
    count, again = 0, tmp_path / "again"

    def watch(session) -> None:
        nonlocal count
        count += 1
        if count == 12:
            shutil.copytree(session.folder, again)

    resume(killed[0], watch=watch)
    resume(again)
    assert_equal_runs(whole, again)


def test_ck_05_versions_and_evaluations_once_each(tmp_path, no_report):
    """A checkpoint at version 20, a crash at 27, resumed to 40: versions 1 to 40 once each, evaluation rows likewise."""
    text = QUADRATIC.replace("max_updates = 60", "max_versions = 40")
    killed = tmp_path / "killed"

    def watch(session) -> None:
        if session.engine.model.version == 27 and not killed.exists():
            shutil.copytree(session.folder, killed)

    whole, _ = played(tmp_path, text, "checkpoint.every_versions=20", out="whole", watch=watch)
    assert len(list(checkpoint.files(killed / "checkpoints"))) == 1
    manifest, _ = resume(killed)
    assert manifest["resumed_at_s"] > 0
    events = pl.read_parquet(killed / "events" / "*.parquet")
    assert events.filter(pl.col("kind") == "publish")["version"].to_list() == list(range(1, 41))
    scored = pl.read_parquet(killed / "metrics.parquet").filter(pl.col("split") == "test")["version"].to_list()
    assert scored == sorted({*range(0, 41, 3), 40})
    assert_equal_runs(whole, killed)


def test_nothing_is_trained_again(tmp_path, no_report, monkeypatch):
    """Jobs that arrived before the checkpoint are not trained again: 30 updates, 20 of them before, cost 10 and those in flight."""
    from desim_fl.learning.classification import ClassificationTask  # noqa: PLC0415

    _, killed = copies(tmp_path, BLOBS, "checkpoint.every_versions=1", points={20})
    trained = []
    original = ClassificationTask.train
    monkeypatch.setattr(
        ClassificationTask, "train", lambda self, job, steps: trained.append(job.id) or original(self, job, steps)
    )
    resume(killed[0], ["executor.name=inline"])
    assert len(trained) == len(set(trained)) <= 10 + 3


@pytest.mark.parametrize("executor", ["inline", "pool"])
def test_another_executor_may_finish_the_run(executor, tmp_path, no_report):
    """The rest may be trained elsewhere; only [executor] may be changed."""
    whole, killed = copies(tmp_path, BLOBS, OFTEN, points={14})
    with pytest.raises(ScenarioError, match=r"only name, workers, .* of \[executor\]"):
        resume(killed[0], ["training.lr=0.2"])
    with pytest.raises(ScenarioError, match=r"only name"):
        resume(killed[0], ["executor.threads_per_job=2"])
    resume(
        killed[0],
        [f"executor.name={executor}", "executor.workers=2"] if executor == "pool" else ["executor.name=inline"],
    )
    assert_equal_runs(whole, killed[0])


def damage(path: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over(tmp_path, no_report):
    """The one before it is used, and if that is damaged too the run starts over, and says so; CASES CK-04."""
    whole, killed = copies(tmp_path, QUADRATIC, OFTEN, points={30, 40})
    files = list(checkpoint.files(killed[0] / "checkpoints"))
    damage(files[-1])
    _, faults = resume(killed[0])
    assert [str(files[-1]) in fault and "damaged" in fault for fault in faults] == [True]
    for path in checkpoint.files(killed[1] / "checkpoints"):
        damage(path)
    manifest, faults = resume(killed[1])
    assert len(faults) == 2
    assert manifest["resumed_at_s"] is None
    for folder in killed:
        assert_equal_runs(whole, folder)


def test_a_damaged_segment_is_named(tmp_path, no_report, small_segments):
    """What training said in a segment that is flipped, cut or gone cannot be told again: the file is named, the rest stays as it is."""
    whole, killed = copies(tmp_path, QUADRATIC, OFTEN, points={40})
    part = killed[0] / "events" / "part-00000.parquet"
    content = part.read_bytes()
    (killed[0] / ".being-written").unlink()  # the mark of the run that was killed
    for said, do in (
        ("is damaged", lambda: damage(part)),
        ("is damaged", lambda: part.write_bytes(content[:-100])),
        ("is damaged", lambda: part.write_bytes(b"")),
        ("is missing", part.unlink),
    ):
        do()
        before = {path: path.read_bytes() for path in killed[0].rglob("*") if path.is_file()}
        with pytest.raises(CheckpointError, match=rf"part-00000\.parquet {said}"):
            resume(killed[0])
        assert {path: path.read_bytes() for path in before} == before
        part.write_bytes(content)
    resume(killed[0])
    assert_equal_runs(whole, killed[0])


@pytest.mark.parametrize("what", ["scenario", "code", "torch", "data"])
def test_what_does_not_match_is_refused(what, tmp_path, no_report, monkeypatch):
    """Another scenario, code, torch or data would give another result: the message names which, and the way out."""
    _, killed = copies(tmp_path, QUADRATIC, OFTEN, points={30})
    if what == "scenario":
        path = killed[0] / "scenario.toml"
        path.write_text(path.read_text().replace("lr = 0.1", "lr = 0.2"))
    elif what == "code":
        monkeypatch.setattr(checkpointing, "code_sha256", lambda: "other")
    else:
        original = checkpointing.identity
        monkeypatch.setattr("desim_fl.run.identity", lambda *a: {**original(*a), what: "other"})
    with pytest.raises(CheckpointError, match=f"{what}.*was .*, is .*anew"):
        resume(killed[0])


def test_a_finished_run_is_left_alone(tmp_path, no_report):
    """Nothing is written, and it is said."""
    folder, manifest = played(tmp_path, QUADRATIC)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found, notes = resume(folder)
    assert found == manifest
    assert notes == ["the run is finished already"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_kill_while_the_last_files_are_written(tmp_path, monkeypatch):
    """A run that was killed after its manifest and before its page is not taken for finished."""
    killed = tmp_path / "killed"

    def drawn(folder) -> None:
        if not killed.exists():
            shutil.copytree(folder, killed)
        (folder / "report.html").write_text("")

    monkeypatch.setattr(report, "write", drawn)
    whole, _ = played(tmp_path, QUADRATIC, OFTEN, out="whole")
    assert rundir.read_manifest(killed)["status"] == "finished"
    resume(killed)
    assert_equal_runs(whole, killed)
    assert (killed / "report.html").exists()


def test_what_is_no_run_cannot_be_resumed(tmp_path):
    """A folder without a scenario, or none at all, is an error with the way out."""
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(RunDirectoryError, match="not a run directory"):
            resume(folder)


def test_run_points_to_resume(tmp_path, no_report):
    """``run`` does not overwrite a run that stopped; it says how to go on with it."""
    _, killed = copies(tmp_path, QUADRATIC, OFTEN, points={10})
    with pytest.raises(RunDirectoryError, match=f"desim-fl resume {killed[0]}"):
        execute(load(write(tmp_path)), killed[0])


def test_a_run_that_was_killed_before_it_began_leaves_an_empty_directory(tmp_path, no_report):
    """Where only the mark and a half-written scenario lie, ``run`` begins; beside anything else it does not."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".being-written", "scenario.toml.partial"):
        (folder / name).write_text("half")
    (folder / "mine").write_text("x")
    with pytest.raises(RunDirectoryError, match="not empty"):
        played(tmp_path, QUADRATIC)
    (folder / "mine").unlink()
    played(tmp_path, QUADRATIC)
    assert verify(folder) == []


def test_one_process_at_a_time(tmp_path, no_report):
    """While a run is written, neither another run nor a resume gets in; afterwards the lock is gone."""
    tried = []

    def watch(session) -> None:
        for attempt in (lambda: resume(session.folder), lambda: execute(session.built.scenario, session.folder)):
            with pytest.raises(RunDirectoryError) as caught:
                attempt()
            tried.append(str(caught.value))

    folder, manifest = played(tmp_path, QUADRATIC, "run.max_updates=1", watch=watch)
    assert manifest["status"] == "finished"
    assert "being written by another run" in tried[0]
    assert not list(folder.glob(".*"))


def test_the_lock_of_a_run_that_failed_is_gone(tmp_path, no_report):
    """A run that ends with an error leaves no mark that it is being written."""

    def watch(session) -> None:
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        played(tmp_path, QUADRATIC, watch=watch)
    assert rundir.read_manifest(tmp_path / "run")["status"] == "failed"
    assert not list((tmp_path / "run").glob(".*"))


def test_a_directory_that_cannot_be_written_is_not_resumed(tmp_path, no_report):
    """Where the mark cannot be made (a folder stands in its place, say), the error names directory and way out."""
    _, killed = copies(tmp_path, QUADRATIC, OFTEN, points={10})
    (killed[0] / ".being-written").unlink()
    (killed[0] / ".being-written").mkdir()
    with pytest.raises(RunDirectoryError, match=f"cannot write to {killed[0]}: .*; resume a copy"):
        resume(killed[0])


def first_and_last(kinds: list[str]) -> list[int]:
    """Places of the first and the last of each kind."""
    return sorted(
        {place for kind in set(kinds) for place in (kinds.index(kind), len(kinds) - 1 - kinds[::-1].index(kind))}
    )


@pytest.mark.parametrize("error", [28, 30])
def test_a_disk_that_is_full_or_read_only_from_any_write_on_loses_nothing(
    error, tmp_path, no_report, small_segments, monkeypatch
):
    """From the first or last write of each kind on nothing can be written: a named error; with room again the result is the same."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    original, remove, kinds = durable.write, durable.remove, []

    def counted(path, content):
        kinds.append(re.split(r"[-.]", path.name)[0])
        original(path, content)

    monkeypatch.setattr(durable, "write", counted)
    keys = ("run.max_updates=24", "checkpoint.every_versions=4", "network.server_ingress_mbps=0.01")
    text = QUADRATIC.replace('up_mbps = { law = "pareto", alpha = 2.0, scale = 0.0005 }\n', "")
    whole, _ = played(tmp_path, text, *keys, out="whole")
    written = list(kinds)
    assert {
        "scenario",
        "partition",
        "manifest",
        "part",
        "checkpoint",
        "links",
        "metrics",
        "clients",
        "losses",
        "wall",
        "model",
    } <= set(written)
    for place in first_and_last(written):
        folder, kinds[:] = tmp_path / f"{place}-{written[place]}", []

        def full(path, content=None, place=place):
            kinds.append(path.name)
            if len(kinds) > place:
                if content is not None:
                    path.with_name(path.name + durable.ASIDE).write_bytes(content[: len(content) // 2])
                raise OSError(error, os.strerror(error), str(path))
            original(path, content) if content is not None else remove(path)

        monkeypatch.setattr(durable, "write", full)
        with pytest.raises((DesimError, OSError), match=os.strerror(error)):
            played(tmp_path, text, *keys, out=folder.name)
        monkeypatch.setattr(durable, "write", original)
        if (folder / "scenario.toml").exists():
            resume(folder)
        else:
            played(tmp_path, text, *keys, out=folder.name)
        assert_equal_runs(whole, folder)
        assert inspected(folder) == ([], [])


def test_a_place_that_is_read_only_is_refused(tmp_path, no_report, monkeypatch):
    """Neither a run nor a resume begins where not even a folder, or a mark in it, can be made: exit code 2 and the way out."""
    _, killed = copies(tmp_path, QUADRATIC, OFTEN, points={10})

    def refused(self, *_, **__):
        raise OSError(30, os.strerror(30), str(self))

    monkeypatch.setattr("pathlib.Path.open", refused)
    with pytest.raises(
        RunDirectoryError, match=f"cannot write to {killed[0]}: Read-only file system; resume a copy"
    ) as caught:
        resume(killed[0])
    assert caught.value.exit_code == 2
    monkeypatch.undo()
    scenario = load(write(tmp_path))
    monkeypatch.setattr("pathlib.Path.mkdir", refused)
    with pytest.raises(RunDirectoryError, match=r"cannot write to .*new: Read-only file system; give another --out"):
        execute(scenario, tmp_path / "new")


def test_a_state_that_cannot_be_kept_is_told(tmp_path, no_report, monkeypatch):
    """Checkpoints are given up with the reason in the manifest; the run goes on, and a resume starts over."""
    original = ResumableEngine.held
    monkeypatch.setattr(ResumableEngine, "held", lambda self: original(self)._replace(state={1, 2}))
    whole, killed = copies(tmp_path, QUADRATIC, OFTEN, points={30})
    found = rundir.read_manifest(whole)["checkpoints"]
    assert found["kept"] == 0
    assert "set cannot be kept" in found["refused"]
    monkeypatch.undo()
    monkeypatch.setattr(report, "write", lambda folder: folder)
    assert resume(killed[0])[0]["resumed_at_s"] is None


@pytest.mark.parametrize("name", ["report.html", "wall.parquet", "events/part-00000.parquet"])
def test_every_file_is_verified(name, tmp_path, no_report):
    """A changed, a lacking and a strange file are named, also where no law looks; a page written anew is the run's."""
    folder, _ = played(tmp_path, QUADRATIC)
    (folder / "report.html").write_text("page")
    rundir.rehash(folder, "report.html")
    assert verify(folder) == []
    (folder / "strange").write_text("")
    assert verify(folder) == ["strange is there, but the run did not write it"]
    (folder / "strange").unlink()
    path = folder / name
    content = path.read_bytes()
    if name.startswith("events"):  # the same rows in another file
        pl.read_parquet(path).write_parquet(path, compression="uncompressed")
    else:
        path.write_bytes(content + b" ")
    assert verify(folder)[-1] == f"{name} is not what the run wrote"
    if not name.startswith("events"):
        path.unlink()
        assert verify(folder) == [f"{name} is missing"]


# ---- real processes


def command(*arguments: str) -> list[str]:
    """The command line of this project."""
    return [sys.executable, "-m", "desim_fl", *arguments]


def killed_process(folder: Path, after_s: float, number: int, *arguments: str) -> int:
    """Start a run, send it a signal after some seconds, and return its exit code; while it runs nobody else gets in."""
    process = subprocess.Popen(
        command(*arguments, "--out", str(folder)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list((folder / "checkpoints").glob("*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    for attempt in (resume, lambda place: execute(load(place / "scenario.toml"), place)):
        with pytest.raises(RunDirectoryError, match=r"is being written by another run|exists already"):
            attempt(folder)
    time.sleep(after_s)
    process.send_signal(number)
    return process.wait(60)


LONG = ("run.max_updates=30000", "checkpoint.every_versions=300", "run.eval_every_versions=1000")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that no signal disturbs, what it printed, and how it was asked for."""
    place = tmp_path_factory.mktemp("undisturbed")
    given = ["run", str(write(place)), *(part for entry in LONG for part in ("--set", entry))]
    done = subprocess.run(command(*given, "--json", "--out", str(place / "whole")), check=True, capture_output=True)
    return place / "whole", json.loads(done.stdout), given


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_real_signal(number, tmp_path, undisturbed):
    """SIGKILL, SIGTERM, SIGINT to a real process: exit code 130 for the last two; ``desim-fl resume`` gives the undisturbed result; CASES CK-05."""
    whole, said, given = undisturbed
    folder = tmp_path / "killed"
    code = killed_process(folder, 0.15, number, *given)
    assert code in ({-signal.SIGKILL} if number == signal.SIGKILL else {130})
    problems, notes = inspected(folder)
    assert problems == []
    assert "not finished" in notes[0]
    found = json.loads(commanded("resume", folder, "--json").stdout)
    for name in ("timeline_sha256", "model_sha256", "loss", "updates", "versions", "virtual_time_s"):
        assert found[name] == said[name], name
    assert_equal_runs(whole, folder)
    assert rundir.read_manifest(folder)["resumed_at_s"] > 0


HUNGRY = """
import os, pathlib, torch
from torch import nn
class Net(nn.Linear):
    def forward(self, x):
        how = pathlib.Path(FLAG)
        if self.training and how.exists() and len(x) > 2:  # no dry step
            if how.read_text() == "killed":
                os.kill(os.getpid(), 9)  # as the system does with the process that takes most
            torch.empty(1 << 50, dtype=torch.uint8)
        return super().forward(x)
def net():
    return Net(8, 4)
"""


@pytest.mark.parametrize(
    ("executor", "how", "said"),
    [
        ("threads", "asks for a petabyte", r"allocate memory.*: fewer executor\.workers need less memory"),
        (
            "pool",
            "killed",
            r"the worker died \(killed by SIGKILL\), 2 times.*: fewer executor\.workers need less memory",
        ),
    ],
)
def test_out_of_memory_in_a_worker(executor, how, said, tmp_path, no_report, monkeypatch):
    """A worker that gets no memory, or is killed for it, ends the run with a named error; resumed with room it ends undisturbed."""
    flag = tmp_path / "flag"
    (tmp_path / "hungry.py").write_text(HUNGRY.replace("FLAG", repr(str(flag))))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hungry", raising=False)
    monkeypatch.setattr("desim_fl.build.model_facts", lambda *_: ModelFacts(36, 144))
    text = BLOBS.replace('name = "mlp"\nhidden = [16]', 'name = "hungry:net"')
    whole, _ = played(tmp_path, text, OFTEN, "executor.name=inline", out="whole")

    def watch(session) -> None:
        if session.engine.ledger.arrived == 12:
            flag.write_text(how)

    with pytest.raises(JobError, match=rf"job \d+ \(client \d, from version \d+, executor {executor}.*{said}"):
        played(tmp_path, text, OFTEN, f"executor.name={executor}", "executor.workers=1", watch=watch)
    folder = tmp_path / "run"
    manifest = rundir.read_manifest(folder)
    assert (manifest["status"], "need less memory" in manifest["error"]) == ("failed", True)
    assert verify(folder) == []
    flag.unlink()
    again, faults = resume(folder, ["executor.name=inline", "executor.workers=1"])
    assert faults == []
    assert again["resumed_at_s"] > 0
    for name in ("model.safetensors", "partition.parquet"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    for name in ("events/*", "metrics", "clients"):
        assert pl.read_parquet(folder / f"{name}.parquet").equals(pl.read_parquet(whole / f"{name}.parquet"))
