"""A user's own loss and metric: ``[training] task = "module:Task"``."""

from __future__ import annotations

import json
import sys

import polars as pl
import pytest
import torch

import scenarios
from desim_fl.build import build
from desim_fl.errors import ScenarioError
from desim_fl.executors.pool import PoolExecutor
from desim_fl.executors.vmap import VmapExecutor
from desim_fl.scenario import load

SOURCE = """
import torch
from desim_fl.core import Score
from desim_fl.learning.classification import ClassificationTask

class Task(ClassificationTask):
    def __init__(self, *, smoothing=0.0, **usual):
        self.smoothing = smoothing
        super().__init__(**usual)

    def batch_loss(self, module, batch):
        return torch.nn.functional.cross_entropy(module(batch.inputs), batch.labels, label_smoothing=self.smoothing)

    @torch.inference_mode()
    def score(self, module, split, samples):
        module.eval()
        top = module(samples.inputs).topk(2).indices
        return Score(split, -1.0, float((top == samples.labels[:, None]).any(1).float().mean()), len(samples.labels))

class Half:
    def __init__(self, **usual): pass
    def initial(self): pass

number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the user's module."""
    (tmp_path / "mytask.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mytask", raising=False)
    return tmp_path


def scenario(folder, *overrides):
    """The small scenario of blobs with the user's task."""
    return load(scenarios.write(folder, scenarios.BLOBS), ['training.task="mytask:Task"', *overrides])


def test_one_s_own_loss_and_metric_are_used(folder):
    """Without smoothing the model is the usual one; with it another; the metric stands in the table."""
    usual, plain = (
        scenarios.played(folder, scenarios.BLOBS, *more, out=out)
        for out, more in (("a", ()), ("b", ('training.task="mytask:Task"',)))
    )
    own, manifest = scenarios.played(
        folder, scenarios.BLOBS, 'training.task="mytask:Task"', "training.task_args.smoothing=0.3", out="c"
    )
    assert usual[1]["model_sha256"] == plain[1]["model_sha256"] != manifest["model_sha256"]
    assert usual[1]["timeline_sha256"] == manifest["timeline_sha256"]
    scores = pl.read_parquet(own / "metrics.parquet")
    assert set(scores["loss"]) == {-1.0}
    assert scores["accuracy"][-1] > pl.read_parquet(usual[0] / "metrics.parquet")["accuracy"][-1]  # top 2 of 4


def test_a_step_with_one_s_own_loss_is_the_plain_step_s(folder):
    """One step of a job equals torch.optim.SGD on the user's loss, computed by hand."""
    built = build(scenario(folder, "training.task_args.smoothing=0.3", "training.steps=1"))
    task, trained = built.task, []
    job = _job(built, 1)
    module = task.model()
    batch = task.training.chosen(next(iter(task.sequence(job, 1)))[1])
    task.state.load(job.params, job.buffers)
    module.load_state_dict(task.module.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), lr=job.work.lr)
    torch.nn.functional.cross_entropy(module(batch.inputs), batch.labels, label_smoothing=0.3).backward()
    optimizer.step()
    trained = task.train(job, 1).params
    assert torch.equal(trained, torch.cat([value.detach().reshape(-1) for value in module.parameters()]))


def _job(built, steps):
    from desim_fl.core import Job, Work  # noqa: PLC0415

    model = built.task.initial()
    return Job(0, 0, 0, 0, model.params, model.buffers, Work(1, steps, 0.1))


def test_workers_have_the_same_task_and_batches_are_refused(folder):
    """A pool's process gives the inline bits, attributes included; vmap trains one by one and says why."""
    built = build(scenario(folder, "training.task_args.smoothing=0.3", "executor.name=inline"))
    job = _job(built, 3)
    expected = built.task.train(job, 3).params
    pool = PoolExecutor(built.task, 1)
    try:
        pool.submit(job, 0)
        assert torch.equal(pool.collect(job, 3).params, expected)
    finally:
        pool.close()
    assert VmapExecutor(built.task, 4).reason == "trained one by one: the task has a loss of its own"
    assert torch.equal(built.task.replica(lambda: False).train(job, 3).params, expected)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (['training.task="mytask:Half"'], "gave a Half without train, evaluate, average, tensors"),
        (['training.task="mytask:number"'], "not a factory"),
        (['training.task="mytask:Task"', "training.task_args.smooth=1"], "smooth"),
        (['training.task="nowhere:Task"'], r"\[training\] task = \"nowhere:Task\""),
    ],
)
def test_tasks_that_cannot_be_used_are_named(folder, overrides, why):
    """Each way to go wrong is a ScenarioError that names the key and what is missing."""
    with pytest.raises(ScenarioError, match=why):
        build(load(scenarios.write(folder, scenarios.BLOBS), overrides))


def test_another_task_is_another_identity(folder):
    """The store of outcomes and a resume tell tasks apart by class, arguments and source."""
    from desim_fl.checkpointing import identity  # noqa: PLC0415
    from desim_fl.learning.identity import Identity  # noqa: PLC0415

    one, two = (build(scenario(folder, f"training.task_args.smoothing={value}")) for value in (0.1, 0.2))
    assert Identity(one.task).task != Identity(two.task).task
    assert "module mytask" in identity(one, {})
    assert json.dumps(identity(one, {}))
