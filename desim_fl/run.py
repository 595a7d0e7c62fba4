"""One run from a scenario to its directory, and the same without training: ``plan``."""

from __future__ import annotations

import math
import platform
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime  # provenance only: host time never enters virtual time
from importlib import metadata
from time import perf_counter
from typing import TYPE_CHECKING, Any

from desim_fl import __version__
from desim_fl.build import Built, build
from desim_fl.engine import Engine
from desim_fl.errors import DesimError
from desim_fl.eventlog import EventLog, ParquetSink
from desim_fl.usage import quantile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from desim_fl.evaluation import Evaluation
    from desim_fl.scenario import Scenario

FINISHED, FAILED, INTERRUPTED = "finished", "failed", "interrupted"
_RECORDED = ("numpy", "simpy", "polars", "torch", "torchvision", "altair", "safetensors", "pydantic")


@dataclass(slots=True)
class Session:
    """A run being played: its engine, what was measured, and where it is written (``None`` = nowhere)."""

    built: Built
    folder: Path | None
    engine: Engine = field(init=False)
    evaluations: list[Evaluation] = field(init=False, default_factory=list)
    status: str = field(init=False, default=FINISHED)
    error: str | None = field(init=False, default=None)
    timeline_sha256: str = field(init=False, default="")
    began: float = field(init=False, default_factory=perf_counter)

    def __post_init__(self) -> None:
        sink = None if self.folder is None else ParquetSink(self.folder / "events")
        self.engine = Engine(self.built.world, EventLog(sink), self.evaluations.append)

    def play(self, watch: Callable[[Session], None] | None = None) -> None:
        """Play to the stop; a failure or Ctrl-C is remembered, and what was computed stays."""
        try:
            self.timeline_sha256 = self.engine.run(None if watch is None else lambda _: watch(self))
        except (Exception, KeyboardInterrupt) as error:
            self.status = INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED
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

    def _finish_log(self) -> None:
        self.timeline_sha256 = self.engine.log.finish(self.ticks)

    @property
    def ticks(self) -> int:
        """Virtual time reached."""
        return self.engine.final_ticks if self.engine.why is not None else self.engine.now

    def last_score(self) -> tuple[float | None, float | None]:
        """Accuracy and loss of the last test evaluation; ``None`` where there is none or it is not finite."""
        tests = [score for e in self.evaluations for score in e.scores if score.split == "test"]
        return (finite(tests[-1].accuracy), finite(tests[-1].loss)) if tests else (None, None)


def finite(value: float | None) -> float | None:
    """Return the number, or ``None`` where JSON could not hold it."""
    return value if value is not None and math.isfinite(value) else None


def summary(session: Session) -> dict[str, Any]:
    """Headline numbers of a run, as they stand in the manifest."""
    engine, ledger, usage = session.engine, session.engine.ledger, session.engine.usage
    accuracy, loss = session.last_score()
    seconds, legs, people = session.ticks / 1e6, usage.total(), len(session.built.population)
    arrived = ledger.arrived
    total = sum(value * count for value, count in usage.staleness.items())
    return {
        "accuracy": accuracy,
        "loss": loss,
        "virtual_time_s": seconds,
        "versions": engine.model.version,
        "updates": arrived,
        "dispatched": ledger.dispatched,
        "applied": ledger.applied,
        "buffered": ledger.buffered,
        "rejected": ledger.rejected,
        "lost": ledger.lost,
        "cancelled": ledger.cancelled,
        "in_flight": ledger.in_flight,
        "bytes_down": ledger.bytes_down,
        "bytes_up": ledger.bytes_up,
        "staleness": {
            "mean": total / arrived if arrived else None,
            "p50": quantile(usage.staleness, 0.5),
            "p99": quantile(usage.staleness, 0.99),
            "max": max(usage.staleness, default=None),
        },
        "updates_a_client": _spread([account.arrivals for account in usage.accounts.values()], people),
        "leg_s": {leg: ticks / 1e6 for leg, ticks in legs._asdict().items()},
        "utilisation": sum(legs) / (session.ticks * people) if session.ticks else None,
        "mean_in_flight": sum(legs) / session.ticks if session.ticks else None,
        "updates_a_second": arrived / seconds if seconds else None,
        "stop": engine.why,
    }


def _spread(arrivals: list[int], clients: int) -> dict[str, float]:
    """Minimum, median, mean and maximum of updates over all clients, those without any included."""
    counts = sorted([0] * (clients - len(arrivals)) + arrivals)
    middle = (counts[(clients - 1) // 2] + counts[clients // 2]) / 2
    return {"min": counts[0], "median": middle, "mean": sum(counts) / clients, "max": counts[-1]}


def manifest(session: Session, model_sha256: str | None) -> dict[str, Any]:
    """Everything that identifies a run and its result; ``created``, ``wall_s`` and ``host`` are wall facts."""
    built, scenario = session.built, session.built.scenario
    executor = scenario.executor
    return {
        "desim_fl": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": session.status,
        "error": session.error,
        "timing_only": built.world.timing_only,
        "scenario_name": scenario.name,
        "scenario_sha256": scenario.sha256(),
        "seed": scenario.run.seed,
        "timeline_sha256": session.timeline_sha256,
        "model_sha256": model_sha256,
        "partition_sha256": built.population.sha256(),
        "data": {"name": scenario.data.name, "sha256": built.data_sha256},
        "versions": versions(),
        "device": None if built.task is None else str(getattr(built.task, "device", "cpu")),
        "executor": built.world.executor.name,
        "executor_reason": built.executor_reason,
        "reuse": _reuse(session),
        "threads_per_job": executor.threads_per_job,
        "host": {"platform": platform.platform(), "machine": platform.machine()},
        "summary": {**summary(session), "wall_s": round(perf_counter() - session.began, 3)},
        "wall_fields": ["created", "host", "executor", "executor_reason", "reuse", "summary.wall_s"],
    }


def _reuse(session: Session) -> dict[str, int] | None:
    """How many jobs and evaluations came from the store of outcomes; ``None`` where it is off."""
    executor = session.built.world.executor
    names = ("reused", "trained", "rescored")
    return {name: getattr(executor, name) for name in names} if hasattr(executor, "rescored") else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on; imports none of them."""
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # running from a tree without metadata
            continue
    return found


def execute(
    scenario: Scenario,
    folder: Path | None,
    *,
    timing_only: bool = False,
    watch: Callable[[Session], None] | None = None,
) -> dict[str, Any]:
    """Play a scenario and write its run directory (``folder = None``: nothing is written); returns the manifest.

    Raises ``ScenarioError`` before anything is written, ``RunDirectoryError`` where the directory is taken, and
    ``RunError`` for a failure on the way, after writing everything that was computed, with status "failed".
    """
    built = build(scenario, timing_only=timing_only)
    if folder is None:
        session = Session(built, None)
        session.play(watch)
        return manifest(session, None)
    from desim_fl import rundir  # noqa: PLC0415  (a plan that writes nothing needs no tables)

    rundir.claim(folder)
    rundir.write_bytes(folder / "scenario.toml", scenario.to_toml().encode())
    rundir.write_table(folder / "partition.parquet", rundir.partition(built))
    session = Session(built, folder)
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
    import polars as pl  # noqa: PLC0415

    from desim_fl import report, rundir  # noqa: PLC0415

    built = session.built
    rundir.write_table(folder / "metrics.parquet", rundir.metrics(session.evaluations))
    rundir.write_table(folder / "clients.parquet", rundir.clients(built, session.engine.usage))
    wall = getattr(built.world.executor, "wall", None)
    if wall is not None:
        rundir.write_table(folder / "wall.parquet", pl.DataFrame(wall, schema=rundir.WALL_SCHEMA, orient="row"))
    model_sha256 = None
    if built.task is not None:
        model_sha256 = rundir.save_model(folder, built.task.tensors(session.engine.model))
    facts = manifest(session, model_sha256)
    rundir.write_manifest(folder, facts)
    try:
        report.write(folder)
    except Exception as error:
        if session.status == FINISHED:
            raise DesimError(f"the run is complete in {folder}, but its report failed: {error}") from error
        rundir.write_manifest(folder, {**facts, "report_error": f"{type(error).__name__}: {error}"})
