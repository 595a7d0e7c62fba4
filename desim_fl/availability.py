"""When clients are online: half-open windows of absolute virtual time, in ticks.

Who is online depends on the client and the time alone, never on jobs: two variants of a scenario meet the same nights.
Every kind is a function from a client and one of its windows to its next one; windows never touch (touching ones are
one), and none has length 0. Drawn kinds take their numbers from streams keyed by the client and the number of the renewal or of
the fixed window.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from desim_fl import draws, elementary
from desim_fl.core import TICKS_PER_SECOND
from desim_fl.draws import AvailabilitySlot, Purpose
from desim_fl.errors import RunError
from desim_fl.ticks import MOST_TICKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from desim_fl.durations import Law

    Whole = NDArray[np.int64]

NEVER = MOST_TICKS
DAY = 86_400 * TICKS_PER_SECOND
_QUANTILES = 4096
_LONGEST = 2.0**60  # ticks, of one time on or off: far beyond what is played, and sums stay inside 64 bits
_AT_ONCE = 256  # fixed windows looked at in one go
_MOST_LOOKS = 1_000_000  # fixed windows or renewals without a change before it is an error


class Window(NamedTuple):
    """Online from ``start`` to before ``end``; ``cursor`` tells the kind where it stands. (NEVER, NEVER) = none any more."""

    start: int
    end: int
    cursor: int


class Windows(NamedTuple):
    """One window of each of several clients."""

    start: Whole
    end: Whole
    cursor: Whole


class Availability(Protocol):
    """Windows of every client; the scalar and the array form give the same."""

    def first(self, clients: Whole) -> Windows:
        """The first window of each client that ends after tick 0; who is online at tick 0 has one that starts there or before."""
        ...

    def next(self, clients: Whole, windows: Windows) -> Windows:
        """The window after each of these."""
        ...

    def after(self, client: int, window: Window) -> Window:
        """The window after this one, of one client."""
        ...


def ahead(source: Availability, client: int, window: Window) -> Iterator[Window]:
    """A client's windows from this one on; ends where there are no more."""
    while window.start < NEVER:
        yield window
        window = source.after(client, window)


def window_at(source: Availability, client: int, tick: int) -> Window:
    """The first window of a client that ends after ``tick``: it is online then if the window has started."""
    first = source.first(np.array([client]))
    window = Window(*(int(column[0]) for column in first))
    while window.end <= tick and window.start < NEVER:
        window = source.after(client, window)
    return window


# ---- lists


def merged(device: Whole, start: Whole, end: Whole) -> tuple[Whole, Whole, Whole]:
    """Windows sorted by device and start, without those of length 0, overlapping and touching ones made one."""
    keep = end > start
    device, start, end = device[keep], start[keep], end[keep]
    order = np.lexsort((start, device))
    device, start, end = device[order], start[order], end[order]
    if not len(device):
        return device, start, end
    new = np.ones(len(device), np.bool_)
    reach = end.copy()
    edges = np.flatnonzero(np.concatenate([[True], device[1:] != device[:-1], [True]]))
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        reach[first:last] = np.maximum.accumulate(end[first:last])
        new[first + 1 : last] = start[first + 1 : last] > reach[first : last - 1]
    firsts = np.flatnonzero(new)
    return device[firsts], start[firsts], np.maximum.reduceat(reach, firsts)


@dataclass(frozen=True, slots=True)
class Listed:
    """Windows as they are listed, by device (from 0); client c plays device c mod ``devices``.

    With ``period`` (ticks) the list repeats for ever; a window that reaches over the end of the period goes on at its
    beginning. Make it with :func:`listed`.
    """

    devices: int
    start: Whole = field(repr=False)
    end: Whole = field(repr=False)
    offset: Whole = field(repr=False)  # of each device's windows, one more entry than devices
    period: int | None = None

    def first(self, clients: Whole) -> Windows:
        """The first window of each client that ends after tick 0."""
        if self.period is None:
            return self._windows(clients, np.zeros(len(clients), np.int64))
        before = self._windows(clients, np.full(len(clients), -1))
        return _where(before.end > 0, before, self._windows(clients, np.zeros(len(clients), np.int64)))

    def next(self, clients: Whole, windows: Windows) -> Windows:
        """The window after each of these."""
        return self._windows(clients, windows.cursor + 1)

    def after(self, client: int, window: Window) -> Window:
        """The window after this one."""
        place = window.cursor + 1
        device = client % self.devices
        first, last = int(self.offset[device]), int(self.offset[device + 1])
        count, period = last - first, self.period
        if not count or (period is None and place >= count) or window.end >= NEVER:
            return Window(NEVER, NEVER, place)
        round_, index = divmod(place, count)
        shift = 0 if period is None else round_ * period
        start, end = int(self.start[first + index]) + shift, int(self.end[first + index]) + shift
        return Window(start, end, place) if start < NEVER else Window(NEVER, NEVER, place)

    def _windows(self, clients: Whole, place: Whole) -> Windows:
        device = clients % self.devices
        first, count = self.offset[device], self.offset[device + 1] - self.offset[device]
        period = self.period
        there = count > 0 if period is not None else place < count
        round_, index = np.divmod(place, np.maximum(count, 1))
        if not len(self.start):
            there, at = np.zeros(len(clients), np.bool_), np.zeros(len(clients), np.int64)
            none = np.full(len(clients), NEVER)
            return Windows(none, none, place)
        at = np.where(there, first + index, 0)
        if period is not None:
            there &= round_ < NEVER // period
        shift = np.zeros(len(at), np.int64) if period is None else np.where(there, round_, 0) * period
        start, end = self.start[at] + shift, self.end[at] + shift
        always = self.end[at] >= NEVER
        there &= (start < NEVER) & ~(always & (place > 0) & (period is not None))
        return Windows(np.where(there, start, NEVER), np.where(there & ~always, np.minimum(end, NEVER), NEVER), place)


def listed(device: Whole, start: Whole, end: Whole, devices: int, period: int | None = None) -> Listed:
    """Windows in ticks by device, in any order; those before tick 0 are cut off (with ``period``: brought into it)."""
    if period is None:
        device, start, end = merged(device, np.maximum(start, 0), end)
    else:
        device, start, end = _wrapped(device, start, end, period)
    offset = np.searchsorted(device, np.arange(devices + 1)).astype(np.int64)
    return Listed(devices, start, end, offset, period)


def _wrapped(device: Whole, start: Whole, end: Whole, period: int) -> tuple[Whole, Whole, Whole]:
    """Windows brought into one period: only the last of a device may reach over its end."""
    long = end - start >= period
    length = np.where(long, period, end - start)
    start = np.where(long, 0, start % period)
    end = start + length
    over = end > period
    device = np.concatenate([device, device[over]])
    start, end = (
        np.concatenate([start, np.zeros(over.sum(), np.int64)]),
        np.concatenate([np.minimum(end, period), end[over] - period]),
    )
    device, start, end = merged(device, start, end)
    whole = (start == 0) & (end == period)
    end = np.where(whole, NEVER, end)
    heads = np.flatnonzero((start == 0) & ~whole)
    tails = np.flatnonzero((end == period) & ~whole)
    joined = np.isin(device[tails], device[heads])
    reach = dict(zip(device[heads].tolist(), end[heads].tolist(), strict=True))
    end[tails[joined]] = [period + reach[owner] for owner in device[tails[joined]].tolist()]
    keep = np.ones(len(device), np.bool_)
    keep[heads[np.isin(device[heads], device[tails])]] = False
    return device[keep], start[keep], end[keep]


def _where(mask: Any, one: Windows, other: Windows) -> Windows:
    return Windows(*(np.where(mask, left, right) for left, right in zip(one, other, strict=True)))


# ---- renewals


@dataclass(frozen=True, slots=True)
class Renewal:
    """Times online and offline in turns, each drawn from its law; renewal k of a client is its own draw.

    ``begins``: ``on`` (everybody comes online at tick 0), ``off``, or ``stationary``: as if it had gone on for ever.
    Stationary means online with probability mean on / (mean on + mean off); what is left of the running time is a
    uniform share of one drawn with probability proportional to its length (the inspection paradox), from 4,096
    quantiles of the law.
    """

    seed: int
    keys: Sequence[int]
    on: Law
    off: Law
    begins: str = "stationary"
    purpose: int = Purpose.AVAILABILITY
    _on: _Lengths = field(init=False, repr=False)
    _off: _Lengths = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_on", _lengths(self.on))
        object.__setattr__(self, "_off", _lengths(self.off))

    def first(self, clients: Whole) -> Windows:
        """The first window of each client."""
        keys = self._keys(clients)
        zero = np.zeros(len(clients), np.int64)
        if self.begins != "stationary":
            on = self._ticks(keys, zero, AvailabilitySlot.ON) if self.begins == "on" else zero
            return self._from(keys, zero, on, zero)
        share, length, part = (
            draws.uniforms(draws.words(self.seed, self.purpose, keys, 0, slot))
            for slot in (AvailabilitySlot.START_STATE, AvailabilitySlot.START_LENGTH, AvailabilitySlot.START_SHARE)
        )
        online = share * (self._on.mean + self._off.mean) < self._on.mean
        left = np.where(online, self._on.left(length, part), self._off.left(length, part))
        ticks = np.rint(left * TICKS_PER_SECOND).astype(np.int64)
        starting = self._from(keys, zero, np.where(online, ticks, 0), zero)
        later = self._come(keys, ticks, zero)
        return _where(online & (ticks > 0), starting, later)

    def next(self, clients: Whole, windows: Windows) -> Windows:
        """The window after each of these."""
        keys = self._keys(clients)
        off = self._ticks(keys, windows.cursor, AvailabilitySlot.OFF)
        return self._come(keys, np.minimum(windows.end, NEVER) + off, windows.cursor)

    def after(self, client: int, window: Window) -> Window:
        """The window after this one."""
        key, nth = self.keys[client], window.cursor
        start = window.end + self._tick(key, nth, AvailabilitySlot.OFF, self.off)
        end = start
        for _ in range(_MOST_LOOKS):
            nth += 1
            end += self._tick(key, nth, AvailabilitySlot.ON, self.on)
            off = self._tick(key, nth, AvailabilitySlot.OFF, self.off)
            if off and end > start:
                return _window(start, end, nth)
            if end >= NEVER or start >= NEVER:
                return _window(start, end, nth)
            if end == start:
                start = end = start + off
        raise _standing_still(client)

    def _come(self, keys: Any, start: Whole, nth: Whole) -> Windows:
        """The window of those who come online at ``start``, in renewal ``nth`` + 1."""
        return self._from(keys, start, self._ticks(keys, nth + 1, AvailabilitySlot.ON), nth + 1)

    def _from(self, keys: Any, start: Whole, on: Whole, nth: Whole) -> Windows:
        """Those who come at ``start`` for ``on`` ticks, in renewal ``nth``: times of 0 ticks passed over or joined."""
        start, end, nth = start.copy(), start + on, nth.copy()
        open_ = np.arange(len(start))
        for _ in range(_MOST_LOOKS):
            off = self._ticks(keys[open_], nth[open_], AvailabilitySlot.OFF)
            more = (off == 0) | (end[open_] == start[open_])
            more &= (end[open_] < NEVER) & (start[open_] < NEVER)
            open_, off = open_[more], off[more]
            if not len(open_):
                none = start >= NEVER
                return Windows(np.where(none, NEVER, start), np.where(none, NEVER, np.minimum(end, NEVER)), nth)
            empty = end[open_] == start[open_]
            start[open_[empty]] += off[empty]
            end[open_[empty]] = start[open_[empty]]
            nth[open_] += 1
            end[open_] += self._ticks(keys[open_], nth[open_], AvailabilitySlot.ON)
        raise _standing_still(int(open_[0]))

    def _keys(self, clients: Whole) -> Any:
        keys = self.keys
        return clients if isinstance(keys, range) and keys == range(len(keys)) else np.asarray(keys, np.int64)[clients]

    def _ticks(self, keys: Any, nth: Whole, slot: int) -> Whole:
        law = self.on if slot == AvailabilitySlot.ON else self.off
        words = draws.words(self.seed, self.purpose, keys, nth, slot)
        ticks = np.asarray(law.at(draws.uniforms(words))) * TICKS_PER_SECOND
        return np.rint(np.minimum(ticks, _LONGEST)).astype(np.int64)

    def _tick(self, key: int, nth: int, slot: int, law: Law) -> int:
        ticks = float(law.at(draws.uniform(draws.word(self.seed, self.purpose, key, nth, slot)))) * TICKS_PER_SECOND
        return round(min(ticks, _LONGEST))


class _Lengths(NamedTuple):
    """Quantiles of a law in seconds, their mean, and the cumulative shares of them in their sum."""

    quantiles: NDArray[np.float64]
    mean: float
    shares: NDArray[np.float64]

    def left(self, length: NDArray[np.float64], part: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is left of a running time, from two uniform numbers."""
        place = np.minimum(np.searchsorted(self.shares, length, side="right"), len(self.quantiles) - 1)
        return self.quantiles[place] * part


def _lengths(law: Law) -> _Lengths:
    quantiles = np.asarray(law.at((np.arange(_QUANTILES) + 0.5) / _QUANTILES), np.float64)
    sums = np.cumsum(quantiles)
    return _Lengths(quantiles, float(sums[-1]) / _QUANTILES, sums / max(float(sums[-1]), 1e-300))


def _window(start: int, end: int, cursor: int) -> Window:
    return Window(NEVER, NEVER, cursor) if start >= NEVER else Window(start, min(end, NEVER), cursor)


def _standing_still(client: int) -> RunError:
    return RunError(
        f"client {client}: {_MOST_LOOKS} renewals in a row took no time; make the laws of [availability] longer"
    )


# ---- days


@dataclass(frozen=True, slots=True)
class Diurnal:
    """Days and nights: in each fixed window of ``width`` ticks a client is online with a probability that follows a cosine.

    p = mean + amplitude * cos(2 pi (local time - peak) / 24 h), cut to [0, 1], at the middle of the window; local time is
    virtual time plus ``zone`` (ticks, by client). Online where the window's draw lies below p: a larger mean or amplitude
    moves the same draws. ``phase`` (ticks below ``width``, by client) is how much earlier than tick 0 its window 0 begins.
    """

    seed: int
    keys: Sequence[int]
    zone: Sequence[int] = field(repr=False)
    phase: Sequence[int] = field(repr=False)
    width: int
    mean: float
    amplitude: float
    peak: int = 0

    def online(self, clients: Whole, number: Whole) -> NDArray[np.bool_]:
        """Whether these clients are online in the fixed windows of these numbers (from 0)."""
        middle = number * self.width + self.width // 2 - np.asarray(self.phase)[clients]
        local = (middle + np.asarray(self.zone)[clients] - self.peak) % DAY
        chance = self.mean + self.amplitude * elementary.cosine_of_turn(local / DAY)
        words = draws.words(
            self.seed, Purpose.AVAILABILITY, np.asarray(self.keys)[clients], number, AvailabilitySlot.ON
        )
        return draws.uniforms(words) < chance

    def first(self, clients: Whole) -> Windows:
        """The first window of each client."""
        return self._from(clients, np.zeros(len(clients), np.int64))

    def next(self, clients: Whole, windows: Windows) -> Windows:
        """The window after each of these; ``cursor`` is the number of the fixed window behind it."""
        return self._from(clients, windows.cursor)

    def after(self, client: int, window: Window) -> Window:
        """The window after this one."""
        start = self._change(client, window.cursor, online=True)
        end = self._change(client, start, online=False)
        shift = int(self.phase[client])
        return Window(start * self.width - shift, end * self.width - shift, end)

    def _change(self, client: int, number: int, *, online: bool) -> int:
        """The first fixed window from ``number`` on in which the client is online, or is not."""
        count = 8
        while count < _MOST_LOOKS:
            numbers = np.arange(number, number + count)
            found = np.flatnonzero(self.online(np.full(count, client), numbers) == online)
            if len(found):
                return number + int(found[0])
            number, count = number + count, count * 2
        raise self._stuck(client)

    def _from(self, clients: Whole, number: Whole) -> Windows:
        start = self._changes(clients, number, online=True)
        end = self._changes(clients, start, online=False)
        shift = np.asarray(self.phase)[clients]
        return Windows(start * self.width - shift, end * self.width - shift, end)

    def _changes(self, clients: Whole, number: Whole, *, online: bool) -> Whole:
        """The first fixed windows from these on in which the clients are online, or are not; few clients look far ahead at once."""
        number, open_, looks = number.copy(), np.arange(len(clients)), 0
        while len(open_):
            if looks >= _MOST_LOOKS:
                raise self._stuck(int(clients[open_[0]]))
            count = max(1, _AT_ONCE // len(open_))
            ahead = number[open_, np.newaxis] + np.arange(count)
            found = self.online(np.broadcast_to(clients[open_, np.newaxis], ahead.shape), ahead) == online
            first = found.argmax(axis=1)
            met = found[np.arange(len(open_)), first]
            number[open_] += np.where(met, first, count)
            open_, looks = open_[~met], looks + count
        return number

    def _stuck(self, client: int) -> RunError:
        return RunError(
            f"client {client} neither comes nor leaves in {_MOST_LOOKS} windows of [availability]; choose mean and amplitude so that both happen"
        )
