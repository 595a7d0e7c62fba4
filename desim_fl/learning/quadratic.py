"""A scalar task in exact arithmetic, without torch: client i minimises ``curvature_i / 2 * (x - optimum_i)^2``.

Its local steps are gradient descent, ``x <- x - lr * curvature_i * (x - optimum_i)``, so every trajectory can be worked
out by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.core import Job, Model, Outcome, Score
from desim_fl.errors import RefusedError, ScenarioError
from desim_fl.learning.descent import Descent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np


class QuadraticTask:
    """Clients with one quadratic each; parameters are one float; see :class:`desim_fl.learning.task.Task`.

    ``examples`` are the clients' sample counts: they weigh the evaluation and, with ``batch_size``, say how many steps
    an epoch has. Every step uses the exact gradient, with the local rules of :mod:`desim_fl.learning.descent`. Raises
    ``ScenarioError`` for lists of different lengths and ``RefusedError`` for momentum, weight decay or another optimiser
    than "sgd".
    """

    def __init__(
        self,
        *,
        curvature: Sequence[float],
        optimum: Sequence[float],
        examples: Sequence[int],
        start: float = 0.0,
        batch_size: int = 32,
        optimizer: str = "sgd",
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        proximal_mu: float = 0.0,
        gradient_decay: float | None = None,
    ) -> None:
        if not len(curvature) == len(optimum) == len(examples):
            lengths = f"{len(curvature)} curvatures, {len(optimum)} optima, {len(examples)} example counts"
            raise ScenarioError(f'[data] name = "quadratic": {lengths}; one a client is needed')
        if optimizer != "sgd" or momentum or weight_decay:
            raise RefusedError("the quadratic task knows plain SGD only: no Adam, momentum or weight decay")
        self.curvature, self.optimum, self.examples = tuple(curvature), tuple(optimum), tuple(examples)
        self.start = float(start)
        self.descent = Descent(batch_size, proximal_mu=proximal_mu, gradient_decay=gradient_decay)

    def loss(self, client: int, x: float) -> float:
        """Return one client's objective at ``x``."""
        distance = x - self.optimum[client]
        return self.curvature[client] / 2 * (distance * distance)

    def initial(self) -> Model:
        """Return version 0: the start value."""
        return Model(0, self.start)

    def train(self, job: Job, steps: int) -> Outcome:
        """Do ``steps`` exact gradient steps; the loss is the mean of the objective before each."""
        if job.work.part is not None:
            raise RefusedError("work.part: a scalar has no parts")
        client = job.client
        if job.work.probe:
            return Outcome(job.params, job.buffers, self.examples[client], loss=self.loss(client, job.params))

        def at(x: float, step: int) -> tuple[float, float]:
            del step
            return self.loss(client, x), self.curvature[client] * (x - self.optimum[client])

        return self.descent.outcome(job, steps, self.examples[client], at)

    def evaluate(self, model: Model) -> tuple[Score, ...]:
        """Score a version by the mean of all clients' objectives, weighted by examples; no accuracy."""
        total = sum(self.examples)
        x = float(model.params)
        weighted = sum(n * self.loss(client, x) for client, n in enumerate(self.examples))
        return (Score("test", weighted / total, None, total),) if total else ()

    def replica(self, halted: Callable[[], bool]) -> QuadraticTask:
        """Return the task itself: it never changes, so threads can share it."""
        del halted
        return self

    def average(self, base: Any, members: Sequence[tuple[float, Any]]) -> Any:
        """Return ``base``: a scalar has no buffers."""
        del members
        return base

    def tensors(self, model: Model) -> dict[str, np.ndarray]:
        """Return the scalar as the float64 array "x" of shape (1,)."""
        import numpy as np  # noqa: PLC0415  (playing the task needs no arrays)

        return {"x": np.array([model.params], np.float64)}
