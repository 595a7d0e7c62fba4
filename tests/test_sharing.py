"""Max-min fair sharing of a link against closed forms and a brute-force fluid simulation in exact fractions."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest
from fluid import Flow, Fluid, per_tick
from hypothesis import given, settings
from hypothesis import strategies as st

from desim_fl.network import transfer_ticks
from desim_fl.sharing import FINE, Link

S = 1_000_000  # ticks in a second; also what a bit is worth in millionths
M = 1_000_000  # bit/s in a Mbit/s


# ---- the two side by side


@dataclass
class Both:
    """The link and the fluid, told the same."""

    capacity: int | None
    capacities: list[int | None]
    link: Link = field(init=False)
    fluid: Fluid = field(init=False)
    tick: int = 0
    ends: dict[int, int] = field(default_factory=dict)
    instants: dict[int, int] = field(default_factory=dict)
    work: int = 0

    def __post_init__(self) -> None:
        self.link = Link(self.capacity, self.capacities, self.watch)
        self.fluid = Fluid(per_tick(self.capacity), [per_tick(own) for own in self.capacities])

    def watch(self, begin, end, carried):
        """Nobody carries more than its capacity; begins follow on ends."""
        assert end > begin or not self.link.ended[-1][1] - begin
        self.work += sum(carried)
        if end == begin:
            return
        roots, branches = self.link.capacity, [branch.capacity for branch in self.link.branches]
        assert roots is None or sum(carried) <= roots * (end - begin)
        assert all(own is None or mine <= own * (end - begin) for own, mine in zip(branches, carried, strict=True))

    def go(self, tick: int) -> None:
        """Play up to a tick, taking each end at the tick that was announced."""
        while (following := self.link.next_tick()) is not None and following <= tick:
            for number in self.link.take(following):
                assert number not in self.ends
                self.ends[number] = following
            assert not self.link.ended
        self.link.advance(tick)
        self.fluid.advance(tick)
        self.tick = tick
        found = {number: end for number, _, end in self.fluid.ended}
        assert {n: end for n, end in self.ends.items() if n in found or end <= tick} == {
            n: end for n, end in found.items() if end <= tick
        }

    def add(self, number, bits, cap, branch):
        self.link.add(self.tick, number, bits * S, cap, branch)
        self.fluid.flows[number] = Flow(Fraction(bits), per_tick(cap), branch, self.tick)


def a_story(pick) -> Both:
    """Twenty or so events of every kind at small numbers, so that ties and exact ticks abound."""
    regions = pick([1, 1, 2, 3])
    rate = lambda: pick([1, 2, 3, 7, 10, 64, 1000]) * pick([1, M, M // 3])  # noqa: E731
    capacities = [pick([None, rate()]) if regions > 1 else None for _ in range(regions)]
    both = Both(rate(), capacities)
    for number in range(pick([3, 8, 20])):
        both.go(both.tick + pick([0, 0, 1, 7, 10**4, 10**6]))
        flying = sorted(both.fluid.flows)
        what = pick(["add", "add", "add", "add", "abort", "recap", "change", "regional"])
        if what == "add" or not flying:
            cap = pick([None, rate()])
            both.add(number, pick([1, 3, 100, 8 * 10**3, 10**6]), cap, pick(range(regions)))
        elif what == "abort":
            victim = pick(flying)
            left = both.link.abort(both.tick, victim)
            assert left == pytest.approx(float(both.fluid.flows.pop(victim).left) * S, abs=2)
        elif what == "recap":
            other, cap = pick(flying), pick([None, rate()])
            both.link.recap(both.tick, other, cap)
            both.fluid.flows[other].cap = per_tick(cap)
        elif what == "change":
            new = pick([0, rate(), rate()])
            both.link.change(both.tick, new)
            both.fluid.capacity = per_tick(new)
        elif capacities[0] is not None:
            new = pick([0, rate()])
            both.link.change(both.tick, new, 0)
            both.fluid.capacities[0] = per_tick(new)
    both.go(both.tick + pick([1, 10**5, 10**9, 10**13]))
    assert both.work / 2**FINE / S == pytest.approx(float(both.fluid.carried), rel=1e-12, abs=1e-9)
    assert len(both.link) == len(both.fluid.flows)
    return both


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_end_is_that_of_the_fluid_rounded_up(data):
    """Additions, aborts, other caps and capacities, regions, outages: each transfer ends at the very tick of the brute force."""
    a_story(lambda options: data.draw(st.sampled_from(options)))


def test_many_fixed_stories():
    """Two hundred stories that never change, for what a random search may miss."""
    ended = sum(len(a_story(random.Random(seed).choice).ends) for seed in range(200))
    assert ended > 500


# ---- closed forms


def ends(link: Link, until: int | None = None) -> dict[int, int]:
    """Play to the end (or a tick); tick of every end, by id."""
    found = {}
    while (tick := link.next_tick()) is not None and (until is None or tick <= until):
        found |= dict.fromkeys(link.take(tick), tick)
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 7, 1000])
def test_equal_transfers_end_together(count):
    """N transfers of B bits that begin together on C bit/s all end at N B / C; caps above C / N change nothing."""
    link = Link(3 * M)
    for number in range(count):
        link.add(5, number, 8_000 * S, None if number % 2 else 4 * M)
    assert ends(link) == dict.fromkeys(range(count), 5 + -(-8_000 * S * count // (3 * M)))


def test_one_joins_half_way():
    """B bits, and B more when half of the first are through: the first ends at 1.5 B / C, the second at 2 B / C."""
    link = Link(8 * M)
    link.add(0, 0, 8 * M * S)
    link.add(S // 2, 1, 8 * M * S)
    assert ends(link) == {0: 3 * S // 2, 1: 2 * S}


def test_caps_bind():
    """On 10 Mbit/s caps of 1 and 2 leave 7 for two others: 8 Mbit each end at 16/7 s, then the slower ones by their caps."""
    link = Link(10 * M)
    for number, cap in enumerate([M, 2 * M, None, 5 * M]):
        link.add(0, number, 8 * M * S, cap)
    last = -(-16 * S // 7)
    assert ends(link) == {0: 8 * S, 1: 4 * S, 2: last, 3: last}


def test_a_full_region_leaves_its_share_to_the_others():
    """10 Mbit/s, a region of 2 with two transfers, one without limit with two: 1 each there, 4 each here."""
    link = Link(10 * M, [2 * M, None])
    for number in range(4):
        link.add(0, number, 8 * M * S, None, number // 2)
    assert ends(link) == {0: 8 * S, 1: 8 * S, 2: 2 * S, 3: 2 * S}


def test_the_root_may_be_without_limit():
    """Then each region is a link of its own, and what nothing limits ends at once."""
    link = Link(None, [2 * M, None])
    for number, branch in enumerate([0, 0, 1, 1]):
        link.add(7, number, 8 * M * S, 4 * M if number == 3 else None, branch)
    assert ends(link) == {0: 7 + 8 * S, 1: 7 + 8 * S, 2: 7, 3: 7 + 2 * S}


def test_an_outage_delays_everybody_by_its_length():
    """With capacity 0 for 5 s, all that are in flight end exactly 5 s later; without its end, never."""
    link = Link(8 * M)
    for number in range(3):
        link.add(0, number, 8 * M * S, None if number else M)
    plain = ends(link)
    link = Link(8 * M)
    for number in range(3):
        link.add(0, number, 8 * M * S, None if number else M)
    link.change(S, 0)
    assert link.next_tick() is None
    link.change(6 * S, 8 * M)
    assert ends(link) == {number: tick + 5 * S for number, tick in plain.items()}


def test_an_abort_lets_the_others_rise_at_once():
    """Two on 8 Mbit/s; one goes at 1 s with half of its 8 Mbit to come: the other ends at 1.5 s instead of 2."""
    link = Link(8 * M)
    link.add(0, 0, 8 * M * S)
    link.add(0, 1, 8 * M * S)
    assert link.abort(S, 0) == 4 * M * S
    assert not link.holds(0)
    assert ends(link) == {1: 3 * S // 2}


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**9), st.floats(1e-6, 1e5), st.integers(0, 10**15))
def test_alone_it_takes_what_a_link_of_its_own_takes(size, mbps, start):
    """One transfer, limited by its cap, by the link or by the region: to the tick the whole-number formula of private links."""
    rate, ticks = max(1, round(mbps * 1e6)), transfer_ticks(size, mbps)
    for link, cap in (
        (Link(2 * rate), rate),
        (Link(rate), None),
        (Link(3 * rate, [rate]), 2 * rate),
        (Link(None), rate),
    ):
        link.add(start, 0, size * 8 * S, cap)
        assert ends(link) == {0: start + ticks}


def test_after_a_thousand_years_ends_are_as_exact_as_at_first():
    """A link that was never idle for 3e16 ticks ends transfers at the instants of a new one, to 2^-40 ticks."""
    late, start = Link(7 * M), 3 * 10**16
    late.add(0, -1, 10**18 * 7 * M)
    late.add(0, -2, 10**18 * 7 * M, 3 * M)
    late.advance(start)
    fresh = Link(7 * M)
    fresh.add(0, -1, 10**18 * 7 * M)
    fresh.add(0, -2, 10**18 * 7 * M, 3 * M)
    draw = random.Random(3)
    for number in range(300):
        tick, bits, cap = draw.randrange(10**7), draw.randrange(1, 10**5), draw.choice([None, M, 2 * M])
        for link, offset in ((late, start), (fresh, 0)):
            link.add(offset + number * 10**7 + tick, number, bits * S, cap)
    for link, offset in ((late, start), (fresh, 0)):
        link.advance(offset + 10**11)
    since = [(number, instant - (start << FINE)) for number, instant in late.ended]
    assert [number for number, _ in since] == [number for number, _ in fresh.ended]
    assert len(since) == 300
    assert max(abs(one - other) for (_, one), (_, other) in zip(since, fresh.ended, strict=True)) < 1 << 24


# ---- many at once


def by_floats(capacity: int, arrivals: list[tuple[int, int, int]]) -> dict[int, float]:
    """Instants of all ends by brute force in floats: every rate anew at every event; arrivals are (tick, bits, cap)."""
    left, caps, alive = (np.zeros(len(arrivals)) for _ in range(3))
    now, coming, found = 0.0, 0, {}
    while len(found) < len(arrivals):
        members = np.flatnonzero(alive)
        order = members[np.argsort(caps[members], kind="stable")]
        rest = capacity / S - np.concatenate([[0.0], np.cumsum(caps[order])])[:-1]
        levels = rest / np.arange(len(order), 0, -1) if len(order) else np.zeros(0)
        level = levels[caps[order] > levels][0] if (caps[order] > levels).any() else np.inf
        rates = np.minimum(caps[members], level)
        ends = now + left[members] / rates
        until = min(ends.min(initial=np.inf), arrivals[coming][0] if coming < len(arrivals) else np.inf)
        left[members] -= rates * (until - now)
        now = until
        for number in members[ends <= until].tolist():
            found[number], alive[number] = now, 0
        while coming < len(arrivals) and arrivals[coming][0] <= now:
            left[coming], caps[coming], alive[coming] = arrivals[coming][1], arrivals[coming][2] / S, 1
            coming += 1
    return found


@pytest.mark.parametrize("count", [50, 1500])
def test_many_transfers_agree_with_brute_force_in_floats(count):
    """Hundreds in flight, caps around the level: instants of last bits agree to a relative 1e-9 before any rounding."""
    draw = random.Random(count)
    arrivals = sorted(
        (draw.randrange(20 * S), int(draw.expovariate(1 / 2e6)) + 1, int(draw.choice([0.3, 1, 1.01, 5]) * M))
        for _ in range(count)
    )
    capacity = count * M // 20
    link, instants = Link(capacity), {}
    for number, (tick, bits, cap) in enumerate(arrivals):
        link.add(tick, number, bits * S, cap)
    link.advance(10**12)
    instants = {number: instant / 2**FINE for number, instant in link.ended}
    assert instants == pytest.approx(by_floats(capacity, arrivals), rel=1e-9)


def calls_an_event(in_flight: int, width: float, room: float = 1.0) -> float:
    """Python calls that an event costs with so many in flight, caps spread over a relative ``width`` around ``room``."""
    link, draw, counted = Link(int(in_flight * M * room)), random.Random(1), 0
    cap = lambda: round(M * (1 + width * (draw.random() - 0.5)), -3)  # noqa: E731  (three digits)
    for number in range(in_flight):
        link.add(0, number, int(draw.expovariate(1) * 1e12) + 1, int(cap()))

    def count(_, event, __):
        nonlocal counted
        counted += event == "call"

    sys.setprofile(count)
    try:
        for number in range(in_flight, in_flight + 500):
            tick = link.next_tick()
            link.take(tick)
            link.add(tick, number, int(draw.expovariate(1) * 1e12) + 1, int(cap()))
    finally:
        sys.setprofile(None)
    return counted / 1000


@pytest.mark.parametrize(("width", "room"), [(0.0, 1.0), (0.001, 1.0), (1.0, 0.9), (1.0, 1.0), (1.0, 1.001)])
def test_an_event_costs_no_more_with_many_in_flight(width, room):
    """Five thousand in flight cost at most twice the calls an event that a hundred do, the link full, just so, or not quite."""
    assert calls_an_event(5_000, width, room) <= 2 * max(25, calls_an_event(100, width, room))


def test_a_bit_on_the_fastest_link_takes_a_tick():
    """At 10^15 bit/s one bit ends in the tick after it began, as on a link of its own."""
    link = Link(10**15)
    link.add(3, 0, S)
    assert ends(link) == {0: 4}
