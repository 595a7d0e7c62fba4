"""What strategies and selectors may look at: live, read-only, and nothing else of the engine."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

from desim_fl.flight import FlightView

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from desim_fl.core import Flight, Model, Params
    from desim_fl.flight import Flying
    from desim_fl.world import World


def _seen(path: str, doc: str) -> Any:
    """Make a property with a getter in C: a strategy reads several at every event."""
    return property(attrgetter(path), doc=doc)


class LiveView:
    """``core.View`` on a running engine, which tells it of every new version through ``moved``."""

    __slots__ = ("_caches", "_clients", "_model", "_world", "flying")

    def __init__(self, world: World, flights: Mapping[int, Flying], caches: Mapping[int, Any]) -> None:
        self._caches = caches
        self._world, self._model, self._clients = world, world.model, len(world.sizes)
        self.flying: Mapping[int, Flight] = FlightView(flights, lambda: self._model.version)

    def moved(self, model: Model) -> None:
        """Take note of the version now in force."""
        self._model = model

    def cache(self, client: int) -> Any:
        """Return what the strategy last asked the engine to keep for a client."""
        return self._caches.get(client)

    model: Model = _seen("_model", "The version in force.")
    version: int = _seen("_model.version", "Its number.")
    params: Params = _seen("_model.params", "Its parameters.")
    clients: int = _seen("_clients", "How many clients there are.")
    sizes: Sequence[int] = _seen("_world.sizes", "Training examples by client.")
    groups: Mapping[str, Sequence[int]] = _seen("_world.groups", "Named groups of clients.")
    concurrency: int = _seen("_world.concurrency", "Jobs the dispatch policy keeps in flight.")
