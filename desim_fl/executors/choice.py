"""Which executor a run gets, and why; but for vmap, which must be asked for, it changes real time only."""

from __future__ import annotations

import multiprocessing
import os
from functools import partial
from time import perf_counter  # decides where jobs run, and nothing that the run computes
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.core import Job, Work
from desim_fl.errors import RefusedError
from desim_fl.executors.inline import InlineExecutor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.core import Executor
    from desim_fl.executors.vmap import VmapExecutor
    from desim_fl.learning.task import Task

# What decides ``auto``; measured by ``desim-fl bench train``, see docs/executors.md.
POOL_START_S = 4.0  # until a pool's processes train: each imports torch
THREADS_START_S = 0.2  # until replicas are built
HELD_S = 0.0004  # of each step: Python's own share, in which all other threads wait
THREADS_SHARE = 0.85  # of a pool's speed: what threads reach where steps are long
WORTH_KEEPING = 40  # jobs' seconds over those of keeping their outcomes: 2.5 % are the most that it may cost
_DAY_S = 86_400.0
_PROBED_STEPS = 3


class Wish(NamedTuple):
    """What the scenario asks for, and how many jobs are expected (``None`` = unknown, taken for many).

    ``address`` is a Ray cluster's; ``most`` are the jobs in flight at once, beyond which workers would idle.
    """

    name: str
    workers: int | None
    threads_per_job: int
    jobs: int | None
    address: str | None = None
    most: int | None = None
    width: int = 1
    near: bool = False


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Cost(NamedTuple):
    """Expected training: real seconds of one step, and of all of it in this process (``None`` = unknown, much)."""

    step_s: float
    total_s: float | None


def choose(task: Task, wish: Wish, steps: Sequence[int]) -> tuple[Executor, str]:
    """Make the executor that is asked for, or for ``auto`` the one that is expected to be faster, and say why.

    ``steps`` are the optimiser steps of a usual job, by client.
    """
    workers = wish.workers or max(1, cores() // wish.threads_per_job)
    if wish.name == "vmap":
        return _vmap(task, wish.width, workers)
    if wish.name == "inline":
        return InlineExecutor(task), "asked for"
    if wish.name == "threads":
        return _threads(task, workers), f"asked for, {workers} threads"
    if wish.name == "ray":
        return _ray(task, wish)
    if wish.name == "pool" or (wish.workers or 1) > 1:
        return _pool(task, workers), f"asked for, {workers} workers"
    return _auto(task, wish, workers, steps)


def _auto(task: Task, wish: Wish, workers: int, steps: Sequence[int]) -> tuple[Executor, str]:
    if wish.near and gains_in_batches(task):
        executor, reason = _vmap(task, wish.width, workers)
        if executor.batched is not None:
            return executor, f"auto: near results are allowed, and all layers are dense: {reason}"
        executor.close()
    device = getattr(task, "device", None)
    if device is None or device.type != "cpu" or workers == 1:
        return InlineExecutor(task), "auto: nothing to gain from others (no network, one core, or a GPU)"
    cost = _cost(task, wish.jobs, steps)
    seconds = expected(cost, workers)
    if multiprocessing.current_process().daemon:  # a worker itself, which may not start others
        del seconds["pool"]
    if not _threadable(task):
        del seconds["threads"]
    return _fastest(task, cost, seconds, workers)


def _fastest(task: Task, cost: Cost, seconds: dict[str, float], workers: int) -> tuple[Executor, str]:
    """Make the executor with the fewest expected seconds, the plainer one in doubt."""
    told = "an unknown amount" if cost.total_s is None else f"about {cost.total_s:.1f} s"
    step = f"steps of {1000 * cost.step_s:.1f} ms"
    reason = f"auto: {told} of training expected, {step}"
    if cost.total_s is not None:
        reason += f" ({', '.join(f'{name} {value:.1f} s' for name, value in seconds.items())})"
    name = min(seconds, key=lambda name: seconds[name])
    if name == "threads":
        try:
            return _threads(task, workers), f"{reason}, {workers} threads"
        except RefusedError:  # replicas that share something, say: a look at the model alone did not show it
            return _fastest(task, cost, {key: value for key, value in seconds.items() if key != name}, workers)
    if name == "pool":
        return _pool(task, workers), f"{reason}, {workers} workers"
    return InlineExecutor(task), reason


def expected(cost: Cost, workers: int) -> dict[str, float]:
    """Return the real seconds that each executor is expected to take; for an unknown amount of training, a day's.

    A pool is ``workers`` times as fast once its processes run. Threads need no start but wait for each other while
    Python itself works, so that ``step / HELD_S`` of them are busy at most.
    """
    total = _DAY_S if cost.total_s is None else cost.total_s
    busy = max(0.5, min(workers * THREADS_SHARE, cost.step_s / HELD_S))
    return {
        "inline": total,
        "threads": THREADS_START_S + total / busy,
        "pool": POOL_START_S + total / workers,
    }


def gains_in_batches(task: Any) -> bool:
    """Whether batched training is faster than processes: small dense networks on a CPU, measured.

    Nothing of this machine is asked, so that the same scenario gives the same bits anywhere that it is asked.
    """
    if not hasattr(task, "module") or task.device.type != "cpu":
        return False
    from desim_fl.learning.trial import gains  # noqa: PLC0415  (needs torch)

    return gains(task.module)


def _threadable(task: Any) -> bool:
    """Whether threads are sure to be safe: no random numbers, and no layer whose code is not torch's own."""
    if not hasattr(task, "replica") or getattr(task, "draws_random", True):
        return False
    from desim_fl.learning.replica import only_torchs_own  # noqa: PLC0415  (needs torch)

    return only_torchs_own(task.module)


def reusing(inner: Executor, task: Any, steps: Sequence[int], *, wish: bool | None, limit_gb: float) -> Executor:
    """Put the store of outcomes in front of an executor where that is asked for; for ``None`` where it is sure and pays.

    Sure: exact results of a network whose code is all ours, so that the key holds whatever they depend on. It pays
    where a usual job takes ``WORTH_KEEPING`` times what keeping an outcome does. Tasks without a network are played as
    they are.
    """
    sure = wish or (getattr(inner, "exact", False) and _built_in(task))
    if wish is False or not hasattr(task, "module") or not sure:
        return inner
    from desim_fl.executors.reuse import ReuseExecutor, keeping_s  # noqa: PLC0415  (needs torch)
    from desim_fl.executors.store import Behind, Store, default_folder  # noqa: PLC0415
    from desim_fl.learning.identity import Identity  # noqa: PLC0415

    store = Store(default_folder(), round(limit_gb * 1e9))
    if wish is None and _job_s(task, steps) < WORTH_KEEPING * keeping_s(task, store):
        return inner
    return ReuseExecutor(inner, Behind(store), Identity(task), task.device)


def _built_in(task: Any) -> bool:
    """Whether a task's model is one of ours: what a user's may read besides its code, no key can hold."""
    model = getattr(task, "model", None)
    if not isinstance(model, partial) or not model.func.__module__.startswith("desim_fl."):
        return False
    return not any(isinstance(argument, str) and ":" in argument for argument in model.args)


def _job_s(task: Task, steps: Sequence[int]) -> float:
    """Real seconds of a usual job in this process."""
    return _cost(task, None, steps).step_s * sum(steps) / len(steps)


def _threads(task: Task, workers: int) -> Executor:
    from desim_fl.executors.threads import ThreadExecutor  # noqa: PLC0415

    return ThreadExecutor(task, workers)


def _pool(task: Task, workers: int) -> Executor:
    from desim_fl.executors.pool import PoolExecutor  # noqa: PLC0415  (only a pool needs torch's multiprocessing)

    return PoolExecutor(task, workers)


def _ray(task: Task, wish: Wish) -> tuple[Executor, str]:
    from desim_fl.executors.cluster import RayExecutor  # noqa: PLC0415

    executor = RayExecutor(task, wish.workers, wish.address, threads=wish.threads_per_job, most=wish.most)
    executor.start(task.initial())
    where = "a Ray instance of this machine" if wish.address is None else f"the Ray cluster at {wish.address}"
    return executor, f"asked for, {executor.workers} workers on {where} ({executor.nodes} nodes)"


def _vmap(task: Task, width: int, lanes: int) -> tuple[VmapExecutor, str]:
    from desim_fl.executors.vmap import VmapExecutor  # noqa: PLC0415  (as the pool)

    executor = VmapExecutor(task, width, lanes)
    return executor, f"vmap: {executor.reason}"


def _cost(task: Task, jobs: int | None, steps: Sequence[int]) -> Cost:
    """Time a few steps of the client with most of them."""
    client = max(range(len(steps)), key=lambda index: steps[index])
    count = min(_PROBED_STEPS, steps[client])
    if count == 0:
        return Cost(0.0, 0.0)
    model = task.initial()
    job = Job(-1, client, 0, 0, model.params, model.buffers, Work(1, count, 1e-3))
    task.train(job, count)  # warms up
    began = perf_counter()
    task.train(job, count)
    step_s = (perf_counter() - began) / count
    return Cost(step_s, None if jobs is None else step_s * jobs * sum(steps) / len(steps))
