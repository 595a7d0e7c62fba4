"""An open system: jobs leave at a rate of their own, whatever is in flight and whatever comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.dispatch import Desk
from desim_fl.flight import ALARM, NUMBER_BITS, Due

if TYPE_CHECKING:
    from desim_fl.core import Send

_LAST = (1 << NUMBER_BITS) - 1  # within an instant: after all alarms, so also after those who come


class OpenDesk(Desk):
    """A desk at which landings open no places; a job that meets nobody idle waits for the next who is."""

    __slots__ = ()

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.explicit = True  # there is no number of places to exceed

    def owe(self) -> None:
        """Nothing: landings open no places anyway."""

    def turn_over(self, *, published: bool) -> None:
        """One came; places that waited may be filled."""
        super().serve(None, 0, at_once=True, published=published)

    def serve(self, sends: tuple[Send, ...] | None, freed: int, *, at_once: bool, published: bool) -> None:  # noqa: ARG002
        """Do what a strategy itself asks for; what became free opens no place."""
        super().serve(sends, 0, at_once=at_once, published=published)

    def arrive(self) -> None:
        """One more job is to leave."""
        super().serve(None, 1, at_once=True, published=False)


class Stream:
    """The arrivals of one engine's open system."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._law, self._number = engine, engine.world.arrivals, 0
        self._arm()

    def _arm(self) -> None:
        Due(self._engine.env, self._on_arrival, None, ALARM, _LAST, self._law.gap(self._number))
        self._number += 1

    def _on_arrival(self, _: Due) -> None:
        engine = self._engine
        engine.now = int(engine.env.now)
        if engine.premises.absences is not None:
            engine.premises.absences.look_round()
        engine.log.block(engine.now)
        engine.desk.arrive()
        engine.balance()
        self._arm()
