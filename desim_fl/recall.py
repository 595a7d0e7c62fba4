"""Ending a running job before its time, as a strategy asks: cancelled, or reporting what it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.errors import RunError
from desim_fl.flight import Flying, curtailed, fate
from desim_fl.records import Kind

if TYPE_CHECKING:
    from desim_fl.absences import Absences
    from desim_fl.core import Stop, Trip


class Recalls:
    """Ends jobs of one engine early."""

    __slots__ = ("_absences", "_beyond", "_engine")

    def __init__(self, engine: Any, beyond: Any, absences: Absences | None) -> None:
        self._engine, self._beyond, self._absences = engine, beyond, absences

    def end(self, stop: Stop) -> int:
        """Cancel a running job or move its report forward; returns how many places become free at once."""
        flying = self._engine.flights.get(stop.job)
        if flying is None:
            raise RunError(f"the strategy stops job {stop.job}, which is not in flight")
        if stop.how == "cancel":
            return self._cancel(flying)
        self._report_early(flying, stop.how)
        return 0

    def _cancel(self, flying: Flying) -> int:
        engine, job = self._engine, flying.job
        version = engine.model.version
        del engine.flights[job.id]
        engine.roster.free(job.client)
        engine.ledger.cancelled += 1
        engine.usage.spend(flying, engine.now)
        sent = flying.sent_up(engine.now)
        flying.forget()
        engine.log.cut(job.id)
        engine.log.row(Kind.CANCEL, job.client, job.id, version, version - job.version, size=sent)
        engine.world.executor.release(job)
        overdue = self._absences is not None and self._absences.no_longer_overdue(job.id)
        return 0 if overdue else 1

    def _report_early(self, flying: Flying, how: str) -> None:
        """Let a job report what it has at its next epoch or step boundary, or now."""
        engine, job, now = self._engine, flying.job, self._engine.now
        drawn = None if self._beyond is None or flying.received else self._beyond.drawn(flying)
        steps, trip = curtailed(engine.world, flying, now, how, drawn)
        if steps == flying.steps:
            return
        behind = {kind for kind, tick in flying.legs() if tick <= now}  # a lost job may have had no leg ahead at all
        engine.log.cut(job.id)
        shorter = self._shorter(flying, steps, trip)
        engine.flights[job.id] = shorter
        later = tuple(end for end in shorter.legs() if end[0] not in behind)  # one in this very instant included
        engine.log.legs(job.client, job.id, shorter.placed(later))

    def _shorter(self, flying: Flying, steps: int, trip: Trip) -> Flying:
        """The same job with less to do."""
        engine = self._engine
        if self._beyond is not None:
            return self._beyond.shorten(flying, steps, trip)
        ends, lost = fate(trip, flying.left)
        job = flying.job
        flying.forget()
        return Flying(engine.env, engine.handlers(lost), engine.now, job, trip, flying.left, steps, ends, lost)
