"""Methods of rounds, tiers and caches on plain floats, against numbers worked out by hand from the papers' formulas."""

from __future__ import annotations

import math

import pytest
from worlds import ScriptedTrips, play

from desim_fl.buffers import Buffers
from desim_fl.core import Job, Work
from desim_fl.errors import RefusedError, ScenarioError
from desim_fl.learning.descent import Descent
from desim_fl.learning.quadratic import QuadraticTask
from desim_fl.strategies import FedAvg, build
from desim_fl.strategies.fednova import FedNova
from desim_fl.strategies.fedprox import FedProx
from desim_fl.strategies.optimized import Optimized
from desim_fl.strategies.safa import Safa
from desim_fl.strategies.scaffold import Scaffold
from desim_fl.strategies.semi_async import SemiAsync
from desim_fl.strategies.synchronous import SYNCHRONOUS
from desim_fl.strategies.tiers import FedAT
from desim_fl.strategies.tifl import Prospects, TiFL, reviewed
from desim_fl.testing import Playground
from desim_fl.world import StopRules


def descend(base: float, client: int) -> float:
    """Local training in miniature: a step of 0.3 on the quadratic around the client's number."""
    return base - 0.3 * (base - client)


def follow(strategy, *, updates: int, clients: int = 5, concurrency: int = 3, policy: str = "immediate") -> list[float]:
    """Let the oldest job arrive, again and again, and return all models published."""
    ground = Playground(strategy, 1.0, clients=clients, concurrency=concurrency, policy=policy)
    path = []
    for _ in range(updates):
        job = ground.jobs[min(ground.jobs)]
        reply = ground.arrive(job.id, descend(job.params, job.client), examples=1 + job.client, steps=2)
        if reply.params is not None:
            path.append(ground.params)
    return path


# ---- FedProx and partial work


def test_identity_1_fedprox_is_fedavg_at_the_server():
    """The proximal term acts at the client: bit for bit FedAvg's models, whatever mu is."""
    assert (
        follow(FedProx(3, mu=0.0), updates=30)
        == follow(FedAvg(3), updates=30)
        == follow(FedProx(3, mu=9.0), updates=30)
    )


def partial(ground: Playground, number: int) -> None:
    """Make a job in flight one of partial work."""
    ground.jobs[number] = ground.jobs[number]._replace(work=Work(1, 1, 0.1, partial=True))


@pytest.mark.parametrize(("rule", "expected"), [("keep", 2.0), ("drop", 1.5)])
def test_partial_work_counts_or_is_dropped(rule, expected):
    """Models 1, 3 and 2, the second one partial: the mean is 2, or without it 1.5, and the round ends with two reports."""
    ground = Playground(FedAvg(3, partial_work=rule), 0.0, concurrency=3)
    partial(ground, 1)
    replies = [ground.arrive(job, model) for job, model in ((0, 1.0), (1, 3.0), (2, 2.0))]
    assert ground.params == expected
    assert replies[1].reject == ("partial work" if rule == "drop" else None)


def test_a_round_of_partial_work_alone_is_abandoned_where_it_is_dropped():
    """Nobody else is left: no version, and the next cohort leaves."""
    ground = Playground(FedAvg(2, partial_work="drop"), 0.0, concurrency=2)
    for number in (0, 1):
        partial(ground, number)
    ground.arrive(0, 5.0)
    reply = ground.arrive(1, 5.0)
    assert (reply.abandon, reply.reject, reply.params, len(reply.sends)) == (True, "partial work", None, 1)


def test_a_last_partial_report_still_ends_the_round():
    """It is turned away, and the two that counted make the version: (1 + 2) / 2."""
    ground = Playground(FedAvg(3, partial_work="drop"), 0.0, concurrency=3)
    partial(ground, 2)
    ground.arrive(0, 1.0)
    ground.arrive(1, 2.0)
    reply = ground.arrive(2, 9.0)
    assert (reply.reject, reply.params) == ("partial work", 1.5)
    assert [job for job, _ in reply.shares] == [0, 1]


def test_uniform_weights_count_every_client_once():
    """Models 1 and 4 of 1 and 9 examples: 3.7 by examples, 2.5 by clients."""
    for weights, expected in (("examples", 3.7), ("uniform", 2.5)):
        ground = Playground(FedAvg(2, weights=weights), 0.0, concurrency=2)
        ground.arrive(0, 1.0, examples=1)
        ground.arrive(1, 4.0, examples=9)
        assert ground.params == pytest.approx(expected)


# ---- optimisers by name


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # Deltas 1 and 3 of 1 and 1 examples: D = 2 from x = 5. Adam: .1 * (.2 / (.2 + .001)).
        ("fedavgm", {"beta": 0.5}, 7.0),
        ("fedadagrad", {}, 5.0 + 0.1 * 2.0 / 2.001),  # beta1 = 0
        ("fedadam", {}, 5.0 + 0.1 * 0.2 / 0.201),
        ("fedadam", {"bias_correction": True}, 5.0 + 0.1 * 2.0 / 2.001),
        ("fedyogi", {}, 5.0 + 0.1 * 0.2 / 0.201),
        ("fedyogi", {"server_lr": 1.0, "initial_v": 1.0}, 5.0 + 0.2 / (math.sqrt(1.04) + 1e-3)),
    ],
)
def test_optimisers_by_name(name, options, expected):
    """Each preset is FedAvg's round under that optimiser, and its first step is the one on paper."""
    method = build(name, {"clients_per_round": 2, **options})
    assert isinstance(method, Optimized)
    assert method.inner == FedAvg(2)
    ground = Playground(method, 5.0, concurrency=2)
    ground.arrive(0, 6.0)
    ground.arrive(1, 8.0)
    assert ground.params == pytest.approx(expected, rel=1e-12)


def test_presets_print_as_what_they_are():
    """The name is short for a combination, which the text spells out."""
    said = repr(build("fedyogi", {"clients_per_round": 4, "server_lr": 0.3}))
    assert "FedAvg(clients_per_round=4" in said
    assert "ServerOptimizer(name='yogi', lr=0.3, beta1=0.9, beta2=0.99, eps=0.001" in said
    with pytest.raises(ScenarioError, match="beta3"):
        build("fedyogi", {"beta3": 0.1})


# ---- FedNova


def nova(strategy, members, start=0.0):
    """One round of FedNova from ``(delta, examples, steps)``; the new model."""
    ground = Playground(strategy, start, concurrency=len(members))
    for job, (delta, examples, steps) in enumerate(members):
        ground.arrive(job, start + delta, examples=examples, steps=steps)
    return ground.params


def test_fednova_by_hand():
    """Deltas 2 of 1 step and 8 of 4 steps, p = 1/4 and 3/4: tau_eff = 13/4, mean of delta/tau = 2; x = 6.5, FedAvg 6.5.

    With deltas 2 and 4 instead: mean = 1/4 * 2 + 3/4 * 1 = 1.25, x = 4.0625, where FedAvg has 3.5.
    """
    assert nova(FedNova(2), [(2.0, 1, 1), (8.0, 3, 4)]) == pytest.approx(6.5)
    assert nova(FedNova(2), [(2.0, 1, 1), (4.0, 3, 4)]) == pytest.approx(4.0625)
    assert nova(FedNova(2, server_lr=0.5), [(2.0, 1, 1), (4.0, 3, 4)], 1.0) == pytest.approx(3.03125)


@pytest.mark.parametrize(
    ("options", "steps", "expected"),
    [
        ({}, 7, 7.0),
        # momentum .5, 3 steps: a = (1 + .5 + .25, 1 + .5, 1) = 4.25
        ({"momentum": 0.5}, 3, 4.25),
        ({"momentum": 0.5}, 1, 1.0),
        # lr .1, mu 2: a = (.8^2, .8, 1) = 2.44
        ({"mu": 2.0}, 3, 2.44),
        ({"mu": 2.0}, 1, 1.0),
    ],
)
def test_fednova_norms_by_hand(options, steps, expected):
    """The sum of the factors with which each step's gradient enters the change, written out."""
    assert FedNova(**options).norm(steps, 0.1) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rule", [{"momentum": 0.7}, {"proximal_mu": 1.5}])
def test_fednova_norms_are_those_of_real_local_steps(rule):
    """On a loss of constant slope the change is lr * slope * ||a||, in exact local training with that rule."""
    job = Job(0, 0, 0, 0, 0.0, None, Work(1, 6, 0.1))
    moved = Descent(1, **rule).outcome(job, 6, 6, lambda y, _: (0.0, -1.0)).params
    method = FedNova(momentum=rule.get("momentum", 0.0), mu=rule.get("proximal_mu", 0.0))
    assert moved == pytest.approx(0.1 * method.norm(6, 0.1), rel=1e-12)


def test_fednova_with_equal_steps_is_fedavg():
    """All clients do two steps: the models of FedAvg within rounding."""
    assert follow(FedNova(3), updates=30) == pytest.approx(follow(FedAvg(3), updates=30), rel=1e-12)


def test_fednova_members_that_do_not_count():
    """A non-finite member enters neither sum, one without a step has a norm of 0 and no direction: tau_eff is 1."""
    ground = Playground(FedNova(3), 0.0, concurrency=3)
    ground.arrive(0, 2.0, steps=2)
    ground.arrive(1, math.nan, finite=False, steps=9)
    ground.arrive(2, 0.0, steps=0)
    assert ground.params == pytest.approx((2 + 0) / 2 * (1 + 0) / 2)  # tau_eff 1, mean of 1 and 0


# ---- SCAFFOLD


def test_scaffold_by_hand():
    """Deltas 1 and 3, changes of variates -2 and 6, N = 10: x = 2 (uniform), c = 4 / 10, and c goes out next time."""
    ground = Playground(Scaffold(2), 0.0, clients=10, concurrency=2)
    assert [job.extra for job in ground.jobs.values()] == [{"control": 0.0}] * 2
    ground.arrive(0, 1.0, examples=1, extra={"control": -2.0})
    ground.arrive(1, 3.0, examples=9, extra={"control": 6.0})
    assert ground.params == 2.0
    assert [job.extra["control"] for job in ground.jobs.values()] == pytest.approx([0.4, 0.4])


def test_scaffold_hears_of_variates_that_come_late():
    """A report after its round has ended is rejected, but the client's renewed variate counts: c = (1 + 2) / 4."""
    ground = Playground(Scaffold(1, over_selection=2.0), 0.0, clients=4, concurrency=2)
    ground.arrive(0, 1.0, extra={"control": 1.0})
    assert ground.arrive(1, 9.0, extra={"control": 2.0}).reject == "late"
    assert ground.state.carried == pytest.approx(0.75)
    assert ground.params == 1.0


def test_scaffold_keeps_non_finite_members_out_of_c():
    """A non-finite update has weight 0 in the model and in c."""
    ground = Playground(Scaffold(2), 0.0, clients=2, concurrency=2)
    ground.arrive(0, math.nan, finite=False, extra={"control": 7.0})
    ground.arrive(1, 4.0, extra={"control": 1.0})
    assert (ground.params, ground.state.carried) == (4.0, 0.5)


def test_scaffold_needs_a_task_that_knows_variates():
    """Steps without a returned variate would silently be FedAvg: a named error; a job without steps is fine."""
    ground = Playground(Scaffold(1), 0.0)
    ground.arrive(0, 0.0)
    job = max(ground.jobs)
    ground.jobs[job] = ground.jobs[job]._replace(work=Work(1, 3, 0.1))
    with pytest.raises(RefusedError, match="no control variate"):
        ground.arrive(job, 1.0, steps=3)


def two_opposite_clients(strategy, executor_rule) -> float:
    """Where 200 rounds of two clients with optima 1 and -1, curvatures 1 and 4, end; 5 local steps of rate .05."""
    task = QuadraticTask(curvature=[1.0, 4.0], optimum=[1.0, -1.0], examples=[5, 5], batch_size=1, **executor_rule)
    played = play(
        ScriptedTrips([1, 2]), strategy=strategy, sizes=[5, 5], steps=5, concurrency=2, start=0.0,
        outcome=lambda job, steps, _: task.train(job, steps), stops=StopRules(max_versions=200),
    )  # fmt: skip
    return played.engine.model.params


def test_scaffold_removes_the_drift_that_fedavg_has():
    """The joint optimum of (x-1)^2/2 and 2(x+1)^2 is -3/5; FedAvg's fixed point is off, SCAFFOLD's is exact.

    FedAvg's: x = mean of 1 + q(x-1) and -1 + r(x+1) with q = .95^5, r = .8^5: x = (r - q) / (2 - q - r).
    """
    q, r = 0.95**5, 0.8**5
    assert two_opposite_clients(FedAvg(2), {}) == pytest.approx((r - q) / (2 - q - r), abs=1e-9)
    assert two_opposite_clients(Scaffold(2), {}) == pytest.approx(-0.6, abs=1e-9)


# ---- K of M


def test_semi_async_by_hand():
    """K = 2 of 3: models 2 (fresh, 1 example) and 5 (3 examples): (2 + 15) / 4; then the third, one version old."""
    ground = Playground(SemiAsync(2, staleness="polynomial", staleness_power=1.0), 0.0, concurrency=3,
                        policy="after_aggregation")  # fmt: skip
    ground.arrive(0, 2.0, examples=1)
    assert ground.arrive(1, 5.0, examples=3).params == 4.25
    assert ground.arrive(2, 1.0, examples=4).weight == 2.0  # 4 examples, 1 / (1 + 1)
    assert ground.arrive(3, 7.0, examples=2).params == pytest.approx((2 * 1 + 2 * 7) / 4)


def test_semi_async_by_deltas():
    """From 10 with deltas 1 and 3 of equal weight and rate .5: 10 + .5 * 2."""
    ground = Playground(SemiAsync(2, server_lr=0.5, mixing="delta"), 10.0, concurrency=2, policy="after_aggregation")
    ground.arrive(0, 11.0)
    ground.arrive(1, 13.0)
    assert ground.params == 11.0


def test_semi_async_with_k_equal_to_m_is_fedavg():
    """Nothing is stale then: bit for bit FedAvg's models."""
    path = follow(SemiAsync(3), updates=30, policy="after_aggregation")
    assert path == follow(FedAvg(3), updates=30)


def test_semi_async_weights_of_nothing():
    """Non-finite members keep their place; a version of such alone is the old model."""
    ground = Playground(SemiAsync(2), 3.0, concurrency=2, policy="after_aggregation")
    ground.arrive(0, math.nan, finite=False)
    reply = ground.arrive(1, math.inf, finite=False)
    assert (ground.version, ground.params, reply.shares, reply.scale) == (1, 3.0, (), 0.0)


# ---- tiers


def tiered(strategy, clients=4):
    """A playground whose even clients are tier 0 and odd ones tier 1."""
    groups = {"tier 0": tuple(range(0, clients, 2)), "tier 1": tuple(range(1, clients, 2))}
    return Playground(strategy, 0.0, clients=clients, concurrency=2, groups=groups)


def test_fedat_by_hand():
    """T = (1, 0), (2, 0), (2, 1): all weight on tier 1's x_0 until it reports; then 1/3 of tier 0's, 2/3 of tier 1's."""
    ground = tiered(FedAT(2, 1))
    assert {job.client for job in ground.jobs.values()} == {0, 1}
    for model in (6.0, 9.0):
        fast = next(number for number, job in ground.jobs.items() if job.client % 2 == 0)
        ground.arrive(fast, model)
        assert ground.params == 0.0  # the first updates of the fast tier are invisible, as published
    assert ground.version == 2
    slow = next(number for number, job in ground.jobs.items() if job.client % 2 == 1)
    reply = ground.arrive(slow, 3.0)
    assert ground.params == pytest.approx(1 / 3 * 9.0 + 2 / 3 * 3.0)
    assert reply.shares == ((slow, pytest.approx(2 / 3)),)


def test_fedat_uniform_until_every_tier_has_finished():
    """With ``uniform_at_first`` the fast tier's first model counts half, beside x_0."""
    ground = tiered(FedAT(2, 1, uniform_at_first=True))
    ground.arrive(0, 6.0)
    assert ground.params == 3.0
    ground.arrive(1, 4.0)  # T = (1, 1)
    assert ground.params == 5.0


def test_fedat_weights_after_one_update_a_tier():
    """All weights are above 0 and sum to 1; before any round they are equal."""
    for tiers in (1, 2, 5):
        method = FedAT(tiers)
        assert method.shares((1,) * tiers) == method.shares((0,) * tiers) == pytest.approx((1 / tiers,) * tiers)
    assert FedAT(3).shares((5, 3, 2)) == (0.2, 0.3, 0.5)


def test_buffers_of_a_slow_tier_outlast_the_versions_of_a_fast_one():
    """Client 2 reports at 1.5 s, its tier's round ends at 5 s, three versions of the other tier later: both members share alike; CASES AG-01.

    Shares of 1/4 and 3/4 within tier 0, 1/2 each within tier 1; tiers weigh 1/2 each until both have finished a round, then
    4/5 for tier 1 of rounds (4, 1), and 1/6 for tier 0 of rounds (5, 1).
    """
    taken = []

    def average(base, members):
        taken.append({buffers["of"]: share for share, buffers in members})
        return base

    play(
        ScriptedTrips([1, 1, 1.5, 5]), strategy=FedAT(2, 2, uniform_at_first=True), concurrency=4, sizes=[1, 3, 2, 2],
        groups={"tier 0": (0, 1), "tier 1": (2, 3)}, buffers={"of": -1}, average=average, stops=StopRules(max_versions=6),
        outcome=lambda job, steps, plain: plain._replace(buffers={"of": job.client}),
    )  # fmt: skip
    assert taken[:4] == [{0: 0.125, 1: 0.375}] * 4
    assert taken[4:] == [pytest.approx({2: 0.4, 3: 0.4}), pytest.approx({0: 1 / 24, 1: 3 / 24})]


def test_buffers_that_no_version_names_are_let_go():
    """With their client's next report, or where a version takes all since the last one: then those from before have no part; CASES AG-01."""

    class World:
        """Takes note of what it is to average."""

        def averaged(self, base, buffers, shares):
            return sorted(buffers)

    held, world = Buffers(), World()
    jobs = [Job(number, client, 0, 0, 0.0, None, Work()) for number, client in enumerate([7, 8, 7, 9])]
    held.bring(jobs[0], "a")
    held.bring(jobs[1], None)  # not finite
    assert held.averaged(world, "x", ()) == [0, 1]
    assert held.averaged(world, "x", ()) == [0]
    held.bring(jobs[2], "c")  # of the same client
    assert held.averaged(world, "x", None) == [2]
    assert held.averaged(world, "x", ()) == []
    held.bring(jobs[3], "d")
    assert held.averaged(world, "x", ((99, 1.0),)) == [3]
    assert held.averaged(world, "x", None) == []
    assert held.averaged(world, "x", ((3, 0.5),)) == [3]
    assert held.brought == ({}, {})


def test_fedat_tiers_start_from_the_newest_model_and_keep_their_own_rounds():
    """Tier 0 finishes twice while tier 1 trains; what tier 1 brings is two versions old, and its round is its first."""
    ground = tiered(FedAT(2, 2), clients=8)
    slow = [number for number, job in ground.jobs.items() if job.client % 2]
    for _ in range(2):
        for number in [number for number, job in ground.jobs.items() if not job.client % 2]:
            ground.arrive(number, 8.0)
    assert ground.version == 2
    assert {job.version for job in ground.jobs.values()} == {0, 2}
    for number in slow:
        ground.arrive(number, 2.0)
    assert ground.version == 3
    assert ground.params == pytest.approx(1 / 3 * 8.0 + 2 / 3 * 2.0)


def test_fedat_of_one_tier_is_fedavg():
    """With a single tier the weights are 1: bit for bit FedAvg."""
    ground = Playground(FedAT(1, 2), 1.0, clients=4, groups={"tier 0": (0, 1, 2, 3)})
    plain = Playground(FedAvg(2), 1.0, clients=4)
    for _ in range(12):
        job = min(ground.jobs)
        for one in (ground, plain):
            one.arrive(job, descend(one.jobs[job].params, one.jobs[job].client))
    assert ground.params == plain.params
    assert ground.version == plain.version == 6


def test_fedat_deadlines_belong_to_their_tier():
    """The alarm of tier 1's round ends that round alone."""
    ground = tiered(FedAT(2, 2, deadline_s=5.0), clients=8)
    ground.arrive(next(number for number, job in ground.jobs.items() if job.client % 2), 4.0)
    assert ground.alarm("deadline 1").params is not None
    assert ground.state.counts == (0, 1)
    assert ground.alarm("deadline 1").params is None  # that one is over
    assert ground.alarm("tea").params is None


def test_tifl_rounds_go_to_tiers_by_their_chances():
    """Chances 0, 1, 0 name tier 1 always; equal ones every tier about as often; the seed decides which."""
    assert {TiFL(tiers=3, chances=(0.0, 1.0, 0.0)).tier(number) for number in range(200)} == {1}
    drawn = [TiFL(tiers=4, seed=3).tier(number) for number in range(2000)]
    assert all(drawn.count(tier) == pytest.approx(500, abs=4 * 20) for tier in range(4))
    assert drawn != [TiFL(tiers=4, seed=4).tier(number) for number in range(2000)]
    skewed = [TiFL(tiers=2, chances=(0.9, 0.1)).tier(number) for number in range(2000)]
    assert skewed.count(1) == pytest.approx(200, abs=4 * 14)
    ground = tiered(TiFL(1, tiers=2, chances=(0.0, 1.0)))
    assert {job.client for job in ground.jobs.values()} == {1}


@pytest.mark.parametrize(
    ("tier", "losses", "before", "left", "chances"),
    [
        (0, (0.5, 0.9, 0.7), (0.5, 1.0, 1.0), None, (1 / 6, 3 / 6, 2 / 6)),  # no better than before: worst first, D = 6
        (0, (0.6, 0.9, 0.7), (0.5, 1.0, 1.0), (2, 0, 1), (1 / 3, 0.0, 2 / 3)),  # two with credits: D = 3
        (0, (0.5, None, 0.7), (0.5, None, None), None, (1 / 6, 3 / 6, 2 / 6)),  # what was never heard of is the worst
        (0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), None, (3 / 6, 2 / 6, 1 / 6)),  # equals: the faster first
        (0, (0.4, 0.9, 0.7), (0.5, 1.0, 1.0), None, (0.2, 0.3, 0.5)),  # it has become better
        (0, (0.5, 0.9, 0.7), (None, None, None), None, (0.2, 0.3, 0.5)),  # nothing to compare with
        (1, (0.5, None, 0.7), (0.5, None, None), None, (0.2, 0.3, 0.5)),  # nothing known of it
    ],
)
def test_tifl_reviews_its_chances_by_hand(tier, losses, before, left, chances):
    """Only if the running tier is no better than at the last review: n / D, ..., 1 / D from the worst to the best with credits."""
    after = reviewed(Prospects(tier, (0.2, 0.3, 0.5), left, losses, before))
    assert after == Prospects(tier, pytest.approx(chances), left, losses, losses)


def rounds_of(strategy, losses, rounds):
    """Play rounds of one client, whose losses are told by tier (a number, or a list by round); the tiers in order."""
    ground, found = tiered(strategy), []
    for number in range(rounds):
        (job,) = ground.jobs.values()
        tier = job.client % 2
        found.append(tier)
        loss = losses[tier][number] if isinstance(losses[tier], list) else losses[tier]
        ground.arrive(job.id, 1.0, examples=2, loss=loss)
    return found, ground


def test_tifl_adaptive_gives_the_worse_tier_two_thirds():
    """Losses stay 1 and 3: from the second review on the second tier has 2/3 of the rounds, before that one half (n = 400)."""
    found, ground = rounds_of(TiFL(1, tiers=2, adaptive=True, interval=100, seed=5), (1.0, 3.0), 600)
    assert ground.strategy.reads_outcomes
    assert abs(sum(found[:200]) - 100) < 4 * (200 / 4) ** 0.5
    assert abs(sum(found[200:]) - 400 * 2 / 3) < 4 * (400 * 2 / 9) ** 0.5
    assert ground.state.carried.chances == pytest.approx((1 / 3, 2 / 3))
    falling = [3.0 - number / 1000 for number in range(600)]
    _, better = rounds_of(TiFL(1, tiers=2, adaptive=True, interval=100, seed=5), (falling, falling), 600)
    assert better.state.carried.chances == (0.5, 0.5)  # whoever runs has become better each time


def test_tifl_looks_at_the_losses_before_every_nth_round():
    """With interval 3 the losses of the first three rounds are reviewed before round 3, and not again before round 6."""
    kept = [
        rounds_of(TiFL(1, tiers=2, adaptive=True, interval=3, seed=5), ([9, 8, 7, 6, 5, 4, 3],) * 2, rounds)[
            1
        ].state.carried
        for rounds in range(8)
    ]
    assert [state.reviewed == (None, None) for state in kept] == [True, True, True, False, False, False, False, False]
    assert kept[3].reviewed == kept[3].losses
    assert kept[5].reviewed == kept[3].reviewed != kept[5].losses
    assert kept[6].reviewed == kept[6].losses


def test_tifl_credits_bound_a_tier_until_none_is_left():
    """Three rounds for the fast tier and two for the slow one; a sixth is drawn as if there were no credits."""
    found, ground = rounds_of(TiFL(1, tiers=2, adaptive=True, credits=(3, 2), seed=1), (1.0, 1.0), 5)
    assert (found.count(0), found.count(1)) == (3, 2)
    assert ground.state.carried.credits == (0, 0)
    assert len(rounds_of(TiFL(1, tiers=2, adaptive=True, credits=(3, 2), seed=1), (1.0, 1.0), 40)[0]) == 40


def test_tifl_adaptive_hears_finite_losses_weighted_by_examples():
    """Losses 1 and 4 of 1 and 3 examples: 3.25; one that is not finite, and a report that is not, say nothing."""
    ground = Playground(TiFL(4, tiers=1, adaptive=True), 0.0, clients=4, concurrency=4, groups={"tier 0": (0, 1, 2, 3)})
    ground.arrive(0, 1.0, examples=1, loss=1.0)
    ground.arrive(1, 1.0, examples=3, loss=4.0)
    ground.arrive(2, 1.0, examples=9, loss=math.nan)
    ground.arrive(3, 1.0, examples=9, loss=9.0, finite=False)
    assert ground.state.carried.losses == (3.25,)


@pytest.mark.parametrize("chances", [(0.5, 0.6), (1.0,), (-0.5, 1.5)])
def test_tifl_chances_that_are_none_are_refused(chances):
    """Not one a tier, negative, or not adding up to 1."""
    with pytest.raises(ScenarioError, match="chances"):
        TiFL(tiers=2, chances=chances)


# ---- SAFA


def test_safa_by_hand():
    """Four clients of one example, quota 1, cache 0.

    Round 1: client 0 brings 4 and is picked: x = 4 / 4 = 1. Round 2: client 0 was picked last time, so its 8 waits;
    client 1 brings 5 (from x = 0): x = (4 + 5 + 0 + 0) / 4 = 2.25, and only then 8 enters the cache. Round 3: client 2
    brings 3: x = (8 + 5 + 3 + 0) / 4 = 4.
    """
    ground = Playground(Safa(0.25), 0.0, clients=4)
    assert len(ground.jobs) == 4
    assert ground.arrive(0, 4.0).params == 1.0
    again = next(number for number, job in ground.jobs.items() if job.client == 0)
    assert ground.jobs[again].version == 1
    assert ground.arrive(again, 8.0).params is None
    assert ground.arrive(1, 5.0).params == 2.25
    reply = ground.arrive(2, 3.0)
    assert reply.params == 4.0
    assert reply.shares == ((2, 0.25),)


def test_safa_fills_the_quota_with_those_picked_before_when_nobody_else_comes():
    """One client alone: it is picked every time, since nobody else is out."""
    ground = Playground(Safa(0.5, lag_tolerance=9), 0.0, clients=1)
    for model in (2.0, 3.0, 4.0):
        assert ground.arrive(max(ground.jobs), model).params == model


def test_safa_starts_again_whoever_is_too_far_behind():
    """Tolerance 1: after two versions client 3 is two behind, is cancelled, its cache entry becomes x, and it leaves anew."""
    ground = Playground(Safa(0.25, lag_tolerance=1), 0.0, clients=4)
    ground.arrive(0, 4.0)
    assert [stop.job for stop in ground.arrive(1, 4.0).stops] == [2, 3]
    assert ground.state.cache == (4.0, 4.0, 2.0, 2.0)  # x = (4 + 4 + 0 + 0) / 4
    assert {job.version for job in ground.jobs.values() if job.client in {2, 3}} == {2}


def test_safa_keeps_who_is_within_the_tolerance():
    """Tolerance 2: the same client goes on with its old model, and what it brings is taken."""
    ground = Playground(Safa(0.25, lag_tolerance=2), 0.0, clients=4)
    ground.arrive(0, 4.0)
    assert ground.arrive(1, 4.0).stops == ()
    assert ground.arrive(3, 8.0).params == 4.0  # (4 + 4 + 0 + 8) / 4


def test_safa_weighs_by_examples_and_leaves_non_finite_models_out():
    """Sizes 1, 3: a model 8 of the second gives 6; a non-finite one is picked, changes no cache, and makes a version."""
    ground = Playground(Safa(0.5), 0.0, clients=2, sizes=(1, 3))
    ground.arrive(1, 8.0, examples=3)
    assert ground.params == 6.0
    reply = ground.arrive(0, math.nan, finite=False)
    assert (reply.params, reply.shares, ground.version) == (6.0, (), 2)
    assert ground.state.cache == (0.0, 8.0)


def test_safa_ends_a_round_at_its_limit():
    """With what is there; with nothing it is abandoned, time is spent, and the next round begins."""
    ground = Playground(Safa(1.0, round_limit_s=3.0), 0.0, clients=2)
    ground.arrive(0, 4.0)
    assert ground.alarm("round 0").params == 2.0
    reply = ground.alarm("round 1")
    assert (reply.params, reply.abandon) == (None, True)
    assert ground.alarm("round 1") == ground.alarm("tea")  # over, or never set: nothing happens


def test_safa_survives_a_round_that_everybody_leaves():
    """All jobs are lost: the round is abandoned and everybody leaves again."""
    ground = Playground(Safa(0.5), 0.0, clients=2)
    ground.lose(0)
    reply = ground.lose(1)
    assert (reply.abandon, sum(send.count for send in reply.sends)) == (True, 2)


# ---- all of them


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_the_deadline_of_a_lost_cohort_and_zero_samples(name):
    """A client without samples is turned away by the engine as a loss: nothing is published of it, nothing fails."""
    groups = {f"tier {tier}": tuple(range(tier, 10, 5)) for tier in range(5)}
    ground = Playground(build(name, {}), 1.0, clients=10, concurrency=3, groups=groups)
    job = min(ground.jobs)
    reply = ground.lose(job, "no examples")
    assert reply.params is None


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fedprox", {"mu": -1.0}, "mu must be at least 0"),
        ("fednova", {"momentum": 1.0}, "momentum must lie in"),
        ("fednova", {"momentum": 0.5, "mu": 0.5}, "mu must be 0 beside momentum"),
        ("fedavg", {"weights": "exmples"}, 'did you mean "examples"'),
        ("fedavg", {"partial_work": "kep"}, 'did you mean "keep"'),
        ("semi_async", {"mixing": "deltas"}, 'did you mean "delta"'),
        ("semi_async", {"clients_per_version": 0}, "at least 1"),
        ("semi_async", {"server_lr": 0.0}, "greater than 0"),
        ("safa", {"fraction": 0.0}, r"must lie in \(0, 1\]"),
        ("safa", {"lag_tolerance": -1}, "at least 0"),
        ("safa", {"round_limit_s": 0.0}, "above 0"),
        ("fedat", {"tiers": 0}, "tiers must be at least 1"),
        ("fedat", {"mu": -1.0}, "mu must be at least 0"),
        ("tifl", {"tiers": 0}, "tiers must be at least 1"),
        ("tifl", {"interval": 0}, "interval must be at least 1"),
        ("tifl", {"adaptive": True, "chances": (1.0,) * 5}, "must be None with adaptive"),
        ("tifl", {"adaptive": True, "credits": (1,)}, "must be one a tier"),
        ("tifl", {"adaptive": True, "credits": (1, 1, 1, 1, -1)}, "at least 0 each"),
        ("fedadam", {"server_lr": -1.0}, "lr must be greater than 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, said):
    """Each wrong option is an error with its name and the rule."""
    with pytest.raises(ScenarioError, match=said):
        build(name, options)
