"""More identities between methods on random worlds: rounds, one job at a time, permuted clients; with those of test_asynchronous.py the whole list."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from test_asynchronous import PLACES, RATE, a_world, close, models, path, step
from worlds import S, ScriptedTrips, play

from desim_fl.selection import RoundRobin
from desim_fl.strategies import FedAsync, FedAvg, FedBuff, build
from desim_fl.strategies.asyncsgd import AsyncSGD
from desim_fl.strategies.fedprox import FedProx
from desim_fl.world import Evaluations, StopRules

SEEDS = range(6)


def a_round_world(seed: int, *, equal: bool = True) -> tuple[int, dict]:
    """A cohort's size and a world without losses in which rounds of that size fit."""
    chance = random.Random(seed)
    clients = chance.randint(2, 6)
    return chance.randint(1, clients), {
        "trips": ScriptedTrips([[chance.choice([1, 2, 3, 0.5, 7]) for _ in range(5)] for _ in range(clients)]),
        "sizes": [1 if equal else chance.randint(1, 9) for _ in range(clients)],
        "select": "round_robin",
        "start": 5.0,
        "stops": StopRules(max_versions=8),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_identity_1_a_weight_of_0_and_momentum_of_0_are_fedavg(seed):
    """FedProx with mu = 0 bit for bit, FedAvgM with beta = 0 and rate 1 and SGD at the server to 12 digits, losses included; CASES LT-01."""
    chance = random.Random(seed)
    world = {
        **a_world(seed),
        "select": "round_robin",
        "sizes": None,
        "stops": StopRules(max_versions=8, max_updates=60),
    }
    cohort = chance.randint(1, len(world["trips"].compute))
    plain = path(FedAvg(cohort), **world)
    assert len(plain) > 4
    assert path(FedProx(cohort, mu=0.0), **world) == plain
    moved = path(build("fedavgm", {"clients_per_round": cohort, "beta": 0.0}), **world)
    assert [ticks for ticks, _ in moved] == [ticks for ticks, _ in plain]
    assert close([model for _, model in moved], [model for _, model in plain])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["fedbuff", "semi_async", "fedstale", "port"])
def test_identity_2_a_buffer_of_everybody_out_is_a_round(name, seed):
    """K = c, places refilled after aggregation, weight 1: FedAvg with c clients a round, at the same instants."""
    cohort, world = a_round_world(seed, equal=name in {"fedbuff", "fedstale"})
    options = {
        "fedbuff": {"buffer_size": cohort, "staleness": "constant"},
        "semi_async": {"clients_per_version": cohort, "staleness": "polynomial"},
        "fedstale": {"buffer_size": cohort, "beta": 0.0},
        "port": {"min_clients": cohort, "beta": 0.0},
    }[name]
    buffered = path(build(name, options), dispatch="after_aggregation", concurrency=cohort, **world)
    rounds = path(FedAvg(cohort), concurrency=cohort, **world)
    assert [ticks for ticks, _ in buffered] == [ticks for ticks, _ in rounds]
    assert close([model for _, model in buffered], [model for _, model in rounds])


@pytest.mark.parametrize("seed", SEEDS)
def test_identity_3_the_two_mixings_agree_with_one_job_at_a_time(seed):
    """Nothing is stale: x + a (x_i - x) is (1 - a) x + a x_i; with more jobs in flight it is not."""
    world = {**a_world(seed), "concurrency": 1}
    one, other = (models(FedAsync(alpha=0.7, mixing=mixing), **world) for mixing in ("model", "delta"))
    assert close(one, other)
    assert len(one) > 3
    fixed = {"trips": ScriptedTrips([1, 2.5]), "concurrency": 2, "start": 5.0, "stops": StopRules(max_updates=6)}
    assert models(FedAsync(mixing="model"), **fixed) != models(FedAsync(mixing="delta"), **fixed)


SEQUENTIAL = [
    FedAsync(alpha=1.0), FedAsync(alpha=1.0, mixing="delta"), FedBuff(buffer_size=1), FedAvg(1), build("rennala", {"batch": 1}),
    build("asyncsgd", {"delay_rule": "koloskova"}), build("asyncsgd", {"workers": "sampled", "delay_rule": "mishchenko"}),
    build("ringmaster", {"delay_threshold": 1, "stop": True}), build("fedfa", {"queue_size": 1}),
    build("semi_async", {"clients_per_version": 1}), build("fedstale", {"buffer_size": 1, "beta": 0.0}),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strategy", SEQUENTIAL, ids=repr)
def test_identity_4_one_job_at_a_time_is_sequential_training(strategy, seed):
    """Each client that arrives goes on from where the last one ended, whoever was lost in between."""
    played = play(
        strategy=strategy, learn=step, evaluations=Evaluations(every_versions=1), **{**a_world(seed), "concurrency": 1}
    )
    x, expected = 5.0, [5.0]
    for _, client, staleness in played.arrivals():
        assert staleness == 0
        x -= RATE * (x - PLACES[client])
        expected.append(x)
    assert [each.scores[0].loss for each in played.evaluations] == pytest.approx(expected, rel=1e-12)
    assert len(expected) > 10


@pytest.mark.parametrize("seed", SEEDS)
def test_identity_6_rennala_alone_is_minibatches_and_ca2fl_begins_as_fedbuff(seed):
    """One worker, any batch and any noise: the mean of B gradients at one model; CA2FL's first version is FedBuff's."""
    chance = random.Random(seed)
    batch, noise = chance.randint(1, 5), [chance.uniform(-1, 1) for _ in range(40)]
    found = models(
        build("rennala", {"batch": batch, "stop_unfinished": chance.random() < 0.5}), trips=ScriptedTrips([1]), concurrency=1,
        learn=lambda job: job.params - RATE * (job.params - noise[job.nth]), stops=StopRules(max_updates=5 * batch),
    )  # fmt: skip
    x, expected = 0.0, [0.0]
    for number in range(5):
        x -= RATE * sum(x - each for each in noise[number * batch : (number + 1) * batch]) / batch
        expected.append(x)
    assert close(found, expected)
    world = a_world(seed)
    one, other = (
        models(rule, **world)
        for rule in (build("ca2fl", {"buffer_size": 2}), FedBuff(buffer_size=2, staleness="constant"))
    )
    assert one[:2] == other[:2]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["fedadam", "fadas"])
def test_identity_7_without_memory_an_adaptive_server_moves_by_its_rate(name, seed):
    """b1 = b2 = 0 and a tiny eps: each step is eta times the sign of Delta; FADAS's first one only, whose vhat never falls."""
    cohort, world = a_round_world(seed)
    size = {"buffer_size": cohort} if name == "fadas" else {"clients_per_round": cohort}
    strategy = build(name, {**size, "server_lr": 0.25, "beta1": 0.0, "beta2": 0.0, "eps": 1e-13})
    found = models(strategy, concurrency=cohort, dispatch="after_aggregation", **world)
    steps = [abs(after - before) for before, after in pairwise(found)]
    assert len(steps) == 8
    assert steps[: 1 if name == "fadas" else 8] == pytest.approx([0.25] * (1 if name == "fadas" else 8), abs=1e-9)


def test_the_two_delay_rules_differ_beyond_their_threshold():
    """M = 40: at tau = 40 both are whole; at 41 Mishchenko leaves 40/41 = 0.976, Koloskova 1/41 = 0.0244, or nothing."""
    rules = [
        AsyncSGD(delay_rule="mishchenko"),
        AsyncSGD(delay_rule="koloskova"),
        AsyncSGD(delay_rule="koloskova", beyond="drop"),
    ]
    assert [rule.factor(40, 40) for rule in rules] == [rule.factor(0, 40) for rule in rules] == [1.0, 1.0, 1.0]
    assert [rule.factor(41, 40) for rule in rules] == [40 / 41, 1 / 41, 0.0]


# ---- identity 10: clients that change numbers together with speed, data and place in the order

ORDER = (2, 0, 3, 1)
PERMUTED = {
    "malenia": {"gradients": 5}, "ringleader": {}, "quafl": {"contacted": 4, "interval_s": 1.5},
    "favas": {"contacted": 4, "interval_s": 1.5}, "fedavgm": {"clients_per_round": 2}, "fedadam": {"clients_per_round": 2},
    "fedyogi": {"clients_per_round": 3}, "fedadagrad": {"clients_per_round": 2, "over_selection": 1.5},
    "fedat": {"clients_per_round": 1, "tiers": 2}, "tifl": {"clients_per_round": 2, "tiers": 2, "seed": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", PERMUTED)
def test_identity_10_permuted_clients_leave_the_trajectory(name):
    """Every version at the same instant, to 12 digits (sums may come in another order); contacts of all, tiers by speed."""
    compute, places = (1.0, 1.7, 3.1, 0.93), PLACES[:4]
    speed, strategy = sorted(range(4), key=compute.__getitem__), build(name, PERMUTED[name])
    world = {"concurrency": 3, "start": 5.0, "stops": StopRules(max_versions=12, max_ticks=200 * S)}

    def tiers(renamed):
        return {
            f"tier {tier}": tuple(sorted(renamed[client] for client in speed[2 * tier : 2 * tier + 2]))
            for tier in range(2)
        }

    same = (0, 1, 2, 3)
    found = path(strategy, trips=ScriptedTrips(compute), select=RoundRobin(same), groups=tiers(same), **world)
    back = [ORDER.index(client) for client in range(4)]
    moved = path(
        strategy, lambda job: step(job, places=[places[client] for client in ORDER]),
        trips=ScriptedTrips([compute[client] for client in ORDER]), select=RoundRobin(ORDER), groups=tiers(back), **world,
    )  # fmt: skip
    assert [ticks for ticks, _ in found] == [ticks for ticks, _ in moved]
    assert close([model for _, model in found], [model for _, model in moved])
    assert len(found) > 10
