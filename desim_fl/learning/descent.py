"""Local SGD of tasks whose gradients have a closed form: floats or NumPy arrays, without torch, local rules included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from desim_fl.algebra import is_finite
from desim_fl.core import Job, Outcome
from desim_fl.learning import batches, controls, gradients

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.core import Params


@dataclass(frozen=True, slots=True)
class Descent:
    """SGD with momentum and weight decay as ``torch.optim.SGD`` has them, on ``f(y) + proximal_mu / 2 * ||y - x||^2``.

    ``batch_size`` says how many steps an epoch has. Control variates that come with a job are added to each gradient;
    see :mod:`desim_fl.learning.controls`. ``gradient_decay`` is the beta of balanced gradients (``None`` = none); see
    :mod:`desim_fl.learning.gradients`. The order is that of the network tasks: proximal term, variates, balance, decay.
    """

    batch_size: int
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    gradient_decay: float | None = None

    def outcome(
        self, job: Job, steps: int, examples: int, at: Callable[[Params, int], tuple[float, Params]]
    ) -> Outcome:
        """Do ``steps`` steps; ``at(y, step)`` gives loss and gradient there. The loss is the mean of those before each."""
        if not batches.trainable(job.client, examples, steps):
            memory = job.memory if self.gradient_decay is not None else None
            return Outcome(job.params, examples=examples, memory=memory)
        epoch_steps = batches.steps_per_epoch(examples, self.batch_size)
        y, velocity, losses, past = job.params, None, [], gradients.remembered(job)
        for step in range(steps):
            loss, gradient = at(y, step)
            losses.append(loss)
            gradient = self._corrected(job, y, gradient)
            if self.gradient_decay is not None:
                gradient, past = gradients.balanced(past, gradient, self.gradient_decay)
            velocity = self._moved(velocity, gradient + self.weight_decay * y if self.weight_decay else gradient)
            y = y - batches.rate(job.work.lr, job.work.decay, step // epoch_steps) * velocity
        done = Outcome(y, examples=examples, steps=steps, loss=sum(losses) / steps, bad=None if is_finite(y) else "x")
        if self.gradient_decay is not None:
            return gradients.kept(done, job, None if past is None else past.told())
        return controls.answered(done, job, controls.path(job.work, examples, self.batch_size, steps))

    def _corrected(self, job: Job, y: Params, gradient: Params) -> Params:
        shift: Any = controls.shift(job)
        if self.proximal_mu:
            gradient = gradient + self.proximal_mu * (y - job.params)
        if shift is not None:
            gradient = gradient + shift
        return gradient

    def _moved(self, velocity: Params, gradient: Params) -> Params:
        return gradient if velocity is None or not self.momentum else self.momentum * velocity + gradient
