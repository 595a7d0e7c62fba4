"""A server that takes time: updates whose upload has ended wait until it has taken them in.

An update counts as arrived at the end of its service: there its staleness is read, its client is free again, and the
strategy hears of it. Until then its upload leg goes on. An update that meets a full queue is turned away at once.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from desim_fl.flight import ARRIVAL, Due, Flying
from desim_fl.ticks import MOST_TICKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.core import Trip
    from desim_fl.flight import Pace
    from desim_fl.records import Kind

FULL = "server queue full"


class Received(Flying):
    """A job whose update has reached the server and is not taken in yet; ``came`` is the flight that brought it."""

    __slots__ = ("came",)
    received = True

    def __init__(self, came: Flying) -> None:
        self.callbacks: Any = []
        self.came = came
        self.job, self.trip, self.left, self.steps = came.job, came.trip, came.left, came.steps
        self.ends, self.lost = MOST_TICKS, None

    def legs(self) -> tuple[tuple[Kind, int], ...]:
        """Ends of its legs: all lie behind it."""
        return self.came.legs()

    def spent(self, now: int) -> tuple[int, int, int, int, int]:
        """Ticks by leg; waiting for the server belongs to the upload."""
        download, wait, compute, _, halted = self.came.spent(self.came.ends)
        return download, wait, compute, now - self.left - download - wait - compute - halted, halted

    def sent_up(self, now: int) -> int:  # noqa: ARG002
        """The whole update."""
        return self.trip.bytes_up

    @property
    def plan(self) -> Any:
        """The trip as it was drawn."""
        return self.came.plan  # pyright: ignore[reportAttributeAccessIssue]  (where jobs have one)

    def boundary(self, now: int, how: str, pace: Pace) -> tuple[int, Trip]:  # noqa: ARG002
        """All its steps: they are done."""
        return self.steps, self.trip

    def shortened(self, now: int, pace: Pace) -> tuple[int, Trip]:  # noqa: ARG002
        """All its steps: they are done."""
        return self.steps, self.trip

    def forget(self) -> None:
        """End here; the server passes over it."""
        self.came.job = None  # pyright: ignore[reportAttributeAccessIssue]
        super().forget()

    def taken_in(self, now: int) -> Trip:
        """The trip of an update that is taken in now."""
        return self.trip._replace(upload=self.spent(now)[3])


class Server:
    """The server of one engine: its queue, and what it is busy with; ``hand_over`` is called with what is taken in."""

    def __init__(self, engine: Any, hand_over: Callable[[Flying], None]) -> None:
        self._engine, self._law, self._hand_over = engine, engine.world.server, hand_over
        self.blocks: bool = self._law.blocks and self._law.evaluation_ticks > 0
        self._until = 0
        self._waiting: deque[Received] = deque()
        self._busy, self._owed = False, 0
        self._services = self.busy_ticks = self.longest = self.turned_away = 0

    def receive(self, flying: Flying) -> None:
        """Take note of an update whose upload ends now."""
        self._waiting = deque(each for each in self._waiting if each.job is not None)
        law, engine = self._law, self._engine
        if self._busy and law.queue is not None and len(self._waiting) >= law.queue:
            self.turned_away += 1
            flying.lost = FULL
            self._hand_over(flying)
            return
        received = Received(flying)
        engine.flights[flying.job.id] = received
        self._waiting.append(received)
        if not self._busy:
            self._serve(flying.ends)
        self.longest = max(self.longest, len(self._waiting))

    def occupy(self) -> None:
        """Be busy with an evaluation: at once, or behind the service in hand."""
        ticks = self._law.evaluation_ticks
        if self._busy:
            self._owed += ticks
        elif ticks:
            self._work(ticks)

    def close(self, now: int) -> None:
        """Take back what a service that the run's end cut short was counted for."""
        if self._busy:
            self.busy_ticks -= self._until - now

    def _serve(self, now: int) -> None:
        """Begin a service of the next updates that still wait."""
        batch: list[Received] = []
        while self._waiting and len(batch) < self._law.batch:
            received = self._waiting.popleft()
            if received.job is not None:
                batch.append(received)
        if not batch:
            return
        ticks = self._law.ticks(self._services)
        self._services += 1
        self._work(ticks)
        for received in batch:
            received.ends = now + ticks  # pyright: ignore[reportAttributeAccessIssue]
            Due(self._engine.env, self._on_done, received, ARRIVAL, received.job.id, ticks)

    def _work(self, ticks: int) -> None:
        self._busy = True
        self.busy_ticks += ticks
        self._until = int(self._engine.env.now) + ticks
        Due(self._engine.env, self._on_free, None, ARRIVAL, 0, ticks)

    def _on_free(self, _: Due) -> None:
        """Go on with an evaluation that waits, or with the updates that do."""
        self._busy = False
        if self._owed:
            ticks, self._owed = self._owed, 0
            self._work(ticks)
        else:
            self._serve(int(self._engine.env.now))

    def _on_done(self, event: Due) -> None:
        received: Received = event.subject
        if received.job is not None:  # else cancelled meanwhile
            received.trip = received.taken_in(received.ends)
            self._hand_over(received)

    def summary(self, ticks: int) -> dict[str, Any]:
        """Return how busy it was, over a run of so many ticks."""
        return {
            "busy_s": self.busy_ticks / 1e6,
            "utilisation": self.busy_ticks / ticks if ticks else None,
            "services": self._services,
            "longest_queue": self.longest,
            "turned_away": self.turned_away,
        }
