"""What an engine is furnished with for its world: who is free, the desk, and whatever stands between dispatch and arrival."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.absences import Absences
from desim_fl.dispatch import Desk
from desim_fl.journeys import Journeys
from desim_fl.loads import roster
from desim_fl.opening import OpenDesk, Stream
from desim_fl.polling import OpenPollingDesk, PollingDesk
from desim_fl.recall import Recalls
from desim_fl.server import Server
from desim_fl.transit import Transit

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.core import Trip, Work
    from desim_fl.population import Roster
    from desim_fl.roads import Road
    from desim_fl.view import LiveView
    from desim_fl.world import World


class Premises(NamedTuple):
    """The parts; ``None`` where a world has no need of one.

    ``absences`` are there where clients leave and jobs fail, ``server`` is one that takes time, ``roads`` are links that
    transfers share; ``beyond`` sends jobs on their way where that takes more than one event known at dispatch; ``received`` is called with
    what reaches the server, and ``trip`` draws how long a job takes.
    """

    roster: Roster
    desk: Desk
    absences: Absences | None
    roads: list[Road]
    server: Server | None
    beyond: Any
    recalls: Recalls
    received: Callable[[Any], None]
    trip: Callable[[int, int, Work], Trip]

    @property
    def occupy(self) -> Callable[[], None] | None:
        """What an evaluation does to the server; ``None`` = nothing."""
        return self.server.occupy if self.server is not None and self.server.blocks else None

    def close(self, now: int) -> None:
        """Close what keeps accounts of its own."""
        for part in (self.absences, self.server):
            if part is not None:
                part.close(now)


def furnish(engine: Any, view: LiveView, depart: Callable[..., None]) -> Premises:
    """Make the parts that an engine's world asks for."""
    world = engine.world
    free = roster(world.availability, len(world.sizes), world.client_queue, lambda: engine.now)
    desk = _desk(engine, world, view, engine.dispatches, depart, free)
    engine.roster, engine.desk = free, desk  # the other parts look for them there
    troubled = world.availability is not None or world.perils is not None
    absences = Absences(engine) if troubled else None
    hand_over = engine.on_arrival if absences is None else absences.arrive
    server = None if world.server is None else Server(engine, hand_over)
    received, trip = hand_over if server is None else server.receive, world.trips.trip
    if isinstance(desk, PollingDesk):
        received, trip = desk.listen(received), desk.trip
        view.hide(desk.probes)
    beyond = _beyond(engine, absences, received)
    roads = beyond.roads if isinstance(beyond, Transit) else []
    return Premises(free, desk, absences, roads, server, beyond, Recalls(engine, beyond, absences), received, trip)


def _desk(engine: Any, world: World, *parts: Any) -> Desk:
    """The desk at which places are filled: in a closed system or an open one, with or without asking first."""
    opened = world.arrivals is not None
    if getattr(world.selector, "probes", False):  # an option that the protocol does not ask for
        return (OpenPollingDesk if opened else PollingDesk)(engine, world, *parts)
    return (OpenDesk if opened else Desk)(world, *parts)


def _beyond(engine: Any, absences: Absences | None, received: Callable[[Any], None]) -> Any:
    """Who sends jobs on their way; ``None`` where each is one event, known at its dispatch."""
    world = engine.world
    if leg_by_leg(world):
        return Transit(engine, absences, received)
    return None if absences is None else Journeys(engine, absences, received)


def leg_by_leg(world: World) -> bool:
    """Whether jobs must be played leg by leg: others decide on their ends, or training does while something befalls them."""
    troubled = world.availability is not None or world.perils is not None
    return world.shared is not None or world.client_queue > 1 or (troubled and world.patience is not None)


def open_up(engine: Any) -> None:
    """Start the stream of jobs, where they leave at a rate of their own."""
    if engine.world.arrivals is not None:
        Stream(engine)
