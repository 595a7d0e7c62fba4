"""What each class of devices did, spent and lost: the tables ``classes`` and ``losses`` of a run directory.

Both follow from the event log, the table ``clients`` and what the scenario states of power and prices; a row is a class of
devices (name empty where there are none), so they stay small however many clients or jobs there are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

from desim_fl import eventlog
from desim_fl.energy import USES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from desim_fl.energy import Bill

FATES = {"lose": "lost", "cancel": "cancelled", "reject": "rejected"}
SECONDS = ("busy_s", "download_s", "wait_s", "compute_s", "upload_s", "paused_s", "late_s")
COUNTS = ("examples", "dispatches", "arrivals", "steps", "bytes_down", "bytes_up")
PARTS = ("time", "traffic")  # of the cost
CHARGES = {**{use: f"energy_{use}_j" for use in USES}, **{part: f"cost_{part}" for part in PARTS}}
LOSSES_SCHEMA: dict[str, Any] = {
    "device_class": pl.String,
    "fate": pl.String,  # lost, cancelled or rejected
    "reason": pl.String,  # empty for cancelled ones: the strategy no longer wanted them
    "jobs": pl.Int64,
    "clients": pl.Int64,  # whose jobs they were, each once
    "spent_s": pl.Float64,  # from their dispatches to their ends
}
CLASSES_SCHEMA: dict[str, Any] = {
    "device_class": pl.String,
    "clients": pl.Int64,
    "active": pl.Int64,  # clients that had a job
    **dict.fromkeys(COUNTS, pl.Int64),
    **dict.fromkeys(FATES.values(), pl.Int64),
    **dict.fromkeys((*SECONDS, "wasted_s"), pl.Float64),
    **dict.fromkeys(CHARGES.values(), pl.Float64),
}
SCHEMAS = {"classes": CLASSES_SCHEMA, "losses": LOSSES_SCHEMA}
_TICKS_A_SECOND = 1e6


def losses(events: pl.LazyFrame, clients: pl.DataFrame) -> pl.DataFrame:
    """Jobs whose work counts for nothing, by class of devices, what became of them, and why."""
    kind = pl.col("kind").cast(pl.String)
    ended = events.filter(kind.is_in(list(FATES))).select(
        "job", "client", "ticks", "reason", fate=kind.replace_strict(FATES)
    )
    sent = events.filter(kind == "dispatch").select("job", left="ticks")
    known = clients.lazy().select("client", "device_class")
    keys = ("device_class", "fate", "reason")
    found = (
        ended.join(sent, on="job", how="left")
        .join(known, on="client", how="left")
        .group_by(keys)
        .agg(
            jobs=pl.len().cast(pl.Int64),
            clients=pl.col("client").n_unique().cast(pl.Int64),
            spent=(pl.col("ticks") - pl.col("left")).sum(),  # whole numbers: no order of adding can matter
        )
        .sort(keys, nulls_last=True)
    )
    shown = found.with_columns(spent_s=pl.col("spent") / _TICKS_A_SECOND)
    return shown.select(pl.col(name).cast(dtype) for name, dtype in LOSSES_SCHEMA.items()).collect()


def classes(clients: pl.DataFrame, lost: pl.DataFrame, charges: Mapping[str, Any]) -> pl.DataFrame:
    """Totals of each class of devices, in the order of names.

    ``lost`` is the table ``losses``; ``charges`` are energy and cost by the keys of :data:`CHARGES`, one number a client each, where
    the scenario states them.
    """
    billed = {CHARGES[name]: pl.Series(values, dtype=pl.Float64) for name, values in charges.items()}
    table = clients.with_columns(**billed)
    rows = []
    for (name,), members in table.group_by("device_class", maintain_order=True):
        gone = lost.filter(pl.col("device_class").eq_missing(pl.lit(name, pl.String)))
        rows.append(
            {
                "device_class": name,
                "clients": len(members),
                "active": len(members.filter(pl.col("dispatches") > 0)),
                **{key: members[key].sum() for key in COUNTS},
                **{fate: gone.filter(pl.col("fate") == fate)["jobs"].sum() for fate in FATES.values()},
                **{key: _seconds(members[key]) for key in SECONDS},
                "wasted_s": _seconds(gone["spent_s"]),
                **{key: math.fsum(members[key].to_list()) if key in billed else None for key in CHARGES.values()},
            }
        )
    return pl.DataFrame(rows, schema=CLASSES_SCHEMA, orient="row").sort("device_class", nulls_last=True)


def _seconds(column: pl.Series) -> float:
    """Add seconds up as the whole ticks that they are."""
    return int((column * _TICKS_A_SECOND).round().cast(pl.Int64).sum()) / _TICKS_A_SECOND


def tables(folder: Path, clients: pl.DataFrame, bill: Bill) -> dict[str, pl.DataFrame]:
    """Both tables of a run whose events lie in ``folder``, by name."""
    return made(
        eventlog.read(folder / "events") if any((folder / "events").glob("part-*.parquet")) else _nothing(),
        clients,
        bill,
    )


def made(events: pl.LazyFrame, clients: pl.DataFrame, bill: Bill) -> dict[str, pl.DataFrame]:
    """Both tables, of these events."""
    lost = losses(events, clients)
    return {"losses": lost, "classes": classes(clients, lost, {**bill.energy_j, **bill.cost})}


def _nothing() -> pl.LazyFrame:
    return pl.LazyFrame(schema=eventlog.schema())


def faults(
    found: Mapping[str, pl.DataFrame], events: pl.DataFrame, clients: pl.DataFrame, charged: pl.DataFrame
) -> Iterator[str]:
    """Yield where the stored tables are not what events, clients and charges (one row a client) give."""
    lost = losses(events.lazy(), clients)
    if not found["losses"].equals(lost, null_equal=True):
        yield "the table losses is not what the event log gives"
    stated = {
        name: charged[name] for name in CHARGES if not clients["cost" if name in PARTS else "energy_j"].null_count()
    }
    expected = classes(clients, lost, stated)
    whole = [name for name, dtype in CLASSES_SCHEMA.items() if dtype != pl.Float64]
    if not found["classes"].select(whole).equals(expected.select(whole), null_equal=True):
        yield "the table classes has other counts than the tables clients and losses"
        return
    for name in (name for name in CLASSES_SCHEMA if name not in whole):
        for kind, told, due in zip(expected["device_class"], found["classes"][name], expected[name], strict=True):
            if (told is None) != (due is None) or (
                told is not None and not math.isclose(told, due, rel_tol=1e-9, abs_tol=1e-6)
            ):
                yield f"the table classes says {name} = {told} of class {kind}, the tables give {due}"
