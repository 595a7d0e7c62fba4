"""What shared links carried: the table ``links`` of a run directory, its totals, and whether they agree with the event log."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from desim_fl.roads import Road

SERVER = -1  # in the column ``region``
SCHEMA: dict[str, Any] = {
    "link": pl.String,  # egress or ingress
    "region": pl.Int64,
    "from_s": pl.Float64,
    "to_s": pl.Float64,
    "capacity_mbps": pl.Float64,  # empty = unlimited
    "bytes": pl.Int64,
    "busy_s": pl.Float64,  # with a transfer in flight
    "full_s": pl.Float64,  # at capacity
}
_CLOSE = 1e-6
_TICK = (
    1.5e-6  # running totals are rounded down to ticks, so what a span adds is right to a tick; half of one for floats
)
_DOWN = ("dispatch", "retry", "halt", "leave")  # rows with bytes that go down
_UP = ("arrive", "lose", "cancel", "late")


def table(roads: Iterable[Road], ticks: int) -> pl.DataFrame:
    """One row a link and span of time up to a tick; the server's links first, then those of regions that have one."""
    rows = []
    for road in roads:
        road.link.advance(ticks)
        capacities = {None: road.way.capacity, **dict(enumerate(road.way.regional))}
        over, under = road.way.scale.as_integer_ratio()
        for span in road.meter.spans(ticks):
            capacity = capacities[span.branch]
            where = SERVER if span.branch is None else span.branch
            mbps = None if capacity is None else capacity / 1e6 / road.way.scale
            before, after = (
                work * under // (8_000_000 * over) for work in (span.work_before, span.work_before + span.work)
            )
            seconds = (span.start / 1e6, span.stop / 1e6)
            rows.append((road.name, where, *seconds, mbps, after - before, span.busy / 1e6, span.full / 1e6))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def summary(links: pl.DataFrame, seconds: float) -> dict[str, dict[str, float | None]]:
    """Of each direction of the server's link: bytes carried, and the shares of the run's time it was busy, and full."""
    found = {}
    for (name,), rows in links.filter(pl.col("region") == SERVER).group_by("link", maintain_order=True):
        size, busy, full = rows.select("bytes", "busy_s", "full_s").sum().row(0)
        mbps = rows["capacity_mbps"][0]
        used = None if mbps is None or not seconds else size * 8 / (mbps * 1e6 * seconds)
        busy, full = (part / seconds if seconds else None for part in (busy, full))
        found[str(name)] = {"bytes": size, "utilisation": used, "busy": busy, "full": full}
    return found


def faults(links: pl.DataFrame, events: pl.DataFrame, directions: Iterable[str], ticks: int) -> Iterator[str]:
    """Yield where the table contradicts itself, the capacities, or what the event log says has come through."""
    room, capacity = pl.col("to_s") - pl.col("from_s"), pl.col("capacity_mbps") * 125_000
    wrong = {
        "more bytes than the capacity allows": pl.col("bytes") > capacity * room * (1 + _CLOSE) + 1,
        "more busy time than there is": pl.col("busy_s") > room + _TICK,
        "more time at capacity than busy": pl.col("full_s") > pl.col("busy_s") + _TICK,
        "negative numbers": pl.min_horizontal("bytes", "busy_s", "full_s", room) < 0,
    }
    for what, holds in wrong.items():
        for row in links.filter(holds).head(1).iter_rows(named=True):
            yield f"the table links has {what}: {row}"
    for name in directions:
        mine = links.filter(pl.col("link") == name)
        yield from _gaps(name, mine, ticks / 1e6)
        carried = mine.filter(pl.col("region") == SERVER)["bytes"].sum()
        through, under_way = _moved(events, name)
        if not through * (1 - _CLOSE) - 2 <= carried <= (through + under_way) * (1 + _CLOSE) + 1:
            yield (
                f"the table links says {name} carried {carried} bytes; by the event log it is {through} at least, "
                f"{through + under_way} at most"
            )


def _gaps(name: str, links: pl.DataFrame, seconds: float) -> Iterator[str]:
    for (region,), rows in links.group_by("region", maintain_order=True):
        starts, stops = rows["from_s"].to_list(), rows["to_s"].to_list()
        if starts[:1] != [0.0] or starts[1:] != stops[:-1] or stops[-1] > seconds + _CLOSE:
            yield f"the table links does not follow {name}, region {region}, without gaps from 0"


def _moved(events: pl.DataFrame, name: str) -> tuple[int, float]:
    """Bytes that must have been carried, and at most those of transfers that were broken off or are under way."""
    events = events.with_columns(kind=pl.col("kind").cast(pl.String))
    return _moved_down(events) if name == "egress" else _moved_up(events)


def _moved_down(events: pl.DataFrame) -> tuple[int, float]:
    """Whole models; a dispatch counts one, and what has to go down once more stands in the row that says why."""
    sizes = events.filter(pl.col("kind").is_in(_DOWN)).select("job", "bytes")
    through = _sum(sizes.join(events.filter(pl.col("kind") == "downloaded").select("job"), on="job", how="semi"))
    return through, _sum(sizes) - through + _breaks(events)


def _moved_up(events: pl.DataFrame) -> tuple[int, float]:
    """Rows that end a job say all that went up; a job without one may have sent an update as often as it stood still, and once."""
    up = events.filter(pl.col("kind").is_in(_UP))
    gave_up = pl.col("kind").eq("lose") & pl.col("reason").eq("timeout").fill_null(value=False)
    strays = events.filter(gave_up).join(events.filter(pl.col("kind") == "late"), on="job", how="anti")
    if len(strays):  # they go on, and nothing is written about them
        return _sum(up), math.inf
    computed = events.filter(pl.col("kind") == "computed").select("job").unique()
    open_jobs = computed.join(up, on="job", how="anti")
    stood = events.filter(pl.col("kind").is_in(["halt", "leave", "retry"])).join(open_jobs, on="job", how="semi")
    size = max([0, *events.filter(pl.col("kind") == "dispatch")["bytes"].drop_nulls().to_list()])
    return _sum(up), (len(open_jobs) + len(stood)) * size + len(up) + _breaks(events)


def _breaks(events: pl.DataFrame) -> int:
    """How often a transfer may have been broken off in the middle of a byte, which is carried again or counted by nobody."""
    return len(events.filter(pl.col("kind").is_in(["halt", "leave", "retry"])))


def _sum(table: pl.DataFrame) -> int:
    return int(table["bytes"].sum() or 0)
