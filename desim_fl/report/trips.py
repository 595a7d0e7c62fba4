"""One row a job, put together from its rows in the event log.

Columns: ``job, client, version`` (of the model it starts from), ``lr, dispatched, downloaded, started, computed, ended``
(ticks, null where it never came to that), ``fate``, ``staleness`` (versions), ``loss`` (local, null where not
finite), ``applied`` (weight times the scale of the publish that follows,
of accepted updates only), ``bytes``.
"""

from __future__ import annotations

import polars as pl

from desim_fl.core import TICKS_PER_SECOND

FATES = ("accepted", "not finite", "rejected", "lost", "cancelled", "in flight")
LEGS = ("download", "wait", "compute", "upload")
_KIND = pl.col("kind")


def trips(events: pl.DataFrame) -> pl.DataFrame:
    """Every dispatched job, in the order of dispatch."""
    jobs = events.filter(_KIND == "dispatch").select("job", "client", "version", "lr", dispatched="ticks", down="bytes")
    for kind, name in (("downloaded", "downloaded"), ("started", "started"), ("computed", "computed")):
        jobs = _with(jobs, events.filter(kind == _KIND).select("job", pl.col("ticks").alias(name)))
    jobs = _with(jobs, _endings(events))
    jobs = _with(jobs, _applied(events))
    counted = pl.when(pl.col("fate") == "accepted").then(pl.col("applied"))
    return jobs.with_columns(pl.col("fate").fill_null("in flight"), applied=counted)


def _with(jobs: pl.DataFrame, facts: pl.DataFrame) -> pl.DataFrame:
    once = facts.unique("job", keep="first", maintain_order=True)
    return jobs.join(once, on="job", how="left", maintain_order="left")


def _endings(events: pl.DataFrame) -> pl.DataFrame:
    """How each job ended: its arrival, and whether that was turned away, or its loss."""
    rejected = events.filter(_KIND == "reject").select("job")["job"].unique().implode()
    fate = (
        pl.when(_KIND == "lose").then(pl.lit("lost"))
        .when(_KIND == "cancel").then(pl.lit("cancelled"))
        .when(pl.col("job").is_in(rejected)).then(pl.lit("rejected"))
        .when(pl.col("outcome").is_not_null()).then(pl.lit("not finite"))
        .otherwise(pl.lit("accepted"))
    )  # fmt: skip
    finite = pl.when(pl.col("loss").is_finite()).then(pl.col("loss"))
    ends = events.filter(_KIND.is_in(["arrive", "reject", "lose", "cancel"]))
    return ends.select("job", fate.alias("fate"), "staleness", finite.alias("loss"), ended="ticks", up="bytes")


def _applied(events: pl.DataFrame) -> pl.DataFrame:
    """Return what each update was multiplied with in the end; a scale that was not stated counts as 1."""
    arrivals = events.filter((_KIND == "arrive") & pl.col("weight").is_finite()).select("seq", "job", "weight")
    publishes = events.filter(_KIND == "publish").select("seq", pl.col("scale").fill_null(1.0))
    joined = arrivals.join_asof(publishes, on="seq", strategy="forward")
    return joined.select("job", applied=pl.col("weight") * pl.col("scale")).filter(pl.col("applied").is_finite())


def returned(jobs: pl.DataFrame) -> pl.DataFrame:
    """Return the jobs that came back, whatever the server made of them, with ``away_s`` (seconds from dispatch to arrival)."""
    back = jobs.filter(pl.col("fate").is_in(["accepted", "not finite", "rejected"]))
    return back.with_columns(away_s=(pl.col("ended") - pl.col("dispatched")) / TICKS_PER_SECOND)


def legs(jobs: pl.DataFrame, end: int) -> pl.DataFrame:
    """One row a leg of a job that began: ``job, client, version, fate, leg, start, stop`` (ticks).

    A leg that a loss, a cancellation or the end of the run (``end``) cut short stops there; ``last`` marks the leg
    in which a job ended. Legs of no length are left out, unless a job ended in them.
    """
    cut = pl.col("ended").fill_null(end)
    begin = {"download": "dispatched", "wait": "downloaded", "compute": "started", "upload": "computed"}
    finish = {"download": "downloaded", "wait": "started", "compute": "computed", "upload": "ended"}
    # Without a wait law nothing is "started": compute then begins with the end of the download.
    waiting = pl.col("started").is_not_null().any()
    moved = jobs.with_columns(started=pl.when(waiting).then(pl.col("started")).otherwise(pl.col("downloaded")), cut=cut)
    parts = [
        moved.filter(pl.col(begin[leg]).is_not_null()).select(
            "job", "client", "version", "fate", pl.lit(leg).alias("leg"), start=begin[leg],
            stop=pl.min_horizontal(pl.col(finish[leg]).fill_null(pl.col("cut")), "cut"),
            last=pl.col(finish[leg]).is_null() if leg != "upload" else pl.lit(value=True),
        )
        for leg in LEGS
    ]  # fmt: skip
    rows = pl.concat(parts).filter((pl.col("stop") > pl.col("start")) | pl.col("last"))
    order = pl.col("leg").replace_strict({leg: rank for rank, leg in enumerate(LEGS)}, return_dtype=pl.Int64)
    return rows.with_columns(rank=order).sort("start", "job", "rank").drop("rank")


def in_flight(jobs: pl.DataFrame, end: int) -> pl.DataFrame:
    """How many jobs are out after each instant: ``ticks, flying``."""
    changes = pl.concat(
        [
            jobs.select(ticks="dispatched", change=pl.lit(1, pl.Int64)),
            jobs.filter(pl.col("ended").is_not_null()).select(ticks="ended", change=pl.lit(-1, pl.Int64)),
        ]
    )
    steps = changes.group_by("ticks").agg(pl.col("change").sum()).sort("ticks")
    counted = steps.select("ticks", flying=pl.col("change").cum_sum())
    return counted.filter(pl.col("ticks") <= end)
