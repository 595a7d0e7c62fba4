"""What strategies and selectors may look at: live, read-only, and nothing else of the engine."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

from desim_fl.flight import FlightView

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from desim_fl.core import Model, Params
    from desim_fl.flight import Flying
    from desim_fl.world import World


def _seen(path: str, doc: str) -> Any:
    """Make a property with a getter in C: a strategy reads several at every event."""
    return property(attrgetter(path), doc=doc)


class LiveView:
    """``core.View`` on a running engine, which sets ``model`` to the version in force."""

    __slots__ = ("_caches", "_clients", "_world", "flying", "model")

    def __init__(self, world: World, flights: Mapping[int, Flying], caches: Mapping[int, Any]) -> None:
        self._caches = caches
        self._world, self._clients = world, len(world.sizes)
        self.model: Model = world.model
        self.flying: FlightView = FlightView(flights, lambda: self.model.version)

    def hide(self, jobs: Collection[int]) -> None:
        """Show these jobs to nobody, whichever they are by then."""
        self.flying = self.flying.hide(jobs)

    def cache(self, client: int) -> Any:
        """Return what the strategy last asked the engine to keep for a client."""
        return self._caches.get(client)

    version: int = _seen("model.version", "Number of the version in force.")
    params: Params = _seen("model.params", "Its parameters.")
    clients: int = _seen("_clients", "How many clients there are.")
    sizes: Sequence[int] = _seen("_world.sizes", "Training examples by client.")
    groups: Mapping[str, Sequence[int]] = _seen("_world.groups", "Named groups of clients.")
    concurrency: int = _seen("_world.concurrency", "Jobs the dispatch policy keeps in flight.")
