"""Trains each job in this process, at the moment its result is needed."""

from __future__ import annotations

from time import perf_counter  # provenance only: real seconds never enter virtual time
from typing import TYPE_CHECKING, NamedTuple

from desim_fl.core import Job, Model, Outcome, Promise
from desim_fl.errors import DesimError, JobError, LawError, RunError

if TYPE_CHECKING:
    from desim_fl.learning.task import Task


LESS_MEMORY = "fewer executor.workers need less memory"


class Wall(NamedTuple):
    """Real seconds that training one job took on this host."""

    job: int
    client: int
    train_s: float


def checked(job: Job, outcome: Outcome, steps: int, executor: str) -> Outcome:
    """Return the outcome; a trainer that does not say what it did is refused, since virtual time counts on it."""
    why = None
    if not isinstance(outcome, Outcome):
        why = f"training gave a {type(outcome).__name__}, not an Outcome"
    elif outcome.steps != steps and not (outcome.stopped and 0 <= outcome.steps <= steps):
        why = f"the trainer reports {outcome.steps} steps, {steps} were asked for"
    if why is not None:
        raise JobError(job.id, job.client, job.version, executor, why)
    return outcome


def told(error: BaseException) -> str:
    """What was raised, in a line; where memory ran out, what needs less."""
    text = f"{type(error).__name__}: {error}"
    # torch says so in its own way: one error on the CPU, another on an accelerator
    lacking = isinstance(error, MemoryError) or "OutOfMemoryError" in text or "can't allocate memory" in text
    return f"{text.rstrip(': ')}: {LESS_MEMORY}" if lacking else text


class InlineExecutor:
    """The plainest executor; the others are measured against it.

    ``wall`` grows by one row a job. A job that was never submitted, or is collected twice, is a ``LawError``; whatever
    goes wrong in training is a ``JobError`` naming job, client, version and executor.
    """

    exact = True

    def __init__(self, task: Task, name: str = "inline") -> None:
        self.task = task
        self.name = name
        self.wall: list[Wall] = []
        self._waiting: dict[int, Job] = {}

    def submit(self, job: Job, due: int) -> None:
        """Remember the job; training waits until ``collect``."""
        del due
        if job.id in self._waiting:
            raise LawError(f"job {job.id} was submitted twice")
        self._waiting[job.id] = job

    def collect(self, job: Job, steps: int) -> Outcome:
        """Train ``steps`` steps and hand the outcome over; the executor forgets the job."""
        if self._waiting.pop(job.id, None) is None:
            raise LawError(f"job {job.id} is not waiting here: never submitted, released, or collected before")
        begin = perf_counter()
        try:
            outcome = self.task.train(job, steps)
        except Exception as error:
            raise self._failed(job, f"{type(error).__name__}: {error}") from error
        self.wall.append(Wall(job.id, job.client, perf_counter() - begin))
        return checked(job, outcome, steps, self.name)

    def _failed(self, job: Job, why: str) -> JobError:
        return JobError(job.id, job.client, job.version, self.name, why)

    def release(self, job: Job) -> None:
        """Forget a job that will not be collected; one that is not waiting is forgotten already."""
        self._waiting.pop(job.id, None)

    def evaluate(self, model: Model) -> Promise:
        """Score a version now."""
        try:
            scores = self.task.evaluate(model)
        except DesimError:
            raise
        except Exception as error:
            raise RunError(f"evaluating version {model.version} failed: {type(error).__name__}: {error}") from error
        return Promise(lambda: scores)

    def close(self) -> None:
        """Forget everything that waits."""
        self._waiting.clear()
