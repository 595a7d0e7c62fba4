"""Who spent how much time on what: seconds by leg and bytes by client, and the staleness of what arrived."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from desim_fl.flight import Flying


class Spent(NamedTuple):
    """Ticks that a job has spent in each leg."""

    download: int = 0
    wait: int = 0
    compute: int = 0
    upload: int = 0


def spent(flying: Flying, now: int) -> Spent:
    """Split the ticks since dispatch among the legs, in their order."""
    left, parts = now - flying.left, []
    for leg in (flying.trip.download, flying.trip.wait or 0, flying.trip.compute, flying.trip.upload):
        parts.append(min(leg, left))
        left -= parts[-1]
    return Spent(*parts)


@dataclass(slots=True)
class Account:
    """One client's totals; ticks by leg, of finished, lost, cancelled and still running jobs."""

    dispatches: int = 0
    arrivals: int = 0
    steps: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    download: int = 0
    wait: int = 0
    compute: int = 0
    upload: int = 0

    def add(self, legs: tuple[int, int, int, int]) -> None:
        """Add a job's ticks, leg by leg."""
        download, wait, compute, upload = legs
        self.download += download
        self.wait += wait
        self.compute += compute
        self.upload += upload

    @property
    def legs(self) -> Spent:
        """Ticks by leg."""
        return Spent(self.download, self.wait, self.compute, self.upload)


@dataclass(slots=True)
class Usage:
    """Totals by client; clients that never took part have no account."""

    accounts: dict[int, Account] = field(default_factory=dict)
    staleness: Counter[int] = field(default_factory=Counter)

    def depart(self, flying: Flying) -> None:
        """Open an account at a client's first dispatch and count the download."""
        account = self.accounts.get(flying.job.client)
        if account is None:
            account = self.accounts[flying.job.client] = Account()
        account.dispatches += 1
        account.bytes_down += flying.trip.bytes_down

    def land(self, flying: Flying, now: int, staleness: int | None) -> None:
        """Count the end of a flight; ``staleness`` is ``None`` unless the job arrived."""
        account = self.accounts[flying.job.client]
        if staleness is None:
            account.add(spent(flying, now))
        else:
            trip = flying.trip
            account.add((trip.download, trip.wait or 0, trip.compute, trip.upload))
            account.arrivals += 1
            account.steps += flying.steps
            account.bytes_up += flying.trip.bytes_up
            self.staleness[staleness] += 1

    def close(self, flights: Iterable[Flying], now: int) -> None:
        """Add what jobs still in flight have spent so far."""
        for flying in flights:
            self.accounts[flying.job.client].add(spent(flying, now))

    def total(self) -> Spent:
        """Ticks of all clients by leg."""
        legs = [account.legs for account in self.accounts.values()]
        return Spent(*(sum(column) for column in zip(*legs, strict=True))) if legs else Spent()


def quantile(counts: Counter[int], share: float) -> int | None:
    """Smallest value that at least ``share`` of the counted values do not exceed; ``None`` where nothing is counted."""
    total, seen = sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= share * total:
            return value
    return None
