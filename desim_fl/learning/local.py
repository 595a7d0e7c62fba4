"""Local training of one job: mini-batch steps on cross entropy, from the job's parameters, with a fresh optimiser."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch

from desim_fl.learning.batches import rate
from desim_fl.learning.optimizers import OPTIMIZERS, OptimizerSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from desim_fl.core import Work
    from desim_fl.learning.corrections import Balance, Correction
    from desim_fl.learning.samples import Samples
    from desim_fl.learning.steps import Steps
    from desim_fl.learning.vectors import ModuleState


class Trained(NamedTuple):
    """Optimiser steps really done, the mean of their batch losses (``None`` without a step), whether that was early."""

    steps: int
    loss: float | None
    stopped: bool = False


def train(
    gradients_of: Steps,
    state: ModuleState,
    samples: Samples,
    *,
    sequence: Iterable[tuple[int, NDArray]],
    steps: int,
    work: Work,
    settings: OptimizerSettings,
    correction: Correction | Balance | None = None,
    patience: int | None = None,
) -> Trained:
    """Do ``steps`` optimiser steps on the module of ``gradients_of``, one for each ``(epoch, indices)`` of ``sequence``.

    With ``patience`` training stops at the end of an epoch if the mean loss of so many epochs on end was not below the best
    before (NaN never is). The caller has loaded the model, and keys generators and threads. The loss of a step is that of its batch before
    the step, without what ``correction`` stands for. The values are those of a plain loop with ``torch.optim`` bit for
    bit.
    """
    gradients_of.module.train()
    gradients_of.reload()
    optimizer = OPTIMIZERS[settings.name](state.parameters, settings)
    losses, began, stopped = [], 0, False
    watch = EpochLosses(patience)
    for epoch, indices in islice(sequence, steps):
        if stopped := watch.ended(epoch, losses):
            break
        if settings.each_epoch and epoch != began:
            optimizer, began = OPTIMIZERS[settings.name](state.parameters, settings), epoch
        loss, gradients = gradients_of(samples.chosen(indices))
        if correction is not None:
            gradients = correction(gradients, state.parameters)
        optimizer.step(gradients, rate(work.lr, work.decay, epoch))
        losses.append(loss)
    return Trained(len(losses), mean(losses) if losses else None, stopped)


def mean(losses: Sequence[Tensor]) -> float:
    """Mean of batch losses, in double precision."""
    return float(torch.stack(list(losses)).double().mean())


class EpochLosses:
    """Follows the mean loss of each epoch; ``ended`` is asked at every step, before it."""

    def __init__(self, patience: int | None) -> None:
        self._patience = patience
        self._epoch = self._first = self._waited = 0
        self._best = float("inf")

    def ended(self, epoch: int, losses: Sequence[Tensor]) -> bool:
        """Tell whether the epochs before this one were in vain for too long."""
        if self._patience is None or epoch == self._epoch:
            return False
        found = mean(losses[self._first :])
        self._epoch, self._first = epoch, len(losses)
        better = found < self._best
        self._best, self._waited = (found, 0) if better else (self._best, self._waited + 1)
        return self._waited >= self._patience
