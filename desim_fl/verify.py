"""Check a run directory: its laws from the event log alone, its hashes, and, if asked, the same run again."""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from desim_fl import allotment, balance, eventlog, link_usage, recount, rundir, tables
from desim_fl.errors import RunDirectoryError, ScenarioError
from desim_fl.laws import Audit, Row
from desim_fl.population import partition_sha256
from desim_fl.provenance import versions
from desim_fl.run import FINISHED, execute, finite
from desim_fl.scenario import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from desim_fl.scenario import Scenario

_FIELDS = list(Row._fields)
_MOST = 20


def verify(folder: Path, *, rerun: bool = False) -> list[str]:
    """Return what is wrong with a run directory, the first difference first; an empty list = all is well.

    Raises ``RunDirectoryError`` where there is no run directory to check.
    """
    manifest = rundir.read_manifest(folder)
    events = _events(folder)
    try:
        found = list(islice(_problems(folder, manifest, events), _MOST))
        if rerun and not found:
            found = list(islice(_differences(folder, manifest, events), _MOST))
        found = found or list(islice(_files(folder, manifest), _MOST))
    except (OSError, ScenarioError, pl.exceptions.PolarsError) as error:
        return [f"a part of the run directory is missing or cannot be read: {error}"]
    return found


def _files(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Compare every file with its hash in the manifest: what no other check looks at."""
    known = manifest.get("files")
    if not isinstance(known, dict):
        return
    there = rundir.file_hashes(folder)
    for name in sorted(known.keys() | there.keys()):
        if name not in there:
            yield f"{name} is missing"
        elif name not in known:
            yield f"{name} is there, but the run did not write it"
        elif known[name] != there[name]:
            yield f"{name} is not what the run wrote"


def _events(folder: Path) -> pl.DataFrame:
    try:
        return tables.collected(eventlog.read(folder / "events"))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunDirectoryError(f"{folder}/events cannot be read: {error}") from error


def _problems(folder: Path, manifest: dict[str, Any], events: pl.DataFrame) -> Iterator[str]:
    if dict(events.schema) != eventlog.schema():
        yield "the table events does not have the schema that this version writes"
        return
    empty = [name for name in _FIELDS if events[name].null_count()]
    if empty:
        yield f"the table events has empty cells in {', '.join(empty)}"
        return
    foreign = list(_foreign(folder))
    if foreign:
        yield from foreign
        return
    if not isinstance(manifest.get("summary"), dict):
        yield "the manifest has no summary"
        return
    audit = Audit(*_bounds(folder))
    rows = (Row(*values) for values in events.select(_FIELDS).cast({"kind": pl.String}).iter_rows())
    yield from audit.problems(rows)
    yield from _endings(manifest, audit)
    summary = manifest.get("summary", {})
    for name, value in audit.totals().items():
        if summary.get(name) != value:
            yield f"the manifest says {name} = {summary.get(name)}, the event log {value}"
    yield from _hashes(folder, manifest, events)
    reached = manifest["summary"].get("virtual_time_s")
    if not isinstance(reached, (int, float)) or round(reached * 1e6) < audit.ticks:
        yield f"the manifest says virtual_time_s = {reached}, the event log reaches {audit.ticks / 1e6}"
        return
    yield from _recounted(folder, manifest, events, round(reached * 1e6))


def _foreign(folder: Path) -> Iterator[str]:
    """Name the tables that do not have the columns that this version writes, or hold nothing where a number belongs."""
    for name, schema in rundir.SCHEMAS.items():
        table = tables.parquet(folder / f"{name}.parquet")
        if list(table.schema.items()) != list(schema.items()):
            yield f"the table {name} does not have the schema that this version writes"
            continue
        empty = [column for column in rundir.COUNTED if column in schema and table[column].null_count()]
        if empty:
            yield f"the table {name} has empty cells in {', '.join(empty)}"
        elif name == "clients" and (fault := _roll(table, load(folder / "scenario.toml").clients.count)):
            yield fault


def _roll(clients: pl.DataFrame, count: int) -> str | None:
    """Say so where the table does not hold each client of the scenario once, in order."""
    numbers = clients["client"].to_list()
    return None if numbers == list(range(count)) else f"the table clients does not hold the {count} clients in order"


def _bounds(folder: Path) -> tuple[int | None, int]:
    """Read the bounds on jobs in flight and on those of a client.

    The first is ``None`` in open systems, and where stragglers of closed rounds fly on beside it.
    """
    scenario = load(folder / "scenario.toml")
    run = scenario.run
    places = scenario.strategy.places(scenario.clients.count, run.concurrency)
    return None if run.arrivals is not None else places, run.client_queue or 1


def _endings(manifest: dict[str, Any], audit: Audit) -> Iterator[str]:
    finished = manifest.get("status") == FINISHED
    if finished and (audit.last is None or audit.last.kind != "stop"):
        yield "the run is finished, but its last row is no stop"
    reached = manifest.get("summary", {}).get("virtual_time_s")
    if finished and audit.last is not None and reached != audit.ticks / 1e6:
        yield f"the manifest says virtual_time_s = {reached}, the stop row {audit.ticks / 1e6}"


def _hashes(folder: Path, manifest: dict[str, Any], events: pl.DataFrame) -> Iterator[str]:
    found = {"timeline_sha256": eventlog.timeline_sha256(events)}
    if manifest.get("model_sha256") is not None:
        model = folder / "model.safetensors"
        found["model_sha256"] = rundir.file_sha256(model) if model.exists() else "(no such file)"
    people = tables.parquet(folder / "clients.parquet")["examples"].to_list()
    samples = tables.parquet(folder / "partition.parquet")
    owners = samples["client"].to_numpy()
    parts = [samples["index"].to_numpy()[owners == client] for client in range(len(people))] if len(samples) else []
    if len(samples) and [len(part) for part in parts] != people:
        yield "the table partition gives the clients other numbers of samples than the table clients"
    found["partition_sha256"] = partition_sha256(parts, people)
    found["scenario_sha256"] = load(folder / "scenario.toml").sha256()
    for name, value in found.items():
        if manifest.get(name) != value:
            yield f"{name}: the manifest says {manifest.get(name)}, the files give {value}"


def _recounted(folder: Path, manifest: dict[str, Any], events: pl.DataFrame, ticks: int) -> Iterator[str]:
    """Compare what the tables add up to with the table ``clients``, the manifest and the scenario."""
    if (events["time_s"].to_numpy() != events["ticks"].to_numpy() / 1e6).any():
        yield "the column time_s of the table events is not ticks / 1,000,000"
    summary, table = manifest["summary"], tables.parquet(folder / "clients.parquet")
    scenario = load(folder / "scenario.toml")
    pauses = scenario.availability.pauses
    yield from recount.copy_faults(events)
    yield from recount.client_faults(table, events, ticks, pauses=pauses)
    expected = recount.summary(events, len(table), ticks, pauses=pauses) | _last_scores(folder)
    expected |= {name: table[name].sum() for name in ("bytes_down", "bytes_up")}
    for name, value in expected.items():
        if not recount.same(summary.get(name), value):
            yield f"the manifest says {name} = {summary.get(name)}, the tables give {value}"
    yield from _link_faults(folder, scenario, summary, events, ticks)
    yield from recount.bill_faults(table, summary, scenario.clients, ticks)
    by_class = {name: tables.parquet(folder / f"{name}.parquet") for name in balance.SCHEMAS}
    yield from balance.faults(by_class, events, table, recount.charges(table, scenario.clients, ticks))
    for name, value in (("seed", scenario.run.seed), ("scenario_name", scenario.name)):
        if manifest.get(name) != value:
            yield f"the manifest says {name} = {manifest.get(name)}, the scenario {value}"


def _link_faults(
    folder: Path, scenario: Scenario, summary: dict[str, Any], events: pl.DataFrame, ticks: int
) -> Iterator[str]:
    """Check the table ``links``, which there is where transfers share some."""
    network = scenario.network
    shared = [name for name, holds in (("egress", network.shares_down), ("ingress", network.shares_up)) if holds]
    if not shared:
        return
    links = tables.parquet(folder / "links.parquet")
    if list(links.schema.items()) != list(link_usage.SCHEMA.items()):
        yield "the table links does not have the schema that this version writes"
        return
    yield from link_usage.faults(links, events, shared, ticks)
    if not recount.same(summary.get("links"), found := link_usage.summary(links, ticks / 1e6)):
        yield f"the manifest says links = {summary.get('links')}, the tables give {found}"


def _last_scores(folder: Path) -> dict[str, float | None]:
    """Accuracy and loss of the last test evaluation, as the manifest writes them."""
    tests = tables.parquet(folder / "metrics.parquet").filter(pl.col("split") == "test").tail(1)
    row = tests.row(0, named=True) if len(tests) else {}
    return {name: finite(row.get(name)) for name in ("accuracy", "loss")}


def _differences(folder: Path, manifest: dict[str, Any], events: pl.DataFrame) -> Iterator[str]:
    """Play the resolved scenario again and compare everything but wall facts."""
    scenario = load(folder / "scenario.toml", ["executor.reuse=false"])  # to train again is the point
    stored = rundir.stored_partition(folder)
    if stored is not None and (redrawn := allotment.allotted(scenario).people.sha256()) != manifest["partition_sha256"]:
        mine, theirs = (facts.get("numpy") for facts in (versions(), manifest.get("versions", {})))
        yield (
            f"partition: drawn anew it would be another one ({redrawn[:12]}...), with NumPy {mine}, than the run's, with NumPy "
            f"{theirs}; what follows keeps the run's own"
        )
    with tempfile.TemporaryDirectory() as space:
        again = Path(space) / "again"
        planned, assumed = (bool(manifest.get(name)) for name in ("timing_only", "assumed_full_work"))
        fresh = execute(scenario, again, stored=stored, timing_only=planned, assume_full_work=assumed)
        for name in ("partition_sha256", "timeline_sha256", "model_sha256", "data", "status"):
            if manifest.get(name) != fresh[name]:
                yield f"{name}: this run has {manifest.get(name)}, the rerun {fresh[name]}"
        for name, value in fresh["summary"].items():
            if name != "wall_s" and not recount.same(manifest["summary"].get(name), value):
                yield f"summary.{name}: this run has {manifest['summary'].get(name)}, the rerun {value}"
        yield from _first_difference("events", events, _events(again))
        shared = ["links"] if (folder / "links.parquet").exists() else []
        for name in (*rundir.SCHEMAS, *shared):
            before, after = (tables.parquet(place / f"{name}.parquet") for place in (folder, again))
            yield from _first_difference(name, before, after)


def _first_difference(name: str, before: pl.DataFrame, after: pl.DataFrame) -> Iterator[str]:
    if before.equals(after, null_equal=True):
        return
    for number, (left, right) in enumerate(
        zip(before.iter_rows(named=True), after.iter_rows(named=True), strict=False)
    ):
        changed = {key: (left[key], right.get(key)) for key in left if repr(left[key]) != repr(right.get(key))}
        if changed:
            what = ", ".join(f"{key} = {old!r} became {new!r}" for key, (old, new) in changed.items())
            yield f"table {name}, row {number}: {what}"
            return
    if len(before) != len(after):
        yield f"table {name}: {len(before)} rows became {len(after)}"
