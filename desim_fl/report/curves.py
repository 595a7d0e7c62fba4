"""What the charts of learning and staleness show: aggregated, thinned, without a value that is not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from desim_fl.core import TICKS_PER_SECOND
from desim_fl.report import formats, thinning, trips
from desim_fl.report.window import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.report.window import Counts, Span

SPLITS = ("test", "validation")


class Divergence(NamedTuple):
    """The first evaluation whose loss was not finite."""

    version: int
    time_s: float
    updates: int
    split: str


def divergence(metrics: pl.DataFrame) -> Divergence | None:
    """Where the loss stopped being a finite number; ``None`` where it never did."""
    wild = metrics.filter(pl.col("loss").is_not_null() & ~pl.col("loss").is_finite()).sort("version", "split")
    for row in wild.head(1).iter_rows(named=True):
        return Divergence(row["version"], row["time_s"], row["updates"], row["split"])
    return None


def learning(metrics: pl.DataFrame, unit: formats.TimeUnit) -> pl.DataFrame:
    """Loss and accuracy of every split: ``part, time, version, updates, loss, accuracy``, thinned by split.

    The column is not called "split" in the page, because Vega's interpreter refuses a field of that name.
    """
    finite = [pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in ("loss", "accuracy")]
    shown = metrics.select("version", "updates", *finite, part="split", time=pl.col("time_s") / unit.seconds)
    parts = [
        thinning.thin(shown.filter(pl.col("part") == split).sort("version", maintain_order=True), ["loss", "accuracy"])
        for split in SPLITS
    ]
    return pl.concat(parts)


def wants_log(values: pl.Series) -> bool:
    """Whether a scale of powers of ten shows a positive series better: its range spans more than a factor of 50."""
    known = values.drop_nulls().sort()
    return len(known) > 1 and known[0] > 0 and known[-1] > 50 * known[0]


def staleness_versions(returned: pl.DataFrame) -> pl.DataFrame:
    """Bars of staleness in versions, stacked by fate: ``fate, from, to, left, right, bottom, top, updates``."""
    largest = returned["staleness"].max()
    width = thinning.whole_bins(int(largest) if isinstance(largest, int) else 0)
    start = (pl.col("staleness") // width * width).alias("from")
    counts = returned.group_by(start, "fate").agg(updates=pl.len().cast(pl.Int64))
    rank = pl.col("fate").replace_strict(_ranks(trips.FATES), return_dtype=pl.Int64)
    stacked = counts.with_columns(rank=rank).sort("from", "rank").drop("rank")
    top = pl.col("updates").cum_sum().over("from")
    return stacked.with_columns(
        to=pl.col("from") + (width - 1),
        left=pl.col("from") - 0.5,
        right=pl.col("from") + (width - 0.5),
        bottom=top - pl.col("updates"),
        top=top,
    )


def staleness_counts(returned: pl.DataFrame, whole: Span) -> Counts:
    """Return the updates of the bars of :func:`staleness_versions` by step of time."""
    largest = returned["staleness"].max()
    most = int(largest) if isinstance(largest, int) else 0
    width = thinning.whole_bins(most)
    firsts = range(0, most + 1, width)
    rows = returned.select("ended", "fate", bar=pl.col("staleness") // width)
    edges = [(first - 0.5, first + width - 0.5) for first in firsts]
    return counted(rows, whole, edges, [(first, first + width - 1) for first in firsts], trips.FATES)


def away_counts(returned: pl.DataFrame, bars: pl.DataFrame, unit: formats.TimeUnit, whole: Span) -> Counts:
    """Return the updates of the bars of :func:`away` by step of time."""
    cuts = [*bars["left"].to_list(), *bars["right"].tail(1).to_list()]
    where = thinning.places(returned["away_s"] / unit.seconds, cuts)
    rows = returned.select("ended", where.alias("bar"))
    return counted(rows, whole, bars.select("left", "right").rows())


def away(returned: pl.DataFrame, unit: formats.TimeUnit) -> tuple[pl.DataFrame, bool]:
    """Bars of the time from dispatch to arrival in ``unit``: ``left, right, count``; and whether bins are logarithmic."""
    times = returned["away_s"] / unit.seconds
    if times.is_empty():
        return thinning.histogram(times, [0.0, 1.0]), False
    cuts, logarithmic = thinning.edges(times)
    return thinning.histogram(times, cuts), logarithmic


def marks(values: pl.Series, top: int) -> pl.DataFrame:
    """Return the median, 99th percentile and maximum as labelled marks above bars of height ``top``."""
    found = {"median": thinning.quantile(values, 0.5), "p99": thinning.quantile(values, 0.99)}
    found["max"] = float(values.sort()[-1])
    middle = found["max"] / 2
    rows = [
        (
            label,
            value,
            f"{label} {formats.number(value)}",
            top * height,
            "right" if value > middle else "left",
        )
        # The maximum stands above the 99th percentile: its words reach over that one's rule.
        for height, (label, value) in zip((1.28, 1.08, 1.18), found.items(), strict=True)
    ]
    schema = {"mark": pl.String, "value": pl.Float64, "words": pl.String, "height": pl.Float64, "side": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def by_staleness(jobs: pl.DataFrame, value: str) -> pl.DataFrame:
    """Return a value of each update against its staleness: ``staleness, least, mean, greatest, updates``, thinned."""
    known = jobs.filter(pl.col(value).is_finite() & (pl.col("staleness") >= 0))
    column = pl.col(value)
    grouped = known.group_by("staleness").agg(
        least=column.min(), mean=column.mean(), greatest=column.max(), updates=pl.len().cast(pl.Int64)
    )
    return thinning.thin(grouped.sort("staleness"), ["least", "mean", "greatest"])


def local_loss(returned: pl.DataFrame, unit: formats.TimeUnit) -> pl.DataFrame:
    """Local training loss in stretches of equal time: ``time, p10, median, p90, updates`` at the middle of each."""
    known = returned.filter(pl.col("loss").is_not_null())
    if known.is_empty():
        schema = {"time": pl.Float64, "p10": pl.Float64, "median": pl.Float64, "p90": pl.Float64, "updates": pl.Int64}
        return pl.DataFrame(schema=schema)
    last = int(known["ended"].sort()[-1])
    width = max(1, -(-(last + 1) // max(8, min(120, known.height // 20))))
    loss = pl.col("loss")
    stretch = (pl.col("ended") // width * width + width // 2).alias("middle")
    grouped = known.group_by(stretch).agg(
        p10=loss.quantile(0.1, "nearest"), median=loss.quantile(0.5, "nearest"), p90=loss.quantile(0.9, "nearest"),
        updates=pl.len().cast(pl.Int64),
    ).sort("middle")  # fmt: skip
    time = pl.min_horizontal("middle", pl.lit(last)) / (TICKS_PER_SECOND * unit.seconds)
    return grouped.select(time.alias("time"), "p10", "median", "p90", "updates")


def _ranks(names: Sequence[str]) -> dict[str, int]:
    return {name: rank for rank, name in enumerate(names)}
