"""Oracles of closed networks: jobs that queue at clients, and clients that have one at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from desim_fl.oracles.measuring import EXPONENTIAL, SECOND, Line, averaged, played
from desim_fl.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from desim_fl.oracles.measuring import Played


def buzen(loads: Sequence[float], customers: int) -> list[float]:
    """Normalising constants G(0..C) of a closed network with these relative loads p / mu (Buzen's convolution)."""
    constants = [1.0] + [0.0] * customers
    for load in loads:
        for k in range(1, customers + 1):
            constants[k] += load * constants[k - 1]
    return constants


def mean_queue(loads: Sequence[float], customers: int, place: int) -> float:
    """Mean number of customers at one place of the network."""
    constants = buzen(loads, customers)
    return sum(loads[place] ** k * constants[customers - k] / constants[customers] for k in range(1, customers + 1))


def jackson() -> Iterator[Line]:
    """Jobs queue at clients, the server routes at random: throughput G(C - 1) / G(C), delays by Little's discrete law."""
    for count, customers in ((5, 3), (10, 10), (10, 30)):
        done = _network(count, customers, 30_000, "uniform")
        due = count * customers / (count + customers - 1)
        yield throughput(f"throughput, n = {count}, C = {customers}", due, done)
    rates, shares = (1.0, 2.0, 4.0), (0.5, 0.3, 0.2)
    done = _network(3, 6, 60_000, "weighted", times=[1 / rate for rate in rates], examples=[5, 3, 2])
    loads = [share / rate for share, rate in zip(shares, rates, strict=True)]
    constants = buzen(loads, 6)
    yield throughput("throughput, mu = 1, 2, 4, p = .5, .3, .2, C = 6", constants[5] / constants[6], done)
    arrivals = done.of(Kind.ARRIVE)[1000:]
    for client, share in enumerate(shares):
        mine = arrivals["staleness"][arrivals["client"] == client]
        yield averaged(f"mean staleness of client {client}", mean_queue(loads, 5, client) / share, mine)
    yield averaged("mean staleness of updates = C - 1", 5.0, arrivals["staleness"])


def _network(count: int, customers: int, updates: int, selection: str, **world: Any) -> Played:
    run = {"concurrency": customers, "client_queue": customers, "selection": selection, "max_updates": updates}
    return played(count, strategy={"name": "fedasync"}, run=run, jitter=EXPONENTIAL, **world)


def throughput(quantity: str, expected: float, done: Played) -> Line:
    """Compare updates a second: the mean time between arrivals, and its error carried over."""
    line = averaged(quantity, 1 / expected, np.diff(done.of(Kind.ARRIVE)["ticks"][500:]) / SECOND)
    error = (line.error or 0.0) / line.measured**2
    return Line(quantity, expected, 1 / line.measured, error)


def without() -> Iterator[Line]:
    """Ten of twenty clients busy, no queues: throughput is c / E[S], whatever the law."""
    for law, mean in ((EXPONENTIAL, 1.0), ({"law": "lognormal", "median": 1.0, "sigma": 0.6}, math.exp(0.18))):
        done = played(20, strategy={"name": "fedasync"}, run={"concurrency": 10, "max_updates": 30_000}, jitter=law)
        yield throughput(f"throughput, c = 10, {law['law']}", 10 / mean, done)
    done = played(20, strategy={"name": "fedasync"}, run={"concurrency": 10, "max_updates": 5000}, jitter=EXPONENTIAL, times=range(1, 21))  # fmt: skip
    sent, now = done.of(Kind.DISPATCH)["ticks"], done.engine.final_ticks
    arrivals = done.of(Kind.ARRIVE)
    spent = int((arrivals["ticks"] - sent[arrivals["job"]]).sum())
    spent += sum(now - flying.left for flying in done.engine.flights.values())
    yield Line("microseconds in flight of unequal clients, c = 10: c T", 10 * now, spent)
