"""What the tables of a run add up to, computed anew from the event log: the numbers that its manifest must repeat."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import polars as pl

from desim_fl.usage import LEGS, spread, staleness_summary, time_summary

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENDS = ("arrive", "lose", "cancel")


def legs(events: pl.DataFrame, ticks: int) -> pl.DataFrame:
    """Ticks that each client spent in each leg up to ``ticks``: client, download, wait, compute, upload."""

    def at(*kinds: str) -> pl.Expr:
        return pl.col("ticks").filter(pl.col("kind").is_in(kinds)).first()

    jobs = (
        events.filter(pl.col("kind").cast(pl.String).is_in(["dispatch", "downloaded", "started", "computed", *_ENDS]))
        .with_columns(pl.col("kind").cast(pl.String))
        .group_by("job", maintain_order=True)
        .agg(
            client=pl.col("client").first(),
            sent=at("dispatch"),
            down=at("downloaded"),
            start=at("started"),
            done=at("computed"),
            end=at(*_ENDS).fill_null(ticks),
        )
        .with_columns(down=pl.coalesce("down", "end"), done=pl.coalesce("done", "end"), waits=pl.col("start"))
    )
    any_wait = bool((events["kind"] == "started").any()) or bool(events["wait_s"].is_not_null().any())
    start = pl.coalesce("start", "end") if any_wait else pl.col("down")
    return (
        jobs.with_columns(start=start)
        .select(
            "client",
            download=pl.col("down") - pl.col("sent"),
            wait=pl.col("start") - pl.col("down"),
            compute=pl.col("done") - pl.col("start"),
            upload=pl.col("end") - pl.col("done"),
        )
        .group_by("client")
        .sum()
    )


def summary(events: pl.DataFrame, clients: int, ticks: int) -> dict[str, Any]:
    """The part of the manifest's summary that follows from the event log."""
    arrivals = events.filter(pl.col("kind") == "arrive")
    total = legs(events, ticks).select(LEGS).sum().row(0)
    by_client = arrivals.group_by("client").len()["len"].to_list()
    return {
        "staleness": staleness_summary(Counter(arrivals["staleness"].to_list())),
        "updates_a_client": spread(by_client, clients),
        **time_summary(total, ticks, clients, len(arrivals)),
    }


def client_faults(table: pl.DataFrame, events: pl.DataFrame, ticks: int) -> Iterator[str]:
    """Yield where the table ``clients`` contradicts the log: jobs, steps, bytes, seconds by leg."""
    known, arrived = events.filter(pl.col("client") >= 0), pl.col("kind") == "arrive"
    counted = known.group_by("client").agg(
        dispatches=(pl.col("kind") == "dispatch").sum().cast(pl.Int64),
        arrivals=arrived.sum().cast(pl.Int64),
        steps=pl.col("steps").filter(arrived).sum(),
        bytes_down=pl.col("bytes").filter(pl.col("kind") == "dispatch").sum(),
        bytes_up=pl.col("bytes").filter(arrived).sum(),
    )
    seconds = legs(events, ticks).select("client", *(pl.col(leg).truediv(1e6).alias(f"{leg}_s") for leg in LEGS))
    seconds = seconds.with_columns(busy_s=pl.sum_horizontal(*(f"{leg}_s" for leg in LEGS)))
    log = counted.join(seconds, on="client", how="full", coalesce=True)
    names = [name for name in log.columns if name != "client"]
    joined = table.select("client", *names).join(log, on="client", how="left", suffix="_log").sort("client")
    for name in names:
        off = (pl.col(name) - pl.col(f"{name}_log").fill_null(0)).abs() > 1e-6  # noqa: PLR2004  (a tick in seconds)
        for row in joined.filter(off).head(1).iter_rows(named=True):
            yield f"client {row['client']}: the table says {name} = {row[name]}, the event log {row[f'{name}_log'] or 0}"
