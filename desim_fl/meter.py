"""What a shared link carried when: work and full time in a bounded number of equal spans of virtual time."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

from desim_fl.sharing import FINE, Link

SPANS = 256
_FIRST_SPAN = 1 << 10  # ticks; a span is twice as long whenever there are too many


class Span(NamedTuple):
    """One link (branch ``None`` = the root) from ``start`` to ``stop`` ticks.

    ``work`` are millionths of a bit carried, ``busy`` ticks with a transfer in flight, ``full`` ticks at capacity; whole
    numbers that add up to the total rounded down. ``work_before`` is what was carried before the span.
    """

    branch: int | None
    start: int
    stop: int
    work: int
    busy: int
    full: int
    work_before: int


class Meter:
    """Watches one link: one row of counts for the root and each branch, one column a span of time."""

    def __init__(self, branches: int) -> None:
        self.link: Link | None = None
        self._span = _FIRST_SPAN << FINE
        self._work: list[list[int]] = [[] for _ in range(branches + 1)]  # the root's first
        self._busy: list[list[int]] = [[] for _ in range(branches + 1)]
        self._full: list[list[int]] = [[] for _ in range(branches + 1)]

    def watch(self, begin: int, end: int, carried: list[int]) -> None:
        """Add a stretch of constant rates (see :class:`desim_fl.sharing.Link`)."""
        while -(-end // self._span) > SPANS:
            self._double()
        while len(self._work[0]) * self._span < end or not self._work[0]:
            for rows in (self._work, self._busy, self._full):
                for row in rows:
                    row.append(0)
        link, span, first = self.link, self._span, begin // self._span
        branches = link.branches  # pyright: ignore[reportOptionalMemberAccess]
        works = [sum(carried), *carried]
        fulls = [link.full, *(branch.full for branch in branches)]  # pyright: ignore[reportOptionalMemberAccess]
        if begin == end:
            for row, work in enumerate(works):
                self._work[row][min(first, len(self._work[row]) - 1)] += work
            return
        busy = [True, *(branch.transfers > 0 for branch in branches)]
        for place in range(first, -(-end // span)):
            part = min(end, (place + 1) * span) - max(begin, place * span)
            for row, work in enumerate(works):
                if busy[row]:
                    self._work[row][place] += work * part // (end - begin)
                    self._busy[row][place] += part
                    self._full[row][place] += part * fulls[row]

    def _double(self) -> None:
        """Make every span twice as long."""
        self._span *= 2
        for rows in (self._work, self._busy, self._full):
            for number, row in enumerate(rows):
                padded = row + [0] * (len(row) % 2)
                rows[number] = [one + other for one, other in zip(padded[::2], padded[1::2], strict=True)]

    def spans(self, until: int) -> list[Span]:
        """Everything up to a tick, link by link."""
        length = self._span >> FINE
        return [
            Span(
                None if row == 0 else row - 1,
                place * length,
                max(place * length, min((place + 1) * length, until)),
                works[place + 1] - works[place],
                busy[place + 1] - busy[place],
                full[place + 1] - full[place],
                works[place],
            )
            for row in range(len(self._work))
            for works, busy, full in [[_upto(rows[row]) for rows in (self._work, self._busy, self._full)]]
            for place in range(len(self._work[row]))
        ]


def _upto(row: list[int]) -> list[int]:
    """Totals before each span and after the last, rounded down."""
    return [total >> FINE for total in accumulate(row, initial=0)]
