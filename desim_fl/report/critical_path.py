"""The critical path of a publish: the chain of jobs and waits that led to it, from the start of time.

Walked backwards through the event log. A publish stands behind the event that caused it in its instant: an arrival, a
loss, an alarm. A job's event leads back over that job's legs to its dispatch, and a dispatch again stands behind what
caused it: the arrival or loss that freed the place, the publish of a round. Where nothing in its instant caused it, the time back to
the server's last action is a wait: for an alarm (a deadline), or for a client to be there. So the steps touch each other, and
they sum to the instant of the publish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from desim_fl.core import TICKS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Sequence

DEADLINE, NOBODY = "deadline", "nobody there"
LEGS = ("download", "wait", "compute", "upload", "paused", "late", DEADLINE, NOBODY)
SERVER = "server"  # in the column ``group``: time in which no job was awaited
EVERYBODY = "all clients"
_KIND = pl.col("kind")
_OF_JOBS = ("arrive", "lose", "overdue", "late")  # that let the server act, each at the end of a stretch of a job
_CAUSES = (*_OF_JOBS, "alarm", "come")
_ACTS = (*_CAUSES, "publish", "abandon")
_SPANS = ("job", "client", "leg", "start", "stop")
_MARKS = ("dispatch", "downloaded", "started", "computed", "halt", "resume", "retry", "leave", "come", *_OF_JOBS)


class Stretch(NamedTuple):
    """A part of the path: a job (or -1: the server waits, ``why``) from row ``first`` to row ``last`` of the log."""

    job: int
    first: int
    last: int
    why: str = ""


class Path(NamedTuple):
    """The path to the publish of ``version`` at ``end`` (ticks): its ``spans``, each a leg of a job or a wait of the server.

    ``spans`` has ``job, client`` (-1 where the server waits), ``leg, start, stop`` (ticks), ordered in time, without gaps from 0.
    """

    version: int
    end: int
    spans: pl.DataFrame


def critical_path(events: pl.DataFrame, version: int | None = None, *, pauses: bool = False) -> Path | None:
    """Walk back from the publish of a version (default: the last); ``None`` where it was never published.

    ``events`` are all rows of the log in order. ``pauses``: jobs stand still while their client is gone.
    """
    rows = events.select("ticks", "kind", "client", "job", "version").with_row_index("row")
    published = rows.filter(_KIND == "publish")
    if version is not None:
        published = published.filter(pl.col("version") == version)
    if published.is_empty():
        return None
    target, end, found = published.select("row", "ticks", "version").row(-1)
    spans = _spans(rows, _walk(rows, target), pauses=pauses)
    assert spans["start"].to_list() == [0, *spans["stop"].to_list()][: spans.height]
    assert (spans["stop"][-1] if spans.height else 0) == end
    return Path(found, end, spans)


def _walk(rows: pl.DataFrame, target: int) -> list[Stretch]:
    """Return the stretches of the path, the last first, each found in constant time."""
    index = pl.col("row")
    known = rows.select(
        "ticks",
        "kind",
        "job",
        cause=pl.when(_KIND.is_in(_CAUSES)).then(index).forward_fill(),
        before=pl.when(_KIND.is_in(_ACTS)).then(index).forward_fill().shift(1),
        first=pl.when(pl.col("ticks") != pl.col("ticks").shift(1, fill_value=-1)).then(index).forward_fill(),
    ).join(_sent(rows), on="job", how="left", maintain_order="left")
    columns: list[Any] = known.get_columns()
    ticks, kinds, jobs, cause, before, first, sent = columns
    found: list[Stretch] = []
    row: Any = target
    while row >= 0:
        by = cause[row]
        told = None if by is None or ticks[by] != ticks[row] else kinds[by]
        if by is not None and told in _OF_JOBS and sent[by] is not None:
            row = sent[by]
            found.append(Stretch(jobs[by], row, by))
            continue
        act, last = before[first[row]], row  # the last act before this instant
        row = -1 if act is None else act
        found.append(Stretch(-1, row, last, DEADLINE if told == "alarm" else NOBODY))
    return found


def _sent(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the row in which each job was dispatched: ``job, sent``."""
    first = rows.filter(_KIND == "dispatch").unique("job", keep="first", maintain_order=True)
    return first.select("job", sent="row")


def _spans(rows: pl.DataFrame, stretches: Sequence[Stretch], *, pauses: bool) -> pl.DataFrame:
    """Return the legs of the jobs on the path and the waits between, in time; what has no length is left out."""
    path = pl.DataFrame(
        stretches, schema={"job": pl.Int64, "first": pl.Int64, "last": pl.Int64, "why": pl.String}, orient="row"
    )
    ticks = rows["ticks"]
    waits = path.filter(pl.col("job") < 0).select(
        "job", pl.lit(-1, pl.Int64).alias("client"), pl.col("why").alias("leg"),
        start=pl.when(pl.col("first") < 0).then(0).otherwise(ticks.gather(path.filter(pl.col("job") < 0)["first"].clip(0))),
        stop=ticks.gather(path.filter(pl.col("job") < 0)["last"]),
    )  # fmt: skip
    spans = pl.concat([_legs(rows, path.filter(pl.col("job") >= 0), pauses=pauses), waits.select(list(_SPANS))])
    return spans.filter(pl.col("stop") > pl.col("start")).sort("start")


def _legs(rows: pl.DataFrame, path: pl.DataFrame, *, pauses: bool) -> pl.DataFrame:
    """Return what lies between two rows of a job, named after what the job does there: ``job, client, leg, start, stop``."""
    mine = rows.filter(_KIND.is_in(_MARKS)).join(path.select("job", "first", "last"), on="job", how="inner")
    index = pl.col("row").cast(pl.Int64)
    mine = mine.filter(index >= pl.col("first"), index <= pl.col("last")).sort("job", "row")
    waiting = (_KIND == "started").any().over("job") | ~(_KIND == "computed").any().over("job") & pl.lit(
        bool((rows["kind"] == "started").any())
    )
    leg = (
        pl.when(_KIND == "dispatch").then(pl.lit("download"))
        .when(_KIND == "downloaded").then(pl.when(waiting).then(pl.lit("wait")).otherwise(pl.lit("compute")))
        .when(_KIND == "started").then(pl.lit("compute"))
        .when(_KIND == "computed").then(pl.lit("upload"))
        .when(_KIND == "lose").then(pl.lit("late"))
    )  # fmt: skip
    halted = pl.when(_KIND.is_in(["halt", "retry"])).then(True).when(_KIND == "resume").then(False)  # noqa: FBT003
    away = pl.when(_KIND == "leave").then(pauses).when(_KIND == "come").then(False)  # noqa: FBT003
    stands = (halted.forward_fill().over("job") | away.forward_fill().over("job")).fill_null(False)  # noqa: FBT003
    named = mine.select(
        "job",
        "client",
        leg=leg.forward_fill().over("job"),
        stands=stands,
        start="ticks",
        stop=pl.col("ticks").shift(-1).over("job"),
    ).filter(pl.col("stop").is_not_null())
    paused = pl.col("stands") & (pl.col("leg") != "late")
    return named.with_columns(leg=pl.when(paused).then(pl.lit("paused")).otherwise("leg")).select(list(_SPANS))


def by_leg(path: Path, groups: pl.DataFrame) -> pl.DataFrame:
    """Sum a path up: ``group, leg, rank, seconds, share, spans``, in the order of groups and legs.

    ``groups`` has ``client, group``; a wait of the server belongs to none and stands last, under ``server``.
    """
    order = [*groups["group"].unique(maintain_order=True).to_list(), SERVER]
    ranks = {leg: rank for rank, leg in enumerate(LEGS)}
    ticks = (pl.col("stop") - pl.col("start")).sum()
    summed = (
        path.spans.join(groups, on="client", how="left")
        .with_columns(pl.col("group").fill_null(SERVER))
        .group_by("group", "leg")
        .agg(ticks=ticks, spans=pl.len().cast(pl.Int64))
    )
    places = {group: at for at, group in enumerate(order)}
    return (
        summed.with_columns(
            place=pl.col("group").replace_strict(places, return_dtype=pl.Int64),
            rank=pl.col("leg").replace_strict(ranks, return_dtype=pl.Int64),
            seconds=pl.col("ticks") / TICKS_PER_SECOND,
            share=pl.col("ticks") / path.end,
        )
        .sort("place", "rank")
        .select("group", "leg", "rank", "seconds", "share", "spans")
    )


def by_client(path: Path, most: int = 20) -> pl.DataFrame:
    """Return the clients that held the path up longest: ``client, seconds, share, jobs``, the longest first."""
    ticks = (pl.col("stop") - pl.col("start")).sum()
    mine = path.spans.filter(pl.col("client") >= 0)
    summed = mine.group_by("client").agg(ticks=ticks, jobs=pl.col("job").n_unique().cast(pl.Int64))
    longest = summed.sort("ticks", "client", descending=[True, False]).head(most)
    return longest.select(
        "client", "jobs", seconds=pl.col("ticks") / TICKS_PER_SECOND, share=pl.col("ticks") / path.end
    )
