"""Processes that play the runs of a study side by side; one that dies takes only its own run with it."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import os
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from desim_fl.study.playing import failed, play

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from multiprocessing.context import SpawnProcess

    from desim_fl.study.playing import Row, Task

_TRIES = 2  # times that a run is begun whose process dies: memory may have been short


class _Worker(NamedTuple):
    process: SpawnProcess
    pipe: Any  # a Connection, or what Windows has instead


def processes() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Players(Protocol):
    """Who plays the runs of a study: processes of this machine, or workers of a cluster."""

    @property
    def inline(self) -> bool:
        """Whether a run trains in the process that plays it, beside other runs."""
        ...

    def played(self, tasks: Sequence[Task]) -> Generator[Row]:
        """Play tasks and yield a row for each as it comes."""
        ...


class Processes(NamedTuple):
    """So many processes of this machine."""

    workers: int

    @property
    def inline(self) -> bool:
        """Where there are several."""
        return self.workers > 1

    def played(self, tasks: Sequence[Task]) -> Generator[Row]:
        """Play tasks and yield a row for each as it comes; in this process where there is one worker or one task."""
        if self.workers <= 1 or len(tasks) <= 1:
            yield from map(play, tasks)
            return
        crew = Crew(min(self.workers, len(tasks)))
        try:
            yield from crew.played(tasks)
        finally:
            crew.close()


class Crew:
    """Worker processes, each with one task at a time."""

    def __init__(self, count: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._workers = [self._start() for _ in range(count)]

    def _start(self) -> _Worker:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, mine)

    def played(self, tasks: Sequence[Task]) -> Generator[Row]:
        """Yield a row for each task, in the order in which they are done."""
        waiting = deque((task, 1) for task in tasks)
        busy: dict[int, tuple[Task, int]] = {}
        while waiting or busy:
            for place in range(len(self._workers)):
                self._give(place, waiting, busy)
            pipes = {self._workers[place].pipe: place for place in busy}
            for pipe in multiprocessing.connection.wait(list(pipes)):
                place = pipes[pipe]
                task, tried = busy.pop(place)
                row = self._receive(place)
                if row is None:
                    why = self._death(place)
                    self._workers[place] = self._start()
                    if tried < _TRIES:
                        waiting.append((task, tried + 1))
                    else:
                        yield failed(task.key, why)
                else:
                    self._give(place, waiting, busy)  # before its row is kept, which takes a while
                    yield row

    def _give(self, place: int, waiting: deque[tuple[Task, int]], busy: dict[int, tuple[Task, int]]) -> None:
        """Let an idle worker begin what waits."""
        if place not in busy and waiting:
            busy[place] = waiting.popleft()
            self._send(place, busy[place][0])

    def _send(self, place: int, task: Task) -> None:
        with contextlib.suppress(OSError):  # it died while idle; waiting for its answer will show it
            self._workers[place].pipe.send(task)

    def _receive(self, place: int) -> Row | None:
        """Return a worker's row; ``None`` where it has died."""
        try:
            return self._workers[place].pipe.recv()
        except (EOFError, OSError):
            self._workers[place].process.join()
            return None

    def _death(self, place: int) -> str:
        code = self._workers[place].process.exitcode
        why = " (killed: the machine may be out of memory)" if code == -9 else ""  # noqa: PLR2004
        return f"the process that played it ended with code {code}{why}, {_TRIES} times"

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
            worker.process.join()


def _serve(pipe: Any) -> None:
    """Play what comes, until the other end is closed."""
    import signal  # noqa: PLC0415
    import sys  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the study hears it, and ends its workers
    with contextlib.suppress(EOFError, OSError), contextlib.redirect_stdout(sys.stderr):
        pipe.send(play(pipe.recv()))
        gc.freeze()  # what is loaded by now stays; to look through it again and again takes a seventh of short runs
        while True:
            pipe.send(play(pipe.recv()))
