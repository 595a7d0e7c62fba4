"""The tables of what clients keep back from training: ``kept_back``, their samples, and ``held_out``, how the last model does there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from desim_fl import rundir
from desim_fl.errors import RunDirectoryError

if TYPE_CHECKING:
    from pathlib import Path

    from desim_fl.allotment import Stored
    from desim_fl.build import Built
    from desim_fl.core import Model

SCHEMAS: dict[str, dict[str, Any]] = {
    "kept_back": {"client": pl.Int64, "index": pl.Int64},
    "held_out": {"client": pl.Int64, "examples": pl.Int64, "loss": pl.Float64, "accuracy": pl.Float64},
}


def write_partition(folder: Path, built: Built) -> None:
    """Write who trains on which samples, and what each client keeps back, where anybody does."""
    rundir.write_table(folder / "partition.parquet", rundir.partition(built))
    if built.held:
        rundir.write_table(folder / "kept_back.parquet", kept_back(built))


def kept_back(built: Built) -> pl.DataFrame:
    """Make the table of what each client keeps back."""
    owners = np.repeat(np.arange(len(built.held)), [len(part) for part in built.held])
    columns = {"client": owners, "index": np.concatenate(built.held)}
    return pl.DataFrame(columns, schema=SCHEMAS["kept_back"])


def write_scores(folder: Path, built: Built, model: Model) -> None:
    """Write how a model does on what each client kept back; nothing where nobody did, or in a plan."""
    task: Any = built.task
    if not built.held or task is None:
        return
    scores = enumerate(task.score_parts(model, built.held))
    rows = [(client, found.examples, found.loss, found.accuracy) for client, found in scores if found is not None]
    rundir.write_table(folder / "held_out.parquet", pl.DataFrame(rows, schema=SCHEMAS["held_out"], orient="row"))


def stored(folder: Path) -> Stored | None:
    """Read the partition of a run back, with what clients keep back; raises as :func:`desim_fl.rundir.stored_partition`."""
    found, path = rundir.stored_partition(folder), folder / "kept_back.parquet"
    if found is None or not path.is_file():
        return found
    try:
        table = pl.read_parquet(path)
        parts = rundir.by_client(table["client"].to_numpy(), table["index"].to_numpy(), len(found.parts))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RunDirectoryError(f"{path} cannot be read: {error}") from error
    return found._replace(held=parts)


def fault(kept: pl.DataFrame, partition: pl.DataFrame) -> str | None:
    """Return what is wrong with samples that are kept back, beside those that are trained or validated on."""
    both = kept.join(partition, on="index", how="semi")
    if not both.is_empty():
        return f"the table kept_back names sample {both['index'][0]}, which the table partition names too"
    return "the table kept_back names a sample twice" if kept["index"].is_duplicated().any() else None
