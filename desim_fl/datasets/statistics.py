"""Mean and standard deviation of images by channel, in units where a pixel runs from 0 to 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Channels = tuple[float, ...]


class Published(NamedTuple):
    """What is commonly used for a set, and where that is stated."""

    mean: Channels
    std: Channels
    source: str


_TORCHVISION = "PyTorch's own examples and torchvision's references"
PUBLISHED = {
    "MNIST": Published((0.1307,), (0.3081,), "the MNIST example of PyTorch"),
    "FashionMNIST": Published((0.2860,), (0.3530,), "statistics of the 60,000 training images"),
    "fashion_mnist_6k": Published((0.2860,), (0.3530,), "those of the whole FashionMNIST"),
    "CIFAR10": Published(
        (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "statistics of the 50,000 training images"
    ),
    "CIFAR100": Published(
        (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "statistics of the 50,000 training images"
    ),
    "SVHN": Published((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), "statistics of the 73,257 training images"),
}
WHITE = 255.0
_ROWS = 4096  # at a time


def of(name: str, images: NDArray, how: str) -> tuple[Channels, Channels]:
    """Return mean and deviation by channel: ``published`` (without any: of these images), ``training``, or ``half``.

    ``images`` are uint8 of shape (n, h, w) or (n, h, w, c); for features the answer is (0,), (1,).
    """
    if images.dtype != np.uint8:
        return (0.0,), (1.0,)
    channels = images.shape[3] if images.ndim == 4 else 1  # noqa: PLR2004
    if how == "half":
        return (0.5,) * channels, (0.5,) * channels
    known = PUBLISHED.get(name)
    if how == "published" and known is not None and len(known.mean) == channels:
        return known.mean, known.std
    return computed(images)


def computed(images: NDArray[np.uint8]) -> tuple[Channels, Channels]:
    """Mean and deviation of these images, from exact whole sums; a channel without any variation gets 1."""
    flat = images.reshape(len(images), -1, images.shape[3] if images.ndim == 4 else 1)  # noqa: PLR2004
    count = flat.shape[0] * flat.shape[1]
    total, squares = np.zeros(flat.shape[2], np.int64), np.zeros(flat.shape[2], np.int64)
    for start in range(0, len(flat), _ROWS):
        rows = flat[start : start + _ROWS].astype(np.int64)
        total += rows.sum(axis=(0, 1))
        squares += (rows * rows).sum(axis=(0, 1))
    mean = [int(each) / count for each in total]
    spread = [max(int(square) / count - middle**2, 0.0) ** 0.5 for square, middle in zip(squares, mean, strict=True)]
    return tuple(each / WHITE for each in mean), tuple(each / WHITE if each else 1.0 for each in spread)
