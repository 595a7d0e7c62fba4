"""What strategies and selectors may look at: live, read-only, and nothing else of the engine."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from desim_fl.flight import FlightView

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from desim_fl.core import Flight, Model, Params
    from desim_fl.flight import Flying
    from desim_fl.world import World


class LiveView:
    """``core.View`` on a running engine, which tells it of every new version through ``moved``."""

    __slots__ = ("_clients", "_model", "_world", "flying")

    def __init__(self, world: World, flights: Mapping[int, Flying]) -> None:
        self._world, self._model, self._clients = world, world.model, len(world.sizes)
        self.flying: Mapping[int, Flight] = FlightView(flights, lambda: self._model.version)

    def moved(self, model: Model) -> None:
        """Take note of the version now in force."""
        self._model = model

    # Getters in C: a strategy reads these at every event.
    model: Model = property(attrgetter("_model"), doc="The version in force.")
    version: int = property(attrgetter("_model.version"), doc="Its number.")
    params: Params = property(attrgetter("_model.params"), doc="Its parameters.")
    clients: int = property(attrgetter("_clients"), doc="How many clients there are.")
    sizes: Sequence[int] = property(attrgetter("_world.sizes"), doc="Training examples by client.")
    groups: Mapping[str, Sequence[int]] = property(attrgetter("_world.groups"), doc="Named groups of clients.")
    concurrency: int = property(attrgetter("_world.concurrency"), doc="Jobs the dispatch policy keeps in flight.")
