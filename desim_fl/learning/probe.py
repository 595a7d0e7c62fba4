"""A dry step on a throw-away model, so that what cannot be trained is an error before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from desim_fl.draws import Purpose
from desim_fl.errors import DesimError, RefusedError, ScenarioError
from desim_fl.learning.randomness import generators, guarded, keyed
from desim_fl.learning.steps import batch_norm_spared
from desim_fl.learning.vectors import ModuleState

if TYPE_CHECKING:
    from torch import nn

    from desim_fl.learning.samples import Samples


def _scores(module: nn.Module, batch: Samples) -> torch.Tensor:
    with batch_norm_spared(module, len(batch.labels)):
        return module(batch.inputs.clone())  # as in training, where a batch is a copy: some models write into it


def check_repeatable(module: nn.Module, batch: Samples, seed: int) -> bool:
    """Run the same training step twice, and one evaluation; on the CPU both steps must give the same bits.

    Returns whether an evaluation writes into the samples it is given. Raises ``RefusedError`` for a model that keeps state elsewhere than in parameters and buffers: its results would
    depend on where and in which order jobs ran. Raises ``ScenarioError`` if it cannot be evaluated.
    """
    state = ModuleState(module)
    vector, buffers, device = state.vector(), state.buffers(), batch.labels.device
    steps = []
    for _ in range(2):
        state.load(vector, buffers)
        module.train()
        with keyed(seed, Purpose.TRAINING, 0, 0, device):
            scores = _scores(module, batch)
            gradients = torch.autograd.grad(scores.sum(), state.parameters, allow_unused=True)
        steps.append([scores.detach(), *(gradient for gradient in gradients if gradient is not None)])
    first, second = steps
    same = len(first) == len(second) and all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    if not same and device.type == "cpu":
        raise RefusedError(
            "[model] gives different results for the same step done twice: it keeps state in Python, which does not "
            "travel with parameters and buffers; register it as a buffer"
        )
    module.eval()
    lent = batch.inputs.clone()
    before = lent._version  # noqa: SLF001  (torch's count of writes, views included)
    try:
        with torch.no_grad(), keyed(seed, Purpose.EVALUATION, 0, 0, device):
            module(lent)
    except Exception as error:
        raise ScenarioError(f"[model] cannot be evaluated: {error!r}") from error
    return lent._version != before  # noqa: SLF001


def draws_random(module: nn.Module, batch: Samples, classes: int, seed: int) -> bool:
    """Run one forward and backward pass in training mode; tell whether it drew from torch's generators.

    The module is used up: its buffers may have changed. Raises ``ScenarioError`` if it fails on the data or gives
    anything but one score a class, ``RefusedError`` if it draws from Python's or NumPy's global generator.
    """
    device = batch.labels.device
    module.train()
    with guarded("[model] in training"), keyed(seed, Purpose.TRAINING, 0, 0, device):
        before = [generator.get_state() for generator in generators(device)]
        try:
            scores = _scores(module, batch)
            scores.sum().backward()
        except DesimError:
            raise
        except Exception as error:
            shape = tuple(batch.inputs.shape)
            raise ScenarioError(f"[model] cannot train on inputs of shape {shape} ({error!r})") from error
        after = [generator.get_state() for generator in generators(device)]
    n = len(batch.labels)
    if scores.ndim != 2 or scores.shape[0] != n or scores.shape[1] < classes:  # noqa: PLR2004  (samples, classes)
        raise ScenarioError(
            f"[model] gave scores of shape {tuple(scores.shape)} for {n} samples; ({n}, {classes}) is needed"
        )
    return any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def draws_in_evaluation(module: nn.Module, batch: Samples, seed: int) -> bool:
    """Evaluate once; tell whether that drew from torch's generators."""
    device = batch.labels.device
    module.eval()
    with torch.no_grad(), keyed(seed, Purpose.EVALUATION, 0, 0, device):
        before = [generator.get_state() for generator in generators(device)]
        module(batch.inputs.clone())
        after = [generator.get_state() for generator in generators(device)]
    return any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
