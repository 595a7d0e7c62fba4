"""What the tests of the Ray executor train; few imports, because every worker on the cluster does them."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from reference import Setting

from desim_fl.core import Job, Model, Outcome, Promise, Score, Work

if TYPE_CHECKING:
    from pathlib import Path

HALF_MIB = 1 << 19


class Carried(NamedTuple):
    """What a job carries that is to be trained with one of ``tasks``: which, and the job's own ``extra``."""

    which: int
    extra: Any


class Errands:
    """One task for all: ``job.extra`` says what is to be done.

    A ``Setting`` plays a world of floats, ``Carried`` trains with one of ``tasks``, a word is an accident, ``None`` adds
    the client's number.
    """

    def __init__(self, folder: Path, tasks: tuple[Any, ...] = ()) -> None:
        self.folder, self.tasks = folder, tasks
        self.data = np.arange(4 * HALF_MIB, dtype=np.uint8)

    def train(self, job: Job, steps: int) -> Any:
        """Do the errand; leaves a trace of the order in which jobs were done."""
        if isinstance(job.extra, Setting):
            value = job.extra.learned(job.params, job.client, job.nth)
            return Outcome(value, examples=job.extra.sizes[job.client], steps=steps, loss=0.5)
        if isinstance(job.extra, Carried):
            return self.tasks[job.extra.which].train(job._replace(extra=job.extra.extra), steps)
        with (self.folder / "order").open("a") as file:
            file.write(f"{job.id}\n")
        return self._accident(job, steps)

    def _accident(self, job: Job, steps: int) -> Any:
        if job.extra == "slow":
            time.sleep(0.4)
        if job.extra == "very slow":
            time.sleep(60)
        if job.extra == "fail":
            raise ValueError("no luck today")
        if job.extra == "memory":
            raise MemoryError
        if job.extra == "nothing":
            return None
        if job.extra == "unsendable":
            return Outcome(job.params, steps=steps, extra=lambda: 0)
        if job.extra == "where is the data":
            return Outcome(job.params, steps=steps, extra=(_mapping(self.data), int(self.data[-1])))
        if job.extra == "environment":
            return Outcome(job.params, steps=steps, extra=dict(os.environ))
        first = not (self.folder / f"died{job.id}").exists()
        if job.extra == "die" or (job.extra == "die once" and first):
            (self.folder / f"died{job.id}").touch()
            time.sleep(0.3)  # the answer to the job before is out: lost with its worker, it would be blamed too
            os.kill(os.getpid(), signal.SIGKILL)
        return Outcome(job.params + job.client, job.buffers, examples=1, steps=steps, loss=0.0)

    def evaluate(self, model: Model) -> tuple[Score, ...]:
        """Versions from 1000 on belong to ``tasks``; else the parameter is the loss."""
        if model.version >= 1000:
            which, version = divmod(model.version, 1000)
            return self.tasks[which - 1].evaluate(model._replace(version=version))
        return (Score("test", float(model.params), None, 1),)


def _mapping(array: np.ndarray) -> str:
    """The line of this process's memory map that holds the middle of an array."""
    place = array.ctypes.data + array.nbytes // 2
    for line in open("/proc/self/maps"):  # noqa: SIM115, PTH123
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= place < high:
            return line.strip()
    return ""


def errand(number: int, extra: Any = None, params: Any = 10.0) -> Job:
    """A job of client ``number``."""
    return Job(number, number, 0, 0, params, None, Work(1, 4, 0.1), extra)


class Unbuildable(Errands):
    """A task that cannot be rebuilt in another process."""

    def __reduce__(self):
        return int, ("not a number",)


class Vanishing(Errands):
    """A task that ends the process which tries to rebuild it."""

    def __reduce__(self):
        return os._exit, (3,)


class Guest(NamedTuple):
    """An engine's executor that is one of many guests of a long-lived one: ids are moved, ``extra`` says whose it is."""

    host: Any
    extra: Any
    first: int
    name: str = "ray"

    def moved(self, job: Job) -> Job:
        """The job as the host knows it."""
        carried = Carried(self.extra, job.extra) if isinstance(self.extra, int) else self.extra
        return job._replace(id=job.id + self.first, extra=carried)

    def submit(self, job: Job, due: int) -> None:
        """Pass on."""
        self.host.submit(self.moved(job), due)

    def collect(self, job: Job, steps: int) -> Outcome:
        """Pass on."""
        return self.host.collect(self.moved(job), steps)

    def release(self, job: Job) -> None:
        """Pass on."""
        self.host.release(self.moved(job))

    def evaluate(self, model: Model) -> Promise:
        """Pass on; whose the version is stands in its number."""
        whose = 1000 * (self.extra + 1) if isinstance(self.extra, int) else 0
        return self.host.evaluate(model._replace(version=model.version + whose))

    def close(self) -> None:
        """The host stays."""
