"""Scoring a model without leaving a trace: no gradients, no generators, no mode changed afterwards."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from desim_fl.core import Score

if TYPE_CHECKING:
    from collections.abc import Iterator

    from desim_fl.learning.samples import Samples

BATCH = 500  # fixed: the batch size decides how float sums are grouped


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put every part of the module in evaluation mode, and each back in its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@torch.inference_mode()
def score(module: nn.Module, split: str, samples: Samples) -> Score:
    """Return mean cross entropy and accuracy over all samples; the caller has loaded the model."""
    loss = torch.zeros((), dtype=torch.float64, device=samples.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=samples.labels.device)
    with evaluation_mode(module):
        for batch in samples.slices(BATCH):
            scores = module(batch.inputs)
            loss += nn.functional.cross_entropy(scores, batch.labels, reduction="sum")
            correct += (scores.argmax(dim=1) == batch.labels).sum()
    n = len(samples.labels)
    return Score(split, float(loss) / n, int(correct) / n, n)
