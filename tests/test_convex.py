"""Tasks in closed form: by hand, against torch in double precision, and against what theory says."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

import scenarios
from desim_fl.build import build
from desim_fl.core import Job, Model, Work
from desim_fl.errors import RefusedError, ScenarioError
from desim_fl.executors.inline import InlineExecutor
from desim_fl.executors.pool import PoolExecutor
from desim_fl.executors.threads import ThreadExecutor
from desim_fl.learning.convex import ConvexTask, LeastSquares, Logistic, least_squares
from desim_fl.learning.descent import Descent
from desim_fl.learning.quadratic import QuadraticTask
from desim_fl.learning.task import Task
from desim_fl.scenario import load

ROWS = least_squares(seed=3, examples=60, features=5, noise=1e-5)
PARTS = [np.arange(0, 40), np.arange(40, 60)]


def convex(objective=ROWS, *, batch_size=8, noise=0.0, start=0.0, **descent) -> ConvexTask:
    """Two clients with 40 and 20 samples."""
    return ConvexTask(
        objective=objective, seed=5, keys=(0, 1), parts=PARTS, descent=Descent(batch_size, **descent), noise=noise,
        start=start,
    )  # fmt: skip


def job_of(params, client: int = 0, *, nth: int = 0, number: int = 0, **work) -> Job:
    """A job from these parameters with rate 0.1."""
    return Job(number, client, nth, 0, params, None, Work(**{"epochs": 1, "lr": 0.1, **work}))


def cloud(*, l2: float = 0.0) -> Logistic:
    """Sixty samples of three features in three classes."""
    chance = np.random.default_rng(8)
    inputs, labels = chance.normal(size=(60, 3)), chance.integers(0, 3, 60)
    return Logistic(inputs, labels, 3, {"test": (inputs, labels)}, l2)


def test_least_squares_by_hand():
    """A = diag(1, 2), b = (1, 2), x = 0: F = (1 + 4) / 4, gradient -A^T b / 2 = (-1/2, -2); row 1 alone: 2 and (0, -4)."""
    made = LeastSquares(np.diag([1.0, 2.0]), np.array([1.0, 2.0]))
    loss, gradient = made.at(np.zeros(2), np.arange(2))
    assert (loss, gradient.tolist()) == (1.25, [-0.5, -2.0])
    loss, gradient = made.at(np.zeros(2), np.array([1]))
    assert (loss, gradient.tolist()) == (2.0, [0.0, -4.0])
    assert made.scores(np.ones(2))[0][:2] == ("test", 0.0)


def test_logistic_by_hand():
    """At x = 0 both classes have chance 1/2: loss log 2, gradient a (p - y) = (3/2, -3/2) for a = 3 of class 1."""
    made = Logistic(np.array([[3.0]]), np.array([1]), 2, {}, 0.0)
    loss, gradient = made.at(np.zeros(4), np.array([0]))
    assert loss == pytest.approx(np.log(2))
    assert gradient.tolist() == [1.5, -1.5, 0.5, -0.5]


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_logistic_loss_and_gradient_are_torch_s(l2):
    """Cross entropy of a linear layer plus the penalty, and its derivative, in double precision."""
    made, rows = cloud(l2=l2), np.array([4, 4, 9, 30])
    x = np.random.default_rng(1).normal(size=made.size)
    twin = torch.tensor(x, requires_grad=True)
    weights, bias = twin[:-3].reshape(3, 3), twin[-3:]
    inputs, labels = torch.tensor(made.inputs[rows]), torch.tensor(made.labels[rows])
    expected = torch.nn.functional.cross_entropy(inputs @ weights + bias, labels) + l2 / 2 * (twin * twin).sum()
    expected.backward()
    loss, gradient = made.at(x, rows)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
    np.testing.assert_allclose(gradient, twin.grad, rtol=1e-12, atol=1e-15)
    scores = torch.nn.functional.cross_entropy(torch.tensor(made.inputs) @ weights + bias, torch.tensor(made.labels))
    assert made.scores(x)[0].loss == pytest.approx(float(scores.detach()), rel=1e-12)
    named = made.arrays(x)
    assert np.array_equal(named["weight"], weights.detach().numpy().T)


def test_scores_do_not_depend_on_how_many_are_scored_at_once(monkeypatch):
    """A split larger than one portion has the mean over all of it."""
    made, x = cloud(), np.random.default_rng(1).normal(size=12)
    whole = made.scores(x)[0]
    monkeypatch.setattr("desim_fl.learning.convex._AT_ONCE", 7)
    assert made.scores(x)[0].loss == pytest.approx(whole.loss, rel=1e-12)
    assert made.scores(x)[0][2:] == whole[2:]


@pytest.mark.parametrize("rule", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"proximal_mu": 0.7},
                                  {"momentum": 0.8, "weight_decay": 0.1, "proximal_mu": 0.7}])  # fmt: skip
def test_local_steps_are_those_of_torch_optim(rule):
    """Full batches of least squares under SGD with momentum, decay and proximal term, in double precision."""
    task = convex(batch_size=40, start=0.5, **rule)
    job = job_of(task.initial().params, epochs=6)
    twin = torch.nn.Parameter(torch.tensor(job.params.copy()))
    mu = rule.pop("proximal_mu", 0.0)
    optimizer, anchor = torch.optim.SGD([twin], lr=0.1, **rule), twin.detach().clone()
    matrix, target = torch.tensor(ROWS.matrix[PARTS[0]]), torch.tensor(ROWS.target[PARTS[0]])
    for _ in range(6):
        optimizer.zero_grad()
        away = matrix @ twin - target
        (0.5 * (away * away).mean() + mu / 2 * ((twin - anchor) ** 2).sum()).backward()
        optimizer.step()
    done = task.train(job, 6)
    np.testing.assert_allclose(done.params, twin.detach(), rtol=1e-12)
    assert (done.steps, done.examples, done.bad) == (6, 40, None)


def test_gradient_descent_converges_to_the_solution_at_the_rate_of_theory():
    """Full steps of 1/L contract the distance by at most 1 - mu/L each, and end at NumPy's least-squares solution."""
    values = np.linalg.eigvalsh(ROWS.matrix[PARTS[0]].T @ ROWS.matrix[PARTS[0]] / 40)
    solution = np.linalg.lstsq(ROWS.matrix[PARTS[0]], ROWS.target[PARTS[0]], rcond=None)[0]
    task = convex(batch_size=40)
    far = [np.linalg.norm(task.initial().params - solution)]
    for count in (1, 10, 100):
        done = task.train(job_of(task.initial().params, epochs=count, lr=1 / values[-1]), count)
        far.append(np.linalg.norm(done.params - solution))
        assert far[-1] <= (1 - values[0] / values[-1]) ** count * far[0] * (1 + 1e-9)
    done = task.train(job_of(task.initial().params, epochs=6000, lr=1 / values[-1]), 6000)
    np.testing.assert_allclose(done.params, solution, rtol=1e-6)


def test_noise_has_the_standard_deviation_asked_for_and_belongs_to_the_job():
    """2,000 entries of one noisy step from the solution: sd lr * 0.5 within 5 %, another nth another noise, again the same."""
    made = least_squares(seed=1, examples=4, features=2000, noise=0.0)
    task = ConvexTask(
        objective=made, seed=5, keys=(0,), parts=[np.arange(4)], descent=Descent(4), noise=0.5
    )  # fmt: skip
    exact = np.linalg.lstsq(made.matrix, made.target, rcond=None)[0]
    first, second, again = (task.train(job_of(exact, nth=nth), 1).params - exact for nth in (0, 1, 0))
    assert first.std() == pytest.approx(0.05, rel=0.05)
    assert abs(first.mean()) < 0.005
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_made_rows_follow_their_description():
    """A is uniform in (0, 1) over sqrt(d), b its product with one truth, or with each client's own; the seed decides."""
    assert ROWS.matrix.min() > 0
    assert ROWS.matrix.max() < 1 / np.sqrt(5)
    truth = np.linalg.lstsq(ROWS.matrix, ROWS.target, rcond=None)[0]
    assert np.abs(ROWS.matrix @ truth - ROWS.target).max() < 1e-4
    again, other = (least_squares(seed=seed, examples=60, features=5, noise=1e-5) for seed in (3, 4))
    assert np.array_equal(again.target, ROWS.target)
    assert not np.array_equal(other.target, ROWS.target)
    own = least_squares(seed=3, examples=60, features=5, noise=0.0, own=2.0, parts=PARTS)
    truths = [np.linalg.lstsq(own.matrix[part], own.target[part], rcond=None)[0] for part in PARTS]
    assert np.linalg.norm(truths[0] - truths[1]) > 1.0
    assert all(np.abs(own.matrix[part] @ mine - own.target[part]).max() < 1e-9 for part, mine in zip(PARTS, truths, strict=True))  # fmt: skip
    with pytest.raises(ScenarioError, match="at least one"):
        least_squares(seed=0, examples=0, features=1, noise=0.0)


def test_convex_tasks_are_tasks_and_guard_what_they_hand_out():
    """The protocol holds; models cannot be written to; divergence is named; parts of the model are refused."""
    task = convex()
    assert isinstance(task, Task)
    with pytest.raises(ValueError, match="read-only"):
        task.initial().params[0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        task.train(job_of(task.initial().params), 5).params[0] = 1.0
    assert task.train(job_of(task.initial().params, lr=1e200), 5).bad == "x"
    assert task.train(job_of(task.initial().params), 0).steps == 0
    assert task.average(None, []) is None
    assert task.tensors(Model(0, np.arange(5.0)))["x"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(RefusedError, match="part"):
        task.train(job_of(task.initial().params, part=(0,)), 1)


@pytest.mark.parametrize("objective", [ROWS, cloud()], ids=["least_squares", "logistic"])
def test_executors_give_the_same_bits(objective):
    """Inline, threads and a process, with control variates and proximal term."""
    task = convex(objective, noise=0.1, proximal_mu=0.2)
    start = task.initial().params
    jobs = [
        job_of(start, number % 2, nth=number // 2, number=number, epochs=2)._replace(extra={"control": start + 0.1})
        for number in range(4)
    ]
    found = []
    for executor in (InlineExecutor(task), ThreadExecutor(task, 2), PoolExecutor(task, 1)):
        for job in jobs:
            executor.submit(job, job.id)
        found.append([executor.collect(job, job.work.steps or 3) for job in jobs])
        executor.close()
    for first, *others in zip(*found, strict=True):
        for other in others:
            assert np.array_equal(first.params, other.params)
            assert np.array_equal(first.extra["control"], other.extra["control"])
            assert first.loss == other.loss


ROWS_WORLD = """
[data]
name = "least_squares"
examples = 200
features = 6
client_shift_sd = 0.1
[clients]
count = 4
seconds_per_step = 0.5
jitter_factor = { law = "exponential", mean = 1.0 }
[training]
batch_size = 16
lr = 0.5
momentum = 0.5
proximal_mu = 0.01
[strategy]
name = "fedbuff"
buffer_size = 2
[run]
seed = 7
concurrency = 3
max_updates = 40
eval_every_versions = 5
"""


def test_least_squares_in_a_scenario(tmp_path):
    """It trains, plan gives the timeline of the run without torch's model, and the loss falls."""
    _, manifest = scenarios.played(tmp_path, ROWS_WORLD)
    planned = scenarios.played(tmp_path, ROWS_WORLD, out="plan", timing_only=True)[1]
    assert planned["timeline_sha256"] == manifest["timeline_sha256"]
    losses = pl.read_parquet(tmp_path / "run" / "metrics.parquet")["loss"]
    assert manifest["summary"]["updates"] == 40
    assert losses[-1] < 0.25 * losses[0]


def test_shared_rows_are_everybody_s(tmp_path):
    """With shared rows each client has all of them: the steps of an epoch count all 200."""
    scenario = load(
        scenarios.write(tmp_path, ROWS_WORLD), ["data.shared=true", "data.client_shift_sd=0.0", "run.max_updates=3"]
    )
    built = build(scenario)
    assert built.population.sizes == (200,) * 4
    assert built.world.assignment.usual[0].steps == 13
    assert "partition" not in scenario.resolved()["clients"]


def test_logistic_regression_on_blobs_learns_in_double_precision(tmp_path):
    """The clouds are told apart after 60 updates: accuracy above 0.9, with no network anywhere."""
    text = scenarios.BLOBS.replace('name = "mlp"\nhidden = [16]', 'name = "logistic"\nl2 = 0.001')
    _, manifest = scenarios.played(tmp_path, text, "run.max_updates=60", "data.spread=0.5")
    assert manifest["summary"]["updates"] == 60
    assert pl.read_parquet(tmp_path / "run" / "metrics.parquet")["accuracy"][-1] > 0.9


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (['model.name="scalar"'], '"scalar" does not go with data least_squares'),
        (['training.optimizer="adam"', "training.momentum=0.0"], 'optimizer = "adam" does not go with model linear'),
        (['clients.partition="dirichlet"', "clients.alpha=0.5"], "needs labels, and data least_squares has none"),
        (["data.shared=true"], "client_shift_sd must be 0 with shared = true"),
        (["data.shared=true", "data.client_shift_sd=0.0", "clients.min_samples=2"], "must not be given with shared"),
        (["data.noise_sd=-1.0"], "noise_sd"),
        (["training.proximal_mu=-1.0"], "proximal_mu"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(tmp_path, overrides, said):
    """Nonsense combinations of data, model and training name the key and the reason."""
    with pytest.raises(ScenarioError, match=said):
        load(scenarios.write(tmp_path, ROWS_WORLD), overrides)


def test_the_quadratic_takes_control_variates_across_jobs():
    """Two jobs in a row: the second starts from the variate that the first one left; nothing is shared."""
    task = QuadraticTask(curvature=[1.0], optimum=[1.0], examples=[4])
    first = task.train(job_of(0.0)._replace(extra={"control": 0.0}), 1)
    assert first.memory == {"control": -1.0}
    second = task.train(job_of(0.1)._replace(extra={"control": 0.25}, memory=first.memory), 1)
    assert second.params == pytest.approx(0.1 - 0.1 * (-0.9 + 0.25 + 1.0), abs=1e-15)
