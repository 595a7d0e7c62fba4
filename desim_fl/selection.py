"""Who is sent out next: pure selectors, each a rule over the clients that are selectable now."""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from desim_fl.draws import Purpose, blocks
from desim_fl.errors import RefusedError, ScenarioError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from desim_fl.core import Roster, Selector, Send, View

TRIES = 16
CROWDED = 8  # below one selectable client in so many, drawing until one is met costs more than counting
ROWS = 1024  # dispatch numbers drawn for at once


class _Pool(Protocol):
    """The population that a draw is from: everybody, or a group; members in increasing client number."""

    @property
    def size(self) -> int: ...
    @property
    def open(self) -> int: ...
    def member(self, place: int) -> int: ...
    def is_open(self, client: int) -> bool: ...
    def nth_open(self, rank: int) -> int: ...


class _Everybody(NamedTuple):
    roster: Roster
    size: int

    @property
    def open(self) -> int:
        return self.roster.selectable

    def member(self, place: int) -> int:
        return place

    def is_open(self, client: int) -> bool:
        return self.roster.is_selectable(client)

    def nth_open(self, rank: int) -> int:
        return self.roster.nth_selectable(rank)


class _Group:
    def __init__(self, roster: Roster, members: Sequence[int]) -> None:
        self._roster = roster
        self._members = sorted(members)
        self._free = [client for client in self._members if roster.is_selectable(client)]

    @property
    def size(self) -> int:
        return len(self._members)

    @property
    def open(self) -> int:
        return len(self._free)

    def member(self, place: int) -> int:
        return self._members[place]

    def is_open(self, client: int) -> bool:
        return self._roster.is_selectable(client)

    def nth_open(self, rank: int) -> int:
        return self._free[rank]


def _pool(view: View, roster: Roster, group: str | None) -> _Pool:
    return _Everybody(roster, view.clients) if group is None else _Group(roster, view.groups[group])


class Named(NamedTuple):
    """Clients that the draws of a block of dispatch numbers from ``first`` on name among ``size``.

    ``clients`` are those of each number's first word, as a list, since that one is nearly always enough; ``tries``
    those of its first four words, shape ``(ROWS, 4)``.
    """

    first: int
    size: int
    clients: list[int]
    tries: NDArray[np.uint64]


@dataclass(slots=True)
class _Words:
    """Draws of 1,024 dispatch numbers at a time: a memo of a pure function, not state."""

    seed: int
    _memo: dict[int, tuple[int, list[list[int]]]] = field(default_factory=dict, repr=False)  # by group of four tries
    named: Named = field(default_factory=lambda: Named(-1, 0, [], np.zeros((0, 4), np.uint64)), repr=False)
    _ranks: tuple[int, list[int]] = field(default=(-1, []), repr=False)

    def _block(self, first: int, group: int) -> NDArray[np.uint32]:
        return blocks(self.seed, Purpose.SELECTION, 0, np.arange(first, first + ROWS), group)

    def tries(self, number: int) -> Iterator[int]:
        """All sixteen words of a dispatch number; those beyond the fourth are seldom needed."""
        place = number % ROWS
        for group in range(TRIES // 4):
            first, rows = self._memo.get(group, (-1, []))
            if number - place != first:
                first = number - place
                rows = self._block(first, group).tolist()
                self._memo[group] = first, rows
            yield from rows[place]

    def name(self, number: int, size: int) -> Named:
        """Whom the first four words of each dispatch number in the block of ``number`` name among ``size`` clients."""
        first = number - number % ROWS
        if self.named[:2] != (first, size):
            clients = (self._block(first, 0).astype(np.uint64) * np.uint64(size)) >> np.uint64(32)
            self.named = Named(first, size, clients[:, 0].tolist(), clients)
        return self.named

    def rank(self, number: int, count: int) -> int:
        """Rank that slot 16 names among ``count``."""
        place = number % ROWS
        first, words = self._ranks
        if number - place != first:
            first = number - place
            words = self._block(first, TRIES // 4)[:, TRIES % 4].tolist()
            self._ranks = first, words
        return (words[place] * count) >> 32


@dataclass(frozen=True, slots=True)
class Uniform:
    """Each selectable client with the same chance, drawn by dispatch number.

    Try t of dispatch d is client ``words(seed, SELECTION, 0, d, t) * N >> 32``, taken if it is selectable: variants
    of a scenario share these draws. After 16 tries, or where under N/8 are selectable (those chosen before in the same
    cohort not counted), the draw of slot 16 indexes the selectable clients by number. With a group, N and the order
    are the group's. A cohort is what as many single choices, one after another, would be.
    """

    seed: int
    reads_outcomes: bool = field(default=False, init=False, repr=False)
    _words: _Words = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_words", _Words(self.seed))

    def start(self) -> None:
        """Nothing to remember."""

    def choose(self, state: None, view: View, roster: Roster, send: Send, number: int) -> tuple[None, tuple[int, ...]]:
        """Choose up to ``send.count`` clients; ``number`` is the dispatch number of the first of them."""
        if send.count == 1 and send.group is None:  # the usual case, cheaply
            selectable, size = roster.selectable, view.clients
            if selectable == 1:
                return state, (roster.nth_selectable(0),)
            if CROWDED * selectable >= size:
                first, known, clients, later = self._words.named
                if known != size or not first <= number < first + ROWS:
                    first, _, clients, later = self._words.name(number, size)
                client = clients[number - first]
                if roster.is_selectable(client):
                    return state, (client,)
                for client in filter(roster.is_selectable, later[number - first, 1:].tolist()):
                    return state, (client,)
        pool = _pool(view, roster, send.group)
        chosen: dict[int, None] = {}
        ordered: list[int] = []
        for dispatch in range(number, number + min(send.count, pool.open)):
            client = self._met(pool, dispatch, chosen)
            if client is None:
                ordered = ordered or sorted(chosen)
                client = self._counted(pool, dispatch, ordered)
            if ordered:
                insort(ordered, client)
            chosen[client] = None
        return state, tuple(chosen)

    def likely(self, state: None, view: View, roster: Roster, number: int) -> Sequence[int]:  # noqa: ARG002
        """Foretell whom the dispatches from ``number`` on will most likely take, in a world with many idle clients."""
        if CROWDED * roster.selectable < view.clients:
            return ()
        first, _, clients, _ = self._words.name(number, view.clients)
        return clients[number - first :]

    def _met(self, pool: _Pool, number: int, chosen: Mapping[int, None]) -> int | None:
        if CROWDED * (pool.open - len(chosen)) < pool.size:
            return None
        for value in self._words.tries(number):
            client = pool.member((value * pool.size) >> 32)
            if pool.is_open(client) and client not in chosen:
                return client
        return None

    def _counted(self, pool: _Pool, number: int, chosen: list[int]) -> int:
        return _nth_besides(pool, self._words.rank(number, pool.open - len(chosen)), chosen)


def _nth_besides(pool: _Pool, rank: int, chosen: list[int]) -> int:
    """Return the rank-th selectable client that is not in ``chosen`` (sorted).

    Each round skips as many as are known to lie below; the number grows to the right one and never past it.
    """
    skipped = 0
    while True:
        client = pool.nth_open(rank + skipped)
        below = bisect_right(chosen, client)
        if below == skipped:
            return client
        skipped = below


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """By increasing key, going on behind the last one chosen, busy ones passed over."""

    keys: Sequence[int] = field(repr=False)
    reads_outcomes: bool = field(default=False, init=False, repr=False)
    _order: Sequence[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        order = self.keys if isinstance(self.keys, range) else np.argsort(np.asarray(self.keys), kind="stable").tolist()
        object.__setattr__(self, "_order", order)

    def start(self) -> int:
        """Place in the order of keys at which to look next."""
        return 0

    def choose(self, state: int, view: View, roster: Roster, send: Send, number: int) -> tuple[int, tuple[int, ...]]:  # noqa: ARG002
        """Choose up to ``send.count`` clients, once round at most."""
        members = None if send.group is None else frozenset(view.groups[send.group])
        wanted = min(send.count, roster.selectable if members is None else len(members))
        chosen: list[int] = []
        place, total = state, len(self._order)
        for step in range(state, state + total if wanted else state):
            client = self._order[step % total]
            if roster.is_selectable(client) and (members is None or client in members):
                chosen.append(client)
                place = (step + 1) % total
                if len(chosen) == wanted:
                    break
        return place, tuple(chosen)

    def likely(self, state: int, view: View, roster: Roster, number: int) -> Sequence[int]:  # noqa: ARG002
        """Foretell whom the next dispatches will most likely take."""
        return self._order[state : state + ROWS]


@dataclass(frozen=True, slots=True)
class LongestIdle:
    """Those idle longest first; who was never sent out is idle since time 0, in the order of client numbers."""

    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def start(self) -> None:
        """Nothing to remember: the roster knows."""

    def choose(self, state: None, view: View, roster: Roster, send: Send, number: int) -> tuple[None, tuple[int, ...]]:  # noqa: ARG002
        """Choose up to ``send.count`` clients."""
        if send.group is None:
            return state, tuple(roster.longest_idle(send.count))
        members = frozenset(view.groups[send.group])
        idle = (client for client in roster.longest_idle(roster.selectable) if client in members)
        return state, tuple(islice(idle, send.count))

    def likely(self, state: None, view: View, roster: Roster, number: int) -> Sequence[int]:  # noqa: ARG002
        """Foretell whom the next dispatches will most likely take."""
        return roster.longest_idle(ROWS)


@dataclass(frozen=True, slots=True)
class ExplicitOrder:
    """Exactly in the listed order, from its beginning again when it is used up.

    Where the next client in the list is busy, the slot waits for it and nobody else takes its turn. Raises
    ScenarioError for an empty list, RefusedError if asked to serve a group.
    """

    order: tuple[int, ...]
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.order:
            raise ScenarioError(
                'run: order = [] names nobody; list client numbers, or use another selection than "order"'
            )

    def start(self) -> int:
        """Place in the list that is next."""
        return 0

    def choose(self, state: int, view: View, roster: Roster, send: Send, number: int) -> tuple[int, tuple[int, ...]]:  # noqa: ARG002
        """Choose the next ``send.count`` entries, fewer if one of them is busy or comes twice."""
        if send.group is not None:
            raise RefusedError(
                'run.selection = "order" cannot choose from a group; use uniform, round_robin or longest_idle'
            )
        chosen: list[int] = []
        while len(chosen) < send.count:
            client = self.order[(state + len(chosen)) % len(self.order)]
            if not roster.is_selectable(client) or client in chosen:
                break
            chosen.append(client)
        return (state + len(chosen)) % len(self.order), tuple(chosen)


TABLE: dict[str, type[Selector]] = {
    "uniform": Uniform,
    "round_robin": RoundRobin,
    "longest_idle": LongestIdle,
    "order": ExplicitOrder,
}


def build(name: str, *, seed: int, keys: Sequence[int], order: Sequence[int] = ()) -> Selector:
    """Make the selector of that name from the run's facts; ScenarioError for an unknown name or a bad order."""
    outside = [client for client in order if not 0 <= client < len(keys)]
    if outside:
        raise ScenarioError(f"run: order names client {outside[0]}; clients are numbered from 0 to {len(keys) - 1}")
    if name not in TABLE:
        raise ScenarioError(f"run: selection = {name!r} is not one of {', '.join(TABLE)}")
    arguments = {"uniform": (seed,), "round_robin": (keys,), "longest_idle": (), "order": (tuple(order),)}
    return TABLE[name](*arguments[name])
