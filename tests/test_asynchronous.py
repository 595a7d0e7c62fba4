"""Asynchronous methods through the whole engine: identities between them, bounds on delay, and what theory says of quadratics."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import S, ScriptedTrips, play

import desim_fl
import scenarios
from desim_fl import algebra
from desim_fl.build import build as wired
from desim_fl.engine import Engine
from desim_fl.errors import RefusedError, ScenarioError
from desim_fl.eventlog import EventLog, MemorySink
from desim_fl.laws import Audit, Row
from desim_fl.learning import models as models_of
from desim_fl.learning import sizes
from desim_fl.scenario import load
from desim_fl.scenario.method import MethodTable
from desim_fl.scenario.strategies import STRATEGIES
from desim_fl.selection import RoundRobin
from desim_fl.strategies import TABLE, FedAsync, FedAvg, FedBuff, build
from desim_fl.strategies.polled import drawn
from desim_fl.testing import Playground
from desim_fl.world import Evaluations, StopRules

RATE = 0.1
PLACES = (3.0, -1.0, 0.5, 7.0, -4.0, 2.0, 1.0, 0.0)  # where each client's quadratic has its minimum


def step(job, rate=RATE, places=PLACES):
    """One local step of gradient descent on the client's quadratic."""
    return job.params - rate * (job.params - places[job.client])


def a_world(seed: int, most: int = 5) -> dict:
    """A few clients with durations of their own for each job; equal instants abound."""
    chance = random.Random(seed)
    clients = chance.randint(2, most)
    compute = [[chance.choice([1, 2, 3, 5, 0.5]) for _ in range(6)] for _ in range(clients)]
    lost = {(client, chance.randint(0, 4)): (0.25, "crash") for client in range(clients) if chance.random() < 0.3}
    return {
        "trips": ScriptedTrips(compute, lost=lost),
        "concurrency": chance.randint(1, clients),
        "select": chance.choice(["round_robin", "longest_idle"]),
        "start": 5.0,
        "stops": StopRules(max_updates=chance.choice([20, 33])),
    }


def path(strategy, learn=step, **world) -> list[tuple[int, float]]:
    """(ticks, model) of every version."""
    played = play(strategy=strategy, learn=learn, evaluations=Evaluations(every_versions=1), **world)
    rows = [Row(seq, *row) for seq, row in enumerate(played.sink.tuples())]
    assert list(Audit().problems(rows)) == []
    return [(evaluation.ticks, evaluation.scores[0].loss) for evaluation in played.evaluations]


def models(strategy, **world) -> list[float]:
    """The model of every version."""
    return [model for _, model in path(strategy, **world)]


def close(one: list[float], other: list[float]) -> bool:
    """Equal to 12 digits."""
    return len(one) == len(other) and one == pytest.approx(other, rel=1e-12, abs=1e-12)


# ---- identities (bit for bit where thresholds are infinite or weights are 1)

ASGD = build("asyncsgd", {})
SAME = [
    (build("asyncsgd", {"workers": "sampled", "server_lr": 0.7}), FedBuff(buffer_size=1, staleness="constant", server_lr=0.7)),
    (build("asyncsgd", {"workers": "sampled", "server_lr": 0.7}), FedAsync(alpha=0.7, mixing="delta", staleness="constant")),
    (build("ringmaster", {}), ASGD),
    (build("asyncsgd", {"delay_rule": "koloskova", "threshold": 10**9}), ASGD),
    (build("asyncsgd", {"delay_rule": "mishchenko", "threshold": 10**9}), ASGD),
    (build("ringmaster", {"delay_threshold": 10**9, "stop": True}), ASGD),
    (build("fadas", {"tau_c": 10**9}), build("fadas", {"delay_adaptive": False})),
    (build("rennala", {"batch": 1, "stop_unfinished": True}), build("ringmaster", {"delay_threshold": 1, "stop": True})),
    (build("rennala", {"batch": 1}), build("ringmaster", {"delay_threshold": 1})),
    (build("fedstale", {"beta": 1.0, "buffer_size": 3}), build("fedvarp", {"buffer_size": 3})),
    (build("fedstale", {"beta": 1.0, "weights": "population"}), build("mifa", {})),
]  # fmt: skip
ALIKE = [
    (build("fedasmu_static", {"lam": 0.0, "iota": 0.5, "mu": 2.0}), FedAsync(alpha=0.5, staleness="constant")),
    (build("fedasmu_static", {"lam": 0.0, "iota": 3.0}), FedAsync(alpha=0.75, staleness="constant")),
    (build("fedfa", {"queue_size": 1}), FedAsync(alpha=1.0, staleness="constant")),
    (build("fedfa", {"queue_size": 1, "content": "delta"}), FedAsync(alpha=1.0, mixing="delta", staleness="constant")),
    (build("fedstale", {"beta": 0.0, "buffer_size": 3}), FedBuff(buffer_size=3, staleness="constant")),
    (build("fedvarp", {"buffer_size": 3}), build("ca2fl", {"buffer_size": 3})),
    (build("asofed", {}), build("area", {"buffer_size": 1})),  # clients of equal size
]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("one", "other"), SAME, ids=repr)
def test_two_names_for_one_method_agree_to_the_last_bit(one, other, seed):
    """Thresholds at infinity, weights of 1: the same versions at the same instants; ALGORITHMS 2.19, 3 and 5."""
    world = a_world(seed)
    first = path(one, **world)
    assert first == path(other, **world)
    assert len(first) > 2


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("one", "other"), ALIKE, ids=repr)
def test_two_names_for_one_method_agree(one, other, seed):
    """Special cases that are another method, to 12 digits; ALGORITHMS 2.19, 8."""
    world = a_world(seed)
    first, second = path(one, **world), path(other, **world)
    assert [ticks for ticks, _ in first] == [ticks for ticks, _ in second]
    assert close([model for _, model in first], [model for _, model in second])


@pytest.mark.parametrize("seed", range(6))
def test_port_without_bound_and_likeness_is_fedavg(seed):
    """Omega infinite, beta 0, all reports waited for: FedAvg with as many clients a round."""
    chance = random.Random(seed)
    clients = chance.randint(2, 5)
    cohort = chance.randint(1, clients)
    world = {
        "trips": ScriptedTrips([chance.choice([1, 2, 3]) for _ in range(clients)]),
        "sizes": [chance.randint(1, 9) for _ in range(clients)],
        "select": "round_robin",
        "concurrency": cohort,
        "start": 5.0,
        "stops": StopRules(max_versions=7),
    }
    port = build("port", {"min_clients": cohort, "staleness_bound": None, "beta": 0.0})
    assert close(models(port, dispatch="after_aggregation", **world), models(FedAvg(clients_per_round=cohort), **world))


ALONE = [
    ASGD, build("asyncsgd", {"delay_rule": "koloskova"}), build("asyncsgd", {"delay_rule": "mishchenko"}),
    build("ringmaster", {"delay_threshold": 3}), build("rennala", {"batch": 1}),
    build("ca2fl", {"buffer_size": 1}), build("fedvarp", {"buffer_size": 1}), build("mifa", {"buffer_size": 1}),
    build("area", {}), build("asofed", {}), build("port", {"min_clients": 1}), build("fedfa", {"queue_size": 1}),
    FedAsync(alpha=1.0), FedAsync(alpha=1.0, sampled_staleness=0),
]  # fmt: skip


@pytest.mark.parametrize("strategy", ALONE, ids=repr)
def test_one_client_alone_trains_by_itself(strategy):
    """One client, one job at a time: each goes on from where the last one ended; ALGORITHMS 2.19, 4."""
    found = models(strategy, trips=ScriptedTrips([1]), concurrency=1, start=5.0, stops=StopRules(max_updates=12))
    assert found == pytest.approx([3 + 2 * (1 - RATE) ** k for k in range(13)], rel=1e-12)


def test_rennala_with_one_client_is_minibatch_sgd():
    """Batch 3, every gradient at the same model, noise of its own: x moves by the mean of three."""
    noise = [0.3, -0.1, 0.7, 0.2, 0.0, -0.5]
    found = models(
        build("rennala", {"batch": 3}), trips=ScriptedTrips([1]), concurrency=1, stops=StopRules(max_updates=6),
        learn=lambda job: job.params - RATE * (job.params - noise[job.nth]),
    )  # fmt: skip
    first = -RATE * sum(0 - n for n in noise[:3]) / 3
    assert found == pytest.approx([0.0, first, first - RATE * sum(first - n for n in noise[3:]) / 3], rel=1e-12)


def test_the_first_flush_of_ca2fl_is_that_of_fedbuff():
    """Before anybody was seen there is nothing to calibrate; afterwards there is."""
    world = {"trips": ScriptedTrips([1, 1, 1, 2]), "concurrency": 4, "start": 5.0, "stops": StopRules(max_updates=12)}
    one = models(build("ca2fl", {"buffer_size": 3}), **world)
    other = models(FedBuff(buffer_size=3, staleness="constant"), **world)
    assert one[:2] == other[:2]
    assert one[2] != other[2]


def test_fadas_without_memory_moves_by_its_rate_at_first():
    """b1 = b2 = 0 and a tiny eps: the first step is eta times the sign of the mean delta."""
    strategy = build("fadas", {"buffer_size": 2, "server_lr": 0.25, "beta1": 0.0, "beta2": 0.0, "eps": 1e-12})
    for start, end in ((5.0, 4.75), (-5.0, -4.75)):
        found = models(
            strategy, trips=ScriptedTrips([1, 1]), concurrency=2, start=start, stops=StopRules(max_versions=1)
        )
        assert found[1] == pytest.approx(end, abs=1e-9)


def test_ringmaster_at_one_follows_the_fastest_worker():
    """Fixed times, R = 1: the models are those of the fastest client alone, at the same instants."""
    learn = lambda job: step(job) if job.client == 1 else 99.0  # noqa: E731
    found = path(
        build("ringmaster", {"delay_threshold": 1}), learn, trips=ScriptedTrips([3, 2, 7]), concurrency=3,
        stops=StopRules(max_ticks=40 * S),
    )  # fmt: skip
    alone = path(
        ASGD, lambda job: step(job, places=PLACES[1:]), trips=ScriptedTrips([2]), concurrency=1,
        stops=StopRules(max_ticks=40 * S),
    )  # fmt: skip
    assert found == alone


# ---- every method of the table

EVERY = {
    "fedavg": {"clients_per_round": 2}, "fedbuff": {"buffer_size": 2}, "fadas": {"buffer_size": 2},
    "ca2fl": {"buffer_size": 2}, "port": {"min_clients": 2, "staleness_bound": 2}, "ringmaster": {"delay_threshold": 3},
    "rennala": {"batch": 2}, "fedstale": {"buffer_size": 2}, "fedvarp": {"buffer_size": 2}, "mifa": {"buffer_size": 2},
    "quafl": {"contacted": 2, "interval_s": 1.5}, "favas": {"contacted": 2, "interval_s": 1.5},
}  # fmt: skip
MINE = [
    "fedasync", "fedbuff", "asyncsgd", "fadas", "ca2fl", "port", "area", "asofed", "fedasmu_static", "fedfa", "ringmaster",
    "rennala", "malenia", "ringleader", "fedstale", "fedvarp", "mifa", "quafl", "favas",
]  # fmt: skip


@pytest.mark.parametrize("name", MINE)
def test_longer_durations_change_no_model(name):
    """All durations seven times as long (the clock of a polling server too): every version is the same bits, seven times later."""
    options = EVERY.get(name, {})
    for seed in range(4):
        world = {**a_world(seed), "stops": StopRules(max_versions=8, max_updates=200)}
        trips = world.pop("trips")
        slow = ScriptedTrips(
            [[7 * duration for duration in mine] for mine in trips.compute],
            lost={job: (7 * after, why) for job, (after, why) in trips.lost.items()},
        )
        late = {key: 7 * value if key == "interval_s" else value for key, value in options.items()}
        found = path(build(name, options), trips=trips, **world)
        assert [(7 * ticks, model) for ticks, model in found] == path(build(name, late), trips=slow, **world)
        assert len(found) > 3


@pytest.mark.parametrize("name", [name for name in MINE if name not in {"malenia", "ringleader", "quafl", "favas"}])
def test_clients_may_be_numbered_otherwise(name):
    """Clients that change numbers together with their speeds and data leave every version as it was (round robin)."""
    order = (2, 0, 3, 1)
    compute, places = (1.0, 1.7, 3.1, 0.9), PLACES[:4]
    strategy = build(name, EVERY.get(name, {}))
    world = {"concurrency": 3, "start": 5.0, "stops": StopRules(max_updates=24)}
    found = path(strategy, trips=ScriptedTrips(compute), select=RoundRobin((0, 1, 2, 3)), **world)
    moved = path(
        strategy, lambda job: step(job, places=[places[order.index(client)] for client in range(4)]),
        trips=ScriptedTrips([compute[order.index(client)] for client in range(4)]), select=RoundRobin(tuple(order.index(client) for client in range(4))), **world,
    )  # fmt: skip
    assert found == moved


@pytest.mark.parametrize("name", MINE)
def test_clients_without_samples_hold_nothing_up(name):
    """Beside a client that has nothing to learn from the others go on; it is in no model and no N; CASES AG-06."""
    played = play(
        ScriptedTrips([1, 2, 1]), strategy=build(name, EVERY.get(name, {})), sizes=[4, 0, 4], concurrency=3, start=5.0,
        learn=lambda job: math.inf if job.client == 1 else step(job), stops=StopRules(max_versions=6),
    )  # fmt: skip
    assert played.engine.model.version == 6
    assert math.isfinite(played.engine.model.params)
    reasons = zip(played.rows(), played.sink.notes("reason"), strict=True)
    assert {row[2] for row, reason in reasons if reason == "no examples"} <= {1}


@pytest.mark.parametrize("name", MINE)
def test_who_drops_out_is_in_no_weight(name):
    """A client whose every job is lost leaves the others' models where they are alone, or N models' memory at x_0; CASES AG-06."""
    lost = {(2, nth): (0.5, "crash") for nth in range(500)}
    played = play(
        ScriptedTrips([1, 1, 1], lost=lost), strategy=build(name, EVERY.get(name, {})), concurrency=3, start=5.0,
        learn=lambda job: math.inf if job.client == 2 else step(job), stops=StopRules(max_ticks=12 * S),
    )  # fmt: skip
    assert math.isfinite(played.engine.model.params)
    polled = name in {"quafl", "favas"}  # asked in time it says that it has done nothing
    assert polled or not any(row[2] == 2 for row in played.rows("arrive"))
    waits = name in {"malenia", "ringleader"}  # for everybody, for ever
    assert (played.engine.model.version == 0) == waits


BOUNDED = [name for name in MINE if any(f.name == "max_staleness" and f.init for f in dataclasses.fields(TABLE[name]))]


@pytest.mark.parametrize("name", BOUNDED)
def test_the_engine_turns_away_what_is_too_stale_for_every_method(name):
    """max_staleness = 2: 2 is let in, 3 is a row "stale", whatever the method, and its client leaves again at once; CASES AS-05."""
    one = {"buffer_size": 1} if hasattr(TABLE[name](), "buffer_size") else {}
    played = play(
        ScriptedTrips([1, [2.5, 3.5, 50]]), strategy=build(name, {**EVERY.get(name, {}), "max_staleness": 2, **one}),
        concurrency=2, start=5.0, learn=step, stops=StopRules(max_updates=9),
    )  # fmt: skip
    assert [staleness for _, client, staleness in played.arrivals() if client == 1] == [2, 3]
    assert played.rows("reject") == [(6.0, "reject", 1, 4, 6, 3)]
    assert (6.0, 1) in [(row[0], row[2]) for row in played.rows("dispatch")]
    assert {"fedasync", "fedbuff", "asyncsgd", "area", "ca2fl"} < set(BOUNDED)


# ---- draws


def test_quafl_s_clients_may_train_at_a_larger_rate(tmp_path):
    """With s = 2 of 4 at a rate of 0.1: every job's is 0.1 * 3 / 2, the first ones and a lost one's too; never beside delay_aware."""
    ground = Playground(
        build("quafl", {"contacted": 2, "scale_rate": True, "lr": 0.1}), 0.0, clients=4, sizes=(1, 1, 1, 0)
    )
    ground.lose(0)
    assert [job.work.lr for job in ground.jobs.values()] == [0.1 * 3 / 2] * 3
    for job in list(ground.jobs):
        ground.arrive(job, 1.0, steps=1)
    ground.alarm("contact")
    assert {job.work.lr for job in ground.jobs.values()} == {0.1 * 3 / 2}
    assert build("quafl", {"contacted": 9, "scale_rate": True, "lr": 0.1}).work(ground).lr == pytest.approx(0.1 * 4 / 3)
    text = (
        EQUAL.format(clients=4, rate=0.1, updates=20)
        .replace("concurrency = 4\n", "")
        .replace('selection = "round_robin"\n', "")
    )
    text = text.replace('name = "asyncsgd"', 'name = "quafl"\ncontacted = 2')
    ends = [
        scenarios.in_memory(load(scenarios.write(tmp_path, text), more)).engine.model.params
        for more in ([], ["strategy.scale_rate=true"])
    ]
    assert 0 < abs(ends[1]) < abs(ends[0])
    rule = ["training.delay_aware={meaning='staleness',gamma_0=0.1,alpha_lr=0.5}", "strategy.scale_rate=true"]
    with pytest.raises(ScenarioError, match="delay_aware must not be given with scale_rate of strategy quafl"):
        load(scenarios.write(tmp_path, text.replace("lr = 0.1\n", "")), rule)
    with pytest.raises(ScenarioError, match="must be above 0 with scale_rate"):
        build("quafl", {"scale_rate": True})


def test_contacts_are_drawn_alike_and_never_twice():
    """Each contact asks distinct clients, every client as often as the others in the long run (3 of 8: 3,750 of 10,000)."""
    counts = [0] * 8
    for number in range(10_000):
        chosen = drawn(7, number, 8, 3)
        assert len(set(chosen)) == 3
        for client in chosen:
            counts[client] += 1
    assert sum(counts) == 30_000
    assert all(abs(count - 3750) < 5 * math.sqrt(10_000 * 3 / 8 * 5 / 8) for count in counts)
    assert sorted(drawn(0, 0, 5, 5)) == [0, 1, 2, 3, 4]


def test_each_contact_draws_anew_and_its_clients_go_on_as_of_the_new_version():
    """QuAFL asks whom the number of the contact draws; who goes on counts as of the version that the contact made."""
    ground = Playground(build("quafl", {"contacted": 2, "seed": 3}), 0.0, clients=8, concurrency=8)
    asked = []
    for number in range(4):
        ground.alarm("contact")
        jobs = ground.state.asked
        asked.append({ground.jobs[job].client for job in jobs})
        assert asked[-1] == set(drawn(3, number, 8, 2))
        for job in jobs:
            ground.arrive(job, 1.0, steps=1)
        assert sorted(job.version for job in ground.jobs.values())[-2:] == [ground.version] * 2 == [number + 1] * 2
    assert len({frozenset(clients) for clients in asked}) > 1


def test_a_replay_keeps_as_many_models_as_may_be_started_from():
    """K = 2: two versions before the one in force, however many there were."""
    ground = Playground(FedAsync(sampled_staleness=2), 0.0, clients=1, concurrency=1)
    for job in range(6):
        ground.arrive(job, 1.0)
    assert [model.version for model in ground.state.older] == [4, 5]


def test_sampled_staleness_is_uniform_and_is_what_the_update_sees():
    """K = 3, one job at a time: staleness 0 to 3 a quarter of the time each, and never more than there are versions."""
    played = play(
        ScriptedTrips([1]), strategy=FedAsync(sampled_staleness=3, seed=5), concurrency=1, learn=step,
        stops=StopRules(max_updates=4000),
    )  # fmt: skip
    tau = [staleness for *_, staleness in played.arrivals()]
    assert all(age <= min(3, place) for place, age in enumerate(tau))
    shares = [tau.count(age) for age in range(4)]
    assert all(abs(count - 1000) < 5 * math.sqrt(4000 * 3 / 16) for count in shares)
    old = next(job for job, _ in played.executor.submitted if job.version < job.id)
    assert old.params == played.executor.submitted[old.version][0].params or old.version == 0


@pytest.mark.parametrize("name", MINE)
def test_scenario_class_and_guide_tell_of_the_same_method(name):
    """The scenario's defaults are the class's, each option of one is a key of the other, and the guide's table has a line for it."""
    table = STRATEGIES[name]()
    options = table.model_dump(exclude={"name", *MethodTable.model_fields})  # those that wrap any method
    assert TABLE[name](**options) == TABLE[name]()
    taken = {option.name for option in dataclasses.fields(TABLE[name]) if option.init} - {"seed", "lr", "first_layer"}
    assert taken == set(options)
    guide = (Path(desim_fl.__file__).parent / "docs" / "strategies.md").read_text()
    assert any(line.startswith("| ") and f"`{name}`" in line.split(" | ")[0] for line in guide.splitlines())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (('strategy.name="asyncsgd"', 'run.dispatch="immediate"'), "dispatch must not be given with strategy asyncsgd; the model goes"),
        (('strategy.name="asyncsgd"', "strategy.threshold=3"), 'threshold must not be given; it belongs to delay_rule = "kolo'),
        (('strategy.name="asyncsgd"', 'strategy.beyond="drop"'), 'beyond must not be given; it belongs to delay_rule = "kolo'),
        (('strategy.name="fadas"', "strategy.delay_adaptive=false", "strategy.tau_c=3"), "it belongs to delay_adaptive = true"),
        (('strategy.name="ringmaster"', "strategy.stop=true"), "stop must not be given; it needs the key delay_threshold"),
        (('strategy.name="malenia"',), "concurrency must not be given with strategy malenia; all clients compute at once"),
        (("strategy.sampled_staleness=3",), "concurrency must not be given with strategy fedasync; with sampled_staleness one"),
        (('strategy.name="fedbuff"', "strategy.buffer_size=5", 'run.dispatch="after_aggregation"'), "buffer_size = 5 is never reached"),
        (('strategy.name="port"', 'run.dispatch="after_aggregation"'), "min_clients = 15 is never reached"),
        (('strategy.name="quafl"', "strategy.contacted=9"), "contacted = 9 is more than the 4 clients there are"),
    ],
)  # fmt: skip
def test_combinations_that_make_no_sense_are_refused_with_the_reason(tmp_path, keys, said):
    """Keys that a method settles itself or that have no effect, buffers that never fill, more contacts than clients."""
    text = EQUAL.format(clients=4, rate=0.1, updates=9).replace('name = "asyncsgd"', 'name = "fedasync"')
    with pytest.raises(ScenarioError) as caught:
        load(scenarios.write(tmp_path, text), keys)
    assert said in str(caught.value)


# ---- bounds on delay and on time (ALGORITHMS 4.1, O7, and 4.4)


@pytest.mark.parametrize("seed", range(12))
def test_delays_keep_their_bounds(seed):
    """Ringmaster that stops delivers delays below R, Ringleader at most 2n - 2, whatever the durations."""
    world = a_world(seed)
    world["trips"].lost.clear()
    clients = len(world["trips"].compute)
    for threshold in (1, 2, 4):
        strategy = build("ringmaster", {"delay_threshold": threshold, "stop": True})
        played = play(strategy=strategy, learn=step, **{**world, "concurrency": clients})
        assert max(staleness for *_, staleness in played.arrivals()) <= threshold - 1
        assert played.rows("reject") == []
    played = play(strategy=build("ringleader", {}), learn=step, **{**world, "stops": StopRules(max_updates=120)})
    assert max(staleness for *_, staleness in played.arrivals()) <= 2 * clients - 2
    assert played.engine.model.version >= clients


def publishes(strategy, times, **world) -> list[float]:
    """Seconds at which versions are published, with fixed computation times."""
    played = play(ScriptedTrips(times), strategy=strategy, learn=step, concurrency=len(times), **world)
    return [row[0] for row in played.rows("publish")]


@pytest.mark.parametrize(("batch", "seconds"), [(1, 1), (4, 3), (10, 6), (25, 15)])
def test_rennala_steps_as_soon_as_b_gradients_can_be_there(batch, seconds):
    """Times 1, 2, 5, 9: t(B) = min{t: sum floor(t/h_i) >= B} = 1, 3, 6, 15, again and again, within the published bounds."""
    times = (1, 2, 5, 9)
    strategy = build("rennala", {"batch": batch, "stop_unfinished": True})
    assert publishes(strategy, times, stops=StopRules(max_versions=5)) == [seconds * k for k in range(1, 6)]
    rates = [sum(1 / h for h in times[:m]) for m in range(1, 5)]
    assert batch / rates[-1] <= seconds <= min((batch + m) / rate for m, rate in enumerate(rates, start=1))


@pytest.mark.parametrize("threshold", [1, 3, 8])
def test_ringmaster_applies_r_updates_in_bounded_time(threshold):
    """Any R updates applied one after another take at most 2 min_m (m + R) / S_m; with a worker that never ends, too."""
    times = (1, 2, 5, 1000)
    rates = [sum(1 / h for h in times[:m]) for m in range(1, 5)]
    bound = 2 * min((m + threshold) / rate for m, rate in enumerate(rates, start=1))
    for stop in (False, True):
        strategy = build("ringmaster", {"delay_threshold": threshold, "stop": stop})
        at = [0.0, *publishes(strategy, times, stops=StopRules(max_versions=60))]
        assert all(later - earlier <= bound for earlier, later in zip(at, at[threshold:], strict=False))


def test_asynchronous_sgd_counts_what_everybody_can_do():
    """Times 2 and 3: sum floor(t / h_i) = 10 updates within 12 s; minibatches of two take 3 s each."""
    played = play(ScriptedTrips([2, 3]), strategy=ASGD, concurrency=2, stops=StopRules(max_ticks=12 * S))
    assert played.engine.model.version == 10
    assert publishes(FedAvg(clients_per_round=2), (2, 3), stops=StopRules(max_versions=4)) == [3, 6, 9, 12]


# ---- quadratics (ALGORITHMS 4.5)

EQUAL = """
[data]
name = "quadratic"
curvature = 1.0
optimum = 0.0
examples_per_client = 1
[clients]
count = {clients}
seconds_per_step = 1.0
[model]
name = "scalar"
start = 1.0
[training]
steps = 1
lr = {rate!r}
[strategy]
name = "asyncsgd"
[run]
concurrency = {clients}
max_updates = {updates}
selection = "round_robin"
"""


@pytest.mark.parametrize("clients", [1, 2, 3, 5, 10])
def test_the_stability_bound_of_large_delays(tmp_path, clients):
    """Constant delay c - 1: 0.95 times the bound 2 sin(pi / (2 (2 tau + 1))) converges, 1.05 times it blows up."""
    bound = 2 * math.sin(math.pi / (2 * (2 * (clients - 1) + 1)))
    ends = []
    for factor in (0.95, 1.05):
        text = EQUAL.format(clients=clients, rate=factor * bound, updates=250 * clients)
        world = wired(load(scenarios.write(tmp_path, text))).world
        sink = MemorySink()
        engine = Engine(world, EventLog(sink))
        engine.run()
        ends.append(abs(engine.model.params))
        tau = [row[5] for row in sink.tuples() if row[1] == "arrive"]
        assert tau[: clients + 3] == [min(k, clients - 1) for k in range(clients + 3)]
    assert ends[0] < 1e-3
    assert ends[1] > 1e3


def test_feature_learning_by_hand(tmp_path):
    """Rows (ln 2, 0) and (-ln 3, ln 3) have the shares 2/3, 1/3, 1/2, 1/2; what is behind the layer stays; a scenario names its network's layer."""
    weights, two, three = [math.log(2), 0.0, -math.log(3), math.log(3), 7.0], math.log(2), math.log(3)
    for make in (np.array, lambda row: torch.tensor(row, dtype=torch.float64)):
        assert algebra.salient(make(weights), 2, 2).tolist() == pytest.approx(
            [2 / 3 * two, 0, -three / 2, three / 2, 7.0]
        )
        assert algebra.salient(make([1000.0, 0.0]), 1, 2).tolist() == [1000.0, 0.0]
    assert (algebra.salient(3.0, 1, 1), algebra.salient(algebra.Null, 2, 2)) == (3.0, algebra.Null)
    for name, layer in sizes.FIRST_LAYERS.items():
        shape = next(models_of.BUILT_IN[name]((1, 28, 28), 10).parameters()).shape
        assert layer((1, 28, 28), 10) == (shape[0], math.prod(shape[1:]))
    text = scenarios.BLOBS.replace('"fedasync"', '"asofed"').replace("max_updates = 30", "max_updates = 1")
    plain, learned = (
        scenarios.in_memory(load(scenarios.write(tmp_path, text), more)).engine.model.params
        for more in ([], ["strategy.feature_learning=true"])
    )
    assert torch.equal(learned, algebra.salient(plain, 16, 8))
    assert not torch.equal(learned, plain)
    with pytest.raises(RefusedError, match="needs first_layer"):
        Playground(build("asofed", {"feature_learning": True}), 1.0)
    with pytest.raises(ScenarioError, match='does not go with model "scalar"'):
        load(scenarios.write(tmp_path, scenarios.QUADRATIC), ["strategy={name='asofed',feature_learning=true}"])


def opposite(name: str, rate: float, updates: int, fast: int = 4, **options) -> float:
    """Where a method ends for minima at 1 and -1, the first client ``fast`` times as often: the mean over its last rounds."""
    found = models(
        build(name, options), learn=lambda job: job.params - rate * (job.params - (1.0, -1.0)[job.client]),
        trips=ScriptedTrips([1, fast]), concurrency=2, stops=StopRules(max_updates=updates), start=0.3,
    )  # fmt: skip
    window = found[-20 * (fast + 1) :]
    return sum(window) / len(window)


@pytest.mark.parametrize("fast", [2, 4, 9])
def test_asynchronous_sgd_prefers_those_who_are_fast(fast):
    """The stationary mean is the optimum weighted by frequency, (r - 1) / (r + 1), not 0."""
    assert opposite("asyncsgd", 0.004, 4000, fast) == pytest.approx((fast - 1) / (fast + 1), abs=0.01)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("area", {}), ("area", {"buffer_size": 3}), ("ca2fl", {"buffer_size": 2}), ("mifa", {"buffer_size": 2}),
        ("fedvarp", {"buffer_size": 2}), ("malenia", {"gradients": 3}), ("ringleader", {}), ("asofed", {}),
    ],
)  # fmt: skip
def test_methods_that_hear_everybody_alike_end_in_the_middle(name, options):
    """Where every client counts the same, however often it comes, minima at 1 and -1 are answered with 0."""
    assert abs(opposite(name, 0.05, 6000, **options)) < 1e-9
