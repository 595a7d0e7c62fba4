"""The runs of a study on a Ray cluster: the executor of jobs is given whole runs instead.

What the executor does for jobs, it does for runs: the cluster's workers are found, compared with this machine and listened to, a
run whose worker or node is lost is played again, and one at which two workers died has failed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl import durable
from desim_fl.core import Job, Model, Outcome, Work
from desim_fl.errors import JobError
from desim_fl.executors import fingerprint
from desim_fl.executors.cluster import RayExecutor
from desim_fl.study.playing import failed, play

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from desim_fl.study.playing import Row, Task

_AHEAD = 3  # runs a worker that are handed over before their rows are asked for
_STEPS = 1  # what the executor counts; a run is one


class Cluster(NamedTuple):
    """Where a study's runs are played: ``address`` as in ``[executor]``, ``None`` = an instance of this machine's own.

    ``workers`` are the runs side by side, ``None`` = as many as the cluster has room for.
    """

    address: str | None = None
    workers: int | None = None

    @property
    def inline(self) -> bool:
        """Each run trains in the process that plays it."""
        return True

    def played(self, tasks: Sequence[Task]) -> Generator[Row]:
        """Play tasks and yield a row for each as it comes.

        Raises ``RefusedError`` where there is no such cluster, or where it would give other results, and ``RunError`` where it goes away.
        """
        if not tasks:
            return
        threads = max(task.scenario.executor.threads_per_job for task in tasks)
        player: Any = Player(_device(tasks))
        executor = RayExecutor(player, self.workers, self.address, threads=threads, most=len(tasks))
        with closing(executor):
            executor.start(Model(0, None))
            yield from _rows(executor, tasks)


def _rows(executor: RayExecutor, tasks: Sequence[Task]) -> Iterator[Row]:
    waiting = iter(enumerate(tasks))
    flying: dict[int, Task] = {}
    while True:
        while len(flying) < _AHEAD * executor.workers and (following := next(waiting, None)) is not None:
            number, task = following
            flying[number] = task
            executor.submit(_job(number, task), number)
        if not flying:
            return
        number = executor.first_done()
        yield _received(executor, number, flying.pop(number))


def _job(number: int, task: Task) -> Job:
    return Job(number, number, 0, 0, None, None, Work(steps=_STEPS), extra=task)


def _received(executor: RayExecutor, number: int, task: Task) -> Row:
    """Return the row of a run that is over, and put its run directory where it belongs."""
    try:
        row, files = executor.collect(_job(number, task), _STEPS).extra
    except JobError as error:
        return failed(task.key, str(error.__cause__ or error))
    if task.folder is not None and files:
        _unpack(task.folder, files)
    return row


def _unpack(folder: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a study that was stopped
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(path, content)


def _device(tasks: Sequence[Task]) -> Any:
    """Return the device on which the runs train; ``None`` where none does, so that torch is not needed."""
    names = {task.scenario.executor.device for task in tasks if not task.timing_only}
    if not names:
        return None
    from desim_fl.learning.device import resolve  # noqa: PLC0415  (needs torch)

    found = [resolve(name) for name in sorted(names)]
    return next((device for device in found if device.type == "cuda"), found[0])


class Player:
    """What a worker does: it plays the run that a job carries."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def __reduce__(self) -> tuple[Any, ...]:
        return _seated, (self.device, fingerprint.package(), str(Path.cwd()))

    def train(self, job: Job, steps: int) -> Outcome:
        """Play the run: its row and, where that is kept, the files of its run directory by name."""
        task: Task = job.extra
        if task.folder is None:
            return Outcome(job.params, steps=steps, extra=(play(task), {}))
        with tempfile.TemporaryDirectory(prefix="desim-fl-") as home:
            kept = Path(home) / task.folder.name
            row = play(replace(task, folder=kept))
            files = {
                str(path.relative_to(kept)): path.read_bytes() for path in sorted(kept.rglob("*")) if path.is_file()
            }
        return Outcome(job.params, steps=steps, extra=(row, files))


def _seated(device: Any, package: str, folder: str) -> Player:
    """Make a player in a worker. Raises ``Mixed`` where desim-fl has another source there."""
    if fingerprint.package() != package:
        raise fingerprint.Mixed(f"desim-fl's source is {fingerprint.package()} there, {package} here")
    with suppress(OSError):  # paths of data are seen from the folder of the study, where there is such a one
        os.chdir(folder)
    return Player(device)
