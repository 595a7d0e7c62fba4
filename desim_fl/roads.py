"""Roads: the directions that transfers share, each with who is on it, on the engine's clock.

The end of a transfer depends on everybody who comes and goes meanwhile. So a road has one event ahead, the next tick at
which somebody is through as things are now; it is set anew whenever somebody enters or leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.flight import BETWEEN, LEG_END, Due

if TYPE_CHECKING:
    from collections.abc import Callable

    import simpy

    from desim_fl.meter import Meter
    from desim_fl.network import SharedWays, Way
    from desim_fl.sharing import Link

DOWN, UP = "egress", "ingress"


class Road:
    """One direction: its way, its link, and what watches that. ``through`` is called with whoever is through, by number."""

    __slots__ = ("_alarm", "_env", "_on_it", "_through", "_turn", "link", "meter", "name", "way")

    def __init__(self, env: simpy.Environment, name: str, way: Way, through: Callable[[Any], None]) -> None:
        self.name, self.way = name, way
        link, meter = way.link()
        self.link: Link = link
        self.meter: Meter = meter
        self._env, self._through = env, through
        self._on_it: dict[int, Any] = {}
        self._alarm: Due | None = None
        self._turn: Due | None = None  # of the windows of noise

    def enter(self, number: int, client: int, work: int, who: Any) -> None:
        """Begin a transfer, or go on with it: ``work`` in 2^-64 millionths of a bit."""
        self._on_it[number] = who
        now = int(self._env.now)
        self.link.put(now, number, work, self.way.cap_at(client, now), self.way.region(client))
        self._look_ahead()
        if self.way.noise is not None and self._turn is None:
            self._turn = Due(self._env, self._on_turn, None, LEG_END, BETWEEN - 2, self.way.noise.until(now) - now)

    def leave(self, number: int) -> int:
        """Break a transfer off, which makes room for the others at once; returns what it still had to carry."""
        now = int(self._env.now)
        del self._on_it[number]
        self.link.advance(now)
        left = self.link.take_off(now, number) if self.link.holds(number) else 0
        self._look_ahead()
        return left

    def left(self, number: int) -> int:
        """What a transfer still has to carry."""
        self.link.advance(int(self._env.now))
        return self.link.left(number)

    def _on_turn(self, _: Due) -> None:
        """The next window of noise begins: everybody's link has another rate."""
        noise, now = self.way.noise, int(self._env.now)
        self._turn = None
        if noise is None or not self._on_it:
            return
        for number, who in self._on_it.items():
            if self.link.holds(number):
                self.link.recap(now, number, self.way.cap_at(who.client, now))
        self._look_ahead()
        self._turn = Due(self._env, self._on_turn, None, LEG_END, BETWEEN - 2, noise.until(now) - now)

    def _look_ahead(self) -> None:
        """Wake up when the next transfer ends, as things are now."""
        following, alarm = self.link.next_tick(), self._alarm
        if following is None:
            self._alarm = None
        elif alarm is None or alarm.subject != following:
            self._alarm = Due(self._env, self._on_end, following, LEG_END, 0, following - int(self._env.now))

    def _on_end(self, event: Due) -> None:
        """Every transfer that ends at this tick is through."""
        if event is not self._alarm:
            return
        self._alarm = None
        for number in self.link.take(event.subject):
            who = self._on_it.pop(number, None)
            if who is not None:
                self._through(who)
        self._look_ahead()


def roads(env: simpy.Environment, ways: SharedWays | None, through: Callable[[Any], None]) -> list[Road | None]:
    """The road down and the road up; ``None`` where a direction is not shared."""
    both = (None, None) if ways is None else (ways.egress, ways.ingress)
    return [None if way is None else Road(env, name, way, through) for name, way in zip((DOWN, UP), both, strict=True)]
