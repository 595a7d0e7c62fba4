"""Which executor a run gets, and why; but for vmap, which must be asked for, it changes real time only."""

from __future__ import annotations

import multiprocessing
import os
from time import perf_counter  # decides where jobs run, and nothing that the run computes
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.core import Job, Work
from desim_fl.executors.inline import InlineExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.core import Executor
    from desim_fl.learning.task import Task

WORTH_S = 12.0  # of expected training: below it, starting processes (each imports torch) costs more than it saves
_PROBED_STEPS = 3


class Wish(NamedTuple):
    """What the scenario asks for, and how many jobs are expected (``None`` = unknown, taken for many)."""

    name: str
    workers: int | None
    threads_per_job: int
    jobs: int | None
    width: int = 1


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose(task: Task, wish: Wish, steps: Sequence[int]) -> tuple[Executor, str]:  # noqa: PLR0911  (one a case)
    """Make the executor that is asked for, or for ``auto`` the one that is expected to be faster, and say why.

    ``steps`` are the optimiser steps of a usual job, by client.
    """
    workers = wish.workers or max(1, cores() // wish.threads_per_job)
    if wish.name == "vmap":
        return _vmap(task, wish.width, workers)
    if wish.name == "inline":
        return InlineExecutor(task), "asked for"
    if wish.name == "pool" or (wish.workers or 1) > 1:
        return _pool(task, workers), f"asked for, {workers} workers"
    device = getattr(task, "device", None)
    if multiprocessing.current_process().daemon:
        return InlineExecutor(task), "auto: this process is a worker itself and may not start others"
    if device is None or device.type != "cpu" or workers == 1:
        return InlineExecutor(task), "auto: nothing to gain from processes (no network, one core, or a GPU)"
    seconds = _expected_s(task, wish.jobs, steps)
    told = "an unknown amount" if seconds is None else f"about {seconds:.0f} s"
    if seconds is None or seconds >= WORTH_S:
        return _pool(task, workers), f"auto: {told} of training expected, {workers} workers"
    return InlineExecutor(task), f"auto: {told} of training expected, less than starting workers is worth"


def reusing(inner: Executor, task: Task, limit_gb: float) -> Executor:
    """Put the store of outcomes in front of an executor; tasks without a network are played as they are."""
    if not hasattr(task, "module"):
        return inner
    from desim_fl.executors.reuse import ReuseExecutor  # noqa: PLC0415  (needs torch)
    from desim_fl.executors.store import Store, default_folder  # noqa: PLC0415
    from desim_fl.learning.identity import Identity  # noqa: PLC0415

    network: Any = task
    store = Store(default_folder(), round(limit_gb * 1e9))
    return ReuseExecutor(inner, store, Identity(network), network.device)


def _pool(task: Task, workers: int) -> Executor:
    from desim_fl.executors.pool import PoolExecutor  # noqa: PLC0415  (only a pool needs torch's multiprocessing)

    return PoolExecutor(task, workers)


def _vmap(task: Task, width: int, lanes: int) -> tuple[Executor, str]:
    from desim_fl.executors.vmap import VmapExecutor  # noqa: PLC0415  (as the pool)

    executor = VmapExecutor(task, width, lanes)
    return executor, f"vmap: {executor.reason}"


def _expected_s(task: Task, jobs: int | None, steps: Sequence[int]) -> float | None:
    """Seconds that all jobs would take one after the other, from a few steps of the client with most of them."""
    if jobs is None:
        return None
    client = max(range(len(steps)), key=lambda index: steps[index])
    count = min(_PROBED_STEPS, steps[client])
    if count == 0:
        return 0.0
    model = task.initial()
    job = Job(-1, client, 0, 0, model.params, model.buffers, Work(1, count, 1e-3))
    task.train(job, count)  # warms up
    began = perf_counter()
    task.train(job, count)
    return (perf_counter() - began) / count * jobs * sum(steps) / len(steps)
