"""Transit: jobs that are played leg by leg, where the end of a leg depends on others, on roads that they share or in a queue.

Where a job's legs are its own, all that will befall it is known when it sets out (:mod:`desim_fl.journeys`), and it is one
event. Here a job has an event for each thing that happens to it. The rules are the same: a job stands still while its
client is away (where a leave means a pause), a transfer also while the server is down; it ends with its arrival, its
client's leave (where that means a drop) or an accident. Whoever stands still, fails or ends gives its share of a road to the
others in that instant. Ends of legs are class 0 of their instant; halts and resumes follow them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.attendance import Attendance
from desim_fl.blackouts import Blackouts
from desim_fl.course import (
    COMPUTE,
    CRASHES,
    DOWNLOAD,
    LEFT,
    LEFT_FOR_GOOD,
    OUTAGE,
    UPLOAD,
    UPLOAD_LOST,
    WAIT,
    never_through,
)
from desim_fl.curtailments import Curtailments
from desim_fl.errors import RunError
from desim_fl.failures import Accidents, Perils
from desim_fl.flight import ARRIVAL, BETWEEN, LEG_END, Due, whole_trip
from desim_fl.journeys import RETRIED, drawn_again
from desim_fl.passage import ENDS, Haul, Passage
from desim_fl.queues import Queues
from desim_fl.records import Kind
from desim_fl.roads import roads
from desim_fl.sharing import FINE
from desim_fl.stays import Stays, Turns
from desim_fl.ticks import MOST_TICKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.absences import Absences
    from desim_fl.core import Job, Trip
    from desim_fl.roads import Road

TRANSFERS = (DOWNLOAD, UPLOAD)
_MOST_STOPS = 100_000


class Transit:
    """Every job of one engine on its way, strays included; ``received`` is called with those that have reached the server."""

    def __init__(self, engine: Any, absences: Absences | None, received: Callable[[Any], None]) -> None:
        world = engine.world
        perils = world.perils or Perils()
        self._engine, self._env, self._absences, self._received = engine, engine.env, absences, received
        self._rules, self._failures = perils.rules, perils.failures
        self._down, self._up = roads(engine.env, world.shared, self._through)
        self._jobs: dict[int, Passage] = {}
        attendance = engine.roster if isinstance(engine.roster, Attendance) else None
        self._stays = None if attendance is None else Stays(self._env, attendance, Turns(self._left, self._came))
        self._queues = Queues() if world.client_queue > 1 else None
        self._curtailments = Curtailments(engine, self.stop, self.go)
        self.drawn, self.shorten = self._curtailments.drawn, self._curtailments.shorten
        self._outages = None
        if perils.outages is not None:
            self._outages = Blackouts(self._env, perils.outages.since, self._went_down, self._came_back)

    @property
    def roads(self) -> list[Road]:
        """The directions that are shared."""
        return [road for road in (self._down, self._up) if road is not None and road.way.common]

    # ---- setting out

    def set_out(self, job: Job, trip: Trip) -> int:
        """Send a job on its way from now; returns the tick at which it would arrive if it were alone."""
        engine, now = self._engine, self._engine.now
        whole_trip(job.client, job.nth, trip, now)  # refuses what is no trip
        trip = self._queued(trip)
        ends = min(now + sum(self._alone(job.client, trip)), MOST_TICKS)
        passage = engine.flights[job.id] = self._jobs[job.id] = Passage(self, job, trip, now, ends)
        self._meet(passage)
        engine.log.dispatch(job.client, job.id, job.version, job.nth, job.work, trip, 0)
        if self._queues is not None:
            self._queues.join(passage)
        if self._stays is not None:
            self._stays.join(passage)
        if self._absences is not None and self._absences.timeout is not None:
            Due(self._env, self._on_timeout, passage, ARRIVAL, job.id, self._absences.timeout)
        self._begin(passage)
        return ends

    def _queued(self, trip: Trip) -> Trip:
        """A trip that may have to wait for others of its client, even where no wait is drawn."""
        return trip if self._queues is None or trip.wait is not None else trip._replace(wait=0)

    def _alone(self, client: int, trip: Trip) -> tuple[int, int, int, int]:
        """Ticks of the legs of a trip that is alone on its roads."""
        down, up = (
            0 if road is None else road.way.alone(client, size)
            for road, size in ((self._down, trip.bytes_down), (self._up, trip.bytes_up))
        )
        return trip.download + down, trip.wait or 0, trip.compute, trip.upload + up

    def _meet(self, passage: Passage) -> None:
        """See what will befall the attempt in hand."""
        job, plan = passage.job, passage.plan
        accidents = Accidents()
        if plan.lost is not None:
            accidents, passage.reason = Accidents(hazard=plan.lost[0]), plan.lost[1]
        elif self._failures is not None:
            accidents = self._failures.accidents(job.client, job.nth, passage.retry, self._alone(job.client, plan))
        passage.fuses, passage.hazard, passage.unheard = accidents

    # ---- legs

    def _road(self, leg: int) -> Road | None:
        return {DOWNLOAD: self._down, UPLOAD: self._up}.get(leg)

    def _haul(self, passage: Passage, moved: int = 0) -> Haul:
        """What the leg in hand consists of, where so many of its bytes are through."""
        leg, plan, road = passage.leg, passage.plan, self._road(passage.leg)
        ticks = (plan.download, plan.wait or 0, plan.compute, plan.upload)[leg]
        size = {DOWNLOAD: plan.bytes_down, UPLOAD: plan.bytes_up}.get(leg, 0)
        if road is None:
            need = -(-ticks * (size - moved) // size) if moved and size else ticks
            haul = Haul(need, 0, size - moved, moved)
            haul.light(passage.fuses[leg], 0, 0)
        else:
            haul = Haul(ticks, road.way.work(size - moved) << FINE, size - moved, moved)
            haul.light(passage.fuses[leg], road.way.alone(passage.client, size), road.way.work(size) << FINE)
        return haul

    def _begin(self, passage: Passage, moved: int = 0) -> None:
        """Begin the leg in hand."""
        passage.haul = self._haul(passage, moved)
        self.go(passage)

    def go(self, passage: Passage) -> None:
        """Move, if nothing stands in the way; what has nothing to do needs nobody for it."""
        if passage.since is not None or passage.due is not None or passage.resting or passage.halted:
            return
        haul, now = passage.haul, int(self._env.now)
        if haul.left:
            if passage.away:
                return
            if passage.leg in TRANSFERS and self._outages is not None and self._outages.now():
                self._halt(passage, 0)
                return
        passage.account(now)
        passage.since = now
        if passage.leg == COMPUTE:
            self._curtailments.ask(passage)
        if haul.ticks or (not haul.work and self._has_turn(passage)):
            self._work(passage)
            return
        if haul.work:
            self._enter(passage)
        if passage.hazard is not None and passage.since is not None:
            self._set(passage, self._on_crash, ARRIVAL, passage.hazard)

    def _work(self, passage: Passage) -> None:
        """Do what takes a known time, up to its end or a crash."""
        haul, limit = passage.haul, passage.hazard
        fuse = haul.ticks_to_crash()
        limit = fuse if limit is None else limit if fuse is None else min(limit, fuse)
        if limit is not None and (limit < haul.ticks or (limit == haul.ticks and haul.work)):
            self._set(passage, self._on_crash, ARRIVAL, limit)
        else:
            arrives = passage.leg == UPLOAD and not haul.work
            self._set(passage, self._on_leg, ARRIVAL if arrives else LEG_END, haul.ticks)

    def _enter(self, passage: Passage) -> None:
        """Enter a shared road, with as much as is to be carried before the end or a crash."""
        road: Any = self._road(passage.leg)
        passage.entered = passage.haul.work_to_crash()
        if passage.entered:
            passage.road = road
            road.enter(passage.job.id, passage.client, passage.entered, passage)
        else:
            self._set(passage, self._on_crash, ARRIVAL, 0)

    def _set(self, passage: Passage, handler: Callable[[Due], None], order: int, ticks: int) -> None:
        passage.due = Due(self._env, handler, passage, order, passage.job.id, ticks)
        passage.when = int(self._env.now) + ticks

    def stop(self, passage: Passage) -> None:
        """Stop moving, and take stock."""
        now, ticks = int(self._env.now), passage.done(int(self._env.now))
        passage.account(now)
        moved, passage.since, passage.due, passage.asks = passage.since is not None, None, None, None
        if not moved:
            return
        passage.stood = now
        if passage.hazard is not None:
            passage.hazard -= ticks
        if passage.road is not None:
            left, passage.road = passage.road.leave(passage.job.id), None
            passage.haul.do(0, passage.entered - left)
        else:
            passage.haul.do(min(ticks, passage.haul.ticks))

    def _on_leg(self, event: Due) -> None:
        """The end of a leg, or of the latency before a transfer on a shared road."""
        passage: Passage = event.subject
        if passage.due is not event:
            return
        self.stop(passage)
        if passage.haul.left or not self._has_turn(passage):
            self.go(passage)
        else:
            self._end_leg(passage)

    def _through(self, passage: Passage) -> None:
        """A transfer on a shared road is through, or has come to where it crashes."""
        now = int(self._env.now)
        ticks, passage.road = passage.done(now), None
        passage.account(now)
        passage.since = passage.due = None
        if passage.hazard is not None:
            passage.hazard -= ticks
        passage.haul.do(0, passage.entered)
        if passage.haul.work:
            self._set(passage, self._on_crash, ARRIVAL, 0)
        elif passage.leg == UPLOAD:
            self._set(passage, self._on_leg, ARRIVAL, 0)
        else:
            self._end_leg(passage)

    def _end_leg(self, passage: Passage) -> None:
        """Go on with the next leg, or arrive."""
        leg, now = passage.leg, int(self._env.now)
        if now >= MOST_TICKS:
            number = passage.job.nth
            raise RunError(f"client {passage.client}: its job number {number} would arrive after 146,000 years")
        if leg == UPLOAD:
            passage.sent += passage.haul.through()
        passage.leg += 1
        if leg == UPLOAD:
            self._end(passage, UPLOAD_LOST if passage.unheard else None)
            return
        if leg != WAIT or passage.plan.wait is not None:
            passage.marks[ENDS[leg]] = now
            if not passage.stray:
                self._engine.log.legs(passage.client, passage.job.id, ((ENDS[leg], now),))
        if leg == COMPUTE and self._queues is not None:
            self._pass_on(passage)
        self._begin(passage)

    # ---- a client's queue

    def _has_turn(self, passage: Passage) -> bool:
        """Whether a job may end its wait; one that computes nothing waits for nobody."""
        return self._queues is None or passage.leg != WAIT or not passage.steps or self._queues.has_turn(passage)

    def _pass_on(self, passage: Passage) -> None:
        """A job no longer holds up those of its client that were sent out after it."""
        queues: Any = self._queues
        following = queues.part(passage)
        if following is not None and following.leg == WAIT and following.since is not None and not following.haul.ticks:
            self._set(following, self._on_leg, LEG_END, 0)

    # ---- standing still

    def _here(self, passage: Passage) -> bool:
        """Whether a job is still on its way."""
        return passage.job is not None and self._jobs.get(passage.job.id) is passage

    def _interrupt(self, passage: Passage) -> int:
        """Stand still from now on; returns the bytes of a download that will have to go down once more."""
        if passage.since is None:
            return 0
        self.stop(passage)
        passage.stops += 1
        if passage.stops > _MOST_STOPS:
            raise never_through(passage.left, _MOST_STOPS)
        haul, leg = passage.haul, passage.leg
        if not (self._rules.restarts and leg in TRANSFERS and haul.size):
            return 0
        through = haul.through()
        passage.sent += through if leg == UPLOAD else 0
        passage.haul = self._haul(passage)
        passage.haul.fuse = haul.fuse
        return through if leg == DOWNLOAD else 0

    def _row(self, kind: Kind, passage: Passage, reason: str | None = None, size: int = 0) -> None:
        """A row on the way, in a block of its own; of strays the server hears nothing."""
        engine, now = self._engine, int(self._env.now)
        engine.now = now
        if not passage.stray:
            engine.log.block(now)
            engine.log.row(kind, passage.client, passage.job.id, engine.model.version, reason=reason, size=size)

    def _left(self, passage: Passage, *, for_good: bool) -> None:
        """The client of a job leaves."""
        if not self._here(passage):  # it was ended by what the loss of another brought about
            return
        policy = self._rules.on_leave
        ends = policy == "drop" or (policy == "pause" and for_good)
        again = self._interrupt(passage) if policy == "pause" and not ends else 0
        self._row(Kind.LEAVE, passage, size=again)
        passage.away = policy == "pause"
        if ends:
            self._end(passage, LEFT if policy == "drop" else LEFT_FOR_GOOD)

    def _came(self, jobs: list[Passage]) -> None:
        """The client of these jobs is back."""
        for passage in jobs:
            self._row(Kind.COME, passage)
            passage.away = False
            self.go(passage)

    def _halt(self, passage: Passage, again: int) -> None:
        """Stand still until the server is back."""
        passage.halted = True
        Due(self._env, self._on_halt, (passage, again), LEG_END, BETWEEN + passage.job.id, 0)

    def _on_halt(self, event: Due) -> None:
        passage, again = event.subject
        if self._here(passage):
            self._row(Kind.HALT, passage, OUTAGE, again)

    def _went_down(self) -> bool:
        """Transfers under way stand still, or fail; one that ends in this very instant has ended. Whether there are jobs."""
        now = int(self._env.now)
        for passage in list(self._jobs.values()):
            if (
                passage.leg not in TRANSFERS
                or passage.since is None
                or (passage.due is not None and passage.when == now)
            ):
                continue
            if self._rules.on_outage == "fail":
                self._set(passage, self._on_failure, ARRIVAL, 0)
            else:
                self._halt(passage, self._interrupt(passage))
        return bool(self._jobs)

    def _came_back(self) -> bool:
        """Transfers that stand still go on. Whether there are jobs."""
        for passage in self._jobs.values():
            if passage.halted:
                Due(self._env, self._on_resume, passage, LEG_END, BETWEEN + passage.job.id, 0)
        return bool(self._jobs)

    def _on_resume(self, event: Due) -> None:
        """A transfer goes on, or a retry begins."""
        passage: Passage = event.subject
        if self._here(passage) and (passage.halted or passage.resting):
            self._row(Kind.RESUME, passage)
            passage.halted = passage.resting = False
            self.go(passage)

    # ---- accidents

    def _on_crash(self, event: Due) -> None:
        passage: Passage = event.subject
        if passage.due is event:
            self._fail(passage, passage.reason or CRASHES[passage.leg])

    def _on_failure(self, event: Due) -> None:
        if event.subject.due is event:
            self._fail(event.subject, OUTAGE)

    def _fail(self, passage: Passage, why: str) -> None:
        """An attempt fails: the leg it failed in and those after it are drawn anew, after a back-off, or the job is lost."""
        self.stop(passage)
        haul, leg = passage.haul, passage.leg
        through = haul.through() if leg in TRANSFERS else 0
        passage.sent += through if leg == UPLOAD else 0
        passage.haul = Haul(0)
        most = 0 if self._failures is None else self._failures.max_retries
        if passage.stray or why not in RETRIED or passage.retry >= most:
            self._end(passage, why)
            return
        failures: Any = self._failures
        job, restarts = passage.job, self._rules.restarts
        passage.retry += 1
        passage.asked, passage.resting = 0, True
        again = drawn_again(self._engine.world, job, passage.steps, passage.retry)
        passage.plan = passage.plan if again is None else self._queued(again)
        self._meet(passage)
        passage.haul = self._haul(passage, 0 if restarts else haul.moved + through)
        self._row(Kind.RETRY, passage, why, through if restarts and leg == DOWNLOAD else 0)
        wait = failures.backoff(job.client, job.nth, passage.retry)
        Due(self._env, self._on_resume, passage, LEG_END, BETWEEN + job.id, wait)

    def _on_timeout(self, event: Due) -> None:
        """The server no longer waits, unless the attempt ends in this very instant; a retry of it comes after that."""
        passage: Passage = event.subject
        job, absences = passage.job, self._absences
        if job is None or absences is None or self._engine.flights.get(job.id) is not passage:
            return
        if passage.due is not None and passage.when == int(self._env.now):
            Due(self._env, self._on_timeout, passage, ARRIVAL, job.id, 0)
            return
        if self._stays is not None:
            leaves, for_good = self._stays.leaves_now(passage.client)
            policy = self._rules.on_leave
            if leaves and (policy == "drop" or (policy == "pause" and for_good)):
                return
        passage.stray = absences.expire(passage)

    # ---- ends

    def _end(self, passage: Passage, why: str | None) -> None:
        """A job arrives, or is lost."""
        self.remove(passage)
        passage.ends, passage.lost, passage.trip = int(self._env.now), why, passage.taken()
        if passage.stray and self._absences is not None:
            self._absences.end_stray(passage)
        elif why is None:
            self._received(passage)
        else:
            if self._absences is not None:
                self._absences.land(passage.job.id)
            self._engine.on_loss(passage)

    def remove(self, passage: Passage) -> None:
        """Take a job out of everything that it is in."""
        self.stop(passage)
        del self._jobs[passage.job.id]
        if self._stays is not None:
            self._stays.part(passage)
        if self._queues is not None and passage.leg <= COMPUTE:
            self._pass_on(passage)
