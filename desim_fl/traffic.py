"""Traffic: jobs whose transfers share links, played leg by leg on the engine's clock.

Where links are a job's own, its arrival is known at its dispatch and it is one event. Here the end of a transfer depends
on everybody who comes and goes meanwhile, so a job has an event for each thing that happens to it: a transfer begins,
a transfer ends (one event for all that end on a link at a tick), it lands. Ends of legs are class 0 of their instant.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from desim_fl.core import Trip
from desim_fl.errors import RunError
from desim_fl.flight import Due, Flying, whole_trip
from desim_fl.records import Kind
from desim_fl.ticks import MOST_TICKS

if TYPE_CHECKING:
    from desim_fl.core import Job
    from desim_fl.meter import Meter
    from desim_fl.network import Way
    from desim_fl.sharing import Link

LEG_END, ARRIVAL = 0, 1
DOWN, UP = "egress", "ingress"


class Underway(Flying):
    """A job on its way over shared links: what is known of its legs so far.

    ``plan`` holds its legs without what shared links carry. ``downloaded``, ``begun`` (the wait), ``computed`` are the ticks at
    which its legs end, as far as they are known (else beyond all time); ``ends`` is when it would arrive if it were alone, which
    orders training and nothing else. ``due`` is the one event that it waits for.
    """

    __slots__ = ("begun", "computed", "downloaded", "due", "plan", "traffic")

    def __init__(self, traffic: Traffic, job: Job, plan: Trip, left: int, ends: int) -> None:
        self.job, self.plan, self.trip, self.left, self.ends = job, plan, plan, left, ends
        self.steps, self.traffic = job.work.steps or 0, traffic
        self.lost: str | None = None
        self.downloaded = self.begun = self.computed = MOST_TICKS
        self.due: Due | None = None

    @property
    def reached(self) -> int:
        """Tick at which it is with the client."""
        return self.downloaded

    @property
    def started(self) -> int:
        """Tick at which computing starts."""
        return self.begun

    def forget(self) -> None:
        """End here: its transfer makes room for the others at once."""
        self.traffic.abort(self)
        self.job = None  # pyright: ignore[reportAttributeAccessIssue]

    def legs(self) -> tuple[tuple[Kind, int], ...]:
        """Ends of legs that are known, those after a loss left out."""
        started = () if self.plan.wait is None else ((Kind.STARTED, self.started),)
        ends = ((Kind.DOWNLOADED, self.downloaded), *started, (Kind.COMPUTED, self.computed))
        last = MOST_TICKS - 1 if self.plan.lost is None else self.left + self.plan.lost[0]
        return tuple(end for end in ends if end[1] <= last)

    def spent(self, now: int) -> tuple[int, int, int, int, int]:
        """Ticks spent in each leg; it never stands still."""
        marks = (self.left, *(min(tick, now) for tick in (self.downloaded, self.started, self.computed)), now)
        return (*(end - begin for begin, end in pairwise(marks)), 0)  # pyright: ignore[reportReturnType]

    def sent_up(self, now: int) -> int:  # noqa: ARG002
        """No bytes: what a shared link has carried of an upload that is cut short is not counted."""
        return 0


class Road:
    """One direction: its way, its link, who is on it, and the event at which the next of them is through."""

    __slots__ = ("alarm", "link", "meter", "name", "on_it", "way")

    def __init__(self, name: str, way: Way) -> None:
        self.name, self.way = name, way
        link, meter = way.link()
        self.link: Link = link
        self.meter: Meter = meter
        self.on_it: dict[int, Underway] = {}
        self.alarm: Due | None = None


class Traffic:
    """All jobs of one engine whose transfers share links."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._env = engine, engine.env
        ways = engine.world.shared
        self._down = None if ways.egress is None else Road(DOWN, ways.egress)
        self._up = None if ways.ingress is None else Road(UP, ways.ingress)

    @property
    def roads(self) -> list[Road]:
        """The directions that are shared."""
        return [road for road in (self._down, self._up) if road is not None]

    # ---- the way of a job

    def set_out(self, job: Job, trip: Trip) -> int:
        """Send a job on its way from now; returns the tick at which it would arrive if it were alone."""
        engine, client, now = self._engine, job.client, self._engine.now
        whole_trip(client, job.nth, trip, now)  # refuses what is no trip
        ends = now + trip.download + (trip.wait or 0) + trip.compute + trip.upload
        for road, size in ((self._down, trip.bytes_down), (self._up, trip.bytes_up)):
            ends += 0 if road is None else road.way.alone(client, size)
        flying = Underway(self, job, trip, now, min(ends, MOST_TICKS))
        engine.flights[job.id] = flying
        engine.log.dispatch(client, job.id, job.version, job.nth, job.work, trip, 0)
        self._later(self._on_latency_down, flying, trip.download)
        if trip.lost is not None:
            Due(self._env, self._on_loss, flying, ARRIVAL, job.id, trip.lost[0])
        return flying.ends

    def _later(self, handler: Any, flying: Underway, ticks: int) -> None:
        flying.due = Due(self._env, handler, flying, LEG_END, flying.job.id, ticks)

    def _on_latency_down(self, event: Due) -> None:
        flying: Underway = event.subject
        if flying.due is event:
            self._enter(self._down, flying, flying.plan.bytes_down)

    def _on_latency_up(self, event: Due) -> None:
        flying: Underway = event.subject
        if flying.due is event:
            self._enter(self._up, flying, flying.plan.bytes_up)

    def _enter(self, road: Road | None, flying: Underway, size: int) -> None:
        """Begin a transfer; where the direction is not shared, the leg ends here."""
        now, job = int(self._env.now), flying.job
        flying.due, self._engine.now = None, now
        if road is None:
            self._through(flying, now)
            return
        road.on_it[job.id] = flying
        road.link.add(now, job.id, road.way.work(size), road.way.cap(job.client), road.way.region(job.client))
        self._look_ahead(road)

    def _look_ahead(self, road: Road) -> None:
        """Wake up when the next transfer ends, as things are now."""
        following, alarm = road.link.next_tick(), road.alarm
        if following is None:
            road.alarm = None
        elif alarm is None or alarm.subject[1] != following:
            road.alarm = Due(
                self._env, self._on_end, (road, following), LEG_END, 0, following - int(self._env.now)
            )  # fmt: skip

    def _on_end(self, event: Due) -> None:
        """Every transfer that ends at this tick is through."""
        road, tick = event.subject
        if event is not road.alarm:
            return
        road.alarm, self._engine.now = None, tick
        for number in road.link.take(tick):
            flying = road.on_it.pop(number, None)
            if flying is not None:
                self._through(flying, tick)
        self._look_ahead(road)

    def _through(self, flying: Underway, tick: int) -> None:
        """End a leg over the network: what comes after it is known for a while."""
        job, plan = flying.job, flying.plan
        if flying.computed == MOST_TICKS:
            flying.downloaded, flying.begun = tick, tick + (plan.wait or 0)
            flying.computed = flying.started + flying.trip.compute
            self._engine.log.legs(job.client, job.id, flying.legs())
            self._later(self._on_latency_up, flying, flying.computed + plan.upload - tick)
            return
        if tick >= MOST_TICKS:
            raise RunError(f"client {job.client}: its job number {job.nth} would arrive after 146,000 years")
        engine, wait = self._engine, None if plan.wait is None else flying.started - flying.downloaded
        legs = flying.downloaded - flying.left, wait, flying.computed - flying.started, tick - flying.computed
        trip = Trip(*legs, plan.bytes_down, plan.bytes_up)
        engine.flights[job.id] = Flying(
            self._env, engine.handlers(None), tick, job, trip, flying.left, flying.steps, tick, None
        )
        flying.job = None  # pyright: ignore[reportAttributeAccessIssue]

    # ---- what ends otherwise

    def shorten(self, flying: Underway, steps: int, trip: Trip) -> Underway:
        """Let a job wait and compute less, and go on with what comes after."""
        now = int(self._env.now)
        flying.steps, flying.trip, flying.plan = steps, trip, flying.plan._replace(wait=trip.wait)
        if flying.downloaded < MOST_TICKS:
            flying.begun = flying.downloaded + (trip.wait or 0)
            flying.computed = flying.begun + trip.compute
            self._later(self._on_latency_up, flying, flying.computed + flying.plan.upload - now)
        return flying

    def abort(self, flying: Underway) -> None:
        """Take a job out of the traffic."""
        flying.due = None
        for road in self.roads:
            if road.on_it.pop(flying.job.id, None) is not None and road.link.holds(flying.job.id):
                road.link.abort(int(self._env.now), flying.job.id)
                self._look_ahead(road)

    def _on_loss(self, event: Due) -> None:
        """A job is lost on its way; one that arrives in this very instant is not."""
        flying: Underway = event.subject
        if flying.job is not None and self._engine.flights.get(flying.job.id) is flying:
            self.abort(flying)
            flying.ends, flying.lost = int(self._env.now), flying.plan.lost[1]  # pyright: ignore[reportOptionalSubscript]
            self._engine.on_loss(flying)
