"""How long each leg of a job takes, in ticks: drawn once, rounded once, then scaled.

compute = steps x seconds a step x device factor x jitter factor, rounded half to even; the wait likewise; the
network legs come from :mod:`desim_fl.network`. ``delay_scale`` multiplies the rounded ticks, so that whole scales
keep the order of events. A client's constants and a job's draws come from stateless streams keyed by the client's key
and its own job count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from desim_fl import draws
from desim_fl.core import TICKS_PER_SECOND, Trip, Work
from desim_fl.draws import JobSlot, Purpose
from desim_fl.errors import RunError
from desim_fl.ticks import scaled, to_ticks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from desim_fl.durations import Law
    from desim_fl.network import Links

_WARM = 4  # a client's first jobs are drawn one by one, later ones in blocks
_BLOCK_BUDGET = 1 << 18  # job draws held at once, over all clients
_SHORTEST_BLOCK = 64  # below this a block is slower than single draws
_EXACT = 2.0**53  # whole numbers below it are exact as floats


def per_client(law: Law, seed: int, keys: Sequence[int], slot: int) -> tuple[float, ...]:
    """Draw one constant per client from a law."""
    words = draws.words(seed, Purpose.CLIENT, np.asarray(keys, np.uint64), 0, slot)
    return tuple(law.at(draws.uniforms(words)).tolist())


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
    """The drawn values of each job, by slot: one job at a time, or a block of a client's jobs at once."""

    seed: int
    keys: Sequence[int]
    laws: JobLaws
    _slots: tuple[tuple[JobSlot, Law], ...] = field(init=False)
    _length: int = field(init=False)

    def __post_init__(self) -> None:
        self._slots = self.laws.slots
        self._length = min(256, _BLOCK_BUDGET // max(1, len(self.keys)))

    def values(self, client: int, nth: int) -> dict[JobSlot, float]:
        """Every law's value for this job."""
        if not self._slots:
            return {}
        drawn = draws.block(self.seed, Purpose.JOB, self.keys[client], nth, 0)
        return {slot: law.at(draws.uniform(drawn[slot])) for slot, law in self._slots}

    def block_length(self, nth: int) -> int:
        """How many jobs of a client are best drawn at once from its ``nth`` on; 0 = one by one."""
        return 0 if nth < _WARM or self._length < _SHORTEST_BLOCK else self._length

    def columns(self, client: int, first: int, count: int) -> dict[JobSlot, NDArray[np.float64]]:
        """Every law's values for ``count`` jobs of a client, bit for bit those of :meth:`values`."""
        nths = np.arange(first, first + count)
        drawn = draws.uniforms(draws.blocks(self.seed, Purpose.JOB, self.keys[client], nths, 0))
        return {slot: law.at(np.ascontiguousarray(drawn[:, slot])) for slot, law in self._slots}


@dataclass(slots=True)
class DrawnTrips:
    """Trips on links of one's own: every leg is known at dispatch (implements ``core.Trips``)."""

    links: Links
    device_factor: tuple[float, ...]
    job_draws: JobDraws
    seconds_per_step: float
    delay_scale: float = 1.0
    contended: bool = field(init=False, default=False)
    _ready: dict[int, tuple[int, int | None, list[Trip]]] = field(init=False, default_factory=dict, repr=False)

    def trip(self, client: int, nth: int, work: Work) -> Trip:
        """Durations of this client's ``nth`` job; raises ``RunError`` naming the client if one is no duration."""
        first, steps, trips = self._ready.get(client, (0, None, []))
        if steps == work.steps and first <= nth < first + len(trips):
            return trips[nth - first]
        length = self.job_draws.block_length(nth)
        if length and (trips := self._block(client, nth, length, work)):
            self._ready[client] = (nth, work.steps, trips)
            return trips[0]
        try:
            return self._trip(client, work, self.job_draws.values(client, nth))
        except (ValueError, OverflowError) as error:
            raise RunError(f"client {client}, job number {nth} of this client: {error}; check its laws") from error

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

    def _block(self, client: int, first: int, count: int, work: Work) -> list[Trip]:
        """The same trips for ``count`` jobs of a client at once; empty where one of them is no sound trip."""
        drawn = self.job_draws.columns(client, first, count)
        one = np.ones(count)
        compute_s = (work.steps or 0) * self.seconds_per_step * self.device_factor[client]
        latency_s, scale = self.links.latency_s[client], self.delay_scale
        down, up = self.links.transfers(client)
        legs = (
            _ticks(latency_s * drawn.get(JobSlot.DOWN_LATENCY_JITTER, one), down, scale),
            _ticks(drawn.get(JobSlot.WAIT, one), 0, scale),
            _ticks(compute_s * drawn.get(JobSlot.COMPUTE_JITTER, one), 0, scale),
            _ticks(latency_s * drawn.get(JobSlot.UP_LATENCY_JITTER, one), up, scale),
        )
        if any(leg is None for leg in legs):
            return []  # the scalar form says which job it is, when that job is sent out
        download, wait, compute, upload = (leg.tolist() for leg in legs if leg is not None)
        waits = wait if JobSlot.WAIT in drawn else [None] * count
        size = self.links.size_bytes
        return [Trip(d, w, c, u, size, size) for d, w, c, u in zip(download, waits, compute, upload, strict=True)]


def _ticks(seconds: NDArray[np.float64], transfer: int, scale: float) -> NDArray[np.int64] | None:
    """Array form of rounding, adding a transfer and scaling; ``None`` where a value leaves the safe range."""
    whole = np.rint(seconds * TICKS_PER_SECOND)
    if not (np.isfinite(whole).all() and (whole >= 0).all()):
        return None
    largest = (float(whole.max(initial=0.0)) + transfer) * max(scale, 1.0)
    if largest >= _EXACT:
        return None
    ticks = whole.astype(np.int64) + transfer
    return ticks * int(scale) if scale == int(scale) else np.rint(ticks * scale).astype(np.int64)
