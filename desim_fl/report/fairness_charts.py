"""Charts of fairness: how evenly updates were spread, what each class of devices had, and for whom the model works."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from desim_fl.report import fairness, thinning
from desim_fl.report.figures import Figure, Numbers, named
from desim_fl.report.formats import many, number, percent

if TYPE_CHECKING:
    from desim_fl.report.fairness import Evenness

_HEIGHT = 240


def figures(clients: pl.DataFrame, held: pl.DataFrame) -> list[Figure]:
    """Return the figures that these clients give reason for."""
    even = fairness.evenness(clients["arrivals"])
    shares = fairness.shares(clients)
    found = [] if even is None else [_lorenz(fairness.lorenz(clients["arrivals"]), even)]
    found += [] if shares.is_empty() else [_shares(shares)]
    return found + ([] if not held["accuracy"].count() else [_held_out(held)])


def _lorenz(frame: pl.DataFrame, even: Evenness) -> Figure:
    percents = alt.Axis(format=".0%", tickCount=5)
    base = alt.Chart().encode(
        x=alt.X("clients:Q", title="Share of clients, least busy first", axis=percents, scale=alt.Scale(nice=False))
    )
    y = alt.Y("updates:Q", title="Share of updates", axis=percents)
    line = base.mark_line().encode(
        y=y,
        tooltip=[
            alt.Tooltip("clients:Q", title="Clients", format=".1%"),
            alt.Tooltip("updates:Q", title="Updates", format=".1%"),
        ],
    )
    equal = base.mark_line(style="mark-line").encode(y=alt.Y("even:Q"))
    lead = (
        f"The busiest tenth of the clients sent {percent(round(even.busiest, 3))} of all updates. Equal turns would give the dashed "
        f"line. Gini coefficient {number(even.gini, 3)} (0 = equal turns), Jain's index {number(even.jain, 3)} (1 = equal turns)."
    )
    headings = {"clients": "Share of clients", "updates": "Share of updates"}
    return Figure(
        "lorenz",
        "How evenly updates were spread over clients",
        lead,
        alt.layer(equal, line, data=named("lorenz"), height=_HEIGHT),
        {"lorenz": Numbers("Updates of the least busy clients", frame, headings)},
    )


def _shares(frame: pl.DataFrame) -> Figure:
    order = frame["group"].unique(maintain_order=True).to_list()
    measures = [what for what in fairness.MEASURES if what in set(frame["what"])]
    row = 15 * len(measures) + 12
    chart = (
        alt.Chart(named("shares"), height=row * len(order))
        .mark_bar()
        .encode(
            x=alt.X("share:Q", title="Share of all", axis=alt.Axis(format=".0%")),
            y=alt.Y("group:N", title=None, sort=order, axis=alt.Axis(grid=False)),
            yOffset=alt.YOffset("what:N", sort=measures),
            color=alt.Color("what:N", title=None, scale=alt.Scale(domain=measures), legend=alt.Legend(columns=2)),
            tooltip=[
                alt.Tooltip("group:N", title="Devices"),
                alt.Tooltip("what:N", title="Share of"),
                alt.Tooltip("share:Q", title="Share", format=".1%"),
            ],
        )
    )
    headings = {"group": "Devices", "what": "Share of", "share": "Share"}
    return Figure(
        "shares",
        "What each class of devices contributed",
        "Where updates fall behind clients or samples, the model hears less of that class than there is of it.",
        chart,
        {"shares": Numbers("Shares of the classes of devices", frame, headings)},
    )


def _held_out(frame: pl.DataFrame) -> Figure:
    mean, worst = fairness.worst(frame["accuracy"])
    known = frame.filter(pl.col("accuracy").is_not_null())
    shown = known.sort("accuracy", "label")[thinning.spread(range(known.height), thinning.LIMIT)]
    order = frame["group"].unique(maintain_order=True).to_list()
    several = len(order) > 1
    x = alt.X(
        "accuracy:Q",
        title="Accuracy on the client's own held-out samples",
        axis=alt.Axis(format=".0%"),
        scale=alt.Scale(zero=False),
    )
    y = alt.Y("group:N", title=None, sort=order, axis=alt.Axis(grid=False))
    base = alt.Chart()
    dots = base.mark_tick(thickness=2, opacity=0.55, height={"band": 0.6}).encode(
        x=x,
        y=y,
        tooltip=[
            alt.Tooltip("label:N", title="Client"),
            alt.Tooltip("accuracy:Q", title="Accuracy", format=".2%"),
            alt.Tooltip("examples:Q", title="Held-out samples", format=",d"),
        ],
    )
    means = base.mark_point(style="end-mark", shape="diamond", size=90).encode(x=alt.X("mean(accuracy):Q"), y=y)
    lead = (
        f"The last model on samples that each of {many(known.height, 'client')} kept back from its training; each tick is a client, the "
        f"diamond {'their mean by class' if several else 'their mean'}. The mean over clients is {percent(round(mean, 4))}, over the worst "
        f"tenth of them {percent(round(worst, 4))}."
    )
    headings = {
        "label": "Client", "group": "Devices", "accuracy": "Accuracy", "loss": "Loss", "examples": "Held-out samples",
    }  # fmt: skip
    headings = headings if several else {key: title for key, title in headings.items() if key != "group"}
    return Figure(
        "held-out",
        "For whom the model works",
        lead,
        alt.layer(dots, means, data=named("held_out"), height=max(90, 44 * len(order))),
        {"held_out": Numbers("Held-out accuracy by client", shown, headings)},
        wide=several,
    )
