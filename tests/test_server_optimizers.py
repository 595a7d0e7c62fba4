"""Server optimisers and schedules against numbers worked by hand from ALGORITHMS' formulas, and against torch.optim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from desim_fl.algebra import Null
from desim_fl.errors import ScenarioError
from desim_fl.strategies import FedAvg, FedBuff
from desim_fl.strategies.optimized import Optimized
from desim_fl.strategies.optimizers import NAMES, ServerOptimizer
from desim_fl.strategies.schedules import Constant, Cosine, InverseSqrt, Step
from desim_fl.testing import Playground

# Deltas 2 then -1 from x = 0, lr 1, beta1 0.9, beta2 0.99, eps 1e-3, v = 0 before.
#   adam:     m = .2, v = .04: .2 / (.2 + .001) = .9950248756
#             m = .18 - .1 = .08, v = .0396 + .01 = .0496: + .08 / (.2227105745 + .001) = .3576051637
#   yogi:     v = 0 + .01 * 4 = .04 (sign(0 - 4) = -1), as adam; then .04 < 1: v = .04 + .01 = .05
#             .08 / (.2236067977 + .001) = .3561779...
#   adagrad:  v = 4: .2 / 2.001 = .0999500250; v = 5: .08 / (2.2360679775 + .001) = .0357611...
#   amsgrad:  v = .04, .0496, each the largest so far: as adam
#   momentum: m = 2; m = 1.8 - 1 = .8: 2, 2.8
BY_HAND = {
    "sgd": (2.0, 1.0),
    "momentum": (2.0, 2.8),
    "adagrad": (0.2 / 2.001, 0.2 / 2.001 + 0.08 / (math.sqrt(5) + 1e-3)),
    "adam": (0.2 / 0.201, 0.2 / 0.201 + 0.08 / (math.sqrt(0.0496) + 1e-3)),
    "yogi": (0.2 / 0.201, 0.2 / 0.201 + 0.08 / (math.sqrt(0.05) + 1e-3)),
    "amsgrad": (0.2 / 0.201, 0.2 / 0.201 + 0.08 / (math.sqrt(0.0496) + 1e-3)),
}


def walk(optimizer, deltas, start=0.0):
    """The models after each step."""
    moments, params, path = optimizer.start(), start, []
    for delta in deltas:
        moments, params = optimizer.step(moments, params, delta)
        path.append(params)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_by_hand(name):
    """Each optimiser's first two steps are those on paper: Adam does not correct its bias unless asked to."""
    assert set(BY_HAND) == set(NAMES)
    assert walk(ServerOptimizer(name), [2.0, -1.0]) == pytest.approx(BY_HAND[name], rel=1e-12)


def test_yogi_shrinks_its_second_moment_where_adam_would_forget_faster():
    """From v = .04 a Delta of 0.1 (square .01): yogi .04 - .01 * .01 = .0399; adam .0396 + .0001 = .0397."""
    for name, expected in (("yogi", 0.0399), ("adam", 0.0397)):
        optimizer = ServerOptimizer(name)
        moments, _ = optimizer.step(optimizer.start(), 0.0, 2.0)
        assert optimizer.step(moments, 0.0, 0.1)[0].second == pytest.approx(expected, rel=1e-12)


def test_amsgrad_keeps_the_largest_second_moment():
    """Deltas 2, then 0: v falls to .0396, the one in use stays .04."""
    optimizer = ServerOptimizer("amsgrad")
    moments, _ = optimizer.step(optimizer.start(), 0.0, 2.0)
    moments, _ = optimizer.step(moments, 0.0, 0.0)
    assert (moments.second, moments.largest) == pytest.approx((0.0396, 0.04))
    started = ServerOptimizer("amsgrad", initial_v=5.0)  # .99 * 5 + .01 * 4 = 4.99 is below v_0, which stays in use
    assert started.step(started.start(), 0.0, 2.0)[0][2:] == pytest.approx((4.99, 5.0))


def test_a_zero_delta_is_a_step_of_adam():
    """After Delta 2 a Delta of 0 still moves x along m: .18 / (sqrt(.0396) + .001)."""
    first, second = walk(ServerOptimizer("adam"), [2.0, 0.0])
    assert second - first == pytest.approx(0.18 / (math.sqrt(0.0396) + 1e-3))


def test_the_second_moment_starts_where_it_is_told():
    """Initial v = 1, Delta 2: adam's v = .99 + .04 = 1.03; yogi's 1 + .04; adagrad's 5."""
    for name, expected in (("adam", 1.03), ("yogi", 1.04), ("adagrad", 5.0)):
        optimizer = ServerOptimizer(name, initial_v=1.0)
        assert optimizer.step(optimizer.start(), 0.0, 2.0)[0].second == pytest.approx(expected)


@pytest.mark.parametrize(("name", "amsgrad"), [("adam", False), ("amsgrad", True)])
def test_bias_correction_is_torch_s(name, amsgrad):
    """With the correction, steps on -Delta are those of torch.optim.Adam, and AMSGrad's largest v is that of v itself."""
    generator = np.random.default_rng(3)
    deltas = torch.tensor(generator.normal(size=(12, 5)))
    parameter = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    oracle = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.99), eps=1e-3, amsgrad=amsgrad)
    found = walk(ServerOptimizer(name, lr=0.1, bias_correction=True), list(deltas), torch.zeros(5, dtype=torch.float64))
    for delta, mine in zip(deltas, found, strict=True):
        parameter.grad = -delta
        oracle.step()
        torch.testing.assert_close(mine, parameter.detach(), rtol=1e-12, atol=1e-15)


def test_momentum_is_torch_s():
    """FedAvgM on Delta is torch.optim.SGD with momentum on -Delta, without dampening."""
    deltas = torch.tensor(np.random.default_rng(4).normal(size=(9, 4)))
    parameter = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    oracle = torch.optim.SGD([parameter], lr=0.3, momentum=0.8)
    for delta, mine in zip(
        deltas, walk(ServerOptimizer("momentum", lr=0.3, beta1=0.8), list(deltas), 0.0), strict=True
    ):
        parameter.grad = -delta
        oracle.step()
        torch.testing.assert_close(mine, parameter.detach(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_arrays_tensors_and_null_are_moved_alike(name):
    """Elementwise the same on NumPy, torch and floats, without writing into anything; Null stays Null."""
    floats = [walk(ServerOptimizer(name), [delta, -0.5 * delta], 1.0) for delta in (2.0, -3.0)]
    for make in (np.array, torch.tensor):
        deltas = [make([2.0, -3.0]), make([-1.0, 1.5])]
        found = walk(ServerOptimizer(name), deltas, make([1.0, 1.0]))
        assert np.allclose(np.stack([np.asarray(value) for value in found]), np.array(floats).T, rtol=1e-4)
        assert deltas[0].tolist() == [2.0, -3.0]
    assert walk(ServerOptimizer(name), [Null, Null], Null) == [Null, Null]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "adm"}, 'did you mean "adam"'),
        ({"lr": 0.0}, "lr must be greater than 0"),
        ({"beta1": 1.0}, r"beta1 must lie in \[0, 1\)"),
        ({"beta2": -0.1}, r"beta2 must lie in \[0, 1\)"),
        ({"eps": 0.0}, "eps must be greater than 0"),
        ({"initial_v": -1.0}, "initial_v must be at least 0"),
        ({"name": "yogi", "bias_correction": True}, "bias_correction belongs to adam and amsgrad"),
        ({"name": "adam", "bias_correction": True, "initial_v": 1.0}, "must be 0 with bias_correction"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    """Each wrong option is an error with its name and the rule."""
    with pytest.raises(ScenarioError, match=said):
        ServerOptimizer(**options)


# ---- around a method


def test_identity_1_momentum_of_0_and_rate_1_is_fedavg():
    """FedAvgM(beta = 0, lr = 1) and sgd(lr = 1) leave FedAvg as it is."""
    plain, bare = Playground(FedAvg(3), 1.0), Playground(Optimized(FedAvg(3), ServerOptimizer("sgd")), 1.0)
    still = Playground(Optimized(FedAvg(3), ServerOptimizer("momentum", beta1=0.0)), 1.0)
    for _ in range(30):
        job = max(plain.jobs)
        for ground in (plain, bare, still):
            ground.arrive(job, 0.7 * ground.jobs[job].params + 0.1 * (job % 5), examples=1 + job % 3)
    assert plain.version == bare.version == 10
    assert bare.params == pytest.approx(plain.params, rel=1e-12)
    assert still.params == pytest.approx(plain.params, rel=1e-12)


def test_identity_7_fedadam_without_memory_steps_by_the_sign():
    """Both betas 0 and eps to 0: each version moves by lr in the direction of Delta, however small Delta is."""
    ground = Playground(Optimized(FedAvg(1), ServerOptimizer("adam", lr=0.25, beta1=0.0, beta2=0.0, eps=1e-12)), 1.0)
    for delta, expected in ((3.0, 1.25), (-0.01, 1.0), (0.5, 1.25)):
        ground.arrive(max(ground.jobs), ground.params + delta)
        assert ground.params == pytest.approx(expected, rel=1e-9)


def test_fedbuff_with_adam_at_the_server():
    """A buffer of two with deltas 1 and 3 has Delta 2: the first Adam step from 5 is 5 + .2 / .201."""
    ground = Playground(Optimized(FedBuff(buffer_size=2), ServerOptimizer("adam")), 5.0, concurrency=2)
    ground.arrive(0, 6.0)
    reply = ground.arrive(1, 8.0)
    assert ground.params == pytest.approx(5.0 + 0.2 / 0.201)
    assert [share for _, share in reply.shares] == [0.5, 0.5]


def test_a_version_without_members_is_no_step():
    """Nothing finite arrived: the model and the moments stay, though Adam would move on along m for a Delta of 0."""
    ground = Playground(Optimized(FedBuff(buffer_size=1), ServerOptimizer("adam")), 0.0, concurrency=1)
    ground.arrive(0, 2.0)
    before, moments = ground.params, ground.state.moments
    ground.arrive(max(ground.jobs), math.nan, finite=False)
    assert (ground.version, ground.params, ground.state.moments) == (2, before, moments)
    assert moments.steps == 1


def test_a_last_partial_buffer_is_a_step_too():
    """``flush_at_end`` under momentum .5: 1 for the first buffer, then .5 * 1 + 4."""
    method = Optimized(FedBuff(buffer_size=2, flush_at_end=True), ServerOptimizer("momentum", beta1=0.5))
    ground = Playground(method, 0.0, concurrency=1)
    for _ in range(2):
        ground.arrive(max(ground.jobs), ground.params + 1.0)
    ground.arrive(max(ground.jobs), ground.params + 4.0)
    assert method.finish(ground.state, ground).params == pytest.approx(1.0 + 4.5)
    assert Optimized(FedAvg(), ServerOptimizer()).finish(ground.state, ground).params is None


def test_a_schedule_scales_the_server_s_rate_by_version():
    """Deltas of 1 and a rate halved every two versions: 1 + 1 + .5 + .5 + .25."""
    ground = Playground(Optimized(FedBuff(buffer_size=1), ServerOptimizer(), Step(2, 0.5)), 0.0, concurrency=1)
    for _ in range(5):
        ground.arrive(max(ground.jobs), ground.params + 1.0)
    assert ground.params == 3.25


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), {0: 1.0, 99: 1.0}),
        (Step(10, 0.1), {0: 1.0, 9: 1.0, 10: 0.1, 25: 0.01}),
        (Cosine(8), {0: 1.0, 4: 0.5, 8: 0.0, 99: 0.0}),
        (Cosine(4, 0.2), {0: 1.0, 2: 0.6, 4: 0.2}),
        (InverseSqrt(), {0: 1.0, 3: 0.5, 99: 0.1}),
        (InverseSqrt(5), {0: 1.0, 15: 0.5}),
    ],
)
def test_schedules_by_hand(schedule, expected):
    """Factors at chosen versions, edges included."""
    assert {version: schedule(version) for version in expected} == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("make", [lambda: Step(0), lambda: Step(1, 0.0), lambda: Step(1, 2.0), lambda: Cosine(0),
                                  lambda: Cosine(1, 1.5), lambda: InverseSqrt(0)])  # fmt: skip
def test_schedules_that_make_no_sense_are_refused(make):
    """A period of 0, a factor that would stop or raise the rate: an error with the rule."""
    with pytest.raises(ScenarioError, match="must"):
        make()
