"""The ledger raises where a conservation law does not hold, whichever it is; and segments go out when they are full."""

from __future__ import annotations

import re
from dataclasses import replace
from unittest import mock

import pytest
from worlds import ScriptedTrips, play

from desim_fl.core import Reply, Trip, Work
from desim_fl.errors import LawError
from desim_fl.eventlog import EventLog, Kind
from desim_fl.ledger import Ledger
from desim_fl.world import StopRules

TRIP = Trip(1, None, 2, 1, 100, 50)
SOUND = {
    "dispatched": 9,
    "arrived": 5,
    "lost": 1,
    "cancelled": 1,
    "applied": 2,
    "buffered": 2,
    "rejected": 1,
    "published": 3,
}


def test_sound_counts_pass():
    """Nine sent out, two of them in flight; two of five updates applied, two in the buffer, one turned away."""
    ledger = Ledger(**SOUND)
    assert ledger.in_flight == 2
    ledger.check(3, 2)


@pytest.mark.parametrize(
    ("count", "law"),
    [
        ("dispatched", "dispatched = arrived + in flight + lost + cancelled"),
        ("lost", "dispatched = arrived + in flight + lost + cancelled"),
        ("cancelled", "dispatched = arrived + in flight + lost + cancelled"),
        ("applied", "arrived = applied + buffered + rejected"),
        ("buffered", "arrived = applied + buffered + rejected"),
        ("rejected", "arrived = applied + buffered + rejected"),
        ("published", "version = publishes"),
    ],
)
@pytest.mark.parametrize("by", [1, -1])
def test_a_count_that_is_off_by_one_breaks_a_law_by_name(count, law, by):
    """One too many or too few of anything: the law that it breaks is named, with all counts."""
    ledger = Ledger(**(SOUND | {count: SOUND[count] + by}))
    with pytest.raises(LawError, match=re.escape(f"{law}; counts: ")):
        ledger.check(3, 2)


@pytest.mark.parametrize(("in_flight", "arrived"), [(1, 5), (3, 5), (2, 6), (2, 4)])
def test_jobs_that_the_engine_holds_and_arrivals_must_add_up(in_flight, arrived):
    """What the engine says is in flight counts, not what the ledger works out; an arrival is on both sides."""
    with pytest.raises(LawError):
        Ledger(**(SOUND | {"arrived": arrived})).check(3, in_flight)


def played(staleness: int) -> tuple[Ledger, list]:
    """Two jobs leave, one arrives and is published, the other arrives with this staleness: through the log into a ledger."""
    ledger, segments = Ledger(), []
    log = EventLog(segments.append, segment_rows=4)
    log.tally = ledger.tally
    log.block(0)
    for job in (0, 1):
        log.dispatch(job, job, 0, 0, Work(1, 4, 0.1), TRIP)
    log.arrive(4, 0, 0, 0, 0, 10, 4, TRIP, 1.0, None)
    log.publish(0, 0, 1, 1.0)
    log.arrive(5, 1, 1, 1, staleness, 10, 4, TRIP, 1.0, None)
    log.finish(5)
    return ledger, segments


def test_staleness_adds_up_to_jobs_in_flight_at_each_publish():
    """One job flew when version 1 was published, so the staleness of all that landed is 1."""
    ledger, _ = played(1)
    assert (ledger.aged, ledger.settled_staleness, ledger.base_versions) == (1, 1, 0)
    assert (ledger.bytes_down, ledger.bytes_up) == (200, 100)


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_staleness_that_is_not_the_age_of_its_base_breaks_a_law(staleness):
    """One version more or less than were published in between: seen when the run ends, with nobody in flight."""
    ledger, _ = played(staleness)
    with pytest.raises(LawError, match="staleness = version at the landing - base version"):
        ledger.close([])
    played(1)[0].close([])


def test_ages_that_do_not_add_up_break_a_law():
    """Five versions of age from before that nobody in flight has."""
    ledger = Ledger(aged=5)
    log = EventLog()
    log.tally = ledger.tally
    log.block(0)
    log.dispatch(0, 0, 0, 0, Work(1, 4, 0.1), TRIP)
    with pytest.raises(LawError, match="staleness of landed jobs"):
        log.finish(0)


def test_every_row_that_moves_bytes_is_counted():
    """A retry and a come-back bring the model down again; a lost and a cancelled job have sent up a part of theirs."""
    ledger, log = Ledger(), EventLog()
    log.tally = ledger.tally
    log.block(0)
    for job in (0, 1):
        log.dispatch(job, job, 0, 0, Work(1, 4, 0.1), TRIP)
    log.block(2)
    log.row(Kind.RETRY, 0, 0, 0, reason="crash in compute", size=100)
    log.row(Kind.LEAVE, 0, 0, 0, size=7)
    log.row(Kind.LOSE, 0, 0, 0, 0, "left", 30)
    log.row(Kind.CANCEL, 1, 1, 0, 0, size=20)
    log.finish(2)
    assert (ledger.bytes_down, ledger.bytes_up) == (307, 50)


def test_an_engine_that_writes_the_wrong_staleness_does_not_end_in_peace():
    """One arrival of a run that is a version staler in the log than it was: the end of the run says so."""
    arrive = EventLog.arrive

    def wrong(log, tick, client, job, version, staleness, *more):
        arrive(log, tick, client, job, version, staleness + (job == 3), *more)

    with mock.patch.object(EventLog, "arrive", wrong), pytest.raises(LawError, match="staleness = version at the land"):
        play(ScriptedTrips([1, 2.5]), concurrency=2, stops=StopRules(max_updates=9))


@pytest.mark.parametrize("usual", [True, False])
def test_more_jobs_in_flight_than_places_break_a_law(usual):
    """Three in flight where two may be: whoever lets that happen, the next event tells."""
    engine = play(ScriptedTrips([9] * 4), concurrency=3, stops=StopRules(max_ticks=1)).engine
    engine.balance()
    engine.world = replace(engine.world, concurrency=2)
    with pytest.raises(LawError, match=r"[34] jobs in flight exceed the concurrency 2"):
        engine._turn_over(Reply(), 0, 0) if usual else engine.balance()


def test_full_segments_go_out_at_once_and_the_rest_at_the_end():
    """Nine rows (two dispatches, four ends of legs, two arrivals, a publish) in segments of four: 4, 4 and 1."""
    assert [len(segment.rows) for segment in played(1)[1]] == [4, 4, 1]
    segments = []
    log = EventLog(segments.append, segment_rows=2)
    log.block(0)
    for job in (0, 1):
        log.dispatch(job, job, 0, 0, Work(1, 4, 0.1), TRIP)
    log.settle(0)
    assert [len(segment.rows) for segment in segments] == [2]  # full, so it waits for nothing
