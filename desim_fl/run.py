"""One run from a scenario to its directory, and the same without training: ``plan``."""

from __future__ import annotations

import math
import platform
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime  # provenance only: host time never enters virtual time
from functools import partial
from importlib import import_module
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, Any

from desim_fl import __version__
from desim_fl.build import Built, build
from desim_fl.checkpointing import Keeper, asleep, identity, latest
from desim_fl.continuation import ResumableEngine
from desim_fl.errors import BudgetSpent, DesimError, ScenarioError
from desim_fl.eventlog import EventLog, ParquetSink
from desim_fl.provenance import versions
from desim_fl.scenario import load
from desim_fl.usage import spread, staleness_summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from desim_fl.allotment import Stored
    from desim_fl.checkpointing import Saved
    from desim_fl.engine import Engine
    from desim_fl.evaluation import Evaluation
    from desim_fl.eventlog import Segment
    from desim_fl.rundir import WallParts
    from desim_fl.scenario import Scenario

RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"


@dataclass(slots=True)
class Session:
    """A run being played: its engine, what was measured, and where it is written (``None`` = nowhere, or to ``sink``).

    ``keeper`` keeps checkpoints; with ``saved`` the run goes on from one.
    """

    built: Built
    folder: Path | None
    keeper: Keeper | None = None
    saved: Saved | None = None
    sink: Callable[[Segment], None] | None = None
    engine: ResumableEngine = field(init=False)
    evaluations: list[Evaluation] = field(init=False, default_factory=list)
    status: str = field(init=False, default=FINISHED)
    error: str | None = field(init=False, default=None)
    timeline_sha256: str = field(init=False, default="")
    began: float = field(init=False, default_factory=perf_counter)
    wall: WallParts | None = field(init=False, default=None)
    resumed_ticks: int = field(init=False, default=-1)

    def __post_init__(self) -> None:
        sink = self.sink if self.folder is None else self._sinks(self.folder)
        world = self.built.world if self.saved is None else asleep(self.built.world)
        self.engine = ResumableEngine(world, EventLog(sink), self._record)
        if self.saved is not None:
            self.evaluations.extend(self.saved.evaluations)
            self.resumed_ticks = self.saved.held.tick

    def _sinks(self, folder: Path) -> ParquetSink:
        """Where rows go: the executor's real seconds, and the event log."""
        from desim_fl.rundir import WallParts  # noqa: PLC0415  (what writes nothing needs no tables)

        rows = getattr(self.built.world.executor, "wall", None)
        self.wall = None if rows is None else WallParts(folder, rows)
        return ParquetSink(folder / "events", () if self.saved is None else self.saved.held.tail.parts)

    def _record(self, evaluation: Evaluation) -> None:
        if evaluation.ticks > self.resumed_ticks:  # else it stands there already, with its scores
            self.evaluations.append(evaluation)

    def play(self, watch: Callable[[Session], None] | None = None) -> None:
        """Play to the stop; a failure or Ctrl-C is remembered, and what was computed stays."""
        try:
            self.timeline_sha256 = self._played(watch)
        except BaseException as error:
            self.status = FAILED if isinstance(error, Exception) else INTERRUPTED
            self.error = f"{type(error).__name__}: {error}"
            if self.engine.why is None:  # else the stop has closed the accounts
                self.engine.usage.close(self.engine.flights.values(), self.engine.now)
            for rescue in (self._finish_log, self.engine.settle):
                try:
                    rescue()
                except Exception as second:  # noqa: BLE001  (the first error is the one to tell)
                    error.add_note(f"{rescue.__name__} failed too: {second}")
            raise
        finally:
            self.built.world.executor.close()

    def _played(self, watch: Callable[[Session], None] | None) -> str:
        unwatched = watch is self.keeper is self.wall is self.built.scenario.run.max_wall_s is None
        looked = None if unwatched else partial(self._after_each, watch)
        if self.saved is None:
            return self.engine.run(looked)
        held, self.saved = self.saved.held, None  # what it held must not outlive its use
        return self.engine.resume(held, looked)

    def _after_each(self, watch: Callable[[Session], None] | None, _: Engine) -> None:
        """After every arrival the executor's rows go to the disk, checkpoints are kept, and who looks on is called."""
        if self.wall is not None:
            self.wall.drain()
        if self.keeper is not None:
            self.keeper.look(self.engine, self.evaluations)
        try:
            if watch is not None:
                watch(self)
            self._check_budget()
        except KeyboardInterrupt:
            if self.keeper is not None and self.engine.between_instants:
                self.keeper.keep(self.engine, self.evaluations)
            raise

    def _check_budget(self) -> None:
        """Interrupt the run, as Ctrl-C does, when its real seconds are used up and an instant is over."""
        budget, engine = self.built.scenario.run.max_wall_s, self.engine
        if budget is None or engine.why is not None or perf_counter() - self.began < budget:
            return
        if engine.between_instants:
            raise BudgetSpent(f"max_wall_s = {budget:g} real seconds are used up")

    def _finish_log(self) -> None:
        self.timeline_sha256 = self.engine.log.finish(self.ticks)

    @property
    def ticks(self) -> int:
        """Virtual time reached."""
        return self.engine.final_ticks if self.engine.why is not None else self.engine.now

    def last_score(self) -> tuple[float | None, float | None]:
        """Accuracy and loss of the last test evaluation; ``None`` where there is none or it is not finite."""
        tests = (score for e in reversed(self.evaluations) for score in reversed(e.scores) if score.split == "test")
        last = next(tests, None)
        return (None, None) if last is None else (finite(last.accuracy), finite(last.loss))


def finite(value: float | None) -> float | None:
    """Return the number, or ``None`` where JSON could not hold it."""
    return value if value is not None and math.isfinite(value) else None


def summary(session: Session) -> dict[str, Any]:
    """Headline numbers of a run, as they stand in the manifest."""
    engine, ledger, usage = session.engine, session.engine.ledger, session.engine.usage
    accuracy, loss = session.last_score()
    built, people = session.built, len(session.built.population)
    return {
        "accuracy": accuracy,
        "loss": loss,
        "virtual_time_s": session.ticks / 1e6,
        "versions": engine.model.version,
        "updates": ledger.arrived,
        "dispatched": ledger.dispatched,
        "applied": ledger.applied,
        "buffered": ledger.buffered,
        "rejected": ledger.rejected,
        "lost": ledger.lost,
        "cancelled": ledger.cancelled,
        "in_flight": len(engine.flights),
        **{name: getattr(ledger, name) for name in ("retries", "overdue", "late", "duplicates")},
        "losses": dict(sorted(engine.losses.items())),
        "bytes_down": ledger.bytes_down,
        "bytes_up": ledger.bytes_up,
        "staleness": staleness_summary(usage.staleness),
        "updates_a_client": spread(usage.arrivals, people),
        **usage.times(session.ticks, ledger.arrived, queues=built.world.client_queue > 1),
        **built.tariff.of(usage.columns(), session.ticks).summary(),
        **_links(session),
        **({} if engine.server is None else {"server": engine.server.summary(session.ticks)}),
        "stop": engine.why,
        **_best(engine),
    }


def _links(session: Session) -> dict[str, Any]:
    """How much the server's link was used, where transfers share it."""
    if not session.engine.roads:
        return {}
    from desim_fl import link_usage  # noqa: PLC0415  (only these runs need tables for their summary)

    links = link_usage.table(session.engine.roads, session.ticks)
    return {"links": link_usage.summary(links, session.ticks / 1e6)}


def _best(engine: ResumableEngine) -> dict[str, Any]:
    """The best evaluation of a run that watches for one."""
    if engine.monitored is None:
        return {}
    found = engine.monitored.best
    return {"best": {"value": finite(found.value), "evaluation": found.evaluation, "version": found.version}}


def manifest(session: Session, model_sha256: str | None) -> dict[str, Any]:
    """Everything that identifies a run and its result; ``created``, ``wall_s`` and ``host`` are wall facts."""
    built, scenario = session.built, session.built.scenario
    executor, keeper = scenario.executor, session.keeper
    return {
        "desim_fl": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": session.status,
        "error": session.error,
        "timing_only": built.world.timing_only,
        "assumed_full_work": built.world.assume_full_work,
        "scenario_name": scenario.name,
        "scenario_sha256": scenario.sha256(),
        "seed": scenario.run.seed,
        "timeline_sha256": session.timeline_sha256,
        "model_sha256": model_sha256,
        "partition_sha256": built.population.sha256(),
        "data": {"name": scenario.data.name, "sha256": built.data_sha256},
        "trace": _trace(built),
        "versions": versions(),
        "device": None if built.task is None else str(getattr(built.task, "device", "cpu")),
        "executor": built.world.executor.name,
        "executor_reason": built.executor_reason,
        "reuse": _reuse(session),
        "resumed_at_s": None if session.resumed_ticks < 0 else session.resumed_ticks / 1e6,
        "checkpoints": None if keeper is None else {"kept": keeper.count, "refused": keeper.refused},
        "threads_per_job": executor.threads_per_job,
        "host": {"platform": platform.platform(), "machine": platform.machine()},
        "summary": {**summary(session), "wall_s": round(perf_counter() - session.began, 3)},
        "wall_fields": _wall_fields(near=built.world.executor.name == "vmap"),
    }


def _trace(built: Built) -> dict[str, Any] | None:
    """What is known of the availability trace; ``None`` where there is none."""
    return (
        None
        if built.trace is None
        else {key: value for key, value in built.trace._asdict().items() if key != "windows"}
    )


def _wall_fields(*, near: bool) -> list[str]:
    """Names of what does not bear on the result; vmap does, in its last bits."""
    about = ["created", "host", "executor", "executor_reason", "reuse", "resumed_at_s", "checkpoints", "files"]
    fields = [*about, "summary.wall_s"]
    return [field for field in fields if field != "executor" or not near]


def _reuse(session: Session) -> dict[str, int] | None:
    """How many jobs and evaluations came from the store of outcomes; ``None`` where it is off."""
    executor = session.built.world.executor
    names = ("reused", "trained", "rescored")
    return {name: getattr(executor, name) for name in names} if hasattr(executor, "rescored") else None


def execute(
    scenario: Scenario,
    folder: Path | None,
    *,
    timing_only: bool = False,
    assume_full_work: bool = False,
    watch: Callable[[Session], None] | None = None,
    stored: Stored | None = None,
    observe: Callable[[Session], None] | None = None,
) -> dict[str, Any]:
    """Play a scenario and write its run directory (``folder = None``: nothing is written); returns the manifest.

    With ``timing_only`` nothing is trained; ``assume_full_work`` then lets what reads trained values read nothing.
    ``stored`` is a partition to keep instead of drawing one; ``observe`` is called with the session before it plays.

    Raises ``ScenarioError`` before anything is written, ``RunDirectoryError`` where the directory is taken, and
    ``RunError`` for a failure on the way, after writing everything that was computed, with status "failed".
    """
    built = build(scenario, timing_only=timing_only, assume_full_work=assume_full_work, stored=stored)
    if folder is None:
        session = Session(built, None)
        if observe is not None:
            observe(session)
        session.play(watch)
        return manifest(session, None)
    from desim_fl import rundir  # noqa: PLC0415  (a plan that writes nothing needs no tables)

    with rundir.claimed(folder):
        rundir.write_bytes(folder / "scenario.toml", scenario.to_toml().encode())
        return _played(built, folder, watch, None, observe)


def resume(
    folder: Path, overrides: Sequence[str] = (), *, watch: Callable[[Session], None] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Go on with a run that stopped, from its last whole checkpoint; returns the manifest, and what was passed over.

    ``overrides`` may choose another executor, not another result. A run that is finished is left alone.

    Raises ``RunDirectoryError`` where there is no run, or it is still being written, and ``CheckpointError`` where
    going on would not give the result that the run would have had.
    """
    from desim_fl import reserve, rundir  # noqa: PLC0415

    with rundir.reclaimed(folder):
        known = rundir.known_manifest(folder)
        if known is not None and rundir.complete(known):
            return known, ["the run is finished already"]
        written, scenario = _resumable(folder, overrides)
        built = build(
            scenario,
            timing_only=bool(known and known.get("timing_only")),
            assume_full_work=bool(known and known.get("assumed_full_work")),
            stored=reserve.stored(folder),
        )
        built = replace(built, scenario=written)
        device = str(getattr(built.task, "device", "cpu"))
        try:
            saved, faults = latest(folder, identity(built, versions()), device)
            return _played(built, folder, watch, saved), faults
        except BaseException:
            built.world.executor.close()
            raise


def _resumable(folder: Path, overrides: Sequence[str]) -> tuple[Scenario, Scenario]:
    """Load the scenario that a run directory holds, and the same with another choice of who trains the rest."""
    written = load(folder / "scenario.toml")
    scenario = load(folder / "scenario.toml", list(overrides))
    who = {name: getattr(written.executor, name) for name in ("name", "workers", "reuse", "reuse_limit_gb")}
    if scenario.model_copy(update={"executor": scenario.executor.model_copy(update=who)}) != written:
        raise ScenarioError(f"{folder}: for the rest of a run only {', '.join(who)} of [executor] can be changed")
    if written.executor.bits() != scenario.executor.bits():
        raise ScenarioError(f"{folder}: what vmap began only vmap can end alike, and the other way round")
    return written, scenario


def _played(
    built: Built,
    folder: Path,
    watch: Callable[[Session], None] | None,
    saved: Saved | None,
    observe: Callable[[Session], None] | None = None,
) -> dict[str, Any]:
    """Play in a directory that is claimed, from the start or a checkpoint, and write everything."""
    from desim_fl import reserve, rundir  # noqa: PLC0415

    reserve.write_partition(folder, built)
    session = Session(built, folder, Keeper(built, folder, identity(built, versions())), saved)
    rundir.write_manifest(folder, {**manifest(session, None), "status": RUNNING})
    if observe is not None:
        observe(session)
    with _written(session, folder):
        session.play(watch)
    return rundir.read_manifest(folder)


@contextmanager
def _written(session: Session, folder: Path) -> Iterator[None]:
    """Write tables, model, manifest and report when the body ends, however it ends."""
    try:
        yield
    finally:
        _write(session, folder)


def _write(session: Session, folder: Path) -> None:
    """Write what there is; the manifest always, with a line for whatever could not be written.

    Raises ``DesimError`` if the run was complete and something could not.
    """
    from desim_fl import rundir  # noqa: PLC0415

    faults: list[str] = []
    known: dict[str, Any] | None = None
    for what, write in _products(session, folder).items():
        try:
            result = write()
        except Exception as error:  # noqa: BLE001  (each product is independent of the others)
            faults.append(f"{what} could not be written: {type(error).__name__}: {error}")
            result = None
        if what == "model.safetensors":
            known = manifest(session, result)
            rundir.write_manifest(folder, known)  # the report reads it
    assert known is not None  # and says what it says, real seconds included
    rundir.write_manifest(folder, {**known, "files": rundir.file_hashes(folder), "unwritten": faults})
    if faults and session.status == FINISHED:
        raise DesimError(f"the run is complete in {folder}, but {'; '.join(faults)}")


def _products(session: Session, folder: Path) -> dict[str, Callable[[], Any]]:
    """What a run directory gets at the end, in order; the model before the manifest, the report after it."""
    from desim_fl import link_usage, report, reserve, rundir  # noqa: PLC0415

    built, usage, ticks = session.built, session.engine.usage, session.ticks
    ended = session.status == FINISHED

    def model() -> str | None:
        return None if built.task is None else rundir.save_model(folder, built.task.tensors(session.engine.model))

    def links() -> None:
        if session.engine.roads:
            links = link_usage.table(session.engine.roads, ticks)
            rundir.write_table(folder / "links.parquet", links)

    return {
        "links": links,
        "metrics": lambda: rundir.write_table(folder / "metrics.parquet", rundir.metrics(session.evaluations)),
        "clients, classes and losses": lambda: rundir.write_clients(folder, built, usage, ticks),
        "held_out": lambda: reserve.write_scores(folder, built, session.engine.model) if ended else None,
        "wall": (session.wall or rundir.WallParts(folder, [])).finish,
        "model.safetensors": model,
        "report.html": lambda: report.write(folder),
    }


class _Callable(ModuleType):
    """This module, called, runs a scenario: ``desim_fl.run(...)`` is the first thing that anybody tries."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Do as :func:`desim_fl.api.run` does."""
        return import_module("desim_fl.api").run(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
