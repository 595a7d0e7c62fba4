"""The event log: what happened, in order, as rows; and ``timeline_sha256`` over them.

The engine handles one *instant key* at a time (an arrival, an alarm, ...) and writes the rows it causes as one
*block*. The legs of a job are known when it leaves and need no event of their own: they are handed over once and
placed when a batch of blocks is settled. A leg end has the smallest key of its instant, so it stands after the
block that dispatched the job and before the next block at the same or a later tick.

Rows go to a sink in segments of a fixed number of rows, whenever a batch is settled.
"""

from __future__ import annotations

import hashlib
import itertools
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import polars as pl
    from numpy.typing import NDArray

SEGMENT_ROWS = 65_536
_BATCH_ROWS = 8_192


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


KIND_NAMES = tuple(kind.name.lower() for kind in Kind)


class Note(NamedTuple):
    """What a row says beyond the timeline; ``None`` = nothing. Never part of the timeline hash."""

    nth: int | None = None
    steps: int | None = None
    examples: int | None = None
    loss: float | None = None
    lr: float | None = None
    weight: float | None = None
    scale: float | None = None
    bytes: int | None = None
    wait_s: float | None = None
    reason: str | None = None
    outcome: str | None = None
    bad_key: str | None = None


NO_NOTE = Note()

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


class Segment(NamedTuple):
    """Settled rows: the hashed fields, and one list for each field of ``Note``."""

    rows: NDArray[np.void]
    notes: dict[str, list[Any]]

    def part(self, part: slice) -> Segment:
        """Some of the rows."""
        return Segment(self.rows[part], {name: column[part] for name, column in self.notes.items()})

    @staticmethod
    def joined(parts: list[Segment]) -> Segment:
        """Concatenate settled parts in order."""
        notes = {name: [value for part in parts for value in part.notes[name]] for name in Note._fields}
        return Segment(np.concatenate([part.rows for part in parts]), notes)


class EventLog:
    """Collects rows, places leg ends, hashes the timeline and feeds full segments to ``sink``."""

    def __init__(self, sink: Callable[[Segment], None] | None = None, segment_rows: int = SEGMENT_ROWS) -> None:
        self._sink = sink
        self._segment_rows = segment_rows
        self._hash = hashlib.sha256()
        self._seq = 0
        self._pending: list[Segment] = []
        self._pending_rows = 0
        self._first_block = 0
        self._blocks: list[tuple[int, int]] = []  # tick, version after the block
        self._rows: list[tuple[int, int, int, int, int, int]] = []  # block, kind, client, job, version, staleness
        self._notes: list[Note] = []
        self._legs: dict[int, list[tuple[int, int, int, int, int]]] = {}  # job -> born, tick, kind, client, job
        self.version = 0

    def block(self, tick: int) -> None:
        """Begin the rows of the next instant key; settles a full batch before it."""
        if len(self._rows) >= _BATCH_ROWS:
            self.settle(tick)
        self._close_block()
        self._blocks.append((tick, self.version))

    def _close_block(self) -> None:
        if self._blocks:
            self._blocks[-1] = (self._blocks[-1][0], self.version)

    def row(self, kind: Kind, client: int, job: int, version: int, staleness: int = -1, note: Note = NO_NOTE) -> None:
        """Write a row into the current block."""
        block = self._first_block + len(self._blocks) - 1
        self._rows.append((block, kind, client, job, version, staleness))
        self._notes.append(note)

    def amend(self, **more: Any) -> None:
        """Add to the note of the row just written; nothing of the timeline changes."""
        self._notes[-1] = self._notes[-1]._replace(**more)

    def legs(self, client: int, job: int, ends: tuple[tuple[Kind, int], ...]) -> None:
        """Hand over the leg ends (kind, tick) of a job that leaves, or is cut short, in the current block."""
        born = self._first_block + len(self._blocks) - 1
        found = [(born, tick, int(kind), client, job) for kind, tick in ends]
        self._legs[job] = self._legs[job] + found if job in self._legs else found

    def cut(self, job: int) -> None:
        """Take back the leg ends of a job that lie after the current tick."""
        now = self._blocks[-1][0]
        self._legs[job] = [leg for leg in self._legs.get(job, []) if leg[1] <= now]

    def settle(self, tick: int) -> None:
        """Give a final place to every row written so far and to leg ends up to ``tick``."""
        self._close_block()
        legs = [leg for ends in self._legs.values() for leg in ends if leg[1] <= tick]
        later = {job: [leg for leg in ends if leg[1] > tick] for job, ends in self._legs.items()}
        self._legs = {job: ends for job, ends in later.items() if ends}
        if self._rows or legs:
            self._emit(self._placed(legs))
        self._first_block += len(self._blocks)
        self._blocks, self._rows, self._notes = [], [], []

    def _placed(self, legs: list[tuple[int, int, int, int, int]]) -> Segment:
        """Rows and leg ends of this batch in timeline order."""
        ticks = np.array([tick for tick, _ in self._blocks], np.int64)
        versions = np.array([version for _, version in self._blocks], np.int64)
        row, leg = _table(self._rows, 6), _table(legs, 5)
        row_block = row[:, 0] - self._first_block
        leg_block = np.maximum(leg[:, 0] - self._first_block, np.searchsorted(ticks, leg[:, 1], side="left") - 1)
        table = np.zeros(len(row) + len(leg), ROW)
        split = len(row)
        table["ticks"][:split], table["ticks"][split:] = ticks[row_block], leg[:, 1]
        table["kind"][:split], table["kind"][split:] = row[:, 1], leg[:, 2]
        table["client"][:split], table["client"][split:] = row[:, 2], leg[:, 3]
        table["job"][:split], table["job"][split:] = row[:, 3], leg[:, 4]
        table["version"][:split], table["version"][split:] = (
            row[:, 4],
            versions[leg_block],
        )  # the one after the block it follows
        table["staleness"][:split], table["staleness"][split:] = row[:, 5], -1
        order = np.lexsort(_place(row_block, leg_block, leg))
        table = table[order]
        notes = [*self._notes, *([NO_NOTE] * len(leg))]
        columns = zip(*(notes[index] for index in order.tolist()), strict=True)
        return Segment(table, dict(zip(Note._fields, map(list, columns), strict=True)))

    def _emit(self, segment: Segment) -> None:
        rows = segment.rows
        rows["seq"] = np.arange(self._seq, self._seq + len(rows), dtype=np.uint64)
        self._seq += len(rows)
        self._hash.update(rows.tobytes())
        if self._sink is None:
            return
        self._pending.append(segment)
        self._pending_rows += len(rows)
        while self._pending_rows >= self._segment_rows:
            whole = Segment.joined(self._pending)
            self._sink(whole.part(slice(self._segment_rows)))
            self._pending = [whole.part(slice(self._segment_rows, None))]
            self._pending_rows -= self._segment_rows

    def finish(self, tick: int) -> str:
        """Settle up to and including ``tick``, hand over the last segment and return ``timeline_sha256``."""
        self.settle(tick)
        if self._sink is not None and self._pending_rows:
            self._sink(Segment.joined(self._pending))
            self._pending, self._pending_rows = [], 0
        return self._hash.hexdigest()


def _table(rows: list[Any], width: int) -> NDArray[np.int64]:
    """Equal tuples of integers as an array; much faster than ``np.array`` on a list of tuples."""
    return np.fromiter(itertools.chain.from_iterable(rows), np.int64, len(rows) * width).reshape(-1, width)


def _place(
    row_block: NDArray[np.int64], leg_block: NDArray[np.int64], leg: NDArray[np.int64]
) -> tuple[NDArray[np.int64], ...]:
    """Sort keys, least significant first: block, rows before leg ends, tick, job, leg; rows keep their order."""
    rows, legs = len(row_block), len(leg_block)
    nothing = np.zeros(rows, np.int64)
    return (
        np.concatenate([np.arange(rows), leg[:, 2]]),
        np.concatenate([nothing, leg[:, 4]]),
        np.concatenate([nothing, leg[:, 1]]),
        np.concatenate([nothing, np.ones(legs, np.int64)]),
        np.concatenate([row_block, leg_block]),
    )


class MemorySink(list[Segment]):
    """A sink for tests and small worlds: keeps every segment."""

    __call__ = list.append

    def tuples(self) -> list[tuple[int, str, int, int, int, int]]:
        """Rows as (ticks, kind, client, job, version, staleness)."""
        fields = ("ticks", "kind", "client", "job", "version", "staleness")
        rows = [zip(*(segment.rows[name].tolist() for name in fields), strict=True) for segment in self]
        return [(t, KIND_NAMES[k], c, j, v, s) for part in rows for t, k, c, j, v, s in part]

    def notes(self, name: str) -> list[Any]:
        """One column of notes, in row order."""
        return [value for segment in self for value in segment.notes[name]]


def schema() -> dict[str, Any]:
    """The polars schema of the table ``events``."""
    import polars as pl  # noqa: PLC0415  (plan and tests of the engine need no polars)

    whole, real, text = pl.Int64(), pl.Float64(), pl.String()
    return {
        "seq": pl.UInt64(),
        "ticks": whole,
        "time_s": real,
        "kind": pl.Enum(KIND_NAMES),
        "client": whole,
        "job": whole,
        "version": whole,
        "staleness": whole,
        **dict.fromkeys(("nth", "steps", "examples"), whole),
        **dict.fromkeys(("loss", "lr", "weight", "scale"), real),
        "bytes": whole,
        "wait_s": real,
        **dict.fromkeys(("reason", "outcome", "bad_key"), text),
    }


def frame(segment: Segment) -> pl.DataFrame:
    """A segment as a polars frame with the explicit schema."""
    import polars as pl  # noqa: PLC0415

    rows = segment.rows
    columns: dict[str, Any] = {name: np.ascontiguousarray(rows[name]) for name in ROW.names or ()}
    columns["kind"] = pl.Series(KIND_NAMES, dtype=pl.Enum(KIND_NAMES)).gather(columns["kind"])
    columns["time_s"] = rows["ticks"] / 1e6
    columns |= segment.notes
    return pl.DataFrame([pl.Series(name, columns[name], dtype=dtype) for name, dtype in schema().items()])


class ParquetSink:
    """Writes each segment as one zstd Parquet file ``part-00000.parquet``, readable while the run goes on."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._next = 0

    def __call__(self, segment: Segment) -> None:
        """Write the next part."""
        path = self._folder / f"part-{self._next:05d}.parquet"
        aside = path.with_suffix(".partial")
        frame(segment).write_parquet(aside, compression="zstd", statistics=True)
        aside.replace(path)
        self._next += 1


def read(folder: Path) -> pl.LazyFrame:
    """The table ``events`` of a run directory, in order."""
    import polars as pl  # noqa: PLC0415

    return pl.scan_parquet(sorted(folder.glob("part-*.parquet")))


def timeline_sha256(table: pl.DataFrame) -> str:
    """Recompute the timeline hash from the table ``events``."""
    import polars as pl  # noqa: PLC0415

    rows = np.zeros(len(table), ROW)
    for name in ROW.names or ():
        column = table[name].to_physical().cast(pl.UInt8) if name == "kind" else table[name]
        rows[name] = column.to_numpy()
    return hashlib.sha256(rows.tobytes()).hexdigest()
