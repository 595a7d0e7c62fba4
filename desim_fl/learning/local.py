"""Local training of one job: mini-batch steps on cross entropy, from the job's parameters, with a fresh optimiser."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch

from desim_fl.learning.batches import rate
from desim_fl.learning.optimizers import OPTIMIZERS, OptimizerSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from desim_fl.core import Work
    from desim_fl.learning.corrections import Correction
    from desim_fl.learning.samples import Samples
    from desim_fl.learning.steps import Steps
    from desim_fl.learning.vectors import ModuleState


class Trained(NamedTuple):
    """Optimiser steps really done, and the mean of their batch losses (``None`` without a step)."""

    steps: int
    loss: float | None


def train(
    gradients_of: Steps,
    state: ModuleState,
    samples: Samples,
    *,
    sequence: Iterable[tuple[int, NDArray]],
    steps: int,
    work: Work,
    settings: OptimizerSettings,
    correction: Correction | None = None,
) -> Trained:
    """Do ``steps`` optimiser steps on the module of ``gradients_of``, one for each ``(epoch, indices)`` of ``sequence``.

    The caller has loaded the model, and keys generators and threads. The loss of a step is that of its batch before
    the step, without what ``correction`` stands for. The values are those of a plain loop with ``torch.optim`` bit for
    bit.
    """
    gradients_of.module.train()
    gradients_of.reload()
    optimizer = OPTIMIZERS[settings.name](state.parameters, settings)
    losses = []
    for epoch, indices in islice(sequence, steps):
        loss, gradients = gradients_of(samples.chosen(indices))
        if correction is not None:
            gradients = correction(gradients, state.parameters)
        optimizer.step(gradients, rate(work.lr, work.decay, epoch))
        losses.append(loss)
    return Trained(len(losses), float(torch.stack(losses).double().mean()) if losses else None)
