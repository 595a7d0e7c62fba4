"""The data set that a scenario names: its labels, which ``plan`` needs, and the whole of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl import datasets
from desim_fl.datasets import Dataset, Labels, files, idx, sample_shape, statistics
from desim_fl.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT_TEST_SHARE = 0.2
MADE = ("fashion_mnist_6k", "blobs")
_SETTINGS = ("examples", "test_examples", "normalize", "test_share", "validation_share")


class Read(NamedTuple):
    """What a reader found; images are empty where only labels were asked for, ``test_labels`` is ``None`` without such."""

    train_images: NDArray
    train_labels: NDArray[np.int64]
    test_images: NDArray | None
    test_labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    shape: tuple[int, ...]


def labels(table: Any, seed: int) -> Labels:
    """Return the labels of a scenario's ``[data]``, without torch in this process. Raises ``DataError``."""
    if table.name in MADE:
        return datasets.labels(table.name, seed=seed, **options(table))
    found = _divided(table, _labels_of(table))
    return Labels(found.train_labels, _known(found.test_labels), len(found.class_names), found.class_names, found.shape)


def whole(table: Any, seed: int) -> Dataset:
    """Return a scenario's ``[data]`` with all images, read-only; raises ``DataError``."""
    if table.name in MADE:
        return datasets.load(table.name, seed=seed, **options(table))
    found = _divided(table, _whole_of(table))
    mean, std = statistics.of(table.name, found.train_images, table.normalize)
    made = Dataset(
        name=table.name,
        train_images=found.train_images,
        train_labels=found.train_labels,
        test_images=_known(found.test_images),
        test_labels=_known(found.test_labels),
        classes=len(found.class_names),
        class_names=found.class_names,
        mean=mean,
        std=std,
        sha256="",
    )
    return datasets.sealed(made)


def options(table: Any, *without: str) -> dict[str, Any]:
    """Return the entries of a table that are set, as keyword arguments."""
    apart = {"name", "validation_share", "client_test_share", *without}
    return {key: value for key, value in table.model_dump(exclude_none=True).items() if key not in apart}


def _known(array: NDArray | None) -> NDArray:
    if array is None:
        raise DataError("[data] has no test part")  # _divided makes one where there is none
    return array


# ---- who reads what


def _labels_of(table: Any) -> Read:
    """Labels and the shape of a sample; images stay where they are."""
    if table.name == "file":
        return _of_file(table, first=1)
    places = _idx(table)
    if places is not None:
        return _of_idx(table.name, places, header_only=True)
    from desim_fl.learning.vision_labels import labels as asked  # noqa: PLC0415  (starts a child process)

    known, own_test = asked(source(table))
    return Read(np.zeros(0), known.train, None, known.test if own_test else None, known.class_names, known.shape)


def _whole_of(table: Any) -> Read:
    if table.name == "file":
        return _of_file(table, first=None)
    places = _idx(table)
    if places is not None:
        return _of_idx(table.name, places, header_only=False)
    from desim_fl.learning import vision  # noqa: PLC0415  (imports torchvision)

    return Read(*vision.read(vision.Source(*source(table))))


def source(table: Any) -> tuple[Any, ...]:
    """Return what :class:`desim_fl.learning.vision.Source` is made of."""
    return (table.name, table.folder, getattr(table, "args", {}), table.image_size, getattr(table, "download", False))


def _idx(table: Any) -> dict[str, Path] | None:
    """Files of a set that need no torchvision; ``None`` where there are none, or more is asked for than they hold."""
    if table.name not in idx.CLASS_NAMES or table.args or table.image_size is not None:
        return None
    return idx.found(Path(table.folder), table.name)


def _of_idx(name: str, places: dict[str, Path], *, header_only: bool) -> Read:
    arrays = {role: idx.read(path, header_only=header_only and "images" in role) for role, path in places.items()}
    for part in ("train", "test"):
        images, marks = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.ndim != 3 or marks.ndim != 1 or len(images) != len(marks):  # noqa: PLR2004
            raise DataError(f"{places[f'{part}_images']}: {images.shape} images do not go with {marks.shape} labels")
    names = idx.CLASS_NAMES[name]
    marks = [files.whole(arrays[f"{part}_labels"], str(places[f"{part}_labels"])) for part in ("train", "test")]
    if max(int(each.max()) for each in marks) >= len(names):
        raise DataError(f"{places['train_labels']}: {name} has {len(names)} classes, these labels more")
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise DataError(f"{places['train_images']}: training and test images differ in size")
    shape = sample_shape(arrays["train_images"])
    return Read(arrays["train_images"], marks[0], arrays["test_images"], marks[1], names, shape)


def _of_file(table: Any, first: int | None) -> Read:
    found = files.read(Path(table.path), image_size=table.image_size, first=first)
    marks = [each for each in (found.train_labels, found.test_labels) if each is not None]
    classes = max(int(each.max()) for each in marks) + 1
    shape = sample_shape(found.train_images)
    if found.test_images is not None and sample_shape(found.test_images) != shape:
        raise DataError(
            f"{table.path}: training samples have shape {shape}, test samples {sample_shape(found.test_images)}"
        )
    return Read(*found, tuple(str(number) for number in range(classes)), shape)


# ---- parts


def _divided(table: Any, found: Read) -> Read:
    """Split a test part off where there is none, and keep the first so many of each."""
    if found.test_labels is not None:
        if table.test_share is not None:
            raise DataError(f"[data] test_share must not be given: {table.name} has a test part of its own")
        return _cut(table, found)
    share = DEFAULT_TEST_SHARE if table.test_share is None else table.test_share
    train, test = datasets.held_out(len(found.train_labels), share)
    if len(found.train_images) == len(found.train_labels):
        found = found._replace(train_images=found.train_images[train], test_images=found.train_images[test])
    split = found._replace(train_labels=found.train_labels[train], test_labels=found.train_labels[test])
    return _cut(table, split)


def _cut(table: Any, found: Read) -> Read:
    for key, part in (("examples", found.train_labels), ("test_examples", found.test_labels)):
        wanted = getattr(table, key)
        if wanted is not None and part is not None and wanted > len(part):
            raise DataError(f"[data] {key} = {wanted}: {table.name} has {len(part)}")
    train, test = slice(table.examples), slice(table.test_examples)
    return found._replace(
        train_images=found.train_images[train],
        train_labels=found.train_labels[train],
        test_images=None if found.test_images is None else found.test_images[test],
        test_labels=None if found.test_labels is None else found.test_labels[test],
    )
