"""Blackouts: when the server goes down and is back, looked at only while somebody moves or waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.availability import NEVER
from desim_fl.flight import BETWEEN, LEG_END, Due

if TYPE_CHECKING:
    from collections.abc import Callable


class Blackouts:
    """Those of one engine; ``since`` gives the first outage that ends after a tick, as (start, end).

    ``went_down`` and ``came_back`` are called behind the ends of legs of the instant, if anybody has asked before; they return
    whether somebody is still on the way: else nobody looks any further until somebody asks.
    """

    __slots__ = ("_came_back", "_due", "_env", "_since", "_went_down")

    def __init__(
        self,
        env: Any,
        since: Callable[[int], tuple[int, int]],
        went_down: Callable[[], bool],
        came_back: Callable[[], bool],
    ) -> None:
        self._env, self._since, self._went_down, self._came_back = env, since, went_down, came_back
        self._due: Due | None = None

    def now(self) -> bool:
        """Whether the server is down; whoever asks is told when that changes next."""
        now = int(self._env.now)
        start, end = self._since(now)
        if self._due is None and start < NEVER:
            at, tell = (end, self._came_back) if start <= now else (start, self._went_down)
            self._due = Due(self._env, self._on_change, tell, LEG_END, BETWEEN - 1, at - now)
        return start <= now

    def _on_change(self, event: Due) -> None:
        self._due = None
        if event.subject():
            self.now()
