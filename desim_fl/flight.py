"""Jobs on their way, and the events that end their flights."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import simpy

from desim_fl.core import Flight, Job, Trip
from desim_fl.errors import RefusedError, RunError
from desim_fl.eventlog import Kind
from desim_fl.ticks import MOST_TICKS, is_leg

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.world import World

# Classes of an instant, in the order in which they are played. Ends of legs are placed by the event log.
LEG_END, ARRIVAL, LEAVE, COME, ALARM, EVALUATION, END = 0, 1, 2, 3, 4, 5, 6
NUMBER_BITS = 48
BETWEEN = 1 << (NUMBER_BITS - 1)  # added to a number of class 0: behind all ends of legs of the instant
_LANDING = ARRIVAL << NUMBER_BITS


class Pace(NamedTuple):
    """Steps of an epoch, ticks of the whole compute leg, and those of the pause after each epoch, part of it."""

    epoch: int
    whole: int
    pauses: tuple[int, ...] = ()

    def end(self, steps: int, planned: int, *, rested: bool) -> int:
        """Ticks from the start of computing to the end of a step, or (``rested``) of the pause that may follow it."""
        compute = self.whole - sum(self.pauses)
        return compute * steps // planned + sum(self.pauses[: (steps - (not rested)) // self.epoch])


class Due(simpy.Event):
    """Something that happens at one key (tick, class, number); ``handler`` is called with this event, which carries ``subject``."""

    __slots__ = ("callbacks", "subject")
    _ok, _value = True, None  # it cannot fail and carries no value: nothing to set for each

    def __init__(
        self, env: simpy.Environment, handler: Callable[[Any], None], subject: Any, order: int, number: int, delay: int
    ) -> None:
        self.callbacks = [handler]
        self.subject = subject
        env.schedule(self, (order << NUMBER_BITS) | number, delay)  # pyright: ignore[reportArgumentType]


class Flying(simpy.Event):
    """A job on its way, and at once the event that ends its flight; ``handlers`` are called with it, a list for all.

    It left at tick ``left``, will have done ``steps``, and ends at tick ``ends``, where it arrives or is ``lost`` (the
    reason). It never changes: what ends otherwise than planned is another flight of the same job.
    """

    job: Job
    lost: str | None
    received = False  # whether the server has it, and only takes its time
    __slots__ = ("callbacks", "ends", "job", "left", "lost", "steps", "trip")
    _ok, _value = True, None

    def __init__(
        self,
        env: simpy.Environment,
        handlers: list[Callable[[Any], None]],
        now: int,
        job: Job,
        trip: Trip,
        left: int,
        steps: int,
        ends: int,
        lost: str | None,
        key: int | None = None,
    ) -> None:
        self.callbacks = handlers
        self.job, self.trip, self.left, self.steps, self.ends, self.lost = job, trip, left, steps, ends, lost
        env.schedule(self, _LANDING | job.id if key is None else key, ends - now)  # pyright: ignore[reportArgumentType]

    def forget(self) -> None:
        """Be no event any more: what ends otherwise stays in SimPy's queue until its instant, but holds no version."""
        self.callbacks, self.job = [], None  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def reached(self) -> int:
        """Tick at which it is with the client."""
        return self.left + self.trip.download

    @property
    def started(self) -> int:
        """Tick at which computing starts."""
        return self.left + self.trip.download + (self.trip.wait or 0)

    def legs(self) -> tuple[tuple[Kind, int], ...]:
        """Ends of the legs before the flight ends; arrival has a row of its own."""
        downloaded, computed = self.left + self.trip.download, self.started + self.trip.compute
        started = () if self.trip.wait is None else ((Kind.STARTED, self.started),)
        ends = ((Kind.DOWNLOADED, downloaded), *started, (Kind.COMPUTED, computed))
        return ends if self.lost is None else tuple(end for end in ends if end[1] <= self.ends)

    def spent(self, now: int) -> tuple[int, int, int, int, int]:
        """Ticks since ``left`` by leg (download, wait, compute, upload), and those in which the job stood still."""
        left, parts = now - self.left, []
        for leg in (self.trip.download, self.trip.wait or 0, self.trip.compute, self.trip.upload):
            parts.append(min(leg, left))
            left -= parts[-1]
        return (*parts, 0)  # pyright: ignore[reportReturnType]

    def sent_up(self, now: int) -> int:
        """Bytes of the update that have gone up by ``now``: a whole number, rounded down, in proportion to the time."""
        spent = self.spent(now)[3]
        return self.trip.bytes_up * spent // self.trip.upload if self.trip.upload else 0

    def placed(self, ends: tuple[tuple[Kind, int], ...]) -> tuple[tuple[Kind, int], ...]:
        """Return those ends of legs that the log may hold by now: all, where nothing on the way comes before them."""
        return ends

    def boundary(self, now: int, how: str, pace: Pace) -> tuple[int, Trip]:
        """Steps done at the next ``epoch`` or ``step`` boundary at or after ``now``, and the trip that ends there.

        Step s of S ends at start + compute * s // S, plus the pauses of the epochs before it; an epoch ends after its
        pause.
        """
        by_step, planned = how == "step", self.job.work.steps or 0
        stride = 1 if by_step else pace.epoch
        for steps in range(stride, self.steps, stride):
            end = pace.end(steps, planned, rested=not by_step)
            if self.started + end >= now:
                return steps, self.trip._replace(compute=end)
        return self.steps, self.trip

    def shortened(self, now: int, pace: Pace) -> tuple[int, Trip]:
        """Whole steps done by ``now``, and the trip that turns back there, or at the end of its download if that is later."""
        trip, planned, spent = self.trip, self.job.work.steps or 0, now - self.started
        if spent >= trip.compute or not planned:
            return self.steps, trip
        if spent < 0:  # the wait is cut short
            waited = max(0, now - self.reached)
            return 0, trip._replace(wait=None if trip.wait is None else waited, compute=0)
        done = bisect_right(range(1, self.steps + 1), spent, key=lambda steps: pace.end(steps, planned, rested=False))
        return done, trip._replace(compute=spent)


def pace(world: World, flying: Flying, drawn: Trip | None = None) -> Pace:
    """How a job's compute leg was laid out when it was dispatched; ``drawn`` is its whole trip where that is known."""
    client, nth, work = flying.job.client, flying.job.nth, flying.job.work
    trip = drawn or (flying.trip if flying.steps == work.steps else world.trips.trip(client, nth, work))
    pauses = getattr(world.trips, "pauses", None)  # an option that the protocol does not ask for
    epoch = world.assignment.steps_per_epoch[client]
    return Pace(max(1, epoch), trip.compute, () if pauses is None else pauses(client, nth, work.steps or 0))


def curtailed(world: World, flying: Flying, now: int, how: str, drawn: Trip | None = None) -> tuple[int, Trip]:
    """Steps and trip of a job that reports early: ``how`` as in :class:`desim_fl.core.Stop`. Raises ``RefusedError``."""
    if how not in {"epoch", "step", "now"}:
        raise RefusedError(f'a job cannot be stopped with how = "{how}"; use "cancel", "epoch", "step" or "now"')
    laid_out = pace(world, flying, drawn)
    return flying.shortened(now, laid_out) if how == "now" else flying.boundary(now, how, laid_out)


def fate(trip: Trip, left: int) -> tuple[int, str | None]:
    """Tick at which a flight ends, and why it is lost on its way (``None`` = it arrives)."""
    whole = duration(trip)
    if trip.lost is None or trip.lost[0] >= whole:
        return left + whole, None
    return left + trip.lost[0], trip.lost[1]


def duration(trip: Trip) -> int:
    """Ticks from dispatch to arrival."""
    return trip.download + (trip.wait or 0) + trip.compute + trip.upload


def whole_trip(client: int, nth: int, trip: Trip, left: int) -> tuple[int, str | None]:
    """Tick at which a trip that begins at ``left`` ends, and why its job is lost on the way (``None`` = it arrives).

    Raises ``RunError`` naming the client unless every leg is a whole number of ticks from 0 on.
    """
    legs = {"download": trip.download, "wait": trip.wait or 0, "compute": trip.compute, "upload": trip.upload}
    if trip.lost is not None:
        legs["loss"] = trip.lost[0]
    for leg, ticks in legs.items():
        if not is_leg(ticks):
            raise RunError(
                f"client {client}, job number {nth} of this client: the {leg} leg lasts {ticks!r} ticks; a leg is a "
                "whole number of microseconds, finite and not negative"
            )
    if left + duration(trip) >= MOST_TICKS:
        raise RunError(f"client {client}: its job number {nth} would arrive after 146,000 years of virtual time")
    return fate(trip, left)


class FlightView(Mapping[int, Flight]):
    """The jobs in flight as a strategy sees them, by job id; it does not see those ``hidden``."""

    def __init__(self, flights: Mapping[int, Flying], version: Callable[[], int], hidden: Collection[int] = ()) -> None:
        self._flights, self._version, self._hidden = flights, version, hidden

    def hide(self, jobs: Collection[int]) -> FlightView:
        """Return the same view without these jobs, whichever they are by then."""
        return FlightView(self._flights, self._version, jobs)

    def __getitem__(self, job: int) -> Flight:
        if job in self._hidden:
            raise KeyError(job)
        found = self._flights[job].job
        return Flight(found.client, found.version, self._version() - found.version, found.tag)

    def __iter__(self) -> Iterator[int]:
        if not self._hidden:
            return iter(self._flights)
        return (job for job in self._flights if job not in self._hidden)

    def __len__(self) -> int:
        return len(self._flights) - len(self._hidden)
