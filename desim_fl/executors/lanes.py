"""Batched groups dealt to worker processes: each trains some hands of a group, and evaluates beside them.

Processes and not threads: a batched step of a small network is some forty kernels of about 20 microseconds, between
which Python's lock would have to change hands each time. The processes are the pool's; a hand travels as one job whose
parameters are those of all versions that its members start from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.core import Job, Outcome, Promise, Work
from desim_fl.executors.packing import full, lean
from desim_fl.executors.pool import PoolExecutor
from desim_fl.learning.batched import HAND, Batched, Traits, hands_of, out_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.core import Model, Score
    from desim_fl.learning.classification import ClassificationTask


class Entry(NamedTuple):
    """A member of a hand on its way: the job without its model, the number of that among the hand's, and its steps."""

    job: Job
    model: int
    steps: int


class Failed(NamedTuple):
    """Why a hand could not be trained together, and whether for want of memory."""

    why: str
    memory: bool


class HandError(Exception):
    """A hand failed in its lane; what was raised there is told as text."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.why)
        self.memory = failed.memory


class HandTask:
    """What a lane does; made from a recipe in each process. A failed hand is an outcome, a failed evaluation is raised."""

    def __init__(self, task: ClassificationTask, traits: Traits) -> None:
        self.task, self.traits = task, traits
        self._batched: Batched | None = None

    def __reduce__(self) -> tuple[type, tuple[ClassificationTask, Traits]]:
        return HandTask, (self.task, self.traits)

    def train(self, job: Job, steps: int) -> Outcome:
        """Train a hand's members: ``extra`` are the entries, and what comes back in ``extra`` their outcomes."""
        if self._batched is None:
            self._batched = Batched(self.task, self.traits)
        models = list(zip(job.params, job.buffers, strict=True))
        jobs = [(entry.job._replace(params=models[entry.model][0], buffers=models[entry.model][1]), entry.steps)
                for entry in job.extra]  # fmt: skip
        try:
            outcomes = self._batched.train(jobs)
        except Exception as error:  # noqa: BLE001  (who asked decides what becomes of the members)
            return Outcome(None, steps=steps, extra=Failed(f"{type(error).__name__}: {error}", out_of_memory(error)))
        return Outcome(None, steps=steps, extra=[lean(end, one) for end, (one, _) in zip(outcomes, jobs, strict=True)])

    def evaluate(self, model: Model) -> Sequence[Score]:
        """Score a version."""
        return self.task.evaluate(model)


class HandPool(PoolExecutor):
    """The pool's processes, with places in shared memory for a whole hand."""

    def _place_bytes(self, params: Any, buffers: Any) -> int:
        del params, buffers
        model = self.task.task.initial()  # pyright: ignore[reportAttributeAccessIssue]
        return HAND * super()._place_bytes(model.params, model.buffers)


class Lanes:
    """Trains jobs of a task together, as :class:`Batched` does and with its bits, in ``count`` processes.

    Raises ``HandError`` where a hand fails, and ``JobError`` (of no real job) where its process dies twice.
    """

    def __init__(self, task: ClassificationTask, traits: Traits, count: int) -> None:
        self._pool = HandPool(HandTask(task, traits), count)  # pyright: ignore[reportArgumentType]
        self.task, self._hands = task, 0

    def train(self, jobs: Sequence[tuple[Job, int]]) -> list[Outcome]:
        """Train jobs for so many steps each; returns their outcomes in the same order."""
        dealing = hands_of(self.task, [steps for _, steps in jobs])
        sent = [self._sent([jobs[number] for number in numbers]) for numbers in dealing]
        ends: dict[int, Outcome] = {}
        try:
            for numbers, hand in zip(dealing, sent, strict=True):
                told = self._pool.collect(hand, 1).extra
                if isinstance(told, Failed):
                    raise HandError(told)
                ends |= {number: full(end, jobs[number][0]) for number, end in zip(numbers, told, strict=True)}
        finally:
            for hand in sent:
                self._pool.release(hand)
            self._pool.wall.clear()
        return [ends[number] for number in range(len(jobs))]

    def _sent(self, jobs: Sequence[tuple[Job, int]]) -> Job:
        """Put a hand on its way."""
        models: dict[tuple[int, int], tuple[int, Any, Any]] = {}
        entries = []
        for job, steps in jobs:
            model = models.setdefault((id(job.params), id(job.buffers)), (len(models), job.params, job.buffers))
            entries.append(Entry(job._replace(params=None, buffers=None), model[0], steps))
        params, buffers = ([model[place] for model in models.values()] for place in (1, 2))
        hand = Job(self._hands, jobs[0][0].client, 0, jobs[0][0].version, params, buffers, Work(1, 1), entries)
        self._hands += 1
        self._pool.submit(hand, 0)
        return hand

    def evaluate(self, model: Model) -> Promise:
        """Score a version beside training."""
        return self._pool.evaluate(model)

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
