"""Every table of a run as CSV."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import polars as pl

from desim_fl.errors import RunDirectoryError
from desim_fl.tables import collected

if TYPE_CHECKING:
    from pathlib import Path


def write(run_dir: Path, out: Path) -> list[Path]:
    """Write each Parquet table as a CSV file of the same name; lists become JSON texts."""
    if not (run_dir / "manifest.json").is_file():
        raise RunDirectoryError(f"{run_dir} is not a run directory: it has no manifest.json")
    tables = {path.stem: path for path in sorted(run_dir.glob("*.parquet"))}
    if any((run_dir / "events").glob("*.parquet")):
        tables["events"] = run_dir / "events" / "*.parquet"
    return [_written(pattern, out / f"{name}.csv") for name, pattern in tables.items()]


def _written(pattern: Path, path: Path) -> Path:
    try:
        table = collected(pl.scan_parquet(pattern))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RunDirectoryError(f"{pattern} cannot be read as Parquet: {error}") from error
    lists = [name for name, dtype in table.schema.items() if isinstance(dtype, pl.List)]
    texts = [
        pl.Series(name, [None if row is None else json.dumps(row.to_list()) for row in table[name]], dtype=pl.String)
        for name in lists
    ]
    table.with_columns(texts).write_csv(path)
    return path
