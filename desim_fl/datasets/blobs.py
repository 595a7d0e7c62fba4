"""Made data: one Gaussian cluster for each class, drawn from keyed streams, the same on every call.

Centres are standard normal; a sample is its class's centre plus ``spread`` times standard normal noise. Every run of
``classes`` consecutive samples holds each class once, in random order, so classes are balanced, and a larger set
begins with the smaller one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from desim_fl.draws import Purpose, stream

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The nth of each stream of Purpose.DATA, client 0. Never renumbered.
CENTRES, TRAIN_LABELS, TRAIN_NOISE, TEST_LABELS, TEST_NOISE = range(5)


def labels(seed: int, nth: int, count: int, classes: int) -> NDArray[np.int64]:
    """``count`` balanced class numbers."""
    rows = -(-count // classes)
    ordered = np.tile(np.arange(classes, dtype=np.int64), (rows, 1))
    return stream(seed, Purpose.DATA, 0, nth).permuted(ordered, axis=1).reshape(-1)[:count]


def samples(seed: int, nth: int, classes: NDArray[np.int64], centres: NDArray, spread: float) -> NDArray[np.float32]:
    """One row of features (float32) for each entry of ``classes``."""
    noise = stream(seed, Purpose.DATA, 0, nth).standard_normal((len(classes), centres.shape[1]))
    return (centres[classes] + spread * noise).astype(np.float32)


def centres(seed: int, classes: int, features: int) -> NDArray[np.float64]:
    """Draw the middle of each class's cluster, shape ``(classes, features)``."""
    return stream(seed, Purpose.DATA, 0, CENTRES).standard_normal((classes, features))
