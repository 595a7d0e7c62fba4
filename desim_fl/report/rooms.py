"""The sections of the page, and the figures in each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from desim_fl.report import (
    client_charts,
    curves,
    fairness,
    fairness_charts,
    learning_charts,
    path_charts,
    populations,
    roster,
    staleness_charts,
    timeline_charts,
    toll_charts,
    trips,
    window,
)
from desim_fl.report.figures import Figure, Numbers
from desim_fl.report.formats import percent, time_unit
from desim_fl.report.learning_charts import Axis

if TYPE_CHECKING:
    from desim_fl.report.facts import Facts
    from desim_fl.report.path_charts import Told
    from desim_fl.report.reading import Run
    from desim_fl.report.window import Span


class Room(NamedTuple):
    """A section of the page."""

    id: str
    title: str
    figures: list[Figure]


def rooms(run: Run, jobs: pl.DataFrame, facts: Facts, told: Told | None) -> list[Room]:
    """All sections, in reading order; ``told`` is the critical path."""
    whole = window.span(facts.end)
    shown = populations.sample(run.clients)
    back = trips.returned(jobs)
    found = [
        Room("learning", "Learning", _learning(run, facts, whole)),
        Room("critical-path", "Critical path", _path(run, told)),
        Room("staleness", "Staleness", _staleness(back, whole)),
        Room("timeline", "Timeline", _timeline(jobs, run, whole)),
        Room("links", "Links", toll_charts.links(run.links, whole)),
        Room("clients", "Clients", _clients(run, jobs, shown, whole)),
        Room("fairness", "Fairness", fairness_charts.figures(run.clients, fairness.held_out(run))),
        Room("losses", "Losses and energy", [*toll_charts.losses(run.losses), *toll_charts.energy(run.classes)]),
        Room("times", "Execution times", _times(run, jobs, shown)),
    ]
    return [room for room in found if room.figures]


def _learning(run: Run, facts: Facts, whole: Span) -> list[Figure]:
    unit = whole.unit
    frame = curves.learning(run.metrics, unit)
    axes = (
        ("learning-time", Axis("time", f"Virtual time ({unit.name})")),
        ("learning-updates", Axis("updates", "Updates received")),
    )
    found = [learning_charts.learning(name, frame, axis, whole, facts.diverged) for name, axis in axes]
    if facts.diverged is None or frame.is_empty():
        return found[:1] if frame.is_empty() else found
    place = {"time": [facts.diverged.time_s / unit.seconds], "updates": [facts.diverged.updates]}
    mark = pl.DataFrame(place, schema={"time": pl.Float64, "updates": pl.Int64})
    rule = {"divergence": Numbers("Divergence", mark, {})}
    return [replace(figure, numbers={**figure.numbers, **rule}) for figure in found]


def _path(run: Run, told: Told | None) -> list[Figure]:
    none = "Nothing was published, so no path leads anywhere." if told is None else "The version came at 0 s."
    bars = path_charts.legs(told, none)
    return [bars] if bars.chart is None else [bars, path_charts.clients(told, run, "No job stands on the path.")]


def _staleness(back: pl.DataFrame, whole: Span) -> list[Figure]:
    stale = curves.staleness_versions(back)
    top = stale["top"].max()
    versions = curves.marks(back["staleness"].cast(pl.Float64), int(top)) if isinstance(top, int) else None
    longest = back["away_s"].max()
    unit = time_unit(float(longest) if isinstance(longest, float) else 0.0)
    away, logarithmic = curves.away(back, unit)
    most = away["count"].max()
    seconds = curves.marks(back["away_s"] / unit.seconds, int(most)) if back.height and isinstance(most, int) else None
    return [
        staleness_charts.in_versions(stale, versions, curves.staleness_counts(back, whole)),
        staleness_charts.in_seconds(
            away, seconds, unit, curves.away_counts(back, away, unit, whole), logarithmic=logarithmic
        ),
        staleness_charts.weights(curves.by_staleness(back, "applied")),
        staleness_charts.rates(curves.by_staleness(back, "lr")),
    ]


def _timeline(jobs: pl.DataFrame, run: Run, whole: Span) -> list[Figure]:
    return [timeline_charts.timeline(roster.roster(jobs, run.clients, whole), whole)]


def _clients(run: Run, jobs: pl.DataFrame, shown: populations.Sample, whole: Span) -> list[Figure]:
    back = trips.returned(jobs)
    spread = [] if shown.whole else [client_charts.turnout(populations.turnout(run.clients))]
    return [
        client_charts.participation(populations.participation(jobs, shown), shown, _busiest(jobs)),
        client_charts.classes(populations.classes(run.clients, shown), shown),
        *spread,
        learning_charts.local_loss(curves.local_loss(back, whole.unit), whole),
        learning_charts.client_losses(populations.local_losses(back, shown), shown),
    ]


def _busiest(jobs: pl.DataFrame) -> str:
    if jobs.is_empty():
        return ""
    counts = jobs.group_by("client").len().sort("len", "client", descending=[True, False])
    share = percent(round(int(counts["len"][0]) / jobs.height, 3))
    return f"Jobs by client and what became of them; the busiest client took {share} of all jobs."


def _times(run: Run, jobs: pl.DataFrame, shown: populations.Sample) -> list[Figure]:
    real, logarithmic = populations.real_times(run.wall)
    return [
        client_charts.leg_times(populations.leg_times(jobs, shown), shown),
        client_charts.real_times(real, logarithmic=logarithmic),
    ]
