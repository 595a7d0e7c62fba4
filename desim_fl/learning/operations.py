"""How much a sample asks of a built-in model, in multiply-adds, without importing torch: what ``plan`` guesses real time from.

Convolutions and linear layers are counted; ReLU, pooling and normalisation are not.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.learning import sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


class Operations(NamedTuple):
    """Multiply-adds of one sample: through the model, and there and back as in a training step."""

    forward: int
    training: int


def _there_and_back(layers: Iterable[int]) -> Operations:
    """Sum over layers; the way back costs each layer twice as much, but for the first, whose input needs no gradient."""
    counts = list(layers)
    return Operations(sum(counts), 3 * sum(counts) - counts[0])


def _convolution(sides: Sequence[int], before: int, after: int, kernel: int = sizes.KERNEL) -> int:
    """One convolution with so many places in its output."""
    return sides[0] * sides[1] * kernel**2 * before * after


def mlp(shape: Sequence[int], classes: int, hidden: Sequence[int] = (64,)) -> Operations:
    """Count ``models.mlp``."""
    return _there_and_back(before * after for before, after in pairwise([sizes.flat_size(shape), *hidden, classes]))


def cnn(shape: Sequence[int], classes: int, channels: Sequence[int] = (8, 16)) -> Operations:
    """Count ``models.cnn``, which halves height and width after every convolution."""
    layers = [
        _convolution([side >> depth for side in shape[1:]], before, after)
        for depth, (before, after) in enumerate(pairwise([shape[0], *channels]))
    ]
    return _there_and_back([*layers, sizes.cnn_features(shape, channels) * classes])


def cnn_gap(shape: Sequence[int], classes: int, width: int = 32, layers: int = 3) -> Operations:
    """Count ``networks.cnn_gap``: 14,676,800 forward for the 28 x 28 grey images and ten classes of MNIST."""
    sizes.check_images("cnn_gap", shape)
    depths = [shape[0], *[width] * (layers - 1)]
    return _there_and_back([*(_convolution(shape[1:], before, width) for before in depths), width * classes])


def lenet5(shape: Sequence[int], classes: int) -> Operations:
    """Count ``networks.lenet5``."""
    features, padding = sizes.lenet5_features(shape), sizes.lenet5_padding(shape)
    first = [side + 2 * padding - 4 for side in shape[1:]]
    second = [side // 2 - 4 for side in first]
    convolutions = [_convolution(first, shape[0], 6, 5), _convolution(second, 6, 16, 5)]
    return _there_and_back([*convolutions, features * 120, 120 * 84, 84 * classes])


def resnet20(shape: Sequence[int], classes: int, norm: str = "batch", groups: int = 8) -> Operations:
    """Count ``networks.resnet20``."""
    sizes.check_images("resnet20", shape)
    del norm, groups
    sides = list(shape[1:])
    layers = [_convolution(sides, shape[0], 16)]
    for before, after, stride in sizes.RESNET20_BLOCKS:
        sides = [-(-side // stride) for side in sides]
        layers += [_convolution(sides, before, after), _convolution(sides, after, after)]
        if stride != 1 or before != after:
            layers.append(_convolution(sides, before, after, 1))
    return _there_and_back([*layers, 64 * classes])


FORMULAS: dict[str, Callable[..., Operations]] = {
    "mlp": mlp,
    "cnn": cnn,
    "cnn_gap": cnn_gap,
    "lenet5": lenet5,
    "resnet20": resnet20,
}


def of(name: str, args: Mapping[str, Any], shape: Sequence[int], classes: int) -> Operations | None:
    """Return what a model as a scenario names it asks for; ``None`` where it is not one of the built-in ones."""
    return FORMULAS[name](shape, classes, **args) if name in FORMULAS else None
