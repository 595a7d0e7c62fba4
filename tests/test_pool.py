"""The pool gives the bits of the inline executor, whatever becomes of its workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from training_world import IMAGES, NoisyNet, blob_task, equal_buffers, job_of

import scenarios
from desim_fl import eventlog
from desim_fl.core import Job, Model, Outcome, Score, Work
from desim_fl.errors import JobError, LawError, RunError
from desim_fl.executors.inline import InlineExecutor
from desim_fl.executors.pool import PoolExecutor
from desim_fl.learning import models


class Plain:
    """A task without torch's weight: adds the client's number; some clients are slow, fail or kill their worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def train(self, job: Job, steps: int) -> Outcome:
        """Leave a trace of the order in which jobs were trained."""
        with (self.folder / "order").open("a") as file:
            file.write(f"{job.id}\n")
        if job.extra == "slow":
            time.sleep(0.5)
        if job.extra == "very slow":
            time.sleep(60)
        if job.extra == "nothing":
            return None  # pyright: ignore[reportReturnType]  (what a user's task may do)
        if job.extra == "unsendable":
            return Outcome(job.params, steps=steps, extra=lambda: 0)
        if job.extra == "no buffers":
            return Outcome(job.params, None, 1, steps)
        if job.extra == "fail":
            raise ValueError("no luck today")
        if job.extra == "memory":
            raise MemoryError
        first = not (self.folder / f"died{job.id}").exists()
        if job.extra == "die" or (job.extra == "die once" and first):
            (self.folder / f"died{job.id}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Outcome(job.params + job.client, job.buffers, examples=1, steps=steps, loss=0.0)

    def evaluate(self, model: Model) -> tuple[Score, ...]:
        """The parameter is the loss."""
        return (Score("test", float(model.params), None, 1),)


def plain_job(number: int, extra=None, params: Any = 10.0) -> Job:
    """A job of the plain task."""
    return Job(number, number, 0, 0, params, None, Work(1, 4, 0.1), extra)


def order(folder: Path) -> list[int]:
    """Which jobs were trained, in order."""
    return [int(line) for line in (folder / "order").read_text().split()]


@pytest.fixture
def pool(tmp_path):
    """A pool of one worker on the plain task."""
    executor = PoolExecutor(Plain(tmp_path), 1)
    yield executor
    executor.close()


def test_the_most_urgent_arrival_is_trained_first(pool, tmp_path):
    """Jobs handed in while the worker starts are trained by their due time, not by their number."""
    for number, due in enumerate((50, 20, 40, 10)):
        pool.submit(plain_job(number), due)
    assert [pool.collect(plain_job(n), 4).params for n in (3, 1, 2, 0)] == [13.0, 11.0, 12.0, 10.0]
    assert order(tmp_path) == [3, 1, 2, 0]
    assert [row.job for row in pool.wall] == [3, 1, 2, 0]


def test_released_jobs_are_not_trained_and_partial_ones_are_done_again(pool, tmp_path):
    """A job let go before it starts never runs; one that reports after 2 of 4 steps has done 2."""
    for number in range(4):
        pool.submit(plain_job(number, "slow" if number == 0 else None), number)
    pool.release(plain_job(3))
    assert pool.collect(plain_job(1), 2).steps == 2
    assert pool.collect(plain_job(2), 4).steps == 4
    pool.release(plain_job(0))
    assert 3 not in order(tmp_path)
    assert pool._models == {}
    with pytest.raises(LawError, match="job 3"):
        pool.collect(plain_job(3), 4)


def test_a_failing_job_is_named_with_its_worker_and_traceback(pool):
    """JobError with job, client, version, worker; the traceback of the worker is its cause; others go on."""
    pool.submit(plain_job(0, "fail"), 0)
    pool.submit(plain_job(1), 1)
    with pytest.raises(
        JobError, match=r"job 0 \(client 0, from version 0, executor pool, worker 0\): ValueError: no luck"
    ) as caught:
        pool.collect(plain_job(0), 4)
    assert "Traceback" in str(caught.value.__cause__)
    assert "line" in str(caught.value.__cause__)
    assert pool.collect(plain_job(1), 4).params == 11.0


def test_a_job_without_memory_is_named_and_told_the_way_out(pool):
    """Whether Python says so or the system kills the worker: the error says what needs less memory."""
    for extra, why in (("memory", "MemoryError"), ("die", r"the worker died \(killed by SIGKILL\), 2 times")):
        pool.submit(plain_job(0, extra), 0)
        with pytest.raises(JobError, match=rf"job 0 .*worker \d+\): {why}.*: fewer executor.workers need less memory"):
            pool.collect(plain_job(0), 4)
    pool.submit(plain_job(1), 1)
    assert pool.collect(plain_job(1), 4).params == 11.0


def test_a_worker_that_dies_is_replaced_and_its_jobs_are_done_again(pool):
    """Killed once, the job and those queued behind it are trained by the next worker; killed twice, it is an error."""
    pool.submit(plain_job(0, "die once"), 0)
    pool.submit(plain_job(1), 1)
    promise = pool.evaluate(Model(7, 3.5))
    assert pool.collect(plain_job(0), 4).params == 10.0
    assert pool.collect(plain_job(1), 4).params == 11.0
    assert promise() == (Score("test", 3.5, None, 1),)
    pool.submit(plain_job(2, "die"), 2)
    pool.submit(plain_job(3), 3)
    with pytest.raises(JobError, match=r"job 2 .*the worker died \(killed by SIGKILL\), 2 times"):
        pool.collect(plain_job(2), 4)
    assert pool.collect(plain_job(3), 4).params == 13.0  # it had only waited behind the one that kills


def test_versions_are_held_only_while_something_needs_them(pool):
    """Parameters are kept for queued jobs and pending evaluations, and forgotten after the last of them; CASES RS-01."""
    first, second = 10.0, 20.0
    pool.submit(plain_job(0, params=first), 0)
    pool.submit(plain_job(1, params=first), 1)
    promise = pool.evaluate(Model(1, second))
    assert len(pool._models) == 2
    pool.collect(plain_job(0, params=first), 4)
    pool.collect(plain_job(1, params=first), 4)
    assert promise()[0].loss == second
    assert pool._models == {}
    assert all(not hand.models for hand in pool._crew.hands)


def test_close_ends_workers_that_are_busy_and_can_be_repeated(tmp_path):
    """No process is left behind, not even one in the middle of a job."""
    executor = PoolExecutor(Plain(tmp_path), 2)
    for number in range(6):
        executor.submit(plain_job(number, "slow"), number)
    executor.collect(plain_job(0), 4)
    pids = list(executor.pids)
    executor.close()
    executor.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_strange_outcomes_are_named_errors_and_none_hangs(pool):
    """A task that returns nothing, or what cannot be sent, is a JobError; a job that cannot be sent as well."""
    for number, (extra, why) in enumerate(
        [
            ("nothing", "training gave a NoneType, not an Outcome"),
            ("unsendable", "AttributeError: Can't pickle local object"),
            (lambda: 0, "it cannot be sent to a worker"),
        ]
    ):
        pool.submit(plain_job(number, extra), number)
        with pytest.raises(JobError, match=f"job {number} .*{why}"):
            pool.collect(plain_job(number, extra), 4)
    assert pool._models == {}


def test_an_outcome_without_buffers_stays_without(pool):
    """As with the inline executor, the job's own buffers do not take the place of those that were not given."""
    job = plain_job(0, "no buffers")._replace(buffers={"seen": torch.ones(1)})
    pool.submit(job, 0)
    assert pool.collect(job, 4).buffers is None


def test_outcomes_hold_no_descriptors_and_versions_no_places(tmp_path):
    """Holding many outcomes opens no file; parameters that lie in shared memory give their place back; CASES AG-07."""
    executor = PoolExecutor(Plain(tmp_path), 1)  # pyright: ignore[reportArgumentType]
    held, opened = [], []
    try:
        for number in range(40):
            job = plain_job(number, params=torch.full((2000,), float(number)))
            executor.submit(job, number)
            held.append(executor.collect(job, 4))
            opened.append(len(list(Path("/proc/self/fd").iterdir())))
        assert opened[-1] == opened[10]
        assert executor._shelf is not None
        assert [outcome.params[-1].item() for outcome in held] == [2.0 * number for number in range(40)]
        assert executor._shelf.used == 0
        assert executor._shelf.places <= 3
    finally:
        executor.close()


def test_law_2_holds_under_settings_that_a_script_made():
    """Workers take over torch's default type, which a script may have set, so they compute what this process would."""
    torch.set_default_dtype(torch.float64)
    try:
        task = blob_task(Doubling)
        job = job_of(task.initial(), steps=2)
        inline, pool = InlineExecutor(task), PoolExecutor(task, 1)
        for executor in (inline, pool):
            executor.submit(job, 0)
        left, right = inline.collect(job, 2), pool.collect(job, 2)
        pool.close()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(left.params, right.params)


class Doubling(torch.nn.Module):
    """Its sums depend on torch's default type."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(6, 4, dtype=torch.float32)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Pass the scores through the default type."""
        return (self.layer(inputs).to(torch.get_default_dtype()) * 1.1).to(torch.float32)


def test_local_buffers_travel_as_the_clients_memory():
    """FedBN: a client's buffers of one job are those that its next one starts from, in a worker too; CASES AG-01."""
    task = blob_task(NoisyNet, buffers="local")
    memories, inline, pool = {}, InlineExecutor(task), PoolExecutor(blob_task(NoisyNet, buffers="local"), 1)
    try:
        for nth in (0, 1):
            job = job_of(task.initial(), 1, nth=nth, number=nth, steps=3)
            for executor in (inline, pool):
                mine = job._replace(memory=memories.get(executor))
                executor.submit(mine, nth)
                memories[executor] = executor.collect(mine, 3).memory
        assert equal_buffers(memories[inline]["buffers"], memories[pool]["buffers"])
    finally:
        pool.close()


@pytest.mark.parametrize("kind", ["mlp", "cnn", "noisy"])
def test_law_2_pool_and_inline_give_equal_bits(kind):
    """Parameters, buffers, losses and scores of the pool are the inline executor's, for three kinds of network."""
    make = {
        "mlp": blob_task,
        "noisy": lambda: blob_task(NoisyNet),
        "cnn": lambda: blob_task(models.factory("cnn", {}, IMAGES.shape, 10), dataset=IMAGES),
    }[kind]
    task = make()
    initial = task.initial()
    jobs = [job_of(initial, client, nth=nth, number=2 * client + nth, steps=3) for client in range(4) for nth in (0, 1)]
    inline, pool = InlineExecutor(task), PoolExecutor(make(), 2)
    try:
        for executor in (inline, pool):
            for job in jobs:
                executor.submit(job, job.id)
        promise = pool.evaluate(initial)
        for job in jobs:
            left, right = inline.collect(job, 3), pool.collect(job, 3)
            assert torch.equal(left.params, right.params)
            assert {name: value.tolist() for name, value in left.buffers.items()} == {
                name: value.tolist() for name, value in right.buffers.items()
            }
            assert left[2:] == right[2:]
        assert promise() == inline.evaluate(initial)()
    finally:
        pool.close()


@pytest.mark.parametrize(("text", "workers"), [("BLOBS", 1), ("BLOBS", 2), ("BLOBS", 4), ("QUADRATIC", 2)])
def test_laws_1_and_2_whole_runs_do_not_depend_on_the_executor(tmp_path, text, workers):
    """RP-02: hashes, events, metrics and clients of a run are equal inline and with 1, 2, 4 workers."""
    scenario = getattr(scenarios, text)
    _, inline = scenarios.played(tmp_path, scenario, 'executor.name="inline"', out="inline")
    choose = ('executor.name="pool"', f"executor.workers={workers}")
    _, pooled = scenarios.played(tmp_path, scenario, *choose, out="pool")
    assert (inline["executor"], pooled["executor"]) == ("inline", "pool")
    for name in ("timeline_sha256", "model_sha256", "partition_sha256"):
        assert inline[name] == pooled[name]
    for name in ("metrics", "clients"):
        tables = [pl.read_parquet(tmp_path / run / f"{name}.parquet") for run in ("inline", "pool")]
        assert tables[0].equals(tables[1])
    logs = [eventlog.read(tmp_path / run / "events").collect() for run in ("inline", "pool")]
    assert logs[0].equals(logs[1])
    jobs = [pl.read_parquet(tmp_path / run / "wall.parquet")["job"] for run in ("inline", "pool")]
    assert set(jobs[0]) <= set(jobs[1])  # jobs in flight at the stop may have been trained


def test_a_users_model_and_killed_workers_change_nothing(tmp_path, monkeypatch):
    """A factory in the current folder is found by the workers; a run whose workers are killed on the way has the same bits."""
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Linear(8, 12), nn.Dropout(0.2), nn.Linear(12, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    text = scenarios.BLOBS.replace('name = "mlp"\nhidden = [16]', 'name = "my_nets:net"')
    _, inline = scenarios.played(tmp_path, text, 'executor.name="inline"', out="inline")
    killed = []

    def kill(session) -> None:
        if session.engine.ledger.arrived in (5, 15) and session.engine.ledger.arrived not in killed:
            killed.append(session.engine.ledger.arrived)
            os.kill(session.built.world.executor.pids[0], signal.SIGKILL)

    choose = ('executor.name="pool"', "executor.workers=2")
    _, pooled = scenarios.played(tmp_path, text, *choose, out="pool", watch=kill)
    assert killed == [5, 15]
    for name in ("timeline_sha256", "model_sha256"):
        assert inline[name] == pooled[name]


def test_auto_says_what_it_chose_and_why(tmp_path):
    """A short run stays inline; the manifest holds the reason."""
    _, manifest = scenarios.played(tmp_path, scenarios.BLOBS, 'executor.name="auto"')
    assert manifest["executor"] == "inline"
    assert "training" in manifest["executor_reason"]


class Unbuildable(Plain):
    """A task that cannot be rebuilt in another process."""

    def __reduce__(self):
        return int, ("not a number",)


def test_a_task_that_workers_cannot_rebuild_is_a_named_error(tmp_path):
    """The reason is told at once, nothing hangs, and no process stays."""
    executor = PoolExecutor(Unbuildable(tmp_path), 1)
    try:
        executor.submit(plain_job(0), 0)
        with pytest.raises(RunError, match="workers cannot rebuild the task: ValueError"):
            executor.collect(plain_job(0), 4)
    finally:
        executor.close()


class Vanishing(Plain):
    """A task that ends the process which tries to rebuild it."""

    def __reduce__(self):
        return os._exit, (3,)


def test_workers_that_end_while_starting_are_a_named_error(tmp_path):
    """They are replaced, but not for ever; closing afterwards is quiet, and leaves no process."""
    executor = PoolExecutor(Vanishing(tmp_path), 2)
    executor.submit(plain_job(0), 0)
    pids = list(executor.pids)
    with pytest.raises(RunError, match=r"end while starting \(exit code 3\)"):
        executor.collect(plain_job(0), 4)
    executor.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_after_workers_failed_nothing_waits(tmp_path):
    """What else was asked for is an error too, at once, and not a wait for workers that are no more."""
    executor = PoolExecutor(Vanishing(tmp_path), 1)
    executor.submit(plain_job(0), 0)
    promise = executor.evaluate(Model(1, 2.0))
    with pytest.raises(RunError, match="end while starting"):
        executor.collect(plain_job(0), 4)
    with pytest.raises(RunError, match=r"closed .*end while starting"):
        promise()
