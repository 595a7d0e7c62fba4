"""Open arrivals, several jobs a client, a server that takes time, a target accuracy and a wall budget."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from worlds import FloatExecutor, Plain, S, ScriptedTrips, play

import scenarios
from desim_fl import rundir
from desim_fl.availability import listed
from desim_fl.core import Promise, Reply, Score, Stop
from desim_fl.durations import Constant
from desim_fl.errors import BudgetSpent, RefusedError, ScenarioError
from desim_fl.laws import Audit, Row
from desim_fl.run import execute, resume
from desim_fl.scenario import load
from desim_fl.service import OpenLaw, ServiceLaw
from desim_fl.strategies import FedBuff
from desim_fl.usage import time_summary
from desim_fl.verify import verify
from desim_fl.world import Evaluations, StopRules

TEXT = scenarios.QUADRATIC


def loaded(tmp_path, *overrides, text=TEXT):
    """The small quadratic world with overrides."""
    return load(scenarios.write(tmp_path, text), overrides)


def opened(text, keys):
    """The same world with other keys in place of its concurrency."""
    return text.replace("concurrency = 3", keys)


# ---- open arrivals


def test_constant_arrivals_leave_in_equal_steps_whatever_comes_back():
    """Four jobs a second of 1 s each: dispatches at .25, .5, ...; four in flight from t = 1 on; landings open no place."""
    done = play(
        ScriptedTrips([1.0] * 9), arrivals=OpenLaw("constant", 4.0, 0), concurrency=9, stops=StopRules(max_ticks=3 * S)
    )
    assert [row[0] for row in done.rows("dispatch")] == [number / 4 for number in range(1, 13)]
    assert len(done.engine.flights) == 4  # those of 2.25, 2.5, 2.75 and 3 s
    assert [t for t, *_ in done.arrivals()] == [1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0][: len(done.arrivals())]


def test_jobs_that_arrive_go_to_those_who_are_online():
    """Two jobs a second of 0.1 s to clients online in turns of 1 s: none leaves for one who is away; who comes in that instant is there."""
    turns = listed(np.array([0, 1]), np.array([0, S]), np.array([S, 2 * S]), 2, 2 * S)
    done = play(
        ScriptedTrips([0.1, 0.1]),
        arrivals=OpenLaw("constant", 2.0, 0),
        concurrency=2,
        availability=turns,
        stops=StopRules(max_ticks=6 * S),
    )
    sent = [(t, client) for t, _, client, *_ in done.rows("dispatch")]
    assert sent == [(number / 2, number // 2 % 2) for number in range(1, 13)]
    nobody = listed(np.array([0]), np.array([0]), np.array([S]), 1, 4 * S)
    done = play(
        ScriptedTrips([0.1]),
        arrivals=OpenLaw("constant", 0.5, 0),
        concurrency=1,
        availability=nobody,
        stops=StopRules(max_ticks=9 * S),
    )
    assert [row[0] for row in done.rows("dispatch")] == [
        4.0,
        4.1,
        8.0,
        8.1,
    ]  # of 2, 4, 6 and 8 s: those of 2 and 6 s waited


def test_arrivals_that_meet_nobody_idle_wait():
    """One client of 1 s and two jobs a second: it is never idle, and jobs leave at its own rate."""
    done = play(
        ScriptedTrips([1.0]), arrivals=OpenLaw("constant", 2.0, 0), concurrency=1, stops=StopRules(max_ticks=5 * S)
    )
    assert [row[0] for row in done.rows("dispatch")] == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert done.engine.desk.open_places == 5


def test_gaps_are_drawn_by_number_and_scaled():
    """Poisson gaps have mean 1 / rate, depend on seed and number alone, and whole scales multiply them exactly."""
    law = OpenLaw("poisson", 100.0, 7)
    gaps = [law.gap(number) for number in range(20_000)]
    mean = sum(gaps) / len(gaps)
    assert abs(mean - S / 100) < 4 * (S / 100) / 20_000**0.5
    assert [law._replace(delay_scale=3.0).gap(number) for number in range(9)] == [3 * gap for gap in gaps[:9]]
    thirds = OpenLaw("constant", 3.0, 0)
    assert sum(thirds.gap(number) for number in range(3000)) == 1000 * S


@pytest.mark.parametrize("kind", ["constant", "poisson"])
def test_an_open_run_keeps_the_laws(tmp_path, kind):
    """Plan and run agree, verify finds nothing, a scaled copy has the same model; more in flight than any concurrency."""
    text = opened(TEXT, f'arrivals = "{kind}"\narrival_rate = 2.0')
    manifest = execute(loaded(tmp_path, text=text), tmp_path / "run")
    assert verify(tmp_path / "run", rerun=True) == []
    assert (
        execute(loaded(tmp_path, text=text), None, timing_only=True)["timeline_sha256"] == manifest["timeline_sha256"]
    )
    scaled = execute(loaded(tmp_path, "run.delay_scale=1000", text=text), tmp_path / "scaled")
    assert scaled["model_sha256"] == manifest["model_sha256"]
    assert scaled["timeline_sha256"] != manifest["timeline_sha256"]


# ---- several jobs a client


def test_a_client_computes_its_jobs_one_after_another():
    """Three jobs of 2 s at one client, downloaded by 1 s: started at 1, 3, 5, arrived at 4, 6, 8 with their uploads of 1 s."""
    trips = ScriptedTrips([2.0], download=1.0, upload=1.0)
    done = play(trips, select="round_robin", concurrency=3, client_queue=3, stops=StopRules(max_updates=3))
    assert [row[0] for row in done.rows("started")[:3]] == [1.0, 3.0, 5.0]
    assert done.arrivals() == [(4.0, 0, 0), (6.0, 0, 1), (8.0, 0, 2)]
    spent = done.engine.usage.total()
    assert sum(spent) > 8 * S
    summary = time_summary(spent, 0, 0, 8 * S, 1, 3, queues=True)
    assert summary["utilisation"] == 7 / 8  # idle while the first is downloaded; the fourth, begun at 7, has done 1 s
    audit = Audit(3, 3)
    assert list(audit.problems(Row(n, *row) for n, row in enumerate(done.sink.tuples()))) == []
    assert any(
        "still has job" in fault
        for fault in Audit(3, 2).problems(Row(n, *row) for n, row in enumerate(done.sink.tuples()))
    )


def test_a_queue_has_an_end():
    """Two places a client, two clients, five wanted: four leave, the fifth waits for the first to come back."""
    done = play(
        ScriptedTrips([1.0, 5.0]), select="round_robin", concurrency=5, client_queue=2, stops=StopRules(max_updates=3)
    )
    assert [row[:3] for row in done.rows("dispatch")][:5] == [(0.0, "dispatch", 0), (0.0, "dispatch", 1), (0.0, "dispatch", 0), (0.0, "dispatch", 1), (1.0, "dispatch", 0)]  # fmt: skip


@dataclass(frozen=True)
class Canceller(Plain):
    """Cancels everything at the first arrival."""

    def arrive(self, state, view, update):
        return state, Reply(stops=tuple(Stop(job) for job in view.flying))


def test_a_queue_moves_up_when_a_job_is_cancelled_or_lost():
    """At 1 s everything else is cancelled, and two new jobs begin at once; a job lost at 0.5 s lets the next one begin then."""
    done = play(
        ScriptedTrips([1.0, 2.0]), strategy=Canceller(), concurrency=4, client_queue=2, stops=StopRules(max_updates=2)
    )
    assert [row[:4] for row in done.rows("cancel")][:3] == [
        (1, "cancel", client, job) for client, job in ((1, 1), (0, 2), (1, 3))
    ]
    assert [row[:3] for row in done.rows("arrive")] == [(1, "arrive", 0), (2, "arrive", 0)]
    lost = play(
        ScriptedTrips([1.0], lost={(0, 0): (0.5, "crash")}),
        concurrency=2,
        client_queue=2,
        stops=StopRules(max_updates=1),
    )
    assert [row[0] for row in lost.rows("lose", "started", "arrive")][:4] == [0, 0.5, 0.5, 1.5]


@pytest.mark.parametrize("seed", range(6))
def test_a_queue_is_lindleys(seed):
    """Each job starts at the later of when it is there (and has waited) and when the one before it at its client is computed."""
    chance = random.Random(seed)
    times = [[chance.choice([0, 1, 2, 3]) for _ in range(5)] for _ in range(3)]
    wait = chance.choice([None, 1.0])
    trips = ScriptedTrips(times, download=chance.choice([0.0, 1.0]), upload=chance.choice([0.0, 2.0]), wait=wait)
    done = play(trips, concurrency=6, client_queue=3, select="round_robin", stops=StopRules(max_updates=40))
    at = {(kind, job): t for t, kind, _, job, *_ in done.rows()}
    computed, nth = {}, Counter()
    for _, _, client, job, *_ in done.rows("dispatch"):
        ready = at["dispatch", job] + trips.download + (wait or 0.0)
        starts = max(ready, computed.get(client, 0.0))
        computed[client] = starts + times[client][min(nth[client], 4)]
        nth[client] += 1
        assert at.get(("started", job), starts) == starts
        assert at.get(("arrive", job), computed[client] + trips.upload) == computed[client] + trips.upload


@pytest.mark.parametrize("selection", ["uniform", "longest_idle", "weighted"])
def test_a_run_with_queues_keeps_the_laws(tmp_path, selection):
    """Plan and run agree, resumed too; verify finds nothing; a client has several jobs open, but no more than it may."""
    text = opened(TEXT, f'concurrency = 9\nclient_queue = 4\nselection = "{selection}"')
    manifest = execute(loaded(tmp_path, text=text), tmp_path / "run")
    assert verify(tmp_path / "run", rerun=True) == []
    assert (
        execute(loaded(tmp_path, text=text), None, timing_only=True)["timeline_sha256"] == manifest["timeline_sha256"]
    )
    assert manifest["summary"]["mean_in_flight"] == pytest.approx(9.0, rel=0.05)


# ---- a server that takes time


def test_updates_wait_for_a_busy_server_in_the_order_of_their_coming():
    """Uploads end at 1, 2 and 3 s, a service takes 4 s: they arrive at 5, 9, 13; staleness is read there."""
    server = ServiceLaw(Constant(4.0))
    done = play(ScriptedTrips([1.0, 2.0, 3.0]), server=server, concurrency=3, stops=StopRules(max_updates=3))
    assert done.arrivals() == [(5.0, 0, 0), (9.0, 1, 1), (13.0, 2, 2)]
    assert done.engine.usage.total().upload == (4 + 7 + 10 + 0 + 0) * S + sum(s for s in _open_uploads(done))
    assert done.engine.server.summary(13 * S) == {"busy_s": 12.0, "utilisation": 12 / 13, "services": 4, "longest_queue": 3 - 1, "turned_away": 0}  # fmt: skip


def _open_uploads(done):
    """Upload ticks of jobs still in flight."""
    return [flying.spent(done.engine.final_ticks)[3] for flying in done.engine.flights.values()]


def test_a_batch_is_taken_in_together():
    """With batches of two the second service takes both that wait: arrivals at 5, 9, 9, by job number."""
    done = play(
        ScriptedTrips([1.0, 3.0, 2.0]),
        server=ServiceLaw(Constant(4.0), batch=2),
        concurrency=3,
        stops=StopRules(max_updates=3),
    )
    assert done.arrivals() == [(5.0, 0, 0), (9.0, 1, 1), (9.0, 2, 2)]


def test_an_update_that_meets_a_full_queue_is_turned_away():
    """One may wait: of three that come during a service the last is rejected at once, with the reason, and its place refilled."""
    server = ServiceLaw(Constant(10.0), queue=1)
    done = play(ScriptedTrips([1.0, 2.0, 3.0]), server=server, concurrency=3, stops=StopRules(max_updates=2))
    assert done.rows("arrive", "reject")[:2] == [(3.0, "arrive", 2, 2, 0, 0), (3.0, "reject", 2, 2, 0, 0)]
    assert "server queue full" in done.sink.notes("reason")
    assert done.rows("dispatch")[3][:3] == (3.0, "dispatch", 2)
    assert done.engine.server.turned_away == done.engine.ledger.rejected == 2  # and again at 6 s


def test_a_cancelled_update_is_passed_over():
    """What is cancelled while it waits, or is being taken in, never arrives; the server goes on."""
    trips = ScriptedTrips([1.0, 1.5, 1.75, 6.0])
    done = play(
        trips, strategy=Canceller(), server=ServiceLaw(Constant(4.0)), concurrency=4, stops=StopRules(max_ticks=20 * S)
    )
    assert done.arrivals()[:1] == [(5.0, 0, 0)]
    cancelled = [row[2] for row in done.rows("cancel")]
    assert cancelled[:3] == [1, 2, 3]
    assert done.engine.ledger.in_flight == len(done.engine.flights)


def test_a_blocking_evaluation_makes_updates_wait():
    """Every second version is evaluated for 3 s: updates that come meanwhile arrive at its end, in training and in plan."""
    for blocks, expected in ((True, [1.0, 2.0, 5.0, 6.0]), (False, [1.0, 2.0, 3.0, 4.0])):
        server = ServiceLaw(Constant(0.0), evaluation_ticks=3 * S, blocks=blocks)
        done = play(
            ScriptedTrips([1.0]),
            server=server,
            concurrency=1,
            evaluations=Evaluations(2),
            stops=StopRules(max_updates=4),
        )
        assert [t for t, *_ in done.arrivals()] == expected


@pytest.mark.parametrize(
    "keys",
    [
        "aggregation_s = 0.7",
        'aggregation_s = { law = "exponential", mean = 2.0 }\nqueue = 1\nbatch = 2\nevaluation_s = 1.5\nblocking = true',
    ],
)
def test_a_run_with_a_server_keeps_the_laws(tmp_path, keys):
    """Plan and run agree; verify recounts everything; whole scales give the same model."""
    text = f"{TEXT}\n[server]\n{keys}\n"
    manifest = execute(loaded(tmp_path, text=text), tmp_path / "run")
    assert verify(tmp_path / "run", rerun=True) == []
    planned = execute(loaded(tmp_path, text=text), None, timing_only=True)
    assert planned["timeline_sha256"] == manifest["timeline_sha256"]
    assert planned["summary"]["server"] == manifest["summary"]["server"]
    assert 0 < manifest["summary"]["server"]["utilisation"] <= 1
    scaled = execute(loaded(tmp_path, "run.delay_scale=7", text=text), tmp_path / "scaled")
    assert scaled["model_sha256"] == manifest["model_sha256"]


def test_everything_at_once_keeps_the_laws(tmp_path):
    """Open arrivals, queues at clients, a slow server, classes, pauses and weighted selection in one run."""
    text = opened(TEXT, 'arrivals = "poisson"\narrival_rate = 3.0\nclient_queue = 5\nselection = "weighted"')
    text = text.replace(
        "count = 4", 'count = 4\nepoch_idle_s = { law = "zipf", exponent = 1.7, cap = 5 }\nwatts_compute = 3.0'
    )
    text = text.replace(
        "[network]",
        '[[clients.classes]]\nname = "a"\nshare = 1\n[[clients.classes]]\nname = "b"\nshare = 1\nseconds_per_job = 2.0\n[network]',
    )
    text += "\n[server]\naggregation_s = 0.2\nqueue = 2\n"
    manifest = execute(loaded(tmp_path, text=text), tmp_path / "run")
    assert verify(tmp_path / "run", rerun=True) == []
    assert (
        execute(loaded(tmp_path, text=text), None, timing_only=True)["timeline_sha256"] == manifest["timeline_sha256"]
    )


# ---- stop rules


@pytest.mark.parametrize(
    ("rules", "why", "seconds", "versions", "updates"),
    [
        (StopRules(max_ticks=3 * S), "max_time", 3.0, 3, 6),
        (StopRules(max_ticks=3 * S + S // 2), "max_time", 3.5, 3, 6),
        (StopRules(max_versions=2), "max_versions", 2.0, 2, 4),
        (StopRules(max_updates=5), "max_updates", 3.0, 2, 5),
        (StopRules(max_versions=2, max_updates=4), "max_versions", 2.0, 2, 4),
        (StopRules(max_ticks=2 * S, max_updates=4), "max_updates", 2.0, 2, 4),
        (StopRules(max_ticks=S, max_versions=2, max_updates=9), "max_time", 1.0, 1, 2),
    ],
)
def test_the_first_rule_that_is_met_ends_the_run(rules, why, seconds, versions, updates):
    """Two clients of 1 s, two updates a version: time plays its last instant whole, counts end in the middle of theirs."""
    done = play(ScriptedTrips([1.0, 1.0]), strategy=FedBuff(buffer_size=2), concurrency=2, stops=rules)
    assert (done.engine.why, done.engine.final_ticks / S) == (why, seconds)
    assert (done.engine.model.version, done.engine.ledger.arrived) == (versions, updates)
    assert done.rows()[-1][:2] == (seconds, "stop")


def test_a_target_accuracy_ends_the_run_at_its_evaluation(monkeypatch):
    """Validation accuracy is a tenth of the version, evaluated at every second: at .55 the run stops with version 6, test scores aside; CASES RE-05."""

    def evaluate(self, model):
        del self
        return Promise(lambda: (Score("test", 0.0, 1.0, 1), Score("validation", 0.0, model.version / 10, 1)))

    monkeypatch.setattr(FloatExecutor, "evaluate", evaluate)
    rules = StopRules(max_updates=100, target_accuracy=0.55)
    done = play(ScriptedTrips([1.0]), concurrency=1, evaluations=Evaluations(2), stops=rules)
    assert (done.engine.why, done.engine.model.version, done.rows("stop")[0][0]) == ("target_accuracy", 6, 6.0)
    server = ServiceLaw(evaluation_ticks=2 * S + S // 2)
    late = play(ScriptedTrips([1.0]), concurrency=1, evaluations=Evaluations(2), stops=rules, server=server)
    assert (late.engine.model.version, late.rows("stop")[0][0]) == (
        8,
        8.5,
    )  # the evaluation of 6 took 2.5 s, and held nothing up
    with pytest.raises(RefusedError, match=r"target_accuracy reads trained values"):
        play(ScriptedTrips([1.0]), stops=rules, timing_only=True)


TARGET = scenarios.BLOBS.replace("max_updates = 30", "max_updates = 60\ntarget_accuracy = 0.6").replace(
    "eval_every_versions = 10", "eval_every_versions = 3"
)


def test_a_run_to_a_target_is_resumed_exactly(tmp_path):
    """Interrupted half-way and resumed, it stops at the same evaluation with the same files as undisturbed."""
    whole = execute(loaded(tmp_path, text=TARGET), tmp_path / "whole")
    assert whole["summary"]["stop"] == "target_accuracy"
    half = whole["summary"]["updates"] // 2

    def watch(session):
        if session.engine.ledger.arrived >= half and session.engine.between_instants and session.engine.why is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(loaded(tmp_path, text=TARGET), tmp_path / "cut", watch=watch)
    manifest, _ = resume(tmp_path / "cut")
    for name in ("timeline_sha256", "model_sha256", "status"):
        assert manifest[name] == whole[name]
    assert (tmp_path / "cut" / "metrics.parquet").read_bytes() == (tmp_path / "whole" / "metrics.parquet").read_bytes()


def test_a_wall_budget_interrupts_and_the_run_goes_on(tmp_path):
    """Status interrupted, a timeline that is a prefix; with a larger budget in the file the resumed run is the undisturbed one."""
    with pytest.raises(BudgetSpent, match="max_wall_s = 1e-06 real seconds are used up"):
        execute(loaded(tmp_path, "run.max_wall_s=1e-6", "run.max_updates=6"), tmp_path / "run")
    manifest = rundir.read_manifest(tmp_path / "run")
    assert manifest["status"] == "interrupted"
    assert 0 < manifest["summary"]["updates"] < 6
    assert verify(tmp_path / "run") == []
    for _ in range(9):
        try:
            manifest, _ = resume(tmp_path / "run")
        except BudgetSpent:
            continue
        break
    assert manifest["status"] == "finished"
    assert manifest["timeline_sha256"] == execute(loaded(tmp_path, "run.max_updates=6"), None)["timeline_sha256"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("concurrency = 3", 'concurrency = 3\narrivals = "poisson"\narrival_rate = 1', r"concurrency must not be given with arrivals"),
        ("concurrency = 3", 'dispatch = "immediate"\narrivals = "poisson"\narrival_rate = 1', r"dispatch must not be given with arrivals"),
        ("concurrency = 3", 'arrivals = "poisson"', r'arrivals = "poisson" needs the key arrival_rate'),
        ("concurrency = 3", "arrival_rate = 1", r"arrival_rate needs the key arrivals"),
        ("concurrency = 3", "target_accuracy = 0.5", r"target_accuracy needs the key validation_share"),
        ("concurrency = 3", "client_queue = 0", r"client_queue must be at least 1"),
        ("count = 4", "count = 4\nwatts_idle = 1\n", None),
        ("[executor]", "[server]\nqueue = 3\n[executor]", r"queue has no effect without aggregation_s"),
        ("[executor]", "[server]\nblocking = true\n[executor]", r"blocking needs the key evaluation_s"),
        ("[executor]", "[server]\nevaluation_s = 1\n[executor]", r"evaluation_s has no effect unless blocking"),
        ("[executor]", "eval_every_s = 1.5\ndelay_scale = 2\n[server]\nevaluation_s = 0.75\nblocking = true\n[executor]",
         r"never gets to an update: .* for 1.5 s .* every 1.5 s"),
        ("[executor]", "[server]\naggregation_s = -1\n[executor]", r"aggregation_s must be at least 0"),
        ("[executor]", "[server]\nagregation_s = 1\n[executor]", r'\[server\] has no key "agregation_s"; did you mean "aggregation_s"'),
    ],
)  # fmt: skip
def test_keys_that_make_no_sense_are_refused(tmp_path, old, new, message):
    """Line, key and the way out."""
    text = TEXT.replace(old, new)
    if message is None:
        text = text.replace("concurrency = 3", "concurrency = 3\nclient_queue = 2")
        message = r"client_queue does not go with watts_idle"
    with pytest.raises(ScenarioError, match=message):
        loaded(tmp_path, text=text)
