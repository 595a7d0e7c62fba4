"""Data that needs no download: a real image set that travels inside the package, and made Gaussian clusters.

Only NumPy is needed, so that ``plan`` knows labels and sizes without torch. ``labels`` is the cheap form of ``load``:
it never touches images or features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from desim_fl.datasets import blobs
from desim_fl.datasets.archive import member
from desim_fl.datasets.idx import CLASS_NAMES
from desim_fl.draws import Purpose, stream
from desim_fl.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FASHION_CLASSES = CLASS_NAMES["FashionMNIST"]
TEST_PART = 5  # the nth of the stream of Purpose.DATA that splits a test part off; blobs has those below
FASHION_TRAIN = 6_000


@dataclass(frozen=True, slots=True)
class Dataset:
    """A whole data set in memory.

    Images are uint8 of shape ``(n, h, w)`` or ``(n, h, w, c)``, features float32 of shape ``(n, features)``; labels
    are int64 of shape ``(n,)``. ``mean`` and ``std`` (one a channel, in units where a pixel runs from 0 to 1)
    normalise images; features are used as they are. ``sha256`` covers all four arrays.
    """

    name: str
    train_images: NDArray
    train_labels: NDArray[np.int64]
    test_images: NDArray
    test_labels: NDArray[np.int64]
    classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str

    @property
    def shape(self) -> tuple[int, ...]:
        """What a model sees of one sample: ``(channels, height, width)`` or ``(features,)``."""
        return sample_shape(self.train_images)


class Labels(NamedTuple):
    """What can be known of a data set without its images: int64 labels, classes, and the shape of one sample."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    classes: int
    class_names: tuple[str, ...]
    shape: tuple[int, ...]


def sample_shape(images: NDArray) -> tuple[int, ...]:
    """``(channels, height, width)`` of images, ``(features,)`` of feature rows."""
    if images.ndim == 4:  # noqa: PLR2004  (count, height, width, channels)
        return (images.shape[3], images.shape[1], images.shape[2])
    return (1, *images.shape[1:]) if images.ndim == 3 else images.shape[1:]  # noqa: PLR2004


def content_hash(*arrays: NDArray) -> str:
    """sha256 over kind, shape and little-endian bytes of each array in turn."""
    digest = hashlib.sha256()
    for array in arrays:
        plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{plain.dtype.str}{plain.shape}".encode())
        digest.update(plain.data)
    return digest.hexdigest()


def sealed(dataset: Dataset) -> Dataset:
    """Return it with the hash of its content, and arrays that nobody can change by accident."""
    arrays = (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
    for array in arrays:
        array.flags.writeable = False
    return replace(dataset, sha256=content_hash(*arrays))


def held_out(count: int, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split sample numbers in (training, test), both ascending, the same way for every seed.

    Raises ``DataError`` where a part would be empty.
    """
    held = round(share * count)
    if not 0 < held < count:
        raise DataError(f"[data] test_share = {share:g} of {count} samples leaves one part empty")
    shuffled = stream(0, Purpose.DATA, 0, TEST_PART).permutation(count)
    return np.sort(shuffled[held:]), np.sort(shuffled[:held])


def _fashion_labels(*, seed: int, examples: int | None = None) -> Labels:
    del seed  # real data: the same for every seed
    if examples is not None and not 1 <= examples <= FASHION_TRAIN:
        raise DataError(f"[data] examples = {examples}: fashion_mnist_6k has {FASHION_TRAIN} training images")
    train = _embedded_labels("train_labels")[:examples]
    return Labels(train, _embedded_labels("test_labels"), 10, FASHION_CLASSES, (1, 28, 28))


@cache
def _embedded_labels(name: str) -> NDArray[np.int64]:
    """Labels of the embedded images, read once a process: a study of timelines asks for them in every run."""
    labels = member(name).astype(np.int64)
    labels.setflags(write=False)
    return labels


def _fashion(*, seed: int, examples: int | None = None) -> Dataset:
    known = _fashion_labels(seed=seed, examples=examples)
    return Dataset(
        name="fashion_mnist_6k",
        train_images=member("train_images")[:examples],
        train_labels=known.train,
        test_images=member("test_images"),
        test_labels=known.test,
        classes=known.classes,
        class_names=known.class_names,
        mean=(0.2860,),  # published statistics of the whole training set
        std=(0.3530,),
        sha256="",
    )


def _blob_labels(
    *,
    seed: int,
    examples: int = 2_000,
    test_examples: int = 500,
    classes: int = 10,
    features: int = 20,
    spread: float = 1,
) -> Labels:
    if min(examples, test_examples, classes, features) < 1 or not 0 <= spread < float("inf"):
        raise DataError("blobs need at least one example, test example, class and feature, and a finite spread >= 0")
    train = blobs.labels(seed, blobs.TRAIN_LABELS, examples, classes)
    test = blobs.labels(seed, blobs.TEST_LABELS, test_examples, classes)
    return Labels(train, test, classes, tuple(str(value) for value in range(classes)), (features,))


def _blobs(*, seed: int, features: int = 20, spread: float = 1, **counts: int) -> Dataset:
    known = _blob_labels(seed=seed, features=features, spread=spread, **counts)
    centres = blobs.centres(seed, known.classes, features)
    return Dataset(
        name="blobs",
        train_images=blobs.samples(seed, blobs.TRAIN_NOISE, known.train, centres, spread),
        train_labels=known.train,
        test_images=blobs.samples(seed, blobs.TEST_NOISE, known.test, centres, spread),
        test_labels=known.test,
        classes=known.classes,
        class_names=known.class_names,
        mean=(0.0,),
        std=(1.0,),
        sha256="",
    )


LOADERS: dict[str, Callable[..., Dataset]] = {"fashion_mnist_6k": _fashion, "blobs": _blobs}
LABELS: dict[str, Callable[..., Labels]] = {"fashion_mnist_6k": _fashion_labels, "blobs": _blob_labels}


def _known(name: str) -> None:
    if name not in LOADERS:
        raise DataError(f"there is no data set {name!r}; known are {', '.join(sorted(LOADERS))}")


def load(name: str, *, seed: int, **options: float | None) -> Dataset:
    """Return the whole data set ``name``, with read-only arrays.

    ``fashion_mnist_6k`` takes ``examples`` (only the first so many training images); ``blobs`` takes ``examples``,
    ``test_examples``, ``classes``, ``features``, ``spread``. Raises ``DataError`` for an unknown name, a value out
    of range or an unreadable archive.
    """
    _known(name)
    return sealed(LOADERS[name](seed=seed, **options))


def labels(name: str, *, seed: int, **options: float | None) -> Labels:
    """Return the labels that ``load`` with the same arguments would give, without making or reading any image."""
    _known(name)
    return LABELS[name](seed=seed, **options)
