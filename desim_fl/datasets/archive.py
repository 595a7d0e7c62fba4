"""How the embedded image set was made and how it is read.

``python -m desim_fl.datasets.archive SOURCE TARGET`` writes the archive again from the four gzipped IDX files of the
whole set in folder ``SOURCE``: the first 600 training and 100 test images of each class, kept in their original order.
Zip timestamps and attributes are fixed, so that the same zlib gives the same bytes.
"""

from __future__ import annotations

import io
import sys
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from desim_fl.datasets.idx import read as read_idx
from desim_fl.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PER_CLASS = {"train": 600, "test": 100}
PREFIX = {"train": "train", "test": "t10k"}
EMBEDDED = Path(__file__).parent / "fashion_mnist_6k.npz"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip file can state


def first_of_each_class(labels: NDArray[np.uint8], count: int) -> NDArray[np.int32]:
    """Find the first ``count`` samples of every class: indices, ascending; ``DataError`` if a class has fewer."""
    chosen = [np.flatnonzero(labels == value)[:count] for value in np.unique(labels)]
    if any(len(found) < count for found in chosen):
        raise DataError(f"a class has fewer than {count} samples")
    return np.sort(np.concatenate(chosen)).astype(np.int32)


def subset(source: Path, split: str, count: int) -> dict[str, NDArray]:
    """Images, labels and original indices of one split, named as they stand in the archive."""
    labels = read_idx(source / f"{PREFIX[split]}-labels-idx1-ubyte.gz")
    images = read_idx(source / f"{PREFIX[split]}-images-idx3-ubyte.gz")
    indices = first_of_each_class(labels, count)
    return {f"{split}_images": images[indices], f"{split}_labels": labels[indices], f"{split}_indices": indices}


def write(target: Path, arrays: dict[str, NDArray]) -> None:
    """Write arrays as a compressed ``.npz`` whose bytes depend on nothing but the arrays and zlib."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(entry, content.getvalue(), compresslevel=9)


def make(source: Path, target: Path, counts: dict[str, int] | None = None) -> None:
    """Write the subset of the whole set in ``source``; ``counts`` are the samples of each class and split."""
    arrays: dict[str, NDArray] = {}
    for split, count in (counts or PER_CLASS).items():
        arrays |= subset(source, split, count)
    write(target, arrays)


def member(name: str, path: Path = EMBEDDED) -> NDArray:
    """One array of the archive; nothing else is decompressed. ``DataError`` if the file is not there."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, ValueError) as error:
        raise DataError(f"{path}: the embedded data cannot be read ({error}); reinstall desim-fl") from error


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
