"""Trains nothing while a timeline is played again, and from there on does what the executor behind it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.executors.null import NullExecutor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from desim_fl.core import Executor, Job, Model, Outcome, Promise


def ahead(executor: Any) -> Any:
    """Return what an executor has trained ahead of need and could not train again alike; ``None`` = nothing.

    Exact executors train a job anywhere with the same result; a batched one must not form other groups.
    """
    return executor.ahead() if hasattr(executor, "ahead") else None


class ResumingExecutor:
    """An executor of ``Null`` outcomes until ``wake``, which hands the jobs in flight to ``inner``."""

    def __init__(self, inner: Executor, sizes: Sequence[int]) -> None:
        self.inner, self.name = inner, inner.name
        self._now: Any = NullExecutor(sizes)

    def wake(self, jobs: Iterable[tuple[Job, int]], ahead: Any) -> None:
        """Go on in earnest with these jobs, when each is due (ticks), and what was trained ``ahead`` of need."""
        self._now = self.inner
        for job, due in jobs:
            self.inner.submit(job, due)
        if ahead is not None:
            self._now.take_up(ahead)

    def ahead(self) -> Any:
        """What the executor has trained ahead, where that cannot be trained again alike."""
        return ahead(self.inner)

    def submit(self, job: Job, due: int) -> None:
        """Take a job in."""
        self._now.submit(job, due)

    def stopped(self, job: Job, steps: int) -> bool:
        """Tell whether a job's training has ended; while the timeline is played again nobody listens."""
        return self._now.stopped(job, steps)

    def collect(self, job: Job, steps: int) -> Outcome:
        """Return what training gives, or would give on ``Null`` parameters."""
        return self._now.collect(job, steps)

    def release(self, job: Job) -> None:
        """Let go of a job."""
        self._now.release(job)

    def evaluate(self, model: Model) -> Promise:
        """Promise scores; none while the timeline is played again."""
        return self._now.evaluate(model)

    def close(self) -> None:
        """Give everything back."""
        self.inner.close()
