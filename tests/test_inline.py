"""The inline executor and the one that trains nothing."""

from __future__ import annotations

import gc
import weakref

import pytest

from desim_fl.algebra import Null
from desim_fl.core import Executor, Job, Model, Outcome, Score, Work
from desim_fl.errors import JobError, LawError
from desim_fl.executors.inline import InlineExecutor
from desim_fl.executors.null import NullExecutor
from desim_fl.learning.quadratic import QuadraticTask
from desim_fl.learning.task import Task


def job_of(number: int, x: object = 1.0, client: int = 0) -> Job:
    """One job of client 0 or 1 from version 5."""
    return Job(number, client, 0, 5, x, None, Work(epochs=1, lr=0.1))


class Adding:
    """AG-07's trainer: client i adds its own number; counts its calls."""

    def __init__(self, amounts: list[float], report: int | None = None, stopped: bool = False) -> None:  # noqa: FBT001, FBT002
        self.amounts, self.report, self.stopped, self.calls = amounts, report, stopped, 0

    def initial(self) -> Model:
        """Return W = 1."""
        return Model(0, 1.0)

    def train(self, job: Job, steps: int) -> Outcome:
        """Add."""
        self.calls += 1
        done = steps if self.report is None else self.report
        return Outcome(job.params + self.amounts[job.client], examples=1, steps=done, stopped=self.stopped)

    def evaluate(self, model: Model) -> tuple[Score, ...]:
        """Score by the parameter itself."""
        return (Score("test", model.params, None, 1),)

    def average(self, base, members):
        """Keep the base."""
        del members
        return base

    def tensors(self, model: Model) -> dict:
        """Name nothing."""
        del model
        return {}


def collected(executor: Executor, job: Job, steps: int = 2) -> Outcome:
    """Submit and collect at once."""
    executor.submit(job, 0)
    return executor.collect(job, steps)


def test_both_are_executors() -> None:
    """They fit the seam of the engine."""
    executors: list[Executor] = [InlineExecutor(Adding([1.0])), NullExecutor([1])]
    assert [executor.name for executor in executors] == ["inline", "null"]
    assert isinstance(Adding([1.0]), Task)


def test_ag_07_clients_do_not_see_each_other() -> None:
    """W = 1 and three clients adding +1, +2, -1 give 2, 3 and 0."""
    executor = InlineExecutor(Adding([1.0, 2.0, -1.0]))
    jobs = [job_of(client, client=client) for client in range(3)]
    for job in jobs:
        executor.submit(job, 0)
    assert [executor.collect(job, 1).params for job in reversed(jobs)] == [0.0, 3.0, 2.0]


def test_training_happens_at_collect() -> None:
    """A submitted job costs nothing until it is collected, and nothing at all if it is released."""
    task = Adding([1.0])
    executor = InlineExecutor(task)
    for number in (0, 1):
        executor.submit(job_of(number), 0)
    assert task.calls == 0
    executor.release(job_of(0))
    executor.collect(job_of(1), 1)
    assert task.calls == 1
    with pytest.raises(LawError, match="job 0 is not waiting"):
        executor.collect(job_of(0), 1)


def test_a_job_is_collected_once() -> None:
    """Collecting twice, collecting what was never submitted, and submitting twice are errors of the caller; CASES AS-05."""
    executor = InlineExecutor(Adding([1.0]))
    collected(executor, job_of(3))
    executor.release(job_of(3))
    for number in (3, 4):
        with pytest.raises(LawError, match=f"job {number} is not waiting"):
            executor.collect(job_of(number), 1)
    executor.submit(job_of(5), 0)
    with pytest.raises(LawError, match="job 5 was submitted twice"):
        executor.submit(job_of(5), 0)


def test_nothing_is_held_after_collect_release_and_close() -> None:
    """Parameters of a job are let go as soon as nobody needs them; CASES RS-01."""

    class Heavy:
        def __add__(self, other: float) -> float:
            return other

    executor = InlineExecutor(Adding([1.0]))
    seen = []
    for number, end in enumerate(("collect", "release", "close")):
        job = job_of(number, Heavy())
        seen.append(weakref.ref(job.params))
        executor.submit(job, 0)
        {
            "collect": lambda j=job: executor.collect(j, 1),
            "release": lambda j=job: executor.release(j),
            "close": executor.close,
        }[end]()
        del job
    gc.collect()
    assert [reference() for reference in seen] == [None, None, None]


def test_a_failure_names_job_client_version_and_executor() -> None:
    """Whatever training raises becomes a JobError from it."""
    task = QuadraticTask(curvature=[1.0, 1.0], optimum=[0.0, 0.0], examples=[1, 1])
    executor = InlineExecutor(task, name="inline-7")
    with pytest.raises(JobError) as caught:
        collected(executor, job_of(9, "not a number", client=1))
    message = str(caught.value)
    assert message.startswith("job 9 (client 1, from version 5, executor inline-7): TypeError")
    assert isinstance(caught.value.__cause__, TypeError)
    assert executor.wall == []


@pytest.mark.parametrize(
    ("report", "stopped", "fine"), [(0, False, False), (3, False, False), (1, True, True), (3, True, False)]
)
def test_ev_09_a_trainer_must_report_its_steps(report: int, stopped: bool, fine: bool) -> None:  # noqa: FBT001
    """Other steps than asked are an error, never zero cost; fewer are allowed where training stopped early."""
    executor = InlineExecutor(Adding([1.0], report, stopped))
    if fine:
        assert collected(executor, job_of(0)).steps == report
    else:
        with pytest.raises(JobError, match=f"reports {report} steps, 2 were asked"):
            collected(executor, job_of(0))


def test_a_trainer_must_return_an_outcome() -> None:
    """Anything but an Outcome is a JobError that names what came."""
    task = Adding([1.0])
    task.train = lambda job, steps: None
    with pytest.raises(JobError, match="a NoneType, not an Outcome"):
        collected(InlineExecutor(task), job_of(0))


def test_real_seconds_are_kept_beside() -> None:
    """One wall row a trained job, with a time that has passed; evaluation goes straight to the task."""
    executor = InlineExecutor(Adding([1.0, 2.0]))
    collected(executor, job_of(4, client=1))
    assert [(row.job, row.client) for row in executor.wall] == [(4, 1)]
    assert executor.wall[0].train_s > 0
    assert list(executor.evaluate(Model(0, 2.5))()) == [Score("test", 2.5, None, 1)]


def test_the_null_executor_claims_the_plan() -> None:
    """Planned steps, the client's samples, Null parameters, a loss nobody can decide on, and no scores."""
    executor = NullExecutor([10, 20])
    assert collected(executor, job_of(0, Null, client=1), 7) == Outcome(
        Null, examples=20, steps=7, loss=Null, extra=Null
    )
    executor.release(job_of(0))
    assert list(executor.evaluate(Model(0, Null))()) == []
    executor.close()
