# ruff: noqa: SLF001
# pyright: reportPrivateImportUsage=false
# The underscore functions treat all parameters in one call; torch.optim uses the same.
"""SGD and Adam, step for step and bit for bit as ``torch.optim`` computes them on the CPU.

Written here because the first optimiser object of ``torch.optim`` imports torch's compiler, which takes one to two
seconds, and because a fresh optimiser a job need not be an object with groups and hooks. A parameter that got no
gradient is left alone, weight decay included, as in ``torch.optim``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from desim_fl.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """Which optimiser a job makes afresh; ``momentum`` belongs to "sgd". The rate comes with each job.

    ``proximal_mu`` is the weight of the proximal term of :mod:`desim_fl.learning.corrections` (0 = none), ``gradient_decay``
    the beta of its balanced gradients (``None`` = none).
    """

    name: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    each_epoch: bool = False  # whether it begins anew at every epoch
    gradient_decay: float | None = None

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ScenarioError(f'[training] optimizer = "{self.name}": known are {", ".join(OPTIMIZERS)}')
        if self.momentum and self.name != "sgd":
            raise ScenarioError(f'[training] momentum belongs to optimizer = "sgd", not "{self.name}"')


class Optimizer(Protocol):
    """Changes parameters in place by one step; ``None`` gradients are passed over."""

    def step(self, gradients: Sequence[Tensor | None], lr: float) -> None:
        """Do one step with learning rate ``lr``."""
        ...


class Sgd:
    """``torch.optim.SGD(lr, momentum, weight_decay)``."""

    def __init__(self, parameters: Sequence[Tensor], settings: OptimizerSettings) -> None:
        self.parameters = parameters
        self.momentum = settings.momentum
        self.weight_decay = settings.weight_decay
        self.velocity: dict[int, Tensor] = {}

    def _moved(self, places: list[int], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Add each gradient to its velocity; the first one starts it."""
        fresh = {
            place: gradient for place, gradient in zip(places, gradients, strict=True) if place not in self.velocity
        }
        known = [
            (self.velocity[place], gradient)
            for place, gradient in zip(places, gradients, strict=True)
            if place not in fresh
        ]
        if known:
            moved, by = zip(*known, strict=True)
            torch._foreach_mul_(moved, self.momentum)
            torch._foreach_add_(moved, by)
        self.velocity |= {place: gradient.clone() for place, gradient in fresh.items()}
        return [self.velocity[place] for place in places]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], lr: float) -> None:
        """Do one step with learning rate ``lr``."""
        places = [place for place, gradient in enumerate(gradients) if gradient is not None]
        parameters = [self.parameters[place] for place in places]
        changes = [gradient for gradient in gradients if gradient is not None]
        if not places:
            return
        if self.weight_decay:
            changes = torch._foreach_add(changes, parameters, alpha=self.weight_decay)
        if self.momentum:
            changes = self._moved(places, list(changes))
        torch._foreach_add_(parameters, changes, alpha=-lr)


class Moments(NamedTuple):
    """Adam's state of one parameter: running means of gradient and squared gradient, and the steps it has had."""

    first: Tensor
    second: Tensor
    steps: int


class Adam:
    """``torch.optim.Adam(lr, weight_decay=weight_decay)`` with its other defaults (Kingma and Ba, ICLR 2015)."""

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, parameters: Sequence[Tensor], settings: OptimizerSettings) -> None:
        self.parameters = parameters
        self.weight_decay = settings.weight_decay
        self.moments: dict[int, Moments] = {}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], lr: float) -> None:
        """Do one step with learning rate ``lr``."""
        by_count: dict[int, list[int]] = {}
        for place, gradient in enumerate(gradients):
            if gradient is not None:
                by_count.setdefault(self._counted(place), []).append(place)
        for count, places in by_count.items():
            self._move(places, [gradient for place in places if (gradient := gradients[place]) is not None], count, lr)

    def _counted(self, place: int) -> int:
        """Count a step of a parameter."""
        known = self.moments.get(place)
        if known is None:
            parameter = self.parameters[place]
            known = Moments(torch.zeros_like(parameter), torch.zeros_like(parameter), 0)
        self.moments[place] = known._replace(steps=known.steps + 1)
        return known.steps + 1

    def _move(self, places: list[int], gradients: list[Tensor], count: int, lr: float) -> None:
        """Move parameters that have had the same number of steps."""
        parameters = [self.parameters[place] for place in places]
        first = [self.moments[place].first for place in places]
        second = [self.moments[place].second for place in places]
        if self.weight_decay:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=self.weight_decay))
        beta1, beta2 = self.BETAS
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)
        scale = (1 - beta2**count) ** 0.5  # not math.sqrt: a last bit may differ from torch.optim
        below = torch._foreach_sqrt(second)
        torch._foreach_div_(below, scale)
        torch._foreach_add_(below, self.EPSILON)
        torch._foreach_addcdiv_(parameters, first, below, value=-(lr / (1 - beta1**count)))


OPTIMIZERS: dict[str, Callable[[Sequence[Tensor], OptimizerSettings], Optimizer]] = {"sgd": Sgd, "adam": Adam}
