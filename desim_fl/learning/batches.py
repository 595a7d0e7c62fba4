"""How many steps an epoch has, how large each batch is, and the learning rate of an epoch; never asks the model.

An epoch over n samples has ``ceil(n / batch_size)`` steps: a client smaller than the batch size trains on one small
batch, and no sample is dropped. Where the last batch would hold a single sample (on which BatchNorm cannot train), the
last two batches share their samples as equally as possible: 33 samples in batches of 32 are 17 + 16. The number of
steps stays the same. Batches of one that remain (a client with one sample, ``batch_size`` 1, three samples in batches
of two) are trained with BatchNorm layers in evaluation mode.
"""

from __future__ import annotations

import math
from itertools import count
from typing import TYPE_CHECKING

from desim_fl.errors import LawError, ScenarioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

RATES: dict[str, Callable[[float, int], float]] = {
    "constant": lambda lr, _: lr,
    "inverse_sqrt_epoch": lambda lr, epoch: lr / math.sqrt(epoch + 1),
}


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Count the optimiser steps of one epoch over ``n`` samples (0 for 0)."""
    return -(-n // batch_size)


def plan(n: int, batch_size: int) -> tuple[int, ...]:
    """Return the batch sizes of one epoch over ``n`` samples, by the rule above; they add up to ``n``."""
    full, rest = divmod(n, batch_size)
    if rest == 1 and full:
        shared = batch_size + 1
        return (batch_size,) * (full - 1) + (shared - shared // 2, shared // 2)
    return (batch_size,) * full + ((rest,) if rest else ())


def rate(lr: float | None, decay: str, epoch: int) -> float:
    """Return the learning rate of ``epoch`` (from 0), where ``lr`` is that of the first one.

    Raises ``ScenarioError`` for an unknown decay and ``LawError`` for a dispatched job without a rate.
    """
    if decay not in RATES:
        raise ScenarioError(f"there is no learning rate decay {decay!r}; known are {', '.join(RATES)}")
    if lr is None:
        raise LawError("a dispatched job carries no learning rate; the engine fills Work.lr in")
    return RATES[decay](lr, epoch)


def sequence(indices: NDArray[np.int64], batch_size: int, order: np.random.Generator) -> Iterator[tuple[int, NDArray]]:
    """Yield ``(epoch, indices of one batch)`` without end, each epoch in a new permutation of ``indices``."""
    sizes = plan(len(indices), batch_size)
    for epoch in count():
        shuffled = indices[order.permutation(len(indices))]
        start = 0
        for size in sizes:
            yield epoch, shuffled[start : start + size]
            start += size


def trainable(client: int, n: int, steps: int) -> bool:
    """Tell whether a job of ``steps`` steps over ``n`` samples does any; ``LawError`` if it cannot do them."""
    if steps < 0 or (steps > 0 and n == 0):
        raise LawError(f"client {client} has {n} training samples and was asked for {steps} steps")
    return steps > 0
