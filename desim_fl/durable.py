"""Files that are whole or not there: every write of a run directory goes through here, and so do faults in tests."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

ASIDE = ".partial"  # how a file is called until it is whole


def write(path: Path, content: bytes) -> None:
    """Write aside, flush to the disk, rename, flush the folder: the final name always holds a whole file.

    Raises ``OSError``; what stood under the name before is then untouched, and nothing is left beside it.
    """
    aside = path.with_name(path.name + ASIDE)
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def remove(path: Path) -> None:
    """Remove a file if it is there, for good."""
    path.unlink(missing_ok=True)
    _flush(path.parent)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for aside in folder.glob(f"*{ASIDE}"):
        aside.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
    """Make a rename last, where the system can (Windows cannot open a folder)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
