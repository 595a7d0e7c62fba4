"""What the timeline of clients is drawn from: a roster, their jobs in short form, and how busy each was when.

The page's script picks from it whom to show, in which order, and when. Jobs are told from the start of the run as far
as there is room for them; how busy clients were is told for the whole of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from desim_fl.core import TICKS_PER_SECOND
from desim_fl.report import populations, thinning, trips

if TYPE_CHECKING:
    from desim_fl.report.populations import Sample
    from desim_fl.report.window import Span

CLIENTS = 200  # in the roster
JOBS = 4000  # told one by one
LEGS = 1500  # bars that a browser draws at once
PRINTED = 400  # rows of the table of jobs
CELLS = 120_000  # steps of time in which it is told how busy somebody was, over all clients
STEPS = 2400  # at most so many a client
_LEVELS = 9


class Roster(NamedTuple):
    """Clients (``client, label, class, updates, seconds, first``), their jobs, and how busy they were.

    ``jobs`` has ``place, job, version, dispatched, downloaded, started, computed, ended, fate``: ``place`` in the roster,
    times in steps of ``grain`` ticks, those behind ``dispatched`` counted from there. They are told up to ``limit`` (ticks).
    ``busy`` has a text for each client, one digit a step of time, 9 = always; empty where jobs tell everything.
    """

    clients: pl.DataFrame
    total: int
    jobs: pl.DataFrame
    known: int
    grain: int
    limit: int
    waiting: bool
    busy: list[str]
    flying: pl.DataFrame

    @property
    def classed(self) -> bool:
        """Whether there are classes of devices."""
        return self.clients["class"].null_count() < self.clients.height

    def payload(self) -> dict[str, Any]:
        """Return everything as the page's script reads it."""
        return {
            "roster": self.clients.drop("client").rows(),
            "classed": self.classed,
            "jobs": self.jobs.rows(),
            "fates": trips.FATES,
            "legs": trips.LEGS,
            "grain": self.grain,
            "limit": self.limit,
            "waiting": self.waiting,
            "busy": self.busy,
            "most": {"clients": thinning.CLIENTS, "bars": LEGS},
        }


def roster(jobs: pl.DataFrame, clients: pl.DataFrame, whole: Span) -> Roster:
    """Put together what the timeline of a run shows."""
    people = populations.sample(clients, CLIENTS)
    mine = jobs.filter(pl.col("client").is_in(people.names["client"].implode()))
    told = mine.head(JOBS)
    limit = whole.end if told.height == mine.height else int(mine["dispatched"][JOBS])
    grain = 10 ** max(0, len(str(whole.end)) - 7)
    many = told.height < mine.height or told.height * (len(trips.LEGS) - 1) > LEGS
    flying = thinning.thin(trips.in_flight(jobs, whole.end), ["flying"])
    return Roster(
        clients=_clients(people, mine, clients, whole),
        total=people.total,
        jobs=_short(told, people, grain),
        known=mine.height,
        grain=grain,
        limit=limit,
        waiting=bool(jobs["started"].count()),
        busy=_busy(mine, people, whole.end) if many and whole.end else [],
        flying=flying.select(time=pl.col("ticks") / whole.ticks, flying="flying"),
    )


def _clients(people: Sample, jobs: pl.DataFrame, clients: pl.DataFrame, whole: Span) -> pl.DataFrame:
    """Return what clients can be put in order by: ``client, label, class, updates, seconds, first``."""
    back = trips.returned(jobs).group_by("client").agg(seconds=pl.col("away_s").mean())
    first = jobs.group_by("client").agg(first=pl.col("dispatched").min() / whole.ticks)
    known = clients.select("client", updates="arrivals", **{"class": "device_class"})
    joined = people.names
    for facts in (known, back, first):
        joined = joined.join(facts, on="client", how="left", maintain_order="left")
    numbers = [pl.col(name).round_sig_figs(6) for name in ("seconds", "first")]
    return joined.select("client", "label", "class", "updates", *numbers)


def _short(jobs: pl.DataFrame, people: Sample, grain: int) -> pl.DataFrame:
    places = people.names.select("client").with_row_index("place")
    fate = pl.col("fate").replace_strict({fate: at for at, fate in enumerate(trips.FATES)}, return_dtype=pl.Int64)
    later = [(pl.col(name) - pl.col("dispatched")) // grain for name in ("downloaded", "started", "computed", "ended")]
    joined = jobs.join(places, on="client", how="inner", maintain_order="left")
    return joined.select("place", "job", "version", pl.col("dispatched") // grain, *later, fate)


def _busy(jobs: pl.DataFrame, people: Sample, end: int) -> list[str]:
    """Return for each client a digit a step of time: the share of it in which it had a job, in ninths."""
    steps = max(1, min(STEPS, CELLS // max(1, people.names.height)))
    width = end / steps
    ends = [
        jobs.select("client", at="dispatched", sign=1),
        jobs.select("client", at=pl.col("ended").fill_null(end), sign=-1),
    ]
    step = (pl.col("at") * steps // end).clip(0, steps - 1).cast(pl.Int64)
    # Whoever begins at an instant is busy for the rest of its step and in all later ones; whoever ends takes that back.
    rest = (step + 1) * width - pl.col("at")
    found = pl.concat(ends).group_by("client", step.alias("step")).agg(
        part=(rest * pl.col("sign")).sum(), jobs=pl.col("sign").sum()
    )  # fmt: skip
    grid = people.names.select("client").join(
        pl.DataFrame({"step": range(steps)}, schema={"step": pl.Int64}), how="cross"
    )
    full = grid.join(found, on=["client", "step"], how="left", maintain_order="left").fill_null(0)
    before = pl.col("jobs").cum_sum().over("client") - pl.col("jobs")
    level = ((pl.col("part") / width + before) * _LEVELS).round().clip(0, _LEVELS).cast(pl.Int64)
    texts = full.with_columns(level.cast(pl.String).alias("level")).group_by("client", maintain_order=True)
    return texts.agg(pl.col("level").str.join(""))["level"].to_list()


def printed(found: Roster, whole: Span) -> pl.DataFrame:
    """Return the first jobs as a table for readers: ``label, job, version``, times in the unit of the page, ``fate``."""
    scale = found.grain / (TICKS_PER_SECOND * whole.unit.seconds)
    names = pl.Series("label", found.clients["label"].to_list(), dtype=pl.String)
    rows = found.jobs.head(PRINTED)
    start = pl.col("dispatched")
    times = [((start + pl.col(name)) * scale).alias(name) for name in ("downloaded", "started", "computed", "ended")]
    fates = pl.Series(list(trips.FATES), dtype=pl.String)
    labelled = rows.with_columns(label=names.gather(rows["place"]), fate=fates.gather(rows["fate"]))
    return labelled.select("label", "job", "version", (start * scale).alias("dispatched"), *times, "fate")
