"""Clients with several open jobs: each computes them one after another, first come, first served.

A job is downloaded at once and waits until those before it have been computed; uploads go on beside. That is known at
its dispatch, so a job remains one event; its wait leg holds the queue, and the wait that is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from desim_fl.errors import LawError, RefusedError
from desim_fl.flight import Flying, whole_trip
from desim_fl.population import Roster

if TYPE_CHECKING:
    from desim_fl.core import Job, Trip


class DeepRoster(Roster):
    """A roster of clients that may have up to ``depth`` open jobs; selectable until they have."""

    __slots__ = ("_depth", "_load")

    def __init__(self, count: int, depth: int) -> None:
        super().__init__(count)
        self._depth, self._load = depth, np.zeros(count, np.int64)

    def take(self, client: int) -> None:
        """Give a client one more job; LawError if it has as many as it may."""
        self._load[client] += 1
        if self._load[client] == self._depth:
            super().take(client)
        elif self._load[client] > self._depth:
            raise LawError(f"client {client} was sent out although its queue of {self._depth} jobs was full")

    def free(self, client: int) -> None:
        """Take note that a client has one job less; LawError if it had none."""
        if self._load[client] == self._depth:
            super().free(client)
        elif not self._load[client]:
            raise LawError(f"client {client} was freed although it had no job")
        self._load[client] -= 1


class Backlogs:
    """The queues of one engine's clients."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._computed: dict[int, int] = {}  # by client: tick at which its last job so far will be computed

    def set_out(self, job: Job, trip: Trip) -> int:
        """Send a job on its way from now; returns the tick at which it will arrive."""
        engine, now, client = self._engine, self._engine.now, job.client
        if trip.lost is not None:
            raise RefusedError("jobs that are lost on the way do not go with several jobs a client (client_queue)")
        reached = now + trip.download
        starts = max(reached + (trip.wait or 0), self._computed.get(client, 0))
        trip = trip._replace(wait=starts - reached)
        ends, _ = whole_trip(client, job.nth, trip, now)
        self._computed[client] = starts + trip.compute
        steps = job.work.steps or 0
        engine.flights[job.id] = Flying(engine.env, engine.handlers(None), now, job, trip, now, steps, ends, None)
        engine.log.dispatch(client, job.id, job.version, job.nth, job.work, trip)
        return ends
