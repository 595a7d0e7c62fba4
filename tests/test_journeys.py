"""Jobs in a world whose clients leave, whose server goes down and whose jobs fail: by hand, and beside a naive player."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_journeys import HORIZON, Journeys, Weather
from test_random_worlds import a_setting, agree, engine_of
from worlds import Played, ScriptedTrips, play

from desim_fl.availability import NEVER, listed
from desim_fl.core import Alarm, Reply, Stop, Trip
from desim_fl.course import Rules
from desim_fl.errors import StalledError
from desim_fl.failures import Accidents, Outages, Perils
from desim_fl.laws import Audit, Row
from desim_fl.strategies.fedasync import FedAsync
from desim_fl.strategies.fedavg import FedAvg
from desim_fl.world import StopRules

if TYPE_CHECKING:
    import reference

S = 1_000_000
SIZE = 2520  # divided by every leg of at most ten ticks, so that what is through of a transfer is whole


def windows(by_client, scale: int = 1, period: int | None = None):
    """Listed windows, those that end at the horizon without an end."""
    rows = [
        (client, start * scale, NEVER if end >= HORIZON else end * scale)
        for client, mine in enumerate(by_client)
        for start, end in mine
    ]
    device, start, end = np.array(rows, np.int64).reshape(-1, 3).T
    return listed(device, start, end, len(by_client), period)


@dataclass
class TableFailures:
    """The accidents of a weather."""

    weather: Weather

    def accidents(self, client, nth, retry, legs):
        """Those of a client's job."""
        del legs
        leg, ticks = self.weather.fuses.get((client, nth, retry), (-1, 0))
        fuses = tuple(ticks if leg == number else None for number in range(4))
        return Accidents(fuses, None, (client, nth) in self.weather.unheard)

    def backoff(self, client, nth, retry):
        """Always as long."""
        del client, nth, retry
        return self.weather.backoff

    def copies(self, client, nth):
        """When an update comes again."""
        return self.weather.copies.get((client, nth))

    def __getattr__(self, name):
        return getattr(self.weather, name)


@dataclass
class TableTrips:
    """The trips of a setting, in bytes that can be divided."""

    setting: reference.Setting
    contended: bool = False

    def trip(self, client, nth, work):
        """The client's nth trip."""
        del work
        download, wait, compute, upload, _ = self.setting.legs(client, nth)
        return Trip(download, wait, compute, upload, SIZE, SIZE)


def some_spans(pick, *, last: bool) -> tuple[tuple[int, int], ...]:
    """A few spans of few ticks that do not touch; ``last`` = the last one may be without an end."""
    spans, tick = [], pick([0, 0, 1, 3])
    for _ in range(pick([1, 2, 3, 5])):
        end = tick + pick([1, 2, 3, 5, 9])
        spans.append((tick, end))
        tick = end + pick([1, 1, 2, 4])
    if last and pick([True, True, False]):
        spans.append((tick, HORIZON))
    return tuple(spans)


def a_weather(pick, clients: int) -> Weather:
    """Any weather."""
    jobs = [(client, nth) for client in range(clients) for nth in range(3)]
    fuses = {
        (*job, retry): (pick([0, 2, 3]), pick([1, 2, 4]))
        for job in jobs
        for retry in range(3)
        if pick([False, False, True])
    }
    return Weather(
        windows=tuple(some_spans(pick, last=True) for _ in range(clients)) if pick([True, True, False]) else None,
        on_leave=pick(["drop", "pause", "finish"]),
        outages=some_spans(pick, last=False) if pick([False, True]) else (),
        on_outage=pick(["wait", "fail"]),
        restarts=pick([False, True]),
        fuses=fuses if pick([False, True]) else {},
        max_retries=pick([0, 1, 2]),
        backoff=pick([0, 1, 3]),
        timeout=pick([None, 1, 4, 7]),
        late=pick(["ignore", "accept"]),
        unheard=frozenset(job for job in jobs if pick([False] * 5 + [True])),
        copies={job: pick([0, 1, 5]) for job in jobs if pick([False] * 4 + [True])},
    )


def a_world(pick) -> tuple[reference.Setting, Weather]:
    """Any small world in any weather; it ends by time."""
    setting = a_setting(pick)
    setting = setting._replace(losses={}, max_ticks=pick([12, 30, 60]))
    weather = a_weather(pick, len(setting.sizes))
    if setting.method.name == "fedavg":
        weather = weather._replace(late="ignore")
    return setting, weather


def world_of(setting: reference.Setting, weather: Weather, *, plan: bool = False, **more) -> Played:
    """The engine for a world."""
    perils = Perils(
        Rules(weather.on_leave, weather.on_outage, weather.restarts),
        Outages(windows([weather.outages])) if weather.outages else None,
        TableFailures(weather),  # type: ignore[arg-type]
    )
    presence = None if weather.windows is None else windows(weather.windows)
    return engine_of(
        setting, plan=plan, availability=presence, perils=perils, **({"trips": TableTrips(setting)} | more)
    )


def check(setting: reference.Setting, weather: Weather) -> Journeys:
    """Play a world twice and compare everything."""
    naive, played = Journeys(setting, weather=weather), world_of(setting, weather)
    if not agree(naive, played):
        return naive
    audit = Audit(concurrency=None if setting.method.name == "fedavg" else setting.concurrency)
    assert list(audit.problems(Row(seq, *row) for seq, row in enumerate(naive.rows))) == []
    assert world_of(setting, weather, plan=True).engine.run() == played.sha256
    return naive


EXAMPLES = settings(max_examples=100, deadline=None)
RARE = {"pause", "left for good", "halt", "retry", "timeout", "late", "overdue", "duplicate", "cancelled straggler"}


@EXAMPLES
@given(st.data())
def test_every_world_in_any_weather_plays_as_the_naive_player_says(data):
    """Windows, outages, crashes, retries, timeouts, duplicates at once: rows, hash, model and plan are the naive player's; CASES SA-05."""
    check(*a_world(lambda options: data.draw(st.sampled_from(options))))


def test_everything_that_may_befall_a_job_is_met():
    """Over 250 fixed worlds every accident comes up, and the engine agrees with the naive player in each; CASES EV-08."""
    met = set()
    for seed in range(250):
        met |= check(*a_world(random.Random(seed).choice)).met
    assert met >= RARE, sorted(RARE - met)


class Ear:
    """A strategy in front of another one: notes of which job it hears, and how."""

    def __init__(self, inner):
        self.inner, self.heard = inner, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def arrive(self, state, view, update):
        """Hear of an arrival."""
        self.heard.append(update.job.id)
        return self.inner.arrive(state, view, update)

    def lose(self, state, view, loss):
        """Hear of a loss, or of what the engine turned away."""
        self.heard.append(loss.job.id)
        return self.inner.lose(state, view, loss)


def test_a_strategy_hears_of_each_job_once():
    """In any weather: whatever arrived, was turned away or was lost is told once; what it cancelled, or came again, never; CASES AS-05."""
    told, met = 0, set()
    for seed in range(120):
        played = world_of(*a_world(random.Random(seed).choice))
        consultation = played.engine._strategy
        ear = consultation._strategy = Ear(consultation._strategy)
        consultation._arrive = ear.arrive
        try:
            played.engine.run()
        except StalledError:
            assert len(set(ear.heard)) == len(ear.heard)
            continue
        landed = [(kind, job) for _, kind, _, job, *_ in played.sink.tuples() if kind in {"arrive", "lose"}]
        assert len(set(ear.heard)) == len(ear.heard)
        assert sorted(ear.heard) == sorted(job for _, job in landed)
        told += len(ear.heard)
        met |= {row[1] for row in played.sink.tuples()}
    assert told > 1000
    assert met >= {"arrive", "reject", "lose", "cancel", "late", "duplicate", "retry", "overdue"}


# ---- by hand, in seconds


def in_seconds(*by_client):
    """Windows of each client in seconds."""
    return windows(by_client, S)


def perils(on_leave: str = "drop", outages=(), **weather) -> Perils:
    """What may befall jobs; ticks of the weather are microseconds."""
    failures = TableFailures(Weather(**weather)) if weather else None
    rules = Rules(on_leave, weather.get("on_outage", "wait"), weather.get("restarts", False))
    return Perils(rules, Outages(in_seconds(outages)) if outages else None, failures)  # type: ignore[arg-type]


def rows(played: Played, job: int) -> list[tuple]:
    """(seconds, kind) of one job's rows."""
    return [(t, kind) for t, kind, _, number, *_ in played.rows() if number == job and kind != "publish"]


def test_sa_05_a_client_that_leaves_mid_task_is_replaced_at_once():
    """Online [0, 5) with a task of 10: a loss at 5, its place filled at 5, no update at 10; the reason is said."""
    played = play(
        ScriptedTrips([10, 10]), availability=in_seconds([(0, 5)], [(0, 100)]), concurrency=1,
        stops=StopRules(max_ticks=20 * S),
    )  # fmt: skip
    assert rows(played, 0) == [(0, "dispatch"), (0, "downloaded"), (5, "leave"), (5, "lose")]
    assert rows(played, 1) == [(5, "dispatch"), (5, "downloaded"), (15, "computed"), (15, "arrive")]
    assert [reason for reason in played.sink.notes("reason") if reason] == ["client left"]
    assert dict(played.engine.losses) == {"client left": 1}


def test_touching_windows_are_one():
    """[0, 5) and [5, 20) lose nothing: the timeline is that of [0, 20)."""
    hashes = {
        play(
            ScriptedTrips([10, 7]), availability=in_seconds(mine, [(0, 100)]), concurrency=2,
            stops=StopRules(max_ticks=40 * S),
        ).sha256
        for mine in ([(0, 5), (5, 20)], [(0, 20)], [(0, 12), (3, 20), (7, 7)])
    }  # fmt: skip
    assert len(hashes) == 1


@pytest.mark.parametrize("policy", ["drop", "pause", "finish"])
def test_windows_without_an_end_change_nothing(policy):
    """Always online, by windows: the timeline, hash included, is that of a world without availability."""
    world = {"strategy": FedAsync(), "concurrency": 2, "stops": StopRules(max_updates=30)}
    plain = play(ScriptedTrips([3, 5, 4], upload=1), **world)
    always = in_seconds([(0, HORIZON)], [(0, HORIZON)], [(0, HORIZON)])
    assert play(ScriptedTrips([3, 5, 4], upload=1), availability=always, perils=perils(policy), **world).sha256 == (
        plain.sha256
    )


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("policy", ["drop", "pause", "finish"])
def test_ev_07_a_job_that_ends_as_its_client_leaves_has_arrived(policy, turned):
    """Both end at 5 s: an arrival and no loss, whoever was sent out first; the client is not selectable then."""
    played = play(
        ScriptedTrips([5, 5]), availability=in_seconds([(0, 5), (9, 20)], [(0, 20)]), perils=perils(policy),
        select="order", order=[1, 0] if turned else [0, 1], concurrency=2, stops=StopRules(max_ticks=9 * S),
    )  # fmt: skip
    assert [row[:3] for row in played.rows("arrive", "lose") if row[2] == 0] == [(5, "arrive", 0)]
    assert [t for t, _, client, *_ in played.rows("dispatch") if client == 0] == [0, 9]


def test_a_paused_job_goes_on_where_it_was():
    """4 of 10 s done when the client leaves for 6 s: it arrives at 16 s, 6 s of which it stood still."""
    played = play(
        ScriptedTrips([10]), availability=in_seconds([(0, 4), (10, 50)]), perils=perils("pause"), concurrency=1,
        stops=StopRules(max_updates=1),
    )  # fmt: skip
    assert rows(played, 0)[2:] == [(4, "leave"), (10, "come"), (16, "computed"), (16, "arrive")]
    account = played.engine.usage.accounts[0]
    assert (account.compute, account.paused) == (10 * S, 6 * S)


def test_who_leaves_in_an_instant_has_left_before_anybody_comes():
    """At 4 s client 0 leaves with its job and client 1 comes: the leave stands first; at 6 s likewise with client 1 and 0."""
    played = play(
        ScriptedTrips([10, 10]), availability=in_seconds([(0, 4), (6, 50)], [(4, 6), (20, 50)]), perils=perils("pause"), concurrency=2,
        stops=StopRules(max_ticks=7 * S),
    )  # fmt: skip
    assert [row[:3] for row in played.rows() if row[0] in {4, 6}] == [
        (4, "leave", 0), (4, "dispatch", 1), (4, "downloaded", 1), (6, "leave", 1), (6, "come", 0),
    ]  # fmt: skip


def test_a_job_whose_client_never_comes_back_is_lost_when_it_leaves():
    """Paused for ever would hold the place for ever: it is a loss, named so."""
    played = play(
        ScriptedTrips([10, 1]), availability=in_seconds([(0, 4)], [(0, 50)]), perils=perils("pause"), concurrency=1,
        stops=StopRules(max_ticks=5 * S),
    )  # fmt: skip
    assert rows(played, 0)[2:] == [(4, "leave"), (4, "lose")]
    assert dict(played.engine.losses) == {"client left for good": 1}


def test_sa_01_the_rest_start_as_clients_come():
    """10 clients, 4 of them online, 8 wanted: 4 leave at once, the others one by one as they come, up to 8."""
    late = [[(0, 4), (6, 100)]] * 4 + [[(client, 100)] for client in range(1, 7)]
    played = play(
        ScriptedTrips([50] * 10), availability=in_seconds(*late), perils=perils("finish"), concurrency=8,
        stops=StopRules(max_ticks=20 * S),
    )  # fmt: skip
    sent = [(t, client) for t, _, client, *_ in played.rows("dispatch")]
    assert sent == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (2, 5), (3, 6), (4, 7)]


def test_a_round_takes_all_who_come_in_one_instant():
    """Nobody is online at the start of a round; three come at 2 s and one at 3 s: the round is the three."""
    played = play(
        ScriptedTrips([1] * 4), availability=in_seconds([(2, 90)], [(2, 90)], [(3, 90)], [(2, 90)]),
        strategy=FedAvg(clients_per_round=4), concurrency=4, stops=StopRules(max_versions=1),
    )  # fmt: skip
    assert [(t, client) for t, _, client, *_ in played.rows("dispatch")] == [(2, 0), (2, 1), (2, 3)]
    assert [row[0] for row in played.rows("publish")] == [3]


@pytest.mark.parametrize(("restarts", "arrives"), [(False, 13), (True, 16)])
def test_a_transfer_waits_for_the_server(restarts, arrives):
    """Down [3, 6): a download of 5 s stands still from 3 to 6, then has 2 s to go or all 5; 5 s of work follow."""
    played = play(
        ScriptedTrips([4], download=5, upload=1), perils=perils(outages=[(3, 6)], restarts=restarts), concurrency=1,
        stops=StopRules(max_updates=1),
    )  # fmt: skip
    assert rows(played, 0)[1:3] == [(3, "halt"), (6, "resume")]
    assert rows(played, 0)[-1] == (arrives, "arrive")
    assert played.engine.ledger.bytes_down == (160 if restarts else 100)


def test_a_crash_is_tried_again_after_the_back_off():
    """Crashed 2 s into 4 s of computing, back-off 3 s: computing begins anew at 5 s and ends at 9 s; one retry, no loss, one arrival; CASES AS-05."""
    fuses = {(0, 0, 0): (2, 2 * S)}
    world = {"concurrency": 1, "stops": StopRules(max_updates=1)}
    played = play(ScriptedTrips([4]), perils=perils(fuses=fuses, max_retries=1, backoff=3 * S), **world)
    assert rows(played, 0)[2:] == [(2, "retry"), (5, "resume"), (9, "computed"), (9, "arrive")]
    account = played.engine.usage.accounts[0]
    assert (account.compute, account.paused) == (6 * S, 3 * S)
    assert (played.engine.ledger.retries, played.engine.ledger.lost) == (1, 0)
    lost = play(ScriptedTrips([4]), perils=perils(fuses=fuses), **world)
    assert rows(lost, 0)[2:] == [(2, "lose")]


class AsksAtThree(FedAsync):
    """FedAsync that asks job 0 after 3 s for what it has done by then."""

    def start(self, view):
        """Set the alarm."""
        state, reply = FedAsync.start(self, view)
        return state, reply._replace(alarms=(Alarm("ask", 3.0),))

    def alarm(self, state, view, name):
        """Ask."""
        return state, Reply(stops=(Stop(0, "now"),))


def test_a_leg_that_takes_no_time_after_a_back_off_ends_behind_it():
    """Asked at 3 s while it stands still until 5 s, a job has nothing left to do: it resumes, has computed, and then arrives."""
    weather = perils(fuses={(0, 0, 0): (2, 2 * S)}, max_retries=1, backoff=3 * S)
    world = {"concurrency": 1, "stops": StopRules(max_updates=1)}
    played = play(ScriptedTrips([4]), perils=weather, strategy=AsksAtThree(), **world)
    assert rows(played, 0)[2:] == [(2, "retry"), (5, "resume"), (5, "computed"), (5, "arrive")]


def test_a_late_update_is_ignored_or_accepted():
    """10 s of work, a timeout of 4: lost at 4 and free again at 10; or its place filled at 4 and its update taken at 10."""
    world = {"concurrency": 1, "stops": StopRules(max_ticks=11 * S)}
    ignored = play(ScriptedTrips([10, 10, 10]), perils=perils(timeout=4 * S), **world)
    assert rows(ignored, 0)[2:] == [(4, "lose"), (10, "late")]
    assert ignored.arrivals() == []
    assert [(t, client) for t, _, client, *_ in ignored.rows("dispatch")] == [(0, 0), (4, 1), (8, 2)]
    account = ignored.engine.usage.accounts[0]
    assert (account.compute, account.late, account.bytes_up) == (4 * S, 6 * S, 100)
    accepted = play(ScriptedTrips([10, 10, 10]), perils=perils(timeout=4 * S, late="accept"), **world)
    assert rows(accepted, 0)[2:] == [(4, "overdue"), (10, "computed"), (10, "arrive")]
    assert [(t, client) for t, _, client, *_ in accepted.rows("dispatch")] == [(0, 0), (4, 1), (8, 2)]


def test_as_05_a_second_delivery_is_a_row_and_nothing_else():
    """Delivered at 3 s and again at 5 s: one application, one row more, its bytes; the strategy hears once; CASES AS-05."""
    heard = []

    class Listening(FedAsync):
        def arrive(self, state, view, update):
            heard.append(update.job.id)
            return super().arrive(state, view, update)

    played = play(
        ScriptedTrips([3]), strategy=Listening(), perils=perils(copies={(0, 0): 2 * S}), concurrency=1,
        stops=StopRules(max_updates=2),
    )  # fmt: skip
    assert rows(played, 0)[-2:] == [(3, "arrive"), (5, "duplicate")]
    assert heard == [0, 1]
    ledger = played.engine.ledger
    assert (ledger.applied, ledger.duplicates, ledger.bytes_up) == (2, 1, 300)


def test_ev_05_a_round_with_a_deadline_counts_those_who_come_back():
    """Five clients paused until 25 s, deadlines of 10 s: rounds are abandoned, then all five report, once each; CASES EV-05."""
    mine = [[(0, 1), (20 + client, 90)] for client in range(5)]
    played = play(
        ScriptedTrips([5] * 5), availability=in_seconds(*mine), perils=perils("pause"),
        strategy=FedAvg(clients_per_round=5, deadline_s=30), concurrency=5, stops=StopRules(max_versions=1),
    )  # fmt: skip
    assert [(t, client) for t, _, client, *_ in played.rows("arrive")] == [(24 + client, client) for client in range(5)]
    assert [row[0] for row in played.rows("publish")] == [28]


def test_a_transfer_that_never_gets_through_is_an_error():
    """A download of 5 s that begins anew in every window of 2 s never ends: an error that says what to change."""
    short = windows([[(0, 2)]], S, period=4 * S)
    with pytest.raises(StalledError, match="interrupted 100000 times"):
        play(ScriptedTrips([1], download=5), availability=short, perils=perils("pause", restarts=True), concurrency=1)


def test_littles_law_in_any_weather():
    """Ticks in flight over all jobs = legs at work and at a standstill, by hand from the rows of 60 worlds."""
    for seed in range(60):
        setting, weather = a_world(random.Random(seed).choice)
        played = world_of(setting, weather)
        try:
            played.engine.run()
        except StalledError:
            continue
        table, since, total = played.sink.tuples(), {}, 0
        for tick, kind, _, job, *_ in table:
            if kind == "dispatch":
                since[job] = tick
            elif kind in {"arrive", "lose", "cancel"}:
                total += tick - since.pop(job)
        total += sum(table[-1][0] - tick for tick in since.values())
        usage = played.engine.usage
        assert sum(usage.total()) + usage.sum_of("paused") == total
        ledger = played.engine.ledger
        assert sum(account.bytes_up for account in usage.accounts.values()) == ledger.bytes_up
        assert sum(account.bytes_down for account in usage.accounts.values()) == ledger.bytes_down


def test_a_run_in_which_nothing_ever_arrives_is_an_error(monkeypatch):
    """A timeout shorter than any job, and only a number of updates to stop at: a named error instead of an endless run."""
    monkeypatch.setattr("desim_fl.standstill._SAME_INSTANT_LIMIT", 500)
    with pytest.raises(StalledError, match=r"500 jobs in a row were lost .the last one: timeout"):
        play(ScriptedTrips([10] * 3), perils=perils(timeout=4 * S), concurrency=1)
