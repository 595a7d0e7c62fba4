"""Who had a part in the model: how evenly updates, work and accuracy were spread over clients and classes of devices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

if TYPE_CHECKING:
    from desim_fl.report.reading import Run

POINTS = 100  # of the Lorenz curve, beside its start
MEASURES = ("clients", "training samples", "updates", "energy")  # what shares are compared


class Evenness(NamedTuple):
    """How evenly updates were spread over all clients: Gini coefficient (0 = evenly), Jain's index (1 = evenly).

    ``busiest`` is the share that the busiest tenth of the clients sent. Gini 1912; Jain, Chiu, Hawe 1984.
    """

    gini: float
    jain: float
    busiest: float


def evenness(counts: pl.Series) -> Evenness | None:
    """Return how evenly counts are spread; ``None`` where there are none."""
    total, number = int(counts.sum()), len(counts)
    if not total:
        return None
    ordered = counts.sort().to_list()
    ranked = sum((2 * rank - number + 1) * count for rank, count in enumerate(ordered))
    squares = sum(count * count for count in ordered)
    tenth = math.ceil(number / 10)
    return Evenness(ranked / (number * total), total * total / (number * squares), sum(ordered[-tenth:]) / total)


def lorenz(counts: pl.Series) -> pl.DataFrame:
    """Return the share of all updates (``updates``) that the least busy clients sent, by their share (``clients``)."""
    total, number = int(counts.sum()), len(counts)
    if not total:
        return pl.DataFrame(schema={"clients": pl.Float64, "updates": pl.Float64, "even": pl.Float64})
    sums = [0, *counts.sort().cum_sum().to_list()]
    places = sorted({round(number * at / POINTS) for at in range(POINTS + 1)})
    rows = [(place / number, sums[place] / total, place / number) for place in places]
    return pl.DataFrame(rows, schema={"clients": pl.Float64, "updates": pl.Float64, "even": pl.Float64}, orient="row")


def shares(clients: pl.DataFrame) -> pl.DataFrame:
    """Return what share each class of devices has of all clients, samples, updates, energy: ``group, what, rank, share``.

    Empty where there are fewer than two classes.
    """
    known = clients.filter(pl.col("device_class").is_not_null())
    schema = {"group": pl.String, "what": pl.String, "rank": pl.Int64, "share": pl.Float64}
    if known["device_class"].n_unique() < 2:  # noqa: PLR2004  (one class has all of everything)
        return pl.DataFrame(schema=schema)
    sums = known.group_by("device_class", maintain_order=True).agg(
        pl.len().cast(pl.Float64).alias(MEASURES[0]),
        pl.col("examples").sum().cast(pl.Float64).alias(MEASURES[1]),
        pl.col("arrivals").sum().cast(pl.Float64).alias(MEASURES[2]),
        pl.col("energy_j").sum().cast(pl.Float64).alias(MEASURES[3]),
    )
    parts = [
        sums.select(group="device_class", what=pl.lit(what), rank=pl.lit(rank, pl.Int64), share=pl.col(what) / total)
        for rank, what in enumerate(MEASURES)
        if (total := sums[what].sum())
    ]
    return pl.concat(parts).select(list(schema))


def held_out(run: Run) -> pl.DataFrame:
    """Return how well the last model does on each client's held-out part: ``label, group, accuracy, loss, examples``."""
    named = run.clients.select("client", "label", group="device_class")
    finite = [pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in ("accuracy", "loss")]
    joined = run.held_out.join(named, on="client", how="inner", maintain_order="left")
    return joined.select("label", pl.col("group").fill_null("all clients"), *finite, "examples")


def worst(accuracies: pl.Series) -> tuple[float, float]:
    """Return the mean accuracy over all clients, and over the worst tenth of them."""
    ordered = accuracies.drop_nulls().sort()
    tenth = ordered.head(math.ceil(len(ordered) / 10))
    return sum(ordered) / len(ordered), sum(tenth) / len(tenth)
