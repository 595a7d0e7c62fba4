"""Threads give the bits of the inline executor, and leave the process as it was."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl
import pytest
import torch
from test_random_worlds import a_setting, engine_of
from training_world import IMAGES, NoisyNet, blob_task, equal_buffers, job_of
from worlds import Played

import scenarios
from desim_fl import eventlog
from desim_fl.build import build
from desim_fl.core import Job, Model, Outcome, Score, Work
from desim_fl.engine import Engine
from desim_fl.errors import JobError, LawError, RefusedError, RunError, StalledError
from desim_fl.eventlog import EventLog, MemorySink
from desim_fl.executors.inline import InlineExecutor
from desim_fl.executors.threads import ThreadExecutor
from desim_fl.learning import models
from desim_fl.learning.quadratic import QuadraticTask
from desim_fl.run import Session
from desim_fl.scenario import load

HERE = Path(__file__).parent


FAILURES = {"fail": ValueError("no luck today"), "memory": MemoryError()}


@dataclass
class Plain:
    """Adds the client's number; some clients are slow, fail, or wait for ``gate``. ``order`` is what was trained."""

    order: list[int] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    halted: object = None

    def replica(self, halted):
        """Share everything: lists and events are safe."""
        return replace(self, halted=halted)

    def train(self, job: Job, steps: int) -> Outcome:
        """As ``job.extra`` says."""
        self.order.append(job.id)
        if job.extra == "gate":
            self.gate.wait(30)
        if job.extra == "steps":
            for _ in range(3000):
                if self.halted():
                    raise RuntimeError("halted")
                time.sleep(0.02)
        if job.extra == "minute":
            time.sleep(60)
        if job.extra == "slow":
            time.sleep(0.2)
        if job.extra == "nothing":
            return None  # pyright: ignore[reportReturnType]
        if job.extra in FAILURES:
            raise FAILURES[job.extra]
        if job.extra == "exit":
            sys.exit(3)
        return Outcome(job.params + job.client, job.buffers, examples=1, steps=steps, loss=0.0)

    def evaluate(self, model: Model) -> tuple[Score, ...]:
        """The parameter is the loss."""
        return (Score("test", float(model.params), None, 1),)


def plain_job(number: int, extra=None, params=10.0) -> Job:
    """A job of the plain task."""
    return Job(number, number, 0, 0, params, None, Work(1, 4, 0.1), extra)


@pytest.fixture
def task():
    """A plain task."""
    return Plain()


@pytest.fixture
def one(task):
    """One thread on the plain task."""
    executor = ThreadExecutor(task, 1)
    yield executor
    task.gate.set()
    executor.close()


def begun(task, number: int) -> None:
    """Wait until the thread is at this job: until then a more urgent one would rightly go first."""
    while number not in task.order:
        time.sleep(0.001)


# ---- the executor's contract


def test_the_most_urgent_arrival_is_trained_first(one, task):
    """Jobs that wait are trained by their due time, not by their number; what is collected goes before all of them."""
    one.submit(plain_job(9, "gate"), 99)
    begun(task, 9)
    for number, due in enumerate((50, 20, 40, 10)):
        one.submit(plain_job(number), due)
    task.gate.set()
    assert one.collect(plain_job(9), 4).params == 19.0
    assert [one.collect(plain_job(n), 4).params for n in (3, 1, 2, 0)] == [13.0, 11.0, 12.0, 10.0]
    assert task.order == [9, 3, 1, 2, 0]
    assert [row.job for row in one.wall] == [9, 3, 1, 2, 0]
    assert all(row.train_s >= 0 for row in one.wall)
    task.gate.clear()
    one.submit(plain_job(10, "gate"), 0)
    begun(task, 10)
    for number in (11, 12):
        one.submit(plain_job(number), number)
    threading.Timer(0.1, task.gate.set).start()
    one.collect(plain_job(12), 4)
    assert task.order[5:7] == [10, 12]


def test_released_jobs_are_not_trained_and_partial_ones_do_what_is_asked(one, task):
    """A job let go before it starts never runs; one that reports early has done so few steps, begun or not."""
    one.submit(plain_job(0, "gate"), 0)
    begun(task, 0)
    for number in (1, 2, 3):
        one.submit(plain_job(number), number)
    one.release(plain_job(3))
    one.release(plain_job(3))
    while task.order != [0]:
        time.sleep(0.001)
    threading.Timer(0.05, task.gate.set).start()
    assert one.collect(plain_job(0, "gate"), 3).steps == 3  # begun with 4 steps, so done again
    assert one.collect(plain_job(1), 2).steps == 2  # may have been done by now
    assert one.collect(plain_job(2), 4).steps == 4
    assert 3 not in task.order
    for number in (1, 3, 7):
        with pytest.raises(LawError, match=f"job {number} is not waiting here"):
            one.collect(plain_job(number), 4)
    one.submit(plain_job(5), 0)
    with pytest.raises(LawError, match="job 5 was submitted twice"):
        one.submit(plain_job(5), 0)


def test_a_job_that_reports_early_before_it_began_is_done_once(one, task):
    """Its steps are changed where it stands in the queue."""
    one.submit(plain_job(0, "gate"), 0)
    begun(task, 0)
    one.submit(plain_job(1), 1)
    threading.Timer(0.05, task.gate.set).start()
    assert one.collect(plain_job(1), 2).steps == 2
    one.collect(plain_job(0), 4)
    assert task.order == [0, 1]


def test_a_job_that_is_released_while_it_runs_ends_at_its_next_step(one, task):
    """The thread is free for the next one long before the whole job would be done."""
    began = time.monotonic()
    one.submit(plain_job(0, "steps"), 0)
    while not task.order:
        time.sleep(0.001)
    one.release(plain_job(0))
    one.submit(plain_job(1), 1)
    assert one.collect(plain_job(1), 4).params == 11.0
    assert time.monotonic() - began < 30
    assert [row.job for row in one.wall] == [1]


@pytest.mark.parametrize(
    ("extra", "why", "cause"),
    [
        ("fail", "ValueError: no luck today", ValueError),
        ("exit", "SystemExit: 3", SystemExit),
        ("memory", r"MemoryError: fewer executor\.workers need less memory", MemoryError),
        ("nothing", "training gave a NoneType, not an Outcome", None),
    ],
)
def test_a_failing_job_is_named_with_its_worker_and_cause(one, extra, why, cause):
    """JobError with job, client, version, worker, from the very exception; jobs behind it are trained as ever."""
    one.submit(plain_job(0, extra), 0)
    one.submit(plain_job(1), 1)
    with pytest.raises(
        JobError, match=rf"job 0 \(client 0, from version 0, executor threads, worker 0\): {why}"
    ) as told:
        one.collect(plain_job(0), 4)
    assert cause is None or isinstance(told.value.__cause__, cause)
    assert one.collect(plain_job(1), 4).params == 11.0


def test_evaluations_run_beside_training_and_fail_by_name(one, task):
    """A promise is ready when its scores are there; what evaluation raises is a RunError that names the version."""
    one.submit(plain_job(0, "gate"), 5)
    begun(task, 0)
    promise, broken = one.evaluate(Model(7, 3.5)), one.evaluate(Model(8, "no number"))
    assert not promise.ready()
    task.gate.set()
    assert list(promise()) == [Score("test", 3.5, None, 1)]
    with pytest.raises(RunError, match="evaluating version 8 failed: ValueError"):
        broken()
    assert promise.ready()


def test_nothing_is_held_once_nobody_needs_it(one, task):
    """Parameters go with their jobs, evaluated versions with their scores, though the promise is kept."""

    class Heavy(float):
        pass

    held = []
    one.submit(plain_job(0, "gate"), 0)
    begun(task, 0)
    for number, end in enumerate((one.collect, one.release), start=1):
        params = Heavy(1.0)
        held.append(weakref.ref(params))
        job = plain_job(number, params=params)
        one.submit(job, number)
        task.gate.set()
        end(*((job, 4) if end == one.collect else (job,)))
        del params, job
    version = Heavy(2.0)
    held.append(weakref.ref(version))
    promise = one.evaluate(Model(1, version))
    del version
    promise()
    one.submit(plain_job(9), 9)
    one.collect(plain_job(9), 4)
    gc.collect()
    assert [reference() for reference in held] == [None, None, None]


# ---- ends


def living() -> list[threading.Thread]:
    """Threads of thread executors that live now."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("desim-fl thread")]


def test_close_ends_running_jobs_at_their_next_step_and_can_be_repeated(task):
    """No thread is left; what waits is an error afterwards, never a hang."""
    executor = ThreadExecutor(task, 2)
    for number in range(4):
        executor.submit(plain_job(number, "steps"), number)
    promise = executor.evaluate(Model(0, 1.0))
    began = time.monotonic()
    executor.close()
    executor.close()
    assert time.monotonic() - began < 30
    assert living() == []
    with pytest.raises(RunError, match="threads have ended"):
        promise()
    with pytest.raises(RunError, match="threads have ended"):
        executor.submit(plain_job(9), 0)


def test_close_waits_only_some_seconds_for_a_step_that_does_not_end(task):
    """A thread in the middle of a long step is left behind; it does what is left of it and ends."""
    executor = ThreadExecutor(task, 1)
    executor.submit(plain_job(0, "gate"), 0)
    while not task.order:
        time.sleep(0.001)
    began = time.monotonic()
    executor.close()
    assert 2 < time.monotonic() - began < 15
    (thread,) = living()
    assert thread.daemon
    task.gate.set()
    thread.join(5)
    assert not thread.is_alive()


def test_an_executor_that_is_forgotten_ends_its_threads(task):
    """Nothing in a thread holds the executor."""
    executor = ThreadExecutor(task, 2)
    executor.submit(plain_job(0), 0)
    executor.collect(plain_job(0), 4)
    assert len(living()) == 2
    del executor
    gc.collect()
    assert living() == []


PROCESS = """
import sys, time
from test_threads import Plain, plain_job
from desim_fl.core import Model
from desim_fl.executors.threads import ThreadExecutor
threads = ThreadExecutor(Plain(), 2)
for number in range(4):
    threads.submit(plain_job(number, sys.argv[1] if number else None), number)
try:
    for number in range(4):
        threads.collect(plain_job(number), 4)
        print("collected", number, flush=True)
        if sys.argv[2] == "forget":
            break
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def process(*arguments: str) -> subprocess.Popen[str]:
    """A process of its own with two threads at long jobs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command, pipe = [sys.executable, "-c", PROCESS, *arguments], subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


@pytest.mark.parametrize("job", ["steps", "minute"])
def test_ctrl_c_is_heard_while_waiting(job):
    """The main thread is interrupted at once; running steps end, and one that does not holds nothing up for long."""
    waiting = process(job, "wait")
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "collected 0\n"
    time.sleep(0.2)
    began = time.monotonic()
    os.killpg(waiting.pid, signal.SIGINT)
    out, err = waiting.communicate(timeout=50)
    assert (out, err, waiting.returncode) == ("interrupted\n", "", 0)
    assert time.monotonic() - began < 30  # both jobs take a minute


def test_threads_do_not_keep_the_process_alive():
    """A script that forgets to close ends all the same, in the middle of jobs."""
    forgetting = process("minute", "forget")
    out, err = forgetting.communicate(timeout=30)
    assert (out, err, forgetting.returncode) == ("collected 0\n", "", 0)


# ---- laws 1 and 2


class Normed(torch.nn.Module):
    """BatchNorm and an integer buffer bound anew in each pass, but no random numbers."""

    def __init__(self, features: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Linear(features, 12), torch.nn.BatchNorm1d(12), torch.nn.ReLU(), torch.nn.Linear(12, classes)
        )
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Count training passes."""
        if self.training:
            self.calls = self.calls + 1
        return self.body(inputs)


NORMED = scenarios.BLOBS.replace('name = "mlp"\nhidden = [16]', 'name = "test_threads:Normed"')
FASHION = scenarios.BLOBS.replace(
    'name = "blobs"\nexamples = 600\ntest_examples = 200\nclasses = 4\nfeatures = 8',
    'name = "fashion_mnist_6k"\nexamples = 400',
).replace('name = "mlp"\nhidden = [16]', 'name = "cnn"\nchannels = [4]')
SETS = {
    "fedasync": (scenarios.BLOBS, []),
    "fedbuff, momentum, images": (
        FASHION,
        ['strategy.name="fedbuff"', "strategy.buffer_size=3", "training.momentum=0.9", "training.weight_decay=0.01"],
    ),
    "fedavg, adam, BatchNorm": (
        NORMED,
        ['strategy.name="fedavg"', "strategy.clients_per_round=3", 'training.optimizer="adam"', "training.lr=0.01"],
    ),
    "local buffers, two epochs": (NORMED, ['training.buffers="local"', "training.epochs=2", "training.batch_size=7"]),
    "delay-aware, steps, deltas": (
        scenarios.BLOBS,
        ["training.steps=5", 'strategy.mixing="delta"', 'run.dispatch="after_aggregation"', "training.batch_size=1"],
    ),
}


def session_of(folder, text, *overrides) -> Session:
    """A played session that writes no run directory."""
    text = text.replace("concurrency = 3\n", "") if any("fedavg" in entry for entry in overrides) else text
    session = Session(build(load(scenarios.write(folder, text), overrides)), None)
    session.play()
    return session


@pytest.mark.parametrize("name", SETS)
def test_laws_1_and_2_torch_worlds_do_not_depend_on_the_number_of_threads(tmp_path, name):
    """RP-02: timeline, every bit of parameters and buffers, metrics and losses are the inline executor's with 1, 2, 4 threads."""
    text, options = SETS[name]
    inline = session_of(tmp_path, text, *options, 'executor.name="inline"')
    wanted = inline.built.task.tensors(inline.engine.model)
    for workers in (1, 2, 4):
        choose = ('executor.name="threads"', f"executor.workers={workers}")
        threaded = session_of(tmp_path, text, *options, *choose)
        assert (threaded.built.world.executor.name, threaded.built.world.executor.workers) == ("threads", workers)
        assert threaded.timeline_sha256 == inline.timeline_sha256
        assert threaded.evaluations == inline.evaluations
        found = threaded.built.task.tensors(threaded.engine.model)
        assert {key: value.tobytes() for key, value in found.items()} == {
            key: value.tobytes() for key, value in wanted.items()
        }


@pytest.mark.parametrize("text", ["BLOBS", "QUADRATIC"])
def test_whole_run_directories_are_equal(tmp_path, text):
    """Hashes, events, metrics and clients of a run in threads are those of the inline one; so it is with the scalar task."""
    _, inline = scenarios.played(tmp_path, getattr(scenarios, text), 'executor.name="inline"', out="inline")
    choose = ('executor.name="threads"', "executor.workers=2")
    _, threaded = scenarios.played(tmp_path, getattr(scenarios, text), *choose, out="threads")
    assert (inline["executor"], threaded["executor"]) == ("inline", "threads")
    for name in ("timeline_sha256", "model_sha256", "partition_sha256"):
        assert inline[name] == threaded[name]
    for name in ("metrics", "clients"):
        tables = [pl.read_parquet(tmp_path / run / f"{name}.parquet") for run in ("inline", "threads")]
        assert tables[0].equals(tables[1])
    logs = [eventlog.read(tmp_path / run / "events").collect() for run in ("inline", "threads")]
    assert logs[0].equals(logs[1])
    assert living() == []


@pytest.mark.parametrize("kind", ["mlp", "cnn", "normed"])
def test_law_2_single_jobs_have_equal_bits(kind):
    """Parameters, buffers, losses, memories and scores of jobs trained side by side are the inline executor's."""
    make = {
        "mlp": blob_task,
        "normed": lambda: blob_task(lambda: Normed(6)),
        "cnn": lambda: blob_task(models.factory("cnn", {}, IMAGES.shape, 10), dataset=IMAGES),
    }[kind]
    task = make()
    initial = task.initial()
    jobs = [
        job_of(initial, client, nth=nth, number=4 * nth + client, steps=6) for client in range(4) for nth in range(4)
    ]
    inline, threads = InlineExecutor(task), ThreadExecutor(task, 4)
    try:
        for executor in (inline, threads):
            for job in jobs:
                executor.submit(job, job.id)
        promise = threads.evaluate(initial)
        for job in jobs:  # the inline executor keys torch's generator meanwhile, which must disturb nobody
            left, right = inline.collect(job, 6), threads.collect(job, 6)
            assert torch.equal(left.params, right.params)
            assert equal_buffers(left.buffers, right.buffers)
            assert left[2:] == right[2:]
        assert promise() == inline.evaluate(initial)()
    finally:
        threads.close()


@dataclass(frozen=True)
class SettingTask:
    """The arithmetic of a random world as a task."""

    setting: object

    def replica(self, halted):
        """Nothing here changes."""
        del halted
        return self

    def train(self, job: Job, steps: int) -> Outcome:
        """What the reference learns, after a while that depends on nothing but chance."""
        time.sleep(random.random() * 0.0005)
        learned = self.setting.learned(job.params, job.client, job.nth)
        return Outcome(learned, examples=self.setting.sizes[job.client], steps=steps, loss=0.5)

    def evaluate(self, model: Model) -> tuple[Score, ...]:
        """The parameter is the loss."""
        return (Score("test", model.params, None, 1),)


def played_with(setting, executor) -> tuple:
    """Rows, hash, parameters and evaluations of a random world under an executor; or how it stalled."""
    world = replace(engine_of(setting).engine.world, executor=executor)
    sink, evaluations = MemorySink(), []
    engine = Engine(world, EventLog(sink), evaluations.append)
    played = Played(engine, sink, "", executor, evaluations)
    try:
        sha256 = engine.run()
    except StalledError as error:
        return ("stalled", str(error))
    finally:
        executor.close()
    return sha256, played.sink.tuples(), repr(engine.model.params), repr(evaluations)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_law_1_random_worlds_of_every_strategy(workers):
    """Worlds full of ties, losses and cancelled jobs play in threads as inline, whichever job is ready first."""
    met = set()
    for seed in range(120):
        setting = a_setting(random.Random(seed).choice)
        met.add(setting.method.name)
        task = SettingTask(setting)
        assert played_with(setting, ThreadExecutor(task, workers)) == played_with(setting, InlineExecutor(task)), seed
    assert met == {"fedasync", "fedbuff", "fedavg"}


# ---- the process is left as it was


def counts() -> tuple[int, int]:
    """Intra-op threads of this thread, and of one that is new."""
    found = []
    new = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    new.start()
    new.join()
    return torch.get_num_threads(), found[0]


def test_generators_thread_counts_and_modes_are_untouched():
    """State of torch's generator, number of threads here and in threads to come, grad mode: as before, while it runs too."""
    before_count = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        task = blob_task()
        executor = ThreadExecutor(task, 2)
        jobs = [job_of(task.initial(), 0, nth=nth, number=nth, steps=40) for nth in range(6)]
        with torch.no_grad():
            for job in jobs:
                executor.submit(job, job.id)
            executor.collect(jobs[0], 40)
            assert counts() == (3, 3)
            assert not torch.is_grad_enabled()
            for job in jobs[1:]:
                executor.collect(job, 40)
            executor.evaluate(task.initial())()
        executor.close()
        assert counts() == (3, 3)
        assert torch.equal(before, torch.get_rng_state())
        assert torch.is_grad_enabled()
    finally:
        torch.set_num_threads(before_count)


def test_each_thread_computes_with_its_own_number_of_intra_op_threads():
    """threads_per_job holds in every worker, whatever the process has set."""

    class Asking(Normed):
        seen: list[int] = []  # noqa: RUF012

        def forward(self, inputs):
            self.seen.append(torch.get_num_threads())
            return super().forward(inputs)

    before = torch.get_num_threads()
    task = blob_task(lambda: Asking(6), threads=2)
    executor = ThreadExecutor(task, 3)
    torch.set_num_threads(5)
    try:
        Asking.seen.clear()
        for number in range(6):
            executor.submit(job_of(task.initial(), number=number, steps=5), number)
        for number in range(6):
            executor.collect(job_of(task.initial(), number=number, steps=5), 5)
        assert set(Asking.seen) == {2}
        assert torch.get_num_threads() == 5
    finally:
        executor.close()
        torch.set_num_threads(before)


def test_samples_are_shared_and_modules_are_not():
    """A replica's samples are the task's own memory; its parameters and layers are not, and neither is its initial model's copy."""
    task = blob_task(lambda: Normed(6))
    replica = task.replica(lambda: False)
    assert replica.training.inputs.data_ptr() == task.training.inputs.data_ptr()
    assert replica.splits["test"].inputs.data_ptr() == task.splits["test"].inputs.data_ptr()
    assert replica.initial() is task.initial()
    for mine, other in zip(task.module.parameters(), replica.module.parameters(), strict=True):
        assert mine.data_ptr() != other.data_ptr()


# ---- what is refused


class EvaluationNoise(torch.nn.Linear):
    """Draws in evaluation only."""

    def forward(self, inputs):
        """Add noise."""
        scores = super().forward(inputs)
        return scores if self.training else scores + torch.rand(())


class SometimesNoise(torch.nn.Linear):
    """Draws for larger batches only, which a dry step does not show."""

    def forward(self, inputs):
        """Add noise."""
        scores = super().forward(inputs)
        return scores + torch.rand(()) if len(inputs) > 2 else scores


ONE_FOR_ALL = torch.nn.Linear(6, 4)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (NoisyNet, "draws random numbers in training"),
        (lambda: EvaluationNoise(6, 4), "draws random numbers in evaluation"),
        (lambda: ONE_FOR_ALL, 'share "the whole module"'),
        (lambda: torch.nn.Sequential(torch.nn.Linear(6, 6), ONE_FOR_ALL), 'share "1"'),
    ],
)
def test_models_that_threads_would_mix_up_are_refused(model, why):
    """Random numbers and shared layers are a RefusedError that names the way out, and leave no thread."""
    with pytest.raises(RefusedError, match=why) as told:
        ThreadExecutor(blob_task(model), 2)
    assert '"pool"' in str(told.value)
    assert living() == []


def test_values_in_shared_memory_are_found_too():
    """Two modules whose parameters are views of the same tensor share it, though no layer is the same."""
    weight = torch.nn.Parameter(torch.zeros(4, 6))

    def build_one():
        layer = torch.nn.Linear(6, 4)
        layer.weight = weight
        return layer

    with pytest.raises(RefusedError, match='share "weight"'):
        ThreadExecutor(blob_task(build_one), 2)


def test_a_draw_that_the_dry_step_did_not_show_is_an_error():
    """A model that draws only for larger batches fails by name, since nothing would key its numbers."""
    task = blob_task(lambda: SometimesNoise(6, 4))
    executor = ThreadExecutor(task, 1)
    executor.submit(job_of(task.initial(), steps=2), 0)
    try:
        with pytest.raises(JobError, match=r"RefusedError: torch's generator was drawn from: .*\"pool\""):
            executor.collect(job_of(task.initial(), steps=2), 2)
    finally:
        executor.close()


def test_a_task_without_replicas_is_refused():
    """Someone's own task says how it is replicated, or is not shared between threads."""

    class Own:
        pass

    with pytest.raises(RefusedError, match=r"a Own has no replica\(\)"):
        ThreadExecutor(Own(), 1)
    quadratic = QuadraticTask(curvature=[1.0], optimum=[0.0], examples=[1])
    assert quadratic.replica(lambda: False) is quadratic


def test_a_scenario_that_asks_for_threads_is_refused_before_anything_is_written(tmp_path):
    """Dropout with threads: the error names the key, and no run directory appears."""
    text = scenarios.BLOBS.replace(
        'name = "mlp"\nhidden = [16]', 'name = "training_world:NoisyNet"\nargs = { features = 8 }'
    )
    with pytest.raises(RefusedError, match=r'\[executor\] name = "threads"'):
        scenarios.played(tmp_path, text, 'executor.name="threads"')
    assert not (tmp_path / "run").exists()
