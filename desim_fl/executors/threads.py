"""Threads of this process: nothing to start, nothing to send; each trains on its own replica of the task's module.

Results do not depend on where or when a job ran: a replica shares the samples and nothing that training changes, and
each thread pins its own intra-op threads, so its bits are those of the inline executor. Models that draw random numbers
are refused, since torch's generators belong to the whole process.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import traceback
import weakref
from dataclasses import dataclass
from time import perf_counter  # provenance only: real seconds never enter virtual time
from typing import TYPE_CHECKING, Any

from desim_fl.core import Job, Model, Outcome, Promise
from desim_fl.errors import DesimError, JobError, LawError, RefusedError, RunError
from desim_fl.executors.inline import Wall, checked, told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from desim_fl.learning.task import Task

_URGENT = -1  # before any arrival
_LISTEN_S = 0.1  # between looks for Ctrl-C: polars sets its signals so that they do not end a wait for a lock
_PATIENCE_S = 3.0  # for threads to end their step when the executor is closed


@dataclass(slots=True, eq=False)
class Errand:
    """One thing to be done: a job's training or a version's evaluation; ``subject`` is let go when it is settled."""

    number: int
    due: int
    subject: Job | Model | None
    steps: int
    begun: bool = False
    wanted: bool = True
    settled: bool = False
    result: Any = None
    failure: BaseException | None = None
    worker: int | None = None

    def done_by(self, task: Task) -> Any:
        """Do it."""
        if isinstance(self.subject, Job):
            return task.train(self.subject, self.steps)
        assert self.subject is not None
        return tuple(task.evaluate(self.subject))


@dataclass(slots=True, eq=False)
class Hand:
    """A thread as the others see it: its number, its replica, and what it is at."""

    number: int
    task: Task | None = None
    errand: Errand | None = None


class Workshop:
    """Threads that do the most urgent errand first; they know nothing of the executor, so that it can be forgotten.

    ``wall`` grows by one row a trained job.
    """

    def __init__(self) -> None:
        lock = threading.RLock()  # a garbage collection may close the executor while this very thread holds it
        self._todo, self._done = threading.Condition(lock), threading.Condition(lock)
        self._queue: list[tuple[int, int, Errand]] = []
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []
        self.closed = False
        self.wall: list[Wall] = []

    def halted(self, hand: Hand) -> bool:
        """Whether nobody wants what a thread is at."""
        errand = hand.errand
        return self.closed or (errand is not None and not errand.wanted)

    def start(self, hands: Sequence[Hand]) -> None:
        """Start one thread for each hand."""
        for hand in hands:
            thread = threading.Thread(
                target=self._serve, args=(hand,), name=f"desim-fl thread {hand.number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    # ---- for the thread of the engine

    def put(self, due: int, subject: Job | Model, steps: int) -> Errand:
        """Queue something; a free thread begins at once."""
        with self._todo:
            self._check_open()
            errand = Errand(next(self._numbers), due, subject, steps)
            self._push(errand)
            return errand

    def _push(self, errand: Errand) -> None:
        heapq.heappush(self._queue, (errand.due, errand.number, errand))
        self._todo.notify()

    def _check_open(self) -> None:
        if self.closed:
            raise RunError("the executor's threads have ended")

    def change(self, errand: Errand, steps: int) -> bool:
        """Let a job do another number of steps; ``False`` where it has begun."""
        with self._todo:
            if not errand.begun:
                errand.steps = steps
            return errand.steps == steps

    def drop(self, errand: Errand) -> None:
        """Nobody wants this any more: it does not begin, or ends at its next step."""
        with self._todo:
            errand.wanted, errand.result, errand.failure = False, None, None
            if not errand.begun:
                errand.subject = None

    def settle(self, errand: Errand) -> None:
        """Wait until something is done; it goes first if it has not begun. Ctrl-C is heard at once."""
        with self._done:
            if not errand.begun and errand.due != _URGENT:
                errand.due = _URGENT
                self._push(errand)
            while not errand.settled:
                self._check_open()
                self._done.wait(_LISTEN_S)

    def end(self) -> None:
        """Let the threads end: each at its next step. Whoever takes longer than some seconds is left to end later."""
        with self._todo:
            self.closed = True
            self._queue.clear()
            self._todo.notify_all()
            self._done.notify_all()
        until = perf_counter() + _PATIENCE_S
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, until - perf_counter()))
        self._threads = [thread for thread in self._threads if thread.is_alive()]

    # ---- in the threads

    def _serve(self, hand: Hand) -> None:
        try:
            while self._one(hand):
                pass
        finally:  # whatever ended it: nobody may wait for it
            hand.task = None
            with self._todo:
                self.closed = True
                self._done.notify_all()

    def _one(self, hand: Hand) -> bool:
        """Do the most urgent errand; a call of its own, so that a thread that waits holds no version."""
        errand = self._next(hand)
        if errand is None:
            return False
        begin = perf_counter()
        result, failure = _attempted(hand, errand)
        self._settled(hand, errand, result, failure, perf_counter() - begin)
        return True

    def _next(self, hand: Hand) -> Errand | None:
        with self._todo:
            while not self.closed:
                while self._queue:
                    errand = heapq.heappop(self._queue)[2]
                    if errand.wanted and not errand.begun:  # else it was dropped, or went first
                        errand.begun, errand.worker, hand.errand = True, hand.number, errand
                        return errand
                self._todo.wait()
        return None

    def _settled(self, hand: Hand, errand: Errand, result: Any, failure: BaseException | None, seconds: float) -> None:
        with self._done:
            if errand.wanted and failure is None and isinstance(errand.subject, Job):
                self.wall.append(Wall(errand.subject.id, errand.subject.client, seconds))
            if errand.wanted:
                errand.result, errand.failure = result, failure
            errand.subject, errand.settled, hand.errand = None, True, None
            self._done.notify_all()


class ThreadExecutor:
    """Trains in ``workers`` threads. ``wall`` holds the real seconds of each job, waiting for the interpreter included.

    Raises ``RefusedError`` for a task that cannot be replicated: a model that draws random numbers, or whose replicas
    would share a layer; an accelerator. ``close`` lets each thread end its step (an evaluation: the whole of it), but
    waits three seconds at most; no thread keeps the process alive.
    """

    exact = True
    name = "threads"

    def __init__(self, task: Task, workers: int) -> None:
        self.task, self.workers = task, workers
        self._errands: dict[int, Errand] = {}
        self._latest = 0
        self._workshop = Workshop()
        self._end = weakref.finalize(self, self._workshop.end)
        self._workshop.start([_hired(task, number, self._workshop) for number in range(workers)])

    @property
    def wall(self) -> list[Wall]:
        """Real seconds of the jobs that were trained."""
        return self._workshop.wall

    def submit(self, job: Job, due: int) -> None:
        """Queue a job; a free thread starts it at once."""
        if job.id in self._errands:
            raise LawError(f"job {job.id} was submitted twice")
        self._latest = max(self._latest, due)
        self._errands[job.id] = self._workshop.put(due, job, job.work.steps or 0)

    def collect(self, job: Job, steps: int) -> Outcome:
        """Wait for a job; one that has begun and reports early is done again for so many steps."""
        errand = self._errands.pop(job.id, None)
        if errand is None:
            raise LawError(f"job {job.id} is not waiting here: never submitted, released, or collected before")
        if not self._workshop.change(errand, steps):
            self._workshop.drop(errand)
            errand = self._workshop.put(_URGENT, job, steps)
        self._settle(errand)
        name = f"{self.name}, worker {errand.worker}"
        if errand.failure is not None:
            raise JobError(job.id, job.client, job.version, name, told(errand.failure)) from errand.failure
        return checked(job, errand.result, steps, name)

    def release(self, job: Job) -> None:
        """Drop a job that has not started; one that runs ends at its next step."""
        errand = self._errands.pop(job.id, None)
        if errand is not None:
            self._workshop.drop(errand)

    def evaluate(self, model: Model) -> Promise:
        """Score a version beside training, not before jobs that are already known."""
        errand, version = self._workshop.put(self._latest, model, 0), model.version

        def scores() -> Any:
            self._settle(errand)
            failure = errand.failure
            if failure is None:
                return errand.result
            if isinstance(failure, DesimError):
                raise failure
            why = f"{type(failure).__name__}: {failure}"
            raise RunError(f"evaluating version {version} failed: {why}") from failure

        return Promise(scores, lambda: errand.settled)

    def _settle(self, errand: Errand) -> None:
        try:
            self._workshop.settle(errand)
        except KeyboardInterrupt:  # nothing that still runs is waited for, evaluations included
            self.close()
            raise

    def close(self) -> None:
        """End the threads; what they still do is thrown away."""
        self._errands.clear()
        self._end()


def _attempted(hand: Hand, errand: Errand) -> tuple[Any, BaseException | None]:
    """Do it, or return what was raised; a frame that kept the exception would be a ring, and hold the job's version."""
    try:
        assert hand.task is not None
        return errand.done_by(hand.task), None
    except BaseException as error:  # noqa: BLE001  (the engine's thread raises it, with the job's name)
        if not errand.wanted:
            traceback.clear_frames(error.__traceback__)
        return None, error


def _hired(task: Task, number: int, workshop: Workshop) -> Hand:
    replica: Callable[[Callable[[], bool]], Task] | None = getattr(task, "replica", None)
    if replica is None:
        raise RefusedError(
            f'[executor] name = "threads": a {type(task).__name__} has no replica() for another thread; '
            'use "pool" or "inline"'
        )
    hand = Hand(number)
    hand.task = replica(lambda: workshop.halted(hand))
    return hand
