"""Local training of one job: mini-batch steps on cross entropy, from the job's parameters, with a fresh optimiser."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from desim_fl.learning.batches import rate
from desim_fl.learning.optimizers import OPTIMIZERS, OptimizerSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from desim_fl.core import Work
    from desim_fl.learning.samples import Samples
    from desim_fl.learning.vectors import ModuleState


class Trained(NamedTuple):
    """Optimiser steps really done, and the mean of their batch losses (``None`` without a step)."""

    steps: int
    loss: float | None


@contextmanager
def batch_norm_spared(module: nn.Module, batch: int) -> Iterator[None]:
    """Put BatchNorm layers in evaluation mode around a batch of one sample, which has no variance to learn from."""
    layers = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training] if batch == 1 else []
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True


def batch_loss(module: nn.Module, batch: Samples) -> torch.Tensor:
    """Return the mean cross entropy of one batch; scores may be logits or log-probabilities."""
    with batch_norm_spared(module, len(batch.labels)):
        return nn.functional.cross_entropy(module(batch.inputs), batch.labels)


def train(
    module: nn.Module,
    state: ModuleState,
    samples: Samples,
    *,
    sequence: Iterable[tuple[int, NDArray]],
    steps: int,
    work: Work,
    settings: OptimizerSettings,
) -> Trained:
    """Do ``steps`` optimiser steps on ``module``, one for each ``(epoch, indices)`` of ``sequence``.

    The caller has loaded the model, and keys generators and threads. The loss of a step is that of its batch before
    the step. The values are those of a plain loop with ``torch.optim`` bit for bit.
    """
    module.train()
    optimizer = OPTIMIZERS[settings.name](state.parameters, settings)
    losses = []
    for epoch, indices in islice(sequence, steps):
        loss = batch_loss(module, samples.chosen(indices))
        # grad() instead of backward(): nothing accumulates, nothing has to be zeroed.
        gradients = torch.autograd.grad(loss, state.parameters, allow_unused=True)
        optimizer.step(gradients, rate(work.lr, work.decay, epoch))
        losses.append(loss.detach())
    return Trained(len(losses), float(torch.stack(losses).double().mean()) if losses else None)
