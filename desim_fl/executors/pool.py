"""Worker processes: jobs start when they are dispatched, the most urgent virtual arrival first.

Results do not depend on where or when a job ran: each worker rebuilds the task from its recipe and pins its threads,
so its bits are those of the inline executor. The data set is mapped into the workers; a version's parameters are sent
to a worker once. A worker that dies is replaced and its jobs are done again, once.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from multiprocessing import connection as waiting
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from torch import multiprocessing

from desim_fl.core import Job, Model, Outcome, Promise
from desim_fl.errors import JobError, LawError, RunError
from desim_fl.executors import worker
from desim_fl.executors.inline import Wall
from desim_fl.executors.parcels import packed, unpacked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.learning.task import Task

_QUEUED = 2  # per worker: one that runs, one that waits, so that urgency keeps its meaning
_ATTEMPTS = 2
_PATIENCE_S = 3.0


class WorkerError(Exception):
    """What went wrong in a worker, with the traceback as it was printed there."""


@dataclass(slots=True)
class Ticket:
    """One thing to be done: a job's training, or (``job`` is ``None``) a version's evaluation."""

    number: int
    due: int
    key: tuple[int, int]
    steps: int
    job: Job | None = None
    version: int = 0
    attempts: int = 0
    wanted: bool = True
    result: Any = None
    failure: WorkerError | None = None
    worker: int | None = None  # who has it now, or had it last

    @property
    def settled(self) -> bool:
        """Whether its result, or its failure, is known."""
        return self.result is not None or self.failure is not None


@dataclass(slots=True)
class Hand:
    """A worker as the parent sees it."""

    number: int
    process: Any
    pipe: Any
    ready: bool = False
    tickets: dict[int, Ticket] = field(default_factory=dict)
    models: set[tuple[int, int]] = field(default_factory=set)


@dataclass(slots=True)
class Shipment:
    """A version's content while anything still needs it."""

    params: Any
    buffers: Any
    users: int = 0


class PoolExecutor:
    """Trains in ``workers`` spawned processes. ``wall`` holds the real seconds of each job, as its worker measured."""

    exact = True
    name = "pool"

    def __init__(self, task: Task, workers: int) -> None:
        self.task, self.workers = task, workers
        self.wall: list[Wall] = []
        self._context = multiprocessing.get_context("spawn")
        self._hands: list[Hand] = []
        self._numbers = itertools.count()
        self._queue: list[tuple[int, int, Ticket]] = []
        self._jobs: dict[int, Ticket] = {}
        self._models: dict[tuple[int, int], Shipment] = {}  # by ids of parameters and buffers, which it keeps alive
        self._latest = 0
        self._closed = False

    # ---- the executor's side

    def submit(self, job: Job, due: int) -> None:
        """Queue a job; a free worker starts it at once."""
        if job.id in self._jobs:
            raise LawError(f"job {job.id} was submitted twice")
        self._latest = max(self._latest, due)
        planned = job.work.steps or 0
        self._jobs[job.id] = self._enqueue(due, job.params, job.buffers, planned, job=job)

    def collect(self, job: Job, steps: int) -> Outcome:
        """Wait for a job; one that reports early is done again for so many steps."""
        ticket = self._jobs.pop(job.id, None)
        if ticket is None:
            raise LawError(f"job {job.id} is not waiting here: never submitted, released, or collected before")
        if ticket.steps != steps:
            self._forget(ticket)
            ticket = self._enqueue(ticket.due, job.params, job.buffers, steps, job=job)
        outcome: Outcome = self._settle(ticket)
        return outcome._replace(buffers=job.buffers if outcome.buffers is None else outcome.buffers)

    def release(self, job: Job) -> None:
        """Drop a job that has not started; the result of one that runs is thrown away."""
        ticket = self._jobs.pop(job.id, None)
        if ticket is not None:
            self._forget(ticket)

    def evaluate(self, model: Model) -> Promise:
        """Score a version beside training, not before jobs that are already known."""
        ticket = self._enqueue(self._latest, model.params, model.buffers, 0, version=model.version)

        def ready() -> bool:
            self._pump(0.0)
            return ticket.settled

        return Promise(lambda: self._settle(ticket), ready)

    def close(self) -> None:
        """End the workers; whatever they still do is thrown away."""
        if self._closed:
            return
        self._closed = True
        for hand in self._hands:
            try:
                hand.pipe.send(None)
            except OSError:
                continue
        for hand in self._hands:
            if hand.tickets:
                hand.process.terminate()
            hand.process.join(_PATIENCE_S)
            if hand.process.is_alive():
                hand.process.kill()
                hand.process.join()
            hand.pipe.close()
            hand.process.close()
        self._hands, self._queue, self._jobs, self._models = [], [], {}, {}

    # ---- tickets

    def _enqueue(self, due: int, params: Any, buffers: Any, steps: int, **what: Any) -> Ticket:
        key = (id(params), id(buffers))
        shipment = self._models.setdefault(key, Shipment(params, buffers))
        shipment.users += 1
        ticket = Ticket(next(self._numbers), due, key, steps, **what)
        heapq.heappush(self._queue, (due, ticket.number, ticket))
        self._pump(0.0)
        return ticket

    def _forget(self, ticket: Ticket) -> None:
        """Nobody wants this any more."""
        if ticket.wanted:
            ticket.wanted = False
            if ticket.worker is None or ticket.settled:
                self._let_go(ticket)

    def _let_go(self, ticket: Ticket) -> None:
        """One user less of a version; after the last one workers forget it too."""
        shipment = self._models[ticket.key]
        shipment.users -= 1
        if shipment.users:
            return
        del self._models[ticket.key]
        for hand in self._hands:
            if ticket.key in hand.models:
                hand.models.discard(ticket.key)
                self._send(hand, ("drop", ticket.key))

    def _settle(self, ticket: Ticket) -> Any:
        """Wait until a ticket is settled; it goes first if it has not started."""
        while not ticket.settled:
            if ticket.worker is None:
                heapq.heappush(self._queue, (-1, ticket.number, ticket))
            self._pump(None)
        if ticket.wanted:
            ticket.wanted = False
            self._let_go(ticket)
        if ticket.failure is None:
            return ticket.result
        if ticket.job is None:
            raise RunError(f"evaluating version {ticket.version} failed: {ticket.failure}") from ticket.failure
        job, name = ticket.job, f"pool, worker {ticket.worker}"
        summary = str(ticket.failure).splitlines()[0]
        raise JobError(job.id, job.client, job.version, name, summary) from ticket.failure

    # ---- workers

    def _pump(self, timeout: float | None) -> None:
        """Hand out what waits, and take in what has come; waits for something if ``timeout`` is ``None``."""
        if not self._hands and not self._closed:
            self._hands = [self._hire(number) for number in range(self.workers)]
        self._hand_out()
        by_end = {hand.pipe: hand for hand in self._hands} | {hand.process.sentinel: hand for hand in self._hands}
        for end in waiting.wait(list(by_end), timeout):
            hand = by_end[end]
            if hand in self._hands:
                self._take_in(hand)
        self._hand_out()

    def _hire(self, number: int) -> Hand:
        mine, theirs = self._context.Pipe()
        recipe = bytes(ForkingPickler.dumps(self.task))  # tensors travel as handles to shared memory
        process = self._context.Process(
            target=worker.main, args=(theirs, recipe), name=f"desim-fl worker {number}", daemon=True
        )
        process.start()
        theirs.close()
        return Hand(number, process, mine)

    def _hand_out(self) -> None:
        """Give the most urgent tickets to the workers with the least to do."""
        while self._queue:
            free = [hand for hand in self._hands if hand.ready and len(hand.tickets) < _QUEUED]
            if not free:
                return
            _, _, ticket = heapq.heappop(self._queue)
            if ticket.worker is not None or ticket.settled:
                continue  # queued twice to go first
            if ticket.wanted:
                self._give(min(free, key=lambda hand: len(hand.tickets)), ticket)

    def _give(self, hand: Hand, ticket: Ticket) -> None:
        if ticket.key not in hand.models:
            shipment = self._models[ticket.key]
            hand.models.add(ticket.key)
            self._send(hand, ("model", ticket.key, shipment.params, shipment.buffers))
        ticket.worker, hand.tickets[ticket.number] = hand.number, ticket
        ticket.attempts += 1
        kind = "score" if ticket.job is None else "train"
        subject = ticket.version if ticket.job is None else ticket.job._replace(params=None, buffers=None)
        self._send(hand, (kind, ticket.number, ticket.key, subject, ticket.steps))

    def _send(self, hand: Hand, message: Any) -> None:
        try:
            hand.pipe.send(packed(message))
        except OSError:
            return  # its death is noticed, and mended, where results are taken in

    def _take_in(self, hand: Hand) -> None:
        """Read all that a worker has said; replace one that died."""
        try:
            while hand.pipe.poll():
                self._hear(hand, *hand.pipe.recv())
        except (EOFError, OSError):
            self._replace(hand)
            return
        if not hand.process.is_alive() and not hand.pipe.poll():
            self._replace(hand)

    def _hear(self, hand: Hand, kind: str, number: int | None, content: Any, more: Any) -> None:
        if kind == "broken":
            raise RunError(f"worker {hand.number} of the pool cannot rebuild the task: {content}") from WorkerError(
                more
            )
        if kind == "ready" or number is None:
            hand.ready = True
            return
        ticket = hand.tickets.pop(number)
        if kind == "failed":
            ticket.failure = WorkerError(f"{content}\n{more}")
        else:
            ticket.result = unpacked(content)
            if ticket.job is not None and ticket.wanted:
                self.wall.append(Wall(ticket.job.id, ticket.job.client, more))
        if not ticket.wanted:
            self._let_go(ticket)

    def _replace(self, hand: Hand) -> None:
        """Hire another worker for one that died, and queue again what it had."""
        hand.process.join()
        code = hand.process.exitcode
        place = self._hands.index(hand)
        if not hand.ready:
            raise RunError(f"worker {hand.number} of the pool died while starting (exit code {code})")
        self._hands[place] = self._hire(hand.number)
        hand.pipe.close()
        for ticket in hand.tickets.values():
            if not ticket.wanted:
                self._let_go(ticket)
            elif ticket.attempts >= _ATTEMPTS:
                ticket.failure = WorkerError(f"the worker died (exit code {code}), {ticket.attempts} times on this job")
            else:
                ticket.worker = None
                heapq.heappush(self._queue, (ticket.due, ticket.number, ticket))

    @property
    def pids(self) -> Sequence[int]:
        """Process ids of the workers, for tests and curious people."""
        return [hand.process.pid for hand in self._hands]
