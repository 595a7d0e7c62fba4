"""Nothing grows with the length of a run: versions, memory, descriptors, threads (RS-01); RP-02 and RP-05, live."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from training_world import BLOBS, PARTS, blob_task, job_of

import scenarios
from desim_fl import datasets, eventlog, rundir
from desim_fl.build import build
from desim_fl.checkpointing import Keeper, identity
from desim_fl.engine import Engine
from desim_fl.eventlog import EventLog, ParquetSink
from desim_fl.executors.inline import InlineExecutor
from desim_fl.executors.pool import PoolExecutor
from desim_fl.executors.threads import ThreadExecutor
from desim_fl.run import Session, execute
from desim_fl.scenario import load

# 1000 clients with 3 samples each, 10 in flight, one step a job: the cheapest world with real training.
CROWD = """
[data]
name = "blobs"
examples = 3000
test_examples = 10
classes = 2
features = 3
[clients]
count = 1000
seconds_per_step = 0.1
device_factor = { law = "lognormal", median = 1.0, sigma = 1.0 }
[model]
name = "mlp"
hidden = [4]
[training]
batch_size = 4
lr = 0.1
[strategy]
name = "fedasync"
[run]
concurrency = 10
max_updates = 10000
eval_every_versions = 50
"""
STRATEGIES = {
    "fedasync": [],
    "fedbuff": ['strategy.name="fedbuff"', "strategy.buffer_size=4"],
    "fedavg": [
        'strategy.name="fedavg"',
        "strategy.clients_per_round=6",
        "strategy.over_selection=1.6",
        "strategy.cancel_stragglers=true",
    ],
}


def session_of(folder: Path, *overrides: str, out: Path | None = None, strategy: str = "fedasync") -> Session:
    """A session of the crowd's world, not yet played."""
    text = CROWD.replace("concurrency = 10\n", "") if strategy == "fedavg" else CROWD
    return Session(build(load(scenarios.write(folder, text), [*STRATEGIES[strategy], *overrides])), out)


def held_by_pending(engine: Engine) -> int:
    """Versions that evaluations hold which are under way, or to come in this instant."""
    evaluator = engine._evaluator
    return len(evaluator._pending) + sum(not entry[3].ready() for entry in evaluator._waiting)


def most_beyond_need(session: Session, monkeypatch: pytest.MonkeyPatch) -> int:
    """Play; how many more versions lived, at most, than are in flight, in force or pending evaluation (version 0 is the task's own)."""
    engine, versions, worst = session.engine, [], 0
    step = engine._env.step

    def look() -> None:
        """Between two instant keys, when nothing is in hand."""
        nonlocal worst
        step()
        if engine.model.version and (not versions or versions[-1]() is not engine.model.params):
            versions.append(weakref.ref(engine.model.params))
            versions[:-1] = [reference for reference in versions[:-1] if reference() is not None]
        flying = {flying.job.version for flying in engine.flights.values()} - {0, engine.model.version}
        pending = held_by_pending(engine)  # asked first: to look whether one is ready may settle it
        live = sum(reference() is not None for reference in versions)
        worst = max(worst, live - len(flying) - 1 - pending)

    monkeypatch.setattr(engine._env, "step", look)
    gc.collect()
    gc.disable()  # so that a version that only a cycle holds is seen
    try:
        session.play()
    finally:
        gc.enable()
    return worst


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("executor", "updates"), [("inline", 2000), ("threads", 2000), ("pool", 600)])
def test_rs_01_no_more_versions_live_than_something_needs(tmp_path, monkeypatch, strategy, executor, updates):
    """Before every arrival live versions are at most those in flight + 1 + pending evaluations (and version 0, the task's own)."""
    choose = [f'executor.name="{executor}"', f"run.max_updates={updates}"]
    choose += ["executor.workers=2"] if executor != "inline" else []
    session = session_of(tmp_path, *choose, strategy=strategy)
    worst = most_beyond_need(session, monkeypatch)
    assert session.engine.model.version > updates // 12
    cancelled = {"inline": 0, "threads": 2, "pool": 4}[executor] if strategy == "fedavg" else 0  # that workers are at
    assert worst <= cancelled


@pytest.mark.parametrize(("strategy", "executor"), [("fedasync", "threads"), ("fedbuff", "inline")])
def test_rs_01_checkpoints_and_evaluations_hold_no_version_longer(tmp_path, monkeypatch, strategy, executor):
    """With a checkpoint every 7 versions and an evaluation every 3 beside training, no version lives that nothing needs."""
    choose = [f'executor.name="{executor}"', "run.max_updates=400", "run.eval_every_versions=3"]
    choose += ["checkpoint.every_versions=7"] + (["executor.workers=2"] if executor != "inline" else [])
    session = session_of(tmp_path, *choose, out=tmp_path / "run", strategy=strategy)
    session.keeper = Keeper(session.built, tmp_path / "run", identity(session.built, {}))
    assert most_beyond_need(session, monkeypatch) == 0
    assert session.keeper.count >= session.engine.model.version // 8  # one is kept when its instant is over
    assert len(session.evaluations) >= session.engine.model.version // 3


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sampled(folder: Path, strategy: str, *overrides: str, measure) -> tuple[list[Any], list[Any]]:
    """Play 10,000 updates with the log on disk; what is measured every 100 updates in 2,000-6,000 and in 6,100-10,000."""
    session = session_of(folder, *overrides, strategy=strategy)
    log = EventLog(ParquetSink(folder / "events"), segment_rows=8192)
    session.engine = Engine(session.built.world, log, session.evaluations.append)
    session.wall = rundir.WallParts(folder, session.built.world.executor.wall)
    early, late = [], []

    def watch(_: Session) -> None:
        updates = session.engine.ledger.arrived
        if updates >= 2000 and updates % 100 == 0:
            (early if updates <= 6000 else late).append(measure(updates))

    session.play(watch)
    return early, late


def tensors() -> int:
    """Live tensors of this process."""
    gc.collect()
    return sum(type(thing) is torch.Tensor for thing in gc.get_objects())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rs_01_memory_of_10_000_updates_is_that_of_2000(tmp_path, monkeypatch, strategy):
    """1,000 clients, 10 in flight, a tiny model: resident memory at update 10,000 within 10 % of that at 2,000; no tensor more."""
    monkeypatch.setattr(rundir, "WALL_ROWS", 512)

    def measure(updates: int) -> tuple[int, int]:
        return resident(), tensors() if updates % 1000 == 0 else 0

    early, late = sampled(tmp_path, strategy, 'executor.name="inline"', measure=measure)
    assert late[-1][0] < 1.1 * early[0][0]
    assert max(count for _, count in late) <= max(count for _, count in early) + 3


@pytest.mark.parametrize(("strategy", "executor"), [("fedasync", "inline"), ("fedbuff", "threads")])
def test_rs_01_python_objects_do_not_gather(tmp_path, monkeypatch, strategy, executor):
    """Between two windows of 4,000 updates, each with whole cycles of the log, traced memory grows by less than 384 KiB (100 bytes an update: 390); trips in stock still grow to their bound."""
    import polars  # noqa: F401, ICN001, PLC0415  (its own memory is not the run's)

    monkeypatch.setattr(rundir, "WALL_ROWS", 512)
    monkeypatch.setattr(eventlog, "_BATCH_ROWS", 1024)  # whole cycles of the log in each window
    eventlog.frame(warm_segment())
    choose = [
        f'executor.name="{executor}"',
        "clients.count=50",
        "data.examples=150",
        *(["executor.workers=2"] if executor == "threads" else []),
    ]
    choose += ["run.eval_every_versions=500"]  # each evaluation is a row of the table metrics, which is kept

    def measure(updates: int) -> int:
        if updates % 1000 == 0:
            gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        early, late = sampled(tmp_path, strategy, *choose, measure=measure)
    finally:
        tracemalloc.stop()
    assert min(late) - min(early) < 384 * 1024
    assert max(late) - max(early) < 512 * 1024


def warm_segment() -> eventlog.Segment:
    """One row; making a frame of it loads what polars loads late."""
    sink = eventlog.MemorySink()
    log = EventLog(sink)
    log.block(0)
    log.row(eventlog.Kind.STOP, -1, -1, 0)
    log.finish(0)
    return sink[0]


def test_rs_01_the_pool_takes_no_more_shared_memory_with_time(tmp_path):
    """Places of the shelf, versions and queues of a pool are as many after 1,500 updates as after 300."""
    session = session_of(
        tmp_path, 'executor.name="pool"', "executor.workers=2", "run.max_updates=1500", "model.hidden=[400]"
    )
    pool = session.built.world.executor
    seen = {}

    def watch(_: Session) -> None:
        updates = session.engine.ledger.arrived
        if updates in (300, 1500):
            seen[updates] = (pool._shelf.places, len(list(Path("/proc/self/fd").iterdir())))
        assert len(pool._models) <= 10 + 1 + 8
        assert len(pool._jobs) <= 10
        assert all(len(hand.models) <= 10 + 1 + 8 and len(hand.unsent) <= 400 for hand in pool._crew.hands)

    session.play(watch)
    assert seen[1500][0] <= seen[300][0] + 4
    assert seen[1500][1] == seen[300][1]


def test_rs_01_more_clients_cost_no_copies_of_the_model(tmp_path):
    """1,000 clients hold as many tensors as 100 at the end of equal runs."""
    found = []
    for count in (100, 1000):
        session = session_of(
            tmp_path,
            f"clients.count={count}",
            f"data.examples={3 * count}",
            "run.max_updates=1500",
            'executor.name="inline"',
        )
        last = []
        session.play(
            lambda _, last=last, session=session: (
                last.append(tensors()) if session.engine.ledger.arrived == 1500 else None
            )
        )
        found.append(last[0])
        del session
    assert found[1] <= found[0] + 5


def test_rows_of_real_time_go_to_the_disk_in_parts(tmp_path, monkeypatch):
    """An executor's rows do not gather in memory, and wall.parquet is the same table as if they had."""
    monkeypatch.setattr(rundir, "WALL_ROWS", 7)
    most, parts = 0, 0

    def watch(session: Session) -> None:
        nonlocal most, parts
        most = max(most, len(session.built.world.executor.wall))
        parts = max(parts, len(list((tmp_path / "run" / "wall").glob("part-*.parquet"))))

    folder, _ = scenarios.played(tmp_path, scenarios.BLOBS, 'executor.name="inline"', watch=watch)
    assert (most, parts) == (6, 4)
    events = eventlog.read(folder / "events").collect()
    arrived = events.filter(pl.col("kind") == "arrive")["job"].to_list()
    wall = pl.read_parquet(folder / "wall.parquet")
    assert wall["job"].to_list() == arrived
    assert wall.schema == rundir.WALL_SCHEMA
    assert not (folder / "wall").exists()


def usage() -> tuple[int, int, int]:
    """Open descriptors, Python's threads and the system's threads of this process."""
    gc.collect()
    count = [len(list(Path(place).iterdir())) for place in ("/proc/self/fd", "/proc/self/task")]
    return count[0], threading.active_count(), count[1]


def test_rs_01_runs_leave_no_descriptor_and_no_thread(tmp_path):
    """After ten runs in one process, by every executor, as many files are open and threads alive as after the first of each."""
    kinds = ['executor.name="inline"', 'executor.name="threads"', 'executor.name="pool"']
    before = None
    for number, kind in enumerate([*kinds, *kinds[:2] * 4, *kinds]):
        choose = [kind] if "inline" in kind else [kind, "executor.workers=2"]
        execute(load(scenarios.write(tmp_path, scenarios.BLOBS), choose), tmp_path / f"run{number}")
        if number == len(kinds) - 1:
            before = usage()
    assert usage() == before


# ---- RP-02: data belongs to the client, never to the worker


class Remembering(torch.nn.Module):
    """Marks the samples that it was trained on, by their number, which is their first feature."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 4)
        self.seen: torch.Tensor
        self.register_buffer("seen", torch.zeros(400, dtype=torch.bool))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Mark, and score."""
        if self.training:
            self.seen = self.seen.index_fill(0, inputs[:, 0].round().long(), value=True)
        return self.layer(inputs * 1e-3)


def numbered() -> datasets.Dataset:
    """The blobs with each sample's number as its first feature."""
    images = np.array(BLOBS.train_images)
    images[:, 0] = np.arange(len(images))
    return replace(BLOBS, train_images=images)


@pytest.mark.parametrize(
    "make",
    [InlineExecutor, lambda task: ThreadExecutor(task, 4), lambda task: PoolExecutor(task, 2)],
)
def test_rp_02_a_client_trains_on_its_own_samples_whoever_does_it(make):
    """Every job of a client sees exactly the client's samples, in its first trip and its third, by whichever worker."""
    task = blob_task(Remembering, dataset=numbered(), batch_size=8)
    executor = make(task)
    jobs = [
        job_of(task.initial(), client, nth=nth, number=4 * nth + client, steps=-(-len(PARTS[client]) // 8))
        for nth in range(3)
        for client in range(4)
    ]
    try:
        for job in jobs:
            executor.submit(job, job.id)
        for job in jobs:
            seen = executor.collect(job, job.work.steps).buffers["seen"]
            assert seen.nonzero().flatten().tolist() == PARTS[job.client].tolist()
    finally:
        executor.close()


# ---- RP-05: what may differ


def test_rp_05_virtual_time_does_not_depend_on_intra_op_threads(tmp_path):
    """1 and 2 threads a job: events, order and staleness are identical, loss nearly; the manifest records the number."""
    one, two = (
        scenarios.played(
            tmp_path, scenarios.BLOBS, f"executor.threads_per_job={count}", 'executor.name="inline"', out=f"t{count}"
        )
        for count in (1, 2)
    )
    assert one[1]["timeline_sha256"] == two[1]["timeline_sha256"]
    columns = ["seq", "ticks", "kind", "client", "job", "version", "staleness"]
    tables = [eventlog.read(folder / "events").select(columns).collect() for folder, _ in (one, two)]
    assert tables[0].equals(tables[1])
    assert [manifest["threads_per_job"] for _, manifest in (one, two)] == [1, 2]
    assert one[1]["summary"]["loss"] == pytest.approx(two[1]["summary"]["loss"], rel=1e-3)
    assert one[1]["versions"]["torch"]
    assert one[1]["device"] == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rp_05_a_gpu_changes_no_event_and_repeats_itself(tmp_path):
    """CPU and GPU: one timeline, losses within 1e-3; two runs on the GPU are bit-identical; the manifest names the device."""
    runs = [
        scenarios.played(tmp_path, scenarios.BLOBS, f'executor.device="{device}"', out=out)[1]
        for device, out in (("cpu", "cpu"), ("cuda", "first"), ("cuda", "second"))
    ]
    assert len({run["timeline_sha256"] for run in runs}) == 1
    assert runs[1]["model_sha256"] == runs[2]["model_sha256"]
    assert runs[1]["device"].startswith("cuda")
    assert runs[0]["summary"]["loss"] == pytest.approx(runs[1]["summary"]["loss"], rel=1e-3)
