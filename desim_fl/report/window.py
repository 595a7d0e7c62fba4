"""The time window of a page: a stretch of virtual time, dragged out in one chart, that the others then show alone.

A chart follows in three ways. Its axis of time ends where two parameters of its specification say; rows of its tables
that lie outside are left out; and bars that count updates are counted anew, from counts by step of time (a
:class:`Counts`), of which there are ``STEPS``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import altair as alt
import polars as pl

from desim_fl.core import TICKS_PER_SECOND
from desim_fl.report.formats import TimeUnit, time_unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STEPS = 120  # equal parts of the run, in which updates are counted
SINCE, UNTIL = "since", "until"


class Span(NamedTuple):
    """The whole of a run: how many ticks it lasted, and the unit of its axes of time."""

    end: int
    unit: TimeUnit

    @property
    def length(self) -> float:
        """How many units it lasted."""
        return self.end / (TICKS_PER_SECOND * self.unit.seconds)

    @property
    def ticks(self) -> float:
        """Ticks of one unit."""
        return TICKS_PER_SECOND * self.unit.seconds


def span(end: int) -> Span:
    """The whole of a run of so many ticks."""
    return Span(end, time_unit(end / TICKS_PER_SECOND))


def payload(whole: Span) -> dict[str, Any]:
    """Return the whole run as the page's script reads it."""
    return {"end": whole.length, "unit": whole.unit.name, "ticks": whole.ticks, "steps": STEPS}


class Counts(NamedTuple):
    """Updates by step of time and bar: ``cells`` are step, bar, place in ``fates`` and number, again and again."""

    bars: Sequence[tuple[float, float]]  # left and right edge
    labels: Sequence[tuple[int, int]] | None  # what a bar covers in whole numbers
    fates: Sequence[str] | None
    cells: list[int]

    def payload(self) -> dict[str, Any]:
        """Return the counts as the page's script reads them."""
        return {"bars": self.bars, "labels": self.labels, "fates": self.fates, "cells": self.cells}


@dataclass(frozen=True, slots=True)
class Follow:
    """How a figure follows the window: whether its axis does, tables cut to it (by which column they are parted), counts.

    An ``overview`` keeps showing the whole run in its first panel, and the window in it.
    """

    axis: bool = False
    overview: bool = False
    cut: Mapping[str, str | None] = field(default_factory=dict)
    counts: Mapping[str, Counts] = field(default_factory=dict)

    def payload(self) -> dict[str, Any]:
        """Return this as the page's script reads it."""
        counts = {name: counts.payload() for name, counts in self.counts.items()}
        return {"axis": self.axis, "overview": self.overview, "cut": dict(self.cut), "counts": counts}


def scale(whole: Span) -> alt.Scale:
    """Return an axis of time that ends where the window does; of a run without length, any."""
    if not whole.end:
        return alt.Scale(nice=False)
    return alt.Scale(domain=[alt.ExprRef(SINCE), alt.ExprRef(UNTIL)], nice=False, zero=False)


def watched(chart: Any, whole: Span, *more: Any) -> Any:
    """Return a chart with the ends of the window as parameters.

    ``more`` are parameters of the chart itself, set here too, since Altair would make one of each layer's own.
    """
    linked = chart.copy()
    known = [] if linked.params is alt.Undefined else list(linked.params)
    ends = ((SINCE, 0.0), (UNTIL, whole.length)) if whole.end else ()
    linked.params = [*(alt.VariableParameter(name=name, value=value) for name, value in ends), *known, *more]
    return linked


def selection(name: str, chart: Any, views: Sequence[str], **select: Any) -> Any:
    """Return a selection by the legend over the named views of a composed chart, which gives its layers names of its own."""
    known = _units(chart.to_dict(validate=False))
    there = [unit for unit in known if any(unit == view or unit.startswith(f"{view}_") for view in views)]
    assert there, (views, known)
    return alt.TopLevelSelectionParameter(name=name, select=select, views=there, bind="legend")


def _units(spec: dict[str, Any]) -> list[str]:
    inner = [unit for key in ("vconcat", "layer") for part in spec.get(key, ()) for unit in _units(part)]
    return inner or [spec[key] for key in ("name",) if key in spec]


def counted(
    rows: pl.DataFrame, whole: Span, bars: Sequence[tuple[float, float]], labels: Sequence[tuple[int, int]] | None = None,
    fates: Sequence[str] | None = None,
) -> Counts:  # fmt: skip
    """Count updates by step; ``rows`` has ``ended`` (ticks), ``bar`` and, with ``fates``, ``fate``."""
    step = (pl.col("ended").cast(pl.Int128) * STEPS // max(1, whole.end)).clip(0, STEPS - 1).cast(pl.Int64)
    kind = pl.lit(0, pl.Int64)
    if fates is not None:
        kind = pl.col("fate").replace_strict({fate: at for at, fate in enumerate(fates)}, return_dtype=pl.Int64)
    known = rows.filter(pl.col("ended").is_not_null()).select(step.alias("step"), "bar", kind=kind)
    cells = known.group_by("step", "bar", "kind").agg(pl.len().cast(pl.Int64).alias("n")).sort("step", "bar", "kind")
    return Counts(bars, labels, fates, [number for row in cells.iter_rows() for number in row])
