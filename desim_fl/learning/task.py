"""What an executor, the engine and the run directory ask of whatever is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from desim_fl.core import Job, Model, Outcome, Score


@runtime_checkable
class Task(Protocol):
    """One training problem: the same arguments always give the same values, whatever was asked before."""

    def initial(self) -> Model:
        """Return version 0."""
        ...

    def train(self, job: Job, steps: int) -> Outcome:
        """Do ``steps`` optimiser steps; change nothing the job holds, leave global generators as they were."""
        ...

    def evaluate(self, model: Model) -> tuple[Score, ...]:
        """Score a version on "test", and on "validation" where there is one; empty if it cannot be scored."""
        ...

    def average(self, base: Any, members: Sequence[tuple[float, Any]]) -> Any:
        """Join clients' buffers, ``(share, buffers)`` each, with the server's own ``base``."""
        ...

    def tensors(self, model: Model) -> dict[str, np.ndarray]:
        """Name the arrays of a model, parameters first."""
        ...
