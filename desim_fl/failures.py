"""What goes wrong with jobs: crashes, lost uploads, duplicates, retries, timeouts, and the server's outages.

Accidents are drawn once a job and retry, from slots of their own (:class:`desim_fl.draws.FailureSlot`), so they do not
depend on what else happens. A crash lies at a drawn share of its leg, in ticks at work, at least one after its
beginning and one before its end: a leg of one tick or none does not crash.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from desim_fl import draws, elementary
from desim_fl.availability import NEVER, Window
from desim_fl.core import TICKS_PER_SECOND
from desim_fl.course import Rules
from desim_fl.draws import FailureSlot, Purpose
from desim_fl.ticks import to_ticks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.availability import Availability
    from desim_fl.durations import Law

Fuse = int | None
_LONGEST_S = 1e12


class Accidents(NamedTuple):
    """What happens in one attempt: see :class:`desim_fl.course.Attempt`."""

    fuses: tuple[Fuse, Fuse, Fuse, Fuse] = (None, None, None, None)
    hazard: Fuse = None
    unheard: bool = False


@dataclass(frozen=True, slots=True)
class Failures:
    """The laws of accidents; ``keys`` name the clients' streams.

    ``crash_download``, ``crash_compute`` and ``crash_upload`` are the chances that an attempt crashes in that leg;
    ``crash_hazard_per_s`` is the rate of crashes a second at work, in any leg; ``upload_loss`` the chance that a whole upload
    arrives nowhere; ``duplicate`` the chance that an update is delivered once more, ``duplicate_delay_s`` later. A crashed
    attempt is retried up to ``max_retries`` times, after ``backoff_s`` times ``backoff_factor`` to the power of the
    retries before. ``timeout`` (ticks) is when the server no longer waits for a job; ``late`` says whether its update
    is then ignored or accepted. ``scale`` is the whole number that legs are multiplied with: shares of a leg keep to it.
    """

    seed: int
    keys: Sequence[int]
    crash_download: float = 0.0
    crash_compute: float = 0.0
    crash_upload: float = 0.0
    crash_hazard_per_s: float = 0.0
    upload_loss: float = 0.0
    duplicate: float = 0.0
    duplicate_delay_s: Law | None = None
    max_retries: int = 0
    backoff_s: Law | None = None
    backoff_factor: float = 2.0
    timeout: int | None = None
    late: str = "ignore"
    scale: int = 1

    def accidents(self, client: int, nth: int, retry: int, legs: tuple[int, int, int, int]) -> Accidents:
        """What happens to a client's ``nth`` job in this retry (0 = the first attempt), whose legs take these ticks."""
        point = self._draw(client, nth, retry, FailureSlot.CRASH_POINT)
        chances = (self.crash_download, 0.0, self.crash_compute, self.crash_upload)
        slots = (FailureSlot.CRASH_DOWNLOAD, None, FailureSlot.CRASH_COMPUTE, FailureSlot.CRASH_UPLOAD)
        fuses = tuple(
            (1 + int(point * (ticks // self.scale - 1))) * self.scale
            if ticks and slot is not None and chance and self._draw(client, nth, retry, slot) < chance
            else None
            for ticks, chance, slot in zip(legs, chances, slots, strict=True)
        )
        unheard = self.upload_loss > 0 and self._draw(client, nth, retry, FailureSlot.UPLOAD_LOSS) < self.upload_loss
        return Accidents(fuses, self._hazard(client, nth, retry), unheard)  # pyright: ignore[reportArgumentType]

    def backoff(self, client: int, nth: int, retry: int) -> int:
        """Ticks before this retry (from 1)."""
        if self.backoff_s is None:
            return 0
        drawn = float(self.backoff_s.at(self._draw(client, nth, retry, FailureSlot.BACKOFF)))
        for _ in range(retry - 1):
            drawn *= self.backoff_factor
        return to_ticks(min(drawn, _LONGEST_S))

    def copies(self, client: int, nth: int) -> int | None:
        """Ticks between an arrival and its second delivery; ``None`` = it is delivered once."""
        if not self.duplicate or self._draw(client, nth, 0, FailureSlot.DUPLICATE) >= self.duplicate:
            return None
        if self.duplicate_delay_s is None:
            return 0
        return to_ticks(float(self.duplicate_delay_s.at(self._draw(client, nth, 0, FailureSlot.DUPLICATE_DELAY))))

    def _hazard(self, client: int, nth: int, retry: int) -> Fuse:
        if not self.crash_hazard_per_s:
            return None
        u = self._draw(client, nth, retry, FailureSlot.HAZARD)
        ticks = -elementary.log(1.0 - u) / self.crash_hazard_per_s * TICKS_PER_SECOND
        return max(1, round(min(ticks, float(NEVER))))

    def _draw(self, client: int, nth: int, retry: int, slot: int) -> float:
        return draws.uniform(draws.word(self.seed, Purpose.FAILURE, self.keys[client], nth, slot + 16 * retry))


@dataclass(slots=True)
class Outages:
    """When the server is down: the windows of one client that stands for it, found again by their ends."""

    source: Availability
    _ends: list[int] = field(init=False)
    _windows: list[Window] = field(init=False)

    def __post_init__(self) -> None:
        first = self.source.first(np.array([0]))
        self._windows = [Window(*(int(column[0]) for column in first))]
        self._ends = [self._windows[0].end]

    def since(self, tick: int) -> tuple[int, int]:
        """Start and end of the first outage that ends after a tick; (NEVER, NEVER) = none."""
        while self._ends[-1] <= tick < NEVER and self._ends[-1] < NEVER:
            self._windows.append(self.source.after(0, self._windows[-1]))
            self._ends.append(self._windows[-1].end)
        place = bisect_right(self._ends, tick)
        return self._windows[place][:2] if place < len(self._windows) else (NEVER, NEVER)


@dataclass(frozen=True, slots=True)
class Perils:
    """What may come between a job and its arrival, and what it means (``rules``)."""

    rules: Rules = Rules()  # noqa: RUF009  (immutable)
    outages: Outages | None = None
    failures: Failures | None = None
