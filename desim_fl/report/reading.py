"""The tables of a run directory as they were stored, with the schema the report relies on.

Nothing is inferred: every column has a stated type, a table that a run never came to write (a failed run, a plan) is an
empty table of that schema, and a table that lacks a column or cannot be read is a named error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from desim_fl import tables
from desim_fl.errors import RunDirectoryError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

EVENTS: Mapping[str, Any] = {
    "seq": pl.Int64,
    "ticks": pl.Int64,
    "kind": pl.String,
    "client": pl.Int64,
    "job": pl.Int64,
    "version": pl.Int64,
    "staleness": pl.Int64,
    "loss": pl.Float64,
    "lr": pl.Float64,
    "weight": pl.Float64,
    "scale": pl.Float64,
    "bytes": pl.Int64,
    "reason": pl.String,
    "outcome": pl.String,
}
METRICS: Mapping[str, Any] = {
    "ticks": pl.Int64,
    "time_s": pl.Float64,
    "version": pl.Int64,
    "updates": pl.Int64,
    "split": pl.String,
    "loss": pl.Float64,
    "accuracy": pl.Float64,
    "examples": pl.Int64,
}
CLIENTS: Mapping[str, Any] = {
    "client": pl.Int64,
    "name": pl.String,
    "examples": pl.Int64,
    "class_counts": pl.List(pl.Int64),
    "device_class": pl.String,
    "device_factor": pl.Float64,
    "dispatches": pl.Int64,
    "arrivals": pl.Int64,
    "busy_s": pl.Float64,
    "energy_j": pl.Float64,
}
LINKS: Mapping[str, Any] = {
    "link": pl.String,
    "region": pl.Int64,
    "from_s": pl.Float64,
    "to_s": pl.Float64,
    "capacity_mbps": pl.Float64,
    "bytes": pl.Int64,
    "busy_s": pl.Float64,
    "full_s": pl.Float64,
}
CLASSES: Mapping[str, Any] = {
    "device_class": pl.String,
    **dict.fromkeys(("clients", "examples", "arrivals"), pl.Int64),
    **dict.fromkeys([f"energy_{use}_j" for use in ("receive", "compute", "send", "idle")], pl.Float64),
}
LOSSES: Mapping[str, Any] = {
    "device_class": pl.String,
    "fate": pl.String,
    "reason": pl.String,
    "jobs": pl.Int64,
    "clients": pl.Int64,
    "spent_s": pl.Float64,
}
HELD_OUT: Mapping[str, Any] = {
    "client": pl.Int64,
    "examples": pl.Int64,
    "loss": pl.Float64,
    "accuracy": pl.Float64,
}
WALL: Mapping[str, Any] = {"job": pl.Int64, "client": pl.Int64, "train_s": pl.Float64}


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that the report reads; ``events`` is in the order in which things happened."""

    manifest: dict[str, Any]
    scenario: str
    events: pl.DataFrame
    metrics: pl.DataFrame
    clients: pl.DataFrame
    wall: pl.DataFrame
    links: pl.DataFrame
    classes: pl.DataFrame
    losses: pl.DataFrame
    held_out: pl.DataFrame

    @property
    def summary(self) -> dict[str, Any]:
        """The summary that the run wrote at its end; empty where it never came to that."""
        return self.manifest.get("summary") or {}

    @property
    def planned(self) -> bool:
        """Whether this is a timeline that was played without training."""
        ended = self.manifest.get("status") == "finished"
        return ended and self.manifest.get("model_sha256") is None and self.metrics.is_empty()


def read(run_dir: Path) -> Run:
    """Read a run directory.

    Raises RunDirectoryError where it is none, or where a table is unreadable or lacks a column.
    """
    if not _is_folder(run_dir):
        raise RunDirectoryError(f"{run_dir} is not a run directory: there is no such folder")
    manifest = manifest_of(run_dir / "manifest.json")
    clients = _table(run_dir / "clients.parquet", CLIENTS).sort("client")
    return Run(
        manifest=manifest,
        scenario=text_of(run_dir / "scenario.toml"),
        events=_events(run_dir / "events"),
        metrics=_table(run_dir / "metrics.parquet", METRICS),
        clients=clients.with_columns(_labels(clients)),
        wall=_table(run_dir / "wall.parquet", WALL),
        links=_table(run_dir / "links.parquet", LINKS),
        classes=_table(run_dir / "classes.parquet", CLASSES),
        losses=_table(run_dir / "losses.parquet", LOSSES),
        held_out=_table(run_dir / "held_out.parquet", HELD_OUT),
    )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, say
        return False


def text_of(path: Path) -> str:
    """Return the text of a file of a run directory."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunDirectoryError(
            f"{path} cannot be read, so {path.parent} is no complete run directory: {error}"
        ) from error


def manifest_of(path: Path) -> dict[str, Any]:
    """Return the manifest that a file holds."""
    try:
        manifest = json.loads(text_of(path))
        json.dumps(manifest, allow_nan=False)  # NaN, and numbers beyond all, are read but are not JSON
    except (ValueError, RecursionError) as error:
        raise RunDirectoryError(f"{path} is not JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise RunDirectoryError(f"{path} does not hold a JSON object")
    return manifest


def _table(path: Path, schema: Mapping[str, Any]) -> pl.DataFrame:
    return _collect(path, path, schema) if path.exists() else pl.DataFrame(schema=schema)


def _events(folder: Path) -> pl.DataFrame:
    if not any(folder.glob("*.parquet")):
        return pl.DataFrame(schema=EVENTS)
    return _collect(folder / "*.parquet", folder, EVENTS).sort("seq")


def _collect(pattern: Path, place: Path, schema: Mapping[str, Any]) -> pl.DataFrame:
    columns = [pl.col(name).cast(dtype) for name, dtype in schema.items()]
    try:
        return tables.collected(pl.scan_parquet(pattern).select(columns))
    except pl.exceptions.ColumnNotFoundError as error:
        missing = str(error).splitlines()[0]
        raise RunDirectoryError(f"{place} lacks a column that every run writes: {missing}") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RunDirectoryError(f"{place} cannot be read as Parquet: {error}") from error


def _labels(clients: pl.DataFrame) -> pl.Series:
    """Return what a client is called in charts: its name, made unique, or its number."""
    given = clients["name"].fill_null("")
    again = given.is_duplicated()
    labels = [
        f"client {number}" if not name else f"{name} ({number})" if twice else name
        for number, name, twice in zip(clients["client"], given, again, strict=True)
    ]
    return pl.Series("label", labels, dtype=pl.String)
