"""Queues: a client computes its open jobs one after another, in the order in which they were sent out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from desim_fl.passage import Passage


class Queues:
    """Those of one engine's clients: jobs that are not computed yet. One that is tried again keeps its place."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[int, list[Passage]] = {}

    def join(self, passage: Passage) -> None:
        """A job is sent out."""
        self._waiting.setdefault(passage.client, []).append(passage)

    def has_turn(self, passage: Passage) -> bool:
        """Whether all jobs of the client before this one have been computed, or have ended."""
        return self._waiting[passage.client][0] is passage

    def part(self, passage: Passage) -> Passage | None:
        """A job has been computed, or has ended; returns whose turn it is if that was its own."""
        mine = self._waiting[passage.client]
        first = mine[0] is passage
        mine.remove(passage)
        if not mine:
            del self._waiting[passage.client]
        return mine[0] if first and mine else None
