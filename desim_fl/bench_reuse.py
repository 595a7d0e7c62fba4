"""What runs cost that differ only by a delay scale, when outcomes that are known need not be trained again."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.bench import machine
from desim_fl.build import Built, build
from desim_fl.core import Promise
from desim_fl.errors import ScenarioError
from desim_fl.executors.reuse import ReuseExecutor
from desim_fl.executors.store import Store
from desim_fl.learning.identity import Identity
from desim_fl.run import Session
from desim_fl.scenario import load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from desim_fl.core import Executor, Job, Model, Outcome

SCALES = (1, 2, 5, 10, 100, 1000)
_LIMIT_BYTES = 2 * 10**9
SCENARIO = """
[data]
name = "fashion_mnist_6k"
examples = 3000
[clients]
count = 20
seconds_per_step = 0.1
device_factor = { law = "lognormal", median = 1.0, sigma = 0.8 }
[network]
latency_s = 0.1
[model]
name = "cnn"
[training]
lr = 0.05
[strategy]
name = "fedbuff"
buffer_size = 5
[run]
concurrency = 8
max_updates = 100
eval_every_versions = 4
[executor]
name = "inline"
"""


class Played(NamedTuple):
    """One run: jobs trained and reused, evaluations reused; seconds at the executor, playing in all, and getting ready."""

    scale: int
    trained: int
    reused: int
    rescored: int
    executor_s: float
    play_s: float
    start_s: float


class Timed:
    """Passes everything on, and adds up the seconds that the engine spends on training and evaluation."""

    def __init__(self, inner: Executor) -> None:
        self.inner, self.name, self.seconds = inner, inner.name, 0.0

    def _timed(self, call: Callable[[], Any]) -> Any:
        begin = perf_counter()
        try:
            return call()
        finally:
            self.seconds += perf_counter() - begin

    def submit(self, job: Job, due: int) -> None:
        """Pass it on."""
        self._timed(lambda: self.inner.submit(job, due))

    def collect(self, job: Job, steps: int) -> Outcome:
        """Pass it on."""
        return self._timed(lambda: self.inner.collect(job, steps))

    def release(self, job: Job) -> None:
        """Pass it on."""
        self._timed(lambda: self.inner.release(job))

    def evaluate(self, model: Model) -> Promise:
        """Pass it on; waiting for the scores counts too."""
        promise: Promise = self._timed(lambda: self.inner.evaluate(model))
        return Promise(lambda: self._timed(promise), promise.ready)

    def close(self) -> None:
        """Pass it on."""
        self.inner.close()


def six_runs(scenario: Path | None, scales: Sequence[int] = SCALES) -> list[Played]:
    """Play the scenario (``None``: the bench's own) at each scale, all with one store that is empty at first."""
    with tempfile.TemporaryDirectory(prefix="desim-fl-bench-") as folder:
        path = scenario or Path(folder) / "reuse.toml"
        if scenario is None:
            path.write_text(SCENARIO)
        return [_played(path, scale, Path(folder) / "outcomes") for scale in scales]


def _played(path: Path, scale: int, folder: Path) -> Played:
    began = perf_counter()
    built = build(load(path, [f"run.delay_scale={scale}", "executor.reuse=false"]))
    reuse = ReuseExecutor(built.world.executor, Store(folder, _LIMIT_BYTES), *_identity(built))
    timed = Timed(reuse)
    session = Session(replace(built, world=replace(built.world, executor=timed)), None)
    ready = perf_counter()
    session.play()
    done = perf_counter()
    counts = reuse.trained, reuse.reused, reuse.rescored
    return Played(scale, *counts, timed.seconds, done - ready, ready - began)


def _identity(built: Built) -> tuple[Identity, Any]:
    task: Any = built.task
    if not hasattr(task, "module"):
        raise ScenarioError("bench reuse: the scenario must train a network, not a scalar")
    return Identity(task), task.device


def ratio(runs: Sequence[Played]) -> float:
    """Training and evaluation of all runs over those of the first."""
    return sum(run.executor_s for run in runs) / runs[0].executor_s


def table(repeats: Sequence[Sequence[Played]]) -> str:
    """Each run as a line of means, then the ratio with n, mean and standard deviation."""
    lines = [f"runs that differ by run.delay_scale, one store, n = {len(repeats)}, {machine()}"]
    for same in zip(*repeats, strict=True):
        first, mean = same[0], lambda name, same=same: statistics.fmean(getattr(run, name) for run in same)
        lines.append(
            f"  x {first.scale:<5} trained {first.trained:4} reused {first.reused:4} rescored {first.rescored:3}"
            f"  training and evaluation {mean('executor_s'):7.3f} s  play {mean('play_s'):7.3f} s"
            f"  start-up {mean('start_s'):5.2f} s"
        )
    ratios = [ratio(runs) for runs in repeats]
    sd = statistics.stdev(ratios) if len(ratios) > 1 else 0.0
    lines.append(f"  training and evaluation, all over the first: x {statistics.fmean(ratios):.3f} (sd {sd:.3f})")
    return "\n".join(lines)
