"""Counts of what became of every job, and the conservation laws that they obey at every instant."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NoReturn

from desim_fl.errors import LawError


@dataclass(slots=True)
class Ledger:
    """Running totals of one run.

    dispatched = arrived + in flight + lost + cancelled, and arrived = applied + buffered + rejected. ``aged`` adds
    up, over all publishes, the jobs in flight at that moment; the staleness of everything that left flight plus
    the ages of what is still flying equals it, whatever the durations are.
    """

    dispatched: int = 0
    arrived: int = 0
    applied: int = 0
    buffered: int = 0
    rejected: int = 0
    lost: int = 0
    cancelled: int = 0
    in_flight: int = 0
    published: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    aged: int = 0
    settled_staleness: int = 0
    base_versions: int = 0  # sum of the base versions of the jobs in flight

    def depart(self, base: int, version: int, size_bytes: int) -> None:
        """Count a dispatch from ``base`` while the server is at ``version``."""
        self.dispatched += 1
        self.in_flight += 1
        self.bytes_down += size_bytes
        self.base_versions += base
        self.aged += version - base  # an older start is born with that age

    def arrive(self, base: int, version: int, size_bytes: int) -> None:
        """Count the end of a flight that arrived."""
        self.arrived += 1
        self.bytes_up += size_bytes
        self._land(base, version)

    def lose(self, base: int, version: int) -> None:
        """Count the end of a flight that was lost."""
        self.lost += 1
        self._land(base, version)

    def cancel(self, base: int, version: int) -> None:
        """Count the end of a flight that the strategy ended."""
        self.cancelled += 1
        self._land(base, version)

    def _land(self, base: int, version: int) -> None:
        self.in_flight -= 1
        self.base_versions -= base
        self.settled_staleness += version - base

    def publish(self) -> None:
        """Count a new version: everything buffered is applied, everything flying grows older by one."""
        self.applied += self.buffered
        self.buffered = 0
        self.published += 1
        self.aged += self.in_flight

    def check(self, version: int) -> None:
        """Raise ``LawError`` where a conservation law does not hold; cheap enough for every event."""
        if (
            self.dispatched == self.arrived + self.in_flight + self.lost + self.cancelled
            and self.arrived == self.applied + self.buffered + self.rejected
            and self.published == version
            and self.aged == self.settled_staleness + self.in_flight * version - self.base_versions
        ):
            return
        self._explain(version)

    def _explain(self, version: int) -> NoReturn:
        if self.dispatched != self.arrived + self.in_flight + self.lost + self.cancelled:
            self._violated("dispatched = arrived + in flight + lost + cancelled")
        if self.arrived != self.applied + self.buffered + self.rejected:
            self._violated("arrived = applied + buffered + rejected")
        if self.published != version:
            self._violated("version = publishes")
        self._violated("staleness of landed jobs + ages in flight = jobs in flight summed over publishes")

    def _violated(self, law: str) -> NoReturn:
        raise LawError(f"a conservation law is violated: {law}; counts: {asdict(self)}")
