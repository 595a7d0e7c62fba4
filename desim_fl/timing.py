"""How long each leg of a job takes, in ticks: drawn once, rounded once, then scaled.

compute = steps x seconds a step x device factor x jitter factor (rounded half to even), the wait and the latencies
likewise; a transfer takes ``ceil(bits * 10**6 / whole bits a second)`` in integers. ``delay_scale`` multiplies the
rounded ticks, so that whole scales keep the order of events. A client's constants and a job's draws come from
stateless streams keyed by the client's key and its own job count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from desim_fl import draws
from desim_fl.core import TICKS_PER_SECOND, Trip, Work
from desim_fl.draws import JobSlot, Purpose
from desim_fl.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.durations import Law

_MOST_TICKS = 1 << 62  # 146,000 years; keeps every sum inside a signed 64-bit integer
_WARM = 4  # a client's first jobs are drawn one by one, later ones in blocks
_BLOCK_BUDGET = 1 << 18  # job draws held at once, over all clients


def to_ticks(seconds: float) -> int:
    """Seconds as whole microseconds, rounded half to even; raises ``ValueError`` for what is no duration."""
    if not 0.0 <= seconds < _MOST_TICKS / TICKS_PER_SECOND:
        raise ValueError(f"a duration of {seconds} s is not a finite number of seconds from 0 to 146,000 years")
    return round(seconds * TICKS_PER_SECOND)


def scaled(ticks: int, scale: float) -> int:
    """Whole scales multiply exactly; others round half to even once more."""
    return ticks * int(scale) if scale == int(scale) else round(ticks * scale)


def transfer_ticks(size_bytes: int, mbps: float | None) -> int:
    """Ticks to move ``size_bytes`` at ``mbps`` megabits a second; 0 where the rate is unlimited (``None``)."""
    if mbps is None:
        return 0
    bits_a_second = max(1, round(mbps * 1e6))
    return -(-size_bytes * 8 * TICKS_PER_SECOND // bits_a_second)


@dataclass(frozen=True, slots=True)
class ClientConstants:
    """What is drawn once per client, by client number: factors, rates in Mbit/s (None = unlimited), latency in s."""

    device_factor: tuple[float, ...]
    down_mbps: tuple[float, ...] | None
    up_mbps: tuple[float, ...] | None
    latency_s: tuple[float, ...]


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
        pairs = (
            (JobSlot.COMPUTE_JITTER, self.jitter_factor),
            (JobSlot.WAIT, self.wait_s),
            (JobSlot.DOWN_LATENCY_JITTER, self.latency_jitter_factor),
            (JobSlot.UP_LATENCY_JITTER, self.latency_jitter_factor),
        )
        return tuple((slot, law) for slot, law in pairs if law is not None)


@dataclass(slots=True)
class JobDraws:
    """The drawn values of each job, by slot; remembers blocks of draws, never what was asked."""

    seed: int
    keys: Sequence[int]
    laws: JobLaws
    _slots: tuple[tuple[JobSlot, Law], ...] = field(init=False)
    _length: int = field(init=False)
    _blocks: dict[int, tuple[int, list[list[float]]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = self.laws.slots
        self._length = min(256, _BLOCK_BUDGET // max(1, len(self.keys)))

    def values(self, client: int, nth: int) -> dict[JobSlot, float]:
        """Every law's value for this job."""
        if not self._slots:
            return {}
        if nth < _WARM or self._length < 64:  # noqa: PLR2004  (below this a block is slower than single draws)
            drawn = draws.block(self.seed, Purpose.JOB, self.keys[client], nth, 0)
            return {slot: law.at(draws.uniform(drawn[slot])) for slot, law in self._slots}
        first, columns = self._blocks.get(client, (-1, []))
        if not first <= nth < first + self._length or first < 0:
            first, columns = nth, self._draw(client, nth)
            self._blocks[client] = (first, columns)
        return {slot: column[nth - first] for (slot, _), column in zip(self._slots, columns, strict=True)}

    def _draw(self, client: int, first: int) -> list[list[float]]:
        nths = np.arange(first, first + self._length)
        drawn = draws.uniforms(draws.blocks(self.seed, Purpose.JOB, self.keys[client], nths, 0))
        return [law.at(np.ascontiguousarray(drawn[:, slot])).tolist() for slot, law in self._slots]


@dataclass(slots=True)
class DrawnTrips:
    """Trips on links of one's own: every leg is known at dispatch (implements ``core.Trips``).

    ``size_bytes`` is the model's real size in each direction.
    """

    constants: ClientConstants
    job_draws: JobDraws
    seconds_per_step: float
    size_bytes: int
    delay_scale: float = 1.0
    contended: bool = field(init=False, default=False)

    def trip(self, client: int, nth: int, work: Work) -> Trip:
        """Durations of this client's ``nth`` job; raises ``RunError`` naming the client if one is no duration."""
        drawn = self.job_draws.values(client, nth)
        try:
            return self._trip(client, work, drawn)
        except (ValueError, OverflowError) as error:
            raise RunError(f"client {client}, job number {nth} of this client: {error}; check its laws") from error

    def _trip(self, client: int, work: Work, drawn: dict[JobSlot, float]) -> Trip:
        fixed, scale = self.constants, self.delay_scale
        compute_s = (work.steps or 0) * self.seconds_per_step * fixed.device_factor[client]
        wait_s = drawn.get(JobSlot.WAIT)
        down, up = fixed.down_mbps, fixed.up_mbps
        latency_s = fixed.latency_s[client]
        down_leg = self._leg(latency_s * drawn.get(JobSlot.DOWN_LATENCY_JITTER, 1.0), down and down[client])
        up_leg = self._leg(latency_s * drawn.get(JobSlot.UP_LATENCY_JITTER, 1.0), up and up[client])
        return Trip(
            download=down_leg,
            wait=None if wait_s is None else _checked(scaled(to_ticks(wait_s), scale)),
            compute=_checked(scaled(to_ticks(compute_s * drawn.get(JobSlot.COMPUTE_JITTER, 1.0)), scale)),
            upload=up_leg,
            bytes_down=self.size_bytes,
            bytes_up=self.size_bytes,
        )

    def _leg(self, latency_s: float, mbps: float | None) -> int:
        return _checked(scaled(to_ticks(latency_s) + transfer_ticks(self.size_bytes, mbps), self.delay_scale))


def _checked(ticks: int) -> int:
    if not 0 <= ticks < _MOST_TICKS:
        raise ValueError(f"a leg of {ticks} microseconds is out of range")
    return ticks


def is_tick_count(value: Any) -> bool:
    """Whether a value can be a leg: a whole number of ticks in range (floats, NaN and negatives are not)."""
    return type(value) is int and 0 <= value < _MOST_TICKS


def seconds(ticks: int) -> float:
    """Ticks as seconds, for reports."""
    return ticks / TICKS_PER_SECOND


def finite(value: float) -> bool:
    """Whether a number is neither infinite nor NaN."""
    return math.isfinite(value)
