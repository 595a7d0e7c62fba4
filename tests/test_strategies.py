"""Server strategies on plain floats, against numbers worked out by hand."""

import dataclasses
import math
import pickle
from itertools import pairwise

import numpy as np
import pytest

from desim_fl.core import Reply, Strategy
from desim_fl.errors import RefusedError, ScenarioError
from desim_fl.strategies import TABLE, FedAsync, FedAvg, FedBuff, build
from desim_fl.strategies.delay_aware import drawn_delay_lr, weigh_by_staleness
from desim_fl.strategies.staleness import Constant, Hinge, InverseLinear, Polynomial, Product, named
from desim_fl.testing import Playground


def two_of_staleness_0_and_3(strategy):
    """Play until job 0 is back with staleness 3 and a fresh job with 0, both with delta 1; return the last reply."""
    ground = Playground(strategy, 0.0, concurrency=2)
    for _ in range(6):  # three full buffers of deltas 0 move the version to 3 and leave the model at 0
        job = max(ground.jobs)
        ground.arrive(job, ground.jobs[job].params)
    assert (ground.version, ground.params) == (3, 0.0)
    ground.arrive(max(ground.jobs), 1.0)
    return ground.arrive(0, 1.0)


@pytest.mark.parametrize(("normalize", "expected"), [("K", 0.75), ("sum_w", 1.0), ("none", 1.5)])
def test_as_03_fedbuff_normalisations(normalize, expected):
    """Weights 1 and (3 + 1)^-0.5 = 0.5 on deltas 1: (1 + 0.5) / 2, or / 1.5, or / 1."""
    reply = two_of_staleness_0_and_3(FedBuff(buffer_size=2, normalize=normalize))
    assert reply.params == pytest.approx(expected, abs=1e-15)
    assert reply.weight == 0.5
    assert reply.scale == pytest.approx(expected / 1.5)
    assert [share for _, share in reply.shares] == pytest.approx([2 / 3, 1 / 3])  # 1 and 0.5 of 1.5


def test_as_03_the_default_is_the_paper_s_division_by_k():
    """Nothing said about normalisation means the number of updates, as in the paper."""
    assert FedBuff().normalize == "K"
    assert FedBuff().buffer_size == 10


@pytest.mark.parametrize(
    "strategy",
    [
        FedAvg(clients_per_round=2),
        FedBuff(buffer_size=2),
        FedBuff(buffer_size=2, normalize="sum_w"),
        FedAsync(alpha=1.0, mixing="model"),
        FedAsync(alpha=1.0, mixing="delta"),
    ],
    ids=repr,
)
def test_as_04_a_delta_is_added_and_a_model_is_mixed(strategy):
    """Scalar model 5, every fresh delta +0.1: after one aggregation 5.1, never 0.1."""
    ground = Playground(strategy, 5.0, concurrency=2)
    for job in (0, 1):
        if ground.version == 0:
            ground.arrive(job, 5.1)
    assert ground.version == 1
    assert ground.params == pytest.approx(5.1, abs=1e-12)


def test_as_04_a_payload_that_does_not_exist_is_refused_at_start():
    """A mixing nobody knows is an error before anything runs, and names the nearest one."""
    with pytest.raises(ScenarioError, match=r"did you mean .delta"):
        FedAsync(mixing="deltas")


@pytest.mark.parametrize(
    ("options", "tau", "expected"),
    [
        ({"staleness": "constant"}, 0, 0.6),
        ({"staleness": "constant"}, 1000, 0.6),
        ({}, 0, 0.6),  # polynomial, power 0.5: 1^-0.5 = 1
        ({}, 3, 0.3),  # 4^-0.5 = 1/2
        ({}, 99, 0.06),  # 100^-0.5 = 1/10
        ({"staleness": "hinge"}, 4, 0.6),  # a = 10, b = 4: up to b nothing happens
        ({"staleness": "hinge"}, 5, 0.6 / 11),  # 1 / (10 * 1 + 1)
        ({"staleness": "hinge"}, 14, 0.6 / 101),  # 1 / (10 * 10 + 1)
        ({"staleness_offset": 1}, 0, 0.6 * 2**-0.5),  # the paper's counting: a fresh update has 2^-a
        ({"staleness": "hinge", "staleness_offset": 1}, 4, 0.6 / 11),
    ],
)
def test_as_06_fedasync_mixing_weights(options, tau, expected):
    """Mixing 0.6 times s(tau), at the edges of each formula."""
    strategy = FedAsync(**options)
    assert strategy.alpha * strategy.weigh(tau) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "weigh", [Constant(), Polynomial(), Polynomial(2.0, 1), Hinge(), InverseLinear(0.05)], ids=repr
)
def test_as_06_weights_stay_positive_and_never_grow(weigh):
    """Up to a staleness of a thousand million every weight is in (0, 1], finite and non-increasing."""
    weights = [weigh(tau) for tau in [*range(200), 10**4, 10**6, 10**9]]
    assert all(0 < weight <= 1 and math.isfinite(weight) for weight in weights)
    assert all(later <= earlier for earlier, later in pairwise(weights))


@pytest.mark.parametrize("strategy", [FedAsync(), FedBuff(buffer_size=1), FedAvg(clients_per_round=1)], ids=repr)
def test_as_06_the_very_first_update_changes_the_model(strategy):
    """No counter that starts at 0 makes the first update weigh nothing."""
    ground = Playground(strategy, 0.0)
    ground.arrive(0, 1.0)
    assert ground.params > 0


def test_fedasync_is_recomputed_from_alpha_each_time():
    """A stale update does not shrink the weight of the next fresh one; CASES AS-06."""
    ground = Playground(FedAsync(), 0.0, concurrency=2)
    # Jobs 0 and 1 start; each arrival sends the next number out at once. Job 0 comes back three versions late.
    weights = [ground.arrive(job, 1.0).weight for job in (1, 2, 3, 0, 5)]
    assert weights == pytest.approx([0.6, 0.6, 0.6, 0.3, 0.6])


def test_fedasync_model_and_delta_mixing_differ_for_stale_updates_only():
    """From x = 1 with base 0 and local end 2: model 0.5 * 1 + 0.5 * 2 = 1.5, delta 1 + 0.5 * (2 - 0) = 2."""
    results = []
    for mixing in ("model", "delta"):
        ground = Playground(FedAsync(alpha=0.5, mixing=mixing, staleness="constant"), 0.0, concurrency=2)
        ground.arrive(1, 2.0)  # fresh: both give 1
        assert ground.params == 1.0
        ground.arrive(0, 2.0)
        results.append(ground.params)
    assert results == [1.5, 2.0]


def test_fedasync_at_mixing_one_is_exactly_the_client_s_model():
    """With alpha 1 and no staleness not even the last bit of the old model is left."""
    ground = Playground(FedAsync(alpha=1.0), 0.1)
    ground.arrive(0, 0.7 / 3)
    assert ground.params == 0.7 / 3


def test_fedasync_refuses_weights_outside_0_to_1():
    """A weight function that would make the model run away is an error, not a curve."""
    ground = Playground(FedAsync(staleness=lambda tau: 2.0 + tau), 0.0)
    with pytest.raises(ScenarioError, match=r"must lie in \[0, 1\]"):
        ground.arrive(0, 1.0)


def test_fedbuff_reports_each_weight_and_publishes_at_the_k_th():
    """Replies in between publish nothing; the weighted sum times the scale is what the model moved by."""
    ground = Playground(FedBuff(buffer_size=3, server_lr=0.5), 10.0, concurrency=3)
    replies = [ground.arrive(job, 10.0 + delta) for job, delta in ((0, 1.0), (1, 2.0), (2, 6.0))]
    assert [reply.params is None for reply in replies] == [True, True, False]
    moved = sum(reply.weight * delta for reply, delta in zip(replies, (1.0, 2.0, 6.0), strict=True)) * replies[-1].scale
    assert ground.params == pytest.approx(10.0 + moved) == pytest.approx(11.5)  # 0.5 * (1 + 2 + 6) / 3
    assert ground.state == FedBuff().start(ground)[0]  # empty again


def test_fedbuff_flushes_a_partial_buffer_only_when_asked_to():
    """Two of ten with deltas 1 and 3: at the stop x moves by their mean 2, or not at all by default."""
    for flush_at_end, expected in ((True, 2.0), (False, None)):
        strategy = FedBuff(flush_at_end=flush_at_end)
        ground = Playground(strategy, 0.0, concurrency=2)
        assert strategy.finish(ground.state, ground) == Reply()  # an empty buffer is never flushed
        ground.arrive(0, 1.0)
        ground.arrive(1, 3.0)
        assert strategy.finish(ground.state, ground).params == expected


def test_ag_05_fedbuff_divides_by_the_finite_members():
    """Deltas 1, 2, NaN, 4, 5 in a buffer of five: (1 + 2 + 4 + 5) / 4 = 3; the NaN keeps its place and weighs 0."""
    ground = Playground(FedBuff(buffer_size=5), 0.0, concurrency=5)
    deltas = (1.0, 2.0, math.nan, 4.0, 5.0)
    replies = [ground.arrive(job, delta, finite=math.isfinite(delta)) for job, delta in enumerate(deltas)]
    assert (ground.version, ground.params) == (1, 3.0)
    assert [reply.weight for reply in replies] == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert replies[-1].shares == ((0, 0.25), (1, 0.25), (3, 0.25), (4, 0.25))


def test_ag_05_fedasync_publishes_the_unchanged_model_for_a_non_finite_update():
    """The version advances, as the timeline requires, and the model is the same object."""
    start = np.array([-0.0, 1.5])
    ground = Playground(FedAsync(), start)
    reply = ground.arrive(0, start * math.nan, finite=False)
    assert reply == Reply(params=start, shares=(), weight=0.0, scale=1.0)
    assert ground.version == 1
    assert ground.params is start


@pytest.mark.parametrize("strategy", [FedBuff(buffer_size=2), FedAvg(clients_per_round=2)], ids=repr)
def test_ag_05_no_finite_member_still_makes_a_version(strategy):
    """All members non-finite: model unchanged, version advanced, no shares for buffers."""
    ground = Playground(strategy, 4.0, concurrency=2)
    ground.arrive(0, math.inf, finite=False)
    reply = ground.arrive(1, math.nan, finite=False)
    assert (ground.version, ground.params) == (1, 4.0)
    assert (reply.shares, reply.scale, reply.weight) == ((), 0.0, 0.0)


def test_a_weight_that_underflows_does_not_divide_by_zero():
    """A power so steep that every weight is 0 leaves the model where it is under sum_w, too; CASES AS-06."""
    ground = Playground(FedBuff(buffer_size=1, normalize="sum_w", staleness=lambda _: 0.0), 1.0)
    ground.arrive(0, 9.0)
    assert ground.params == 1.0


# ---- identities between strategies (ALGORITHMS 2.19)


def descend(base, client):
    """Local training in miniature: a step of 0.3 on the quadratic around the client's number."""
    return base - 0.3 * (base - client)


def follow(strategy, *, concurrency, updates, clients=5, policy="immediate"):
    """Let the oldest job arrive, again and again, and return all models published."""
    ground = Playground(strategy, 1.0, clients=clients, concurrency=concurrency, policy=policy)
    path = []
    for _ in range(updates):
        job = ground.jobs[min(ground.jobs)]
        if ground.arrive(job.id, descend(job.params, job.client)).params is not None:
            path.append(ground.params)
    return path


def test_identity_2_fedbuff_with_k_equal_to_concurrency_is_fedavg():
    """K = c, refilled only after aggregation, weight 1, server_lr 1: FedAvg with c clients a round."""
    buffered = follow(
        FedBuff(buffer_size=3, staleness="constant"), concurrency=3, updates=30, policy="after_aggregation"
    )
    rounds = follow(FedAvg(clients_per_round=3), concurrency=3, updates=30)
    assert len(rounds) == 10
    assert buffered == pytest.approx(rounds, rel=1e-12)


def test_identity_3_fedbuff_of_one_is_fedasync_with_deltas():
    """K = 1, weight 1, server_lr a: FedAsync(constant, delta, alpha a), bit for bit, stale updates included."""
    buffered = follow(FedBuff(buffer_size=1, staleness="constant", server_lr=0.7), concurrency=4, updates=40)
    mixed = follow(FedAsync(alpha=0.7, mixing="delta", staleness="constant"), concurrency=4, updates=40)
    assert len(mixed) == 40
    assert buffered == mixed


def test_identity_3_model_mixing_agrees_where_nothing_is_stale():
    """With one job in flight the two mixings are the same method."""
    model = follow(FedAsync(alpha=0.7, mixing="model"), concurrency=1, updates=40)
    delta = follow(FedAsync(alpha=0.7, mixing="delta"), concurrency=1, updates=40)
    assert model == pytest.approx(delta, rel=1e-12)


@pytest.mark.parametrize(
    "strategy",
    [FedAsync(alpha=1.0), FedAsync(alpha=1.0, mixing="delta"), FedBuff(buffer_size=1), FedAvg(clients_per_round=1)],
    ids=repr,
)
def test_identity_4_one_job_in_flight_is_sequential_training(strategy):
    """Concurrency 1 and weight 1 for fresh updates: each job simply goes on from the last one's result."""
    path, model = [], 1.0
    for _ in range(20):
        model = descend(model, 0)  # the lowest-numbered free client is always client 0
        path.append(model)
    assert follow(strategy, concurrency=1, updates=20) == pytest.approx(path, rel=1e-12)


# ---- delay-aware rule


def test_delay_aware_rule_a_lowers_the_rate_by_the_drawn_wait():
    """0.1 / (1 + 0.5 * 2 s) = 0.05; without a wait the rate is gamma_0; the published defaults give 1/1.02."""
    assert drawn_delay_lr(0.1, 0.5, 2.0) == 0.05
    assert drawn_delay_lr(0.1, 0.5, 0.0) == 0.1
    assert drawn_delay_lr(1e-3, 0.01, 2.0) == pytest.approx(1e-3 / 1.02)


def test_delay_aware_rule_b_replaces_the_strategy_s_own_weight():
    """At tau = 3 and alpha_lr = 1: 1/4 instead of the polynomial's 1/2; combined, 1/8."""
    own = FedBuff()
    assert own.weigh(3) == 0.5
    assert weigh_by_staleness(own, 1.0).weigh(3) == 0.25
    assert weigh_by_staleness(own, 1.0, combine=True).weigh(3) == 0.125
    assert own.weigh(3) == 0.5  # the one it was made from is as it was


def test_delay_aware_rule_b_as_published_is_fedasync_with_deltas_and_alpha_one():
    """``x += delta / (1 + alpha_lr * tau)``: job 0 with delta 2 at staleness 1 and alpha_lr 1 moves x by 1."""
    ground = Playground(weigh_by_staleness(FedAsync(alpha=1.0, mixing="delta"), 1.0), 0.0, concurrency=2)
    ground.arrive(1, 5.0)
    assert ground.params == 5.0
    ground.arrive(0, 2.0)
    assert ground.params == 6.0


def test_delay_aware_rule_b_leaves_synchronous_rounds_and_refuses_the_weightless():
    """FedAvg has nothing stale; a strategy without a weight says what to do instead."""
    rounds = FedAvg()
    assert weigh_by_staleness(rounds, 0.5) is rounds

    class Bare:
        """A strategy without a staleness weight."""

    with pytest.raises(RefusedError, match=r"Bare has none; use meaning = .drawn"):
        weigh_by_staleness(Bare(), 0.5)  # pyright: ignore[reportArgumentType]


# ---- building


def test_strategies_by_name():
    """The table's names make the classes, with their options; each is a Strategy."""
    assert {type(build(name, {})) for name in ("fedasync", "fedbuff", "fedavg")} == {FedAsync, FedBuff, FedAvg}
    assert build("fedbuff", {"buffer_size": 4, "max_staleness": 7}) == FedBuff(buffer_size=4, max_staleness=7)
    assert all(isinstance(build(name, {}), Strategy) for name in TABLE)


def test_a_strategy_of_one_s_own_by_module_and_name():
    """Anybody's class is found by import path and gets its options as arguments."""
    built = build("desim_fl.strategies.fedavg:FedAvg", {"clients_per_round": 2})
    assert built == FedAvg(clients_per_round=2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fedbuf", {}, 'did you mean "fedbuff"'),
        ("fedbuff", {"bufer_size": 3}, "its options are buffer_size, server_lr"),
        ("fedbuff", {"buffer_size": 0}, "buffer_size must be at least 1"),
        ("fedbuff", {"buffer_size": "ten"}, "buffer_size"),
        ("fedasync", {"alpha": 0.0}, r"must lie in \(0, 1\]"),
        ("fedasync", {"alpha": math.nan}, r"must lie in \(0, 1\]"),
        ("fedasync", {"staleness": "hinges"}, 'did you mean "hinge"'),
        ("fedasync", {"staleness_power": -1.0}, "at least 0"),
        ("fedasync", {"staleness_offset": 2}, "is 0 or 1"),
        ("fedavg", {"over_selection": 0.9}, "over_selection must be at least 1"),
        ("no_such_package.mod:Strategy", {}, "cannot import 'no_such_package.mod'"),
        ("desim_fl.strategies.fedavg:FedAvgg", {}, "has no 'FedAvgg'; it has .*FedAvg"),
        ("desim_fl.strategies.fedavg:Round", {}, "makes a Round that lacks reads_outcomes"),
        ("math:pi", {}, "not something that makes a strategy"),
        (":FedAvg", {}, "cannot import ''"),
    ],
)
def test_a_strategy_that_cannot_be_built_says_the_way_out(name, options, message):
    """Wrong names, options and values are scenario errors, not tracebacks."""
    with pytest.raises(ScenarioError, match=message):
        build(name, options)


def test_staleness_functions_print_compare_and_pickle():
    """They are plain values."""
    weigh = Product(Polynomial(0.5, 1), InverseLinear(0.1))
    assert repr(weigh) == "Product(left=Polynomial(power=0.5, offset=1), right=InverseLinear(alpha_lr=0.1))"
    assert pickle.loads(pickle.dumps(weigh)) == weigh  # noqa: S301
    assert named(weigh) is weigh
    assert dataclasses.replace(FedBuff(), staleness=weigh).weigh is weigh
