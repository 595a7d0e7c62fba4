"""What the charts with one row a client show, for a sample of clients where there are many."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from desim_fl.core import TICKS_PER_SECOND
from desim_fl.report import thinning, trips


class Sample(NamedTuple):
    """The clients shown: ``names`` has ``client, label``, in order; ``total`` says how many there are."""

    names: pl.DataFrame
    total: int

    @property
    def labels(self) -> list[str]:
        """What the shown clients are called, in order."""
        return self.names["label"].to_list()

    @property
    def whole(self) -> bool:
        """Whether every client is shown."""
        return self.names.height == self.total

    def of(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the rows of shown clients, with their labels, in the frame's order."""
        return frame.join(self.names, on="client", how="inner", maintain_order="left")


def sample(clients: pl.DataFrame, most: int = thinning.CLIENTS) -> Sample:
    """Up to ``most`` clients, evenly spread over their numbers; those who took part where there are enough of them."""
    active = clients.filter(pl.col("dispatches") > 0)
    pool = active if active.height >= min(clients.height, most) else clients
    chosen = thinning.spread(pool["client"].to_list(), most)
    return Sample(clients.filter(pl.col("client").is_in(chosen)).select("client", "label"), clients.height)


def participation(jobs: pl.DataFrame, shown: Sample) -> pl.DataFrame:
    """Jobs of the shown clients by what became of them: ``label, fate, rank, jobs``."""
    counts = jobs.group_by("client", "fate").agg(jobs=pl.len().cast(pl.Int64))
    rank = pl.col("fate").replace_strict({fate: at for at, fate in enumerate(trips.FATES)}, return_dtype=pl.Int64)
    ordered = counts.with_columns(rank=rank).sort("client", "rank")
    return shown.of(ordered).select("label", "fate", "rank", "jobs")


def turnout(clients: pl.DataFrame) -> pl.DataFrame:
    """How many clients sent how many updates: ``from, to, left, right, clients``."""
    largest = clients["arrivals"].max()
    width = thinning.whole_bins(int(largest) if isinstance(largest, int) else 0)
    start = (pl.col("arrivals") // width * width).alias("from")
    counts = clients.group_by(start).agg(clients=pl.len().cast(pl.Int64)).sort("from")
    return counts.with_columns(
        to=pl.col("from") + (width - 1), left=pl.col("from") - 0.5, right=pl.col("from") + (width - 0.5)
    )


def classes(clients: pl.DataFrame, shown: Sample) -> pl.DataFrame:
    """Training samples of the shown clients by class: ``label, class, samples``; empty where data have no classes.

    Fewer clients are shown where there are so many classes that the cells would pass 2000.
    """
    known = clients.filter(pl.col("class_counts").list.len() > 0)
    if known.is_empty():
        return pl.DataFrame(schema={"label": pl.String, "class": pl.Int64, "samples": pl.Int64})
    most = int(known["class_counts"].list.len().sort()[-1])
    keep = thinning.spread(shown.names["client"].to_list(), max(2, min(thinning.CLIENTS, thinning.LIMIT // most)))
    cells = (
        known.filter(pl.col("client").is_in(keep))
        .select("label", pl.col("class_counts").alias("samples"))
        .with_columns(pl.int_ranges(pl.col("samples").list.len()).alias("class"))
        .explode("samples", "class")
    )
    return cells.select("label", "class", "samples").head(thinning.LIMIT)


def local_losses(returned: pl.DataFrame, shown: Sample) -> pl.DataFrame:
    """First and last local loss of the shown clients: ``label, when, loss, updates``."""
    known = returned.filter(pl.col("loss").is_not_null()).sort("ended", "job")
    grouped = known.group_by("client", maintain_order=True).agg(
        first=pl.col("loss").first(), last=pl.col("loss").last(), updates=pl.len().cast(pl.Int64)
    )
    labelled = shown.of(grouped.sort("client"))
    return labelled.unpivot(["first", "last"], index=["label", "updates"], variable_name="when", value_name="loss")


def leg_times(jobs: pl.DataFrame, shown: Sample) -> pl.DataFrame:
    """Mean seconds of each leg over the returned jobs of the shown clients: ``label, leg, rank, seconds, jobs``."""
    back = jobs.filter(pl.col("fate").is_in(["accepted", "not finite", "rejected"]))
    rows = trips.legs(back, 0)
    numbers = back.group_by("client").agg(jobs=pl.len().cast(pl.Int64))
    spent = rows.group_by("client", "leg").agg(total=(pl.col("stop") - pl.col("start")).sum())
    rank = pl.col("leg").replace_strict({leg: at for at, leg in enumerate(trips.LEGS)}, return_dtype=pl.Int64)
    joined = spent.join(numbers, on="client", how="inner").with_columns(rank=rank).sort("client", "rank")
    seconds = pl.col("total") / pl.col("jobs") / TICKS_PER_SECOND
    return shown.of(joined).select("label", "leg", "rank", "jobs", seconds=seconds)


def real_times(wall: pl.DataFrame) -> tuple[pl.DataFrame, bool]:
    """Bars of the real training seconds a job took (``left, right, count``), and whether bins are logarithmic."""
    times = wall["train_s"].drop_nulls()
    times = times.filter(times.is_finite())
    if times.is_empty():
        return thinning.histogram(times, [0.0, 1.0]).head(0), False
    cuts, logarithmic = thinning.edges(times)
    return thinning.histogram(times, cuts), logarithmic
