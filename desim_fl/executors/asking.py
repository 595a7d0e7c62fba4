"""In front of an executor whose jobs may stop of themselves: it can be asked at the end of an epoch whether one did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from desim_fl.core import Executor, Job, Model, Outcome, Promise


class AskingExecutor:
    """Waits for a whole job when it is first asked about, and keeps its outcome until it is collected or released."""

    def __init__(self, inner: Executor) -> None:
        self.inner, self.name = inner, inner.name
        self._due: dict[int, int] = {}
        self._known: dict[int, Outcome] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)  # real seconds, counts of reused jobs: whatever the executor behind tells

    def submit(self, job: Job, due: int) -> None:
        """Take a job in."""
        self._due[job.id] = due
        self.inner.submit(job, due)

    def stopped(self, job: Job, steps: int) -> bool:
        """Tell whether local training ended after at most so many steps."""
        outcome = self._known.get(job.id)
        if outcome is None:
            outcome = self._known[job.id] = self.inner.collect(job, job.work.steps or 0)
        return outcome.stopped and outcome.steps <= steps

    def collect(self, job: Job, steps: int) -> Outcome:
        """Return a job's outcome; one that reports earlier than it stopped is trained again for so many steps."""
        outcome = self._known.pop(job.id, None)
        if outcome is not None and outcome.steps == steps:
            return outcome
        if outcome is not None:
            self.inner.release(job)
            self.inner.submit(job, self._due[job.id])
        return self.inner.collect(job, steps)

    def release(self, job: Job) -> None:
        """Let go of a job."""
        self._known.pop(job.id, None)
        self._due.pop(job.id, None)
        self.inner.release(job)

    def evaluate(self, model: Model) -> Promise:
        """Promise the scores of a version."""
        return self.inner.evaluate(model)

    def close(self) -> None:
        """Give everything back."""
        self._known.clear()
        self.inner.close()
