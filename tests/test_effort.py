"""What plan says of the real time of training: counted against torch, summed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import desim_fl
import scenarios
from desim_fl.cli import app
from desim_fl.effort import SPEEDS
from desim_fl.executors.choice import POOL_START_S
from desim_fl.learning import models, operations

SCENARIOS = Path(__file__).resolve().parent.parent / "scenarios"
# One client has all 540 training samples in 17 steps; 60 are held back, 200 are for tests.
ALONE = (
    "clients.count=1",
    "run.max_updates=10",
    "run.concurrency=1",
    "executor.workers=1",
    "clients.partition=iid",
    "clients.alpha",
)
MLP = {"forward": 8 * 16 + 16 * 4, "training": 3 * (8 * 16 + 16 * 4) - 8 * 16}


@pytest.mark.parametrize(
    ("name", "args", "shape"),
    [
        ("mlp", {"hidden": [7, 5]}, (1, 9, 8)),
        ("mlp", {"hidden": []}, (20,)),
        ("cnn", {"channels": [3, 5]}, (2, 13, 10)),
        ("cnn_gap", {}, (1, 28, 28)),
        ("lenet5", {}, (1, 28, 28)),
        ("lenet5", {}, (3, 33, 36)),
        ("resnet20", {}, (3, 32, 32)),
        ("resnet20", {"norm": "group"}, (1, 29, 27)),
    ],
)
def test_operations_are_those_that_torch_counts(name, args, shape):
    """Multiply-adds of a sample, forward and there and back, equal torch's own count of two samples' operations, over four."""
    module, batch = models.factory(name, args, shape, 10)(), torch.zeros(2, *shape)
    with FlopCounterMode(display=False) as forward:
        module(batch)
    with FlopCounterMode(display=False) as both:
        module(batch).sum().backward()
    found = operations.of(name, args, shape, 10)
    assert found is not None
    assert (4 * found.forward, 4 * found.training) == (forward.get_total_flops(), both.get_total_flops())


def told(tmp_path, text, *overrides):
    """What ``plan --json`` says of training, and what plan prints of it."""
    path = scenarios.write(tmp_path, text)
    settings = [word for override in overrides for word in ("--set", override)]
    shown = CliRunner().invoke(app, ["plan", str(path), "--no-advice", *settings])
    asked = CliRunner().invoke(app, ["plan", str(path), "--no-advice", "--json", *settings])
    assert shown.exit_code == asked.exit_code == 0, (shown.exception, asked.exception)
    lines = [line for line in shown.output.splitlines() if line.startswith("training it")]
    return json.loads(asked.stdout)["training"], lines[0].split(maxsplit=5)[5] if lines else None


def test_the_sum_worked_by_hand(tmp_path):
    """Ten jobs of two epochs of a lone client, which has all 540 samples in 17 steps; three evaluations of 60 and 200 others."""
    text = scenarios.BLOBS.replace('partition = "dirichlet"\nalpha = 0.5\n', "")
    options = (
        "clients.count=1",
        "run.max_updates=10",
        "run.concurrency=1",
        "training.epochs=2",
        "run.eval_every_versions=5",
    )
    found, line = told(tmp_path, text, *options, "executor.name=inline")
    assert (found["steps"], found["samples"], found["workers"]) == (10 * 2 * 17, 10 * 2 * 540, 1)
    assert found["operations"] == 10 * 2 * 540 * MLP["training"] + 3 * 260 * MLP["forward"]
    speed = SPEEDS["mlp"]
    assert found["core_s"] == pytest.approx(340 * speed.step_ms / 1e3 + found["operations"] / speed.gmacs / 1e9)
    assert found["real_s"] == found["core_s"]
    assert line.startswith("about ")
    assert "with 1 worker (estimate: 340 steps, 10,800 samples" in line
    more = ("run.concurrency=3", "clients.count=6", "executor.name=pool", "executor.workers=8")
    pool, _ = told(tmp_path, text, "run.max_updates=10", *more)
    assert pool["workers"] == 3
    assert pool["real_s"] == pytest.approx(POOL_START_S + pool["core_s"] / 3)


def test_what_cannot_be_told_is_said(tmp_path, monkeypatch):
    """Another device, a cluster of unknown size, and a model whose operations are not known; without a network nothing is said."""
    assert told(tmp_path, scenarios.QUADRATIC) == (None, None)
    ray = ["executor.name=ray", "executor.address=10.0.0.1:6379"]
    known = dict(operations.FORMULAS)
    for options, formulas, why in (
        (["executor.device=cuda"], known, "how fast cuda is"),
        (ray, known, "how many workers the cluster has"),
        ([], {}, "how fast mlp is"),
    ):
        monkeypatch.setattr(operations, "FORMULAS", formulas)
        found, line = told(tmp_path, scenarios.BLOBS, *options)
        assert (found["core_s"], found["real_s"]) == (None, None)
        assert why in found["unknown"]
        assert line.startswith(f"not known ({found['steps']:,} steps")


def test_the_published_network_takes_days(tmp_path):
    """5,000 jobs of ten epochs over 6,000 images each, counted on ten times as many jobs of a tenth: days on two cores."""
    options = ['data={name="fashion_mnist_6k"}', "executor.workers=2", "parameters.num_rounds=10_000"]
    found = desim_fl.plan(SCENARIOS / "mnist_async.toml", overrides=options)
    assert found.training is not None
    assert found.training.samples == pytest.approx(3e8, rel=0.1)  # whoever has many images is away for longer
    assert 1 < found.training.real_s / 86_400 < 30
