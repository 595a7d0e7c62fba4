"""What the tables of a run add up to, computed anew from the event log: the numbers that its manifest must repeat."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import polars as pl

from desim_fl.usage import LEGS, spread, staleness_summary, time_summary

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT = "timeout"
_LEGS = ("downloaded", "started", "computed")
_STANDS = ("leave", "come", "halt", "resume", "retry")
_ENDS = ("arrive", "lose", "cancel", "late")
_DOWN = ("dispatch", "retry", "halt", "leave")


def legs(events: pl.DataFrame, ticks: int, *, pauses: bool = True) -> pl.DataFrame:
    """Ticks that each client spent up to ``ticks``: client, download, wait, compute, upload at work; paused, late.

    What lies between two rows of a job belongs to the leg between; it counts as paused after a halt or a retry until the
    next resume, and (``pauses``: where leaving means that) after a leave until the next come. Late is what lies
    between a loss by timeout and the end of the job at its client.
    """
    kind = pl.col("kind").cast(pl.String)
    rows = (
        events.filter(pl.col("job") >= 0, kind.is_in([*_LEGS, *_STANDS, *_ENDS, "dispatch"]))
        .select("job", "client", "ticks", "seq", kind=kind, gave_up=(kind == "lose") & (pl.col("reason") == TIMEOUT))
        .sort("job", "seq")
    )
    waits = bool((events["kind"] == "started").any()) or bool(events["wait_s"].is_not_null().any())
    order = LEGS if waits else ("download", "compute", "upload")
    following = pl.col("ticks").shift(-1).over("job")
    away = pl.when(pl.col("kind") == "leave").then(pauses).when(pl.col("kind") == "come").then(False)  # noqa: FBT003
    halted = pl.when(pl.col("kind").is_in(["halt", "retry"])).then(True).when(pl.col("kind") == "resume").then(False)  # noqa: FBT003
    ends = pl.col("kind").is_in(_ENDS) & ~pl.col("gave_up")
    spans = rows.with_columns(
        span=pl.when(ends).then(0).otherwise(following.fill_null(ticks) - pl.col("ticks")),
        done=pl.col("kind").is_in(list(_LEGS)).cum_sum().over("job"),
        away=away.forward_fill().over("job").fill_null(False),  # noqa: FBT003
        halted=halted.forward_fill().over("job").fill_null(False),  # noqa: FBT003
    ).with_columns(still=pl.col("away") | pl.col("halted"))
    works = ~pl.col("gave_up") & ~pl.col("still")
    sums = {leg: pl.col("span").filter(works & (pl.col("done") == number)).sum() for number, leg in enumerate(order)}
    return spans.group_by("client", maintain_order=True).agg(
        **({"wait": pl.lit(0, pl.Int64)} | sums),
        paused=pl.col("span").filter(~pl.col("gave_up") & pl.col("still")).sum(),
        late=pl.col("span").filter(pl.col("gave_up")).sum(),
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


def summary(
    events: pl.DataFrame, clients: int, ticks: int, *, pauses: bool = True, queues: bool = False
) -> dict[str, Any]:
    """The part of the manifest's summary that follows from the event log."""
    arrivals = events.filter(pl.col("kind") == "arrive")
    spent = legs(events, ticks, pauses=pauses).sum()
    total = spent.select(LEGS).row(0)
    by_client = arrivals.group_by("client").len()["len"].to_list()
    return {
        "staleness": staleness_summary(Counter(arrivals["staleness"].to_list())),
        "updates_a_client": spread(by_client, clients),
        "losses": losses(events),
        **time_summary(total, spent["paused"][0], spent["late"][0], ticks, clients, len(arrivals), queues=queues),
    }


def same(left: Any, right: Any) -> bool:
    """Equality of nested numbers, floats to a relative 1e-9."""
    if isinstance(right, dict):
        return isinstance(left, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in right)
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-12)
    return left == right


def losses(events: pl.DataFrame) -> dict[str, int]:
    """How many jobs were lost for each reason, by name."""
    lost = events.filter(pl.col("kind") == "lose").group_by("reason").len().sort("reason")
    return dict(lost.iter_rows())


def copy_faults(events: pl.DataFrame) -> Iterator[str]:
    """Yield which update is delivered again although it never arrived, or for a third time."""
    copies = events.filter(pl.col("kind") == "duplicate").group_by("job", maintain_order=True).len()
    arrivals = events.filter(pl.col("kind") == "arrive").select("job", arrived=pl.lit(value=True))
    for job, count, arrived in copies.join(arrivals, on="job", how="left").head(20).iter_rows():
        if arrived is None or count > 1:
            yield f"job {job}: {'delivered more than twice' if arrived else 'delivered again without an arrival'}"


def client_faults(table: pl.DataFrame, events: pl.DataFrame, ticks: int, *, pauses: bool = True) -> Iterator[str]:
    """Yield where the table ``clients`` contradicts the log: jobs, steps, bytes, seconds by leg."""
    known, arrived = events.filter(pl.col("client") >= 0), pl.col("kind") == "arrive"
    counted = known.group_by("client").agg(
        dispatches=(pl.col("kind") == "dispatch").sum().cast(pl.Int64),
        arrivals=arrived.sum().cast(pl.Int64),
        steps=pl.col("steps").filter(arrived).sum(),
        bytes_down=pl.col("bytes").filter(pl.col("kind").is_in(_DOWN)).sum(),
        bytes_up=pl.col("bytes").filter(~pl.col("kind").is_in(_DOWN)).sum(),
    )
    spent = legs(events, ticks, pauses=pauses)
    seconds = spent.select(
        "client", *(pl.col(name).truediv(1e6).alias(f"{name}_s") for name in (*LEGS, "paused", "late"))
    )
    seconds = seconds.with_columns(busy_s=pl.sum_horizontal(*(f"{leg}_s" for leg in LEGS)))
    log = counted.join(seconds, on="client", how="full", coalesce=True)
    names = [name for name in log.columns if name != "client"]
    joined = table.select("client", *names).join(log, on="client", how="left", suffix="_log").sort("client")
    for name in names:
        off = (pl.col(name) - pl.col(f"{name}_log").fill_null(0)).abs() > 1e-6  # noqa: PLR2004  (a tick in seconds)
        for row in joined.filter(off).head(1).iter_rows(named=True):
            yield f"client {row['client']}: the table says {name} = {row[name]}, the event log {row[f'{name}_log'] or 0}"
