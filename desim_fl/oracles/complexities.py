"""Time complexities under fixed times, as oracles: what each method needs for so many steps, and never more.

Tyurin and Richtarik, NeurIPS 2023 and 2024, and Maranjyan et al., ICML 2025, bound the time of a method by its number of steps times
the time of a step. With ``a = L Delta / eps``, ``b = sigma^2 L Delta / eps^2`` and ``S_m = 1 / h_1 + ... + 1 / h_m`` they say

    minibatch             h_n (a + b / n)
    asynchronous SGD      n / S_n (a + b / n)
    Rennala, Ringmaster   min_m m / S_m (a + b / m)
    Malenia               h_n a + (h_1 + ... + h_n) / n * b / n

up to constants. Here those many steps are played, so that the constants are known: a + b / n rounds of n gradients, n a + b updates,
a steps of b / a gradients each (of harmonic mean b / (a n) for each worker). Lower bounds follow from floor(t / h) <= t / h, upper
ones from floor(t / h) >= t / h - 1 and, for t >= h, from floor(t / h) >= t / (2 h).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.oracles.fixed_times import first
from desim_fl.oracles.measuring import Line, played

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS, NOISE = 4, 64  # a and b
MANY = 64  # workers of whom most are too slow to matter


class Bounds(NamedTuple):
    """Seconds that the steps of each method take at least and at most; equal where they are known."""

    minibatch: float
    asynchronous: tuple[float, float]
    rennala: tuple[float, float]
    ringmaster: float
    malenia: tuple[float, float]


def roots(n: int) -> tuple[float, ...]:
    """h_i = sqrt(i), i = 1 ... n."""
    return tuple(float(i) ** 0.5 for i in range(1, n + 1))


def bounds(times: tuple[float, ...], a: int, b: int) -> Bounds:
    """Return the bounds for ascending times of a gradient, ``a`` steps and ``b`` gradients against noise."""
    n, slowest, mean = len(times), max(times), sum(times) / len(times)
    sums = [sum(1.0 / h for h in times[:m]) for m in range(1, n + 1)]
    fewest = min((a * m + b) / rate for m, rate in enumerate(sums, start=1))  # m / S_m (a + b / m)
    return Bounds(
        minibatch=slowest * (a + b / n),
        asynchronous=((n * a + b) / sums[-1], (n * a + b + n) / sums[-1]),
        rennala=(b / sums[-1], fewest),
        ringmaster=2.0 * fewest,
        malenia=(max(a * slowest, mean * b / n), a * slowest + 2.0 * mean * b / n),
    )


def _seconds(times: tuple[float, ...], strategy: dict[str, Any], **run: Any) -> float:
    places = {} if strategy["name"] in {"malenia", "fedavg"} else {"concurrency": len(times)}
    return played(len(times), strategy=strategy, run={**places, **run}, times=times).seconds


def square_roots() -> Iterator[Line]:
    """Workers of h_i = sqrt(i): each method within its bounds; more and slower workers hold up minibatches, and nobody else."""
    times, a, b = roots(16), STEPS, NOISE
    n, size, due = len(times), NOISE // STEPS, bounds(roots(16), STEPS, NOISE)
    rounds = _seconds(times, {"name": "fedavg", "clients_per_round": n}, max_versions=a + b // n)
    yield Line(f"minibatch, {a + b // n} rounds, n = {n}", due.minibatch, rounds)
    updates = _seconds(times, {"name": "fedasync"}, max_updates=n * a + b)
    yield from _between(f"asynchronous SGD, {n * a + b} updates, n = {n}", due.asynchronous, updates)
    rennala = {"name": "rennala", "batch": size, "stop_unfinished": True}
    steps = _seconds(times, rennala, max_versions=a)
    yield from _between(f"Rennala, {a} steps of {size}, n = {n}", due.rennala, steps)
    ringmaster = {"name": "ringmaster", "delay_threshold": size, "stop": True}
    applied = _seconds(times, ringmaster, max_versions=a * size)
    yield Line(f"Ringmaster, {a * size} updates, R = {size}, n = {n}", due.ringmaster, applied, relation="<=")
    malenia = _seconds(times, {"name": "malenia", "gradients": size}, max_versions=a)
    yield from _between(f"Malenia, {a} steps, S = {size}, n = {n}", due.malenia, malenia)
    slow = roots(MANY)
    rounds = _seconds(slow, {"name": "fedavg", "clients_per_round": MANY}, max_versions=a + b // MANY)
    yield Line(f"minibatch, {a + b // MANY} rounds, n = {MANY}", bounds(slow, a, b).minibatch, rounds)
    alone = float(a * first(times, lambda counts: sum(counts) >= size))  # nobody slower than 4 s would have reported
    yield Line(f"Rennala, {a} steps of {size}, n = {MANY}, as with {n}", alone, _seconds(slow, rennala, max_versions=a))


def _between(quantity: str, due: tuple[float, float], seconds: float) -> Iterator[Line]:
    yield Line(quantity, due[0], seconds, relation=">=")
    yield Line(quantity, due[1], seconds, relation="<=")
