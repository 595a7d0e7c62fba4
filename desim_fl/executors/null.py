"""Trains nothing: the executor of ``plan``. The timeline is the same, every trained value is ``Null``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desim_fl.algebra import Null
from desim_fl.core import Job, Model, Outcome, Promise

if TYPE_CHECKING:
    from collections.abc import Sequence


class NullExecutor:
    """Claims the planned steps and, from ``sizes``, each client's number of samples; has no scores."""

    name = "null"
    idle = True  # submit and release do nothing, and need not be called

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self._outcomes: dict[tuple[int, int], Outcome] = {}  # they are all alike

    def submit(self, job: Job, due: int) -> None:
        """Do nothing."""

    def collect(self, job: Job, steps: int) -> Outcome:
        """Return an outcome without values."""
        kind = self.sizes[job.client], steps
        try:
            return self._outcomes[kind]
        except KeyError:
            self._outcomes[kind] = Outcome(Null, examples=int(kind[0]), steps=steps, loss=Null, extra=Null)
            return self._outcomes[kind]

    def stopped(self, job: Job, steps: int) -> bool:
        """Nothing stops of itself."""
        del job, steps
        return False

    def release(self, job: Job) -> None:
        """Do nothing."""

    def evaluate(self, model: Model) -> Promise:
        """Return no scores."""
        del model
        return Promise(tuple)

    def close(self) -> None:
        """Do nothing."""
