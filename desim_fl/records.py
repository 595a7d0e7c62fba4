"""What the engine says of a run, packed, and how a batch of it becomes rows of the timeline.

Why packed: a run of a million jobs says something about four times a job, so this is where its time goes. Saying it
costs one ``struct`` call a row (an eighth of a microsecond, no objects left behind for the collector); the ends of a
job's legs are not even said, they follow from the trip in its dispatch record. Everything else is done here, a batch
at a time, in columns.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Whole = NDArray[np.int64]
    Mask = NDArray[np.bool_]


class Kind(IntEnum):
    """Kinds of rows. Never renumbered; later kinds are appended."""

    DISPATCH = 0
    DOWNLOADED = 1
    STARTED = 2
    COMPUTED = 3
    ARRIVE = 4
    REJECT = 5
    PUBLISH = 6
    LOSE = 7
    CANCEL = 8
    ABANDON = 9
    LEAVE = 10
    COME = 11
    ALARM = 12
    STOP = 13
    HALT = 14  # a transfer stands still: the server is down
    RESUME = 15  # it goes on, or a retry begins
    RETRY = 16  # an attempt failed; the job goes on after the back-off
    OVERDUE = 17  # the server no longer waits for a job, but would still take it
    LATE = 18  # a job that the server had given up ends at its client
    DUPLICATE = 19  # an update is delivered once more


# Rows besides arrivals whose bytes went up, and besides dispatches whose bytes go down: of a retry, or once more.
OTHERS_DOWN = (Kind.RETRY, Kind.HALT, Kind.LEAVE)
OTHERS_UP = (Kind.LOSE, Kind.CANCEL, Kind.LATE, Kind.DUPLICATE)
KIND_NAMES = tuple(kind.name.lower() for kind in Kind)
DISPATCH, ARRIVE, PUBLISH = int(Kind.DISPATCH), int(Kind.ARRIVE), int(Kind.PUBLISH)  # enum members are slower to mix

# One timeline row as it is hashed: packed, little-endian.
ROW = np.dtype(
    [
        ("seq", "<u8"),
        ("ticks", "<i8"),
        ("kind", "u1"),
        ("client", "<i8"),
        ("job", "<i8"),
        ("version", "<i8"),
        ("staleness", "<i8"),
    ]
)

# One record: ``what`` is the kind and the flags below; ``block`` counts the blocks of the batch from 0; ``count`` is
# nth in a dispatch, examples in an arrival; the legs (``wait`` -1 where there is none) are those of the trip, upload
# in arrivals only; ``first`` is lr, weight or scale, ``second`` the loss.
PACK = struct.Struct("<13q2d").pack
PACK_PUBLISH = struct.Struct("<6q56xd8x").pack  # the same without what is 0 in it
PACK_ROW = struct.Struct("<6q16xq48x").pack
_WHOLE = [
    "what",
    "block",
    "client",
    "job",
    "version",
    "staleness",
    "count",
    "steps",
    "bytes",
    "download",
    "wait",
    "compute",
    "upload",
]
RECORD = np.dtype([*((name, "<i8") for name in _WHOLE), ("first", "<f8"), ("second", "<f8")])
FIRST, SECOND, LEGS = 1 << 8, 1 << 9, 1 << 10  # has a first number, a second one; legs are to be placed
_KIND = 0xFF

# The end of a leg: it stands nowhere above record ``floor`` of its batch (0 = anywhere).
LEG = np.dtype([("tick", "<i8"), ("kind", "<i8"), ("client", "<i8"), ("job", "<i8"), ("floor", "<i8")])


class Column(NamedTuple):
    """Numbers of which some are missing."""

    values: NDArray[Any]
    known: Mask

    def __getitem__(self, part: slice) -> Column:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Column(self.values[part], self.known[part])

    def tolist(self) -> list[Any]:
        """Return Python numbers, ``None`` where one is missing."""
        return [
            value if known else None for value, known in zip(self.values.tolist(), self.known.tolist(), strict=True)
        ]


class Batch:
    """Records between two settlements, in columns; with the tick of each, where its block ends, and counts by kind."""

    def __init__(self, packed: Sequence[bytes], ticks: Sequence[int], version: int) -> None:
        names = RECORD.names or ()
        fields = np.frombuffer(b"".join(packed), "<i8").reshape(-1, len(names))  # each has eight bytes
        columns = np.ascontiguousarray(fields.T)  # once, for those who look at one field after another
        self.records = {name: column.view(RECORD[name]) for name, column in zip(names, columns, strict=True)}
        block = self.records["block"]
        self.kind: Whole = self.records["what"] & _KIND
        self.counts: list[int] = np.bincount(self.kind, minlength=len(Kind)).tolist()
        self.ticks: Whole = np.array(ticks, np.int64)[block]
        self._ends = np.cumsum(np.bincount(block, minlength=len(ticks)))
        published = self.kind == PUBLISH
        above = np.concatenate([[0], np.cumsum(published)])  # publishes above each place
        self.versions: Whole = np.concatenate([[version], self.records["version"][published]])[above]

    def has(self, kinds: Iterable[Kind]) -> bool:
        """Whether there is a record of one of these kinds."""
        return any(self.counts[kind] for kind in kinds)

    def end_of_block(self, block: Whole) -> Whole:
        """Return how many records stand up to the end of these blocks."""
        return self._ends[block]

    def legs(self) -> NDArray[np.void]:
        """Ends of the legs of the jobs dispatched here, ordered by job and kind."""
        sent = np.flatnonzero(self.records["what"] & LEGS)
        trips = {name: self.records[name][sent] for name in ("block", "client", "job", "download", "wait", "compute")}
        waits = trips["wait"] >= 0
        downloaded = self.ticks[sent] + trips["download"]
        started = downloaded + np.where(waits, trips["wait"], 0)
        legs = np.zeros((len(sent), 3), LEG)
        for place, tick in enumerate((downloaded, started, started + trips["compute"])):
            legs["tick"][:, place] = tick
        legs["kind"] = (Kind.DOWNLOADED, Kind.STARTED, Kind.COMPUTED)
        legs["client"], legs["job"] = trips["client"][:, None], trips["job"][:, None]
        legs["floor"] = self._ends[trips["block"]][:, None]
        if waits.all():
            return legs.ravel()
        return legs[:, ::2].ravel() if not waits.any() else legs.ravel()[_beside(waits).ravel()]


def _beside(waits: Mask) -> Mask:
    """Which of a job's three leg ends there are: the second only after a wait."""
    always = np.ones(len(waits), np.bool_)
    return np.stack([always, waits, always], axis=1)


def uncut(legs: NDArray[np.void], cuts: Mapping[int, int]) -> NDArray[np.void]:
    """Take away the ends of each job in ``cuts`` after the tick given there."""
    if not cuts:
        return legs
    jobs = np.array(sorted(cuts), np.int64)
    ticks = np.array([cuts[job] for job in jobs.tolist()], np.int64)
    found = np.minimum(np.searchsorted(jobs, legs["job"]), len(jobs) - 1)
    return legs[(jobs[found] != legs["job"]) | (legs["tick"] <= ticks[found])]


def same_timeline(one: bytes, other: bytes) -> bool:
    """Whether two lists of records say the same, what training said apart."""
    if len(one) != len(other):
        return False
    left, right = (np.frombuffer(packed, RECORD) for packed in (one, other))
    same = [(left[name] == right[name]).all() for name in _WHOLE if name != "what"]
    return all(same) and bool(((left["what"] ^ right["what"]) & ~(FIRST | SECOND) == 0).all())


class Placed(NamedTuple):
    """A batch in timeline order: its rows (``seq`` left open), and where each record went."""

    rows: NDArray[np.void]
    records: Whole


def placed(batch: Batch, legs: NDArray[np.void]) -> Placed:
    """Put leg ends between the records.

    A leg end has the smallest key of its instant: it stands in front of the first record of its tick, but never above
    its ``floor``, the end of the block that sent the job out. Among themselves they go by tick, place, job and kind.
    """
    place = np.maximum(np.searchsorted(batch.ticks, legs["tick"]), legs["floor"])
    order = _order(legs, place)
    legs, place = legs[order], place[order]
    numbers = np.arange(len(batch.kind))
    of_records = numbers + np.searchsorted(place, numbers, side="right")
    of_legs = np.arange(len(legs)) + place
    rows = np.empty(len(legs) + len(numbers), ROW)
    records = batch.records
    for name, ours, theirs in (
        ("ticks", batch.ticks, legs["tick"]),
        ("kind", batch.kind, legs["kind"]),
        ("client", records["client"], legs["client"]),
        ("job", records["job"], legs["job"]),
        ("version", records["version"], batch.versions[place]),
        ("staleness", records["staleness"], -1),
    ):
        rows[name][of_records], rows[name][of_legs] = ours, theirs
    return Placed(rows, of_records)


def _order(legs: NDArray[np.void], place: Whole) -> Whole:
    """Sort by tick, place and job, stably; the last two matter only where ticks are equal, which is rare."""
    ticks = legs["tick"]
    order = np.argsort(ticks)
    ordered = ticks[order]
    if (ordered[1:] == ordered[:-1]).any():
        order = np.lexsort((legs["job"], place, ticks))
    return order


def numbers(batch: Batch, found: Placed) -> dict[str, Column]:
    """Make the columns of numbers beside the timeline: what records say that no row is hashed with."""
    records, what = batch.records, batch.records["what"]
    sent, came, published = (batch.kind == kind for kind in (DISPATCH, ARRIVE, PUBLISH))
    told = sent | came
    first, second = (what & FIRST) != 0, (what & SECOND) != 0
    sources: dict[str, tuple[Mask, Any]] = {
        "nth": (sent, records["count"]),
        "steps": (told, records["steps"]),
        "examples": (came, records["count"]),
        "loss": (second, records["second"]),
        "lr": (sent & first, records["first"]),
        "weight": (came & first, records["first"]),
        "scale": (published & first, records["first"]),
        "bytes": (told | (records["bytes"] > 0), records["bytes"]),
        "wait_s": (sent & (records["wait"] >= 0), records["wait"] / 1e6),
    }
    return {name: _column(len(found.rows), found.records, *source) for name, source in sources.items()}


def _column(rows: int, places: Whole, known: Mask, values: NDArray[Any]) -> Column:
    chosen = places[known]
    column = Column(np.zeros(rows, values.dtype), np.zeros(rows, np.bool_))
    column.values[chosen] = values[known]
    column.known[chosen] = True
    return column
