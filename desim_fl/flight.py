"""Jobs on their way, and the events that end their flights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import simpy

from desim_fl.core import Flight, Job, Trip
from desim_fl.errors import RunError
from desim_fl.eventlog import Kind
from desim_fl.ticks import MOST_TICKS, is_leg

if TYPE_CHECKING:
    from collections.abc import Callable

# Classes of an instant, in the order in which they are played. Class 0, ends of legs, is placed by the event log.
ARRIVAL, LEAVE, COME, ALARM, EVALUATION = 1, 2, 3, 4, 5
NUMBER_BITS = 48


class Due(simpy.Event):
    """Something that happens at one key (tick, class, number); ``handler`` is called with this event, which carries ``subject``."""

    subject: Any

    def __init__(
        self, env: simpy.Environment, handler: Callable[[Any], None], subject: Any, order: int, number: int, delay: int
    ) -> None:
        self.env = env
        self.callbacks = [handler]
        self._value = self.subject = subject
        self._ok = True
        env.schedule(self, priority=(order << NUMBER_BITS) | number, delay=delay)  # pyright: ignore[reportArgumentType]

    def forget(self) -> None:
        """Let go of the subject: what is called off stays in SimPy's queue until its instant, but holds no version."""
        self._value = self.subject = None


@dataclass(slots=True)
class Flying:
    """A job on its way: it left at tick ``left`` and will have done ``steps``; ``due`` ends the flight."""

    job: Job
    trip: Trip
    left: int
    steps: int
    due: Due | None = None

    @property
    def started(self) -> int:
        """Tick at which computing starts."""
        return self.left + self.trip.download + (self.trip.wait or 0)

    @property
    def loss(self) -> tuple[int, str] | None:
        """When (tick) and why the job is lost on its way, if it is."""
        lost = self.trip.lost
        return None if lost is None or lost[0] >= duration(self.trip) else (self.left + lost[0], lost[1])

    @property
    def ends(self) -> int:
        """Tick at which the flight ends, one way or the other."""
        return self.left + duration(self.trip) if self.loss is None else self.loss[0]

    def legs(self) -> tuple[tuple[Kind, int], ...]:
        """Ends of the legs before the flight ends; arrival has a row of its own."""
        downloaded, computed = self.left + self.trip.download, self.started + self.trip.compute
        started = () if self.trip.wait is None else ((Kind.STARTED, self.started),)
        ends = ((Kind.DOWNLOADED, downloaded), *started, (Kind.COMPUTED, computed))
        return ends if self.loss is None else tuple(end for end in ends if end[1] <= self.ends)

    def boundary(self, now: int, how: str) -> tuple[int, int]:
        """Steps done and compute ticks at the next ``epoch`` or ``step`` boundary at or after ``now``.

        Step s of S ends at start + compute * s // S.
        """
        work, compute = self.job.work, self.trip.compute
        planned = work.steps or 0
        stride = 1 if how == "step" else max(1, planned // (work.epochs or 1))
        for steps in range(stride, self.steps, stride):
            if self.started + compute * steps // planned >= now:
                return steps, compute * steps // planned
        return self.steps, compute


def duration(trip: Trip) -> int:
    """Ticks from dispatch to arrival."""
    return trip.download + (trip.wait or 0) + trip.compute + trip.upload


def check_trip(client: int, nth: int, trip: Trip, now: int) -> None:
    """Raise ``RunError`` naming the client unless every leg is a whole number of ticks from 0 on."""
    sound = trip.lost is None and all(map(is_leg, (trip.download, trip.wait or 0, trip.compute, trip.upload)))
    if sound and now + duration(trip) < MOST_TICKS:
        return
    legs = {"download": trip.download, "wait": trip.wait or 0, "compute": trip.compute, "upload": trip.upload}
    if trip.lost is not None:
        legs["loss"] = trip.lost[0]
    for leg, ticks in legs.items():
        if not is_leg(ticks):
            raise RunError(
                f"client {client}, job number {nth} of this client: the {leg} leg lasts {ticks!r} ticks; a leg is a "
                "whole number of microseconds, finite and not negative"
            )
    if now + duration(trip) >= MOST_TICKS:
        raise RunError(f"client {client}: its job number {nth} would arrive after 146,000 years of virtual time")


class FlightView(Mapping[int, Flight]):
    """The jobs in flight as a strategy sees them, by job id."""

    def __init__(self, flights: Mapping[int, Flying], version: Callable[[], int]) -> None:
        self._flights, self._version = flights, version

    def __getitem__(self, job: int) -> Flight:
        found = self._flights[job].job
        return Flight(found.client, found.version, self._version() - found.version, found.tag)

    def __iter__(self) -> Iterator[int]:
        return iter(self._flights)

    def __len__(self) -> int:
        return len(self._flights)
