"""What a manifest claims, beside what the files and the scenario say: no timeline is needed to see these."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import polars as pl

from desim_fl import rundir
from desim_fl.run import FAILED, FINISHED, INTERRUPTED, RUNNING
from desim_fl.ticks import MOST_TICKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from desim_fl.scenario import Scenario

_HASH_DIGITS = 64
_WHOLE = 1e-6  # how near to a whole number of samples an accuracy must come


def form(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield which parts of a manifest are not of the kind that they must be for anything else to be read."""
    kinds = {"summary": dict, "versions": dict, "status": str}
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            yield f"the manifest has no {name}"
    kept = manifest.get("checkpoints")
    if kept is not None and not (isinstance(kept, dict) and type(kept.get("kept")) is int):
        yield f"the manifest says checkpoints = {kept!r}, which does not say how many were kept"
    summary = manifest.get("summary")
    reached: Any = summary.get("virtual_time_s") if isinstance(summary, dict) else 0
    if not _is_time(reached) or reached >= MOST_TICKS / 1e6:
        yield f"the manifest says virtual_time_s = {reached!r}, which is no time"


def faults(folder: Path, manifest: Mapping[str, Any], scenario: Scenario) -> Iterator[str]:
    """Yield which claims contradict each other, the scenario, or what there is."""
    for name, (holds, due) in _rules(folder, manifest, scenario).items():
        if not holds(manifest.get(name)):
            yield f"the manifest says {name} = {manifest.get(name)!r}; it should be {due}"


_Rule = tuple["Callable[[Any], bool]", str]


def _rules(folder: Path, manifest: Mapping[str, Any], scenario: Scenario) -> dict[str, _Rule]:
    """For each claim, whether a value can be right, and which would be."""
    status, planned = manifest.get("status"), manifest.get("timing_only") is True
    sampled = scenario.model.name != "scalar"  # a quadratic has no data to hash
    modelled = (folder / "model.safetensors").exists()
    return {
        "status": (lambda v: v in {RUNNING, FINISHED, FAILED, INTERRUPTED}, "how the run ended"),
        "error": (lambda v: isinstance(v, str) == (status in {FAILED, INTERRUPTED}), "there where the run did not finish"),
        "timing_only": (lambda v: v is (not modelled) or (v is False and status != FINISHED), "true where there is no model"),
        "assumed_full_work": (lambda v: v is False or (v is True and planned), "false but for a plan"),
        "model_sha256": (lambda v: v is None if planned or not modelled else _is_hash(v), "the hash of the model"),
        "scenario_name": (lambda v: v == scenario.name, repr(scenario.name)),
        "seed": (lambda v: v == scenario.run.seed and type(v) is int, str(scenario.run.seed)),
        "threads_per_job": (lambda v: v == scenario.executor.threads_per_job, str(scenario.executor.threads_per_job)),
        "data": (lambda v: _is_data(v, scenario.data.name, sealed=sampled and not planned), "name and hash of the data"),
        "device": (lambda v: _is_device(v, scenario.executor.device, planned=planned), "where the tensors lay"),
        "executor": (lambda v: isinstance(v, str) and (v == "null") == planned, '"null" for a plan, and there only'),
        "created": (_is_date, "a date"),
        "desim_fl": (lambda v: isinstance(v, str), "the version that wrote it"),
        "versions": (lambda v: isinstance(v, dict), "the versions of what it ran with"),
        "host": (lambda v: isinstance(v, dict), "where it ran"),
        "wall_fields": (lambda v: isinstance(v, list), "names of wall facts"),
    }  # fmt: skip


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == _HASH_DIGITS


def _is_data(value: Any, name: str, *, sealed: bool) -> bool:
    return isinstance(value, dict) and value.get("name") == name and _is_hash(value.get("sha256")) == sealed


def _is_device(value: Any, asked: str, *, planned: bool) -> bool:
    if planned:
        return value is None
    return isinstance(value, str) and (asked == "auto" or value.startswith(asked))


def _is_date(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", value) is not None


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


def times(manifest: Mapping[str, Any], events: pl.DataFrame) -> Iterator[str]:
    """Yield which times of the manifest cannot be."""
    summary, resumed = manifest["summary"], manifest.get("resumed_at_s")
    wall = summary.get("wall_s")
    if not _is_time(wall):
        yield f"the manifest says wall_s = {wall!r}, which is no time"
    if resumed is not None and (not _is_time(resumed) or not (events["time_s"] == resumed).any()):
        yield f"the manifest says resumed_at_s = {resumed!r}, when nothing happened"


def scores(scenario: Scenario, metrics: pl.DataFrame, held_out: int) -> Iterator[str]:
    """Yield what no evaluation gives: other splits, numbers of samples that change, shares that are none of samples."""
    splits = metrics["split"].unique().to_list()
    if len(metrics) and (("validation" in splits) != (held_out > 0) or "test" not in splits):
        yield f"the table metrics has the splits {', '.join(sorted(map(str, splits)))}; {held_out} samples are held out"
    for split, sizes in metrics.group_by("split", maintain_order=True).agg(pl.col("examples").unique()).iter_rows():
        if len(sizes) > 1 or min(sizes) <= 0 or (split == "validation" and sizes != [held_out]):
            yield f"the table metrics says examples = {', '.join(map(str, sorted(sizes)))} on the split {split}"
    yield from shares("metrics", metrics, scenario)


def shares(name: str, table: pl.DataFrame, scenario: Scenario) -> Iterator[str]:
    """Yield which accuracy of a table is no share of its examples; a task of one's own may measure otherwise."""
    if scenario.training.task is not None:
        return
    right = pl.col("accuracy") * pl.col("examples")
    off = ~pl.col("accuracy").is_between(0.0, 1.0) | ((right - right.round()).abs() > _WHOLE)
    for row in table.with_row_index().filter(off).head(1).iter_rows(named=True):
        yield f"row {row['index']} of the table {name} says accuracy = {row['accuracy']}, no share of {row['examples']} samples"


def timed(wall: pl.DataFrame, events: pl.DataFrame) -> Iterator[str]:
    """Yield where the table ``wall`` times a job twice, or one that no client was sent, or holds no time."""
    sent = events.filter(pl.col("kind") == "dispatch").select("job", "client")
    for job, client in wall.join(sent, on=["job", "client"], how="anti").select("job", "client").head(1).iter_rows():
        yield f"the table wall times job {job} of client {client}, which was not sent out"
    for job in wall.filter(pl.col("job").is_duplicated())["job"].head(1):
        yield f"the table wall times job {job} twice"
    if not ((wall["train_s"] >= 0) & wall["train_s"].is_finite()).fill_null(False).all():  # noqa: FBT003
        yield "the table wall holds a train_s that is no time"


def owners(partition: pl.DataFrame, count: int) -> str | None:
    """Say so where the table ``partition`` names clients that there are not."""
    strange = partition.filter(~pl.col("client").is_between(-1, count - 1))["client"].head(1).to_list()
    return f"the table partition names client {strange[0]}, and there are {count}" if strange else None


def roll(clients: pl.DataFrame, count: int) -> str | None:
    """Say so where the table ``clients`` does not hold each client of the scenario once, in order."""
    numbers = clients["client"].to_list()
    return None if numbers == list(range(count)) else f"the table clients does not hold the {count} clients in order"


def state(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What a reader must know of a run that did not finish, or did not write everything."""
    status, notes = manifest.get("status"), list[str]()
    way = f"desim-fl resume {folder} goes on with it"
    if status == RUNNING:
        notes.append(f"the run is not finished: it was killed, or is still going; what is there was checked; {way}")
    elif status in {INTERRUPTED, FAILED}:
        at = (manifest.get("summary") or {}).get("virtual_time_s")
        notes.append(f"the run is not finished: {status} at {at} s ({manifest.get('error')}); {way}")
    elif not rundir.complete(manifest):
        lacking = manifest.get("unwritten")
        notes += [f"not everything was written: {what}; {way}" for what in lacking or ["it was killed as it ended"]]
    return notes
