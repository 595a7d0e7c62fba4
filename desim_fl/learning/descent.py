"""Local SGD of tasks whose gradients have a closed form: floats or NumPy arrays, without torch, local rules included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from desim_fl.algebra import is_finite
from desim_fl.core import Job, Outcome
from desim_fl.learning import batches, controls

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.core import Params


@dataclass(frozen=True, slots=True)
class Descent:
    """SGD with momentum and weight decay as ``torch.optim.SGD`` has them, on ``f(y) + proximal_mu / 2 * ||y - x||^2``.

    ``batch_size`` says how many steps an epoch has. Control variates that come with a job are added to each gradient;
    see :mod:`desim_fl.learning.controls`. The order is that of the network tasks: proximal term, variates, decay.
    """

    batch_size: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal_mu: float = 0.0

    def outcome(
        self, job: Job, steps: int, examples: int, at: Callable[[Params, int], tuple[float, Params]]
    ) -> Outcome:
        """Do ``steps`` steps; ``at(y, step)`` gives loss and gradient there. The loss is the mean of those before each."""
        if not batches.trainable(job.client, examples, steps):
            return Outcome(job.params, examples=examples)
        epoch_steps = batches.steps_per_epoch(examples, self.batch_size)
        y, velocity, losses = job.params, None, []
        for step in range(steps):
            loss, gradient = at(y, step)
            losses.append(loss)
            velocity = self._moved(velocity, self._corrected(job, y, gradient))
            y = y - batches.rate(job.work.lr, job.work.decay, step // epoch_steps) * velocity
        done = Outcome(y, examples=examples, steps=steps, loss=sum(losses) / steps, bad=None if is_finite(y) else "x")
        return controls.answered(done, job, controls.path(job.work, examples, self.batch_size, steps))

    def _corrected(self, job: Job, y: Params, gradient: Params) -> Params:
        shift: Any = controls.shift(job)
        if self.proximal_mu:
            gradient = gradient + self.proximal_mu * (y - job.params)
        if shift is not None:
            gradient = gradient + shift
        if self.weight_decay:
            gradient = gradient + self.weight_decay * y
        return gradient

    def _moved(self, velocity: Params, gradient: Params) -> Params:
        return gradient if velocity is None or not self.momentum else self.momentum * velocity + gradient
