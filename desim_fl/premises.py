"""What an engine is furnished with for its world: who is free, the desk, and whatever stands between dispatch and arrival."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.attendance import roster
from desim_fl.backlog import Backlogs, DeepRoster
from desim_fl.dispatch import Desk
from desim_fl.journeys import Journeys
from desim_fl.opening import OpenDesk, Stream
from desim_fl.recall import Recalls
from desim_fl.server import Server
from desim_fl.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.population import Roster
    from desim_fl.view import LiveView


class Premises(NamedTuple):
    """The parts; ``None`` where a world has no need of one.

    ``journeys`` play what befalls jobs on the way, ``traffic`` transfers that share links, ``server`` one that takes time;
    ``beyond`` sends jobs on their way where that takes more than one event known at dispatch.
    """

    roster: Roster
    desk: Desk
    journeys: Journeys | None
    traffic: Traffic | None
    server: Server | None
    beyond: Any
    recalls: Recalls

    @property
    def occupy(self) -> Callable[[], None] | None:
        """What an evaluation does to the server; ``None`` = nothing."""
        return self.server.occupy if self.server is not None and self.server.blocks else None

    def close(self, now: int) -> None:
        """Close what keeps accounts of its own."""
        for part in (self.journeys, self.server):
            if part is not None:
                part.close(now)


def furnish(engine: Any, view: LiveView, depart: Callable[..., None]) -> Premises:
    """Make the parts that an engine's world asks for."""
    world = engine.world
    depth = world.client_queue
    free = roster(world.availability, len(world.sizes), lambda: engine.now)
    free = free if depth == 1 else DeepRoster(len(world.sizes), depth)
    desk = (Desk if world.arrivals is None else OpenDesk)(world, view, engine.dispatches, depart, free)
    engine.roster, engine.desk = free, desk  # the other parts look for them there
    troubled = world.availability is not None or world.perils is not None
    journeys = Journeys(engine) if troubled else None
    traffic = None if world.shared is None else Traffic(engine)
    server = None if world.server is None else Server(engine)
    beyond = traffic or journeys or (Backlogs(engine) if depth > 1 else None)
    return Premises(free, desk, journeys, traffic, server, beyond, Recalls(engine, traffic, journeys))


def open_up(engine: Any) -> None:
    """Start the stream of jobs, where they leave at a rate of their own."""
    if engine.world.arrivals is not None:
        Stream(engine)
