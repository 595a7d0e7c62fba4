"""IDX files, the format of MNIST and the sets made after it, plain or gzipped.

Read here with NumPy, so that ``plan`` needs no torch for them, and so that files can lie where a package put them.
"""

from __future__ import annotations

import gzip
import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from desim_fl.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
_DIGITS = tuple(f"{digit} - {word}" for digit, word in enumerate("zero one two three four five six seven eight nine".split()))  # noqa: SIM905  # fmt: skip
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
CLASS_NAMES = {"MNIST": _DIGITS, "FashionMNIST": _CLOTHES, "KMNIST": _KANA}


def places(folder: Path, name: str) -> tuple[Path, Path]:
    """Where the four files of a set are looked for: torchvision's own folder, and the folder itself."""
    return folder / name / "raw", folder


def found(folder: Path, name: str) -> dict[str, Path] | None:
    """Return the four files of a set, all from one place, each plain or gzipped; ``None`` where one is missing."""
    for place in places(folder, name):
        files = {role: _either(place / file) for role, file in FILES.items()}
        if all(files.values()):
            return {role: path for role, path in files.items() if path is not None}
    return None


def _either(path: Path) -> Path | None:
    candidates = (path, path.with_name(path.name + ".gz"))
    return next((file for file in candidates if file.is_file()), None)


def read(path: Path, *, header_only: bool = False) -> NDArray[np.uint8]:
    """Return one IDX file of unsigned bytes, in the shape that its header states; with ``header_only`` of zeros.

    Raises ``DataError`` naming the file where it is missing, damaged, or something else.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _content(file, path, header_only=header_only)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _content(file: Any, path: Path, *, header_only: bool) -> NDArray[np.uint8]:
    head = file.read(4)
    if len(head) < 4 or head[:3] != b"\x00\x00\x08":  # noqa: PLR2004  (two zeros, the type, the dimensions)
        raise DataError(f"{path}: not an IDX file of unsigned bytes")
    sides = file.read(4 * head[3])
    if len(sides) < 4 * head[3]:
        raise DataError(f"{path}: ends within its header")
    shape = tuple(int(side) for side in np.frombuffer(sides, ">u4"))
    if header_only:
        try:
            return np.broadcast_to(np.zeros((), np.uint8), shape)
        except ValueError as error:
            raise DataError(f"{path}: no array has the {len(shape)} sides that its header states") from error
    size, raw = math.prod(shape), file.read()
    if len(raw) != size:
        raise DataError(f"{path}: holds {len(raw)} bytes after its header, which says {size}")
    return np.frombuffer(raw, np.uint8).reshape(shape)
