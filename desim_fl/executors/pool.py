"""Worker processes: jobs start when they are dispatched, the most urgent virtual arrival first.

Results do not depend on where or when a job ran: each worker rebuilds the task from its recipe and pins its threads,
so its bits are those of the inline executor. The data set is mapped into the workers; a version's parameters are put
into shared memory once, and outcomes come back through it. A worker that dies is replaced and its jobs are done again,
once.
"""

from __future__ import annotations

import heapq
import itertools
import traceback
from typing import TYPE_CHECKING, Any

from desim_fl.core import Job, Model, Outcome, Promise
from desim_fl.errors import DesimError, JobError, LawError, RunError
from desim_fl.executors.crew import Crew, Hand, Workers
from desim_fl.executors.inline import LESS_MEMORY, Wall, checked
from desim_fl.executors.packing import Packed, full, needed, packed, unpacked
from desim_fl.executors.shelf import Shelf
from desim_fl.executors.tickets import Shipment, Ticket, WorkerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.learning.task import Task

_SHORT_S = 0.05  # jobs below it wait two at a worker, or it would idle between them; longer ones only one, so that
_QUEUED = 2  # urgency keeps its meaning
_DEATHS = 2
_URGENT = -1  # before any arrival
_WORTH_SHARING = 4096  # bytes of a version


class PoolExecutor:
    """Trains in ``workers`` spawned processes. ``wall`` holds the real seconds of each job, as its worker measured."""

    exact = True
    name = "pool"

    def __init__(self, task: Task, workers: int) -> None:
        self.task, self.workers = task, workers
        self.wall: list[Wall] = []
        self._crew: Workers | None = None  # hired when first needed
        self._shelf: Shelf | None = None
        self._numbers = itertools.count()
        self._queue: list[tuple[int, int, Ticket]] = []
        self._jobs: dict[int, Ticket] = {}
        self._models: dict[tuple[int, int], Shipment] = {}
        self._latest = 0
        self._pace_s = _SHORT_S  # seconds of recent jobs, smoothed
        self._closed, self._ended_by = False, ""

    # ---- the executor's side

    def submit(self, job: Job, due: int) -> None:
        """Queue a job; a free worker starts it at once."""
        if job.id in self._jobs:
            raise LawError(f"job {job.id} was submitted twice")
        self._latest = max(self._latest, due)
        self._jobs[job.id] = self._enqueue(due, job.params, job.buffers, job.work.steps or 0, job=job)

    def collect(self, job: Job, steps: int) -> Outcome:
        """Wait for a job; one that reports early is done again for so many steps."""
        ticket = self._jobs.pop(job.id, None)
        if ticket is None:
            raise LawError(f"job {job.id} is not waiting here: never submitted, released, or collected before")
        if ticket.steps != steps:
            self._forget(ticket)
            ticket = self._enqueue(_URGENT, job.params, job.buffers, steps, job=job)
        return checked(job, self._settle(ticket), steps, self.name)

    def release(self, job: Job) -> None:
        """Drop a job that has not started; the result of one that runs is thrown away."""
        ticket = self._jobs.pop(job.id, None)
        if ticket is not None:
            self._forget(ticket)

    def first_done(self) -> int:
        """Wait until one of the jobs that were submitted is done, and return its id: whoever does not care about order collects it."""
        while True:
            done = next((number for number, ticket in self._jobs.items() if ticket.settled), None)
            if done is not None:
                return done
            self._pump(None)

    def evaluate(self, model: Model) -> Promise:
        """Score a version beside training, not before jobs that are already known."""
        ticket = self._enqueue(self._latest, model.params, model.buffers, 0, version=model.version)

        def ready() -> bool:
            if not (ticket.settled or self._closed):
                self._pump(0.0)
            return ticket.settled

        return Promise(lambda: self._settle(ticket), ready)

    def close(self) -> None:
        """End the workers; whatever they still do is thrown away."""
        self._end(at_once=False)

    def _end(self, *, at_once: bool) -> None:
        self._closed = True
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close(at_once=at_once)
        if self._shelf is not None:
            self._shelf.close()
        self._shelf, self._queue, self._jobs, self._models = None, [], {}, {}

    # ---- tickets

    def _enqueue(self, due: int, params: Any, buffers: Any, steps: int, **what: Any) -> Ticket:
        self._check_open()
        key = (id(params), id(buffers))
        shipment = self._models.get(key)
        if shipment is None:
            shipment = self._models[key] = Shipment(key, params, buffers, next(self._numbers))
        shipment.users += 1
        ticket = Ticket(next(self._numbers), due, shipment, steps, **what)
        self._push(ticket)
        self._pump(0.0)
        return ticket

    def _check_open(self) -> None:
        if self._closed:
            raise RunError(f"the pool of workers is closed{self._ended_by}")

    def _push(self, ticket: Ticket) -> None:
        heapq.heappush(self._queue, (ticket.due, ticket.number, ticket))

    def _forget(self, ticket: Ticket) -> None:
        """Nobody wants this any more."""
        if ticket.wanted:
            ticket.wanted = False
            if ticket.waiting or (ticket.settled and ticket.job is not None):
                self._let_go(ticket.shipment)
            if not ticket.settled:
                ticket.job = None  # the ticket stays in the queue, or at its worker, for a while

    def _let_go(self, shipment: Shipment) -> None:
        """One user less of a version; after the last one workers forget it too."""
        shipment.users -= 1
        if shipment.users:
            return
        shipment.params = shipment.buffers = None  # a promise whose scores are known still holds its ticket
        if self._crew is None:
            return
        del self._models[shipment.key]
        for hand in self._crew.hands:
            if shipment.number in hand.models:
                hand.models.discard(shipment.number)
                hand.unsent.append(("drop", shipment.number))
        if shipment.place is not None and self._shelf is not None:
            self._shelf.give(shipment.place)

    def _settle(self, ticket: Ticket) -> Any:
        """Wait until a ticket is settled; it goes first if it has not started."""
        if ticket.waiting and not ticket.settled and ticket.due != _URGENT:
            ticket.due = _URGENT
            self._push(ticket)
        while not ticket.settled:
            self._pump(None)
        if ticket.wanted:
            self._forget(ticket)
        if ticket.failure is None:
            return ticket.result
        if ticket.job is None:
            raise RunError(f"evaluating version {ticket.version} failed: {ticket.failure}") from ticket.failure
        job, name = ticket.job, self.name if ticket.worker is None else f"{self.name}, {ticket.worker}"
        summary = str(ticket.failure).splitlines()[0]
        raise JobError(job.id, job.client, job.version, name, summary) from ticket.failure

    # ---- workers

    def _pump(self, timeout: float | None) -> None:
        """Hand out what waits, and take in what has come; waits for something if ``timeout`` is ``None``."""
        self._check_open()
        try:
            crew = self._crew or self._hire()
            self._hand_out(crew)
            for hand, messages, ended in crew.wait(timeout):
                for message in messages:
                    self._hear(crew, hand, *message)
                if ended:
                    self._replace(crew, hand)
            self._hand_out(crew)
        except (KeyboardInterrupt, DesimError) as error:
            # Perhaps in the middle of a message, or there is nobody left: who waits for anything else must not wait.
            self._end(at_once=True)
            self._ended_by = f" ({error})" if isinstance(error, DesimError) else ""
            raise

    def _hire(self) -> Workers:
        """Start the workers; the first version that is to be sent says how large a place in the shelf must be."""
        first = next(iter(self._models.values()))
        self._crew = self._assembled(first.params, first.buffers)
        return self._crew

    def _assembled(self, params: Any, buffers: Any) -> Workers:
        """Make the shelf, with places for a version like this one, and the workers that see it."""
        size = self._place_bytes(params, buffers)
        if size >= _WORTH_SHARING:
            self._shelf = Shelf.fitting(2 * size)  # an outcome may hold a client's own buffers beside the model's
        return self._new_crew(self._shelf)

    def _place_bytes(self, params: Any, buffers: Any) -> int:
        """Bytes of a version's arrays."""
        return needed(packed((params, buffers)).sizes)

    def _new_crew(self, shelf: Shelf | None) -> Workers:
        return Crew(self.task, self.workers, shelf)

    def _hand_out(self, crew: Workers) -> None:
        """Give the most urgent tickets to the workers with the least to do."""
        most = _QUEUED if self._pace_s < _SHORT_S else 1
        while self._queue:
            free = [hand for hand in crew.hands if hand.ready and len(hand.tickets) < most]
            if not free:
                return
            _, _, ticket = heapq.heappop(self._queue)
            if ticket.waiting and ticket.wanted:  # else it was dropped, or went first
                self._give(min(free, key=lambda hand: len(hand.tickets)), ticket)

    def _give(self, hand: Hand, ticket: Ticket) -> None:
        """Send a ticket, and before it its version if the worker does not know that; what cannot be sent has failed."""
        ticket.waiting = False
        try:
            model = self._shipped(hand, ticket.shipment)
            subject = ticket.version if ticket.job is None else self._outbound(ticket, ticket.job)
        except Exception as error:  # noqa: BLE001  (any class may refuse to be pickled, in its own way)
            reason = f"it cannot be sent to a worker: {type(error).__name__}: {error}"
            self._finish(ticket, failure=WorkerError(f"{reason}\n{traceback.format_exc()}"))
            return
        ticket.worker, hand.tickets[ticket.number] = hand.title, ticket
        kind = "score" if ticket.job is None else "train"
        hand.models.add(ticket.shipment.number)
        hand.tell(*model, (kind, ticket.number, ticket.shipment.number, ticket.place, subject, ticket.steps))

    def _shipped(self, hand: Hand, shipment: Shipment) -> tuple[Any, ...]:
        """Return what a worker must be told of a version; packs it when the first one needs it."""
        if shipment.number in hand.models:
            return ()
        if shipment.parcel is None:
            if self._shelf is not None:
                shipment.place = self._shelf.take()
            shipment.parcel = packed((shipment.params, shipment.buffers), self._room(shipment.place))
        return (("model", shipment.number, shipment.place, shipment.parcel),)

    def _outbound(self, ticket: Ticket, job: Job) -> Packed:
        if self._shelf is not None:
            ticket.place = self._shelf.take()
        return packed(job._replace(params=None, buffers=None), self._room(ticket.place))

    def _room(self, place: int | None) -> memoryview | None:
        return None if place is None or self._shelf is None else self._shelf.room(place)

    def _hear(self, crew: Workers, hand: Hand, kind: str, number: int, content: Any, more: Any) -> None:
        if kind == "broken":
            raise RunError(f"workers cannot rebuild the task: {content}") from WorkerError(more)
        if kind == "ready":
            crew.started(hand)
            return
        ticket: Ticket = hand.tickets.pop(number)
        if kind == "failed":
            self._finish(ticket, failure=WorkerError(f"{content}\n{more}"))
        elif ticket.wanted:
            self._receive(ticket, content, more)
        else:
            self._finish(ticket)

    def _receive(self, ticket: Ticket, parcel: Packed, seconds: float) -> None:
        try:
            ticket.result = full(unpacked(parcel, self._room(ticket.place)), ticket.job)
        except Exception as error:  # noqa: BLE001  (any class may refuse to be unpickled, in its own way)
            reason = f"its outcome cannot be read: {type(error).__name__}: {error}"
            self._finish(ticket, failure=WorkerError(f"{reason}\n{traceback.format_exc()}"))
            return
        if ticket.job is not None:
            self._pace_s += (seconds - self._pace_s) / 4
            self.wall.append(Wall(ticket.job.id, ticket.job.client, seconds))
        self._finish(ticket)

    def _finish(self, ticket: Ticket, failure: WorkerError | None = None) -> None:
        """Settle a ticket that no worker has any more."""
        self._clear(ticket)
        ticket.failure, ticket.settled = failure, True
        if (
            not ticket.wanted or ticket.job is None
        ):  # scores may stay uncalled for long, a job's version is needed again
            self._let_go(ticket.shipment)

    def _clear(self, ticket: Ticket) -> None:
        if ticket.place is not None and self._shelf is not None:
            self._shelf.give(ticket.place)
        ticket.place = None

    def _replace(self, crew: Workers, hand: Hand) -> None:
        """Hire another worker for one that died; queue again what it had, unless it was the second death on that."""
        fate = crew.replace(hand)
        for position, ticket in enumerate(hand.tickets.values()):
            self._clear(ticket)
            ticket.deaths += position == 0 and fate.blamed  # those behind had not been begun
            if not ticket.wanted:
                self._finish(ticket)
            elif ticket.deaths >= _DEATHS:
                why = f"the worker died ({fate.why}), {ticket.deaths} times on this job"
                killed = "SIGKILL" in fate.why or "memory" in fate.why  # as systems do that run out of memory
                self._finish(
                    ticket, WorkerError(f"{why}; if it was killed for memory: {LESS_MEMORY}" if killed else why)
                )
            else:
                ticket.waiting = True
                self._push(ticket)

    @property
    def pids(self) -> Sequence[int]:
        """Process ids of the workers, for tests and curious people."""
        return [] if self._crew is None else [hand.process.pid for hand in self._crew.hands]
