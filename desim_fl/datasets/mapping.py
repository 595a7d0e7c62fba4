"""Map files: which training sample belongs to which client, in columns ``index`` and ``client``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desim_fl.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import polars as pl
    from numpy.typing import NDArray


def read(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read a CSV or Parquet file; returns sample numbers and client numbers, row by row.

    The table ``partition.parquet`` of a run is such a file; its rows with client -1, the validation part, are left out.
    Raises ``DataError`` naming the file.
    """
    import polars as pl  # noqa: PLC0415  (only maps need it)

    from desim_fl import tables  # noqa: PLC0415

    if not path.is_file():
        raise DataError(
            f"{path}: no such file; [clients] map names a .csv or .parquet file with columns index and client"
        )
    try:
        table = tables.parquet(path) if path.suffix.lower() in {".parquet", ".pq"} else pl.read_csv(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a map ({str(error).splitlines()[0][:200]})") from error
    missing = [name for name in ("index", "client") if name not in table.columns]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]}; it has {tables.named(table)}")
    if table.is_empty():
        raise DataError(f"{path}: names no sample")
    found = [_whole(table[name], path) for name in ("index", "client")]
    dealt = found[1] != -1
    return found[0][dealt], found[1][dealt]


def _whole(column: pl.Series, path: Path) -> NDArray[np.int64]:
    import polars as pl  # noqa: PLC0415

    whole = column.cast(pl.Int64, strict=False) if column.dtype.is_integer() else None
    if whole is None or whole.null_count():  # empty, or too large to be a number of anything
        raise DataError(f"{path}: the column {column.name} must hold whole numbers, one a row")
    return whole.to_numpy()
