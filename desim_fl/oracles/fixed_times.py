"""Oracles of the fixed computation model: worker i takes exactly h_i seconds for each gradient.

Closed forms are worked out from their definitions with whole microseconds, event by event, and not with the simulator.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from desim_fl.oracles.measuring import SECOND, Line, played
from desim_fl.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from desim_fl.oracles.measuring import Played

TIMES = (1, 2, 5, 9)
ENDLESS = 1_000_000.0  # seconds of a worker that as good as never ends
STEPS = 5


def _ticks(times: Sequence[float]) -> list[int]:
    """Microseconds of each worker's gradient."""
    return [round(h * SECOND) for h in times]


def first(times: Sequence[float], enough: Callable[[list[int]], bool]) -> Fraction:
    """Return the first second t at which the counts floor(t / h_i) are enough."""
    whole = _ticks(times)
    for end in count(min(whole), min(whole)):
        for tick in sorted({h * lap for h in whole for lap in range(1, end // h + 1)}):
            if enough([tick // h for h in whole]):
                return Fraction(tick, SECOND)
    raise AssertionError  # the counter never ends


def rates(times: Sequence[float]) -> list[Fraction]:
    """S_m = 1 / h_1 + ... + 1 / h_m for every m."""
    return [sum((1 / Fraction(h) for h in times[:m]), Fraction(0)) for m in range(1, len(times) + 1)]


def _made(times: Sequence[float], strategy: dict[str, Any], versions: int, **run: Any) -> Played:
    """Play until so many versions are there."""
    places = {} if strategy["name"] in {"malenia", "fedavg"} else {"concurrency": len(times)}
    return played(len(times), strategy=strategy, run={**places, "max_versions": versions, **run}, times=times)


def asynchronous_sgd() -> Iterator[Line]:
    """Workers of fixed times h_i make sum floor(t / h_i) updates by t."""
    for times, until in (((2, 3), 12), (TIMES, 90), ((1.5, 2.5, 7), 100)):
        run = {"concurrency": len(times), "max_time_s": float(until)}
        done = played(len(times), strategy={"name": "fedasync"}, run=run, times=times)
        due = sum(Fraction(until) // Fraction(h) for h in times)
        yield Line(f"updates by {until} s, h = {times}", int(due), len(done.of(Kind.ARRIVE)))


def minibatch() -> Iterator[Line]:
    """K rounds of all workers take k times the slowest, however slow it is."""
    for times, rounds in ((TIMES, 7), ((0.5, 0.75), 40), ((1, 2, 5, ENDLESS), 3)):
        done = _made(times, {"name": "fedavg", "clients_per_round": len(times)}, rounds)
        yield Line(f"seconds of {rounds} rounds, h = {times}", rounds * max(times), done.seconds)


def rennala() -> Iterator[Line]:
    """A step with B gradients that stops unfinished work takes t(B) = min{t: sum floor(t / h_i) >= B}, again and again.

    B / S_n <= t(B) <= min_m (B + m) / S_m; a worker that never ends holds nobody up.
    """
    roots = tuple(float(i) ** 0.5 for i in range(1, 17))
    for name, times, sizes in (
        (f"h = {TIMES}", TIMES, (1, 4, 10, 25)),
        ("h_i = sqrt(i), n = 16", roots, (8, 30)),
        ("one worker never ends", (1, 2, 5, ENDLESS), (10,)),
    ):
        for size in sizes:
            done = _made(times, {"name": "rennala", "batch": size, "stop_unfinished": True}, STEPS)
            due = first(times, lambda counts, size=size: sum(counts) >= size)
            yield Line(f"seconds of {STEPS} steps, B = {size}, {name}", float(STEPS * due), done.seconds)
    done, sums = _made(TIMES, {"name": "rennala", "batch": 25, "stop_unfinished": True}, STEPS), rates(TIMES)
    step = done.seconds / STEPS
    yield Line(f"seconds of a step, B = 25, h = {TIMES}", float(25 / sums[-1]), step, relation=">=")
    most = min((25 + m) / rate for m, rate in enumerate(sums, start=1))
    yield Line(f"seconds of a step, B = 25, h = {TIMES}", float(most), step, relation="<=")


def ringmaster() -> Iterator[Line]:
    """Any R updates applied one after another take at most 2 min_m (m + R) / S_m, with a worker that never ends too."""
    times = (1, 2, 5, ENDLESS)
    for threshold, stop in ((1, False), (3, False), (3, True), (8, True)):
        bound = 2 * min((m + threshold) / rate for m, rate in enumerate(rates(times), start=1))
        done = _made(times, {"name": "ringmaster", "delay_threshold": threshold, "stop": stop}, 200)
        at = np.concatenate([[0], done.of(Kind.PUBLISH)["ticks"]])
        longest = int((at[threshold:] - at[:-threshold]).max()) / SECOND
        how = "stopped" if stop else "discarded"
        yield Line(f"longest of any R updates, R = {threshold}, late ones {how}", float(bound), longest, relation="<=")


def malenia() -> Iterator[Line]:
    """A step ends as soon as the harmonic mean of all workers' counts exceeds S / n, and everybody begins anew."""
    for size, times in ((1, TIMES), (8, TIMES), (20, TIMES), (4, (1, 1, 1, 1))):
        n = len(times)

        def enough(counts: list[int], size: int = size, n: int = n) -> bool:
            return all(counts) and n / sum(Fraction(1, made) for made in counts) > Fraction(size, n)

        done = _made(times, {"name": "malenia", "gradients": size}, STEPS)
        yield Line(
            f"seconds of {STEPS} steps, S = {size}, h = {times}", float(STEPS * first(times, enough)), done.seconds
        )
