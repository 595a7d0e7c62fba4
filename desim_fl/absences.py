"""What the server does not wait for, and whom places wait for: jobs given up or overdue, second deliveries, clients to come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.attendance import Attendance
from desim_fl.complaints import nobody_comes
from desim_fl.flight import ARRIVAL, COME, Due
from desim_fl.records import Kind

if TYPE_CHECKING:
    from desim_fl.failures import Failures
    from desim_fl.flight import Flying

TIMEOUT, IGNORED = "timeout", "too late"
_MOST_CALLS = 100_000


class Absences:
    """Those of one engine. ``overdue`` are jobs in flight that the server no longer waits for."""

    def __init__(self, engine: Any) -> None:
        perils = engine.world.perils
        self._engine, self._env = engine, engine.env
        self._attendance = engine.roster if isinstance(engine.roster, Attendance) else None
        self._failures: Failures | None = None if perils is None else perils.failures
        self.overdue: dict[int, None] = {}
        self._strays: dict[int, tuple[Flying, int, int]] = {}  # given up, when, and how much had gone up; clients go on
        self._comer: Due | None = None
        self._calls = 0  # comers in a row who filled nothing

    # ---- jobs that are late

    @property
    def timeout(self) -> int | None:
        """Ticks after a dispatch at which the server no longer waits."""
        return None if self._failures is None else self._failures.timeout

    def expire(self, flying: Flying) -> bool:
        """Give a job up (True), or only its place; its client goes on with it."""
        engine, job, now = self._engine, flying.job, int(self._env.now)
        failures: Any = self._failures
        if self._attendance is not None:
            self._attendance.advance(2 * now)
        if failures.late == "ignore" or job.work.probe:  # what a late candidate says would come too late
            self._strays[job.id] = flying, now, flying.sent_up(now)
            engine.log.block(now)
            engine.log.cut(job.id)
            engine.lose(flying, now, TIMEOUT, free=False)
            flying.job = job._replace(params=None, buffers=None, extra=None, memory=None)  # let the version go
            return True
        engine.now = now
        self.overdue[job.id] = None
        engine.log.block(now)
        engine.log.row(Kind.OVERDUE, job.client, job.id, engine.model.version, reason=TIMEOUT)
        if not engine.desk.explicit:
            engine.desk.serve(None, 1, at_once=True, published=False)
        engine.balance()
        return False

    def end_stray(self, flying: Flying) -> None:
        """A client is through with a job that the server had given up."""
        engine, job, now = self._engine, flying.job, flying.ends
        engine.now = now
        _, since, sent = self._strays.pop(job.id)
        engine.usage.overrun(job.client, now - since)
        engine.roster.free(job.client)
        engine.log.block(now)
        size = flying.sent_up(now) - sent
        engine.log.row(Kind.LATE, job.client, job.id, engine.model.version, reason=flying.lost or IGNORED, size=size)
        engine.desk.serve(None, 0, at_once=True, published=False)
        engine.balance()

    def no_longer_overdue(self, job: int) -> bool:
        """Forget that a job is overdue; whether it was."""
        return job in self.overdue and self.overdue.pop(job) is None

    def land(self, job: int) -> None:
        """A job ends: if its place was filled meanwhile, its landing opens none."""
        if self.no_longer_overdue(job) and not self._engine.desk.explicit:
            self._engine.desk.owe()

    def arrive(self, flying: Any) -> None:
        """Hand an update to the engine; perhaps it is delivered once more."""
        engine, job, ends = self._engine, flying.job, flying.ends
        self.land(job.id)
        paused = flying.spent(ends)[4]
        if paused:
            engine.usage.pause(job.client, paused)
        size = flying.plan.bytes_up
        engine.on_arrival(flying)
        again = None if self._failures is None else self._failures.copies(job.client, job.nth)
        if again is not None:
            Due(self._env, self._on_copy, (job.client, job.id, size), ARRIVAL, job.id, again)

    def _on_copy(self, event: Due) -> None:
        """An update is delivered once more: a row, and its bytes; nobody is told."""
        engine, (client, job, size) = self._engine, event.subject
        engine.now = int(self._env.now)
        engine.log.block(engine.now)
        engine.log.row(Kind.DUPLICATE, client, job, engine.model.version, reason="delivered again", size=size)

    def close(self, now: int) -> None:
        """Count what clients still do in vain at the end."""
        for flying, since, _ in self._strays.values():
            self._engine.usage.overrun(flying.job.client, now - since)

    # ---- places that wait for somebody to come

    @property
    def awaits(self) -> bool:
        """Whether a place waits for a client that will come."""
        return self._comer is not None

    def look_round(self) -> None:
        """Before somebody may be chosen after the comers of this instant: see who has come."""
        if self._attendance is not None:
            self._attendance.advance(2 * self._engine.now + 1)

    def look_out(self) -> None:
        """Where places stay open, wake up when the next client comes."""
        desk = self._engine.desk
        if self._attendance is None or not desk.open_places or self._engine.why is not None:
            self._comer, self._calls = None, 0
            return
        following = self._attendance.next_comer(last=not desk.takes_anybody)
        if following is None:
            self._comer = None
        elif self._comer is None or self._comer.subject != following:
            tick, client = following
            key = 2 * client + 1  # behind the row of its own come, if it has an open job
            self._comer = Due(self._env, self._on_comer, following, COME, key, tick - int(self._env.now))

    def _on_comer(self, event: Due) -> None:
        if event is not self._comer:
            return
        engine, (tick, client) = self._engine, event.subject
        self._comer = None
        engine.now = tick
        self._attendance.admit(tick, client)  # pyright: ignore[reportOptionalMemberAccess]
        engine.log.block(tick)
        before = engine.ledger.dispatched
        engine.desk.serve(None, 0, at_once=True, published=False)
        self._calls = self._calls + 1 if engine.ledger.dispatched == before and not engine.flights else 0
        if self._calls > _MOST_CALLS and engine.world.stops.max_ticks is None:
            raise nobody_comes(self._calls, tick)
        engine.balance()
