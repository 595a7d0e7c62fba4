"""Two or more runs side by side: which settings differ, where their timelines part, and what each of them gave."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from desim_fl.errors import RunDirectoryError
from desim_fl.report.measures import METRICS, TARGETED
from desim_fl.report.reading import Run, read
from desim_fl.study.effects import Played, measures, tables
from desim_fl.study.playing import jain
from desim_fl.study.variants import Variant

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from desim_fl.study.document import Target
    from desim_fl.study.effects import Tables

TIMELINE = ("ticks", "kind", "client", "job", "version", "staleness")  # what the timeline hash is made of, seq apart
_ABSENT = "(not there)"


class Setting(NamedTuple):
    """A key of the scenarios that is not the same in all of them, with its value in each."""

    key: str
    values: tuple[str, ...]


class Parting(NamedTuple):
    """Where a run's timeline leaves the first run's: the first row that differs, in both (``None`` = one has ended).

    ``same_order`` tells that nothing but the times differs.
    """

    run: str
    seq: int | None
    first: dict[str, Any] | None
    other: dict[str, Any] | None
    same_order: bool


class Comparison(NamedTuple):
    """Everything that was found."""

    labels: tuple[str, ...]
    folders: tuple[str, ...]
    runs: tuple[Run, ...]
    settings: tuple[Setting, ...]
    partings: tuple[Parting, ...]
    measures: dict[str, dict[str, float]]
    tables: Tables


def compare(folders: Sequence[Path], target: Target | None = None) -> Comparison:
    """Compare run directories, each with the first. Raises RunDirectoryError where one is none, or is named twice."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise RunDirectoryError("a run directory is named twice; there is nothing to compare")
    runs = tuple(read(folder) for folder in folders)
    labels = _labels(folders)
    played = [_played(label, run) for label, run in zip(labels, runs, strict=True)]
    return Comparison(
        labels=labels,
        folders=tuple(map(str, folders)),
        runs=runs,
        settings=settings([_document(folder, run) for folder, run in zip(folders, runs, strict=True)]),
        partings=tuple(parting(label, runs[0], run) for label, run in list(zip(labels, runs, strict=True))[1:]),
        measures={run.variant.label: measures(run.row, target) for run in played},
        tables=tables(played, ("run",), target, 0.95),
    )


def _labels(folders: Sequence[Path]) -> tuple[str, ...]:
    """Name the runs by their folders; where two are called alike, by as much of their paths as tells them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(map(str, folders))


def _played(label: str, run: Run) -> Played:
    """Put a run into the form in which a study keeps it."""
    manifest = run.manifest
    points = run.metrics.select("ticks", "version", "updates", "split", _finite("loss"), _finite("accuracy"))
    summary = {"staleness": {}, "bytes_down": 0, "bytes_up": 0, **run.summary}
    status = "finished" if run.summary else str(manifest.get("status"))
    row = {
        "key": str(manifest.get("scenario_sha256")),
        "status": status,
        "error": manifest.get("error"),
        "timeline_sha256": manifest.get("timeline_sha256"),
        "model_sha256": manifest.get("model_sha256"),
        "fairness": jain(run.clients["arrivals"].to_list(), run.clients.height),
        "summary": summary,
        "curve": [list(point) for point in points.iter_rows()],
    }
    return Played(Variant(label, (label,), ()), int(manifest.get("seed") or 0), row)


def _finite(name: str) -> pl.Expr:
    return pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name)


def settings(documents: Sequence[dict[str, Any]]) -> tuple[Setting, ...]:
    """Return every key of the resolved scenarios that differs, in the order in which they stand there."""
    flat = [_flat(document) for document in documents]
    keys = dict.fromkeys(key for found in flat for key in found)
    rows = (Setting(key, tuple(found.get(key, _ABSENT) for found in flat)) for key in keys)
    return tuple(row for row in rows if len(set(row.values)) > 1)


def _document(folder: Path, run: Run) -> dict[str, Any]:
    try:
        return tomllib.loads(run.scenario)
    except tomllib.TOMLDecodeError as error:
        raise RunDirectoryError(f"{folder / 'scenario.toml'} is not TOML: {error}") from error


def _flat(table: dict[str, Any], outer: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in table.items():
        name = f"{outer}.{key}" if outer else key
        if isinstance(value, dict):
            found.update(_flat(value, name))
        else:
            text = repr(value) if not isinstance(value, str) else value
            found[name] = text if len(text) <= 200 else text[:197] + "..."  # noqa: PLR2004
    return found


def parting(label: str, first: Run, other: Run) -> Parting:
    """Find the first row at which two timelines differ; ``seq`` is ``None`` where they are the same."""
    a, b = (run.events.select(TIMELINE) for run in (first, other))
    at, ordered = _first_difference(a, b, TIMELINE), _first_difference(a, b, TIMELINE[1:])
    if at is None:
        return Parting(label, None, None, None, same_order=True)
    return Parting(label, at, _row(a, at), _row(b, at), same_order=ordered is None)


def _first_difference(a: pl.DataFrame, b: pl.DataFrame, columns: Sequence[str]) -> int | None:
    """Return the first row that is not the same in these columns, or at which one table has ended."""
    rows = min(a.height, b.height)
    differs = pl.Series([False] * rows, dtype=pl.Boolean)
    for name in columns:
        differs |= a[name].head(rows).ne_missing(b[name].head(rows))
    if differs.any():
        return int(differs.arg_max() or 0)
    return None if a.height == b.height else rows


def _row(events: pl.DataFrame, at: int) -> dict[str, Any] | None:
    return events.row(at, named=True) if at < events.height else None


def described(row: dict[str, Any] | None) -> str:
    """Return an event in words."""
    if row is None:
        return "(the timeline has ended)"
    who = f" client {row['client']}" if row["client"] is not None and row["client"] >= 0 else ""
    job = f" job {row['job']}" if row["job"] is not None and row["job"] >= 0 else ""
    stale = f", staleness {row['staleness']}" if row["staleness"] is not None and row["staleness"] >= 0 else ""
    return f"{row['ticks'] / 1e6:.6f} s {row['kind']}{who}{job}, version {row['version']}{stale}"


def rows(found: Comparison) -> list[tuple[str, list[float | None]]]:
    """Return the measures that at least one run has: title, and the value of each run."""
    titles = [(metric.name, metric.title) for metric in (*METRICS, *TARGETED)]
    table = [(title, [found.measures[label].get(name) for label in found.labels]) for name, title in titles]
    return [(title, values) for title, values in table if any(value is not None for value in values)]


def as_json(found: Comparison) -> dict[str, Any]:
    """Return the comparison as plain values."""
    return {
        "runs": dict(zip(found.labels, found.folders, strict=True)),
        "settings": {row.key: dict(zip(found.labels, row.values, strict=True)) for row in found.settings},
        "timelines": {
            row.run: None
            if row.seq is None
            else {"seq": row.seq, "first": row.first, "other": row.other, "same_order": row.same_order}
            for row in found.partings
        },
        "measures": found.measures,
    }
