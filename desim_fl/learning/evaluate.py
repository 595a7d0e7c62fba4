"""Scoring a model without leaving a trace: no gradients, no generators, no mode changed afterwards."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from desim_fl.core import Score
from desim_fl.errors import RunError

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
def score(module: nn.Module, split: str, samples: Samples, *, lend_copies: bool = False) -> Score:
    """Return mean cross entropy and accuracy over all samples; the caller has loaded the model.

    A model that writes into its inputs is lent copies. Raises ``RunError`` if one that is not does so: the data would
    be other data from then on.
    """
    loss = torch.zeros((), dtype=torch.float64, device=samples.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=samples.labels.device)
    with evaluation_mode(module):
        for batch in samples.slices(BATCH):
            inputs = batch.inputs.clone() if lend_copies else batch.inputs
            before = batch.inputs._version  # noqa: SLF001  (torch's count of writes, views included)
            scores = module(inputs)
            if batch.inputs._version != before:  # noqa: SLF001
                raise RunError(
                    f"the model writes into the {split} samples in evaluation, though it did not in a dry step; have it "
                    "make new tensors (no inplace = True, no x += ... on its inputs)"
                )
            loss += nn.functional.cross_entropy(scores, batch.labels, reduction="sum")
            correct += (scores.argmax(dim=1) == batch.labels).sum()
    n = len(samples.labels)
    return Score(split, float(loss) / n, int(correct) / n, n)
