"""Availability traces: files with one row a window, read with the place of whatever is wrong in them.

The format: a CSV file (UTF-8, a header line, commas) or a Parquet file with three columns, a whole number for each
device and the start and end of a window in seconds. Other columns are ignored; rows may stand in any order. Windows of
length 0 are dropped and counted, overlapping and touching ones joined.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from array import array
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from desim_fl.availability import listed
from desim_fl.core import TICKS_PER_SECOND
from desim_fl.errors import ScenarioError
from desim_fl.ticks import to_ticks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from desim_fl.availability import Listed

_LARGEST = 10**12  # seconds, as in scenarios
_MOST_DEVICES = 2**53


class Rows(NamedTuple):
    """Windows of a file, in its order."""

    device: NDArray[np.int64]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]


class Trace(NamedTuple):
    """A trace ready to be played: how many devices and windows it has, how many of length 0 were dropped."""

    windows: Listed
    sha256: str
    devices: int
    rows: int
    dropped: int


def read(path: Path, columns: Sequence[str], origin_s: float = 0.0, period_s: float | None = None) -> Trace:
    """Read a trace: devices in the order of their numbers; ``columns`` names those of device, start and end.

    ``origin_s`` is the trace's time at tick 0; what lies before it is cut off, or with ``period_s`` comes round again.
    Raises ``ScenarioError`` naming file, line (or row) and column of the first thing that is wrong.
    """
    content = _content(path)
    rows = _parquet(path, content, columns) if path.suffix == ".parquet" else _csv(path, content, columns)
    ids, device = np.unique(rows.device, return_inverse=True)
    if not len(ids):
        raise ScenarioError(f"{path}: has no windows; a trace needs at least one row")
    start, end = (_ticks(column - origin_s) for column in (rows.start_s, rows.end_s))
    period = None if period_s is None else max(1, to_ticks(period_s))
    windows = listed(device.astype(np.int64), start, end, len(ids), period)
    dropped = int((rows.start_s == rows.end_s).sum())
    return Trace(windows, hashlib.sha256(content).hexdigest(), len(ids), len(rows.device), dropped)


def _ticks(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(seconds * TICKS_PER_SECOND).astype(np.int64)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ScenarioError(f"{path}: cannot be read: {why}; availability.path names a CSV or Parquet file") from error


# ---- CSV


def _csv(path: Path, content: bytes, columns: Sequence[str]) -> Rows:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ScenarioError(f"{path}:{line}: is not UTF-8 text (byte 0x{content[error.start]:02x})") from error
    found = (array("q"), array("d"), array("d"))
    for line, cells in _records(path, text, columns):
        device, start, end = (_number(path, line, column, cell) for column, cell in zip(columns, cells, strict=True))
        _check(f"{path}:{line}", columns, device, start, end)
        found[0].append(int(device))
        found[1].append(start)
        found[2].append(end)
    return Rows(np.array(found[0], np.int64), np.array(found[1], np.float64), np.array(found[2], np.float64))


def _records(path: Path, text: str, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number and the three cells of each row."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        places = [_place(path, header, column) for column in columns]
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ScenarioError(f"{path}:{reader.line_num}: has {len(cells)} cells, the header {len(header)}")
            yield reader.line_num, [cells[place] for place in places]
    except csv.Error as error:
        raise ScenarioError(f"{path}:{reader.line_num}: is not CSV: {error}") from error


def _place(path: Path, header: Sequence[str], column: str) -> int:
    names = [name.strip() for name in header]
    if column not in names:
        shown = ", ".join(repr(name[:40]) for name in names[:20]) or "none"
        raise ScenarioError(
            f"{path}:1: has no column {column!r}; its columns are {shown}; name others with "
            "availability.client_column, start_column and end_column"
        )
    return names.index(column)


def _number(path: Path, line: int, column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ScenarioError(f"{path}:{line}: column {column}: {cell[:60]!r} is not a number") from None


def _check(place: str, columns: Sequence[str], device: float, start: float, end: float) -> None:
    """Refuse what is no window."""
    for column, value in zip(columns[1:], (start, end), strict=True):
        if not math.isfinite(value) or abs(value) > _LARGEST:
            raise ScenarioError(f"{place}: column {column}: {value} s is out of range")
    if not 0 <= device <= _MOST_DEVICES or device != device // 1:
        raise ScenarioError(f"{place}: column {columns[0]}: {device:g} is not a whole number from 0")
    if end < start:
        raise ScenarioError(
            f"{place}: column {columns[2]}: the window ends at {end:g} s, before it starts at {start:g} s"
        )


# ---- Parquet


def _parquet(path: Path, content: bytes, columns: Sequence[str]) -> Rows:
    import polars as pl  # noqa: PLC0415  (CSV needs none)

    from desim_fl import tables  # noqa: PLC0415

    try:
        table = tables.collected(pl.scan_parquet(io.BytesIO(content)))
    except Exception as error:  # (polars raises many kinds for what is no Parquet)
        raise ScenarioError(f"{path}: is not a Parquet file: {str(error)[:200]}") from error
    for column in columns:
        _place(path, table.columns, column)
        if not table[column].dtype.is_numeric():
            raise ScenarioError(f"{path}:1: column {column}: holds {table[column].dtype}, not numbers")
        if table[column].null_count():
            row = int(table[column].is_null().arg_max() or 0) + 1
            raise ScenarioError(f"{path}:{row}: column {column}: is empty in this row")
    device, start, end = (table[column].cast(pl.Float64).to_numpy() for column in columns)
    sound = np.isfinite(start) & np.isfinite(end) & (np.abs(start) <= _LARGEST) & (np.abs(end) <= _LARGEST)
    sound &= (device == np.floor(device)) & (device >= 0) & (device <= _MOST_DEVICES) & (end >= start)
    if not sound.all():
        row = int(np.argmin(sound))
        _check(f"{path}:{row + 1}", columns, float(device[row]), float(start[row]), float(end[row]))
    return Rows(device.astype(np.int64), start, end)
