"""Loads: how many open jobs each client has, where it may have several; it is selectable until it has as many as it may."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from desim_fl.attendance import Attendance
from desim_fl.errors import LawError
from desim_fl.population import Roster

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.availability import Availability


class Loads:
    """Open jobs by client, at most ``depth``."""

    __slots__ = ("_depth", "_jobs")

    def __init__(self, count: int, depth: int) -> None:
        self._depth, self._jobs = depth, np.zeros(count, np.int64)

    def more(self, client: int) -> bool:
        """Give a client one more job; whether it now has as many as it may. LawError if it had before."""
        self._jobs[client] += 1
        if self._jobs[client] > self._depth:
            raise LawError(f"client {client} was sent out although its queue of {self._depth} jobs was full")
        return bool(self._jobs[client] == self._depth)

    def less(self, client: int) -> bool:
        """Take note that a client has one job less; whether it had as many as it may. LawError if it had none."""
        if not self._jobs[client]:
            raise LawError(f"client {client} was freed although it had no job")
        self._jobs[client] -= 1
        return bool(self._jobs[client] == self._depth - 1)


class DeepRoster(Roster):
    """A roster of clients that may have several open jobs."""

    __slots__ = ("_loads",)

    def __init__(self, count: int, depth: int) -> None:
        super().__init__(count)
        self._loads = Loads(count, depth)

    def take(self, client: int) -> None:
        """Give a client one more job."""
        if self._loads.more(client):
            super().take(client)

    def free(self, client: int) -> None:
        """Take note that a client has one job less."""
        if self._loads.less(client):
            super().free(client)


class DeepAttendance(Attendance):
    """The same for clients that come and leave."""

    __slots__ = ("_loads",)

    def __init__(self, source: Availability, count: int, depth: int, clock: Callable[[], int]) -> None:
        self._loads = Loads(count, depth)
        super().__init__(source, count, clock)

    def take(self, client: int) -> None:
        """Give a client one more job."""
        if self._loads.more(client):
            super().take(client)

    def free(self, client: int) -> None:
        """Take note that a client has one job less, and of those who have left by now."""
        self.advance(2 * self._clock())
        if self._loads.less(client):
            super().free(client)


def roster(source: Availability | None, count: int, depth: int, clock: Callable[[], int]) -> Roster:
    """The roster of so many clients with up to ``depth`` open jobs; ``source`` says when they are online (``None`` = always)."""
    if source is None:
        return Roster(count) if depth == 1 else DeepRoster(count, depth)
    return Attendance(source, count, clock) if depth == 1 else DeepAttendance(source, count, depth, clock)
