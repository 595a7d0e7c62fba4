"""The roster of a world whose clients come and leave: who is idle *and* online, at a cost a client's change, not a job's.

Nobody plays the comings and goings of idle clients as events. They are worked out ahead, many clients at once, as one
sorted list of changes (the *calendar*), and applied when somebody looks: a selection, a client that becomes free. The
engine wakes up for one of them only where a place waits for somebody to come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from desim_fl.availability import NEVER, Window, Windows
from desim_fl.population import Roster

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.availability import Availability, Whole

_LEAST = 256  # changes worked out at once
_FEW = 24  # changes up to which a loop is faster than array operations


class Calendar:
    """Every change of every client in order of (tick, leave before come, client), worked out a batch at a time.

    ``keys`` are ``2 * tick`` for a leave and ``2 * tick + 1`` for a come; with each change stands the client's window
    that it begins (come), or that follows (leave).
    """

    __slots__ = ("_columns", "_comes", "_due", "_later", "_online", "_source", "_windows", "clients", "keys")

    def __init__(self, source: Availability, clients: int) -> None:
        self._source = source
        self._windows = source.first(np.arange(clients))
        self._online = self._windows.start <= 0
        self._due = np.where(self._online, self._windows.end, self._windows.start)
        self._later: list[Whole] = _columns(0)  # worked out, but not in order yet
        self.keys: Whole = np.zeros(0, np.int64)
        self.clients: Whole = np.zeros(0, np.int64)
        self._columns: list[Whole] = _columns(0)
        self._comes: Whole = np.zeros(0, np.int64)  # places of those changes that are comes

    def start(self) -> tuple[Any, Windows]:
        """Who is online at tick 0, and the window of each, running or next."""
        return self._online.copy(), Windows(*(column.copy() for column in self._windows))

    def window(self, place: int) -> Window:
        """The window that stands with the change at this place of the batch."""
        return Window(*(int(column[place]) for column in self._columns[2:]))

    def windows(self, part: slice) -> Windows:
        """The same for many."""
        return Windows(*(column[part] for column in self._columns[2:]))

    def turn(self, used: int) -> bool:
        """Drop the first ``used`` changes and add the next batch; False where nothing more changes."""
        left = [column[used:] for column in self._columns]
        edge = self._edge()
        ready = left if edge >= NEVER else [np.concatenate(pair) for pair in zip(left, self._batch(edge), strict=True)]
        self._columns = ready
        self.keys, self.clients = ready[:2]
        self._comes = np.flatnonzero(self.keys & 1)
        return edge < NEVER

    def next_come(self, place: int) -> int | None:
        """Place of the first come from this place on; ``None`` = none in what is worked out."""
        at = int(np.searchsorted(self._comes, place))
        return int(self._comes[at]) if at < len(self._comes) else None

    def _batch(self, edge: int) -> list[Whole]:
        """Every change before a tick close to ``edge``, in order."""
        found, most = [self._later], 4 * max(_LEAST, len(self._due) // 4)
        clients = np.flatnonzero(self._due < edge)
        while len(clients) and most > 0:
            found.append(self._pass(clients))
            most -= len(clients)
            clients = clients[self._due[clients] < edge]
        if len(clients):
            edge = min(edge, int(self._due.min()))
        columns = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        ready = columns[0] < 2 * edge
        self._later = [column[~ready] for column in columns]
        order = np.lexsort((columns[1][ready], columns[0][ready]))
        return [column[ready][order] for column in columns]

    def _edge(self) -> int:
        """A tick up to which about a quarter of the clients change at least once; NEVER where nobody does."""
        many = min(len(self._due) - 1, max(_LEAST, len(self._due) // 4))
        edge = int(np.partition(self._due, many)[many])
        earliest = int(self._due.min())
        if len(self._later[0]):
            earliest = min(earliest, int(self._later[0].min()) // 2)
        if earliest >= NEVER:
            return NEVER
        if edge >= NEVER:  # few change at all, or soon: twice as far as the latest of them
            edge = int(self._due[self._due < NEVER].max(initial=earliest))
        return min(max(edge, earliest), NEVER - 2) + 1

    def _pass(self, clients: Whole) -> list[Whole]:
        """Let the next change of these clients happen; returns it, in columns."""
        leaves, at = self._online[clients], self._due[clients]
        following = self._source.next(clients[leaves], Windows(*(column[clients[leaves]] for column in self._windows)))
        for column, new in zip(self._windows, following, strict=True):
            column[clients[leaves]] = new
        self._online[clients] = ~leaves
        mine = Windows(*(column[clients] for column in self._windows))
        self._due[clients] = np.where(leaves, mine.start, mine.end)
        return [2 * at + ~leaves, clients, *mine]


def _columns(length: int) -> list[Whole]:
    return [np.zeros(length, np.int64) for _ in range(5)]


class Attendance(Roster):
    """Who is idle and online. ``clock`` tells the tick of the event in hand.

    At tick t, before anybody comes (class 3), those count who are online since before t and do not leave at t; see
    ``advance``. Who comes is idle from then on, for those who choose the longest idle.
    """

    __slots__ = ("_busy", "_calendar", "_clock", "_key", "_online", "_place", "_windows", "source")

    def __init__(self, source: Availability, count: int, clock: Callable[[], int]) -> None:
        super().__init__(count)
        self.source, self._clock = source, clock
        self._calendar = Calendar(source, count)
        online, self._windows = self._calendar.start()
        self._online = bytearray(online.astype(np.uint8).tobytes())
        self._busy = bytearray(count)
        self._place = 0
        self._key = -1  # of the next change; those before it are applied
        self._recount(np.flatnonzero(~online))
        self._look()

    def _recount(self, absent: Whole) -> None:
        """Take away those who are not there at tick 0."""
        self._flags_view[absent] = 0
        if self._counts:
            np.subtract.at(self._counts_view, absent // self._block, 1)
        self.selectable -= len(absent)

    def window(self, client: int) -> Window:
        """The client's window that runs, or the next one where it is offline, as of the changes applied."""
        return Window(*(int(column[client]) for column in self._windows))

    # ---- what the engine does

    def take(self, client: int) -> None:
        """Mark a client as busy."""
        super().take(client)
        self._busy[client] = 1

    def free(self, client: int) -> None:
        """Let a client be idle again: selectable where it is online."""
        self.advance(2 * self._clock())
        self._busy[client] = 0
        if self._online[client]:
            super().free(client)

    def advance(self, key: int) -> None:
        """Apply all changes up to this key: ``2 t`` = leaves at t and all before t, ``2 t + 1`` = comes at t as well."""
        while self._key <= key:
            place = self._end_of(key)
            self._apply(self._place, place)
            self._place = place
            self._look()

    def admit(self, tick: int, client: int) -> None:
        """Apply all changes up to the come of this client at this tick."""
        self.advance(2 * tick)
        first, last = np.searchsorted(self._calendar.keys, 2 * tick + 1, side="left"), self._end_of(2 * tick + 1)
        place = int(first) + int(np.searchsorted(self._calendar.clients[int(first) : last], client, side="right"))
        self._apply(self._place, max(place, self._place))
        self._place = max(place, self._place)
        self._look()

    def next_comer(self, *, last: bool) -> tuple[int, int] | None:
        """When somebody comes next, and who: the first or the last one of that tick; ``None`` = nobody any more."""
        calendar = self._calendar
        while (place := calendar.next_come(self._place)) is None:
            more = calendar.turn(self._place)
            self._place = 0
            if not more:
                return None
        key = int(calendar.keys[place])
        if last:
            place = self._end_of(key) - 1
        return key // 2, int(calendar.clients[place])

    def _end_of(self, key: int) -> int:
        return int(np.searchsorted(self._calendar.keys, key, side="right"))

    # ---- changes

    def _look(self) -> None:
        """See what changes next."""
        while self._place >= len(self._calendar.keys):
            more = self._calendar.turn(self._place)
            self._place = 0
            if not more:
                self._key = 2 * NEVER
                return
        self._key = int(self._calendar.keys[self._place])

    def _apply(self, first: int, last: int) -> None:
        if last - first <= _FEW or self._ring is not None:
            comes = (self._calendar.keys[first:last] & 1).tolist()
            for place, client, come in zip(
                range(first, last), self._calendar.clients[first:last].tolist(), comes, strict=True
            ):
                self._change(client, come, place)
            return
        self._change_many(slice(first, last))

    def _change(self, client: int, come: int, place: int) -> None:
        for column, value in zip(self._windows, self._calendar.window(place), strict=True):
            column[client] = value
        self._online[client] = come
        if self._busy[client]:
            return
        if come:
            super().free(client)
        else:
            super().take(client)

    def _change_many(self, part: slice) -> None:
        """The same for many changes: only the last one of each client counts."""
        clients, comes = self._calendar.clients[part], (self._calendar.keys[part] & 1).astype(np.uint8)
        last = len(clients) - 1 - np.unique(clients[::-1], return_index=True)[1]
        last.sort()
        clients, comes = clients[last], comes[last]
        for column, values in zip(self._windows, self._calendar.windows(part), strict=True):
            column[clients] = values[last]
        np.frombuffer(self._online, np.uint8)[clients] = comes
        idle = np.frombuffer(self._busy, np.uint8)[clients] == 0
        clients, comes = clients[idle], comes[idle]
        shifts = comes.astype(np.int64) - self._flags_view[clients]
        self._flags_view[clients] = comes
        if self._counts:
            np.add.at(self._counts_view, clients // self._block, shifts)
        self.selectable += int(shifts.sum())
        came = clients[comes == 1]
        np.frombuffer(self._since, np.int64)[came] = np.arange(self._frees + 1, self._frees + 1 + len(came))
        self._frees += len(came)
