"""A link that many transfers share: max-min fair, none faster than its own cap, exact while rates change in flight.

The link is the root of a tree of two levels: transfers, branches (regional links), root (the server's link). At every
instant each transfer has the rate min(own cap, level of its branch). The level of a branch is the one that fills the
branch, or the root's where that is lower; the root's is the one that fills the root (max-min fairness by progressive
filling: Bertsekas and Gallager, Data Networks, 6.5.2). A single branch without a capacity of its own is a plain link.

How: transfers of one branch with the same cap form a *lane* and always have the same rate, so a lane needs one count of
work served and a heap of the marks at which its transfers end. Lanes below the level run on real time (cap times time),
those above it on the branch's *clock*, the integral of its level; an event moves nothing but lanes that cross the level.
So it costs the logarithm of the transfers in flight, plus the branches, plus the lanes that cross: caps had better
stand on a grid.

Numbers are whole, so no result depends on a processor: time in 2^-64 ticks, work in 2^-64 millionths of a bit (a rate in
bit/s times ticks), levels as fractions; each division is off by less than one such unit. A transfer *ends* at the first
whole tick at or after its last bit, and not before the tick after it began; a last bit up to 2^-40 ticks late counts as
punctual, so that what ends exactly on a tick does so in spite of those units. What an ended transfer leaves free is used
by the others from its last bit on, not from the rounded tick: nothing is lost to rounding.
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FINE = 64  # binary places of a tick, and of a millionth of a bit
PUNCTUAL = 1 << (FINE - 40)
UNCAPPED = 1 << 80  # bit/s: the cap of a transfer without one, above every level
_NO_LEVEL = (1, 0)  # of a link that limits nobody
_UPWARD = (1 << FINE) - 1 - PUNCTUAL  # added before a time is cut to whole ticks
_SWEEP = 64

Entry = tuple[int, int, "Lane"]


class Lane:
    """The transfers of one branch with one cap.

    Work served to each since the beginning = cap times time if ``below`` the level, else the branch's clock, plus
    ``offset``. ``heap`` holds the mark of each (the work served at which it ends) and its id; also of some that left.
    """

    __slots__ = ("below", "branch", "cap", "count", "entry", "heap", "number", "offset")

    def __init__(self, branch: Branch, cap: int, number: int, *, below: bool) -> None:
        self.branch, self.cap, self.number, self.below = branch, cap, number, below
        self.count = self.offset = 0
        self.heap: list[tuple[int, int]] = []
        self.entry: Entry | None = None  # the one among the heads that counts


class Heads:
    """The first end of each lane, in order; entries that no longer count are dropped when they come up, or are many."""

    __slots__ = ("_entries", "_limit")

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._limit = _SWEEP

    def push(self, entry: Entry) -> None:
        """Take in the entry that counts for its lane from now on."""
        entry[2].entry = entry
        heappush(self._entries, entry)
        if len(self._entries) > self._limit:
            self._entries = [entry for entry in self._entries if entry[2].entry is entry]
            heapify(self._entries)
            self._limit = 2 * len(self._entries) + _SWEEP

    def first(self) -> Entry | None:
        """Return the first entry that counts."""
        entries = self._entries
        while entries and entries[0][2].entry is not entries[0]:
            heappop(entries)
        return entries[0] if entries else None


class Branch:
    """A regional link of ``capacity`` bit/s (``None`` = no limit of its own), with its lanes by rising cap.

    The first ``split`` lanes are below the level, together ``slow`` bit/s fast; each of the ``shared`` transfers in the
    others is as fast as the ``level``, a fraction whose integral over time is ``clock``. ``full`` = it is the branch's
    own level, not the root's.
    """

    __slots__ = ("capacity", "caps", "clock", "full", "heads", "lanes", "level", "shared", "slow", "split", "transfers")

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self.caps: list[int] = []
        self.lanes: list[Lane] = []
        self.split = self.slow = self.shared = self.clock = self.transfers = 0
        self.level: tuple[int, int] = _NO_LEVEL
        self.full = False
        self.heads = Heads()  # by clock

    def own_level(self, capacity: int) -> tuple[int, int]:
        """The level at which the lanes above it fill a capacity; where there is none, one that lifts the fastest lane."""
        rest = capacity - self.slow
        if self.shared:
            return rest, self.shared
        return _NO_LEVEL if rest >= 0 else (self.caps[self.split - 1] - 1, 1)


class Link:
    """A shared link; ``capacities`` are those of its branches; ids are unique among the transfers in flight.

    From call to call ticks never go back. ``watch`` is told of every stretch of time with constant rates in which
    something was in flight: beginning and end in 2^-64 ticks (equal for what ends at once), and the work that each branch
    carried.
    """

    def __init__(
        self,
        capacity: int | None,
        capacities: Sequence[int | None] = (None,),
        watch: Callable[[int, int, list[int]], None] | None = None,
    ) -> None:
        self.capacity, self.full = capacity, False
        self.branches = [Branch(own) for own in capacities]
        self.ended: list[tuple[int, int]] = []  # (id, instant of the last bit) of those not taken yet
        self.watch = watch
        self._tick = self._now = self._lanes_made = 0  # ``_now`` in 2^-64 ticks, a little beyond the tick at times
        self._settled = True
        self._transfers: dict[int, tuple[Lane, int]] = {}
        self._heads = Heads()  # of lanes below their level, by instant

    def __len__(self) -> int:
        return len(self._transfers)

    # ---- what can happen

    def add(self, tick: int, number: int, work: int, cap: int | None = None, branch: int = 0) -> None:
        """Begin a transfer of ``work`` millionths of a bit; one of nothing, or that nothing limits, ends at once."""
        self.put(tick, number, work << FINE, cap, branch)

    def put(self, tick: int, number: int, work: int, cap: int | None = None, branch: int = 0) -> None:
        """Begin, or go on with, a transfer of ``work`` in 2^-64 millionths of a bit, as :meth:`take_off` returns it."""
        self.advance(tick)
        where = self.branches[branch]
        if not work or (cap is None and where.capacity is None and self.capacity is None):
            self.ended.append((number, self._now))
            if self.watch is not None:
                self.watch(self._now, self._now, [work if mine is where else 0 for mine in self.branches])
        else:
            self._enter(number, work, UNCAPPED if cap is None else cap, where)

    def abort(self, tick: int, number: int) -> int:
        """Take a transfer away; returns the millionths of a bit that it still had to carry, rounded up."""
        return -(-self.take_off(tick, number) >> FINE)

    def take_off(self, tick: int, number: int) -> int:
        """Take a transfer away; returns what it still had to carry, in 2^-64 millionths of a bit."""
        self.advance(tick)
        return self._taken(number)[0]

    def recap(self, tick: int, number: int, cap: int | None) -> None:
        """Give a transfer in flight another cap."""
        self.advance(tick)
        left, branch = self._taken(number)
        self._enter(number, left, UNCAPPED if cap is None else cap, branch)

    def change(self, tick: int, capacity: int, branch: int | None = None) -> None:
        """Give the root, or a branch, another capacity; at 0 nothing moves."""
        self.advance(tick)
        where = self if branch is None else self.branches[branch]
        where.capacity = capacity
        self._settled = False

    def holds(self, number: int) -> bool:
        """Whether a transfer is in flight."""
        return number in self._transfers

    def left(self, number: int) -> int:
        """What a transfer still has to carry at the tick in hand, in 2^-64 millionths of a bit; 0 if it has ended."""
        if number not in self._transfers:
            return 0
        lane, mark = self._transfers[number]
        return max(0, mark - self._served(lane))

    def next_tick(self) -> int | None:
        """Tick at which the next transfer ends if nothing else happens; ``None`` = never."""
        if self.ended:
            return self._tick
        following = self._following()
        return None if following is None else max(following + _UPWARD >> FINE, self._tick + 1)

    def take(self, tick: int) -> list[int]:
        """Return those that have ended up to a tick and were not taken before, by id."""
        self.advance(tick)
        ended, self.ended = self.ended, []
        return sorted(number for number, _ in ended)

    # ---- time

    def advance(self, tick: int) -> None:
        """Let time pass up to a tick, every end on the way at its own instant."""
        if tick == self._tick:
            return
        self._tick, instant = tick, tick << FINE
        while self._transfers:
            following = self._following()
            if following is None or following > instant + PUNCTUAL:
                break
            self._pass(following)
            self._end(self._heads, following)
            for branch in self.branches:
                self._end(branch.heads, branch.clock)
        self._pass(instant)

    def _pass(self, instant: int) -> None:
        """Let every clock run up to an instant, unless a punctual last bit has taken it beyond already."""
        passed = instant - self._now
        if passed <= 0:
            return
        if self._transfers:
            carried = []
            for branch in self.branches:
                step = 0
                if branch.shared:
                    rise, over = branch.level
                    step = rise * passed // over
                    branch.clock += step
                carried.append(branch.slow * passed + branch.shared * step)
            if self.watch is not None:
                self.watch(self._now, instant, carried)
        self._now = instant

    def _following(self) -> int | None:
        """Instant of the next last bit; ``None`` = there is none. Settles the rates from now on."""
        if not self._settled:
            self._settle()
        entry = self._heads.first()
        found = None if entry is None else max(entry[0], self._now)
        for branch in self.branches:
            entry = branch.heads.first() if branch.shared else None
            rise, over = branch.level
            if entry is not None and rise > 0:
                instant = self._now - (-max(0, entry[0] - branch.clock) * over // rise)
                found = instant if found is None or instant < found else found
        return found

    def _end(self, heads: Heads, reached: int) -> None:
        """End every transfer whose last bit is through."""
        entry = heads.first()
        while entry is not None and entry[0] <= reached:
            lane = entry[2]
            heap, served = lane.heap, self._served(lane)
            while heap and heap[0][0] <= served:
                mark, number = heappop(heap)
                if self._transfers.get(number) == (lane, mark):
                    self.ended.append((number, self._now))
                    self._leave(number)
            self._head(lane)
            entry = heads.first()

    # ---- transfers and lanes

    def _served(self, lane: Lane) -> int:
        return (lane.cap * self._now if lane.below else lane.branch.clock) + lane.offset

    def _enter(self, number: int, left: int, cap: int, branch: Branch) -> None:
        place = bisect_left(branch.caps, cap)
        if place == len(branch.caps) or branch.caps[place] != cap:
            self._lanes_made += 1
            branch.caps.insert(place, cap)
            branch.lanes.insert(place, Lane(branch, cap, self._lanes_made, below=place < branch.split))
            branch.split += place < branch.split
        lane = branch.lanes[place]
        mark = self._served(lane) + left
        lane.count += 1
        branch.transfers += 1
        if lane.below:
            branch.slow += cap
        else:
            branch.shared += 1
        self._transfers[number] = lane, mark
        heappush(lane.heap, (mark, number))
        if lane.heap[0][1] == number:
            self._head(lane)
        self._settled = False

    def _taken(self, number: int) -> tuple[int, Branch]:
        """Take a transfer out in mid-flight; returns the work it still had to carry, and its branch."""
        lane, mark = self._transfers[number]
        left = max(0, mark - self._served(lane))
        self._leave(number)
        self._head(lane)
        return left, lane.branch

    def _leave(self, number: int) -> None:
        """Take a transfer out of the sums, and its lane with it if it was the last one there."""
        lane, _ = self._transfers.pop(number)
        branch = lane.branch
        lane.count -= 1
        branch.transfers -= 1
        if lane.below:
            branch.slow -= lane.cap
        else:
            branch.shared -= 1
        if not lane.count:
            place = bisect_left(branch.caps, lane.cap)
            del branch.caps[place], branch.lanes[place]
            branch.split -= lane.below
        self._settled = False

    def _head(self, lane: Lane) -> None:
        """Announce at which instant, or clock, the first transfer of a lane ends."""
        heap = lane.heap
        if not lane.count:
            lane.entry = None
            return
        while self._transfers.get(heap[0][1]) != (lane, heap[0][0]):
            heappop(heap)
        ahead = heap[0][0] - lane.offset
        if lane.below:
            self._heads.push((-(-ahead // lane.cap), lane.number, lane))
        else:
            lane.branch.heads.push((ahead, lane.number, lane))

    # ---- rates

    def _settle(self) -> None:
        """Find the levels after a change: lanes and branches on the wrong side of a level change sides.

        Whatever the sides are to begin with, the root's level is not above the true one, and no step lowers it. So a
        lane or branch changes back only at a higher level, and this comes to an end: at the true one.
        """
        moved = True
        while moved:
            level = self._root_level()
            moved = False
            for branch in self.branches:
                if self._changes_fullness(branch, level):
                    moved = True
                    continue
                branch.level = branch.own_level(branch.capacity) if branch.full else level  # pyright: ignore[reportArgumentType]
                moved |= self._cross(branch)
        self._settled = True

    def _root_level(self) -> tuple[int, int]:
        """The level at which the lanes above it, in branches that are not full, fill the root."""
        self.full = False
        if self.capacity is None:
            return _NO_LEVEL
        rest, shared, fastest = self.capacity, 0, 0
        for branch in self.branches:
            if branch.full:
                rest -= branch.capacity or 0
            else:
                rest, shared = rest - branch.slow, shared + branch.shared
                fastest = max(fastest, branch.caps[branch.split - 1] if branch.split else 0)
        self.full = bool(shared)
        if shared:
            return rest, shared
        return _NO_LEVEL if rest >= 0 else (fastest - 1, 1)

    def _changes_fullness(self, branch: Branch, level: tuple[int, int]) -> bool:
        """Let a branch that the root's level would overfill run on its own level, and one that is below it on the root's."""
        if branch.capacity is None:
            return False
        rise, over = level
        if branch.full:
            own_rise, own_over = branch.own_level(branch.capacity)
            wrong = branch.slow <= branch.capacity and own_rise * over >= rise * own_over
        elif over:
            wrong = branch.slow * over + branch.shared * rise > branch.capacity * over
        else:  # whoever is above no level at all comes below it first; who has no cap is too fast there
            wrong = branch.slow > branch.capacity
        branch.full ^= wrong
        return wrong

    def _cross(self, branch: Branch) -> bool:
        """Let the lanes between the old level and the new one change sides."""
        rise, over = branch.level
        caps, before = branch.caps, branch.split
        while branch.split and caps[branch.split - 1] * over > rise:
            branch.split -= 1
            lane = branch.lanes[branch.split]
            lane.below = False
            lane.offset += lane.cap * self._now - branch.clock
            branch.slow -= lane.cap * lane.count
            branch.shared += lane.count
            self._head(lane)
        while branch.split < len(caps) and caps[branch.split] * over <= rise:
            lane = branch.lanes[branch.split]
            branch.split += 1
            lane.below = True
            lane.offset += branch.clock - lane.cap * self._now
            branch.slow += lane.cap * lane.count
            branch.shared -= lane.count
            self._head(lane)
        return branch.split != before
