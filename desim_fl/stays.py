"""Stays: when clients with a job on its way leave and come back, each as an event of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.availability import NEVER
from desim_fl.flight import COME, LEAVE, Due

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.attendance import Attendance
    from desim_fl.availability import Window
    from desim_fl.passage import Passage


class Turns(NamedTuple):
    """Whom to tell of a client that leaves (job by job, and whether for good), and of one that comes (all its jobs)."""

    left: Callable[..., None]
    came: Callable[[list[Passage]], None]


class Stay:
    """A client with open jobs: its window, running or next, and the one event that it waits for."""

    __slots__ = ("client", "due", "jobs", "window")

    def __init__(self, client: int, window: Window) -> None:
        self.client, self.window = client, window
        self.jobs: list[Passage] = []
        self.due: Due | None = None


class Stays:
    """Those of one engine's clients, from the first job that is on its way until the last one has ended."""

    def __init__(self, env: Any, attendance: Attendance, turns: Turns) -> None:
        self._env, self._attendance, self._turns = env, attendance, turns
        self._open: dict[int, Stay] = {}

    def join(self, passage: Passage) -> None:
        """A job sets out."""
        client = passage.client
        stay = self._open.get(client)
        if stay is None:
            stay = self._open[client] = Stay(client, self._attendance.window(client))
            self._expect(stay, self._on_leave, stay.window.end, LEAVE, client)
        stay.jobs.append(passage)

    def part(self, passage: Passage) -> None:
        """A job has ended."""
        stay = self._open[passage.client]
        stay.jobs.remove(passage)
        if not stay.jobs:
            del self._open[passage.client]
            stay.due = None

    def leaves_now(self, client: int) -> tuple[bool, bool]:
        """Whether a client is about to leave in this instant, and whether it will then never come back."""
        window = self._open[client].window
        if window.end != int(self._env.now):
            return False, False
        return True, self._attendance.source.after(client, window).start >= NEVER

    def _expect(self, stay: Stay, handler: Callable[[Due], None], tick: int, order: int, number: int) -> None:
        now = int(self._env.now)
        stay.due = None if tick >= NEVER else Due(self._env, handler, stay, order, number, tick - now)

    def _on_leave(self, event: Due) -> None:
        stay: Stay = event.subject
        if stay.due is not event:
            return
        following = self._attendance.source.after(stay.client, stay.window)
        stay.window = following
        self._expect(stay, self._on_come, following.start, COME, 2 * stay.client)
        first, *others = stay.jobs
        for other in others:  # an event each, since what ends may be looked at between events
            Due(self._env, self._on_next, (other, following.start >= NEVER), LEAVE, stay.client, 0)
        self._turns.left(first, for_good=following.start >= NEVER)

    def _on_next(self, event: Due) -> None:
        passage, for_good = event.subject
        self._turns.left(passage, for_good=for_good)

    def _on_come(self, event: Due) -> None:
        stay: Stay = event.subject
        if stay.due is not event:
            return
        self._expect(stay, self._on_leave, stay.window.end, LEAVE, stay.client)
        self._turns.came(list(stay.jobs))
