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
    """Watches one link: a row of counts for the root and one for each branch with a limit, a column for each span of time."""

    def __init__(self, link: Link) -> None:
        self.link = link
        limited = [number for number, branch in enumerate(link.branches) if branch.capacity is not None]
        self.rows: list[int | None] = [None, *limited]  # ``None`` = the root
        self._span = _FIRST_SPAN << FINE
        self._end = 0  # of the last span there is
        self._work: list[list[int]] = [[] for _ in self.rows]
        self._busy: list[list[int]] = [[] for _ in self.rows]
        self._full: list[list[int]] = [[] for _ in self.rows]

    def watch(self, begin: int, end: int, carried: list[int]) -> None:
        """Add a stretch of constant rates (see :class:`desim_fl.sharing.Link`)."""
        if end > self._end or not self._end:
            self._reach(end)
        if begin >= self._end - self._span:  # nearly always
            self._add(-1, end - begin, carried)
            return
        for place in range(begin // self._span, -(-end // self._span)):
            part = min(end, (place + 1) * self._span) - max(begin, place * self._span)
            self._add(place, part, [work * part // (end - begin) for work in carried])

    def _add(self, place: int, part: int, carried: list[int]) -> None:
        """Add a stretch that lies within a span."""
        link = self.link
        for row, number in enumerate(self.rows):
            if number is None:
                work, busy, full = sum(carried), True, link.full
            else:
                branch = link.branches[number]
                work, busy, full = carried[number], branch.transfers > 0, branch.full
            if busy:
                self._work[row][place] += work
                self._busy[row][place] += part
            if full:
                self._full[row][place] += part

    def _reach(self, end: int) -> None:
        """Make spans up to an instant, longer ones if there would be too many."""
        while -(-end // self._span) > SPANS:
            self._double()
        for counts in (self._work, self._busy, self._full):
            for row in counts:
                row.extend([0] * (max(1, -(-end // self._span)) - len(row)))
        self._end = len(self._work[0]) * self._span

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
                self.rows[row],
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
