"""Cost of an event on a shared link, beside working every rate out anew, which is what anyone would write first.

A link at 60 % of what all caps add up to (lognormal, three digits) is kept at a number of transfers: each that ends is
followed by another. An event is an end or a beginning. The sides take turns on the same transfers; CPU seconds.
"""

from __future__ import annotations

import gc
from time import process_time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from desim_fl.bench import Figure
from desim_fl.network import bits_a_second
from desim_fl.sharing import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

IN_FLIGHT = (10, 100, 1_000, 10_000)
_MEAN_BITS = 8e6
_LOAD = 0.6


class Load(NamedTuple):
    """Transfers to come, and the link they come to: bits, caps and capacity in bit/s."""

    bits: list[int]
    caps: list[int]
    capacity: int

    @classmethod
    def drawn(cls, count: int, in_flight: int) -> Load:
        """The same transfers every time."""
        stream = np.random.Generator(np.random.Philox(7))
        bits = (stream.exponential(_MEAN_BITS, count).astype(np.int64) + 1).tolist()
        caps = [bits_a_second(mbps) for mbps in stream.lognormal(1.5, 0.5, count).tolist()]
        return cls(bits, caps, int(sum(caps[:in_flight]) * _LOAD))


def by_lanes(load: Load, in_flight: int, ends: int) -> float:
    """The product's link: CPU seconds until so many transfers have ended."""
    link, work = Link(load.capacity), [size * 1_000_000 for size in load.bits]
    for number in range(in_flight):
        link.add(0, number, work[number], load.caps[number])
    following = in_flight
    began = process_time()
    while following < in_flight + ends:
        tick = link.next_tick() or 0
        for _ in link.take(tick):
            link.add(tick, following, work[following], load.caps[following])
            following += 1
    return process_time() - began


def by_recomputation(load: Load, in_flight: int, ends: int) -> float:
    """Water filling over all transfers at every event, in NumPy columns: CPU seconds until so many have ended."""
    left, caps = np.array(load.bits[:in_flight], float), np.array(load.caps[:in_flight], float)
    began = process_time()
    for number in range(in_flight, in_flight + ends):
        speeds = rates(caps, load.capacity)
        first = int(np.argmin(left / speeds))
        left -= speeds * (left[first] / speeds[first])
        rates(np.delete(caps, first), load.capacity)  # the end is an event of its own, before the next beginning
        left[first], caps[first] = load.bits[number], load.caps[number]
    return process_time() - began


def rates(caps: np.ndarray, capacity: float) -> np.ndarray:
    """Max-min fair rates: the level is where the room left by those below it, shared by the others, exceeds no cap."""
    ordered = np.sort(caps)
    before = np.cumsum(ordered) - ordered
    levels = (capacity - before) / np.arange(len(caps), 0, -1)
    above = ordered > levels
    return np.minimum(caps, levels[int(np.argmax(above))]) if above.any() else caps


SIDES: dict[str, Callable[[Load, int, int], float]] = {"lanes": by_lanes, "recomputation": by_recomputation}


def links(events: int, repeats: int, in_flight: Sequence[int] = IN_FLIGHT) -> list[Figure]:
    """Microseconds an event of both sides at each number in flight, ``repeats`` times in turns."""
    found: dict[str, list[float]] = {f"{side}, {count:,} in flight": [] for count in in_flight for side in SIDES}
    for _ in range(repeats):
        for count in in_flight:
            ends = max(events // 2, 1)
            load = Load.drawn(count + ends + count, count)
            for side, play in SIDES.items():
                gc.collect()
                found[f"{side}, {count:,} in flight"].append(play(load, count, ends) / (2 * ends) * 1e6)
    return [Figure(side, tuple(costs)) for side, costs in found.items()]


def table(figures: Sequence[Figure]) -> str:
    """Figures as lines of text."""
    lines = [f"shared links: CPU microseconds an event, n = {len(figures[0].rates)}"]
    lines += [f"  {figure.side:46} {figure.mean:9.2f} (sd {figure.sd:.2f})" for figure in figures]
    return "\n".join(lines)
