"""What strategies and selectors may look at: live, read-only, and nothing else of the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desim_fl.flight import FlightView

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from desim_fl.core import Flight, Model, Params
    from desim_fl.flight import Flying
    from desim_fl.world import World


class LiveView:
    """``core.View`` on a running engine, which tells it of every new version through ``moved``."""

    __slots__ = ("_model", "_world", "flying")

    def __init__(self, world: World, flights: Mapping[int, Flying]) -> None:
        self._world, self._model = world, world.model
        self.flying: Mapping[int, Flight] = FlightView(flights, lambda: self._model.version)

    def moved(self, model: Model) -> None:
        """Take note of the version now in force."""
        self._model = model

    @property
    def model(self) -> Model:
        """The version in force."""
        return self._model

    @property
    def version(self) -> int:
        """Its number."""
        return self._model.version

    @property
    def params(self) -> Params:
        """Its parameters."""
        return self._model.params

    @property
    def clients(self) -> int:
        """How many clients there are."""
        return len(self._world.sizes)

    @property
    def sizes(self) -> Sequence[int]:
        """Training examples by client."""
        return self._world.sizes

    @property
    def groups(self) -> Mapping[str, Sequence[int]]:
        """Named groups of clients."""
        return self._world.groups

    @property
    def concurrency(self) -> int:
        """How many jobs the dispatch policy keeps in flight."""
        return self._world.concurrency
