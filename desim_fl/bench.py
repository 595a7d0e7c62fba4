"""Speed, measured on the user's machine: every figure stands beside a baseline of the same run.

``train`` compares one client job (19 SGD steps of 32 images) done by the bare PyTorch loop, in one process and in as
many as there are cores, with the same job done by desim-fl's executors. Two models cannot be recorded. Sides take turns, so that a machine that
slows down slows all of them.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import platform
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl import datasets
from desim_fl.core import Job, Work
from desim_fl.draws import Purpose, stream
from desim_fl.errors import RunError
from desim_fl.executors.choice import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STEPS, BATCH, LR = 19, 32, 0.05
VMAP_WIDTH = 16  # the default of executor.width
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("mlp", {"hidden": [64]}),
    "cnn": ("cnn", {"channels": [8, 16]}),
    "batchnorm": ("desim_fl.bench:small_batchnorm", {}),
    "mlp-branching": ("desim_fl.bench:branching", {"model": "mlp"}),
    "cnn-branching": ("desim_fl.bench:branching", {"model": "cnn"}),
}


def small_batchnorm() -> Any:
    """Build a small network with BatchNorm, which no executor may batch or trace carelessly."""
    from torch import nn  # noqa: PLC0415  (the table of models must not need torch)

    first = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4))
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(8 * 7 * 7, 10))


def branching(model: str) -> Any:
    """Build a built-in model with a branch on its data, which cannot be recorded and keeps the plain step."""
    from torch import nn  # noqa: PLC0415

    from desim_fl.learning.models import factory  # noqa: PLC0415

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            name, args = MODELS[model]
            self.inner = factory(name, args, (1, 28, 28), 10)()

        def forward(self, inputs: Any) -> Any:
            scores = self.inner(inputs)
            return scores if float(scores.detach()[0, 0]) < 1e6 else scores.clamp(max=1e6)  # noqa: PLR2004

    return Branching()


class Figure(NamedTuple):
    """Jobs a second of one side: one number a repeat; ``start_s`` until it could begin, where that is measured."""

    side: str
    rates: tuple[float, ...]
    start_s: float = 0.0
    note: str = ""

    @property
    def mean(self) -> float:
        """Mean of the repeats."""
        return statistics.fmean(self.rates)

    @property
    def sd(self) -> float:
        """Standard deviation of the repeats; 0 for a single one."""
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0


def bare_jobs(model: str, count: int) -> None:
    """Do ``count`` jobs with the loop that anyone would write: contiguous tensors, ``torch.optim.SGD``, ``backward``."""
    import torch  # noqa: PLC0415

    inputs, labels, module = bare_parts(model)
    for job in range(count):
        order = torch.from_numpy(stream(0, Purpose.BATCH_ORDER, 0, job).permutation(STEPS * BATCH))
        optimizer = torch.optim.SGD(module.parameters(), lr=LR)
        for step in range(STEPS):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(inputs[chosen]), labels[chosen]).backward()
            optimizer.step()


def bare_parts(model: str) -> tuple[Any, Any, Any]:
    """Images, labels and module as anyone would hold them."""
    import torch  # noqa: PLC0415

    from desim_fl.learning.models import factory  # noqa: PLC0415

    data = datasets.load("fashion_mnist_6k", seed=0, examples=STEPS * BATCH)
    name, args = MODELS[model]
    module = factory(name, args, data.shape, data.classes)()
    pixels = torch.tensor(data.train_images[:, None], dtype=torch.float32).div(255).sub(data.mean[0]).div(data.std[0])
    return pixels.contiguous(), torch.tensor(data.train_labels), module.train()


def _bare(model: str) -> Callable[[int], None]:
    return lambda count: bare_jobs(model, count)


def _pfl(model: str) -> Callable[[int], Any]:
    from desim_fl import bench_pfl  # noqa: PLC0415  (rarely installed)

    multiprocessing.current_process().name = "MainProcess"  # by which pfl tells who may train
    return bench_pfl.jobs_of(*bare_parts(model), batch=BATCH, lr=LR)


def _process(pipe: Any, made: Callable[[str], Callable[[int], Any]], model: str) -> None:
    """Serve rounds of jobs to the parent, one thread, until told to end."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)  # a process of its own, which ends with the bench
    work = made(model)
    work(1)
    pipe.send("ready")
    while count := pipe.recv():
        work(count)
        pipe.send("done")


class Loops:
    """Some processes that each do jobs one after the other: the bare loop's, or another simulator's."""

    def __init__(self, made: Callable[[str], Callable[[int], Any]], model: str, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for _ in range(processes):
            mine, theirs = context.Pipe()
            process = context.Process(target=_process, args=(theirs, made, model), daemon=True)
            process.start()
            theirs.close()  # so that a process that dies is an EOFError here, not a wait without end
            self.pipes.append(mine)
            self.processes.append(process)
        self._heard()

    def _heard(self) -> None:
        """Wait for all; raises ``RunError`` if one has ended."""
        try:
            for pipe in self.pipes:
                pipe.recv()
        except EOFError:
            raise RunError("bench: a process that was to be measured has ended; what it said stands above") from None

    def work(self, jobs: int) -> int:
        """Do ``jobs`` jobs, the same number in each process; returns how many were done."""
        each = max(1, jobs // len(self.pipes))
        for pipe in self.pipes:
            pipe.send(each)
        self._heard()
        return each * len(self.pipes)

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.send(0)
        for process in self.processes:
            process.join()


@dataclass(slots=True)
class Executing:
    """Jobs through one of desim-fl's executors, without engine, log or reuse.

    ``warm`` are jobs to be done before it is measured: so many come before steps are recorded.
    """

    executor: Any
    task: Any
    done: int = 0
    warm: int = 8

    def work(self, jobs: int) -> int:
        """Submit and collect ``jobs`` jobs."""
        model = self.task.initial()
        work = Work(1, STEPS, LR)
        batch = [Job(self.done + n, 0, self.done + n, 0, model.params, model.buffers, work) for n in range(jobs)]
        self.done += jobs
        for job in batch:
            self.executor.submit(job, job.id)
        for job in batch:
            self.executor.collect(job, STEPS)
            self.executor.release(job)
        return jobs

    def close(self) -> None:
        """Give processes back."""
        self.executor.close()


def _task(model: str) -> Any:
    from desim_fl.learning.classification import ClassificationTask  # noqa: PLC0415
    from desim_fl.learning.models import factory  # noqa: PLC0415

    data = datasets.load("fashion_mnist_6k", seed=0, examples=STEPS * BATCH)
    name, args = MODELS[model]
    made = factory(name, args, data.shape, data.classes)
    return ClassificationTask(seed=0, keys=[0], model=made, dataset=data, parts=[np.arange(STEPS * BATCH)])


def _inline(model: str) -> Executing:
    from desim_fl.executors.inline import InlineExecutor  # noqa: PLC0415

    task = _task(model)
    return Executing(InlineExecutor(task), task)


def _threads(model: str) -> Executing:
    from desim_fl.executors.threads import ThreadExecutor  # noqa: PLC0415

    task = _task(model)
    return Executing(ThreadExecutor(task, cores()), task)


def _pool(model: str) -> Executing:
    from desim_fl.executors.pool import PoolExecutor  # noqa: PLC0415

    task = _task(model)
    return Executing(PoolExecutor(task, cores()), task)


def _ray(model: str) -> Executing:
    from desim_fl.executors.cluster import RayExecutor  # noqa: PLC0415

    task = _task(model)
    return Executing(RayExecutor(task, cores()), task)


def _vmap(model: str) -> Executing:
    from desim_fl.executors.vmap import VmapExecutor  # noqa: PLC0415

    task = _task(model)
    executor = VmapExecutor(task, VMAP_WIDTH, cores())
    return Executing(executor, task, warm=8 if executor.batched is None else 4 * VMAP_WIDTH * cores())


def sides(*, ray: bool = False) -> dict[str, Callable[[str], Any]]:
    """What is compared, by name; the last bare loop is the baseline of the ratios. Ray's side is slow to start.

    pfl-research is measured beside them if it is installed.
    """
    number = cores()
    there = importlib.util.find_spec("pfl") is not None
    peers: dict[str, Callable[[str], Any]] = (
        {f"pfl-research, {number} processes": lambda model: Loops(_pfl, model, number)} if there else {}
    )
    on_ray: dict[str, Callable[[str], Any]] = {f"desim-fl ray, {number} workers": _ray} if ray else {}
    return {
        "bare loop, 1 process": lambda model: Loops(_bare, model, 1),
        f"bare loop, {number} processes": lambda model: Loops(_bare, model, number),
        **peers,
        "desim-fl inline": _inline,
        f"desim-fl threads, {number}": _threads,
        f"desim-fl pool, {number} workers": _pool,
        **on_ray,
        f"desim-fl vmap, {number} processes": _vmap,
    }


def train(model: str, jobs: int, repeats: int, *, ray: bool = False) -> list[Figure]:
    """Measure every side ``repeats`` times, in turns, ``jobs`` jobs each time (a warm-up apart)."""
    running, starts = {}, {}
    for side, start in sides(ray=ray).items():
        began = perf_counter()
        running[side] = start(model)
        running[side].work(2 * cores())
        starts[side] = perf_counter() - began
        if getattr(running[side], "warm", 0):
            running[side].work(running[side].warm)
    rates: dict[str, list[float]] = {side: [] for side in running}
    try:
        for _ in range(repeats):
            for side, worker in running.items():
                began = perf_counter()
                done = worker.work(jobs)
                rates[side].append(done / (perf_counter() - began))
    finally:
        for worker in running.values():
            worker.close()
    notes = {side: getattr(getattr(worker, "executor", None), "reason", "") for side, worker in running.items()}
    return [Figure(side, tuple(values), starts[side], notes[side]) for side, values in rates.items()]


class Choice(NamedTuple):
    """The side that ``auto`` takes for a long run, its share of the fastest exact side's speed, and why."""

    side: str
    share: float
    reason: str


def auto(model: str, figures: Sequence[Figure]) -> Choice:
    """Ask ``auto`` what it takes for a run that is long enough, and look its speed up among the exact sides."""
    from desim_fl.executors.choice import Wish, choose  # noqa: PLC0415  (the table of models must not need torch)

    executor, reason = choose(_task(model), Wish("auto", None, 1, None), [STEPS])
    executor.close()
    kind = type(executor).__name__.removesuffix("Executor").lower().replace("thread", "threads")
    exact = [figure for figure in ours(figures) if "vmap" not in figure.side]
    taken = next(figure for figure in exact if figure.side.startswith(f"desim-fl {kind}"))
    return Choice(taken.side, taken.mean / max(figure.mean for figure in exact), reason)


def auto_near(model: str, figures: Sequence[Figure], exact: Choice) -> Choice:
    """The same where ``executor.near`` allows results that are only near; ``exact`` is what is taken without."""
    from desim_fl.executors.choice import gains_in_batches  # noqa: PLC0415  (as above)

    sides = {figure.side: figure.mean for figure in ours(figures)}
    vmap = next(figure for figure in figures if "vmap" in figure.side)
    batched = gains_in_batches(_task(model)) and "one by one" not in vmap.note
    side = vmap.side if batched else exact.side
    reason = "all layers are dense" if batched else exact.reason
    return Choice(side, sides[side] / max(sides.values()), reason)


def ours(figures: Sequence[Figure]) -> list[Figure]:
    """Those sides that are desim-fl's executors."""
    return [figure for figure in figures if figure.side.startswith("desim-fl")]


def table(model: str, figures: Sequence[Figure]) -> str:
    """Figures as lines of text, with ratios to the bare loop in as many processes as there are cores."""
    baseline = figures[1].mean
    lines = [f"{model}: jobs/s (one job = {STEPS} SGD steps of {BATCH}), n = {len(figures[0].rates)}, {machine()}"]
    lines += [
        f"  {figure.side:28} {figure.mean:9.1f} (sd {figure.sd:.1f})  x {figure.mean / baseline:5.2f}"
        f"  start-up {figure.start_s:.1f} s" + (f"  ({figure.note})" if figure.note else "")
        for figure in figures
    ]
    return "\n".join(lines)


def peak_megabytes() -> float:
    """Peak memory of this process (10^6 bytes), without that of the process it was forked from, which ``ru_maxrss`` holds too."""
    try:
        told = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        told = None
    if told is not None:
        return int(told[1]) * 1024 / 1e6
    import resource  # noqa: PLC0415  (not on every system)

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def machine() -> str:
    """The machine in a few words."""
    return f"{cores()} cores, {platform.machine()}, Python {platform.python_version()}"
