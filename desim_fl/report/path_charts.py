"""Charts of the critical path: which legs of which clients the time to a version went into."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import altair as alt
import polars as pl

from desim_fl.report import critical_path, goals
from desim_fl.report.figures import Figure, Numbers, named, text_height
from desim_fl.report.formats import count, duration, percent

if TYPE_CHECKING:
    from desim_fl.report.critical_path import Path
    from desim_fl.report.goals import Goal
    from desim_fl.report.reading import Run

_LEGS = list(critical_path.LEGS)
_DOING = {
    "download": "downloads",
    "wait": "waiting at clients",
    "compute": "computing",
    "upload": "uploads",
    "paused": "pauses",
    "late": "jobs that had been given up",
    "deadline": "waiting for a deadline",
    "nobody there": "waiting for a client to come",
}


class Told(NamedTuple):
    """The critical path of a run, and to what it leads: ``aim`` in words; ``missed`` says what was never reached."""

    path: Path
    sums: pl.DataFrame
    aim: str
    missed: str = ""

    @property
    def end_s(self) -> float:
        """Virtual seconds that the path sums to."""
        return self.path.end / critical_path.TICKS_PER_SECOND


def told(run: Run, goal: Goal | None, *, pauses: bool = False) -> Told | None:
    """Return the path to the goal, or to the last version where there is no goal or it was not reached."""
    version = None if goal is None else goals.reached(run, goal)
    path = None if version == 0 else critical_path.critical_path(run.events, version, pauses=pauses)
    if path is None:
        return None
    if goal is None:
        aim, missed = f"the last version ({count(path.version)})", ""
    elif version is None:
        aim, missed = f"the last version ({count(path.version)})", f"The run never reached {goal.words}. "
    else:
        aim, missed = f"{goal.words} (version {count(version)})", ""
    return Told(path, critical_path.by_leg(path, groups(run.clients)), aim, missed)


def groups(clients: pl.DataFrame) -> pl.DataFrame:
    """Return to which class of devices each client belongs: ``client, group``; one group where there are no classes."""
    return clients.select("client", group=pl.col("device_class").fill_null(critical_path.EVERYBODY))


def sentence(told: Told) -> str:
    """Return what the path says, in words: the largest part, and the next where it matters."""
    parts = told.sums.sort("seconds", "rank", descending=[True, False])
    several = parts.filter(pl.col("group") != critical_path.SERVER)["group"].n_unique() > 1
    named = [
        f"{percent(round(share, 3))} {'went into' if not at else 'into'} {_DOING[leg]}"
        + (
            f" of the class \N{LEFT DOUBLE QUOTATION MARK}{group}\N{RIGHT DOUBLE QUOTATION MARK}"
            if several and group != critical_path.SERVER
            else ""
        )
        for at, (group, leg, share) in enumerate(parts.select("group", "leg", "share").head(2).iter_rows())
    ]
    if not named:
        return told.missed.strip()
    return (
        f"{told.missed}Of the {duration(told.end_s)} to {told.aim}, {' and '.join(named)} (along the critical path, the chain of "
        "jobs that this version waited for)."
    )


def legs(told: Told | None, none: str) -> Figure:
    """Return the path by leg and class of devices, as bars."""
    heading = "What the time to a version went into"
    if told is None or told.sums.is_empty():
        return Figure("path", heading, none)
    order = told.sums["group"].unique(maintain_order=True).to_list()
    present = [leg for leg in _LEGS if leg in set(told.sums["leg"])]
    chart = (
        alt.Chart(named("path"), height=max(90, 34 * len(order)))
        .mark_bar(height={"band": 0.72})
        .encode(
            x=alt.X("share:Q", title=f"Share of {duration(told.end_s)}", axis=alt.Axis(format=".0%")),
            y=alt.Y("group:N", title=None, sort=order, axis=alt.Axis(grid=False)),
            color=alt.Color(
                "leg:N",
                title=None,
                scale=alt.Scale(domain=_LEGS, range="ordinal"),
                legend=alt.Legend(values=present),
            ),
            order=alt.Order("rank:Q"),
            tooltip=[
                alt.Tooltip("group:N", title="Devices"),
                alt.Tooltip("leg:N", title="Leg"),
                alt.Tooltip("seconds:Q", title="Seconds", format=",.4~g"),
                alt.Tooltip("share:Q", title="Share", format=".2%"),
            ],
        )
    )
    lead = (
        f"{told.missed}The chain of events that led to {told.aim}: back from its publish to the arrival that caused it, over "
        "that job's legs to its dispatch, to the event that set it out, and so on to the start. "
        f"The parts sum to {duration(told.end_s)}, the time of the publish."
    )
    headings = {"group": "Devices", "leg": "Leg", "seconds": "Virtual seconds", "share": "Share", "spans": "Stretches"}
    return Figure(
        "path", heading, lead, chart, {"path": Numbers("Critical path by devices and leg", told.sums, headings)}
    )


def clients(told: Told | None, run: Run, none: str) -> Figure:
    """Return the clients that the path ran through longest."""
    heading = "Which clients the time was spent on"
    frame = None if told is None else critical_path.by_client(told.path)
    if frame is None or frame.is_empty():
        return Figure("path-clients", heading, none)
    named_rows = frame.join(run.clients.select("client", "label"), on="client", how="inner", maintain_order="left")
    rows = named_rows.select("label", "seconds", "share", "jobs")
    labels = rows["label"].to_list()
    chart = (
        alt.Chart(named("path_clients"), height=text_height(len(labels)))
        .mark_bar(height={"band": 0.72})
        .encode(
            x=alt.X("seconds:Q", title="Virtual seconds on the critical path"),
            y=alt.Y("label:N", title=None, sort=labels, axis=alt.Axis(grid=False)),
            tooltip=[
                alt.Tooltip("label:N", title="Client"),
                alt.Tooltip("seconds:Q", title="Seconds", format=",.4~g"),
                alt.Tooltip("share:Q", title="Share", format=".2%"),
                alt.Tooltip("jobs:Q", title="Jobs", format=",d"),
            ],
        )
    )
    assert told is not None
    total = told.path.spans.filter(pl.col("client") >= 0)["client"].n_unique()
    what = (
        f"{count(total)} clients; shown: the {len(labels)} longest"
        if total > len(labels)
        else f"{count(total)} clients"
    )
    lead = f"The path runs through jobs of {what}."
    headings = {"label": "Client", "seconds": "Virtual seconds", "share": "Share", "jobs": "Jobs on the path"}
    return Figure(
        "path-clients", heading, lead, chart, {"path_clients": Numbers("Critical path by client", rows, headings)}
    )
