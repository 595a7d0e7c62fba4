"""desim-fl from Python: ``desim_fl.run``, ``desim_fl.plan``, ``desim_fl.load_run``.

Each returns a :class:`Run`: its summary, its tables as polars frames, and, in a notebook, a page of headline numbers.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from desim_fl.effort import effort
from desim_fl.errors import RunDirectoryError
from desim_fl.run import execute
from desim_fl.scenario import Scenario, from_tables, load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from desim_fl.effort import Effort
    from desim_fl.run import Session

TABLES = ("events", "metrics", "clients", "classes", "losses", "links", "partition", "wall")
_SHOWN = ("accuracy", "loss", "virtual_time_s", "versions", "updates", "rejected", "lost", "in_flight", "stop")


@dataclass(frozen=True)
class Run:
    """A run or a plan that has been played; ``folder`` is ``None`` for a plan that was not written.

    ``training`` is what a plan says of the training that it leaves out (:class:`desim_fl.effort.Effort`). The tables ``events``, ``metrics``, ``clients``, ``partition`` and ``wall`` are read when they are first asked for.
    """

    manifest: dict[str, Any]
    folder: Path | None = None
    training: Effort | None = None
    _read: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def summary(self) -> dict[str, Any]:
        """Headline numbers, as they stand in the manifest."""
        return self.manifest["summary"]

    @property
    def report(self) -> Path | None:
        """The report's file, if there is one."""
        path = None if self.folder is None else self.folder / "report.html"
        return path if path is not None and path.is_file() else None

    @property
    def events(self) -> pl.DataFrame:
        """What happened, one row an event, in order."""
        return self.table("events")

    @property
    def metrics(self) -> pl.DataFrame:
        """Evaluations of the global model, one row a version and split."""
        return self.table("metrics")

    @property
    def clients(self) -> pl.DataFrame:
        """Constants and totals, one row a client."""
        return self.table("clients")

    @property
    def partition(self) -> pl.DataFrame:
        """Which training sample belongs to which client; -1 is the validation part."""
        return self.table("partition")

    @property
    def wall(self) -> pl.DataFrame:
        """Real seconds that training each job took."""
        return self.table("wall")

    def table(self, name: str) -> pl.DataFrame:
        """Return a table by name; raises ``RunDirectoryError`` where there is none."""
        from desim_fl import eventlog, tables  # noqa: PLC0415  (polars, only if somebody looks)

        if name not in TABLES:
            raise RunDirectoryError(f"a run has the tables {', '.join(TABLES)}, not {name}")
        if self.folder is None:
            raise RunDirectoryError("a plan that was not written has no tables; give it a folder: out=...")
        if name not in self._read:
            path = self.folder / f"{name}.parquet"
            if name != "events" and not path.is_file():
                raise RunDirectoryError(f"{path}: there is no such table")
            found = (
                tables.collected(eventlog.read(self.folder / "events")) if name == "events" else tables.parquet(path)
            )
            self._read[name] = found
        return self._read[name]

    def __repr__(self) -> str:
        """Name, status, updates and place, in a line."""
        where = "not written" if self.folder is None else str(self.folder)
        return f"<Run {self.manifest['scenario_name']}: {self.manifest['status']}, {self.summary['updates']} updates, {where}>"

    def _repr_html_(self) -> str:
        """Show name, status and headline numbers in a notebook."""
        shown = {key: self.summary.get(key) for key in _SHOWN if self.summary.get(key) is not None}
        staleness = self.summary["staleness"]
        rows = {
            "status": self.manifest["status"],
            **shown,
            "staleness": ", ".join(f"{name} {_told(staleness[name])}" for name in ("mean", "p99", "max")),
            "timeline_sha256": self.manifest["timeline_sha256"][:16],
        }
        if self.training is not None and self.training.real_s is not None:
            rows["training_it_s"] = f"about {self.training.real_s:,.3g}"
        if self.report is not None:
            rows["report"] = str(self.report)
        body = "".join(
            f"<tr><th>{html.escape(key)}</th><td>{html.escape(_told(value))}</td></tr>" for key, value in rows.items()
        )
        return f"<table><caption>{html.escape(str(self.manifest['scenario_name']))}</caption>{body}</table>"


def _told(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def scenario_of(
    what: str | Path | Mapping[str, Any] | Scenario,
    overrides: Sequence[str],
    seed: int | None,
    unset: Sequence[str] = (),
) -> Scenario:
    """Return a scenario: a file's, a document's (a dict of tables), or the one that is given, less what is unset, with overrides and seed.

    Raises ``ScenarioError`` where it is unsound.
    """
    if isinstance(what, (str, Path)):
        return load(what, list(overrides), seed, unset=list(unset))
    if isinstance(what, Scenario):
        if not overrides and not unset and seed is None:
            return what
        what = what.resolved()
    return from_tables(what, list(overrides), seed, unset=list(unset))


def run(
    scenario: str | Path | Mapping[str, Any] | Scenario,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    unset: Sequence[str] = (),
    seed: int | None = None,
) -> Run:
    """Train in virtual time and write a run directory: ``out``, or the first free ``reports/NAME``.

    ``overrides`` are ``"table.key=value"`` as after ``--set``, ``unset`` keys as after ``--unset``. Raises as :func:`desim_fl.run.execute` does.
    """
    found = scenario_of(scenario, overrides, seed, unset)
    if out is None:
        from desim_fl.rundir import free_name  # noqa: PLC0415

        out = free_name(Path("reports"), found.name)
    return Run(execute(found, Path(out)), Path(out))


def plan(
    scenario: str | Path | Mapping[str, Any] | Scenario,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    unset: Sequence[str] = (),
    seed: int | None = None,
    assume_full_work: bool = False,
) -> Run:
    """Play the same timeline without training; nothing is written without ``out``.

    A scenario that reads trained values is refused (``RefusedError``), or with ``assume_full_work`` played as if nothing
    were read.
    """
    found = scenario_of(scenario, overrides, seed, unset)
    folder = None if out is None else Path(out)
    sessions: list[Session] = []
    manifest = execute(found, folder, timing_only=True, assume_full_work=assume_full_work, observe=sessions.append)
    return Run(manifest, folder, effort(sessions[0]))


def load_run(folder: str | Path) -> Run:
    """Open a run directory; raises ``RunDirectoryError`` where there is none."""
    from desim_fl.rundir import read_manifest  # noqa: PLC0415

    return Run(read_manifest(Path(folder)), Path(folder))
