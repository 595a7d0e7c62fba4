"""Oracles of staleness: closed and open systems, equal and unequal workers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from desim_fl.oracles.measuring import BATCHES, EXPONENTIAL, SECOND, Line, averaged, played
from desim_fl.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from desim_fl.oracles.measuring import Played


def identity() -> Iterator[Line]:
    """Sum of staleness over landed jobs and ages in flight = (c - 1) F, or (c - K) F where places wait for a publish."""
    accidents = {"crash_compute": 0.1, "upload_loss": 0.1}
    worlds: tuple[tuple[str, int, dict[str, Any], dict[str, float]], ...] = (
        ("c = 20, K = 5", 20, {"buffer_size": 5}, {}),
        ("c = 3, K = 5", 3, {"buffer_size": 5}, {}),
        ("c = 25, K = 5, lost and rejected ones too", 25, {"buffer_size": 5, "max_staleness": 6}, accidents),
    )
    for name, places, options, failures in worlds:
        for dispatch in ("immediate", "after_aggregation"):
            size = options["buffer_size"]
            if dispatch == "after_aggregation" and size > places:
                continue  # such a buffer never fills
            done = played(
                50,
                strategy={"name": "fedbuff", **options},
                run={"concurrency": places, "dispatch": dispatch, "max_updates": 5000},
                jitter={"law": "pareto", "alpha": 1.5, "scale": 1.0},
                failures=failures,
            )
            gain = 1 if dispatch == "immediate" else size
            yield Line(f"total staleness, {name}, {dispatch}", done.engine.model.version * (places - gain), _aged(done))


def _aged(done: Played) -> int:
    """Staleness of all jobs that landed or were lost, and ages of those in flight."""
    version = done.engine.model.version
    ages = sum(version - flying.job.version for flying in done.engine.flights.values())
    landed = sum(int(done.of(kind)["staleness"].sum()) for kind in (Kind.ARRIVE, Kind.LOSE, Kind.CANCEL))
    return landed + ages


def geometric() -> Iterator[Line]:
    """Ten always busy workers with exponential times: staleness is geometric with parameter 1 / 10."""
    done = played(10, strategy={"name": "fedasync"}, run={"concurrency": 10, "max_updates": 60_000}, jitter=EXPONENTIAL)
    tau = done.of(Kind.ARRIVE)["staleness"][2000:].astype(float)
    yield averaged("mean staleness, c = 10", 9.0, tau)
    yield averaged("variance of staleness", 90.0, (tau - 9.0) ** 2)
    for k in (0, 5):
        yield averaged(f"P(staleness = {k})", 0.1 * 0.9**k, tau == k)


def rates() -> Iterator[Line]:
    """Exponential workers of rates 1, 2, 4: shares of updates in proportion, staleness geometric in them."""
    done = played(
        3,
        strategy={"name": "fedasync"},
        run={"concurrency": 3, "max_updates": 40_000},
        jitter=EXPONENTIAL,
        times=(1, 0.5, 0.25),
    )
    arrivals = done.of(Kind.ARRIVE)[100:]
    for client, rate in enumerate((1, 2, 4)):
        mine = arrivals["client"] == client
        yield averaged(f"share of updates at rate {rate}", rate / 7, mine)
        yield averaged(f"mean staleness at rate {rate}", 7 / rate - 1, arrivals["staleness"][mine])
    yield averaged("mean staleness of updates", 2.0, arrivals["staleness"])


def equal_times() -> Iterator[Line]:
    """Five workers of equal, fixed times: staleness 0, 1, 2, 3, 4, then 4 for ever."""
    done = played(5, strategy={"name": "fedasync"}, run={"concurrency": 5, "max_updates": 50})
    tau = done.of(Kind.ARRIVE)["staleness"].tolist()
    yield Line("updates with the staleness of theory, of 50", 50, sum(map(int.__eq__, tau, [0, 1, 2, 3] + [4] * 46)))


def one_and_three() -> Iterator[Line]:
    """Fixed times 1 and 3: the first nine events, and period 3 from then on."""
    done = played(2, strategy={"name": "fedasync"}, run={"concurrency": 2, "max_updates": 101}, times=(1, 3))
    found = [(t // SECOND, c, s) for t, c, s in done.of(Kind.ARRIVE)[["ticks", "client", "staleness"]].tolist()]
    start = [(1, 0, 0), (2, 0, 0), (3, 1, 2), (3, 0, 1)]
    cycle = [(1, 0, 0), (2, 0, 0), (3, 1, 3), (3, 0, 1)]
    later = [(3 * lap + t, c, s) for lap in range(1, 26) for t, c, s in cycle]
    due = (start + later)[: len(found)]
    yield Line(
        "events (t, worker, staleness) of theory, of 101", 101, sum(a == b for a, b in zip(due, found, strict=True))
    )


def open_system() -> Iterator[Line]:
    """Arrivals at rate 100 with half-normal trips, nobody ever busy: concurrency rate E[S], staleness that over K."""
    load = 100 * math.sqrt(2 / math.pi)
    for kind in ("poisson", "constant"):
        done = played(
            3000,
            strategy={"name": "fedbuff", "buffer_size": 10},
            run={"arrivals": kind, "arrival_rate": 100.0, "max_updates": 40_000},
            jitter={"law": "half_normal", "sd": 1.0},
        )
        yield averaged(f"jobs in flight, {kind} arrivals", load, _in_flight(done, 10.0, 390.0))
        tau = done.of(Kind.ARRIVE)["staleness"][1000:]
        if kind == "poisson":
            yield averaged("mean staleness, K = 10, poisson arrivals", load / 10, tau)
        else:
            below = load / 10 - float(tau.mean())
            yield Line("constant arrivals: staleness less by 0 to 1 / K", 1, float(0 <= below <= 1 / 10))


def _in_flight(done: Played, since: float, until: float) -> NDArray[np.float64]:
    """Time-average of jobs in flight in each of the batches of a stretch of virtual time."""
    rows = done.rows[np.isin(done.rows["kind"], (int(Kind.DISPATCH), int(Kind.ARRIVE)))]
    step = np.where(rows["kind"] == int(Kind.DISPATCH), 1, -1)
    level, ticks = np.concatenate([[0], np.cumsum(step)]), rows["ticks"] / SECOND
    edges = np.linspace(since, until, BATCHES + 1)
    area = np.concatenate([[0.0], np.cumsum(level[1:-1] * np.diff(ticks))])
    places = np.searchsorted(ticks, edges, side="right") - 1
    upto = area[places] + level[places + 1] * (edges - ticks[places])
    return np.diff(upto) / np.diff(edges)


def bounds() -> Iterator[Line]:
    """Ringmaster that stops delivers no delay beyond R - 1 and discards nothing, Ringleader none beyond 2n - 2."""
    tail = {"law": "pareto", "alpha": 1.1, "scale": 1.0, "cap": 1e4}
    for threshold in (1, 4):
        strategy = {"name": "ringmaster", "delay_threshold": threshold, "stop": True}
        done = played(20, strategy=strategy, run={"concurrency": 20, "max_updates": 3000}, jitter=tail)
        worst = int(done.of(Kind.ARRIVE)["staleness"].max())
        yield Line(f"Ringmaster, R = {threshold}: largest delay of 3,000", threshold - 1, worst, relation="<=")
        yield Line(f"Ringmaster, R = {threshold}: discarded on arrival", 0, len(done.of(Kind.REJECT)))
    done = played(20, strategy={"name": "ringmaster", "delay_threshold": 4}, run={"concurrency": 20, "max_updates": 3000}, jitter=tail)  # fmt: skip
    arrivals, turned_away = done.of(Kind.ARRIVE), done.of(Kind.REJECT)["job"]
    worst = int(arrivals["staleness"][~np.isin(arrivals["job"], turned_away)].max())
    yield Line("Ringmaster, R = 4, late ones discarded: largest delay applied", 3, worst, relation="<=")
    done = played(10, strategy={"name": "ringleader"}, run={"max_updates": 3000}, jitter=tail)
    worst = int(done.of(Kind.ARRIVE)["staleness"].max())
    yield Line("Ringleader, n = 10: largest delay of 3,000", 18, worst, relation="<=")
