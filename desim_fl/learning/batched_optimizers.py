"""SGD and Adam on the stacked parameters of several jobs: the formulas of :mod:`optimizers`, one row a job.

All jobs of a stack start together and never pause, so one step count serves all of them. Only the first ``active``
rows of anything are read or written: a job that has ended keeps its exact parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from desim_fl.learning.optimizers import Adam

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from desim_fl.learning.optimizers import OptimizerSettings


class Rate(NamedTuple):
    """Learning rate of one step: a number for all active jobs, or (where that is ``None``) one for each, shape (n,)."""

    common: float | None
    each: Tensor | None = None

    def beside(self, tensor: Tensor) -> Tensor:
        """One rate a row, shaped so that it multiplies the rows of ``tensor``."""
        assert self.each is not None
        return self.each.view(-1, *(1,) * (tensor.ndim - 1))


class BatchedOptimizer(Protocol):
    """Changes the first rows of stacked parameters in place by one step."""

    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rate: Rate) -> None:
        """Do one step; ``parameters`` are the active rows, and ``gradients`` belong to them."""
        ...


class BatchedSgd:
    """SGD with momentum and weight decay as in :class:`optimizers.Sgd`."""

    def __init__(self, settings: OptimizerSettings) -> None:
        self.momentum, self.weight_decay = settings.momentum, settings.weight_decay
        self.velocity: list[Tensor] | None = None

    def _moved(self, gradients: list[Tensor]) -> list[Tensor]:
        """Add gradients to the velocities; the first ones start them."""
        if self.velocity is None:
            self.velocity = [gradient.clone() for gradient in gradients]
            return self.velocity
        active = [known[: len(gradient)] for known, gradient in zip(self.velocity, gradients, strict=True)]
        torch._foreach_mul_(active, self.momentum)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(active, gradients)  # pyright: ignore[reportPrivateImportUsage]
        return active

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rate: Rate) -> None:
        """Do one step with the rates given."""
        targets, changes = list(parameters), list(gradients)
        if self.weight_decay:
            changes = list(torch._foreach_add(changes, targets, alpha=self.weight_decay))  # noqa: SLF001  # pyright: ignore[reportPrivateImportUsage]
        if self.momentum:
            changes = self._moved(changes)
        if rate.common is not None:
            torch._foreach_add_(targets, changes, alpha=-rate.common)  # pyright: ignore[reportPrivateImportUsage]
            return
        for target, change in zip(targets, changes, strict=True):
            target.sub_(change * rate.beside(change))


class BatchedAdam:
    """Adam with weight decay as in :class:`optimizers.Adam`."""

    def __init__(self, settings: OptimizerSettings) -> None:
        self.weight_decay = settings.weight_decay
        self.moments: list[tuple[Tensor, Tensor]] | None = None
        self.count = 0

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rate: Rate) -> None:
        """Do one step with the rates given."""
        self.count += 1
        if self.moments is None:
            self.moments = [(torch.zeros_like(value), torch.zeros_like(value)) for value in parameters]
        for parameter, gradient, moments in zip(parameters, gradients, self.moments, strict=True):
            self._move(parameter, gradient, moments, rate)

    def _move(self, parameter: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], rate: Rate) -> None:
        if self.weight_decay:
            gradient = gradient.add(parameter, alpha=self.weight_decay)
        beta1, beta2 = Adam.BETAS
        first, second = (moment[: len(gradient)] for moment in moments)
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        below = (second.sqrt() / (1 - beta2**self.count) ** 0.5).add_(Adam.EPSILON)
        unbiased = 1 - beta1**self.count
        if rate.common is not None:
            parameter.addcdiv_(first, below, value=-(rate.common / unbiased))
        else:
            parameter.sub_(first.div(below).mul_(rate.beside(first) / unbiased))


BATCHED: dict[str, Callable[[OptimizerSettings], BatchedOptimizer]] = {"sgd": BatchedSgd, "adam": BatchedAdam}
