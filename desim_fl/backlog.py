"""Clients with several open jobs: each computes them one after another, first come, first served.

A job is downloaded at once and waits until those before it have been computed; uploads go on beside. That is known at
its dispatch, so a job remains one event; its wait leg holds the queue, and the wait that is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.errors import RefusedError
from desim_fl.flight import Flying, whole_trip

if TYPE_CHECKING:
    from desim_fl.core import Job, Trip


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
