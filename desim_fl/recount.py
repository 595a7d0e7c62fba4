"""What the tables of a run add up to, computed anew from the event log: the numbers that its manifest must repeat."""

from __future__ import annotations

import math
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


def charges(table: pl.DataFrame, clients: Any, ticks: int) -> pl.DataFrame:
    """Energy by use and cost by kind of each client, from its seconds and bytes in the table and what the scenario states.

    ``clients`` is the scenario's table: a class's watts and prices go before those for all; what nobody states is 0.
    """
    kinds = {kind.name: kind for kind in clients.classes or ()}

    def rate(key: str) -> pl.Expr:
        values = {name: _stated(getattr(kind, key), getattr(clients, key)) for name, kind in kinds.items()}
        common = pl.lit(_stated(getattr(clients, key), None))
        return pl.col("device_class").replace_strict(values, return_dtype=pl.Float64) if kinds else common

    idle = ticks / 1e6 - (pl.col("download_s") + pl.col("compute_s") + pl.col("upload_s"))
    return table.select(
        "client",
        receive=rate("watts_receive") * pl.col("download_s"),
        compute=rate("watts_compute") * pl.col("compute_s"),
        send=rate("watts_send") * pl.col("upload_s"),
        idle=rate("watts_idle") * idle,
        time=rate("price_per_hour") * pl.col("busy_s") / 3600,
        traffic=rate("price_per_gb") * (pl.col("bytes_down") + pl.col("bytes_up")) / 1e9,
    )


def _stated(mine: float | None, common: float | None) -> float:
    return (common or 0.0) if mine is None else mine


_BILLS = {
    "energy_j": (("receive", "compute", "send", "idle"), "watts_"),
    "cost": (("time", "traffic"), "price_per_"),
}


def bill_faults(table: pl.DataFrame, summary: dict[str, Any], clients: Any, ticks: int) -> Iterator[str]:
    """Yield where energy and cost, of a client or in the manifest, are not what its times and bytes give."""
    found = charges(table, clients, ticks)
    for name, (parts, prefix) in _BILLS.items():
        keys = [key for key in type(clients).model_fields if key.startswith(prefix)]
        stated = any(getattr(each, key) is not None for each in (clients, *(clients.classes or ())) for key in keys)
        expected = pl.sum_horizontal(parts) if stated else pl.lit(None, pl.Float64)
        both = pl.concat(
            [table.select("client", told=name), found.with_columns(due=expected).select("due")], how="horizontal"
        )
        off = (pl.col("told") - pl.col("due")).abs() > 1e-9 * pl.col("due").abs() + 1e-12
        for row in (
            both.filter(off | (pl.col("told").is_null() != pl.col("due").is_null())).head(1).iter_rows(named=True)
        ):
            yield f"client {row['client']}: the table says {name} = {row['told']}, its times and bytes give {row['due']}"
        totals = {part: found[part].sum() for part in parts}
        due = {**totals, "total": sum(totals.values())} if stated else None
        if not same(summary.get(name), due):
            yield f"the manifest says {name} = {summary.get(name)}, the tables give {due}"


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


def same(left: Any, right: Any) -> bool:
    """Equality of nested numbers, floats to a relative 1e-9."""
    if isinstance(right, dict):
        return isinstance(left, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in right)
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-12)
    return left == right


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
