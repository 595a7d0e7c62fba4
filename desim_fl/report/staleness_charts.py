"""Charts of staleness: in versions, in seconds, and what the server made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from desim_fl.report import formats, trips
from desim_fl.report.figures import Figure, Numbers, named
from desim_fl.report.window import Follow

if TYPE_CHECKING:
    import polars as pl

    from desim_fl.report.formats import TimeUnit
    from desim_fl.report.window import Counts

_HEIGHT = 220


def fates(frame: pl.DataFrame, offset: int = 18) -> alt.Color:
    """Colour by what became of a job, with a legend where more than one thing did."""
    several = frame["fate"].n_unique() > 1
    return alt.Color(
        "fate:N",
        title=None,
        scale=alt.Scale(domain=list(trips.FATES)),
        legend=alt.Legend(values=[fate for fate in trips.FATES if fate in set(frame["fate"])], offset=offset)
        if several
        else None,
    )


def bars(data: str, x_title: str, y_title: str, *, top: str = "top", logarithmic: bool = False) -> alt.Chart:
    """Bars between the columns ``left`` and ``right``, from ``bottom`` (or 0) to ``top``."""
    scale = alt.Scale(type="log", nice=False) if logarithmic else alt.Scale(nice=False)
    bottom: Any = "bottom:Q" if top == "top" else alt.Y2Datum(0)
    return (
        alt.Chart(named(data))
        .mark_rect(clip=True)
        .encode(
            x=alt.X("left:Q", title=x_title, scale=scale, axis=alt.Axis(tickMinStep=1 if top == "top" else 0)),
            x2="right:Q",
            y=alt.Y(f"{top}:Q", title=y_title, axis=alt.Axis(tickCount=5, tickMinStep=1, format=",d")),
            y2=bottom,
        )
    )


def marked(chart: alt.Chart, data: str) -> alt.TopLevelMixin:
    """Rules with labels over a histogram, from a table with ``mark, value, height, side``."""
    base = alt.Chart(named(data)).encode(x="value:Q")
    rules = base.mark_rule(style="mark-line").encode(y=alt.Y("height:Q"), y2=alt.Y2Datum(0))
    words = base.mark_text(
        style="note",
        baseline="middle",
        align=alt.ExprRef("datum.side"),
        dx=alt.ExprRef("datum.side === 'left' ? 5 : -5"),
    ).encode(y=alt.Y("height:Q"), text="words:N")
    return alt.layer(chart, rules, words, height=_HEIGHT)


def in_versions(frame: pl.DataFrame, marks: pl.DataFrame | None, counts: Counts | None = None) -> Figure:
    """Histogram of staleness in versions."""
    heading = "How many versions the model had moved on"
    if frame.is_empty() or marks is None:
        return Figure("staleness-versions", heading, "No update arrived, so there is no staleness.")
    tooltip = [
        alt.Tooltip("from:Q", title="Staleness from"),
        alt.Tooltip("to:Q", title="to"),
        alt.Tooltip("fate:N", title="Fate"),
        alt.Tooltip("updates:Q", title="Updates", format=",d"),
    ]
    chart = bars("staleness", "Staleness (versions)", "Updates").encode(color=fates(frame, offset=34), tooltip=tooltip)
    headings = {"from": "Staleness from", "to": "to (versions)", "fate": "Fate", "updates": "Updates"}
    return Figure(
        "staleness-versions",
        heading,
        "Staleness is the version at arrival minus the version that the client started from.",
        marked(chart, "staleness_marks"),
        {
            "staleness": Numbers("Updates by staleness", frame, headings),
            "staleness_marks": _mark_numbers(marks, "versions"),
        },
        follow=_follow("staleness", counts),
    )


def _follow(data: str, counts: Counts | None) -> Follow | None:
    return None if counts is None else Follow(counts={data: counts})


def in_seconds(
    frame: pl.DataFrame, marks: pl.DataFrame | None, unit: TimeUnit, counts: Counts | None = None, *, logarithmic: bool
) -> Figure:
    """Histogram of the time from dispatch to arrival."""
    heading = "How long an update was under way"
    if marks is None:
        return Figure("staleness-seconds", heading, "No update arrived, so no time passed.")
    title = f"Dispatch to arrival ({unit.name} of virtual time)"
    tooltip = [
        alt.Tooltip("left:Q", title=f"From ({unit.name})", format=",.4~g"),
        alt.Tooltip("right:Q", title=f"to ({unit.name})", format=",.4~g"),
        alt.Tooltip("count:Q", title="Updates", format=",d"),
    ]
    chart = bars("away", title, "Updates", top="count", logarithmic=logarithmic).encode(tooltip=tooltip)
    headings = {"left": f"From ({unit.name})", "right": f"to ({unit.name})", "count": "Updates"}
    lead = "Age of an update when it reached the server: download, wait, compute and upload together."
    return Figure(
        "staleness-seconds",
        heading,
        lead + (" The scale is logarithmic." if logarithmic else ""),
        marked(chart, "away_marks"),
        {"away": Numbers("Updates by time under way", frame, headings), "away_marks": _mark_numbers(marks, unit.name)},
        follow=_follow("away", counts),
    )


def _mark_numbers(marks: pl.DataFrame, unit: str) -> Numbers:
    return Numbers("Median, 99th percentile and maximum", marks, {"mark": "Mark", "value": f"Value ({unit})"})


def against_staleness(data: str, frame: pl.DataFrame, heading: str, title: str, lead: str) -> Figure:
    """Return a value of every update against its staleness: mean as a line, least to greatest as a band."""
    if frame.is_empty():
        return Figure(data, heading, f"No update states {title.lower()}, so there is nothing to compare.")
    x = alt.X("staleness:Q", title="Staleness (versions)", scale=alt.Scale(nice=False), axis=alt.Axis(tickMinStep=1))
    base = alt.Chart().encode(x=x)
    zero = alt.Scale(zero=True)
    ends = base.mark_rule(strokeWidth=4, style="band").encode(
        y=alt.Y("least:Q", title=title, scale=zero, axis=alt.Axis(tickCount=5)), y2="greatest:Q"
    )
    dots = base.mark_line(point={"filled": True, "size": 36}, strokeWidth=1.5).encode(
        y=alt.Y("mean:Q", title=title, scale=zero),
        tooltip=[
            alt.Tooltip("staleness:Q", title="Staleness"),
            alt.Tooltip("mean:Q", title="Mean", format=".4~g"),
            alt.Tooltip("least:Q", title="Least", format=".4~g"),
            alt.Tooltip("greatest:Q", title="Greatest", format=".4~g"),
            alt.Tooltip("updates:Q", title="Updates", format=",d"),
        ],
    )
    headings = {
        "staleness": "Staleness (versions)",
        "least": "Least",
        "mean": "Mean",
        "greatest": "Greatest",
        "updates": "Updates",
    }
    return Figure(
        data,
        heading,
        lead,
        alt.layer(ends, dots, data=named(data), height=_HEIGHT),
        {data: Numbers(f"{title} by staleness", frame, headings)},
    )


def weights(frame: pl.DataFrame) -> Figure:
    """Return applied weight against staleness."""
    return against_staleness(
        "weights",
        frame,
        "How much a late update still counted",
        "Applied weight",
        "An update's weight times the scale of the publish that it went into; bars reach from the least to the greatest.",
    )


def rates(frame: pl.DataFrame) -> Figure:
    """Learning rate against staleness."""
    flat = not frame.is_empty() and frame["least"].min() == frame["greatest"].max()
    lead = f"Every job trained with the same first rate, {formats.number(frame['mean'][0])}." if flat else (
        "The first learning rate of each job that came back; bars reach from the least to the greatest."
    )  # fmt: skip
    return against_staleness("rates", frame, "Which learning rate late updates had", "Learning rate", lead)
