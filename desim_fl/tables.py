"""Reading Parquet files that may be damaged: whatever polars makes of them, the answer is a table or its own error."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_STDERR = 2


def parquet(path: Path) -> pl.DataFrame:
    """Read one file; raises ``OSError`` or ``PolarsError``, nothing else."""
    return collected(pl.scan_parquet(path))


def collected(frame: pl.LazyFrame) -> pl.DataFrame:
    """Carry out a query over files; raises ``OSError`` or ``PolarsError``, nothing else."""
    try:
        with _hushed():
            return frame.collect()
    except pl.exceptions.PanicException as panic:  # a BaseException: flipped bits can reach Rust's own asserts
        raise pl.exceptions.ComputeError(f"the file is damaged ({panic})") from None


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep a panic from printing its backtrace: it goes to the process's stderr, past Python, before it is raised."""
    try:
        kept = os.dup(_STDERR)
    except OSError:  # there is no stderr
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _STDERR)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)


def named(table: pl.DataFrame) -> str:
    """The names of a table's columns for a message, which stays short."""
    return ", ".join(name[:40] for name in table.columns[:10]) or "none"
