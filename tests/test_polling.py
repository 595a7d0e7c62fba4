"""Power-of-choice that asks: probes cost time and bytes, and the jobs go to those of the largest loss among who answered."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from tampering import tables
from worlds import Plain, S, ScriptedTrips, play

import scenarios
from desim_fl.availability import listed
from desim_fl.build import build
from desim_fl.core import Job, Outcome, Reply, Send, Trip, Work
from desim_fl.errors import RefusedError, RunError, ScenarioError
from desim_fl.preferences import Lots, PowerOfChoice
from desim_fl.run import execute, resume
from desim_fl.scenario import load
from desim_fl.verify import verify
from desim_fl.world import StopRules

if TYPE_CHECKING:
    from collections.abc import Container

ASKING = 'seed = 7\nselection = "power_of_choice"\npoc_candidates = 3\npoc_probe = true'
TEXT = scenarios.QUADRATIC.replace("seed = 7", ASKING)
PROBING = Work(epochs=0, steps=0, lr=0.0, probe=True)


@dataclass
class Asked(ScriptedTrips):
    """Scripted trips, and probes of so many seconds by client; some are lost half-way (by client and its job count)."""

    probes: tuple[float, ...] = ()
    silent: Container[tuple[int, int]] = ()

    def probe(self, client, nth, retry=0):
        ticks = round(self.probes[client] * S)
        lost = (ticks // 2, "crash") if (client, nth) in self.silent else None
        return Trip(0, None, ticks, 0, 100, 8, lost)


def asking(count: int, candidates: int | None = None) -> PowerOfChoice:
    """Everybody who is free is a candidate, unless fewer are wanted."""
    return PowerOfChoice(Lots(3, np.ones(count, np.int64)), candidates or count, probes=True)


class All:
    """Contains everything."""

    def __contains__(self, _):
        return True


def losses(*values):
    """Outcomes whose loss is the client's."""
    return lambda job, _steps, outcome: outcome._replace(loss=values[job.client])


# ---- worked by hand


def test_the_job_goes_to_the_largest_loss_once_everybody_has_answered():
    """Probes of 1, 2 and 3 s, losses 5, 9, 1, jobs of 4 s: client 1 leaves at 3 and arrives at 7; then the same again."""
    trips = Asked([4.0] * 3, probes=(1.0, 2.0, 3.0))
    done = play(trips, select=asking(3), concurrency=1, outcome=losses(5, 9, 1), stops=StopRules(max_updates=2))
    sent = [(t, client) for t, _, client, *_ in done.rows("dispatch")]
    assert sorted(sent[:3]) == [(0, 0), (0, 1), (0, 2)]
    assert [(t, client) for t, _, client, *_ in done.rows("cancel")] == [
        (1, 0),
        (2, 1),
        (3, 2),
        (8, 0),
        (9, 1),
        (10, 2),
    ]
    assert sent[3] == (3, 1)
    assert done.arrivals() == [(7, 1, 0), (14, 1, 0)]
    told = [
        loss for loss, why in zip(done.sink.notes("loss"), done.sink.notes("reason"), strict=True) if why == "answered"
    ]
    assert told == [5, 9, 1] * 2
    ledger, spent = done.engine.ledger, done.engine.usage.total()
    assert (ledger.bytes_down, ledger.bytes_up) == (8 * 100, 6 * 8 + 2 * 100)
    assert spent.compute == (2 * (1 + 2 + 3) + 2 * 4) * S
    assert done.engine.final_ticks == 14 * S


def test_who_fails_while_asked_is_a_candidate_less_and_nobody_left_means_to_ask_again(monkeypatch):
    """The loudest is lost: the second loudest trains. All are lost at their first probes: at 1.5 s all are asked again."""
    trips = Asked([4.0] * 3, probes=(1.0, 2.0, 3.0), silent=((1, 0),))
    done = play(trips, select=asking(3), concurrency=1, outcome=losses(5, 9, 1), stops=StopRules(max_updates=1))
    assert done.arrivals() == [(7, 0, 0)]
    assert [row[:3] for row in done.rows("lose")] == [(1, "lose", 1)]
    trips = Asked([4.0] * 3, probes=(1.0, 2.0, 3.0), silent=((0, 0), (1, 0), (2, 0)))
    done = play(trips, select=asking(3), concurrency=1, outcome=losses(5, 9, 1), stops=StopRules(max_updates=1))
    assert sorted(row[0] for row in done.rows("dispatch")[3:6]) == [1.5] * 3
    assert done.arrivals() == [(1.5 + 3 + 4, 1, 0)]
    monkeypatch.setattr("desim_fl.standstill._SAME_INSTANT_LIMIT", 50)
    always = Asked([4.0], probes=(1.0,), silent=All())
    with pytest.raises(RunError, match="in a row"):
        play(always, select=asking(1), concurrency=1)


def test_a_loss_that_is_no_number_ranks_last_and_a_missing_one_too():
    """NaN and none are behind any finite loss, among themselves in the order asked."""
    best = asking(4).best
    assert best([(0, float("nan")), (1, -3.0), (2, None), (3, 7.0)], 4) == (3, 1, 0, 2)
    assert best([(2, 1.0), (0, 1.0), (1, 1.0)], 2) == (2, 0)
    assert best([], 3) == ()


def test_who_has_left_by_the_decision_is_passed_over():
    """The loudest answers at 1 s and is away from 2 to 9: at 3 s the next in line is sent out."""
    source = listed(*(np.array(each) for each in ([0, 0, 1, 2], [0, 9 * S, 0, 0], [2 * S, 99 * S, 99 * S, 99 * S])), 3)
    trips = Asked([4.0] * 3, probes=(1.0, 2.0, 3.0))
    done = play(
        trips,
        select=asking(3),
        concurrency=1,
        outcome=losses(9, 5, 1),
        stops=StopRules(max_updates=1),
        availability=source,
    )
    assert done.arrivals() == [(7, 1, 0)]


@dataclass(frozen=True)
class Cohorts(Plain):
    """Asks for two at once with something to take along, and remembers what it saw flying."""

    def start(self, view):
        return (), Reply(sends=(Send(count=2, extra="note", tag=5),))

    def arrive(self, state, view, update):
        assert (update.job.extra, update.job.tag, update.job.work.probe) == ("note", 5, False)
        seen = sorted((out.client, out.tag) for out in view.flying.values())
        assert len(view.flying) == len(seen)
        return (*state, seen), Reply(params=view.params + update.delta, sends=(Send(count=2, extra="note", tag=5),))


def test_a_strategy_gets_its_cohort_and_never_sees_a_probe():
    """Two of three for a send of two; at the first arrival it sees the other job alone; probes exceed no concurrency."""
    trips = Asked([4.0, 5.0, 6.0], probes=(1.0, 2.0, 3.0))
    done = play(
        trips,
        strategy=Cohorts(),
        select=asking(3),
        concurrency=2,
        outcome=losses(5, 9, 1),
        stops=StopRules(max_updates=3),
    )
    assert done.arrivals()[:2] == [(7, 0, 0), (8, 1, 1)]
    assert done.engine._strategy.state[0] == [(1, 5)]
    with pytest.raises(RefusedError, match=r"ScriptedTrips has no probe"):
        play(ScriptedTrips([1.0]), select=asking(1))


@pytest.mark.parametrize(("wait", "sent"), [(False, [(3, 0)]), (True, [(3, 0), (4.5, 1)])])
def test_a_cohort_goes_out_smaller_if_it_must_not_wait_and_else_asks_for_the_rest(wait, sent):
    """Two places, three asked, 1 and 2 lost half-way: client 0 leaves at 3 s; only a cohort that waits asks 1 and 2 once more, and 1 leaves at 3 + 1.5 s."""

    class Once(Plain):
        def start(self, view):
            return (), Reply(sends=(Send(count=2, wait=wait),))

        def arrive(self, state, view, update):
            return state, Reply(params=view.params + 1.0, sends=())

    trips = Asked([4.0] * 3, probes=(3.0, 1.0, 1.5), silent=((1, 0), (2, 0)))
    options = {"strategy": Once(), "select": asking(3, 3), "concurrency": 2, "outcome": losses(1, 9, 5)}
    done = play(trips, stops=StopRules(max_ticks=6 * S), **options)
    assert [(t, client) for t, _, client, *_ in done.rows("dispatch") if (t, client) in sent] == sent
    assert len(done.rows("dispatch")) == 3 + (1 if not wait else 2 + 2)


# ---- against a reference of its own


def reference(durations, probes, values, places: int, updates: int):
    """Arrivals (tick, client) and the model of x <- x + 1/(1+client) at each; who is free when a place opens is asked."""
    free, queue, found, x = set(range(len(durations))), [], [], 0.0
    polls, number, waiting = {}, 0, places
    order = iter(range(10**9))

    def ask():
        nonlocal number, waiting
        while waiting and free:
            asked, filled = sorted(free), min(waiting, len(free))
            waiting -= filled
            polls[number] = [filled, len(asked), []]
            for client in asked:
                free.discard(client)
                heapq.heappush(queue, (now + probes[client], next(order), number, client))
            number += 1

    now = 0
    ask()
    while True:
        now, _, poll, client = heapq.heappop(queue)
        if poll < 0:
            x += 1 / (1 + client)
            found.append((now, client))
            free.add(client)
            if len(found) == updates:
                return found, x
            waiting += 1
        else:
            entry = polls[poll]
            entry[1] -= 1
            entry[2].append((-values[client], client))
            if entry[1]:
                continue
            free.update(client for _, client in entry[2])
            for _, chosen in sorted(entry[2])[: entry[0]]:
                free.discard(chosen)
                heapq.heappush(queue, (now + durations[chosen], next(order), -1, chosen))
        ask()


@pytest.mark.parametrize("seed", range(12))
def test_random_worlds_are_those_of_a_reference(seed):
    """Several places, several polls at once, losses that differ: the same arrivals and the same model as a loop with a heap."""
    chance = random.Random(seed)
    count, places = chance.randint(2, 7), chance.randint(1, 4)
    durations = [chance.uniform(0.5, 9.0) for _ in range(count)]
    probes = tuple(chance.uniform(0.1, 2.0) for _ in range(count))
    mine = chance.sample(range(100), count)
    done = play(
        Asked(durations, probes=probes), select=asking(count), concurrency=places, outcome=losses(*mine),
        learn=lambda job: job.params + 1 / (1 + job.client), stops=StopRules(max_updates=40),
    )  # fmt: skip
    ticks = [round(each * S) for each in durations], [round(each * S) for each in probes]
    found, x = reference(*ticks, mine, places, 40)
    assert [(t, client) for t, kind, client, *_ in done.sink.tuples() if kind == "arrive"] == found
    assert done.engine.model.params == pytest.approx(x, abs=1e-12)


# ---- whole runs


def test_what_a_probe_takes_follows_from_devices_and_links(tmp_path):
    """A third of an epoch's compute with the job's jitter, the model down, eight bytes up; scaled like any other leg."""
    for scale in (1.0, 3.0):
        trips = build(
            load(scenarios.write(tmp_path, TEXT), [f"run.delay_scale={scale}"]), timing_only=True, assume_full_work=True
        ).trips
        for client, epoch in ((0, 3), (1, 1), (2, 5)):
            whole, probe = trips.trip(client, 4, Work(steps=3 * epoch)), trips.probe(client, 4)
            assert (probe.download, probe.wait, probe.bytes_down, probe.bytes_up) == (whole.download, whole.wait, 8, 8)
            assert abs(probe.compute - whole.compute / 9) <= scale
            assert probe.upload == whole.upload  # the scalar's size is eight bytes
    one = build(load(scenarios.write(tmp_path, TEXT)), timing_only=True, assume_full_work=True).trips
    assert tuple(3 * leg for leg in one.probe(2, 4)[:4]) == trips.probe(2, 4)[:4]
    afterwards = one.trip(2, 5, Work(steps=10))
    assert afterwards == build(
        load(scenarios.write(tmp_path, TEXT)), timing_only=True, assume_full_work=True
    ).trips.trip(2, 5, Work(steps=10))


def test_a_run_that_asks_keeps_the_laws(tmp_path):
    """Verified and rerun without a fault, tampering is told; plan refuses, but assumes; interrupted anywhere, it is the same run."""
    scenario = load(scenarios.write(tmp_path, TEXT), ["run.max_updates=12"])
    manifest = execute(scenario, tmp_path / "run")
    assert verify(tmp_path / "run", rerun=True) == []
    assert manifest["summary"]["updates"] == 12
    with pytest.raises(RefusedError, match=r"PowerOfChoice reads trained values .*--assume-full-work"):
        execute(scenario, None, timing_only=True)
    assumed = execute(scenario, None, timing_only=True, assume_full_work=True)
    assert assumed["summary"]["cancelled"] > 12
    events = pl.read_parquet(tables(tmp_path / "run")["events"])
    answers = events.filter(pl.col("reason") == "answered")
    assert set(answers["bytes"]) == {8}
    # the first three are asked about the start, 5.0: c/2 (5 - o)^2
    assert sorted(answers["loss"].head(3)) == sorted([8.0, 36.0, 1.0, 15.1875][c] for c in answers["client"].head(3))
    threads = scenarios.in_memory(
        load(scenarios.write(tmp_path, TEXT), ["run.max_updates=12", "executor.name=threads", "executor.workers=2"])
    )
    assert threads.sha256 == manifest["timeline_sha256"]
    (final,) = pl.read_parquet(tables(tmp_path / "run")["metrics"]).filter(pl.col("split") == "test")["loss"].tail(1)
    assert threads.losses[-1] == final


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("poc_probe = true", r'poc_probe must not be given with selection = "uniform"; it belongs to "power_of_choice"'),
        ('selection = "power_of_choice"\npoc_candidates = 2\npoc_probe_share = 0.5', r"poc_probe_share needs poc_probe = true"),
        (f"{ASKING[9:]}\npoc_probe_share = 1.5", r"poc_probe_share must be at most 1"),
    ],
)  # fmt: skip
def test_keys_of_probes_without_effect_are_refused(tmp_path, keys, message):
    """What has no effect, or is out of range, is named with its line."""
    with pytest.raises(ScenarioError, match=message):
        load(scenarios.write(tmp_path, scenarios.QUADRATIC.replace("seed = 7", f"seed = 7\n{keys}")))


@pytest.mark.parametrize("model", ['name = "mlp"\nhidden = [16]', 'name = "logistic"'])
def test_every_task_answers_with_the_loss_of_its_client(tmp_path, model):
    """A network and logistic regression: the mean loss of the model that it brought over all samples of the client."""
    text = scenarios.BLOBS.replace('name = "mlp"\nhidden = [16]', model)
    overrides = ["run.selection=power_of_choice", "run.poc_candidates=3", "run.poc_probe=true"]
    built = build(load(scenarios.write(tmp_path, text), overrides))
    task, part = built.task, built.population.parts[2]
    start = task.initial()
    (score,) = task.score_parts(start, [part])
    answer = task.train(Job(0, 2, 0, 0, start.params, start.buffers, PROBING), 0)
    assert answer == Outcome(start.params, start.buffers, len(part), loss=pytest.approx(score.loss, rel=1e-12))


def test_a_run_that_asks_goes_on_wherever_it_was_interrupted(tmp_path):
    """Cut while some of a poll have answered, and later while jobs and polls are under way: the same timeline, model and events."""
    scenario = load(
        scenarios.write(tmp_path, TEXT), ["run.max_updates=8", "run.concurrency=2", "checkpoint.every_versions=1"]
    )
    whole = execute(scenario, tmp_path / "whole")

    def cut(landings):
        def watch(session):
            ledger = session.engine.ledger
            if ledger.arrived + ledger.cancelled >= landings and session.engine.between_instants:
                raise KeyboardInterrupt

        return watch

    for landings in (2, 7):
        place = tmp_path / str(landings)
        with pytest.raises(KeyboardInterrupt):
            execute(scenario, place, watch=cut(landings))
        manifest, _ = resume(place)
        assert (manifest["timeline_sha256"], manifest["model_sha256"]) == (
            whole["timeline_sha256"],
            whole["model_sha256"],
        )
        assert manifest["resumed_at_s"] is not None
    assert verify(place) == []
