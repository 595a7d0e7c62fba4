"""Check a run directory whole: what its files say of each other, and its timeline played again; if asked, all trained again."""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from desim_fl import (
    __version__,
    allotment,
    balance,
    claims,
    eventlog,
    inventory,
    link_usage,
    recount,
    replay,
    reserve,
    rundir,
    tables,
)
from desim_fl.errors import ScenarioError
from desim_fl.laws import Audit, Row
from desim_fl.population import partition_sha256
from desim_fl.provenance import versions
from desim_fl.replay import Case
from desim_fl.run import execute, finite
from desim_fl.scenario import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from desim_fl.scenario import Scenario

_FIELDS = list(Row._fields)
_OPTIONAL = ("links", *reserve.SCHEMAS)
_LONGEST = 1000  # characters of a sentence
_MOST = 20  # sentences of each way of looking


class Verdict(NamedTuple):
    """What is wrong with a run directory (nothing = all is well), and what its reader must know besides."""

    problems: list[str]
    notes: list[str]


def verify(folder: Path, *, rerun: bool = False) -> list[str]:
    """Return what is wrong with a run directory, the first difference first; an empty list = all is well.

    Raises ``RunDirectoryError`` where there is no run directory to check.
    """
    return inspected(folder, rerun=rerun).problems


def inspected(folder: Path, *, rerun: bool = False) -> Verdict:
    """Check a run directory, also one of a run that did not finish: then what is there.

    Raises ``RunDirectoryError`` where there is no run directory to check.
    """
    manifest = rundir.known_manifest(folder)
    if manifest is None:
        return _without_manifest(folder)
    found = list(claims.form(manifest))
    if found:
        return Verdict(found, [])
    notes = [*claims.state(folder, manifest), *_versions(manifest)]
    notes += [f"{name} was left half-written by a process that was killed" for name in inventory.leftovers(folder)]
    case, found = _case(folder, manifest)
    looks = [inventory.faults(folder, manifest), inventory.checkpoints(folder, manifest)]
    if case is not None:
        looks = [_problems(case), replay.faults(case, notes), *looks]
    for look in looks:
        found += [told for told in _told(look) if not _repeats(found, told)]
    if rerun and case is not None and not found:
        found = _told(_differences(case))
    return Verdict(*(list(dict.fromkeys(map(_brief, said))) for said in (found, notes)))


def _brief(said: str) -> str:
    """A sentence that quotes what a file says, however long that is."""
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."


def _told(look: Iterator[str]) -> list[str]:
    """The first sentences of one way of looking; what cannot be read on the way is one more."""
    found = []
    try:
        found.extend(islice(look, _MOST))
    except (OSError, ScenarioError, pl.exceptions.PolarsError) as error:
        found.append(f"a part of the run directory is missing or cannot be read: {error}")
    return found


def _repeats(found: list[str], told: str) -> bool:
    """Whether a claim of the manifest was found wrong already, in another way."""
    claim, equals, _ = told.partition(" = ")
    return (
        bool(equals)
        and claim.startswith("the manifest says ")
        and any(each.startswith(claim + equals) for each in found)
    )


def _without_manifest(folder: Path) -> Verdict:
    """Judge a folder whose manifest cannot be read: nothing else can be held against it."""
    path = folder / rundir.MANIFEST
    try:
        begun = (folder / "events").exists()
        known = begun or (folder / rundir.SCENARIO).is_file()
    except OSError:  # a name that no file can have
        known = begun = False
    if not known:
        rundir.read_manifest(folder)  # raises
    if not path.exists() and not begun:
        return Verdict([], [f"the run was killed before it began; desim-fl resume {folder} begins it"])
    why = "cannot be read" if path.exists() else "is missing"
    return Verdict([f"{rundir.MANIFEST} {why}, and without it nothing else can be checked"], [])


def _versions(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Say which parts that bear on a timeline were of other versions then."""
    wrote = {**manifest["versions"], "desim_fl": manifest.get("desim_fl")}
    for name, mine in {**versions(), "desim_fl": __version__}.items():
        if name in {"desim_fl", "numpy", "simpy"} and wrote.get(name) != mine:
            yield f"the run was written with {name} {wrote.get(name)}, this is {mine}"


# ---- what its files say of each other


def _case(folder: Path, manifest: dict[str, Any]) -> tuple[Case | None, list[str]]:
    """Read everything; ``None`` beside what is wrong where that is too little to compare anything with."""
    written, found, read = manifest.get("status") != "running", list[str](), dict[str, pl.DataFrame]()
    try:
        scenario = load(folder / rundir.SCENARIO)
    except ScenarioError as error:
        return None, [f"{rundir.SCENARIO} is missing or cannot be read: {error}"]
    network = scenario.network
    wanted = (
        {*inventory.SCHEMAS} - {"held_out"} - ({"links"} if not (network.shares_down or network.shares_up) else set())
    )
    wanted -= {"kept_back"} if getattr(scenario.data, "client_test_share", None) is None else set()
    for name in inventory.SCHEMAS:
        table, problems = inventory.read(folder, name, wanted=written and name in wanted)
        found += problems
        if table is not None:
            read[name] = table
    for name, check in (("clients", claims.roll), ("partition", claims.owners)):
        if name in read and (fault := check(read[name], scenario.clients.count)):
            found.append(fault)
            del read[name]
    if scenario.sha256() != manifest.get("scenario_sha256"):
        found.append(
            f"scenario_sha256: the manifest says {manifest.get('scenario_sha256')}, the files give {scenario.sha256()}"
        )
        return None, found
    if not written and "events" not in read and not found:
        read["events"] = pl.DataFrame(schema=eventlog.schema())
    return (Case(folder, manifest, scenario, read) if "events" in read else None), found


def _problems(case: Case) -> Iterator[str]:
    """Check laws, hashes and sums."""
    manifest, events = case.manifest, case.events
    audit = Audit(*_bounds(case.scenario))
    rows = (Row(*values) for values in events.select(_FIELDS).cast({"kind": pl.String}).iter_rows())
    yield from audit.problems(rows)
    yield from claims.faults(case.folder, manifest, case.scenario)
    yield from _partition(case)
    if not case.written:
        return
    yield from _endings(manifest, audit)
    yield from _hashes(case)
    summary, reached = manifest["summary"], manifest["summary"]["virtual_time_s"]
    for name, value in audit.totals().items():
        if summary.get(name) != value:
            yield f"the manifest says {name} = {summary.get(name)}, the event log {value}"
    yield from claims.times(manifest, events)
    there = case.tables
    if there.keys() >= {"clients", "metrics"}:
        yield from _recounted(case, round(reached * 1e6))
    if there.keys() >= {"partition", "metrics"}:
        yield from claims.scores(case.scenario, there["metrics"], int((there["partition"]["client"] == -1).sum()))
    if "held_out" in there:
        yield from claims.shares("held_out", there["held_out"], case.scenario)
    if "wall" in there:
        yield from claims.timed(there["wall"], events)


def _bounds(scenario: Scenario) -> tuple[int | None, int]:
    """Read the bounds on jobs in flight and on those of a client.

    The first is ``None`` in open systems, where probes fly beside it, and where stragglers of closed rounds do.
    """
    run = scenario.run
    places = scenario.strategy.places(scenario.clients.count, run.concurrency)
    return None if run.arrivals is not None or run.poc_probe else places, run.client_queue or 1


def _endings(manifest: Mapping[str, Any], audit: Audit) -> Iterator[str]:
    finished, reached = manifest.get("status") == "finished", manifest["summary"]["virtual_time_s"]
    if finished and (audit.last is None or audit.last.kind != "stop"):
        yield "the run is finished, but its last row is no stop"
    if finished and audit.last is not None and reached != audit.ticks / 1e6:
        yield f"the manifest says virtual_time_s = {reached}, the stop row {audit.ticks / 1e6}"
    elif round(reached * 1e6) < audit.ticks:
        yield f"the manifest says virtual_time_s = {reached}, the event log reaches {audit.ticks / 1e6}"


def _partition(case: Case) -> Iterator[str]:
    """Compare the partition with its hash, and with the table ``clients``."""
    if "partition" not in case.tables:
        return
    samples, count = case.tables["partition"], case.scenario.clients.count
    if "kept_back" in case.tables and (wrong := reserve.fault(case.tables["kept_back"], samples)):
        yield wrong
    held = rundir.by_client(samples["client"].to_numpy(), samples["index"].to_numpy(), count)
    people = case.tables["clients"]["examples"].to_list() if "clients" in case.tables else [len(part) for part in held]
    if len(samples) and [len(part) for part in held] != people:
        yield "the table partition gives the clients other numbers of samples than the table clients"
    if len(samples) or "clients" in case.tables:
        found = partition_sha256(held if len(samples) else [], people)
        if case.manifest.get("partition_sha256") != found:
            yield f"partition_sha256: the manifest says {case.manifest.get('partition_sha256')}, the files give {found}"


def _hashes(case: Case) -> Iterator[str]:
    manifest, model = case.manifest, case.folder / "model.safetensors"
    found = {"timeline_sha256": eventlog.timeline_sha256(case.events)}
    if manifest.get("model_sha256") is not None:
        found["model_sha256"] = rundir.file_sha256(model) if model.is_file() else "(no such file)"
    for name, value in found.items():
        if manifest.get(name) != value:
            yield f"{name}: the manifest says {manifest.get(name)}, the files give {value}"


def _recounted(case: Case, ticks: int) -> Iterator[str]:
    """Compare what the tables add up to with the table ``clients``, the manifest and the scenario."""
    events, table, scenario = case.events, case.tables["clients"], case.scenario
    if (events["time_s"].to_numpy() != events["ticks"].to_numpy() / 1e6).any():
        yield "the column time_s of the table events is not ticks / 1,000,000"
    summary, pauses = case.manifest["summary"], scenario.availability.pauses
    yield from recount.copy_faults(events)
    yield from recount.client_faults(table, events, ticks, pauses=pauses)
    queues = (case.scenario.run.client_queue or 1) > 1
    expected = recount.summary(events, len(table), ticks, pauses=pauses, queues=queues) | _last_scores(
        case.tables["metrics"]
    )
    expected |= {name: table[name].sum() for name in ("bytes_down", "bytes_up")}
    for name, value in expected.items():
        if not recount.same(summary.get(name), value):
            yield f"the manifest says {name} = {summary.get(name)}, the tables give {value}"
    yield from _link_faults(case, ticks)
    yield from recount.bill_faults(table, summary, scenario.clients, ticks)
    if case.tables.keys() >= balance.SCHEMAS.keys():
        yield from balance.faults(case.tables, events, table, recount.charges(table, scenario.clients, ticks))


def _link_faults(case: Case, ticks: int) -> Iterator[str]:
    """Check the table ``links``, which there is where transfers share some."""
    network, summary = case.scenario.network, case.manifest["summary"]
    shared = [name for name, holds in (("egress", network.shares_down), ("ingress", network.shares_up)) if holds]
    if not shared or "links" not in case.tables:
        return
    links = case.tables["links"]
    yield from link_usage.faults(links, case.events, shared, ticks)
    if not recount.same(summary.get("links"), found := link_usage.summary(links, ticks / 1e6)):
        yield f"the manifest says links = {summary.get('links')}, the tables give {found}"


def _last_scores(metrics: pl.DataFrame) -> dict[str, float | None]:
    """Accuracy and loss of the last test evaluation, as the manifest writes them."""
    tests = metrics.filter(pl.col("split") == "test").tail(1)
    row = tests.row(0, named=True) if len(tests) else {}
    return {name: finite(row.get(name)) for name in ("accuracy", "loss")}


# ---- the same run again


def _differences(case: Case) -> Iterator[str]:
    """Play the resolved scenario again and compare everything but wall facts."""
    folder, manifest = case.folder, case.manifest
    scenario = load(folder / rundir.SCENARIO, ["executor.reuse=false"])  # to train again is the point
    stored = reserve.stored(folder)
    if (
        stored is not None
        and (redrawn := allotment.allotted(scenario, anew=True).people.sha256()) != manifest["partition_sha256"]
    ):
        mine, theirs = (facts.get("numpy") for facts in (versions(), manifest["versions"]))
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
        for name in ("events", *rundir.SCHEMAS, *(name for name in _OPTIONAL if name in case.tables)):
            made = eventlog.read(again / "events") if name == "events" else pl.scan_parquet(again / f"{name}.parquet")
            yield from _first_difference(name, case.tables[name], tables.collected(made))


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
