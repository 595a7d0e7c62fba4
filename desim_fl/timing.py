"""How long each leg of a job takes, in ticks: drawn once, rounded once, then scaled.

compute = steps x seconds a step x device factor x jitter factor, rounded half to even; the wait likewise; the
network legs come from :mod:`desim_fl.network`. ``delay_scale`` multiplies the rounded ticks, so that whole scales
keep the order of events. A client's constants and a job's draws come from stateless streams keyed by the client's key
and its own job count.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

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
_FEW_LEFT = 4  # a client is drawn for once no more than one in so many of its trips is left
_AHEAD = 1 << 16  # trips held ahead, over all clients; where that is too few for each, the desk foretells who leaves
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
    """A client's trips drawn ahead, the next one last, up to its job ``end`` (not included), for jobs of ``steps`` steps."""

    end: int
    steps: int
    trips: list[Trip | None]  # ``None`` where one is not sound: drawn alone, when it is asked for, it says why


_NONE_AHEAD = Ahead(0, -1, [])


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

    def __post_init__(self) -> None:
        self._clients = len(self.device_factor)
        self._longest = min(_LONGEST, _AHEAD // max(1, self._clients))
        self.foresees = self._longest < _SHORTEST

    def trip(self, client: int, nth: int, work: Work) -> Trip:
        """Durations of this client's ``nth`` job; raises ``RunError`` naming the client if one is no duration."""
        end, steps, trips = self._ahead.get(client, _NONE_AHEAD)
        if (not trips or nth != end - len(trips)) and not self.foresees:
            end, steps, trips = self._draw_ahead(client, nth, work.steps or 0)
        if trips and nth == end - len(trips):
            trip = trips.pop()
            if trip is not None and steps == work.steps:
                return trip
        try:
            return self._trip(client, work, self.job_draws.values(client, nth))
        except (ValueError, OverflowError) as error:
            raise RunError(f"client {client}, job number {nth} of this client: {error}; check its laws") from error

    def expect(self, clients: Sequence[int], nths: Sequence[int]) -> None:
        """Draw the trips of jobs that will most likely be asked for next; those foretold before are forgotten."""
        steps = [self._usual(client, 0) for client in clients]
        trips = self._trips(np.array(clients, np.int64), np.array(nths, np.int64), np.array(steps, np.int64))
        foretold = zip(clients, nths, steps, trips, strict=True)
        self._ahead = {client: Ahead(nth + 1, count, [trip]) for client, nth, count, trip in foretold}

    def _draw_ahead(self, client: int, nth: int, steps: int) -> Ahead:
        """Draw trips of this client from ``nth`` on, and of those neighbours that have few left."""
        start = client - client % _WINDOW
        self._ahead[client] = Ahead(nth, steps, [])
        window = ((other, self._ahead.get(other)) for other in range(start, min(start + _WINDOW, self._clients)))
        lacking = {
            other: ahead or Ahead(0, self._usual(other, steps), [])
            for other, ahead in window
            if ahead is None or _FEW_LEFT * len(ahead.trips) <= min(ahead.end, self._longest)
        }
        lengths = [min(self._longest, max(_SHORTEST, ahead.end)) for ahead in lacking.values()]
        nths = [
            np.arange(ahead.end, ahead.end + length) for ahead, length in zip(lacking.values(), lengths, strict=True)
        ]
        asked = [ahead.steps for ahead in lacking.values()]
        trips = self._trips(np.repeat(list(lacking), lengths), np.concatenate(nths), np.repeat(asked, lengths))
        done = 0
        for (other, (end, known, rest)), length in zip(lacking.items(), lengths, strict=True):
            self._ahead[other] = Ahead(end + length, known, trips[done : done + length][::-1] + rest)
            done += length
        return self._ahead[client]

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

    def _trips(
        self, clients: NDArray[np.int64], nths: NDArray[np.int64], steps: NDArray[np.int64]
    ) -> list[Trip | None]:
        """The same trips for many jobs at once."""
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
        download, wait, compute, upload = (_scaled(leg, sound, self.delay_scale) for leg in whole)
        waits = wait if JobSlot.WAIT in drawn else repeat(None)
        size = repeat(self.links.size_bytes)
        made = zip(download, waits, compute, upload, size, size, repeat(None), strict=False)
        trips: list[Trip | None] = list(map(tuple.__new__, repeat(Trip), made))  # Trip(...) costs twice as much
        for place in np.flatnonzero(~sound).tolist():
            trips[place] = None
        return trips


def _whole(seconds: NDArray[np.float64], factor: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Ticks, as whole floats, not scaled yet."""
    return np.rint((seconds if factor is None else seconds * factor) * TICKS_PER_SECOND)


def _scaled(ticks: NDArray[np.float64], sound: NDArray[np.bool_], scale: float) -> list[int]:
    whole = np.where(sound, ticks, 0.0).astype(np.int64)
    return (whole * int(scale) if scale == int(scale) else np.rint(whole * scale).astype(np.int64)).tolist()
