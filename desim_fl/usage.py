"""Who spent how much time on what: seconds by leg and bytes by client, and the staleness of what arrived."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl import records
from desim_fl.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from desim_fl.flight import Flying
    from desim_fl.records import Batch


class Spent(NamedTuple):
    """Ticks that a job has spent in each leg."""

    download: int = 0
    wait: int = 0
    compute: int = 0
    upload: int = 0


LEGS = Spent._fields


class Account(NamedTuple):
    """One client's totals; ticks by leg, of finished, lost, cancelled and still running jobs.

    ``paused`` are ticks in which an open job stood still (its client away, the server down, a back-off); ``late`` those
    that a client went on with a job after the server had given it up.
    """

    dispatches: int = 0
    arrivals: int = 0
    steps: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    paused: int = 0
    late: int = 0
    download: int = 0
    wait: int = 0
    compute: int = 0
    upload: int = 0

    @property
    def legs(self) -> Spent:
        """Ticks by leg."""
        return Spent(*self[-len(LEGS) :])


class Usage:
    """Totals by client; clients that never took part have no account.

    Dispatches and arrivals are counted a batch of the log's records at a time; jobs that end otherwise, one by one.
    """

    def __init__(self, clients: int) -> None:
        self.staleness: Counter[int] = Counter()
        self._number = np.full(clients, -1, np.int32)  # of the account; a whole account for everybody would not fit
        self._clients = np.zeros(0, np.int64)  # by number
        self._totals = np.zeros((len(Account._fields), 64), np.int64)  # field by number
        self._ended: list[tuple[int, ...]] = []  # client, legs and ticks paused, not added yet
        self._late: list[tuple[int, int]] = []  # client and ticks, likewise

    def tally(self, batch: Batch) -> None:
        """Count the dispatches and arrivals of a batch of the log."""
        told = batch.records
        sent, came = (np.flatnonzero(batch.kind == kind) for kind in (Kind.DISPATCH, Kind.ARRIVE))
        self._open(told["client"][sent])
        self._add(told["client"][sent], {"dispatches": 1, "bytes_down": told["bytes"][sent]})
        amounts = {name: told[name][came] for name in ("steps", *LEGS)}
        self._add(told["client"][came], {"arrivals": 1, "bytes_up": told["bytes"][came], **amounts})
        for name, kinds in (("bytes_down", records.OTHERS_DOWN), ("bytes_up", records.OTHERS_UP)):
            if batch.has(kinds):
                also = np.isin(batch.kind, kinds)
                self._add(told["client"][also], {name: told["bytes"][also]})
        values, counts = np.unique(told["staleness"][came], return_counts=True)
        self.staleness.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        self._fold()

    def spend(self, flying: Flying, now: int) -> None:
        """Count what a job that did not arrive has spent up to ``now``."""
        self._ended.append((flying.job.client, *flying.spent(now)))

    def pause(self, client: int, ticks: int) -> None:
        """Count the ticks in which a job that arrived stood still; its legs stand in its arrival."""
        self._ended.append((client, 0, 0, 0, 0, ticks))

    def overrun(self, client: int, ticks: int) -> None:
        """Count the ticks that a client went on with a job after the server had given it up."""
        self._late.append((client, ticks))

    def close(self, flights: Iterable[Flying], now: int) -> None:
        """Add what jobs still in flight have spent so far."""
        for flying in flights:
            self.spend(flying, now)

    def _fold(self) -> None:
        """Add what was counted one by one."""
        if self._ended:
            clients, *legs = np.array(self._ended, np.int64).T
            self._ended = []
            self._open(clients)
            self._add(clients, dict(zip((*LEGS, "paused"), legs, strict=True)))
        if self._late:
            clients, ticks = np.array(self._late, np.int64).T
            self._late = []
            self._add(clients, {"late": ticks})

    def _open(self, clients: NDArray[np.int64]) -> None:
        """Give an account to those who have none."""
        new = np.unique(clients[self._number[clients] < 0])
        first = len(self._clients)
        self._number[new] = np.arange(first, first + len(new))
        self._clients = np.concatenate([self._clients, new])
        lacking = len(self._clients) - self._totals.shape[1]
        if lacking > 0:
            self._totals = np.pad(self._totals, ((0, 0), (0, max(lacking, first))))

    def _add(self, clients: NDArray[np.int64], amounts: Mapping[str, Any]) -> None:
        numbers = self._number[clients]
        for name, amount in amounts.items():
            np.add.at(self._totals[Account._fields.index(name)], numbers, amount)

    @property
    def accounts(self) -> dict[int, Account]:
        """Everybody who took part, by client number."""
        self._fold()
        rows = self._totals[:, : len(self._clients)].T.tolist()
        return dict(sorted(zip(self._clients.tolist(), map(Account._make, rows), strict=True)))

    def columns(self) -> dict[str, NDArray[np.int64]]:
        """Each total of all clients, those who took no part included, in the order of their numbers."""
        self._fold()
        took_part = self._number >= 0
        columns: dict[str, NDArray[np.int64]] = {}
        for name, totals in zip(Account._fields, self._totals, strict=True):
            columns[name] = np.zeros(len(self._number), np.int64)
            columns[name][took_part] = totals[self._number[took_part]]
        return columns

    @property
    def arrivals(self) -> list[int]:
        """Arrivals of each client that took part."""
        self._fold()
        return self._totals[Account._fields.index("arrivals"), : len(self._clients)].tolist()

    def sum_of(self, name: str) -> int:
        """One total over all clients."""
        self._fold()
        return sum(self._totals[Account._fields.index(name)].tolist())

    def total(self) -> Spent:
        """Ticks of all clients by leg."""
        self._fold()
        return Spent(*(sum(totals) for totals in self._totals[-len(LEGS) :].tolist()))  # may exceed 64 bits

    def times(self, ticks: int, arrived: int, *, queues: bool) -> dict[str, Any]:
        """What :func:`time_summary` says of all clients, over a run of so many ticks."""
        paused, late, clients = self.sum_of("paused"), self.sum_of("late"), len(self._number)
        return time_summary(self.total(), paused, late, ticks, clients, arrived, queues=queues)


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


def time_summary(
    legs: tuple[int, ...], paused: int, late: int, ticks: int, clients: int, arrived: int, *, queues: bool = False
) -> dict[str, Any]:
    """Seconds by leg over all clients, and what they mean: utilisation, jobs in flight, updates a second.

    Utilisation is the share of the clients' time with a leg of a job under way. Where a client has a queue (``queues``), legs
    overlap, and a job that waits for its turn keeps nobody busy: there it is the share in which clients compute, one job at a
    time, as queueing theory has it.
    """
    busy = Spent(*legs).compute if queues else sum(legs)
    return {
        "leg_s": dict(zip(LEGS, (leg / 1e6 for leg in legs), strict=True)),
        "utilisation": busy / (ticks * clients) if ticks else None,
        "paused_s": paused / 1e6,
        "late_s": late / 1e6,
        "mean_in_flight": (sum(legs) + paused) / ticks if ticks else None,
        "updates_a_second": arrived / (ticks / 1e6) if ticks else None,
    }
