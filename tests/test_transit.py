"""Everything at once: shared links with clients that leave, outages and failures, queues at clients, a busy server, early stops."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import test_journeys
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_journeys import HORIZON
from reference_transit import Transit
from test_journeys import TableTrips
from test_random_worlds import agree, with_roads
from worlds import FloatExecutor, S, ScriptedTrips, play

import scenarios
from desim_fl import premises
from desim_fl.build import build
from desim_fl.durations import Constant
from desim_fl.engine import Engine
from desim_fl.eventlog import EventLog, MemorySink
from desim_fl.laws import Audit, Row
from desim_fl.network import SharedWays, Way
from desim_fl.scenario import load
from desim_fl.service import ServiceLaw
from desim_fl.world import StopRules

if TYPE_CHECKING:
    from reference import Setting, Shared
    from reference_journeys import Weather
    from worlds import Played

RARE = {
    "pause", "left for good", "halt", "retry", "timeout", "late", "overdue", "duplicate", "cancelled straggler",
    "crowded road", "transfer broken off", "crash on a shared road",
}  # fmt: skip


def slowed(shared: Shared | None) -> Shared | None:
    """A road on which a model of the weather's size takes a few ticks."""
    if shared is None:
        return None
    faster = lambda rate: None if rate is None else rate * 252 // 10  # noqa: E731
    return shared._replace(
        capacity=faster(shared.capacity),
        regional=tuple(map(faster, shared.regional)),
        caps=tuple(map(faster, shared.caps)),
    )


def a_world(pick) -> tuple[Setting, Weather]:
    """Any small world with roads, in any weather; it ends by time."""
    setting, weather = test_journeys.a_world(pick)
    setting = with_roads(setting, pick)
    return setting._replace(down=slowed(setting.down), up=slowed(setting.up)), weather


def world_of(setting: Setting, weather: Weather, *, plan: bool = False, **more) -> Played:
    """The engine for a world."""
    trips = TableTrips(setting, contended=setting.down is not None or setting.up is not None)
    return test_journeys.world_of(setting, weather, plan=plan, trips=trips, **more)


def check_laws(setting: Setting, played: Played) -> None:
    """The audit finds nothing; Little's law: ticks in flight are those at work and at a standstill; bytes add up."""
    rows = played.sink.tuples()
    audit = Audit(concurrency=None if setting.method.name == "fedavg" else setting.concurrency)
    assert list(audit.problems(Row(seq, *row) for seq, row in enumerate(rows))) == []
    since, total = {}, 0
    for tick, kind, _, job, *_ in rows:
        if kind == "dispatch":
            since[job] = tick
        elif kind in {"arrive", "lose", "cancel"}:
            total += tick - since.pop(job)
    usage, ledger = played.engine.usage, played.engine.ledger
    assert sum(usage.total()) + usage.sum_of("paused") == total + sum(rows[-1][0] - tick for tick in since.values())
    assert sum(account.bytes_up for account in usage.accounts.values()) == ledger.bytes_up
    assert sum(account.bytes_down for account in usage.accounts.values()) == ledger.bytes_down


def check(setting: Setting, weather: Weather) -> Transit:
    """Play a world twice and compare everything."""
    naive, played = Transit(setting, weather=weather), world_of(setting, weather)
    if not agree(naive, played):
        return naive
    check_laws(setting, played)
    assert world_of(setting, weather, plan=True).engine.run() == played.sha256
    return naive


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_world_on_shared_links_in_any_weather_plays_as_the_naive_player_says(data):
    """Windows, outages, crashes, retries, timeouts on links that transfers share: rows, hash, model, plan; CASES SA-05."""
    check(*a_world(lambda options: data.draw(st.sampled_from(options))))


def test_everything_that_may_befall_a_transfer_is_met():
    """Over 150 fixed worlds every accident comes up on crowded links, and the engine agrees with the naive player in each."""
    met = set()
    for seed in range(150):
        met |= check(*a_world(random.Random(seed).choice)).met
    assert met >= RARE, sorted(RARE - met)


def test_jobs_played_leg_by_leg_are_those_whose_course_is_known(monkeypatch):
    """Without shared links, playing each leg as it comes gives what is worked out at the dispatch: 80 worlds in any weather."""
    monkeypatch.setattr(premises, "leg_by_leg", lambda world: True)
    for seed in range(80):
        test_journeys.check(*test_journeys.a_world(random.Random(seed).choice))


# ---- by hand, in seconds: 100 bytes down on a link of 400 bit/s, which two share; 1 s of computing


def two(first=1.0, on_leave="drop", outages=(), away=(), **weather) -> Played:
    """Two clients that download side by side; ``away`` are the windows of client 1, ``first`` seconds of computing of client 0."""
    return play(
        ScriptedTrips([first, 1.0], contended=True),
        shared=SharedWays(egress=Way(400)), concurrency=2, stops=StopRules(max_ticks=12 * S), select="order", order=[0, 1],
        availability=test_journeys.in_seconds([(0, HORIZON)], away or [(0, HORIZON)]),
        perils=test_journeys.perils(on_leave, outages, **weather),
    )  # fmt: skip


def way_of(played: Played, job: int) -> list[tuple]:
    """(seconds, kind) of a job's rows up to the end of its computing."""
    found = test_journeys.rows(played, job)
    return [row for row in found if row[1] != "dispatch" and row[1] != "publish"]


@pytest.mark.parametrize(
    ("policy", "restarts", "first", "second"),
    [
        ("drop", False, 3, [(2, "leave"), (2, "lose")]),
        ("pause", False, 3, [(2, "leave"), (10, "come"), (11, "downloaded"), (12, "computed")]),
        ("pause", True, 3, [(2, "leave"), (10, "come"), (12, "downloaded")]),
        ("finish", False, 4, [(2, "leave"), (4, "downloaded"), (5, "computed"), (5, "arrive")]),
    ],
)
def test_a_client_that_leaves_frees_its_share_in_that_instant(policy, restarts, first, second):
    """200 bit/s each; client 1 leaves at 2 s with 400 bits to go: the other has 400 bit/s from then on, and ends at 3 s, not 4.

    Back at 10 s, a paused transfer has its 400 bits to go, or all 800 where it begins anew; then 400 bytes went down in vain.
    """
    played = two(on_leave=policy, away=[(0, 2), (10, HORIZON)], restarts=restarts)
    assert way_of(played, 0)[0] == (first, "downloaded")
    assert way_of(played, 1)[: len(second)] == second
    again = {
        row: size for row, size in zip(played.rows(), played.sink.notes("bytes"), strict=True) if row[1] == "leave"
    }
    assert list(again.values()) == ([50] if restarts else [None])


def test_an_outage_stops_a_crowded_link_and_everybody_goes_on_where_it_was():
    """Down [1, 3): 600 bits to go each; both resume at 3 s at 200 bit/s and are through at 6 s. Its rows go by job."""
    played = two(outages=[(1, 3)])
    stands = [(*row[:2], row[3]) for row in played.rows("halt", "resume")]
    assert stands == [(1, "halt", 0), (1, "halt", 1), (3, "resume", 0), (3, "resume", 1)]
    assert [way_of(played, job)[2] for job in (0, 1)] == [(6, "downloaded")] * 2
    account = played.engine.usage.accounts[0]
    assert account.paused == 2 * S


@pytest.mark.parametrize(
    ("more", "rest"),
    [
        ({}, [(2, "lose")]),
        ({"max_retries": 1, "backoff": 3 * S}, [(2, "retry"), (5, "resume"), (6, "downloaded")]),
        ({"max_retries": 1, "backoff": 3 * S, "restarts": True}, [(2, "retry"), (5, "resume"), (7, "downloaded")]),
    ],
)
def test_a_crash_lies_at_a_share_of_the_bytes_and_makes_room(more, rest):
    """Half-way (1 s of the 2 s that it would take alone): on the shared link that is at 2 s, and the other then ends at 3 s.

    After a back-off of 3 s the half that is left takes 1 s alone, or the whole 2 s.
    """
    played = two(first=9.0, fuses={(1, 0, 0): (0, 1 * S)}, **more)
    assert way_of(played, 0)[0] == (3, "downloaded")
    assert way_of(played, 1)[: len(rest)] == rest


def test_a_server_that_goes_down_lets_transfers_fail_which_are_tried_again_when_it_is_back():
    """Failed at 1 s with 600 bits to go, resumed at 2 s, halted until 3 s: side by side again, through at 6 s."""
    played = two(outages=[(1, 3)], on_outage="fail", max_retries=1, backoff=1 * S)
    for job in (0, 1):
        assert way_of(played, job)[:5] == [(1, "retry"), (2, "resume"), (2, "halt"), (3, "resume"), (6, "downloaded")]
    assert set(filter(None, played.sink.notes("reason"))) == {"server outage"}


def test_a_job_that_was_given_up_still_takes_its_share():
    """A timeout at 2 s frees nobody's link: both are through at 4 s, and end at their clients at 5 s, in vain."""
    played = two(timeout=2 * S)
    assert [way_of(played, job) for job in (0, 1)] == [[(2, "lose"), (5, "late")]] * 2
    account = played.engine.usage.accounts[0]
    assert account.late >= 3 * S


# ---- queues at clients, and a server that takes time


def queue(**weather) -> Played:
    """One client with two open jobs of 4 s each."""
    return play(ScriptedTrips([4.0]), concurrency=2, client_queue=2, stops=StopRules(max_updates=2), **weather)


@pytest.mark.parametrize(
    ("more", "first", "second"),
    [
        ({}, [(1, "lose")], (1, 5)),
        ({"max_retries": 1, "backoff": 3 * S}, [(1, "retry"), (4, "resume"), (8, "computed"), (8, "arrive")], (8, 12)),
    ],
)
def test_a_queue_waits_for_a_job_that_is_tried_again_but_not_for_one_that_is_lost(more, first, second):
    """The first crashes after 1 s: lost, the second begins then; tried again from 4 s to 8 s, the second begins at 8 s."""
    played = queue(perils=test_journeys.perils(fuses={(0, 0, 0): (2, 1 * S)}, **more))
    assert [row for row in way_of(played, 0) if row[1] not in {"downloaded", "started"}] == first
    begins, ends = (t for t, kind in way_of(played, 1) if kind in {"started", "arrive"})
    assert (begins, ends) == second


def test_all_jobs_of_a_client_stand_still_while_it_is_away():
    """Away [2, 5): the first has 2 s to go, the second waits for it all the same; 7 s and 11 s, and 3 s of standstill each."""
    presence = test_journeys.in_seconds([(0, 2), (5, HORIZON)])
    played = queue(availability=presence, perils=test_journeys.perils("pause"))
    assert [t for t, kind in way_of(played, 0) + way_of(played, 1) if kind == "arrive"] == [7, 11]
    assert [row[3] for row in played.rows("leave")] == [0, 1]
    assert played.engine.usage.accounts[0].paused == 6 * S


def test_what_the_server_has_received_is_beyond_timeouts_and_leaves():
    """Uploaded at 1 s and taken in at 3 s: a timeout at 2 s and a leave at 2 s change nothing; a copy comes 1 s after that."""
    played = play(
        ScriptedTrips([1.0]), concurrency=1, server=ServiceLaw(Constant(2.0)), stops=StopRules(max_ticks=4 * S),
        availability=test_journeys.in_seconds([(0, 2), (9, HORIZON)]),
        perils=test_journeys.perils(timeout=2 * S, copies={(0, 0): 1 * S}),
    )  # fmt: skip
    assert way_of(played, 0)[1:] == [(1, "computed"), (3, "arrive"), (4, "duplicate")]


def test_two_uploads_lost_in_a_queue_are_never_served():
    """A lost upload does not reach the server: the one behind it is served at once."""
    played = play(
        ScriptedTrips([1.0, 2.0]), concurrency=2, server=ServiceLaw(Constant(2.0)), stops=StopRules(max_updates=1),
        perils=test_journeys.perils(unheard=frozenset({(0, 0)})),
    )  # fmt: skip
    assert [row[:4] for row in played.rows("lose", "arrive")] == [(1, "lose", 0, 0), (4, "arrive", 1, 1)]


# ---- early stops: six epochs of 1 s each, of which a job stops after the third


@pytest.mark.parametrize(
    ("world", "ends"),
    [
        ({}, [3.0]),
        ({"server": ServiceLaw(Constant(2.0))}, [3.0]),
        ({"shared": SharedWays(egress=Way(400))}, [5.0]),  # 800 bits at 400 bit/s come first
        ({"client_queue": 2, "concurrency": 2}, [3.0, 6.0]),  # the second begins when the first has stopped
        ({"availability": test_journeys.in_seconds([(0, 2), (5, HORIZON)]), "perils": test_journeys.perils("pause")}, [6.0]),
        ({"perils": test_journeys.perils(fuses={(0, 0, 0): (2, 1 * S)}, max_retries=1, backoff=1 * S)}, [5.0]),
    ],
    ids=["alone", "a busy server", "a shared link", "a queue", "a pause", "a retry"],
)  # fmt: skip
def test_a_job_that_stops_early_does_so_by_its_time_at_work(monkeypatch, world, ends):
    """Asked at the end of its second epoch at work and at that of its third, where it stops, whatever came between."""
    asked = []
    stops = lambda _, job, steps: asked.append((job.id, steps)) or steps >= 3  # noqa: E731
    monkeypatch.setattr(FloatExecutor, "stopped", stops, raising=False)
    played = play(
        ScriptedTrips([6.0], contended="shared" in world), epochs=6, patience=1,
        **({"concurrency": 1, "stops": StopRules(max_updates=len(ends))} | world),
    )  # fmt: skip
    assert [t for t, kind, *_ in played.rows("computed")][: len(ends)] == ends
    assert [steps for steps in played.sink.notes("steps") if steps is not None][-1] == 3
    assert asked[:2] == [(0, 2), (0, 3)]


# ---- what must not change


def legs(slow: float = 1.0) -> tuple[str, ...]:
    """Drawn legs, so many times as slow; rates are whole bits a second, so that their halves are halves."""
    return (
        f"network.latency_s={{law='exponential',mean={0.05 * slow}}}", f"network.down_mbps={0.001 / slow}",
        f"network.up_mbps={0.0006 / slow}", f"clients.device_factor={slow}",
        "clients.jitter_factor={law='exponential',mean=1.0}", f"clients.wait_s={{law='uniform',low=0.0,high={2.0 * slow}}}", "run.max_updates=60",
    )  # fmt: skip


ACCIDENTS = (
    "failures.crash_download=0.1", "failures.crash_compute=0.1", "failures.crash_upload=0.2", "failures.upload_loss=0.1",
    "failures.duplicate=0.2",
)  # fmt: skip


def rows_of(tmp_path, *keys):
    """(ticks, kind, client, job) of the small quadratic world with these keys, and its model."""
    built, sink = build(load(scenarios.write(tmp_path, scenarios.QUADRATIC), keys)), MemorySink()
    engine = Engine(built.world, EventLog(sink))
    engine.run()
    return [row[:4] for row in sink.tuples()], engine.model.params


@pytest.mark.parametrize("shared", [False, True])
def test_half_the_speed_doubles_every_leg(tmp_path, shared):
    """Devices, links and latencies half as fast, back-offs twice as long, accidents on: the same rows at twice the time, to a tick a leg."""

    def played(slow):
        links = (f"network.server_egress_mbps={0.001 / slow}", f"network.server_ingress_mbps={0.0008 / slow}")
        keys = (*legs(slow), *ACCIDENTS, "failures.max_retries=2", f"failures.backoff_s={0.5 * slow}")
        return rows_of(tmp_path, *keys, *(links if shared else ()))[0]

    once, twice = played(1.0), played(2.0)
    assert [row[1:] for row in once] == [row[1:] for row in twice]
    assert max(abs(2 * mine[0] - other[0]) for mine, other in zip(once, twice, strict=True)) <= len(once)
    assert {"retry", "lose", "duplicate"} <= {row[1] for row in once}


def test_a_whole_delay_scale_leaves_the_model_as_it_is_with_accidents_on(tmp_path):
    """A thousand times as long, bit for bit the same model: accidents lie at shares of legs. Back-offs and shared links are excepted."""
    once, plain = rows_of(tmp_path, *legs(), *ACCIDENTS)
    long, scaled = rows_of(tmp_path, *legs(), *ACCIDENTS, "run.delay_scale=1000")
    assert [(1000 * tick, *rest) for tick, *rest in once] == long
    assert plain == scaled
