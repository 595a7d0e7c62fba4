"""Small scenarios for tests, as TOML text."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple
from unittest import mock

from desim_fl import cli
from desim_fl.build import build
from desim_fl.engine import Engine
from desim_fl.eventlog import EventLog, MemorySink
from desim_fl.run import execute
from desim_fl.scenario import load

if TYPE_CHECKING:
    from pathlib import Path

    from desim_fl.scenario import Scenario

QUADRATIC = """
[data]
name = "quadratic"
curvature = [1.0, 2.0, 0.5, 1.5]
optimum = [1.0, -1.0, 3.0, 0.5]
examples_per_client = [40, 10, 70, 33]
[clients]
count = 4
seconds_per_step = 0.5
device_factor = { law = "lognormal", median = 1.0, sigma = 0.8 }
jitter_factor = { law = "exponential", mean = 1.0 }
wait_s = { law = "uniform", low = 0.0, high = 2.0 }
[network]
latency_s = 0.05
latency_jitter_factor = { law = "half_normal", sd = 1.0, min = 0.1 }
down_mbps = 0.001
up_mbps = { law = "pareto", alpha = 2.0, scale = 0.0005 }
[model]
name = "scalar"
start = 5.0
[training]
epochs = 2
batch_size = 16
lr = 0.1
[strategy]
name = "fedbuff"
buffer_size = 2
[run]
seed = 7
concurrency = 3
max_updates = 60
eval_every_versions = 3
[executor]
reuse = false
"""

BLOBS = """
[data]
name = "blobs"
examples = 600
test_examples = 200
classes = 4
features = 8
validation_share = 0.1
[clients]
count = 6
partition = "dirichlet"
alpha = 0.5
min_samples = 5
seconds_per_step = 0.1
device_factor = { law = "lognormal", median = 1.0, sigma = 0.5 }
[network]
latency_s = 0.1
down_mbps = 1.0
up_mbps = 0.5
[model]
name = "mlp"
hidden = [16]
[training]
batch_size = 32
lr = 0.1
[strategy]
name = "fedasync"
[run]
seed = 3
concurrency = 3
max_updates = 30
eval_every_versions = 10
[executor]
reuse = false
"""


def write(folder: Path, text: str = QUADRATIC, name: str = "small.toml") -> Path:
    """Write a scenario file."""
    path = folder / name
    path.write_text(text)
    return path


def commanded(*arguments: object, cwd=None) -> subprocess.CompletedProcess[str]:
    """Run the command line's entry point in this process, from a folder: exit code and what was printed."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(cwd or "."),
        mock.patch.object(sys, "argv", ["desim-fl", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(arguments, int(code or 0), out.getvalue(), err.getvalue())


def played(folder: Path, text: str = QUADRATIC, *overrides: str, out: str = "run", **options) -> tuple[Path, dict]:
    """Play a scenario in this process; returns its run directory and manifest."""
    scenario = load(write(folder, text), overrides)
    return folder / out, execute(scenario, folder / out, **options)


class InMemory(NamedTuple):
    """A run that left nothing on the disk: the engine at its end, its hash, the losses of its evaluations."""

    engine: Engine
    sha256: str
    losses: list[float]


def in_memory(scenario: Scenario, **options) -> InMemory:
    """Play a scenario in this process without a run directory; much cheaper than ``played``."""
    world, scores = build(scenario, **options).world, []
    engine = Engine(world, EventLog(MemorySink()), scores.append)
    sha256 = engine.run()
    world.executor.close()
    return InMemory(engine, sha256, [score.loss for each in scores for score in each.scores[:1]])
