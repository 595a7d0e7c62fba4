"""Oracles of synchronous rounds: order statistics, deadlines, and what asynchrony gains over them."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from desim_fl.oracles.measuring import EXPONENTIAL, SECOND, Line, averaged, played
from desim_fl.oracles.queues import throughput
from desim_fl.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from desim_fl.oracles.measuring import Played


def _rounds(strategy: dict[str, Any], rounds: int, jitter: Any, count: int = 100) -> Played:
    table = {"name": "fedavg", "cancel_stragglers": True, **strategy}
    return played(count, strategy=table, run={"max_versions": rounds}, jitter=jitter)


def _lengths(done: Played) -> NDArray[np.float64]:
    """Seconds of each round, committed or abandoned."""
    ends = done.rows[np.isin(done.rows["kind"], (int(Kind.PUBLISH), int(Kind.ABANDON)))]["ticks"]
    return np.diff(np.concatenate([[0], ends])) / SECOND


def harmonic(n: int) -> float:
    """H_n = 1 + 1/2 + ... + 1/n."""
    return float(sum(Fraction(1, k) for k in range(1, n + 1)))


def _largest(of: int, tail: Callable[[NDArray[np.float64]], NDArray[np.float64]], top: float) -> float:
    """Return E max of m variables by integrating 1 - F^m, where ``tail`` is 1 - F."""
    grid: NDArray[np.float64] = (np.arange(400_000, dtype=np.float64) + 0.5) * (top / 400_000)
    return float((1.0 - (1.0 - tail(grid)) ** of).mean() * top)


def synchronous() -> Iterator[Line]:
    """A round lasts as long as the slowest of its cohort; over-selection waits for the K-th of N only."""
    half_normal = {"law": "half_normal", "sd": 1.0}
    normal_tail = np.vectorize(lambda x: math.erfc(x / math.sqrt(2)), otypes=[float])
    worlds = (
        ("10 of 10, exponential", {"clients_per_round": 10}, EXPONENTIAL, harmonic(10)),
        ("100 of 100, exponential", {"clients_per_round": 100}, EXPONENTIAL, harmonic(100)),
        (
            "10 of 13, exponential",
            {"clients_per_round": 10, "over_selection": 1.3},
            EXPONENTIAL,
            harmonic(13) - harmonic(3),
        ),
        ("5 of 5, uniform (0, 2)", {"clients_per_round": 5}, {"law": "uniform", "low": 1e-9, "high": 2.0}, 5 / 3),
        ("10 of 10, half-normal", {"clients_per_round": 10}, half_normal, _largest(10, normal_tail, 12.0)),
        ("100 of 100, half-normal", {"clients_per_round": 100}, half_normal, _largest(100, normal_tail, 12.0)),
    )
    for name, strategy, law, due in worlds:
        rounds = 300 if strategy["clients_per_round"] == 100 else 1500  # noqa: PLR2004
        yield averaged(f"length of a round, {name}", due, _lengths(_rounds(strategy, rounds, law)), independent=True)


def deadline() -> Iterator[Line]:
    """13 selected, 10 needed by 2 s, exponential times: how often a round commits, and how long it lasts."""
    strategy = {"clients_per_round": 10, "over_selection": 1.3, "deadline_s": 2.0, "min_fraction": 1.0}
    done = _rounds(strategy, 1500, EXPONENTIAL)
    ends = done.rows[np.isin(done.rows["kind"], (int(Kind.PUBLISH), int(Kind.ABANDON)))]
    yield averaged(
        "share of rounds that commit", at_least(13, 10, 2.0), ends["kind"] == int(Kind.PUBLISH), independent=True
    )
    grid = (np.arange(20_000) + 0.5) / 10_000
    due = float(np.mean([1.0 - at_least(13, 10, t) for t in grid]) * 2.0)
    yield averaged("length of a round", due, _lengths(done), independent=True)


def at_least(n: int, k: int, t: float) -> float:
    """Chance that at least k of n exponential times are below t."""
    p = 1.0 - math.exp(-t)
    return sum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k, n + 1))


def gain() -> Iterator[Line]:
    """Updates a second without rounds over those with rounds, at equal concurrency m: E[max of m] / E[S]."""
    normal = {"law": "half_normal", "sd": 1.0}
    normal_tail = np.vectorize(lambda x: math.erfc(x / math.sqrt(2)), otypes=[float])
    worlds = (
        ("exponential", 10, EXPONENTIAL, harmonic(10)),
        ("uniform (0, 2)", 5, {"law": "uniform", "low": 1e-9, "high": 2.0}, 5 / 3),
        ("half-normal", 10, normal, _largest(10, normal_tail, 12.0) / math.sqrt(2 / math.pi)),
    )
    for name, places, law, due in worlds:
        free = played(
            places, strategy={"name": "fedasync"}, run={"concurrency": places, "max_updates": 12_000}, jitter=law
        )
        pace = throughput("", 1.0, free)
        length = averaged(
            "", 1.0, _lengths(_rounds({"clients_per_round": places}, 1200, law, places)), independent=True
        )
        ratio = pace.measured * length.measured / places
        error = ratio * math.hypot((pace.error or 0.0) / pace.measured, (length.error or 0.0) / length.measured)
        yield Line(f"gain, m = {places}, {name}", due, ratio, error)
    free = played(5, strategy={"name": "fedasync"}, run={"concurrency": 5, "max_updates": 500})
    bound = _rounds({"clients_per_round": 5}, 100, 1.0, 5)
    yield Line("gain, m = 5, all alike", 1, bound.seconds / free.seconds)
