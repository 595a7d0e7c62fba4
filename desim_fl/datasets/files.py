"""Data of one's own in one file: a ``.npz`` of arrays, or a Parquet table with one row a sample."""

from __future__ import annotations

import io
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import polars as pl
    from numpy.typing import NDArray

MOST_CLASSES = 65_536
_NAMES = {
    "train_images": ("train_images", "x_train", "images", "data"),
    "train_labels": ("train_labels", "y_train", "labels"),
    "test_images": ("test_images", "x_test"),
    "test_labels": ("test_labels", "y_test"),
}
_COLUMNS = {"image": ("image", "jpeg", "png", "features"), "label": ("label", "labels")}


class Parts(NamedTuple):
    """Training samples, and test samples where there is such a part (``None`` = to be split off)."""

    train_images: NDArray
    train_labels: NDArray[np.int64]
    test_images: NDArray | None
    test_labels: NDArray[np.int64] | None


def read(path: Path, *, image_size: int | None = None, first: int | None = None) -> Parts:
    """Read a file; with ``first`` only so many images of each part, all labels.

    Raises ``DataError`` naming the file and what is wrong with it.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; [data] path names a .npz or .parquet file with images and labels")
    kind = path.suffix.lower()
    if kind == ".npz":
        if image_size is not None:
            raise DataError(f"{path}: image_size is for encoded images; those of a .npz file stay as they are")
        return _npz(path, first)
    if kind in {".parquet", ".pq"}:
        return _parquet(path, image_size, first)
    raise DataError(f"{path}: a file of data ends in .npz or .parquet")


# ---- .npz


def _npz(path: Path, first: int | None) -> Parts:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = {role: next((name for name in known if name in archive), None) for role, known in _NAMES.items()}
            for role in ("train_images", "train_labels"):
                if names[role] is None:
                    raise DataError(
                        f"{path}: has no array {role}; it holds {', '.join(name[:40] for name in archive.files[:10]) or 'nothing'}"
                    )
            if (names["test_images"] is None) != (names["test_labels"] is None):
                raise DataError(f"{path}: test_images and test_labels belong together")
            return _checked(
                path, {role: None if name is None else archive[name] for role, name in names.items()}, first
            )
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as .npz ({error})") from error


def _checked(path: Path, arrays: dict[str, Any], first: int | None) -> Parts:
    parts: dict[str, Any] = {}
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images is not None:
            images, labels = sound(images, f"{path}: {part}_images"), whole(labels, f"{path}: {part}_labels")
            if len(images) != len(labels):
                raise DataError(f"{path}: {len(images)} {part}_images, but {len(labels)} {part}_labels")
            images = images[:first]
        parts |= {f"{part}_images": images, f"{part}_labels": labels}
    return Parts(**parts)


def sound(images: NDArray, what: str) -> NDArray:
    """Return images as uint8 (n, h, w) or (n, h, w, c), or features as float32 (n, features)."""
    if images.dtype == np.uint8 and images.ndim in {3, 4} and images.size:
        return images
    if images.ndim == 2 and images.dtype.kind in "fiub" and images.size:  # noqa: PLR2004
        rows = np.ascontiguousarray(images, np.float32)
        if not np.isfinite(rows).all():
            raise DataError(f"{what} holds numbers that are not finite")
        return rows
    raise DataError(
        f"{what} is {images.dtype} of shape {images.shape}; images are uint8 (n, h, w) or (n, h, w, c), features "
        "numbers (n, features)"
    )


def whole(labels: NDArray, what: str) -> NDArray[np.int64]:
    """Return class numbers as int64; ``DataError`` for anything else."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
        raise DataError(f"{what} is {labels.dtype} of shape {labels.shape}; labels are whole numbers, one a sample")
    if int(labels.min()) < 0 or int(labels.max()) >= MOST_CLASSES:
        raise DataError(f"{what} runs from {labels.min()} to {labels.max()}; classes are numbered from 0, up to 65,535")
    return labels.astype(np.int64)


# ---- Parquet


def _parquet(path: Path, image_size: int | None, first: int | None) -> Parts:
    import polars as pl  # noqa: PLC0415  (only such data need it)

    from desim_fl import tables  # noqa: PLC0415

    try:
        table = tables.parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0][:200]})") from error
    names = {role: next((name for name in known if name in table.columns), None) for role, known in _COLUMNS.items()}
    for role, name in names.items():
        if name is None:
            raise DataError(f"{path}: has no column {role}; it has {tables.named(table)}")
    image, label = str(names["image"]), str(names["label"])
    if table[image].null_count() or table[label].null_count():
        raise DataError(f"{path}: has empty cells in {image} or {label}")
    split = "split" in table.columns
    arrays: dict[str, Any] = {"test_images": None, "test_labels": None}
    for part in ("train", "test") if split else ("train",):
        rows = table.filter(pl.col("split").cast(pl.String) == part) if split else table
        if rows.is_empty():
            raise DataError(f"{path}: has no row{f' with split = {part}' if split else ''}")
        labels = whole(rows[label].to_numpy(), f"{path}: {label}")
        images = _images(rows[image].head(first or len(rows)), path, image_size)
        arrays |= {f"{part}_images": sound(images, f"{path}: {image}"), f"{part}_labels": labels}
    return Parts(**arrays)


def _images(column: pl.Series, path: Path, image_size: int | None) -> NDArray:
    import polars as pl  # noqa: PLC0415

    if column.dtype == pl.Binary:
        return decoded(column.to_list(), str(path), image_size)
    if image_size is not None:
        raise DataError(f"{path}: image_size is for encoded images; {column.name} holds numbers")
    try:
        rows = np.array(column.to_list())
    except ValueError as error:
        raise DataError(f"{path}: {column.name} holds rows of different lengths") from error
    return rows.astype(np.uint8) if rows.ndim in {3, 4} and _bytes(rows) else rows


def _bytes(rows: NDArray) -> bool:
    return rows.dtype.kind in "iu" and bool(rows.size) and int(rows.min()) >= 0 and int(rows.max()) <= 255  # noqa: PLR2004


def decoded(encoded: Iterable[bytes], what: str, image_size: int | None) -> NDArray[np.uint8]:
    """Decode PNG, JPEG, ... images; see :func:`stacked`."""
    from PIL import Image  # noqa: PLC0415  (only such data need it)

    def opened() -> Iterable[Any]:
        for number, content in enumerate(encoded):
            try:
                with Image.open(io.BytesIO(content)) as image:
                    image.load()
                    yield image
            except Exception as error:
                raise DataError(f"{what}: image {number} cannot be decoded ({error})") from error

    return stacked(opened(), what, image_size)


def stacked(images: Iterable[Any], what: str, image_size: int | None) -> NDArray[np.uint8]:
    """Put Pillow images into one array (n, h, w) or (n, h, w, 3); where some have colours, all get three channels.

    Raises ``DataError`` for images of different sizes, unless ``image_size`` makes them equal.
    """
    rows = []
    for image in images:
        plain = image if image.mode in {"L", "RGB"} else image.convert("RGB")
        if image_size is not None and plain.size != (image_size, image_size):
            plain = plain.resize((image_size, image_size), resample=2)  # bilinear
        rows.append(np.asarray(plain, np.uint8))
        if rows[-1].shape[:2] != rows[0].shape[:2]:
            (high, wide), (h, w) = rows[0].shape[:2], rows[-1].shape[:2]
            raise DataError(
                f"{what}: image 0 has {high}x{wide} pixels, image {len(rows) - 1} {h}x{w}; [data] image_size = {min(high, wide)} "
                "would make them equal"
            )
    if any(row.ndim == 3 for row in rows):  # noqa: PLR2004
        rows = [row if row.ndim == 3 else np.repeat(row[:, :, None], 3, axis=2) for row in rows]  # noqa: PLR2004
    return np.stack(rows) if rows else np.zeros((0, 0, 0), np.uint8)
