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
from desim_fl.usage import spread, staleness_summary, time_summary

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
    people = len(session.built.population)
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
        "in_flight": ledger.in_flight,
        "bytes_down": ledger.bytes_down,
        "bytes_up": ledger.bytes_up,
        "staleness": staleness_summary(usage.staleness),
        "updates_a_client": spread(usage.arrivals, people),
        **time_summary(usage.total(), session.ticks, people, ledger.arrived),
        "stop": engine.why,
    }


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
    """Write what there is; the manifest always, with a line for whatever could not be written.

    Raises ``DesimError`` if the run was complete and something could not.
    """
    from desim_fl import rundir  # noqa: PLC0415

    faults: list[str] = []
    model_sha256: str | None = None
    for what, write in _products(session, folder).items():
        try:
            result = write()
        except Exception as error:  # noqa: BLE001  (each product is independent of the others)
            faults.append(f"{what} could not be written: {type(error).__name__}: {error}")
        else:
            model_sha256 = result if what == "model.safetensors" else model_sha256
        if what == "model.safetensors":
            rundir.write_manifest(folder, manifest(session, model_sha256))  # the report reads it
    rundir.write_manifest(folder, {**manifest(session, model_sha256), "unwritten": faults})
    rundir.unclaim(folder)
    if faults and session.status == FINISHED:
        raise DesimError(f"the run is complete in {folder}, but {'; '.join(faults)}")


def _products(session: Session, folder: Path) -> dict[str, Callable[[], Any]]:
    """What a run directory gets at the end, in order; the model before the manifest, the report after it."""
    import polars as pl  # noqa: PLC0415

    from desim_fl import report, rundir  # noqa: PLC0415

    built = session.built
    wall = getattr(built.world.executor, "wall", [])

    def timed() -> None:
        rundir.write_table(folder / "wall.parquet", pl.DataFrame(wall, schema=rundir.WALL_SCHEMA, orient="row"))

    def model() -> str | None:
        return None if built.task is None else rundir.save_model(folder, built.task.tensors(session.engine.model))

    return {
        "metrics": lambda: rundir.write_table(folder / "metrics.parquet", rundir.metrics(session.evaluations)),
        "clients": lambda: rundir.write_table(folder / "clients.parquet", rundir.clients(built, session.engine.usage)),
        "wall": timed,
        "model.safetensors": model,
        "report.html": lambda: report.write(folder),
    }
