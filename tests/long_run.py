"""Long runs: nothing grows with their length: ``PYTHONPATH=.:tests python tests/long_run.py [updates] [plan|scalar|network]``.

Plays so many updates (100,000) with checkpoints, a log on the disk and a report, and then the first twentieth of them
again in the same process. Prints what memory was on the way, the rows of the segments, the size of the page, and whether
the second run is the one that a fresh process gives. Exit code 1 if memory grew, a segment is longer than it may be, the
page is over 5 MB, or the runs differ.

Memory is looked at a hundred times, two ways: Python's own blocks, and resident memory after the C library has been asked
to give back what it keeps (``malloc_trim``, where there is one): how much it keeps of what was freed depends on the order
of large and small requests, not on the run. Both rise and fall with the rows that gather until a part of the log is
written, so the least of the third fifth of the way (the log's first parts, and with them what is loaded late, are behind
it) is compared with the least of the last fifth. The run may hold one row an evaluation more, which is what
``MOST_GROWTH`` allows for.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from desim_fl import checkpoint, eventlog
from desim_fl.progress import share_done
from desim_fl.run import execute
from desim_fl.scenario import load

HEAD = """
[clients]
count = 500
seconds_per_step = 0.1
device_factor = { law = "lognormal", median = 1.0, sigma = 1.0 }
jitter_factor = { law = "exponential", mean = 1.0 }
[network]
latency_s = 0.05
down_mbps = 1.0
[strategy]
name = "fedbuff"
buffer_size = 4
[run]
seed = 5
concurrency = 40
max_updates = 1
eval_every_versions = 25
[checkpoint]
every_versions = 1000
[executor]
name = "inline"
"""
LEARNING = {
    "scalar": '[data]\nname = "quadratic"\nexamples_per_client = 20\n[model]\nname = "scalar"\nstart = 4.0\n',
    "network": '[data]\nname = "blobs"\nexamples = 1500\ntest_examples = 20\nclasses = 2\nfeatures = 3\n'
    '[model]\nname = "mlp"\nhidden = [4]\n[training]\nbatch_size = 4\n',
}  # fmt: skip
LOOKS, FIFTHS, TWENTIETH = 100, 5, 20
MOST_GROWTH, PAGE_BYTES = 1.05, 5_000_000


class Long(NamedTuple):
    """What was measured: at every look MiB resident and Python's blocks, share done at every fifth; rows by segment, bytes of page and checkpoint, hashes."""

    megabytes: list[float]
    blocks: list[int]
    shares: list[float]
    segments: list[int]
    page_bytes: int
    checkpoint_bytes: int
    hashes: dict[str, Any]


def trim() -> None:
    """Have the C library give back what it keeps of freed memory, where it can."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if give_back is not None:
        give_back(0)


def resident() -> float:
    """Resident memory of this process in MiB, without what is only kept."""
    gc.collect()
    trim()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def long(folder: Path, updates: int, kind: str = "scalar", looks: int = LOOKS) -> Long:
    """Play so many updates into a new run directory, and look at it on the way and at the end."""
    scenario = folder.with_suffix(".toml")
    scenario.write_text(LEARNING["scalar" if kind == "plan" else kind] + HEAD)
    loaded = load(scenario, [f"run.max_updates={updates}"])
    megabytes, blocks, shares = [], [], []

    def watch(session: Any) -> None:
        done = session.engine.ledger.arrived
        if done % max(1, updates // looks) == 0:
            megabytes.append(round(resident(), 1))
            blocks.append(sys.getallocatedblocks())
        if done % max(1, updates // FIFTHS) == 0:
            shares.append(round(share_done(session), 4))

    found = execute(loaded, folder, watch=watch, timing_only=kind == "plan")
    rows = [pl.read_parquet(path, columns=["seq"]).height for path in sorted((folder / "events").iterdir())]
    kept = checkpoint.files(folder / "checkpoints")
    hashes = {name: found[name] for name in ("timeline_sha256", "model_sha256", "partition_sha256")}
    size = (folder / "report.html").stat().st_size
    return Long(megabytes, blocks, shares, rows, size, kept[-1].stat().st_size if kept else 0, hashes)


def fresh(space: Path, updates: int, kind: str) -> dict[str, Any]:
    """The hashes that a new process gives."""
    code = (
        "import json, sys, pathlib, long_run as l;"
        "print(json.dumps(l.long(pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], 5).hashes))"
    )
    command = [sys.executable, "-c", code, str(space / "fresh"), str(updates), kind]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    told = subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": paths})
    return json.loads(told.stdout.splitlines()[-1])


def split(seen: list[Any]) -> list[list[Any]]:
    """What was seen, by fifth of the way."""
    length = len(seen) // FIFTHS
    return [seen[at * length : (at + 1) * length] for at in range(FIFTHS)]


def faults(found: Long, segment_rows: int) -> list[str]:
    """What of it grows, or is larger than it may be."""
    *whole, last = found.segments
    told = []
    for what, seen in (("MiB resident", found.megabytes), ("blocks of Python", found.blocks)):
        early, late = min(split(seen)[2]), min(split(seen)[-1])
        if late > MOST_GROWTH * early:
            told.append(f"memory grew from {early} to {late} {what}")
    if set(whole) - {segment_rows} or last > segment_rows:
        told.append(f"segments of {found.segments} rows, not {segment_rows}")
    if found.page_bytes > PAGE_BYTES:
        told.append(f"a page of {found.page_bytes} bytes")
    if found.shares != sorted(found.shares) or found.shares[-1] != 1.0:
        told.append(f"shares done {found.shares}")
    return told


def main(updates: int = 100_000, kind: str = "scalar") -> int:
    """Measure, and tell."""
    with tempfile.TemporaryDirectory() as name:
        space = Path(name)
        found = long(space / "long", updates, kind)
        few = max(LOOKS, updates // TWENTIETH)
        second, clean = long(space / "second", few, kind, 5), fresh(space, few, kind)
    told = faults(found, eventlog.SEGMENT_ROWS) + (["the second run differs"] if second.hashes != clean else [])
    seen = [[min(part), max(part)] for part in split(found.megabytes)]
    shown = {**found._asdict(), "megabytes": found.megabytes[::5], "blocks": found.blocks[::5], "by fifth": seen}
    sys.stdout.write(json.dumps({"kind": kind, "updates": updates, **shown, "faults": told}) + "\n")
    return 1 if told else 0


if __name__ == "__main__":
    updates, kind = [*sys.argv[1:], *["100000", "scalar"][len(sys.argv) - 1 :]]
    raise SystemExit(main(int(updates), kind))
