"""Journeys: what befalls jobs between dispatch and arrival, played on the engine's clock.

Where clients leave, the server goes down or jobs fail, an attempt's course is worked out when it begins
(:mod:`desim_fl.course`), so a job remains one event, and one more for each row on the way (a leave, a come, a
halt) and for each retry. A world without any of this has no journeys and pays nothing for them.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import partial
from typing import TYPE_CHECKING, Any

from desim_fl.attendance import Attendance
from desim_fl.availability import NEVER, Window
from desim_fl.core import Trip
from desim_fl.course import COMPUTE, CRASHES, DOWNLOAD, OUTAGE, UPLOAD, WAIT, Attempt, Course, Rules, course
from desim_fl.failures import Accidents, Failures, Perils
from desim_fl.flight import ARRIVAL, COME, LEAVE, NUMBER_BITS, Due, Flying, Pace, whole_trip
from desim_fl.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.absences import Absences
    from desim_fl.core import Job
    from desim_fl.world import World

RETRIED = (*CRASHES, OUTAGE)
_ALWAYS = Window(0, NEVER, 0)


class Voyage(Flying):
    """A flight with a course. ``plan`` are its legs as drawn, ``born`` the tick of its dispatch.

    ``trip`` holds the ticks at work in this attempt and the bytes of all attempts; ``before`` of them went up earlier.
    """

    __slots__ = ("attempt", "before", "born", "course", "passed", "plan")

    def __init__(self, *flying: Any, attempt: Attempt, course: Course, plan: Trip, born: int, before: int) -> None:
        super().__init__(*flying)
        self.attempt, self.course, self.plan, self.born, self.before = attempt, course, plan, born, before
        self.passed = 0  # rows on the way that are written

    def legs(self) -> tuple[tuple[Kind, int], ...]:
        """Ends of the legs of this attempt; arrival has a row of its own."""
        kinds = {0: Kind.DOWNLOADED, 2: Kind.COMPUTED}
        if self.plan.wait is not None:
            kinds[1] = Kind.STARTED
        return tuple((kinds[leg], tick) for leg, tick in self.course.reached if leg in kinds)

    def placed(self, ends: tuple[tuple[Kind, int], ...]) -> tuple[tuple[Kind, int], ...]:
        """Return those ends of legs that may be written by now: what takes no time after a standstill ends behind its row."""
        ahead = {station.tick for station in self.course.stations[self.passed :] if station.kind == Kind.RESUME}
        return tuple(end for end in ends if end[1] not in ahead)

    def spent(self, now: int) -> tuple[int, int, int, int, int]:
        """Ticks of this attempt by leg, and those in which it stood still."""
        return self.course.spent(now)

    def sent_up(self, now: int) -> int:
        """Bytes that have gone up by ``now``, rounded down, in proportion to the ticks at work in this attempt's upload."""
        whole = self.course.spent(self.ends)[UPLOAD]
        if now >= self.ends:
            return self.before + self.course.up
        return self.before + (self.course.up * self.course.spent(now)[UPLOAD] // whole if whole else 0)

    @property
    def reached(self) -> int:
        """Tick at which the job is with its client, as far as this attempt goes."""
        return next((tick for leg, tick in self.course.reached if leg == DOWNLOAD), self.left)

    def boundary(self, now: int, how: str, pace: Pace) -> tuple[int, Trip]:
        """Steps done at the next ``epoch`` or ``step`` boundary at or after ``now``, and what the attempt then consists of."""
        by_step, planned = how == "step", self.job.work.steps or 0
        stride = 1 if by_step else pace.epoch
        for steps in range(stride, self.steps if self.attempt.leg <= COMPUTE else 0, stride):
            end = pace.end(steps, planned, rested=not by_step)
            if self.course.at_work(COMPUTE, end) >= now:
                return steps, self.plan._replace(wait=self._wait(self.attempt.legs[WAIT]), compute=end)
        return self.steps, self.plan

    def shortened(self, now: int, pace: Pace) -> tuple[int, Trip]:
        """Whole steps done by ``now``, and what the attempt then consists of."""
        planned, spent = self.job.work.steps or 0, self.spent(now)
        if (
            self.attempt.leg > COMPUTE
            or not planned
            or any(leg == COMPUTE and tick <= now for leg, tick in self.course.reached)
        ):
            return self.steps, self.plan
        if not spent[COMPUTE] and not self._computing(now):
            return 0, self.plan._replace(wait=self._wait(spent[WAIT]), compute=0)
        ends = range(1, self.steps + 1)
        done = bisect_right(ends, spent[COMPUTE], key=lambda steps: pace.end(steps, planned, rested=False))
        return done, self.plan._replace(wait=self._wait(self.attempt.legs[WAIT]), compute=spent[COMPUTE])

    def _wait(self, ticks: int) -> int | None:
        return None if self.plan.wait is None else ticks

    def _computing(self, now: int) -> bool:
        return self.leg_at(now) == COMPUTE

    def leg_at(self, now: int) -> int:
        """The leg in which the attempt is at a tick."""
        return self.attempt.leg + sum(tick <= now for _, tick in self.course.reached)


def drawn_again(world: World, job: Job, steps: int, retry: int) -> Trip | None:
    """The trip of a retry, drawn anew; ``None`` where trips do not draw: then it takes as long again."""
    again: Any = getattr(world.trips, "again", None)
    if again is None:
        return None
    if job.work.probe:
        return world.trips.probe(job.client, job.nth, retry)  # pyright: ignore[reportAttributeAccessIssue]
    return again(job.client, job.nth, steps, retry)


class Journeys:
    """Every job of one engine on its way; ``received`` is called with those that have reached the server."""

    def __init__(self, engine: Any, absences: Absences, received: Callable[[Any], None]) -> None:
        perils = engine.world.perils or Perils()
        self._engine, self._env = engine, engine.env
        self._attendance = engine.roster if isinstance(engine.roster, Attendance) else None
        limit = engine.world.stops.max_ticks
        self._rules: Rules = perils.rules._replace(horizon=NEVER if limit is None else limit)
        self._outage = (lambda _: (NEVER, NEVER)) if perils.outages is None else perils.outages.since
        self._failures: Failures | None = perils.failures
        self._absences, self._received = absences, received

    # ---- setting out

    def set_out(self, job: Job, trip: Trip) -> int:
        """Send a job on its way from now; returns the tick at which its first attempt ends."""
        engine = self._engine
        whole_trip(job.client, job.nth, trip, engine.now)  # refuses what is no trip
        window = _ALWAYS if self._attendance is None else self._attendance.window(job.client)
        legs = (trip.download, trip.wait or 0, trip.compute, trip.upload)
        accidents = self._accidents(job, 0, legs)
        attempt = Attempt(engine.now, legs, (trip.bytes_down, trip.bytes_up), window, 0, 0, 0, 0, *accidents)
        if trip.lost is not None:
            attempt = attempt._replace(hazard=trip.lost[0], reason=trip.lost[1])
        voyage = self._launch(job, job.work.steps or 0, trip, attempt, engine.now, 0)
        engine.log.dispatch(job.client, job.id, job.version, job.nth, job.work, voyage.trip._replace(wait=trip.wait), 0)
        engine.log.legs(job.client, job.id, voyage.placed(voyage.legs()))
        return voyage.ends

    def _accidents(self, job: Job, retry: int, legs: tuple[int, int, int, int]) -> Accidents:
        return Accidents() if self._failures is None else self._failures.accidents(job.client, job.nth, retry, legs)

    def _launch(
        self, job: Job, steps: int, plan: Trip, attempt: Attempt, born: int, before: int, passed: int = 0
    ) -> Voyage:
        """Begin an attempt: work its course out, and let everything on it happen at its time."""
        engine, now = self._engine, self._engine.now
        found = course(attempt, self._rules, partial(self._after, job.client), self._outage)
        download, wait, compute, upload, _ = found.spent(found.ends)
        trip = Trip(
            download, None if plan.wait is None else wait, compute, upload, found.down, before + found.up
        )  # fmt: skip
        key = None if found.order == ARRIVAL else (LEAVE << NUMBER_BITS) | job.client
        voyage = Voyage(
            self._env, [self._handler(found, attempt)], now, job, trip, attempt.left, steps, found.ends, found.why, key,
            attempt=attempt, course=found, plan=plan, born=born, before=before,
        )  # fmt: skip
        engine.flights[job.id] = voyage
        voyage.passed = passed
        self._pass(voyage)
        timeout = self._absences.timeout
        if timeout is not None and attempt.left <= born + timeout < found.ends and job.id not in self._absences.overdue:
            Due(self._env, self._on_timeout, voyage, ARRIVAL, job.id, born + timeout - now)
        return voyage

    def _after(self, client: int, window: Window) -> Window:
        if self._attendance is None or window.end >= NEVER:
            return Window(NEVER, NEVER, 0)
        return self._attendance.source.after(client, window)

    def _handler(self, found: Course, attempt: Attempt) -> Any:
        if found.why is None:
            return self._received
        most = 0 if self._failures is None else self._failures.max_retries
        return self._on_retry if found.why in RETRIED and attempt.retry < most else self._on_loss

    # ---- on the way

    def _pass(self, voyage: Voyage) -> None:
        """Let the next row on the way be written at its time."""
        stations = voyage.course.stations
        if voyage.passed < len(stations):
            tick, order, _, _ = stations[voyage.passed]
            client, job = voyage.job.client, voyage.job.id
            who = {LEAVE: client, COME: 2 * client}.get(order, job)
            Due(self._env, self._on_station, voyage, order, who, tick - int(self._env.now))

    def _on_station(self, event: Due) -> None:
        voyage: Voyage = event.subject
        if not self._under_way(voyage):
            return
        engine, job = self._engine, voyage.job
        tick, _, kind, reason = voyage.course.stations[voyage.passed]
        engine.now = tick
        engine.log.block(tick)
        engine.log.row(kind, job.client, job.id, engine.model.version, reason=reason)
        voyage.passed += 1
        if kind == Kind.RESUME:
            engine.log.legs(job.client, job.id, tuple(end for end in voyage.legs() if end[1] == tick))
        self._pass(voyage)

    def _under_way(self, voyage: Voyage) -> bool:
        return voyage.job is not None and self._engine.flights.get(voyage.job.id) is voyage

    def drawn(self, voyage: Voyage) -> Trip:
        """The trip of an attempt with all the steps that the job was sent out with."""
        job, retry = voyage.job, voyage.attempt.retry
        if voyage.steps == job.work.steps:
            return voyage.plan
        whole = drawn_again(self._engine.world, job, job.work.steps or 0, retry) if retry else None
        return whole or self._engine.world.trips.trip(job.client, job.nth, job.work)

    def shorten(self, voyage: Voyage, steps: int, trip: Trip) -> Voyage:
        """The same attempt with less to wait and compute; what has happened by now is the same."""
        attempt, now = voyage.attempt, self._engine.now
        legs = (attempt.legs[0], trip.wait or 0, trip.compute, attempt.legs[UPLOAD])
        attempt = attempt._replace(legs=legs, hold=(voyage.leg_at(now), now))
        job, passed = voyage.job, voyage.passed
        voyage.forget()
        return self._launch(job, steps, voyage.plan, attempt, voyage.born, voyage.before, passed)

    # ---- ends

    def _on_loss(self, voyage: Voyage) -> None:
        engine, job = self._engine, voyage.job
        self._absences.land(job.id)
        if voyage.course.order == LEAVE:
            engine.log.block(voyage.ends)
            engine.log.row(Kind.LEAVE, job.client, job.id, engine.model.version)
        engine.on_loss(voyage)

    def _on_timeout(self, event: Due) -> None:
        voyage: Voyage = event.subject
        if self._under_way(voyage) and self._absences.expire(voyage):
            voyage.callbacks = [self._absences.end_stray]

    def _on_retry(self, voyage: Voyage) -> None:
        """An attempt failed; the leg it failed in and those after it are drawn anew, after the back-off."""
        engine, job, found = self._engine, voyage.job, voyage.course
        now = engine.now = voyage.ends
        engine.usage.spend(voyage, now)
        retry = voyage.attempt.retry + 1
        failures: Any = self._failures
        plan = drawn_again(self._engine.world, job, voyage.steps, retry) or voyage.plan
        legs = (plan.download, plan.wait or 0, plan.compute, plan.upload)
        attempt = Attempt(
            now, legs, voyage.attempt.sizes, found.window, found.leg, retry,
            failures.backoff(job.client, job.nth, retry), found.moved, *self._accidents(job, retry, legs),
            present=found.present,
        )  # fmt: skip
        following = self._launch(job, voyage.steps, plan, attempt, voyage.born, voyage.before + found.up)
        engine.log.block(now)
        size = following.course.down
        engine.log.row(Kind.RETRY, job.client, job.id, engine.model.version, reason=voyage.lost, size=size)
        engine.log.legs(job.client, job.id, following.placed(following.legs()))
