"""Charts of the clients: who took part, whose data they hold, and where time went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from desim_fl.report import formats, trips
from desim_fl.report.figures import Figure, Numbers, named, text_height
from desim_fl.report.staleness_charts import bars, fates

if TYPE_CHECKING:
    import polars as pl

    from desim_fl.report.populations import Sample

_LEGS = list(trips.LEGS)


def sampled(shown: Sample) -> str:
    """Return a sentence that says which clients are shown, empty where all are."""
    if shown.whole:
        return ""
    return f" Shown: {shown.names.height} of {formats.count(shown.total)} clients, evenly spread."


def _clients(shown: Sample) -> alt.Y:
    return alt.Y("label:N", title=None, sort=shown.labels, axis=alt.Axis(grid=False, ticks=False))


def participation(frame: pl.DataFrame, shown: Sample, lead: str) -> Figure:
    """Jobs a client, stacked by what became of them."""
    heading = "Who took part how often"
    if frame.is_empty():
        return Figure("participation", heading, "No job was dispatched, so nobody took part.")
    chart = (
        alt.Chart(named("participation"), height=text_height(shown.names.height))
        .mark_bar(height={"band": 0.72})
        .encode(
            x=alt.X("jobs:Q", title="Jobs dispatched", axis=alt.Axis(tickMinStep=1, format=",d")),
            y=_clients(shown),
            color=fates(frame),
            order=alt.Order("rank:Q"),
            tooltip=[
                alt.Tooltip("label:N", title="Client"),
                alt.Tooltip("fate:N", title="Fate"),
                alt.Tooltip("jobs:Q", title="Jobs", format=",d"),
            ],
        )
    )
    headings = {"label": "Client", "fate": "Fate", "jobs": "Jobs"}
    return Figure(
        "participation",
        heading,
        lead + sampled(shown),
        chart,
        {"participation": Numbers("Jobs by client and fate", frame, headings)},
    )


def turnout(frame: pl.DataFrame) -> Figure:
    """How many clients sent how many updates."""
    heading = "How evenly the work was spread"
    if frame.is_empty():
        return Figure("turnout", heading, "There are no clients.")
    tooltip = [
        alt.Tooltip("from:Q", title="Updates from"),
        alt.Tooltip("to:Q", title="to"),
        alt.Tooltip("clients:Q", title="Clients", format=",d"),
    ]
    chart = bars("turnout", "Updates sent by a client", "Clients", top="clients").encode(tooltip=tooltip)
    headings = {"from": "Updates from", "to": "to", "clients": "Clients"}
    lead = "Each bar counts the clients that sent so many updates; a narrow hill means equal turns."
    numbers = {"turnout": Numbers("Clients by number of updates", frame, headings)}
    return Figure("turnout", heading, lead, chart.properties(height=220), numbers)


def classes(frame: pl.DataFrame, shown: Sample) -> Figure:
    """Heat map of training samples by client and class."""
    heading = "Which classes each client holds"
    if frame.is_empty():
        return Figure("partition", heading, "These data have no classes.")
    labels = [label for label in shown.labels if label in set(frame["label"])]
    chart = (
        alt.Chart(named("partition"), height=text_height(len(labels)))
        .mark_rect()
        .encode(
            x=alt.X("class:O", title="Class", axis=alt.Axis(labelAngle=0, orient="top")),
            y=alt.Y("label:N", title=None, sort=labels),
            color=alt.Color("samples:Q", title="Training samples", scale=alt.Scale(zero=True)),
            tooltip=[
                alt.Tooltip("label:N", title="Client"),
                alt.Tooltip("class:O", title="Class"),
                alt.Tooltip("samples:Q", title="Training samples", format=",d"),
            ],
        )
    )
    headings = {"label": "Client", "class": "Class", "samples": "Training samples"}
    return Figure(
        "partition",
        heading,
        "Training samples by class; even rows mean that clients are alike." + sampled(shown),
        chart,
        {"partition": Numbers("Training samples by client and class", frame, headings)},
    )


def leg_times(frame: pl.DataFrame, shown: Sample) -> Figure:
    """Mean virtual seconds of each leg, stacked, by client."""
    heading = "Where a job's virtual time goes"
    if frame.is_empty():
        return Figure("leg-times", heading, "No job came back, so no time can be split up.")
    labels = [label for label in shown.labels if label in set(frame["label"])]
    legend = alt.Legend(values=[leg for leg in _LEGS if leg in set(frame["leg"])])
    chart = (
        alt.Chart(named("leg_times"), height=text_height(len(labels)))
        .mark_bar(height={"band": 0.72})
        .encode(
            x=alt.X("seconds:Q", title="Mean virtual seconds a job"),
            y=alt.Y("label:N", title=None, sort=labels, axis=alt.Axis(grid=False)),
            color=alt.Color("leg:N", title=None, scale=alt.Scale(domain=_LEGS, range="ordinal"), legend=legend),
            order=alt.Order("rank:Q"),
            tooltip=[
                alt.Tooltip("label:N", title="Client"),
                alt.Tooltip("leg:N", title="Leg"),
                alt.Tooltip("seconds:Q", title="Mean seconds", format=",.4~g"),
                alt.Tooltip("jobs:Q", title="Jobs", format=",d"),
            ],
        )
    )
    headings = {"label": "Client", "leg": "Leg", "seconds": "Mean virtual seconds a job", "jobs": "Jobs"}
    return Figure(
        "leg-times",
        heading,
        "Mean over the jobs that came back." + sampled(shown),
        chart,
        {"leg_times": Numbers("Virtual seconds by client and leg", frame, headings)},
    )


def real_times(frame: pl.DataFrame, *, logarithmic: bool) -> Figure:
    """Histogram of the real seconds that training a job took."""
    heading = "How long training really took"
    if frame.is_empty():
        return Figure("real-times", heading, "Real times were not recorded.")
    tooltip = [
        alt.Tooltip("left:Q", title="From (s)", format=",.3~g"),
        alt.Tooltip("right:Q", title="to (s)", format=",.3~g"),
        alt.Tooltip("count:Q", title="Jobs", format=",d"),
    ]
    chart = bars("real_times", "Real seconds a job", "Jobs", top="count", logarithmic=logarithmic).encode(
        tooltip=tooltip
    )
    headings = {"left": "From (s)", "right": "to (s)", "count": "Jobs"}
    lead = "Seconds on the computer that trained, not virtual time: they differ from run to run and decide nothing."
    numbers = {"real_times": Numbers("Jobs by real training time", frame, headings)}
    return Figure("real-times", heading, lead, chart.properties(height=220), numbers)
