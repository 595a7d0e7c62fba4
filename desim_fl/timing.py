"""How long each leg of a job takes, in ticks: drawn once, rounded once, then scaled.

compute = the device's seconds (:mod:`desim_fl.devices`) x jitter factor, rounded half to even, plus a pause after each
epoch where a law asks for one; the wait likewise; the network legs come from :mod:`desim_fl.network`. ``delay_scale`` multiplies the rounded ticks, so that whole scales
keep the order of events. A client's constants and a job's draws come from stateless streams keyed by the client's key
and its own job count.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, field, replace
from operator import length_hint
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl import draws
from desim_fl.core import TICKS_PER_SECOND, Trip, Work
from desim_fl.draws import JobSlot, Purpose
from desim_fl.errors import RunError
from desim_fl.ticks import scaled, to_ticks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from desim_fl.devices import Devices
    from desim_fl.durations import Law
    from desim_fl.network import Links

_CHUNK = 1 << 16  # clients whose constants are drawn at once: bounds the memory on the way
_WINDOW = 256  # neighbours whose trips are drawn together
_SHORTEST, _LONGEST = 8, 64  # trips of a client drawn ahead; as many as it has made already, within these bounds
_ROWS = 4096  # trips drawn in one go: more do not stay in the processor's cache
_AHEAD = 1 << 18  # trips held ahead, over all clients; where that is too few for each, the desk foretells who leaves
ANSWER_BYTES = 8  # what a probe sends up: one number
_EXACT = 2.0**53  # whole numbers below it are exact as floats


def per_client(law: Law, seed: int, keys: Sequence[int], slot: int) -> array[float]:
    """Draw one constant per client from a law."""
    drawn = array("d")
    for first in range(0, len(keys), _CHUNK):
        chunk = np.asarray(keys[first : first + _CHUNK], np.uint64)
        words = draws.words(seed, Purpose.CLIENT, chunk, 0, slot)
        drawn.frombytes(np.asarray(law.at(draws.uniforms(words)), np.float64).tobytes())
    return drawn


def per_class(
    laws: Sequence[Law | None], classes: NDArray[np.int16], seed: int, keys: Sequence[int], slot: int
) -> NDArray[np.float64]:
    """Draw one constant per client from the law of its class; 1 where that has none."""
    words = draws.words(seed, Purpose.CLIENT, np.asarray(keys, np.uint64), 0, slot)
    uniform, drawn = draws.uniforms(words), np.ones(len(classes))
    for number, law in enumerate(laws):
        those = classes == number
        if law is not None:
            drawn[those] = law.at(uniform[those])
    return drawn


@dataclass(frozen=True, slots=True)
class JobLaws:
    """The laws of what is drawn per job; ``None`` where nothing is drawn."""

    jitter_factor: Law | None = None
    wait_s: Law | None = None
    latency_jitter_factor: Law | None = None
    epoch_idle_s: Law | None = None

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
    """The drawn values of each job, by slot: one job at a time, or many at once.

    ``classes`` numbers each client's class of devices, whose laws stand in ``by_class``; ``None`` = ``laws`` for all.
    Where one class waits or pauses, each has a law for it; a factor without a law is 1.
    """

    seed: int
    keys: Sequence[int]
    laws: JobLaws
    classes: NDArray[np.int16] | None = None
    by_class: tuple[JobLaws, ...] = ()
    _all: tuple[JobLaws, ...] = field(init=False)
    _slots: tuple[tuple[tuple[JobSlot, Law], ...], ...] = field(init=False)  # by class
    _keys: NDArray[np.uint64] | None = field(init=False)  # ``None`` = every client's key is its number

    def __post_init__(self) -> None:
        self._all = (self.laws,) if self.classes is None else self.by_class
        self._slots = tuple(laws.slots for laws in self._all)
        self._keys = None if self.keys == range(len(self.keys)) else np.asarray(self.keys, np.uint64)

    def _class(self, client: int) -> int:
        return 0 if self.classes is None else int(self.classes[client])

    def values(self, client: int, nth: int, retry: int = 0) -> dict[JobSlot, float]:
        """Every law's value for this job, or for a retry of it (from 1): a retry's slots are 16 further on."""
        slots = self._slots[self._class(client)]
        if not slots:
            return {}
        drawn = draws.block(self.seed, Purpose.JOB, self.keys[client], nth, 4 * retry)
        return {slot: law.at(draws.uniform(drawn[slot])) for slot, law in slots}

    def columns(self, clients: NDArray[np.int64], nths: NDArray[np.int64]) -> dict[JobSlot, NDArray[np.float64]]:
        """Every law's values for jobs of these clients, bit for bit those of :meth:`values`."""
        if not any(self._slots):
            return {}
        drawn = draws.blocks(self.seed, Purpose.JOB, self._key(clients), nths, 0)
        if self.classes is None:
            return {slot: law.at(draws.uniforms(drawn[:, slot])) for slot, law in self._slots[0]}
        found: dict[JobSlot, NDArray[np.float64]] = {}
        mine = self.classes[clients]
        for number, slots in enumerate(self._slots):
            those = mine == number
            for slot, law in slots:
                column = found.setdefault(slot, np.ones(len(clients)))
                column[those] = law.at(draws.uniforms(drawn[those, slot]))
        return found

    def _key(self, clients: NDArray[np.int64]) -> NDArray[Any]:
        return clients if self._keys is None else self._keys[clients]

    @property
    def pauses(self) -> bool:
        """Whether devices pause after each epoch."""
        return any(laws.epoch_idle_s is not None for laws in self._all)

    def idle_s(self, client: int, nth: int, epochs: int) -> list[float]:
        """Seconds of the pause after each epoch of this job; empty where devices do not pause."""
        law = self._all[self._class(client)].epoch_idle_s
        if law is None:
            return []
        groups = range(-(-epochs // 4))
        words = [
            word for at in groups for word in draws.block(self.seed, Purpose.EPOCH_IDLE, self.keys[client], nth, at)
        ]
        return [law.at(draws.uniform(word)) for word in words[:epochs]]

    def idle_columns(
        self, clients: NDArray[np.int64], nths: NDArray[np.int64], epochs: NDArray[np.int64]
    ) -> Iterator[NDArray[np.float64]]:
        """Yield the pauses after the first, the second, ... epoch of these jobs; 0 for jobs that have fewer epochs."""
        keys, drawn = self._key(clients), np.zeros((len(clients), 4))
        mine = np.zeros(len(clients), np.int16) if self.classes is None else self.classes[clients]
        for epoch in range(int(epochs.max(initial=0))):
            if epoch % 4 == 0:
                drawn = draws.uniforms(draws.blocks(self.seed, Purpose.EPOCH_IDLE, keys, nths, epoch // 4))
            pause = np.zeros(len(clients))
            for number, laws in enumerate(self._all):
                those = (mine == number) & (epochs > epoch)
                if laws.epoch_idle_s is not None:
                    pause[those] = laws.epoch_idle_s.at(np.ascontiguousarray(drawn[those, epoch % 4]))
            yield pause


class Ahead(NamedTuple):
    """What is left of a client's trips drawn ahead: of its jobs up to ``end`` (not included), if they have ``steps`` steps.

    Packed, so that thousands of trips in stock are no objects for the garbage collector to walk over.
    """

    end: int
    steps: int
    trips: Iterator[tuple[int, ...]]


# Of a trip in stock: the client's job number; download, -1 where it is not sound; wait, -1 where there is none; compute;
# upload.
_STOCK = struct.Struct("<5q")
_OUT_OF_STOCK = (-1, 0, 0, 0, 0)
_NONE_AHEAD = Ahead(0, -1, iter(()))
new: Any = tuple.__new__  # a NamedTuple from all its fields at half the price


@dataclass(slots=True)
class DrawnTrips:
    """Trips whose every leg is known at dispatch, the transfers over shared links left out (implements ``core.Trips``).

    A trip drawn alone costs more than everything else about its job, so trips are drawn ahead, many at once and bit
    for bit the same. In a small population a client's next trips are drawn with those of its neighbours that have
    run out as well. In a large one most clients leave once or twice: there the desk foretells (``foresees``,
    ``expect``) who will leave next, and whoever leaves unforetold is drawn alone. ``usual_steps`` says how many steps
    a client's jobs have unless the strategy asks for others, ``epoch_steps`` how many an epoch has, ``usual_jobs`` how many
    jobs a client will have or so (0 = nobody knows): to draw all of them at once is several times as cheap as a few at a time.
    ``probe_share`` is how long scoring all samples of a client takes, over an epoch of training.
    """

    links: Links
    devices: Devices
    job_draws: JobDraws
    delay_scale: float = 1.0
    usual_steps: Sequence[int] | None = field(default=None, repr=False, compare=False)
    epoch_steps: Sequence[int] | None = field(default=None, repr=False, compare=False)
    probe_share: float = 1.0 / 3.0
    usual_jobs: int = 0
    foresees: bool = field(init=False)
    _answers: Links = field(init=False, repr=False, compare=False)
    _clients: int = field(init=False)
    _pauses: bool = field(init=False)
    _longest: int = field(init=False)
    _shortest: int = field(init=False)
    _ahead: dict[int, Ahead] = field(init=False, default_factory=dict, repr=False)
    # Trips foretold, one for each client: its place among those packed, and the steps of its job. Place 0 holds none.
    _told: dict[int, int] = field(init=False, default_factory=dict, repr=False)
    _stock: bytes = field(init=False, default=_STOCK.pack(*_OUT_OF_STOCK), repr=False)
    _told_steps: Sequence[int] = field(init=False, default=(-1,), repr=False)

    def __post_init__(self) -> None:
        self._clients = len(self.devices.factor)
        self._answers = replace(self.links, size_bytes=ANSWER_BYTES)
        self._pauses = self.job_draws.pauses
        self._longest = min(_LONGEST, _AHEAD // max(1, self._clients))
        self.foresees = self._longest < _SHORTEST
        self._shortest = max(_SHORTEST, min(self.usual_jobs, self._longest))

    @property
    def contended(self) -> bool:
        """Whether transfers share links, which these trips leave out."""
        return self.links.shared_down or self.links.shared_up

    def trip(self, client: int, nth: int, work: Work) -> Trip:
        """Durations of this client's ``nth`` job; raises ``RunError`` naming the client if one is no duration."""
        if self.foresees:
            place = self._told.get(client, 0)
            number, download, wait, compute, upload = _STOCK.unpack_from(self._stock, _STOCK.size * place)
            steps = self._told_steps[place]
        else:
            _, steps, trips = self._ahead.get(client, _NONE_AHEAD)
            number, download, wait, compute, upload = next(trips, _OUT_OF_STOCK)
            if number != nth:
                _, steps, trips = self._draw_ahead(client, nth, work.steps or 0)
                number, download, wait, compute, upload = next(trips)
        if number == nth and steps == work.steps and download >= 0:
            size = self.links.size_bytes
            return new(Trip, (download, None if wait < 0 else wait, compute, upload, size, size, None))
        try:
            return self._trip(client, nth, work.steps or 0)
        except (ValueError, OverflowError) as error:
            raise RunError(f"client {client}, job number {nth} of this client: {error}; check its laws") from error

    def again(self, client: int, nth: int, steps: int, retry: int) -> Trip:
        """Durations of a retry (from 1) of this client's ``nth`` job, drawn anew."""
        try:
            return self._trip(client, nth, steps, retry)
        except (ValueError, OverflowError) as error:
            raise RunError(f"client {client}, job number {nth} of this client: {error}; check its laws") from error

    def probe(self, client: int, nth: int, retry: int = 0) -> Trip:
        """Durations of this client's ``nth`` job, or of a retry of it, where that job is a probe.

        The model goes down as with any job, a number of eight bytes comes up. Scoring all samples takes ``probe_share`` of what
        an epoch of training would, the job's jitter included; a device does not pause after it.
        """
        if not retry:
            next(self._ahead.get(client, _NONE_AHEAD).trips, None)  # the trip drawn ahead for this job is not needed
        epoch = self._epoch_steps(client)
        steps = epoch if self.usual_steps is None else self.usual_steps[client]
        try:
            drawn = self.job_draws.values(client, nth, retry)
            seconds = self.devices.compute_s(client, steps) * drawn.get(JobSlot.COMPUTE_JITTER, 1.0)
            compute = to_ticks(seconds * (self.probe_share * epoch / max(steps, 1)))
            up = self._answers.upload(client, drawn.get(JobSlot.UP_LATENCY_JITTER, 1.0))
            whole = self._trip(client, nth, 0, retry)
            scale = self.delay_scale
            return whole._replace(compute=scaled(compute, scale), upload=scaled(up, scale), bytes_up=ANSWER_BYTES)
        except (ValueError, OverflowError) as error:
            raise RunError(f"client {client}, job number {nth} of this client: {error}; check its laws") from error

    def usual(self, client: int, steps: int) -> int:
        """Ticks of a client's trip with every factor of the job at 1 and no wait: how fast it is, for sorting clients."""
        compute = to_ticks(self.devices.compute_s(client, steps))
        return compute + self.links.usual(client)

    def expect(self, clients: Sequence[int], nths: Sequence[int]) -> None:
        """Draw the trips of jobs that will most likely be asked for next; those foretold before are forgotten."""
        steps = [0 if self.usual_steps is None else self.usual_steps[client] for client in clients]
        packed = self._packed(np.array(clients, np.int64), np.array(nths, np.int64), np.array(steps, np.int64))
        self._stock = _STOCK.pack(*_OUT_OF_STOCK) + packed
        self._told_steps = (-1, *steps)
        self._told = dict(zip(clients, range(1, len(clients) + 1), strict=True))

    def _draw_ahead(self, client: int, nth: int, steps: int) -> Ahead:
        """Draw trips of this client from ``nth`` on, and of those neighbours that have used up three quarters of theirs."""
        start = client - client % _WINDOW
        window = range(start, min(start + _WINDOW, self._clients))
        firsts = {other: first for other in window if (first := self._lacks(other)) is not None} | {client: nth}
        asked = {other: self._steps(other, steps) for other in firsts} | {client: steps}
        since = np.array(list(firsts.values()))
        lengths = np.clip(since, self._shortest, self._longest)
        ends = np.cumsum(lengths)
        nths = np.arange(ends[-1]) + np.repeat(since + lengths - ends, lengths)
        packed = self._packed(np.repeat(list(firsts), lengths), nths, np.repeat(list(asked.values()), lengths))
        upto = (since + lengths).tolist()
        cuts = [0, *(_STOCK.size * ends).tolist()]
        for place, (other, count) in enumerate(asked.items()):
            mine = _STOCK.iter_unpack(packed[cuts[place] : cuts[place + 1]])
            self._ahead[other] = Ahead(upto[place], count, mine)
        return self._ahead[client]

    def _lacks(self, client: int) -> int | None:
        """From which job on a client's trips are to be drawn; ``None`` while over a quarter of what was drawn is left."""
        ahead = self._ahead.get(client)
        if ahead is None:
            return 0
        left = length_hint(ahead.trips)
        return ahead.end - left if 4 * left <= min(ahead.end, self._longest) else None

    def _steps(self, client: int, otherwise: int) -> int:
        """Steps of a client's next jobs: as before, or else as usual, or else as those of who asks now."""
        ahead = self._ahead.get(client)
        if ahead is not None:
            return ahead.steps
        return otherwise if self.usual_steps is None else self.usual_steps[client]

    def pauses(self, client: int, nth: int, steps: int) -> tuple[int, ...]:
        """Ticks that the device pauses after each epoch of this job, part of its compute leg; empty = it does not."""
        if not self._pauses:
            return ()
        epoch = self._epoch_steps(client)
        found = self.job_draws.idle_s(client, nth, -(-steps // epoch))
        return tuple(scaled(to_ticks(seconds), self.delay_scale) for seconds in found)

    def _epoch_steps(self, client: int) -> int:
        return max(1, 1 if self.epoch_steps is None else self.epoch_steps[client])

    def _trip(self, client: int, nth: int, steps: int, retry: int = 0) -> Trip:
        scale, drawn = self.delay_scale, self.job_draws.values(client, nth, retry)
        compute_s = self.devices.compute_s(client, steps) * drawn.get(JobSlot.COMPUTE_JITTER, 1.0)
        wait_s = drawn.get(JobSlot.WAIT)
        return Trip(
            download=scaled(self.links.download(client, drawn.get(JobSlot.DOWN_LATENCY_JITTER, 1.0)), scale),
            wait=None if wait_s is None else scaled(to_ticks(wait_s), scale),
            compute=scaled(to_ticks(compute_s), scale) + sum(self.pauses(client, nth, steps)),
            upload=scaled(self.links.upload(client, drawn.get(JobSlot.UP_LATENCY_JITTER, 1.0)), scale),
            bytes_down=self.links.size_bytes,
            bytes_up=self.links.size_bytes,
        )

    def _packed(self, clients: NDArray[np.int64], nths: NDArray[np.int64], steps: NDArray[np.int64]) -> bytes:
        """The same for many jobs at once, packed as stock."""
        if len(clients) > _ROWS:
            parts = [slice(at, at + _ROWS) for at in range(0, len(clients), _ROWS)]
            return b"".join([self._packed(clients[part], nths[part], steps[part]) for part in parts])
        drawn = self.job_draws.columns(clients, nths)
        compute_s = self.devices.computes_s(clients, steps)
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
        paused = self._paused(clients, nths, steps) if self._pauses else None
        if paused is not None:
            sound &= (paused[0] + whole[2]) < largest
        legs = [_scaled(np.where(sound, leg, 0.0), self.delay_scale) for leg in whole]
        if paused is not None:
            legs[2] += np.where(sound, paused[1], 0)
        stock = np.stack([nths, *legs], axis=1)
        stock[~sound, 1] = -1
        if JobSlot.WAIT not in drawn:
            stock[:, 2] = -1
        return stock.astype("<i8").tobytes()

    def _paused(
        self, clients: NDArray[np.int64], nths: NDArray[np.int64], steps: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """All pauses of these jobs together: ticks as whole floats not scaled, and scaled."""
        epoch = np.array([self._epoch_steps(client) for client in clients.tolist()], np.int64)
        plain, total = np.zeros(len(clients)), np.zeros(len(clients), np.int64)
        for pause in self.job_draws.idle_columns(clients, nths, -(-steps // epoch)):
            ticks = _whole(pause)
            plain += ticks
            total += _scaled(np.where(ticks < _EXACT / max(self.delay_scale, 1.0), ticks, 0.0), self.delay_scale)
        return plain, total


def _whole(seconds: NDArray[Any], factor: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Ticks, as whole floats, not scaled yet."""
    return np.rint((seconds if factor is None else seconds * factor) * TICKS_PER_SECOND)


def _scaled(ticks: NDArray[np.float64], scale: float) -> NDArray[np.int64]:
    whole = ticks.astype(np.int64)
    return whole * int(scale) if scale == int(scale) else np.rint(whole * scale).astype(np.int64)
