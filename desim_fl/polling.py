"""Polling: candidates are asked for their loss before jobs go to some of them (power-of-choice with ``poc_probe = true``).

A selector that ``probes`` names candidates instead of clients to send out. Each gets a probe, a job like any other that
does not train: it brings the model down, scores it on the client's samples, and sends one number up. It takes the time and
moves the bytes that this takes, may be lost like any job, and ends as cancelled once its loss is heard; it takes no place,
and no strategy sees it. The places of the send wait meanwhile. A candidate stays taken until all probes of the poll have
answered or failed; then the jobs go out, in that instant, to those of the largest loss among who answered and can still be
sent out. Places that find nobody are open again as if nobody had been asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.algebra import Null
from desim_fl.core import Send, Work
from desim_fl.dispatch import Desk
from desim_fl.errors import LawError, RefusedError
from desim_fl.opening import OpenDesk

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from desim_fl.core import Trip
    from desim_fl.flight import Flying

PROBE = Send(work=Work(probe=True), tag=-1)


class Poll:
    """One question to some candidates: for which send (of as many places as it holds), and what they said so far.

    ``refills`` where the places are the dispatch policy's; ``awaited`` counts the probes that have not ended.
    """

    __slots__ = ("answers", "awaited", "candidates", "refills", "send")

    def __init__(self, send: Send, candidates: Sequence[int], *, refills: bool) -> None:
        self.send, self.candidates, self.refills = send, candidates, refills
        self.awaited = len(candidates)
        self.answers: dict[int, float | None] = {}


class PollingDesk(Desk):
    """A desk that asks before it sends. Raises ``RefusedError`` for trips that know of no probes."""

    __slots__ = ("_engine", "_onward", "_polls")

    def __init__(self, engine: Any, *parts: Any) -> None:
        super().__init__(*parts)
        self._engine = engine
        self._polls: dict[int, Poll] = {}  # by the probe's job
        if not hasattr(self._world.trips, "probe"):
            raise RefusedError(
                f"the selector asks for losses, and {type(self._world.trips).__name__} has no probe(client, nth)"
            )

    def listen(self, onward: Callable[[Any], None]) -> Callable[[Flying], None]:
        """Return who is to be called with what reaches the server; what is no answer goes on to ``onward``."""
        self._onward = onward
        return self.receive

    def trip(self, client: int, nth: int, work: Work) -> Trip:
        """Durations and bytes of a client's ``nth`` job."""
        trips: Any = self._world.trips
        return trips.probe(client, nth) if work.probe else trips.trip(client, nth, work)

    @property
    def probes(self) -> Collection[int]:
        """Probes on their way, by job; live."""
        return self._polls.keys()

    @property
    def unfilled(self) -> tuple[Send, ...]:
        """What nobody has taken yet, and what waits for answers."""
        return (*self.asked, *(poll.send for poll in dict.fromkeys(self._polls.values())))

    def take_up(self, sends: Sequence[Send]) -> None:
        """Put these in the places of those unfilled."""
        polls = dict.fromkeys(self._polls.values())
        asked = len(sends) - len(polls)
        self.asked = list(sends[:asked])
        for poll, send in zip(polls, sends[asked:], strict=True):
            poll.send = send

    def turn_over(self, *, published: bool) -> None:
        """One came, so somebody is asked."""
        self.serve(None, 1, at_once=False, published=published)

    def _fill(self, send: Send, *, refills: bool) -> int:
        """Ask candidates for as many places as they can fill."""
        selector: Any = self._selector
        candidates = selector.ask(self._view, self.roster, send, self.dispatched)
        places = min(send.count, len(candidates))
        if len(set(candidates)) < len(candidates) or not all(map(self.roster.is_selectable, candidates)):
            raise LawError(f"the selector asks {candidates}: not distinct selectable clients")
        poll = Poll(send._replace(count=places), candidates, refills=refills)
        for client in candidates:
            self._polls[self._engine.ledger.dispatched] = poll
            self._depart(client, PROBE._replace(start=send.start))
            self.dispatched += 1
        return places

    def receive(self, flying: Flying) -> None:
        """Hear an answer; anything else goes on."""
        job, now, engine = flying.job, flying.ends, self._engine
        poll = self._polls.pop(job.id, None)
        if poll is None:
            self._onward(flying)
            return
        engine.now = now
        loss = engine.world.executor.collect(job, 0).loss
        loss = engine.readings.read(None if loss is None or loss is Null else float(loss))
        del engine.flights[job.id]
        engine.ledger.cancelled += 1
        engine.usage.spend(flying, now)
        version = engine.model.version
        engine.log.block(now)
        engine.log.answer(job.client, job.id, version, version - job.version, flying.trip.bytes_up, loss)
        poll.answers[job.client] = loss
        self._less(poll)
        engine.balance()
        engine.landed(job)

    def misses(self, job: int) -> bool:
        """Hear of a lost job: a probe's client is a candidate less."""
        poll = self._polls.pop(job, None)
        if poll is not None:
            self._less(poll)
        return poll is not None

    def _less(self, poll: Poll) -> None:
        """One probe less is awaited; after the last one the jobs go out, or their places are open again."""
        poll.awaited -= 1
        if poll.awaited:
            return
        for client in poll.answers:
            self.roster.free(client)
        able = [client for client in poll.candidates if client in poll.answers and self.roster.is_selectable(client)]
        selector: Any = self._selector
        chosen = selector.best([(client, poll.answers[client]) for client in able], poll.send.count)
        missing = poll.send.count - self._send_out(chosen, poll.send)
        if poll.refills:
            self._open += missing
        elif missing and (poll.send.wait or not chosen):
            self.asked.append(poll.send._replace(count=missing))
        self.serve((), 0, at_once=True, published=False)


class OpenPollingDesk(PollingDesk, OpenDesk):
    """The same in an open system."""

    __slots__ = ()
