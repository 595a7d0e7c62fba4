"""The scalar task, worked by hand."""

from __future__ import annotations

import math

import pytest

from desim_fl.core import Job, Model, Score, Work
from desim_fl.errors import LawError, RefusedError, ScenarioError
from desim_fl.learning.quadratic import QuadraticTask
from desim_fl.learning.task import Task


def task_of(**options) -> QuadraticTask:
    """Two clients: (x - 1)^2 / 2 with 3 samples, 2 (x + 2)^2 with 1."""
    return QuadraticTask(**{"curvature": [1.0, 4.0], "optimum": [1.0, -2.0], "examples": [3, 1], **options})


def job_of(x: float, client: int = 0, **work) -> Job:
    """One job at a point, with rate 0.1 unless told."""
    return Job(0, client, 0, 0, x, None, Work(**{"epochs": 1, "lr": 0.1, **work}))


def test_two_steps_worked_by_hand() -> None:
    """From 0 with rate 0.1 towards 1: 0.1, then 0.19; the mean loss is that of 0 and of 0.1; CASES LT-01."""
    outcome = task_of().train(job_of(0.0), 2)
    assert outcome.params == pytest.approx(0.19, abs=1e-15)
    assert outcome.loss == pytest.approx((0.5 + 0.405) / 2, abs=1e-15)
    assert (outcome.steps, outcome.examples, outcome.bad) == (2, 3, None)


def test_curvature_and_optimum_belong_to_the_client() -> None:
    """Client 1 goes from 0 by -0.1 * 4 * 2 = -0.8."""
    assert task_of().train(job_of(0.0, 1), 1).params == pytest.approx(-0.8, abs=1e-15)


def test_the_rate_decays_by_epochs_of_the_clients_samples() -> None:
    """Three samples in batches of two are two steps an epoch: the third step of inverse_sqrt has rate lr / sqrt 2."""
    task = task_of(batch_size=2)
    second = task.train(job_of(0.0), 2).params
    third = task.train(job_of(0.0, decay="inverse_sqrt_epoch"), 3).params
    assert third == pytest.approx(second - 0.1 / math.sqrt(2) * (second - 1), abs=1e-15)


def test_evaluation_weighs_clients_by_their_samples() -> None:
    """At 0: (3 * 0.5 + 1 * 8) / 4 = 2.375, without accuracy."""
    assert task_of().evaluate(Model(0, 0.0)) == (Score("test", 2.375, None, 4),)
    assert task_of(examples=[0, 0]).evaluate(Model(0, 0.0)) == ()


def test_version_zero_is_the_start() -> None:
    """The start value is the first model, named "x" for the file, and there are no buffers to average."""
    task = task_of(start=0.25)
    assert isinstance(task, Task)
    assert task.initial() == Model(0, 0.25)
    assert task.tensors(task.initial())["x"].tolist() == [0.25]
    assert task.average(None, [(1.0, None)]) is None


def test_divergence_is_named() -> None:
    """A scalar that is no longer finite is reported as bad."""
    outcome = task_of().train(job_of(1e300, lr=1e10), 3)
    assert outcome.bad == "x"
    assert task_of().train(job_of(2.0), 0).params == 2.0


def test_what_it_cannot_do_is_refused() -> None:
    """Momentum, Adam, weight decay, lists of different lengths, sub-models, steps without samples."""
    for option in ({"momentum": 0.9}, {"optimizer": "adam"}, {"weight_decay": 0.1}):
        with pytest.raises(RefusedError, match="plain SGD"):
            task_of(**option)
    with pytest.raises(ScenarioError, match="2 curvatures, 3 optima"):
        task_of(optimum=[1, 2, 3])
    with pytest.raises(RefusedError, match="part"):
        task_of().train(job_of(0.0, part=(0,)), 1)
    with pytest.raises(LawError, match="client 0 has 0"):
        task_of(examples=[0, 1]).train(job_of(0.0), 1)
