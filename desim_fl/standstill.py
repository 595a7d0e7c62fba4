"""Notices a run that has no end: time that stands still, or a stop rule that never comes nearer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desim_fl.complaints import (
    abandoned_for_ever,
    lost_for_ever,
    not_advancing,
    rejected_for_ever,
    ringing_for_ever,
)

if TYPE_CHECKING:
    from desim_fl.world import StopRules

_SAME_CLIENT_LIMIT = 100
_SAME_INSTANT_LIMIT = 100_000
_ABANDONED_LIMIT = 10_000


class Standstill:
    """Counts what happens in one ``instant``, and what was turned away or abandoned since the last publish.

    Every method raises ``StalledError`` where no stop rule would ever end what it counts. ``crowd`` are the landings of
    the instant by client, ``events`` their number, alarms included.
    """

    __slots__ = ("_stops", "abandoned", "crowd", "events", "instant", "rejected")

    def __init__(self, stops: StopRules) -> None:
        self._stops = stops
        self.instant, self.events, self.crowd = -1, 0, dict[int, int]()
        self.abandoned = self.rejected = 0

    def land(self, now: int, client: int, *, lost: bool) -> None:
        """Take note that a job of this client arrives or is lost at this tick."""
        if now == self.instant:
            self.crowd_in(client, lost=lost)
        else:
            self.instant, self.events, self.crowd = now, 1, {client: 1}

    def crowd_in(self, client: int, *, lost: bool) -> None:
        """Count one more landing of this instant."""
        self.events += 1
        count = self.crowd[client] = self.crowd.get(client, 0) + 1
        stops = self._stops
        uncounted = stops.max_versions is None and stops.max_updates is None
        endless = (lost or stops.max_updates is None) and self.events >= _SAME_INSTANT_LIMIT
        if (uncounted and count >= _SAME_CLIENT_LIMIT) or endless:
            raise not_advancing(client, count, self.instant, lost=lost)

    def ring(self, alarm: str, now: int) -> None:
        """Count an alarm."""
        if now != self.instant:
            self.instant, self.events, self.crowd = now, 0, {}
        self.events += 1
        if self.events >= _SAME_INSTANT_LIMIT:
            raise ringing_for_ever(alarm, now)

    def lose(self, in_a_row: int, why: str, now: int) -> None:
        """Look at a loss, the last of so many in a row."""
        if in_a_row >= _SAME_INSTANT_LIMIT and self._stops.max_ticks is None:
            raise lost_for_ever(in_a_row, why, now)

    def reject(self, reason: str, now: int) -> None:
        """Count an update that is turned away."""
        self.rejected += 1
        if self.rejected >= _SAME_INSTANT_LIMIT and self._stops.max_ticks is None is self._stops.max_updates:
            raise rejected_for_ever(self.rejected, reason, now)

    def abandon(self, now: int) -> None:
        """Count a round that ended without a publish."""
        self.abandoned += 1
        if self.abandoned >= _ABANDONED_LIMIT and self._stops.max_ticks is None:
            raise abandoned_for_ever(self.abandoned, now)
