"""The client timeline as a trace: opens in the Perfetto UI and in Chrome's tracing page.

Trace event format (JSON): complete events ("X") for the legs of jobs, one track a client; instants ("i") for what the server
does; counters ("C") for jobs in flight and test accuracy. Time stamps are virtual microseconds.
"""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

import polars as pl

from desim_fl.report.reading import read
from desim_fl.report.trips import in_flight, legs, trips

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from desim_fl.report.reading import Run

_SERVER, _CLIENTS = 1, 2
_OF_SERVER = ("publish", "abandon", "alarm", "stop", "reject")


def write(run_dir: Path, out: Path) -> list[Path]:
    """Write ``trace.json``, one event a line."""
    run = read(run_dir)
    path = out / "trace.json"
    with path.open("w", encoding="utf-8") as file:
        _write(file, events(run))
    return [path]


def _write(file: IO[str], found: Iterator[dict[str, Any]]) -> None:
    file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
    for number, event in enumerate(found):
        file.write(",\n" * bool(number) + json.dumps(event, separators=(",", ":"), allow_nan=False))
    file.write("\n]}\n")


def events(run: Run) -> Iterator[dict[str, Any]]:
    """Yield every trace event of a run."""
    jobs = trips(run.events)
    end = int(run.events["ticks"].max() or 0)  # pyright: ignore[reportArgumentType]
    yield from _names(run)
    yield from _legs(jobs, end)
    yield from _instants(run)
    for ticks, flying in in_flight(jobs, end).iter_rows():
        yield {"ph": "C", "name": "jobs in flight", "pid": _SERVER, "ts": ticks, "args": {"jobs": flying}}
    tests = run.metrics.filter((pl.col("split") == "test") & pl.col("accuracy").is_finite())
    for ticks, accuracy in tests.select("ticks", "accuracy").iter_rows():
        yield {"ph": "C", "name": "test accuracy", "pid": _SERVER, "ts": ticks, "args": {"accuracy": accuracy}}


def _names(run: Run) -> Iterator[dict[str, Any]]:
    for pid, name in ((_SERVER, "server"), (_CLIENTS, "clients")):
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
    for client, label in run.clients.select("client", "label").iter_rows():
        yield {"ph": "M", "name": "thread_name", "pid": _CLIENTS, "tid": client, "args": {"name": label}}


def _legs(jobs: pl.DataFrame, end: int) -> Iterator[dict[str, Any]]:
    columns = ("job", "client", "version", "fate", "leg", "start", "stop")
    for job, client, version, fate, leg, start, stop in legs(jobs, end).select(columns).iter_rows():
        yield {
            "ph": "X", "cat": "leg", "name": leg, "pid": _CLIENTS, "tid": client, "ts": start, "dur": stop - start,
            "args": {"job": job, "version": version, "fate": fate},
        }  # fmt: skip


def _instants(run: Run) -> Iterator[dict[str, Any]]:
    rows = run.events.filter(pl.col("kind").is_in(_OF_SERVER))
    for ticks, kind, job, version in rows.select("ticks", "kind", "job", "version").iter_rows():
        args = {"version": version, "job": job}
        yield {"ph": "i", "s": "p", "cat": "server", "name": kind, "pid": _SERVER, "tid": 0, "ts": ticks, "args": args}
