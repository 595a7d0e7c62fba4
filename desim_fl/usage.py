"""Who spent how much time on what: seconds by leg and bytes by client, and the staleness of what arrived."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from desim_fl.flight import Flying


class Spent(NamedTuple):
    """Ticks that a job has spent in each leg."""

    download: int = 0
    wait: int = 0
    compute: int = 0
    upload: int = 0


LEGS = Spent._fields


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


def staleness_summary(counts: Counter[int]) -> dict[str, float | int | None]:
    """Mean, median, 99th percentile and maximum of the staleness of arrivals; ``None`` where nothing arrived."""
    arrived, total = sum(counts.values()), sum(value * count for value, count in counts.items())
    return {
        "mean": total / arrived if arrived else None,
        "p50": quantile(counts, 0.5),
        "p99": quantile(counts, 0.99),
        "max": max(counts, default=None),
    }


def spread(arrivals: list[int], clients: int) -> dict[str, float]:
    """Minimum, median, mean and maximum of updates over all clients, those without any included."""
    counts = sorted([0] * (clients - len(arrivals)) + arrivals)
    middle = (counts[(clients - 1) // 2] + counts[clients // 2]) / 2
    return {"min": counts[0], "median": middle, "mean": sum(counts) / clients, "max": counts[-1]}


def time_summary(legs: tuple[int, ...], ticks: int, clients: int, arrived: int) -> dict[str, Any]:
    """Seconds by leg over all clients, and what they mean: utilisation, jobs in flight, updates a second."""
    return {
        "leg_s": dict(zip(LEGS, (leg / 1e6 for leg in legs), strict=True)),
        "utilisation": sum(legs) / (ticks * clients) if ticks else None,
        "mean_in_flight": sum(legs) / ticks if ticks else None,
        "updates_a_second": arrived / (ticks / 1e6) if ticks else None,
    }
