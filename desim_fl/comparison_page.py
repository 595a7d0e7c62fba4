"""The page of a comparison: what differs in words, curves on one axis, and every number side by side."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import polars as pl

from desim_fl.compare import described, rows
from desim_fl.core import TICKS_PER_SECOND
from desim_fl.report import sheet, study_charts, trips
from desim_fl.report.figures import Numbers
from desim_fl.report.formats import duration, many
from desim_fl.report.measures import TIME
from desim_fl.report.rooms import Room
from desim_fl.report.study_reading import StudyFolder
from desim_fl.report.study_words import listed, plain, quoted, valued

if TYPE_CHECKING:
    from pathlib import Path

    from desim_fl.compare import Comparison, Parting

_KEYS = 6  # settings that are named


def write(path: Path, found: Comparison) -> Path:
    """Write the page of a comparison; the same runs give the same bytes."""
    return sheet.replace(path, render(found))


def render(found: Comparison) -> str:
    """Return the page as text."""
    rooms = _rooms(found)
    figures = [figure for room in rooms for figure in room.figures]
    return sheet.sheet(
        "comparison.html",
        figures,
        title=" against ".join(found.labels) if len(found.labels) <= 3 else f"{len(found.labels)} runs",  # noqa: PLR2004
        paragraph=paragraph(found),
        rooms=[(room, [sheet.shown(figure, figures) for figure in room.figures]) for room in rooms],
        tables=[sheet.table(numbers, frozenset()) for numbers in _tables(found) if not numbers.frame.is_empty()],
    )


def paragraph(found: Comparison) -> str:
    """Say what the runs gave, which settings differ, and where timelines part."""
    return " ".join(
        part for part in (_gave(found), _differ(found), *map(partial(_parted, found), found.partings)) if part
    )


def _gave(found: Comparison) -> str:
    """Say the first measure that runs have of time to a target, accuracy or loss, and how long they took."""
    parts = []
    for metric in (TIME, "accuracy", "loss", "virtual_time_s"):
        values = [found.measures[label].get(metric) for label in found.labels]
        there = [metric != TIME or bool(found.measures[label].get("reached")) for label in found.labels]
        if any(value is not None for value in values) and (metric != "loss" or len(parts) < 2):  # noqa: PLR2004
            parts.append(f"{plain(metric)}: {_each(found, metric, values, there)}.")
    return " ".join(parts)


def _each(found: Comparison, metric: str, values: list[float | None], there: list[bool]) -> str:
    """Return a value of every run, or of all of them where it is the same."""
    said = [
        ("no value" if value is None else valued(metric, value))
        if got
        else f"not reached by its end at {valued(metric, value)}"
        for value, got in zip(values, there, strict=True)
    ]
    if len(set(said)) == 1:
        return f"{said[0]} in all of them"
    return ", ".join(f"{words} in {quoted(label)}" for words, label in zip(said, found.labels, strict=True))


def _differ(found: Comparison) -> str:
    keys = [row.key for row in found.settings]
    if not keys:
        return "All settings are the same."
    if len(keys) == 1:
        return f"One setting differs: {keys[0]}."
    named = listed(keys) if len(keys) <= _KEYS else f"{', '.join(keys[:_KEYS])} and {len(keys) - _KEYS} more"
    return f"{len(keys)} settings differ: {named}."


def _parted(found: Comparison, row: Parting) -> str:
    first = quoted(found.labels[0])
    if row.seq is None:
        return f"The timeline of {quoted(row.run)} is that of {first}, event by event."
    if row.same_order:
        return f"In {quoted(row.run)} the same events happen in the same order as in {first}, at other times."
    ticks = [event["ticks"] for event in (row.first, row.other) if event is not None]
    return (
        f"{quoted(row.run)} and {first} play alike for {many(row.seq, 'event')}, until {duration(min(ticks) / TICKS_PER_SECOND)} of "
        "virtual time."
    )


def _study(found: Comparison) -> StudyFolder:
    """Put the runs into the form in which charts of studies read them."""
    manifest: dict[str, Any] = {"confidence": 0.95, "target": None}
    return StudyFolder(manifest, "", "", *found.tables, tuning=pl.DataFrame())


def _rooms(found: Comparison) -> list[Room]:
    study = _study(found)
    known = study.metrics()
    measured = [name for name in ("accuracy", "loss") if name in known]
    learned = [study_charts.curves(study, name, against=axis) for name in measured for axis in ("time", "updates")]
    shown = [
        Room("learning", "Learning", learned),
        Room("staleness", "Staleness", [study_charts.staleness(_staleness(found))]),
    ]
    return [room for room in shown if room.figures]


def _staleness(found: Comparison) -> pl.DataFrame:
    """Return which share of a run's updates arrived with each staleness: ``variant, staleness, share``."""
    parts = []
    for label, run in zip(found.labels, found.runs, strict=True):
        back = trips.returned(trips.trips(run.events))
        counts = back.group_by("staleness").len().sort("staleness")
        share = (pl.col("len") / max(1, back.height)).alias("share")
        parts.append(counts.select(pl.lit(label).alias("variant"), pl.col("staleness").cast(pl.Int64), share))
    return pl.concat(parts)


def _tables(found: Comparison) -> list[Numbers]:
    columns = {f"run{number}": label for number, label in enumerate(found.labels)}
    return [
        Numbers("Results", _side_by_side(found), {"what": "Measure", **columns}),
        Numbers("Settings that differ", _settings(found), {"key": "Key", **columns}),
        Numbers("Where timelines part", _partings(found), {
            "run": "Run", "seq": "Event number", "first": f"In {found.labels[0]}", "other": "In this run",
        }),
    ]  # fmt: skip


def _side_by_side(found: Comparison) -> pl.DataFrame:
    schema: dict[str, Any] = {"what": pl.String, **{f"run{n}": pl.Float64 for n in range(len(found.labels))}}
    return pl.DataFrame([(title, *values) for title, values in rows(found)], schema=schema, orient="row")


def _settings(found: Comparison) -> pl.DataFrame:
    schema: dict[str, Any] = {"key": pl.String, **{f"run{n}": pl.String for n in range(len(found.labels))}}
    return pl.DataFrame([(row.key, *row.values) for row in found.settings], schema=schema, orient="row")


def _partings(found: Comparison) -> pl.DataFrame:
    schema = {"run": pl.String, "seq": pl.Int64, "first": pl.String, "other": pl.String}
    found_rows = [
        (row.run, row.seq, *(("-", "the same") if row.seq is None else (described(row.first), described(row.other))))
        for row in found.partings
    ]
    return pl.DataFrame(found_rows, schema=schema, orient="row")
