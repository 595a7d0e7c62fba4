"""The timeline of a run directory, played again without training: whether the tables are those of scenario and seed.

No law fixes which of several lawful things happens; the scenario and the streams of its seed do. So everything that
the timeline decides (who leaves when, for how long, with what, what the server did with it, who is evaluated) is worked out
anew, at the speed of ``plan``, and compared with tables and manifest, column by column and number by number. What
training gave is not worked out: losses, scores, which updates were not finite and which jobs stopped early are taken
from the tables, so that a timeline that reads them can be followed too. What follows from them is compared.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from desim_fl import allotment, balance, eventlog, link_usage, recount, reserve, rundir
from desim_fl.build import Built, Told, build
from desim_fl.core import Promise, Score
from desim_fl.errors import RunDirectoryError, RunError, ScenarioError
from desim_fl.executors.null import NullExecutor
from desim_fl.provenance import versions
from desim_fl.run import FAILED, FINISHED, Session
from desim_fl.run import manifest as manifest_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from desim_fl.allotment import Stored
    from desim_fl.core import Job, Model, Outcome
    from desim_fl.eventlog import Segment
    from desim_fl.scenario import Scenario

_CLOSE = 1e-9  # relative; times are whole ticks, but a weight may end in another bit on another machine
_CONSTANTS = tuple(rundir.CLIENTS_SCHEMA)[: tuple(rundir.CLIENTS_SCHEMA).index("dispatches")]  # of clients
# Of the manifest: what is not worked out here, what is compared by itself, what only training or the host knows.
_APART = {"desim_fl", "status", "error", "data", "versions", "device", "model_sha256", "summary", "timeline_sha256"}


# Methods whose weights depend on what was trained: columns that then say nothing when they are played again.
_WEIGHED = {"port": {"weight", "scale"}}
_HEARING = {"tifl"}  # methods that read of training what the tables tell


class Case(NamedTuple):
    """A run directory that is looked at: what its files say. ``tables`` are those that can be read, by name."""

    folder: Path
    manifest: Mapping[str, Any]
    scenario: Scenario
    tables: Mapping[str, pl.DataFrame]

    @property
    def events(self) -> pl.DataFrame:
        """The event log."""
        return self.tables["events"]

    @property
    def finished(self) -> bool:
        """Whether the run came to its stop."""
        return self.manifest.get("status") == FINISHED

    @property
    def written(self) -> bool:
        """Whether the run came to its end, good or bad, and wrote its tables; else it was killed, or goes on."""
        return self.manifest.get("status") != "running"


# ---- what training gave


class Teller(NullExecutor):
    """Trains nothing, and tells what the tables say that training gave."""

    def __init__(self, case: Case, sizes: Sequence[int]) -> None:
        super().__init__(sizes)
        self.name = str(case.manifest.get("executor"))
        self.clock: Callable[[], int] = lambda: -1
        kind = case.events["kind"].cast(pl.String)
        arrivals = case.events.filter(kind.is_in(["arrive", "cancel"]))
        self._given = {job: (loss, bad) for job, loss, bad in arrivals.select("job", "loss", "bad_key").iter_rows()}
        self._steps = dict(arrivals.select("job", "steps").iter_rows())
        self._computed = dict(case.events.filter(kind == "computed").select("job", "ticks").iter_rows())
        self._scores = _scores(case.tables.get("metrics"))

    def collect(self, job: Job, steps: int) -> Outcome:
        """Return an outcome without parameters."""
        loss, bad = self._given.get(job.id, (None, None))
        return super().collect(job, steps)._replace(loss=loss, bad=bad)

    def stopped(self, job: Job, steps: int) -> bool:
        """Whether the job computes no further than now, and did no more than so many steps."""
        return self._computed.get(job.id) == self.clock() and (self._steps.get(job.id) or 0) <= steps

    def evaluate(self, model: Model) -> Promise:
        """Promise what the table says of a version, a score that cannot be where it says nothing."""
        return Promise(lambda: self._scores[model.version])


def _scores(metrics: pl.DataFrame | None) -> defaultdict[int, tuple[Score, ...]]:
    """The first score of each version on each split of the table."""
    known: dict[tuple[int, str], Score] = {}
    for row in () if metrics is None else metrics.iter_rows(named=True):
        known.setdefault((row["version"], row["split"]), Score(*(row[name] for name in Score._fields)))
    splits = list(dict.fromkeys(split for _, split in known))
    found = defaultdict[int, tuple[Score, ...]](lambda: tuple(Score(split, 0.0, None, -1) for split in splits))
    for version in {version: None for version, _ in known}:
        found[version] = tuple(known.get((version, split), Score(split, 0.0, None, -1)) for split in splits)
    return found


# ---- comparing


class Comparison:
    """A sink that compares what is played with a table of events; ``faults`` are the first differences by column."""

    def __init__(self, events: pl.DataFrame, without: set[str]) -> None:
        self._events, self._without = events, without
        self.rows = 0
        self.faults: dict[str, str] = {}

    def __call__(self, segment: Segment) -> None:
        """Compare the next rows; those beyond the table are counted."""
        there = self._events.slice(self.rows, len(segment.rows))
        played = eventlog.frame(segment)
        for name in played.columns:
            if name in self.faults or name in self._without:
                continue
            for fault in _difference("events", there[name], played[name].head(len(there)), self.rows):
                self.faults[name] = fault
        self.rows += len(played)


def _difference(table: str, there: pl.Series, played: pl.Series, first: int = 0) -> Iterator[str]:
    """Yield the first row in which two columns differ; a missing value is a value."""
    if there.equals(played, null_equal=True):
        return
    pairs = zip(there.to_list(), played.to_list(), strict=True)
    for row, (said, due) in enumerate(pairs):
        if said != due and not (isinstance(said, float) and isinstance(due, float) and _near(said, due)):
            yield f"row {first + row} of the table {table} says {there.name} = {said!r}; played again it is {due!r}"
            return


def _near(said: float, due: float) -> bool:
    return math.isclose(said, due, rel_tol=_CLOSE) or (math.isnan(said) and math.isnan(due))


def _differences(table: str, there: pl.DataFrame, played: pl.DataFrame, columns: Sequence[str] = ()) -> Iterator[str]:
    """Yield where two tables differ, the first row of each column."""
    rows = min(len(there), len(played))
    for name in columns or played.columns:
        yield from _difference(table, there[name].head(rows), played[name].head(rows))
    if len(there) != len(played):
        yield f"the table {table} has {len(there)} rows; played again it has {len(played)}"


# ---- playing


def own_code(scenario: Scenario) -> str | None:
    """What of a scenario's own would have to run to play its timeline; ``None`` = nothing."""
    named = {"strategy": scenario.strategy.name, "data": scenario.data.name, "run": scenario.run.selector or ""}
    for table, name in named.items():
        if ":" in name:
            return f"[{table}] {name} is code of the scenario's own, which only --rerun runs"
    return None


def faults(case: Case, notes: list[str]) -> Iterator[str]:
    """Yield where the tables and the manifest are not those that the scenario's timeline gives.

    What cannot be played again is said in ``notes``. Code that a scenario names is not run, so that looking at a directory
    does no more than that.
    """
    why = own_code(case.scenario) or (None if "partition" in case.tables else "there is no partition to go by")
    if why is None:
        try:
            stored = reserve.stored(case.folder)
            built = _built(case, stored)
        except (ScenarioError, RunDirectoryError) as error:
            why = str(error)
        else:
            yield from _redrawn(case, stored, notes)
            follows = not built.world.strategy.reads_outcomes or case.scenario.strategy.name in _HEARING
            if follows or built.world.timing_only:
                yield from _played_again(case, built)
                return
            why = "its strategy decides on trained parameters"
    notes.append(f"the timeline was not played again: {why}")


def _built(case: Case, stored: Stored | None) -> Built:
    if case.manifest.get("timing_only"):
        full_work = bool(case.manifest.get("assumed_full_work"))
        return build(case.scenario, timing_only=True, assume_full_work=full_work, stored=stored)
    size = None
    if ":" in (name := case.scenario.model.name):
        size = rundir.model_bytes(case.folder)
        if size is None:
            raise ScenarioError(f"[model] {name} is code of the scenario's own, and there is no model to tell its size")
    return build(case.scenario, stored=stored, told=Told(lambda sizes: Teller(case, sizes), size))


def _redrawn(case: Case, stored: Stored | None, notes: list[str]) -> Iterator[str]:
    """Yield where another partition was dealt out than the seed's."""
    if stored is None:
        return
    wrote, mine = ((found or {}).get("numpy") for found in (case.manifest.get("versions"), versions()))
    if wrote != mine:
        notes.append(f"the partition was not drawn again: NumPy {wrote} drew it, this is NumPy {mine}")
        return
    drawn = allotment.allotted(case.scenario, anew=True)
    for table, what, ours, theirs in (
        ("partition", "samples of client", drawn.people.parts, stored.parts),
        ("kept_back", "samples of client", drawn.held, stored.held),
        (
            "partition",
            "validation samples",
            *([() if part is None else (part,) for part in (drawn.validation, stored.validation)]),
        ),
    ):
        unlike = [number for number, pair in enumerate(zip(ours, theirs, strict=False)) if not np.array_equal(*pair)]
        if unlike or len(ours) != len(theirs):
            which = f"{what} {unlike[0]}" if unlike and what.endswith("client") else what
            yield f"the table {table} does not hold the {which} that the scenario and its seed give"


def _played_again(case: Case, built: Built) -> Iterator[str]:
    """Play as far as the log goes, and compare."""
    whole = case.events
    last = whole["ticks"].max() if len(whole) else -1
    sure = whole if case.finished else whole.filter(pl.col("ticks") < last)  # the last instant may be cut short
    trained = {"loss", *_WEIGHED.get(case.scenario.strategy.name, ())}
    compared = Comparison(sure, set() if built.world.timing_only else trained)
    session = Session(built, None, sink=compared)
    teller: Any = built.world.executor
    teller.clock = lambda: int(session.engine.env.now)
    _play(session, int(last) if not case.written else round(case.manifest["summary"]["virtual_time_s"] * 1e6))  # pyright: ignore[reportArgumentType]
    yield from compared.faults.values()
    same = compared.rows == len(whole)
    if case.finished and not same:
        yield f"the table events has {len(whole)} rows; played again it has {compared.rows}"
    if case.written:
        yield from _tables(case, session, whole=same)
        yield from _manifest(case, session, whole=same)


def _play(session: Session, tick: int) -> None:
    """Play up to an instant, or to the stop, or to the error that ended the run; then close the accounts as a session does."""
    engine = session.engine
    try:
        engine.play_to(tick)
    except RunError as error:
        session.status, session.error = FAILED, f"{type(error).__name__}: {error}"
    if engine.why is None:
        engine.usage.close(engine.flights.values(), engine.now)
    session.timeline_sha256 = engine.log.finish(tick if engine.why is None and session.error is None else session.ticks)
    engine.settle()


def _tables(case: Case, session: Session, *, whole: bool) -> Iterator[str]:
    """Compare every other table; of a run that ended within an instant, what no longer changes."""
    engine, there = session.engine, case.tables
    clients = rundir.clients(session.built, engine.usage, session.ticks)
    made = {
        "clients": clients,
        "partition": rundir.partition(session.built),
        "metrics": rundir.metrics(session.evaluations),
    }
    if whole:
        bill = session.built.tariff.of(engine.usage.columns(), session.ticks)
        made |= balance.made(case.events.lazy(), clients, bill)
    if session.built.held:
        made["kept_back"] = reserve.kept_back(session.built)
        examples = [(client, len(part)) for client, part in enumerate(session.built.held) if len(part)]
        made["held_out"] = pl.DataFrame(examples, schema={"client": pl.Int64, "examples": pl.Int64}, orient="row")
    if engine.roads and whole:
        made["links"] = link_usage.table(engine.roads, session.ticks)
    for name, table in made.items():
        if name not in there:
            continue
        if name == "metrics" and not case.finished:
            rows = min(len(table), len(there[name]))
            yield from _differences(name, there[name].head(rows), table.head(rows))
        else:
            yield from _differences(name, there[name], table, _CONSTANTS if name == "clients" and not whole else ())


def _manifest(case: Case, session: Session, *, whole: bool) -> Iterator[str]:
    """Compare what the manifest says, wall facts apart."""
    said = case.manifest
    due = json.loads(json.dumps(manifest_of(session, said.get("model_sha256"))))
    for name in sorted(due.keys() - {*_APART, *due["wall_fields"]}):
        if said.get(name) != due[name]:
            yield f"the manifest says {name} = {said.get(name)!r}; played again it is {due[name]!r}"
    if not whole:
        return
    apart = {"wall_s"} if case.finished else {"wall_s", "accuracy", "loss", "best"}
    for name in sorted((due["summary"].keys() | said["summary"].keys()) - apart):
        if not recount.same(said["summary"].get(name), due["summary"].get(name)):
            told = (repr(summary.get(name)) for summary in (said["summary"], due["summary"]))
            yield "the manifest says {} = {}; played again it is {}".format(name, *told)
