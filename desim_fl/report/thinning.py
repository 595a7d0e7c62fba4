"""Fewer rows with the same shape: series, histograms and samples of clients, in a fixed order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMIT = 2000  # rows of one series in the page
POINTS = 600  # what a series is thinned to: as many as a chart has columns on a screen
CLIENTS = 50  # clients that a chart with one row a client shows
BINS = 48


def thin(frame: pl.DataFrame, measures: Sequence[str], limit: int = POINTS) -> pl.DataFrame:
    """At most ``limit`` rows of one series, in its order.

    The first and the last row stay, and of each stretch the rows with the least and the greatest value of every
    measure; so the first, last, least and greatest value of the whole series stay too. Nulls are no extremes.
    """
    if frame.height <= limit:
        return frame
    stretches = max(1, (limit - 2) // (2 * len(measures)))
    numbered = frame.with_row_index("row").with_columns(
        (pl.col("row").cast(pl.Int64) * stretches // frame.height).alias("stretch")
    )
    row = pl.col("row")
    extremes = [row.get(pl.col(name).arg_min()).alias(f"{name}_min") for name in measures]
    extremes += [row.get(pl.col(name).arg_max()).alias(f"{name}_max") for name in measures]
    kept = numbered.group_by("stretch", maintain_order=True).agg(extremes).drop("stretch")
    rows = {value for column in kept.iter_columns() for value in column if value is not None}
    return frame[sorted(rows | {0, frame.height - 1})]


def spread(values: Sequence[int], limit: int = CLIENTS) -> list[int]:
    """At most ``limit`` of the values, evenly spread, the first and the last among them."""
    if len(values) <= limit:
        return list(values)
    return [values[round(rank * (len(values) - 1) / (limit - 1))] for rank in range(limit)]


def whole_bins(largest: int) -> int:
    """How many whole numbers one bar covers, so that 0 to ``largest`` needs at most ``BINS`` bars."""
    return max(1, math.ceil((largest + 1) / BINS))


def edges(values: pl.Series) -> tuple[list[float], bool]:
    """Edges of bins that hold every value, and whether they grow by a factor.

    A long tail (the 99th percentile over 20 times the median, nothing at 0) gets logarithmic bins.
    """
    least, greatest = _extremes(values)
    median, tail = quantile(values, 0.5), quantile(values, 0.99)
    long = least > 0 and tail > 20 * median
    if least == greatest:
        return [least, greatest + max(abs(greatest) * 0.1, 1e-6)], False
    if long:
        factor = (greatest / least) ** (1 / BINS)
        inner = [least * factor**rank for rank in range(1, BINS)]
    else:
        inner = [least + (greatest - least) * rank / BINS for rank in range(1, BINS)]
    return [least, *inner, greatest], long


def places(values: pl.Series, cuts: Sequence[float]) -> pl.Series:
    """Return in which bin each value lies, from 0; the last bin holds its right edge."""
    inner = pl.Series(cuts[1:-1], dtype=pl.Float64)
    found = inner.search_sorted(values, side="right") if len(inner) else pl.zeros(len(values), eager=True)
    return found.cast(pl.Int64).alias("bin")


def histogram(values: pl.Series, cuts: Sequence[float]) -> pl.DataFrame:
    """How many values lie in each bin: columns ``left``, ``right``, ``count``; the last bin holds its right edge."""
    bins = len(cuts) - 1
    counts = dict(places(values, cuts).value_counts(sort=False).iter_rows())
    return pl.DataFrame(
        {"left": cuts[:-1], "right": cuts[1:], "count": [counts.get(rank, 0) for rank in range(bins)]},
        schema={"left": pl.Float64, "right": pl.Float64, "count": pl.Int64},
    )


def quantile(values: pl.Series, share: float) -> float:
    """Return a quantile that is one of the values, the greater where it falls between two (0 of nothing)."""
    found = values.quantile(share, interpolation="higher")
    return 0.0 if found is None else float(found)


def _extremes(values: pl.Series) -> tuple[float, float]:
    ordered = values.sort()
    return float(ordered[0]), float(ordered[-1])
