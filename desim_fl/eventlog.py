"""The event log: what happened, in order, as rows; and ``timeline_sha256`` over them.

The engine handles one *instant key* at a time (an arrival, an alarm, ...) and writes the rows it causes as one
*block*. The legs of a job are known when it leaves and need no event of their own: they follow from its dispatch and
are placed when a batch of blocks is settled (:mod:`desim_fl.records`). A leg end has the smallest key of its instant,
so it stands after the block that dispatched the job and before the next block at the same or a later tick.

Rows go to a sink in segments of a fixed number of rows, whenever a batch is settled.
"""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl import durable, records
from desim_fl.errors import CheckpointError
from desim_fl.records import (
    ARRIVE,
    DISPATCH,
    FIRST,
    KIND_NAMES,
    LEG,
    LEGS,
    PACK,
    PACK_PUBLISH,
    PACK_ROW,
    PUBLISH,
    ROW,
    SECOND,
    Column,
    Kind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import polars as pl
    from numpy.typing import NDArray

    from desim_fl.core import Trip, Work

SEGMENT_ROWS = 65_536
_LEFT = DISPATCH | FIRST
_BATCH_ROWS = 16_384
ANSWERED = "answered"  # why a probe's job is over
_TEXTS = ("reason", "outcome", "bad_key")


class Segment(NamedTuple):
    """Settled rows: the hashed fields, and beside them columns of numbers and (few) texts by row."""

    rows: NDArray[np.void]
    numbers: dict[str, Column]
    texts: dict[str, dict[int, str]]

    def part(self, part: slice) -> Segment:
        """Some of the rows."""
        first, last, _ = part.indices(len(self.rows))
        numbers = {name: column[part] for name, column in self.numbers.items()}
        texts = {
            name: {row - first: text for row, text in column.items() if first <= row < last}
            for name, column in self.texts.items()
        }
        return Segment(self.rows[part], numbers, texts)

    @staticmethod
    def joined(parts: list[Segment]) -> Segment:
        """Concatenate settled parts in order."""
        numbers = {
            name: Column(*map(np.concatenate, zip(*(part.numbers[name] for part in parts), strict=True)))
            for name in parts[0].numbers
        }
        texts: dict[str, dict[int, str]] = {name: {} for name in _TEXTS}
        first = 0
        for part in parts:
            for name, column in part.texts.items():
                texts[name] |= {first + row: text for row, text in column.items()}
            first += len(part.rows)
        return Segment(np.concatenate([part.rows for part in parts]), numbers, texts)

    def note(self, name: str) -> list[Any]:
        """One column beside the timeline, by row; ``None`` where it says nothing."""
        if name in self.numbers:
            return self.numbers[name].tolist()
        return [self.texts[name].get(row) for row in range(len(self.rows))]


class Tail(NamedTuple):
    """What the log says beyond its segments on the disk: ``seq`` rows are settled, with the hash ``settled``.

    ``parts`` are the digests of the segments, ``pending`` the settled rows that fill no segment yet, ``records`` what
    is not settled.
    """

    parts: tuple[str, ...]
    seq: int
    settled: str
    pending: tuple[Segment, ...]
    records: bytes
    texts: dict[str, dict[int, str]]


class EventLog:
    """Collects records, places leg ends, hashes the timeline and feeds full segments to ``sink``.

    ``tally`` is called with each batch before it is placed.
    """

    __slots__ = (
        "_block",
        "_by_hand",
        "_cuts",
        "_hash",
        "_held",
        "_pending",
        "_pending_rows",
        "_records",
        "_segment_rows",
        "_seq",
        "_sink",
        "_texts",
        "_ticks",
        "_version",
        "tally",
    )

    def __init__(self, sink: Callable[[Segment], None] | None = None, segment_rows: int = SEGMENT_ROWS) -> None:
        self.tally: Callable[[records.Batch], None] = lambda _: None
        self._sink = sink
        self._segment_rows = segment_rows
        self._hash = hashlib.sha256()
        self._seq = self._version = 0  # of the rows settled so far
        self._pending: list[Segment] = []
        self._pending_rows = 0
        self._records: list[bytes] = []
        self._ticks: list[int] = []  # of the blocks of this batch
        self._block = -1
        self._texts: dict[str, dict[int, str]] = {name: {} for name in _TEXTS}  # by number of the record
        self._by_hand: dict[int, list[tuple[int, int, int, int, int]]] = {}  # job -> LEG with its block for a floor
        self._held = np.zeros(0, LEG)  # ends of legs beyond what is settled
        self._cuts: dict[int, int] = {}

    def block(self, tick: int) -> None:
        """Begin the rows of the next instant key; settles a full batch before it."""
        if len(self._records) >= _BATCH_ROWS:
            self.settle(tick)
        self._block += 1
        self._ticks.append(tick)

    # ---- what can happen

    def dispatch(self, client: int, job: int, version: int, nth: int, work: Work, trip: Trip, what: int = LEGS) -> None:
        """A job leaves; ``what = 0`` if the ends of its legs are handed over by hand."""
        download, wait, compute, _, size, _, _ = trip
        wait = -1 if wait is None else wait
        row = PACK(
            what | _LEFT, self._block, client, job, version, -1, nth, work[1], size, download, wait, compute, 0, work[2], 0.0
        )  # fmt: skip
        self._records.append(row)

    def arrive(
        self,
        tick: int,
        client: int,
        job: int,
        version: int,
        staleness: int,
        examples: int,
        steps: int,
        trip: Trip,
        weight: float | None,
        loss: float | None,
    ) -> None:
        """A job's update is here: begins a block at this tick."""
        if len(self._records) >= _BATCH_ROWS:
            self.settle(tick)
        self._block = block = self._block + 1
        self._ticks.append(tick)
        download, wait, compute, upload, _, size, _ = trip
        what = ARRIVE if weight is None else ARRIVE | FIRST
        if loss is not None:
            what |= SECOND
        self._records.append(
            PACK(
                what, block, client, job, version, staleness, examples, steps, size,
                download, wait or 0, compute, upload, weight or 0.0, loss or 0.0,
            )
        )  # fmt: skip

    def publish(self, client: int, job: int, version: int, scale: float | None) -> None:
        """A new version is in force."""
        what, scale = (PUBLISH, 0.0) if scale is None else (PUBLISH | FIRST, scale)
        self._records.append(PACK_PUBLISH(what, self._block, client, job, version, -1, scale))

    def row(
        self,
        kind: Kind,
        client: int,
        job: int,
        version: int,
        staleness: int = -1,
        reason: str | None = None,
        size: int = 0,
    ) -> None:
        """Anything else, with the reason if there is one, and the bytes it moved."""
        self._records.append(PACK_ROW(kind, self._block, client, job, version, staleness, size))
        self.say("reason", reason)

    def say(self, name: str, text: str | None) -> None:
        """Add a text to the row just written; nothing of the timeline changes."""
        if text is not None:
            self._texts[name][len(self._records) - 1] = text

    def answer(self, client: int, job: int, version: int, staleness: int, size: int, loss: float | None) -> None:
        """A probe has told its loss, and with that its job is over."""
        what, loss = (int(Kind.CANCEL), 0.0) if loss is None else (Kind.CANCEL | SECOND, loss)
        row = PACK(what, self._block, client, job, version, staleness, 0, 0, size, 0, 0, 0, 0, 0.0, loss)
        self._records.append(row)
        self.say("reason", ANSWERED)

    def legs(self, client: int, job: int, ends: tuple[tuple[Kind, int], ...]) -> None:
        """Hand over by hand the leg ends (kind, tick) of a job that does not go the usual way."""
        found = [(tick, int(kind), client, job, self._block) for kind, tick in ends]
        self._by_hand.setdefault(job, []).extend(found)

    def cut(self, job: int, now: int | None = None) -> None:
        """Take back the leg ends of a job that lie after the current tick, or after this one, which is in no block."""
        now = self._ticks[-1] if now is None else now
        self._cuts.setdefault(job, now)
        if job in self._by_hand:
            self._by_hand[job] = [leg for leg in self._by_hand[job] if leg[0] <= now]

    # ---- settling

    def settle(self, tick: int) -> None:
        """Give a final place to every row written so far and to leg ends up to ``tick``."""
        batch = records.Batch(self._records, self._ticks, self._version)
        legs = self._legs(batch)
        due = legs["tick"] <= tick
        self._held = legs[~due]
        self._held["floor"] = 0
        texts = self._texts
        self._version = int(batch.versions[-1])
        self._records, self._ticks, self._block = [], [], -1
        self._texts = {name: {} for name in _TEXTS}
        self.tally(batch)
        self._emit(batch, legs[due], texts)

    def _legs(self, batch: records.Batch) -> NDArray[np.void]:
        """All leg ends known by now that have no place yet, by job and kind."""
        legs = records.uncut(np.concatenate([self._held, batch.legs()]), self._cuts)
        if self._by_hand:
            more = np.array([leg for ends in self._by_hand.values() for leg in ends], LEG)
            more["floor"] = batch.end_of_block(more["floor"])
            legs = np.concatenate([legs, more])
        self._by_hand, self._cuts = {}, {}
        return legs

    def _emit(self, batch: records.Batch, legs: NDArray[np.void], texts: dict[str, dict[int, str]]) -> None:
        found = records.placed(batch, legs)
        rows = found.rows
        rows["seq"] = np.arange(self._seq, self._seq + len(rows), dtype=np.uint64)
        self._seq += len(rows)
        self._hash.update(rows.view(np.uint8).data)
        if self._sink is None:
            return
        placed = {name: {int(found.records[at]): text for at, text in column.items()} for name, column in texts.items()}
        self._pending.append(Segment(rows, records.numbers(batch, found), placed))
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

    # ---- holding on

    def tail(self) -> Tail:
        """Return what a resumed run cannot know: the rows in no segment yet, with what training said in them."""
        parts = tuple(getattr(self._sink, "digests", ()))
        texts = {name: dict(column) for name, column in self._texts.items()}
        return Tail(parts, self._seq, self._hash.hexdigest(), tuple(self._pending), b"".join(self._records), texts)

    def take_up(self, tail: Tail) -> None:
        """Go on from there, after the same timeline; raises ``CheckpointError`` if it is another one."""
        mine = self.tail()
        if (mine.seq, mine.settled) != (tail.seq, tail.settled) or not records.same_timeline(
            mine.records, tail.records
        ):
            raise CheckpointError("the timeline that is played now is not the one that was stored")
        size = records.RECORD.itemsize
        self._pending = list(tail.pending)
        self._records = [tail.records[start : start + size] for start in range(0, len(tail.records), size)]
        self._texts = tail.texts


class MemorySink(list[Segment]):
    """A sink for tests and small worlds: keeps every segment."""

    __call__ = list.append

    def tuples(self) -> list[tuple[int, str, int, int, int, int]]:
        """Rows as (ticks, kind, client, job, version, staleness)."""
        fields = ("ticks", "kind", "client", "job", "version", "staleness")
        rows = [zip(*(segment.rows[name].tolist() for name in fields), strict=True) for segment in self]
        return [(t, KIND_NAMES[k], c, j, v, s) for part in rows for t, k, c, j, v, s in part]

    def notes(self, name: str) -> list[Any]:
        """One column beside the timeline, in row order."""
        return [value for segment in self for value in segment.note(name)]


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
    columns: dict[str, Any] = {name: pl.Series(np.ascontiguousarray(rows[name])) for name in ROW.names or ()}
    columns["kind"] = pl.Series(KIND_NAMES, dtype=pl.Enum(KIND_NAMES)).gather(columns["kind"])
    columns["time_s"] = pl.Series(rows["ticks"] / 1e6)
    for name, (values, known) in segment.numbers.items():
        series = pl.Series(values)
        columns[name] = series.zip_with(pl.Series(known), pl.Series([None], dtype=series.dtype))
    for name, texts in segment.texts.items():
        columns[name] = pl.Series([texts.get(row) for row in range(len(rows))] if texts else [None], dtype=pl.String)
        columns[name] = columns[name] if texts else columns[name].new_from_index(0, len(rows))
    return pl.DataFrame([columns[name].cast(dtype).alias(name) for name, dtype in schema().items()])


class ParquetSink:
    """Writes each segment as one zstd Parquet file ``part-00000.parquet``, readable while the run goes on.

    ``present`` are the digests of the first segments where they are written already; they stay as they are, and
    those behind them, which a run that stopped may have left, are removed. ``digests`` are those of all so far.
    Raises ``CheckpointError`` where one of those present is damaged.
    """

    def __init__(self, folder: Path, present: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._present = folder, tuple(present)
        self.digests: list[str] = []
        durable.sweep(folder)
        for path in sorted(folder.glob("part-*.parquet"))[len(self._present) :]:
            durable.remove(path)
        for number, digest in enumerate(self._present):
            _check_part(self._path(number), digest)

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}.parquet"

    def __call__(self, segment: Segment) -> None:
        """Write the next part."""
        number = len(self.digests)
        if number < len(self._present):
            self.digests.append(self._present[number])
            return
        content = io.BytesIO()
        # The fastest level, no statistics: a part is read whole, and half of a plan's time would go here otherwise.
        frame(segment).write_parquet(content, compression="zstd", compression_level=1, statistics=False)
        durable.write(self._path(number), content.getvalue())
        self.digests.append(hashlib.sha256(content.getvalue()).hexdigest())


def _check_part(path: Path, digest: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} is missing ({error}): what was trained before it cannot be told") from error
    if found != digest:
        raise CheckpointError(f"{path} is damaged: its content is not what was written")


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
