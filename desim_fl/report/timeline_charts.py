"""The timeline of clients: how many jobs were in flight, and below it what each client did when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from desim_fl.report import formats, roster, trips, window
from desim_fl.report.figures import Figure, Numbers, named

if TYPE_CHECKING:
    from desim_fl.report.roster import Roster
    from desim_fl.report.window import Span

ORDER = "order"  # the parameter that says whom to show, in which order
_PICK = "pick_leg"
_LEGS = list(trips.LEGS)
_ENDS = ["lost", "cancelled", "rejected"]
_ROW = 16  # pixels
_BAR: dict[str, pl.DataType] = {
    "label": pl.String(), "job": pl.Int64(), "version": pl.Int64(), "leg": pl.String(), "start": pl.Float64(),
    "stop": pl.Float64(), "ended": pl.String(),
}  # fmt: skip
_CELL: dict[str, pl.DataType] = {
    "label": pl.String(),
    "start": pl.Float64(),
    "stop": pl.Float64(),
    "busy": pl.Float64(),
}


def timeline(found: Roster, whole: Span) -> Figure:
    """Gantt chart below the number of jobs in flight; the script of the page fills it with what is asked for."""
    heading = "What each client did when"
    if found.jobs.is_empty() or not whole.end:
        return Figure("timeline", heading, "No job was dispatched.", wide=True)
    title = f"Virtual time ({whole.unit.name})"
    ends = bool(found.jobs["fate"].is_in([trips.FATES.index(fate) for fate in _ENDS]).any())
    layers = [
        *([_busy(whole)] if found.busy else []),
        _bars(whole, title, waiting=found.waiting),
        *([_ends(whole, title)] if ends else []),
    ]
    gantt = alt.layer(*layers, height=alt.Step(_ROW), name="gantt")
    first = found.clients["label"].head(50).to_list()
    both = alt.vconcat(_flying(whole), gantt, spacing=22)
    order = alt.VariableParameter(name=ORDER, value=first)
    pick = window.selection(_PICK, both, ["legs"], type="point", fields=["leg"])
    chart = window.watched(both, whole, order, pick)
    return Figure(
        "timeline",
        heading,
        _lead(found, ends=ends),
        chart,
        _numbers(found, title),
        wide=True,
        follow=window.Follow(axis=True, overview=True),
        material=found.payload(),
        beside=[_printed(found, whole)],
    )


def _lead(found: Roster, *, ends: bool) -> str:
    parts = ["Each bar is one leg of one job."]
    if ends:
        parts.append("A cross marks a lost job, a triangle a cancelled, a diamond a rejected one.")
    if found.busy:
        parts.append(
            "Where there are too many bars to see, the shade of a row says how much of the time its client had a job; drag "
            "in the upper chart to look closer."
        )
    if found.clients.height < found.total:
        parts.append(f"Here are {found.clients.height} of {formats.count(found.total)} clients, evenly spread.")
    return " ".join(parts)


def _flying(whole: Span) -> alt.Chart:
    return (
        alt.Chart(named("flying"), name="flying", height=60)
        .mark_area(interpolate="step-after", style="band", line=True)
        .encode(
            x=alt.X("time:Q", title=None, scale=alt.Scale(domain=[0, whole.length], nice=False)),
            y=alt.Y("flying:Q", title="Jobs in flight (drag to zoom)", axis=alt.Axis(tickCount=2, format=",d")),
        )
    )


def _rows() -> alt.Y:
    axis = alt.Axis(grid=False, ticks=False)
    return alt.Y("label:N", title=None, scale=alt.Scale(domain=alt.ExprRef(ORDER)), axis=axis)


def _busy(whole: Span) -> alt.Chart:
    chart = alt.Chart(named("busy"), name="busy").mark_bar(style="busy", clip=True, height={"band": 0.72})
    return chart.encode(
        x=alt.X("start:Q", scale=window.scale(whole)),
        x2="stop:Q",
        y=_rows(),
        opacity=alt.Opacity("busy:Q", scale=alt.Scale(domain=[0, 1], range=[0, 1]), legend=None),
        tooltip=[
            alt.Tooltip("label:N", title="Client"),
            alt.Tooltip("start:Q", title="From", format=",.4~g"),
            alt.Tooltip("stop:Q", title="to", format=",.4~g"),
            alt.Tooltip("busy:Q", title="Had a job", format=".0%"),
        ],
    )


def _bars(whole: Span, title: str, *, waiting: bool) -> alt.Chart:
    tooltip = [
        alt.Tooltip("label:N", title="Client"),
        alt.Tooltip("job:Q", title="Job"),
        alt.Tooltip("version:Q", title="From version"),
        alt.Tooltip("leg:N", title="Leg"),
        alt.Tooltip("start:Q", title="Start", format=",.4~g"),
        alt.Tooltip("stop:Q", title="End", format=",.4~g"),
    ]
    legend = alt.Legend(values=[leg for leg in _LEGS if leg != "wait" or waiting])
    colour = alt.Color("leg:N", title=None, scale=alt.Scale(domain=_LEGS, range="ordinal"), legend=legend)
    chart = alt.Chart(named("legs"), name="legs").mark_bar(clip=True, height={"band": 0.72})
    return chart.encode(
        x=alt.X("start:Q", title=title, scale=window.scale(whole)),
        x2="stop:Q",
        y=_rows(),
        color=colour,
        fillOpacity=alt.FillOpacityValue(0.15, condition={"param": _PICK, "value": 1}),
        tooltip=tooltip,
    )


def _ends(whole: Span, title: str) -> alt.Chart:
    """Crosses where a job was lost, cancelled or turned away."""
    shape = alt.Shape("ended:N", title=None, scale=alt.Scale(domain=_ENDS, range=["cross", "triangle-down", "diamond"]))
    chart = (
        alt.Chart(named("legs"), name="ends")
        .transform_filter("datum.ended !== null")
        .mark_point(style="end-mark", clip=True, size=60)
    )
    return chart.encode(
        x=alt.X("stop:Q", title=title, scale=window.scale(whole)),
        y=_rows(),
        shape=shape.legend(None),
        tooltip=[
            alt.Tooltip("label:N", title="Client"),
            alt.Tooltip("job:Q", title="Job"),
            alt.Tooltip("ended:N", title="Ended as"),
        ],
    )


def _numbers(found: Roster, title: str) -> dict[str, Numbers]:
    busy = {"busy": Numbers("Busy", pl.DataFrame(schema=_CELL), {})} if found.busy else {}
    return {
        **busy,
        "legs": Numbers("Legs", pl.DataFrame(schema=_BAR), {}),
        "flying": Numbers("Jobs in flight", found.flying, {"time": title, "flying": "Jobs in flight"}),
    }


def _printed(found: Roster, whole: Span) -> Numbers:
    frame, unit = roster.printed(found, whole), whole.unit.name
    instants = ("dispatched", "downloaded", "started", "computed", "ended")
    headings = {
        "label": "Client",
        "job": "Job",
        "version": "From version",
        **{name: f"{name.capitalize()} ({unit})" for name in instants if frame[name].count()},
        "fate": "Fate",
    }
    every = "Jobs" if frame.height == found.known else f"The first {frame.height} of {formats.many(found.known, 'job')}"
    return Numbers(every, frame, headings)
