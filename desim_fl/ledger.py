"""Counts of what became of every job, and the conservation laws that they obey at every instant."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from desim_fl.errors import LawError
from desim_fl.records import OTHERS_DOWN, OTHERS_UP, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from desim_fl.records import Batch


@dataclass(slots=True)
class Ledger:
    """Running totals of one run.

    dispatched = arrived + in flight + lost + cancelled, and arrived = applied + buffered + rejected: the engine counts
    these, and has them checked after every event. The rest is added up from the event log, a batch of records at a
    time: ``aged`` is the number of jobs in flight, summed over all publishes; the staleness of everything that left
    flight plus the ages of what is still flying equals it, whatever the durations are.
    """

    dispatched: int = 0
    arrived: int = 0
    applied: int = 0
    buffered: int = 0
    rejected: int = 0
    lost: int = 0
    cancelled: int = 0
    retries: int = 0
    overdue: int = 0
    late: int = 0
    duplicates: int = 0
    published: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    aged: int = 0
    settled_staleness: int = 0
    base_versions: int = 0  # sum of the base versions of the jobs in flight
    logged_in_flight: int = 0
    lost_in_a_row: int = 0  # since the latest arrival
    arrived_before: int = 0  # when that was counted

    @property
    def in_flight(self) -> int:
        """Jobs that left and have not ended; after every event as many as the engine holds."""
        return self.dispatched - self.arrived - self.lost - self.cancelled

    def lose(self) -> None:
        """Count a loss, and those in a row."""
        self.lost += 1
        self.lost_in_a_row = 1 if self.arrived > self.arrived_before else self.lost_in_a_row + 1
        self.arrived_before = self.arrived

    def publish(self) -> None:
        """Count a new version: everything buffered is applied."""
        self.applied += self.buffered
        self.buffered = 0
        self.published += 1

    def check(self, version: int, in_flight: int) -> None:
        """Raise ``LawError`` where a law does not hold; ``in_flight`` are held by the engine; cheap enough for every event."""
        if self.dispatched != self.arrived + in_flight + self.lost + self.cancelled:
            self._violated("dispatched = arrived + in flight + lost + cancelled")
        if self.arrived != self.applied + self.buffered + self.rejected:
            self._violated("arrived = applied + buffered + rejected")
        if self.published != version:
            self._violated("version = publishes")

    def tally(self, batch: Batch) -> None:
        """Add what the log says, and raise ``LawError`` where its versions and staleness contradict each other."""
        kind, version, staleness = batch.kind, batch.records["version"], batch.records["staleness"]
        sent, came = kind == Kind.DISPATCH, kind == Kind.ARRIVE
        landed = came
        if batch.has((Kind.LOSE, Kind.CANCEL)):
            landed = came | (kind == Kind.LOSE) | (kind == Kind.CANCEL)
        flying = self.logged_in_flight + np.cumsum(sent.astype(np.int64) - landed)
        born = batch.versions[:-1] - version  # an older start is born with that age
        self.aged += int(flying[kind == Kind.PUBLISH].sum() + born[sent].sum())
        self.settled_staleness += int(staleness[landed].sum())
        self.base_versions += int(version[sent].sum() - (version - staleness)[landed].sum())
        self.logged_in_flight += int(sent.sum() - landed.sum())
        down = sent | np.isin(kind, OTHERS_DOWN) if batch.has(OTHERS_DOWN) else sent
        self.bytes_down += int(batch.records["bytes"][down].sum())
        up = came | np.isin(kind, OTHERS_UP) if batch.has(OTHERS_UP) else came
        self.bytes_up += int(batch.records["bytes"][up].sum())
        for name, counted in (
            ("retries", Kind.RETRY),
            ("overdue", Kind.OVERDUE),
            ("late", Kind.LATE),
            ("duplicates", Kind.DUPLICATE),
        ):
            setattr(self, name, getattr(self, name) + batch.counts[counted])
        ages = self.settled_staleness + self.logged_in_flight * int(batch.versions[-1]) - self.base_versions
        if self.aged != ages:
            self._violated("staleness of landed jobs + ages in flight = jobs in flight summed over publishes")

    def close(self, bases: Iterable[int]) -> None:
        """Raise ``LawError`` unless what the log says leaves the jobs that are still in flight with these base versions."""
        if sum(bases) != self.base_versions:
            self._violated("staleness = version at the landing - base version")

    def _violated(self, law: str) -> NoReturn:
        counts = {**asdict(self), "in_flight": self.in_flight}
        raise LawError(f"a conservation law is violated: {law}; counts: {counts}")
