"""How long each leg of a job takes, in ticks: drawn once, rounded once, then scaled.

compute = steps x seconds a step x device factor x jitter factor, rounded half to even; the wait likewise; the
network legs come from :mod:`desim_fl.network`. ``delay_scale`` multiplies the rounded ticks, so that whole scales
keep the order of events. A client's constants and a job's draws come from stateless streams keyed by the client's key
and its own job count.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl import draws
from desim_fl.core import TICKS_PER_SECOND, Trip, Work
from desim_fl.draws import JobSlot, Purpose
from desim_fl.errors import RunError
from desim_fl.ticks import scaled, to_ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from desim_fl.durations import Law
    from desim_fl.network import Links

_CHUNK = 1 << 16  # clients whose constants are drawn at once: bounds the memory on the way
_WINDOW = 256  # neighbours whose trips are drawn together
_SHORTEST, _LONGEST = 4, 256  # trips of a client drawn ahead; as many as it has made already, within these bounds
_ROWS = 4096  # trips drawn in one go: more do not stay in the processor's cache
_AHEAD = 1 << 18  # trips held ahead, over all clients; where that is too few for each, the desk foretells who leaves
_EXACT = 2.0**53  # whole numbers below it are exact as floats


def per_client(law: Law, seed: int, keys: Sequence[int], slot: int) -> array[float]:
    """Draw one constant per client from a law."""
    drawn = array("d")
    for first in range(0, len(keys), _CHUNK):
        chunk = np.asarray(keys[first : first + _CHUNK], np.uint64)
        words = draws.words(seed, Purpose.CLIENT, chunk, 0, slot)
        drawn.frombytes(np.asarray(law.at(draws.uniforms(words)), np.float64).tobytes())
    return drawn


@dataclass(frozen=True, slots=True)
class JobLaws:
    """The laws of what is drawn per job; ``None`` where nothing is drawn."""

    jitter_factor: Law | None = None
    wait_s: Law | None = None
    latency_jitter_factor: Law | None = None

    @property
    def slots(self) -> tuple[tuple[JobSlot, Law], ...]:
        """What is drawn, each quantity at its fixed slot."""
        pairs = (
            (JobSlot.COMPUTE_JITTER, self.jitter_factor),
            (JobSlot.WAIT, self.wait_s),
            (JobSlot.DOWN_LATENCY_JITTER, self.latency_jitter_factor),
            (JobSlot.UP_LATENCY_JITTER, self.latency_jitter_factor),
        )
        return tuple((slot, law) for slot, law in pairs if law is not None)


@dataclass(slots=True)
class JobDraws:
    """The drawn values of each job, by slot: one job at a time, or many at once."""

    seed: int
    keys: Sequence[int]
    laws: JobLaws
    _slots: tuple[tuple[JobSlot, Law], ...] = field(init=False)
    _keys: NDArray[np.uint64] | None = field(init=False)  # ``None`` = every client's key is its number

    def __post_init__(self) -> None:
        self._slots = self.laws.slots
        self._keys = None if self.keys == range(len(self.keys)) else np.asarray(self.keys, np.uint64)

    def values(self, client: int, nth: int) -> dict[JobSlot, float]:
        """Every law's value for this job."""
        if not self._slots:
            return {}
        drawn = draws.block(self.seed, Purpose.JOB, self.keys[client], nth, 0)
        return {slot: law.at(draws.uniform(drawn[slot])) for slot, law in self._slots}

    def columns(self, clients: NDArray[np.int64], nths: NDArray[np.int64]) -> dict[JobSlot, NDArray[np.float64]]:
        """Every law's values for jobs of these clients, bit for bit those of :meth:`values`."""
        if not self._slots:
            return {}
        keys = clients if self._keys is None else self._keys[clients]
        drawn = draws.uniforms(draws.blocks(self.seed, Purpose.JOB, keys, nths, 0))
        return {slot: law.at(np.ascontiguousarray(drawn[:, slot])) for slot, law in self._slots}


class Ahead(NamedTuple):
    """Trips of one client drawn ahead: of its jobs ``first`` to ``end`` (not included), if they have ``steps`` steps.

    ``legs`` are packed, so that thousands of trips in stock are no objects for the garbage collector to walk over.
    """

    first: int
    end: int
    steps: int
    legs: bytes


new: Any = tuple.__new__  # a NamedTuple from all its fields at half the price
_NONE_AHEAD = Ahead(0, 0, -1, b"")
_LEGS = struct.Struct("<4q")
_unpack, _SIZE = (
    _LEGS.unpack_from,
    _LEGS.size,
)  # download, -1 where a trip is not sound; wait, -1 where there is none; compute; upload


@dataclass(slots=True)
class DrawnTrips:
    """Trips on links of one's own: every leg is known at dispatch (implements ``core.Trips``).

    A trip drawn alone costs more than everything else about its job, so trips are drawn ahead, many at once and bit
    for bit the same. In a small population a client's next trips are drawn with those of its neighbours that have
    run out as well. In a large one most clients leave once or twice: there the desk foretells (``foresees``,
    ``expect``) who will leave next, and whoever leaves unforetold is drawn alone. ``usual_steps`` says how many steps
    a client's jobs have unless the strategy asks for others.
    """

    links: Links
    device_factor: Sequence[float]
    job_draws: JobDraws
    seconds_per_step: float
    delay_scale: float = 1.0
    usual_steps: Callable[[int], int] | None = field(default=None, repr=False, compare=False)
    contended: bool = field(init=False, default=False)
    foresees: bool = field(init=False)
    _clients: int = field(init=False)
    _longest: int = field(init=False)
    _ahead: dict[int, Ahead] = field(init=False, default_factory=dict, repr=False)
    _next: list[int] = field(init=False, repr=False)  # by client: the job after the last asked for

    def __post_init__(self) -> None:
        self._clients = len(self.device_factor)
        self._longest = min(_LONGEST, _AHEAD // max(1, self._clients))
        self.foresees = self._longest < _SHORTEST
        self._next = [] if self.foresees else [0] * self._clients

    def trip(self, client: int, nth: int, work: Work) -> Trip:
        """Durations of this client's ``nth`` job; raises ``RunError`` naming the client if one is no duration."""
        first, end, steps, legs = self._ahead.get(client, _NONE_AHEAD)
        if not first <= nth < end and not self.foresees:
            first, end, steps, legs = self._draw_ahead(client, nth, work.steps or 0)
        if first <= nth < end and steps == work[1]:
            download, wait, compute, upload = _unpack(legs, (nth - first) * _SIZE)
            if self._next:
                self._next[client] = nth + 1
            if download >= 0:
                size = self.links.size_bytes
                return new(Trip, (download, None if wait < 0 else wait, compute, upload, size, size, None))
        try:
            return self._trip(client, work, self.job_draws.values(client, nth))
        except (ValueError, OverflowError) as error:
            raise RunError(f"client {client}, job number {nth} of this client: {error}; check its laws") from error

    def expect(self, clients: Sequence[int], nths: Sequence[int]) -> None:
        """Draw the trips of jobs that will most likely be asked for next; those foretold before are forgotten."""
        steps = [self._usual(client, 0) for client in clients]
        legs = self._legs(np.array(clients, np.int64), np.array(nths, np.int64), np.array(steps, np.int64))
        each = (legs[at : at + _SIZE] for at in range(0, len(legs), _SIZE))
        foretold = zip(clients, nths, steps, each, strict=True)
        self._ahead = {client: Ahead(nth, nth + 1, count, mine) for client, nth, count, mine in foretold}

    def _draw_ahead(self, client: int, nth: int, steps: int) -> Ahead:
        """Draw trips of this client from ``nth`` on, and of those neighbours that have few left."""
        start = client - client % _WINDOW
        window = range(start, min(start + _WINDOW, self._clients))
        lacking = [other for other in window if other != client and self._is_low(other)]
        stock = {other: self._left(other, steps) for other in lacking} | {client: Ahead(nth, nth, steps, b"")}
        firsts = np.array([ahead.end for ahead in stock.values()])
        lengths = np.clip(firsts, _SHORTEST, self._longest)
        ends = np.cumsum(lengths)
        nths = np.arange(ends[-1]) + np.repeat(firsts + lengths - ends, lengths)
        asked = np.repeat([ahead.steps for ahead in stock.values()], lengths)
        legs = self._legs(np.repeat(list(stock), lengths), nths, asked)
        stops = (_SIZE * ends).tolist()
        for (other, ahead), since, until in zip(stock.items(), [0, *stops], stops, strict=False):
            end = ahead.end + (until - since) // _SIZE
            self._ahead[other] = Ahead(ahead.first, end, ahead.steps, ahead.legs + legs[since:until])
        return self._ahead[client]

    def _is_low(self, client: int) -> bool:
        """Whether a client has used up half of what was drawn ahead for it, or nothing was drawn yet."""
        first, end, _, _ = self._ahead.get(client, _NONE_AHEAD)
        return 2 * self._next[client] >= first + end

    def _left(self, client: int, steps: int) -> Ahead:
        """What is left of a client's trips drawn ahead; one never asked for is taken to do its usual work."""
        ahead = self._ahead.get(client)
        if ahead is None:
            return Ahead(0, 0, self._usual(client, steps), b"")
        used = min(max(0, self._next[client] - ahead.first), ahead.end - ahead.first)
        return ahead._replace(first=ahead.first + used, legs=ahead.legs[used * _SIZE :])

    def _usual(self, client: int, otherwise: int) -> int:
        return otherwise if self.usual_steps is None else self.usual_steps(client)

    def _trip(self, client: int, work: Work, drawn: dict[JobSlot, float]) -> Trip:
        scale = self.delay_scale
        compute_s = (work.steps or 0) * self.seconds_per_step * self.device_factor[client]
        wait_s = drawn.get(JobSlot.WAIT)
        return Trip(
            download=scaled(self.links.download(client, drawn.get(JobSlot.DOWN_LATENCY_JITTER, 1.0)), scale),
            wait=None if wait_s is None else scaled(to_ticks(wait_s), scale),
            compute=scaled(to_ticks(compute_s * drawn.get(JobSlot.COMPUTE_JITTER, 1.0)), scale),
            upload=scaled(self.links.upload(client, drawn.get(JobSlot.UP_LATENCY_JITTER, 1.0)), scale),
            bytes_down=self.links.size_bytes,
            bytes_up=self.links.size_bytes,
        )

    def _legs(self, clients: NDArray[np.int64], nths: NDArray[np.int64], steps: NDArray[np.int64]) -> bytes:
        """The same for many jobs at once, packed."""
        if len(clients) > _ROWS:
            parts = [slice(at, at + _ROWS) for at in range(0, len(clients), _ROWS)]
            return b"".join([self._legs(clients[part], nths[part], steps[part]) for part in parts])
        drawn = self.job_draws.columns(clients, nths)
        compute_s = steps * self.seconds_per_step * np.asarray(self.device_factor)[clients]
        latency_s = np.asarray(self.links.latency_s)[clients]
        down, up = self.links.transfers(clients)
        whole = (
            _whole(latency_s, drawn.get(JobSlot.DOWN_LATENCY_JITTER)) + down,
            _whole(drawn.get(JobSlot.WAIT, np.zeros(len(clients)))),
            _whole(compute_s, drawn.get(JobSlot.COMPUTE_JITTER)),
            _whole(latency_s, drawn.get(JobSlot.UP_LATENCY_JITTER)) + up,
        )
        largest = _EXACT / max(self.delay_scale, 1.0)
        sound = np.logical_and.reduce([(leg >= 0.0) & (leg < largest) for leg in whole])  # NaN is not
        legs = np.stack([_scaled(np.where(sound, leg, 0.0), self.delay_scale) for leg in whole], axis=1)
        legs[~sound, 0] = -1
        if JobSlot.WAIT not in drawn:
            legs[:, 1] = -1
        return legs.astype("<i8").tobytes()


def _whole(seconds: NDArray[np.float64], factor: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Ticks, as whole floats, not scaled yet."""
    return np.rint((seconds if factor is None else seconds * factor) * TICKS_PER_SECOND)


def _scaled(ticks: NDArray[np.float64], scale: float) -> NDArray[np.int64]:
    whole = ticks.astype(np.int64)
    return whole * int(scale) if scale == int(scale) else np.rint(whole * scale).astype(np.int64)
