"""A partition before any run: its chart, or the map itself, as one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from desim_fl.errors import ScenarioError
from desim_fl.report import client_charts, populations

if TYPE_CHECKING:
    from pathlib import Path

KINDS = (".html", ".png", ".svg", ".csv", ".parquet")


def write(path: Path, people: Any, validation: Any) -> None:
    """Write the chart of classes by client (.html, .png, .svg) or the map of samples (.csv, .parquet).

    Raises ``ScenarioError`` for another kind of file, a folder that is not there, or data without classes.
    """
    if path.suffix.lower() not in KINDS:
        raise ScenarioError(f"--out {path}: a preview ends in {', '.join(KINDS)}")
    if not path.parent.is_dir():
        raise ScenarioError(f"--out {path}: there is no folder {path.parent}")
    if path.suffix.lower() in {".csv", ".parquet"}:
        table = mapped(people, validation)
        (table.write_csv if path.suffix.lower() == ".csv" else table.write_parquet)(path)
        return
    page = path.suffix.lower() == ".html"
    chart(people).save(str(path), inline=page)  # a page that is not would fetch its scripts when it is opened


def mapped(people: Any, validation: Any) -> pl.DataFrame:
    """Return the map, sample by sample; the validation part has client -1."""
    parts = [*enumerate(people.parts), *([] if validation is None else [(-1, validation)])]
    frames = [pl.DataFrame({"index": part}).with_columns(client=pl.lit(client, pl.Int64)) for client, part in parts]
    return pl.concat(frames) if frames else pl.DataFrame(schema={"index": pl.Int64, "client": pl.Int64})


def chart(people: Any) -> alt.TopLevelMixin:
    """Return the report's chart of classes by client, with its data."""
    clients = pl.DataFrame(
        {
            "client": range(len(people)),
            "label": [people.name(client) for client in range(len(people))],
            "dispatches": [1] * len(people),
            "class_counts": [None] * len(people) if people.class_counts is None else people.class_counts.tolist(),
        },
        schema_overrides={"class_counts": pl.List(pl.Int64)},
    )
    shown = populations.sample(clients)
    figure = client_charts.classes(populations.classes(clients, shown), shown)
    if figure.chart is None:
        raise ScenarioError(f"--out: {figure.lead}")
    spec = figure.spec()
    spec["datasets"] = {name: numbers.frame.to_dicts() for name, numbers in figure.numbers.items()}
    return alt.Chart.from_dict({**spec, "title": figure.heading})
