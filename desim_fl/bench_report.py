"""Speed of the report of a long run: its page is written by ``desim-fl report`` in processes of their own.

The run is a timeline of many jobs, played without training: the number of event rows is what a report's time depends on. The
clock runs from the start of a process to its end, imports included, as a reader waits for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import polars as pl

from desim_fl import bench, bench_plan, eventlog, tables
from desim_fl.run import execute

IN_FLIGHT = 1_000
_WORDS, _UNITS = ("written in", "of which", "peak memory", "page"), ("s", "CPU s", "MB", "MB")  # of a Writing


class Writing(NamedTuple):
    """One page written: real seconds, processor seconds of all threads, peak memory and size of the page (10^6 bytes)."""

    seconds: float
    cpu_s: float
    peak_megabytes: float
    page_megabytes: float


class Found(NamedTuple):
    """What was measured: ``rows`` of the event log of ``jobs`` jobs, and every page that was written."""

    jobs: int
    rows: int
    pages: list[Writing]


def report(jobs: int, repeats: int) -> Found:
    """Play ``jobs`` jobs of a thousand clients, and write the page of that run ``repeats`` times."""
    scenario = bench_plan.scenario(bench_plan.Case("fedbuff", IN_FLIGHT), jobs)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        execute(scenario, folder, timing_only=True)
        rows = eventlog.read(folder / "events").select(pl.len())
        return Found(jobs, tables.collected(rows).item(), [written(folder) for _ in range(repeats)])


def written(folder: Path) -> Writing:
    """Write the page of a run directory in a process of its own."""
    began = perf_counter()
    code = (
        "import sys; from desim_fl import bench, cli; cli.app(sys.argv[1:], standalone_mode=False); "
        "print(bench.peak_megabytes())"
    )
    command = [sys.executable, "-c", code, "report", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  (this very program)
    assert process.stdout is not None
    told = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)  # it was waited for here
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    peak = float(told.splitlines()[-1])
    return Writing(seconds, used.ru_utime + used.ru_stime, peak, (folder / "report.html").stat().st_size / 1e6)


def table(found: Found) -> str:
    """Figures as lines of text."""
    lines = [f"report of {found.rows:,} event rows ({found.jobs:,} jobs), n = {len(found.pages)}, {bench.machine()}"]
    for words, values, unit in zip(_WORDS, zip(*found.pages, strict=True), _UNITS, strict=True):
        figure = bench.Figure(words, values)
        lines.append(f"  {figure.side:12} {figure.mean:9.2f} {unit} (sd {figure.sd:.2f})")
    return "\n".join(lines)


def result(found: Found) -> dict[str, Any]:
    """Return the same as a JSON object."""
    pages = [page._asdict() for page in found.pages]
    return {"machine": bench.machine(), "jobs": found.jobs, "rows": found.rows, "n": len(pages), "pages": pages}
