"""A brute-force fluid simulation of shared links in exact fractions, written from the definition of max-min fairness."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction


@dataclass
class Flow:
    """A transfer: bits left, cap in bits a tick (``None`` = none), branch, tick at which it began."""

    left: Fraction
    cap: Fraction | None
    branch: int
    begun: int


@dataclass
class Fluid:
    """Transfers under way; ``ended`` are (id, exact instant, tick)."""

    capacity: Fraction | None
    capacities: list[Fraction | None]
    now: Fraction = Fraction(0)
    flows: dict[int, Flow] = field(default_factory=dict)
    ended: list[tuple[int, Fraction, int]] = field(default_factory=list)
    carried: Fraction = Fraction(0)

    def rates(self) -> dict[int, Fraction]:
        """Progressive filling: everybody's rate rises together; whoever meets a full link or its cap stays behind."""
        rate, rising = dict.fromkeys(self.flows, Fraction(0)), set(self.flows)
        while rising:
            rooms = [self.room(rate, rising, None)]
            rooms += [self.room(rate, rising, branch) for branch in range(len(self.capacities))]
            rooms += [self.flows[n].cap - rate[n] for n in sorted(rising) if self.flows[n].cap is not None]
            step = min(room for room in rooms if room is not None)
            for number in rising:
                rate[number] += step
            rising = {n for n in rising if not self.stuck(n, rate)}
        return rate

    def limit(self, branch: int | None) -> Fraction | None:
        return self.capacity if branch is None else self.capacities[branch]

    def members(self, branch: int | None) -> list[int]:
        return [n for n, flow in self.flows.items() if branch is None or flow.branch == branch]

    def room(self, rate, rising, branch):
        """How much further the rising ones can rise together until this link is full."""
        here = self.members(branch)
        up = len([n for n in here if n in rising])
        if self.limit(branch) is None or not up:
            return None
        return (self.limit(branch) - sum(rate[n] for n in here)) / up

    def stuck(self, number, rate) -> bool:
        flow = self.flows[number]
        full = [
            self.limit(link) is not None and sum(rate[n] for n in self.members(link)) >= self.limit(link)
            for link in (None, flow.branch)
        ]
        return any(full) or (flow.cap is not None and rate[number] >= flow.cap)

    def advance(self, tick: int) -> None:
        """Go on to a tick, event by event."""
        assert tick >= self.now
        while self.flows and self.now < tick:
            rate = self.rates()
            ends = [self.now + flow.left / rate[n] for n, flow in self.flows.items() if rate[n]]
            until = min([*ends, Fraction(tick)])
            for number, flow in self.flows.items():
                flow.left -= rate[number] * (until - self.now)
                self.carried += rate[number] * (until - self.now)
            self.now = until
            for number in [n for n, flow in self.flows.items() if flow.left == 0]:
                flow = self.flows.pop(number)
                self.ended.append((number, until, max(-(-until // 1), flow.begun + 1)))
        self.now = Fraction(tick)

    def first_end(self) -> int | None:
        """Tick at which the next transfer ends if nobody comes; ``None`` = never."""
        rate = self.rates()
        ends = [(self.now + flow.left / rate[n], flow) for n, flow in self.flows.items() if rate[n]]
        ticks = [max(-(-end // 1), flow.begun + 1) for end, flow in ends if end == min(instant for instant, _ in ends)]
        return min(ticks, default=None)


def per_tick(rate: int | None) -> Fraction | None:
    """Bit/s as bits a tick."""
    return None if rate is None else Fraction(rate, 1_000_000)
