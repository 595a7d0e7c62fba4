"""The laws that every event log obeys, checked from its rows alone, independently of the engine that wrote them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LEG_AFTER = {
    "downloaded": ("dispatch",),
    "started": ("downloaded",),
    "computed": ("downloaded", "started"),
}
_LANDINGS = ("arrive", "lose", "cancel")
_ON_THE_WAY = ("leave", "come", "halt", "resume", "retry", "overdue")
_STANDS = {"leave": ("away", True), "come": ("away", False), "halt": ("halted", True), "retry": ("halted", True)}
_STANDS["resume"] = ("halted", False)


class Row(NamedTuple):
    """The timeline fields of one row."""

    seq: int
    ticks: int
    kind: str
    client: int
    job: int
    version: int
    staleness: int


@dataclass(slots=True)
class OpenJob:
    """A job in flight: its client, base version and latest leg."""

    client: int
    base: int
    leg: str = "dispatch"
    away: bool = False
    halted: bool = False


@dataclass(slots=True)
class Audit:
    """Follows a log row by row; ``problems`` yields what is wrong with each.

    ``concurrency`` bounds the jobs in flight (``None`` = not a closed system), ``queue`` those of a client.
    """

    concurrency: int | None = None
    queue: int = 1
    seq: int = 0
    ticks: int = 0
    version: int = 0
    open: dict[int, OpenJob] = field(default_factory=dict)
    busy: dict[int, list[int]] = field(default_factory=dict)  # client -> its open jobs
    counts: dict[str, int] = field(default_factory=dict)
    buffered: set[int] = field(default_factory=set)
    applied: int = 0
    aged: int = 0
    settled: int = 0
    bases: int = 0
    overdue: set[int] = field(default_factory=set)  # open jobs whose places may be filled
    given_up: dict[int, set[int]] = field(
        default_factory=dict
    )  # client -> its lost jobs, until it may be sent out again
    last: Row | None = None
    waits: bool | None = None  # whether the latest job to end computing had a started row

    def problems(self, rows: Iterable[Row]) -> Iterator[str]:
        """Yield each contradiction as a sentence that names its row."""
        for row in rows:
            for problem in self._row(row):
                yield f"row {row.seq} ({row.kind}, t = {row.ticks / 1e6} s, job {row.job}, client {row.client}): {problem}"
            self.last = row

    def _row(self, row: Row) -> Iterator[str]:
        if row.seq != self.seq:
            yield f"the sequence number should be {self.seq}"
        if row.ticks < self.ticks:
            yield f"time goes back from {self.ticks / 1e6} s"
        if self.last is not None and self.last.kind == "stop":
            yield "nothing may follow the stop"
        self.seq, self.ticks = row.seq + 1, row.ticks
        self.counts[row.kind] = self.counts.get(row.kind, 0) + 1
        yield from self._version(row)
        if row.kind == "dispatch":
            yield from self._dispatch(row)
        elif row.kind in _LEG_AFTER:
            yield from self._leg(row)
        elif row.kind in _LANDINGS:
            yield from self._landing(row)
        elif row.kind == "reject":
            yield from self._reject(row)
        elif row.kind in _ON_THE_WAY:
            yield from self._on_the_way(row)
        elif row.kind in {"late", "duplicate"}:
            yield from self._afterwards(row)
        yield from self._balance(row)

    def _version(self, row: Row) -> Iterator[str]:
        """Publish rows carry the new version, dispatch rows the one they start from, all others the one in force."""
        if row.kind == "publish":
            self.version += 1
            self.aged += len(self.open)
            self.applied += len(self.buffered)
            self.buffered.clear()
        older = row.kind == "dispatch" and 0 <= row.version <= self.version
        if row.version != self.version and not older:
            yield f"the version should be {self.version}, not {row.version}"
        if row.kind not in {*_LANDINGS, "reject"} and row.staleness != -1:
            yield f"this kind has no staleness, the row says {row.staleness}"

    def _dispatch(self, row: Row) -> Iterator[str]:
        if row.job != self.counts["dispatch"] - 1:
            yield f"job ids count up from 0; expected {self.counts['dispatch'] - 1}"
        mine = self.busy.setdefault(row.client, [])
        if len(mine) >= self.queue:
            yield f"the client still has job {', '.join(map(str, mine))} open"
        self.open[row.job] = OpenJob(row.client, row.version)
        mine.append(row.job)
        if self.queue == 1:
            self.given_up.pop(row.client, None)
        self.bases += row.version
        self.aged += self.version - row.version
        waited_for = len(self.open) - len(self.overdue)
        if self.concurrency is not None and waited_for > self.concurrency:
            yield f"{waited_for} jobs in flight exceed the concurrency {self.concurrency}"

    def _leg(self, row: Row) -> Iterator[str]:
        job = self.open.get(row.job)
        if job is None or job.client != row.client:
            yield "this job of this client is not in flight"
            return
        if job.halted:
            yield "a leg ends while the job stands still"
        if job.leg not in _LEG_AFTER[row.kind]:
            yield f"a leg is out of order: {row.kind} after {job.leg}"
        if row.kind == "computed":
            waited = job.leg == "started"
            if self.waits not in {None, waited}:
                yield "some jobs of this log have a started row, others none"
            self.waits = waited
        job.leg = row.kind

    def _landing(self, row: Row) -> Iterator[str]:
        job = self.open.pop(row.job, None)
        if job is None or job.client != row.client:
            yield "this job of this client is not in flight"
            return
        if row.job in self.busy.get(row.client, ()):
            self.busy[row.client].remove(row.job)
        self.overdue.discard(row.job)
        self.bases -= job.base
        self.settled += row.staleness
        if row.staleness != row.version - job.base:
            yield f"staleness should be {row.version} - {job.base} = {row.version - job.base}, not {row.staleness}"
        if row.kind == "arrive":
            self.buffered.add(row.job)
            if job.halted:
                yield "the job arrived while it stood still"
            if job.leg != "computed":
                yield f"the job arrived after its leg {job.leg}, without computed"
        elif row.kind == "lose":
            self.given_up.setdefault(row.client, set()).add(row.job)

    def _on_the_way(self, row: Row) -> Iterator[str]:
        """A client leaves or comes, a job stands still or goes on, is retried or no longer waited for."""
        job = self.open.get(row.job)
        if job is None or job.client != row.client:
            yield "this job of this client is not in flight"
            return
        if row.kind == "overdue":
            if row.job in self.overdue:
                yield "the job was overdue already"
            self.overdue.add(row.job)
            return
        name, stands = _STANDS[row.kind]
        if getattr(job, name) == stands:
            yield f"the job was {'' if stands else 'not '}{name} already"
        setattr(job, name, stands)

    def _afterwards(self, row: Row) -> Iterator[str]:
        """A job ends that had been given up, or an update is delivered once more."""
        mine = self.given_up.get(row.client, set())
        if row.kind == "late" and row.job not in mine:
            yield "a late end must be that of a job of this client that was lost, before it is sent out again"
        mine.discard(row.job)
        if row.kind == "duplicate" and (row.job in self.open or not 0 <= row.job < self.counts.get("dispatch", 0)):
            yield "a second delivery needs a first one"

    def _reject(self, row: Row) -> Iterator[str]:
        arrival = self.last
        if arrival is None or (arrival.kind, arrival.job, arrival.ticks) != ("arrive", row.job, row.ticks):
            yield "a rejection must follow the arrival of its job"
        elif arrival.staleness != row.staleness:
            yield f"staleness should be that of the arrival, {arrival.staleness}, not {row.staleness}"
        self.buffered.discard(row.job)

    def _balance(self, row: Row) -> Iterator[str]:
        """Check the staleness identity O1 and the conservation of jobs, after every row but a dispatch in hand."""
        ages = self.settled + len(self.open) * self.version - self.bases
        if ages != self.aged:
            yield f"staleness landed and in flight adds up to {ages}, jobs in flight over all publishes to {self.aged}"
            self.aged = ages  # say it once
        landed = sum(self.counts.get(kind, 0) for kind in _LANDINGS)
        if self.counts.get("dispatch", 0) != landed + len(self.open):
            yield "dispatched differs from arrived + lost + cancelled + in flight"
        rejected = self.counts.get("reject", 0)
        if self.counts.get("arrive", 0) != self.applied + len(self.buffered) + rejected:
            yield f"arrived differs from applied + buffered + rejected at {row.kind}"

    def totals(self) -> dict[str, int]:
        """Counts that the manifest's summary must repeat."""
        return {
            "versions": self.version,
            "updates": self.counts.get("arrive", 0),
            "dispatched": self.counts.get("dispatch", 0),
            "applied": self.applied,
            "buffered": len(self.buffered),
            "rejected": self.counts.get("reject", 0),
            "lost": self.counts.get("lose", 0),
            "cancelled": self.counts.get("cancel", 0),
            "in_flight": len(self.open),
            "retries": self.counts.get("retry", 0),
            "overdue": self.counts.get("overdue", 0),
            "late": self.counts.get("late", 0),
            "duplicates": self.counts.get("duplicate", 0),
        }
