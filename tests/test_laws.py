"""The audit of event logs: a sound log passes, and each planted fault is named with its row."""

from __future__ import annotations

from functools import cache

import pytest
from worlds import ScriptedTrips, play

from desim_fl.laws import Audit, Row
from desim_fl.strategies.fedasync import FedAsync
from desim_fl.strategies.fedbuff import FedBuff
from desim_fl.world import StopRules

CONCURRENCY = 3


@cache
def _sound() -> tuple[Row, ...]:
    """A log with every kind of landing but cancel: waits, a loss, a stale rejection, four publishes and more."""
    trips = ScriptedTrips([1, 1.5, 4, 2], download=0.25, wait=0.5, upload=0.25, lost={(0, 1): (1.0, "crash")})
    strategy = FedBuff(buffer_size=2, max_staleness=0)
    played = play(trips, strategy=strategy, concurrency=CONCURRENCY, stops=StopRules(max_versions=4))
    return tuple(Row(seq, *row) for seq, row in enumerate(played.sink.tuples()))


def _problems(rows) -> list[str]:
    return list(Audit(CONCURRENCY).problems(rows))


def _first(kind: str, after: int = 0) -> int:
    return next(place for place, row in enumerate(_sound()) if row.kind == kind and place >= after)


def _numbered(rows) -> list[Row]:
    """Count anew, so that only the planted fault is wrong."""
    return [row._replace(seq=seq) for seq, row in enumerate(rows)]


def _changed(place: int, **fields) -> list[Row]:
    rows = list(_sound())
    rows[place] = rows[place]._replace(**fields)
    return rows


def _without(place: int) -> list[Row]:
    return _numbered([row for row in _sound() if row.seq != place])


def _doubled(place: int, *, to: int | None = None, **fields) -> list[Row]:
    """A copy of a row, changed, behind itself or at another place."""
    rows = list(_sound())
    rows.insert(place + 1 if to is None else to, rows[place]._replace(**fields))
    return _numbered(rows)


def test_a_sound_log_has_no_problems_and_its_totals_are_the_counts_of_its_rows():
    """Nothing is found in a log with waits, a loss and rejections, whose kinds all came up."""
    assert _problems(_sound()) == []
    audit = Audit(CONCURRENCY)
    assert list(audit.problems(_sound())) == []
    kinds = [row.kind for row in _sound()]
    totals = audit.totals()
    assert set(kinds) == {
        "dispatch",
        "downloaded",
        "started",
        "computed",
        "arrive",
        "reject",
        "publish",
        "lose",
        "stop",
    }
    assert totals["dispatched"] == kinds.count("dispatch") == totals["updates"] + totals["lost"] + totals["in_flight"]
    assert totals["versions"] == kinds.count("publish") == 4
    assert totals["updates"] == totals["applied"] + totals["buffered"] + totals["rejected"]


def test_wrong_staleness_is_named():
    """An arrival whose staleness is not version minus base is named, with both numbers; CASES AS-01."""
    place = _first("arrive", 20)
    row = _sound()[place]
    problems = _problems(_changed(place, staleness=row.staleness + 1))
    assert problems[0].startswith(
        f"row {place} (arrive, t = {row.ticks / 1e6} s, job {row.job}, client {row.client}): "
    )
    assert f"= {row.staleness}, not {row.staleness + 1}" in problems[0]


def test_staleness_where_there_is_none_is_named():
    """A dispatch row with a staleness is wrong."""
    assert "has no staleness" in _problems(_changed(0, staleness=0))[0]


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        pytest.param(lambda p: _changed(p["publish"], version=2), "version should be 1, not 2", id="version skipped"),
        pytest.param(lambda p: _changed(p["publish"], kind="alarm"), "alarm", id="publish taken away"),
        pytest.param(lambda p: _changed(p["late"], ticks=0), "time goes back", id="time goes back"),
        pytest.param(lambda p: _changed(p["late"], seq=10_000), "sequence number should be", id="sequence number"),
        pytest.param(lambda p: _changed(1, job=0), "job ids count up from 0; expected 1", id="job number twice"),
        pytest.param(lambda p: _changed(1, client=0), "still has job 0 open", id="client with two open jobs"),
        pytest.param(lambda p: _changed(p["arrive"], kind="reject"), "rejection must follow", id="reject, no arrival"),
        pytest.param(lambda p: _changed(p["downloaded"], kind="started"), "out of order", id="leg out of order"),
        pytest.param(lambda p: _changed(p["downloaded"], client=3), "not in flight", id="leg of another client"),
        pytest.param(lambda p: _changed(p["arrive"], job=99), "not in flight", id="arrival of an unknown job"),
    ],
)
def test_a_changed_row_is_named(planted, said):
    """Changing one field of one row is found, and the first sentence says what should stand there."""
    places = {kind: _first(kind) for kind in ("publish", "arrive", "downloaded")} | {"late": len(_sound()) - 3}
    rows = planted(places)
    wrong = [row.seq for row, sound in zip(rows, _sound(), strict=True) if row != sound]
    problems = _problems(rows)
    assert said in problems[0]
    assert problems[0].startswith(f"row {wrong[0]} ")


def test_swapped_rows_are_named():
    """An arrival written in front of its job's last leg is found at the arrival and at the leg."""
    rows = list(_sound())
    arrive = _first("arrive")
    computed = next(row.seq for row in rows if row.kind == "computed" and row.job == rows[arrive].job)
    rows[arrive], rows[computed] = rows[computed], rows[arrive]
    problems = _problems(_numbered(rows))
    assert problems[0].startswith(f"row {computed} (arrive")
    assert "without computed" in problems[0]
    assert any(problem.startswith(f"row {arrive} (computed") and "not in flight" in problem for problem in problems)


def test_a_missing_computed_row_is_named_at_the_arrival():
    """Without its computed row an arrival is out of order."""
    arrive = _first("arrive")
    computed = next(row.seq for row in _sound() if row.kind == "computed" and row.job == _sound()[arrive].job)
    problems = _problems(_without(computed))
    assert problems == [problem for problem in problems if problem.startswith(f"row {arrive - 1} (arrive")]
    assert "after its leg started, without computed" in problems[0]


@pytest.mark.parametrize("kind", ["dispatch", "downloaded", "started", "arrive", "publish", "lose"])
def test_a_missing_row_is_found(kind):
    """Any row that is left out, counted anew or not, is found; with the old numbers at once."""
    place = _first(kind)
    assert _problems(_without(place))
    gap = [row for row in _sound() if row.seq != place]
    assert _problems(gap)[0].startswith(f"row {place + 1} ")
    assert f"sequence number should be {place}" in _problems(gap)[0]


def test_a_missing_wait_is_named():
    """Where jobs wait, each has its started row: the computed row that lacks one is named."""
    place = [row.seq for row in _sound() if row.kind == "started"][3]
    job = _sound()[place].job
    problems = _problems(_without(place))
    assert "(computed, " in problems[0]
    assert f" job {job}," in problems[0]
    assert "some jobs of this log have a started row" in problems[0]


def test_a_leg_after_landing_is_named():
    """A leg of a job that has arrived is not in flight any more."""
    arrive = _first("arrive")
    job = _sound()[arrive].job
    computed = next(row.seq for row in _sound() if row.kind == "computed" and row.job == job)
    late = _doubled(computed, to=arrive + 1, ticks=_sound()[arrive].ticks)
    assert _problems(late)[0].startswith(f"row {arrive + 1} (computed")
    assert "not in flight" in _problems(late)[0]


def test_a_row_after_the_stop_is_named():
    """Nothing may follow the stop, not even a second one."""
    last = len(_sound()) - 1
    problems = _problems(_doubled(last))
    assert problems[0].startswith(f"row {last + 1} (stop")
    assert "nothing may follow the stop" in problems[0]


def test_too_many_in_flight_are_named():
    """One dispatch more than the concurrency is found at that dispatch; without a bound it is none."""
    extra = Row(3, 0, "dispatch", 3, 3, 0, -1)
    rows = [*_sound()[:3], extra]
    assert _problems(rows) == [
        "row 3 (dispatch, t = 0.0 s, job 3, client 3): 4 jobs in flight exceed the concurrency 3"
    ]
    assert list(Audit(None).problems(rows)) == []


def test_an_arrival_twice_is_named():
    """A job that arrives again is not in flight; CASES AS-05."""
    place = _first("arrive")
    problems = _problems(_doubled(place))
    assert problems[0].startswith(f"row {place + 1} (arrive")
    assert "not in flight" in problems[0]


def test_a_rejection_must_repeat_the_staleness_of_its_arrival():
    """A reject row with another staleness than its arrival is named with both."""
    place = _first("reject")
    row = _sound()[place]
    problems = _problems(_changed(place, staleness=row.staleness + 1))
    assert problems[0].startswith(f"row {place} (reject")
    assert f"that of the arrival, {row.staleness}, not {row.staleness + 1}" in problems[0]


def test_a_dispatch_from_a_version_that_does_not_exist_yet_is_named():
    """Jobs start from versions between 0 and the one in force."""
    problems = _problems(_changed(0, version=5))
    assert problems[0].startswith("row 0 (dispatch")
    assert "version should be 0, not 5" in problems[0]


def test_every_single_change_of_version_or_staleness_is_found():
    """In a log of arrivals, publishes and stops, no number can be off by one without a word; CASES AS-01."""
    played = play(ScriptedTrips([1, 3]), strategy=FedAsync(), concurrency=2, stops=StopRules(max_updates=8))
    rows = [Row(seq, *row) for seq, row in enumerate(played.sink.tuples())]
    for place, row in enumerate(rows):
        for name in ("version", "staleness"):
            changed = row._replace(**{name: getattr(row, name) + 1})
            problems = list(Audit(2).problems([*rows[:place], changed, *rows[place + 1 :]]))
            assert any(problem.startswith(f"row {place} ") for problem in problems), (place, name)
