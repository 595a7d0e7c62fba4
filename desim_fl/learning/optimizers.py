"""SGD and Adam, step for step and bit for bit as ``torch.optim`` computes them on the CPU.

Written here because the first optimiser object of ``torch.optim`` imports torch's compiler, which takes one to two
seconds, and because a fresh optimiser a job need not be an object with groups and hooks. A parameter that got no
gradient is left alone, weight decay included, as in ``torch.optim``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from desim_fl.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """Which optimiser a job makes afresh; ``momentum`` belongs to "sgd". The rate comes with each job."""

    name: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0

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

    def _moved(self, places: list[int], gradients: list[Tensor]) -> list[Tensor]:
        """Add each gradient to its velocity; the first one starts it."""
        moved = []
        for place, gradient in zip(places, gradients, strict=True):
            known = self.velocity.get(place)
            if known is None:
                self.velocity[place] = gradient.clone()
            else:
                known.mul_(self.momentum).add_(gradient)
            moved.append(self.velocity[place])
        return moved

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], lr: float) -> None:
        """Do one step with learning rate ``lr``."""
        places = [place for place, gradient in enumerate(gradients) if gradient is not None]
        parameters = [self.parameters[place] for place in places]
        changes = [gradient for gradient in gradients if gradient is not None]
        if not places:
            return
        if self.weight_decay:
            changes = torch._foreach_add(changes, parameters, alpha=self.weight_decay)  # noqa: SLF001  # pyright: ignore[reportPrivateImportUsage]
        if self.momentum:
            changes = self._moved(places, list(changes))
        torch._foreach_add_(parameters, changes, alpha=-lr)  # pyright: ignore[reportPrivateImportUsage]


class Adam:
    """``torch.optim.Adam(lr, weight_decay=weight_decay)`` with its other defaults (Kingma and Ba, ICLR 2015)."""

    BETAS = (0.9, 0.999)
    EPSILON = 1e-8

    def __init__(self, parameters: Sequence[Tensor], settings: OptimizerSettings) -> None:
        self.parameters = parameters
        self.weight_decay = settings.weight_decay
        self.moments: dict[int, tuple[Tensor, Tensor]] = {}
        self.counts: dict[int, int] = {}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], lr: float) -> None:
        """Do one step with learning rate ``lr``."""
        for place, gradient in enumerate(gradients):
            if gradient is not None:
                self._move(place, gradient, lr)

    def _move(self, place: int, gradient: Tensor, lr: float) -> None:
        parameter = self.parameters[place]
        if self.weight_decay:
            gradient = gradient.add(parameter, alpha=self.weight_decay)
        if place not in self.moments:
            self.moments[place] = (torch.zeros_like(parameter), torch.zeros_like(parameter))
        count = self.counts[place] = self.counts.get(place, 0) + 1
        (first, second), (beta1, beta2) = self.moments[place], self.BETAS
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (1 - beta2**count) ** 0.5  # not math.sqrt: a last bit may differ from torch.optim
        parameter.addcdiv_(first, (second.sqrt() / scale).add_(self.EPSILON), value=-(lr / (1 - beta1**count)))


OPTIMIZERS: dict[str, Callable[[Sequence[Tensor], OptimizerSettings], Optimizer]] = {"sgd": Sgd, "adam": Adam}
