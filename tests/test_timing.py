"""Ticks: one rounding a duration, exact transfers and scales, one fixed slot for each drawn quantity."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from desim_fl import draws
from desim_fl.build import build
from desim_fl.core import Trip, Work
from desim_fl.devices import Devices
from desim_fl.draws import ClientSlot, JobSlot, Purpose
from desim_fl.durations import Constant, Exponential, HalfNormal, Lognormal, Pareto, Uniform, Zipf
from desim_fl.errors import RunError
from desim_fl.network import Links, transfer_ticks
from desim_fl.scenario import Scenario
from desim_fl.ticks import MOST_TICKS, is_leg, scaled, to_ticks
from desim_fl.timing import DrawnTrips, JobDraws, JobLaws, per_client

S = 1_000_000
EXAMPLES = settings(max_examples=200, deadline=None)
CLIENTS = 4
ALL_LAWS = JobLaws(Lognormal(1.0, 0.4), Exponential(2.0), Uniform(0.5, 1.5))


def drawn_trips(
    laws: JobLaws = ALL_LAWS, *, factor: float = 1.0, seconds_per_step: float = 0.01, scale: float = 1.0, seed: int = 7
) -> DrawnTrips:
    """Trips of four clients over links of 8 and 4 Mbit/s with 20 ms of latency."""
    links = Links(100_000, (0.02,) * CLIENTS, (8.0,) * CLIENTS, (4.0,) * CLIENTS)
    job_draws = JobDraws(seed, range(CLIENTS), laws)
    return DrawnTrips(links, Devices((factor,) * CLIENTS, seconds_per_step), job_draws, scale)


def trips_of(source: DrawnTrips, steps: int = 50) -> list[Trip]:
    """The first six trips of each client."""
    work = Work(epochs=1, steps=steps, lr=0.1)
    return [source.trip(client, nth, work) for client in range(CLIENTS) for nth in range(6)]


def test_seconds_are_rounded_half_to_even():
    """Half a microsecond goes to the even neighbour; the rest to the nearest tick."""
    assert [to_ticks(ticks / S) for ticks in (0.5, 1.5, 2.5, 3.5)] == [0, 2, 2, 4]
    assert (to_ticks(0.1), to_ticks(1e-7), to_ticks(0.0)) == (100_000, 0, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e-9, -math.inf, 2.0**62])
def test_what_is_no_duration_is_refused(bad):
    """NaN, infinite, negative and 146,000-year durations are errors that show the value; CASES EV-08."""
    with pytest.raises(ValueError, match="finite number of seconds"):
        to_ticks(bad)


def test_legs_are_whole_ticks_only():
    """A leg is a plain int from 0 on: no float, no bool, nothing out of range."""
    assert all(map(is_leg, (0, 1, MOST_TICKS - 1)))
    assert not any(map(is_leg, (-1, 1.0, True, math.nan, MOST_TICKS, None)))


@EXAMPLES
@given(st.integers(0, 10**12), st.integers(1, 10**6))
def test_whole_scales_are_exact(ticks, scale):
    """Multiplying by a whole number loses nothing, given as int or float."""
    assert scaled(ticks, scale) == scaled(ticks, float(scale)) == ticks * scale


@EXAMPLES
@given(st.integers(0, 10**9), st.floats(0.01, 100))
def test_other_scales_round_once_more(ticks, scale):
    """A scale that is not whole gives the nearest tick of the product."""
    assert abs(Fraction(scaled(ticks, scale)) - Fraction(ticks) * Fraction(scale)) <= Fraction(1, 2) + Fraction(
        1, 10**4
    )


def test_half_scales_round_half_to_even_and_too_long_ones_are_refused():
    """1, 3 and 5 ticks times 1/2 are 0, 2 and 2; beyond 146,000 years is an error."""
    assert [scaled(ticks, 0.5) for ticks in (1, 3, 5)] == [0, 2, 2]
    with pytest.raises(ValueError, match="146,000 years"):
        scaled(MOST_TICKS // 2, 2.0)


def test_ten_megabytes_at_eight_megabits_take_ten_seconds():
    """10 MB are 80 Mbit: exactly 10 s at 8 Mbit/s; no rate means no time."""
    assert transfer_ticks(10_000_000, 8.0) == 10 * S
    assert transfer_ticks(10_000_000, 0.1) == 800 * S
    assert transfer_ticks(10_000_000, None) == 0
    assert transfer_ticks(0, 8.0) == 0


@EXAMPLES
@given(st.integers(0, 10**13), st.integers(1, 10**10))
def test_transfers_take_the_smallest_number_of_ticks_that_suffices(size, bits_a_second):
    """ceil(bits * 10^6 / rate) in integers, also where a float quotient would be off by one."""
    ticks = transfer_ticks(size, bits_a_second / 1e6)
    rate = round(bits_a_second / 1e6 * 1e6)
    assert ticks * rate >= size * 8 * S
    assert (ticks - 1) * rate < size * 8 * S or ticks == 0


def test_a_leg_is_rounded_latency_plus_transfer():
    """Latency 0.0000125 s doubled by jitter is 25 ticks; 100 kB down at 8 and up at 4 Mbit/s are 0.1 and 0.2 s."""
    links = Links(100_000, (0.000_012_5,), (8.0,), (4.0,))
    assert links.download(0, 1.0) == 12 + 100_000  # half to even
    assert links.download(0, 2.0) == 25 + 100_000
    assert links.upload(0, 1.0) == 12 + 200_000
    assert Links(100_000, (0.5,)).download(0, 1.0) == 500_000


def test_compute_is_rounded_once_a_job():
    """1,000 steps of 0.3 microseconds are 300 ticks, not 1,000 times 0; factors go in before the rounding."""
    source = drawn_trips(JobLaws(), seconds_per_step=3e-7)
    assert source.trip(0, 0, Work(steps=1000)).compute == 300
    source = drawn_trips(JobLaws(jitter_factor=Constant(1.5)), seconds_per_step=4e-7, factor=0.5)
    assert source.trip(0, 0, Work(steps=10)).compute == 3
    assert source.trip(0, 0, Work(steps=1)).compute == 0
    assert source.trip(0, 0, Work(steps=0)).compute == 0


@pytest.mark.parametrize("scale", [2.0, 100.0])
def test_whole_delay_scales_multiply_every_leg(scale):
    """With delay_scale k every leg of every trip is exactly k times as long, the bytes stay."""
    for plain, longer in zip(trips_of(drawn_trips()), trips_of(drawn_trips(scale=scale)), strict=True):
        assert longer[:4] == tuple(leg * int(scale) for leg in plain[:4])
        assert longer[4:] == plain[4:]


def test_ev_09a_half_the_speed_doubles_computing():
    """Devices at half their speed compute twice as long within one tick, and nothing else changes."""
    for plain, slow in zip(trips_of(drawn_trips()), trips_of(drawn_trips(factor=2.0)), strict=True):
        assert abs(slow.compute - 2 * plain.compute) <= 1
        assert slow._replace(compute=plain.compute) == plain


def test_ev_09b_more_steps_take_longer_in_proportion():
    """Computing grows with the steps, waits and links do not."""
    for one, ten in zip(trips_of(drawn_trips(), 10), trips_of(drawn_trips(), 100), strict=True):
        assert abs(ten.compute - 10 * one.compute) <= 5
        assert ten._replace(compute=one.compute) == one


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
@pytest.mark.parametrize("key", [0, 2**32 - 1])
def test_blocks_of_draws_equal_single_draws(seed, key):
    """The first 600 jobs of a client have the same values whether drawn in blocks or one by one, in any order."""
    laws = JobLaws(Lognormal(1.0, 0.5), Zipf(1.7, 60), HalfNormal(0.2, 1.0))
    source, backwards = JobDraws(seed, [key], laws), JobDraws(seed, [key], laws)

    def single(nth):
        words = draws.block(seed, Purpose.JOB, key, nth, 0)
        return {slot: law.at(draws.uniform(words[slot])) for slot, law in laws.slots}

    expected = [single(nth) for nth in range(600)]
    assert [source.values(0, nth) for nth in range(600)] == expected
    assert [backwards.values(0, nth) for nth in reversed(range(600))] == expected[::-1]
    block = source.columns(np.zeros(500, np.int64), np.arange(100, 600))
    assert [{slot: float(column[n]) for slot, column in block.items()} for n in range(500)] == expected[100:]


@pytest.mark.parametrize("scale", [1.0, 7.0, 0.3])
def test_blocks_of_trips_equal_single_trips(scale):
    """Trips prepared in blocks are those computed one by one, in any order, with every law set and scaled."""
    source, single = drawn_trips(ALL_LAWS), drawn_trips(ALL_LAWS)
    source.delay_scale = single.delay_scale = scale
    work = Work(epochs=1, steps=17)
    expected = [single._trip(2, nth, work.steps or 0) for nth in range(400)]
    assert [source.trip(2, nth, work) for nth in range(400)] == expected
    assert source._ahead[2].end >= 400, "nothing was ever drawn ahead"
    assert [source.trip(2, nth, work) for nth in reversed(range(400))] == expected[::-1]


def test_trips_do_not_depend_on_who_else_asks_nor_on_what_is_foretold():
    """Drawn for a window of neighbours, foretold, asked for out of turn or with other steps: always the lone trip."""
    steps, alone = {0: 17, 1: 3, 2: 40, 3: 17}, drawn_trips(ALL_LAWS)
    crowd, foretold = drawn_trips(ALL_LAWS), drawn_trips(ALL_LAWS)
    planned = replace(drawn_trips(ALL_LAWS), usual_jobs=20)
    crowd.usual_steps = foretold.usual_steps = planned.usual_steps = list(steps.values())
    foretold.foresees = True
    pick, nths = random.Random(5), [0] * CLIENTS
    for turn in range(900):
        client = pick.choice([0, 0, 0, 1, 2, 3])
        work = Work(epochs=1, steps=pick.choice([steps[client]] * 9 + [5]))
        nth = nths[client] if pick.random() < 0.95 else pick.randrange(600)
        nths[client] += 1
        if turn % 50 == 0:
            foretold.expect([0, 1, 3, 0], [nths[0], nths[1], nths[3], nths[0]])
        expected = alone._trip(client, nth, work.steps or 0)
        assert crowd.trip(client, nth, work) == expected
        assert foretold.trip(client, nth, work) == expected
        assert planned.trip(client, nth, work) == expected


def test_as_many_trips_are_drawn_at_once_as_a_client_will_have_jobs():
    """Eight where nobody knows, never fewer, never more than may be held; a scenario says 5/4 of what its stop rule makes."""
    work = Work(epochs=1, steps=17)
    for jobs, ahead in ((0, 8), (3, 8), (20, 20), (64, 64), (900, 64)):
        source = replace(drawn_trips(ALL_LAWS), usual_jobs=jobs)
        source.trip(0, 0, work)
        assert [source._ahead[client].end for client in range(CLIENTS)] == [ahead] * CLIENTS, jobs
    for stops, jobs in (({"max_updates": 1000}, 41), ({"max_versions": 480, "max_updates": 9000}, 20), ({}, 0)):
        tables = {"data": {"name": "quadratic"}, "clients": {"count": 30}, "run": stops or {"max_time_s": 9.0}}
        built = build(Scenario.model_validate(tables), timing_only=True)
        assert built.trips.usual_jobs == jobs


def test_one_trip_without_end_spoils_no_other():
    """Where some draws exceed any duration, those jobs alone are errors that say so; the others have their trips."""
    source = drawn_trips(JobLaws(jitter_factor=Pareto(0.05, 1.0)), seconds_per_step=1e3)
    fates = set()
    for nth in range(300):
        try:
            whole = source._trip(1, nth, 50)
        except ValueError:
            with pytest.raises(RunError, match=f"client 1, job number {nth} "):
                source.trip(1, nth, Work(steps=50))
            fates.add("error")
        else:
            assert source.trip(1, nth, Work(steps=50)) == whole
            fates.add("long" if whole.compute >= 2**53 else "sound")
    assert fates == {"error", "long", "sound"}


def test_many_clients_share_the_budget_of_blocks_and_get_the_same_values():
    """Where blocks would be too short to pay, single draws give the same values as blocks do."""
    laws = JobLaws(Exponential(1.0))
    crowd, alone = JobDraws(3, range(100_000), laws), JobDraws(3, range(10), laws)
    assert [crowd.values(5, nth) for nth in range(20)] == [alone.values(5, nth) for nth in range(20)]


def test_slots_are_independent():
    """Adding a wait law or a latency jitter changes no computing jitter, and the wait is the same beside any law."""
    alone, both = drawn_trips(JobLaws(jitter_factor=ALL_LAWS.jitter_factor)), drawn_trips(ALL_LAWS)
    waits = drawn_trips(JobLaws(wait_s=ALL_LAWS.wait_s))
    for lone, full, waiting in zip(trips_of(alone), trips_of(both), trips_of(waits), strict=True):
        assert lone.compute == full.compute
        assert full.wait == waiting.wait
        assert lone.wait is None


def test_the_same_draw_moves_with_its_parameter():
    """Another mean, or another law at the same slot, uses the same uniform: common random numbers."""
    for plain, longer in zip(
        trips_of(drawn_trips(JobLaws(wait_s=Exponential(2.0)))), trips_of(drawn_trips(JobLaws(wait_s=Exponential(6.0)))),
        strict=True,
    ):  # fmt: skip
        assert abs(longer.wait - 3 * plain.wait) <= 2
    uniform, word = Uniform(0.0, 1.0), draws.word(7, Purpose.JOB, 2, 3, JobSlot.WAIT)
    source = drawn_trips(JobLaws(wait_s=uniform))
    assert source.trip(2, 3, Work(steps=1)).wait == to_ticks(draws.uniform(word))


def test_trips_belong_to_key_and_count_not_to_the_number_of_the_client():
    """Client 0 with key 9 draws what client 1 with key 9 draws elsewhere; CASES RP-03."""
    here, there = JobDraws(7, [9, 4], ALL_LAWS), JobDraws(7, [4, 9], ALL_LAWS)
    assert [here.values(0, nth) for nth in range(300)] == [there.values(1, nth) for nth in range(300)]
    assert here.values(0, 0) != here.values(1, 0)


def test_constants_of_clients_come_from_their_own_purpose():
    """A client's factor is the law at the uniform of (CLIENT, key, 0, slot), for any key up to 2^32 - 1."""
    keys, law = (0, 5, 2**32 - 1), Lognormal(1.0, 0.5)
    drawn = per_client(law, 11, keys, ClientSlot.LATENCY)
    words = [draws.word(11, Purpose.CLIENT, key, 0, ClientSlot.LATENCY) for key in keys]
    assert list(drawn) == [law.at(draws.uniform(word)) for word in words]


def test_without_laws_nothing_is_drawn_and_there_is_no_wait():
    """No laws: a trip is its constants, with the model's bytes both ways."""
    trip = drawn_trips(JobLaws()).trip(1, 5, Work(steps=50))
    assert trip == Trip(120_000, None, 500_000, 220_000, 100_000, 100_000)


def test_a_law_that_gives_no_duration_names_client_and_job():
    """A product of factors beyond any duration is an error that names the client and its job number; CASES EV-08."""
    with pytest.raises(RunError, match=r"client 2, job number 4 .*check its laws"):
        drawn_trips(JobLaws(jitter_factor=Constant(1e200)), factor=1e100).trip(2, 4, Work(steps=1))
