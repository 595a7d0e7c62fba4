"""What a study has computed so far: one JSON line a run, appended and synced, so that a stopped study goes on."""

from __future__ import annotations

import json
import os
from typing import IO, TYPE_CHECKING, Any, Self

from desim_fl.errors import RunDirectoryError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

NAME = "journal.jsonl"
_SYNC_EVERY = 50  # rows; what a crash takes is played again


class Journal:
    """Rows by the key of their run."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.rows = _read(self._path)
        self._file: IO[bytes] = self._path.open("ab")
        self._unsynced = 0

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self._file.write(json.dumps(row, allow_nan=False, separators=(",", ":")).encode() + b"\n")
        self.rows[row["key"]] = row
        self._unsynced += 1
        if self._unsynced >= _SYNC_EVERY or row.get("curve"):
            self.sync()

    def sync(self) -> None:
        """See to it that everything is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        self._file.close()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Read the rows that are whole; what a crash cut off at the end is removed, so that the next row starts a line."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            rows[row["key"]] = row
        except (ValueError, TypeError, KeyError) as error:
            raise RunDirectoryError(f"{path}:{number}: is no row of a study: {error}; give another --out") from error
    return rows
