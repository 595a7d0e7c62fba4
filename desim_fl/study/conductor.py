"""Conducts a study: tunes, plays what is not played yet, compares, and writes everything into one folder.

The folder holds ``study.toml`` and ``base.toml`` (as read), ``journal.jsonl`` (one line a run, the only state), the Parquet
tables ``runs, variants, effects, reach, survival, curves, tuning``, ``manifest.json``, ``digest.md`` and ``report.html``; with
``keep_runs`` also ``runs/KEY``, a run directory each. A study that was stopped goes on where it stands; one
whose file was changed plays only what is new.
"""

from __future__ import annotations

import gc
from contextlib import closing, contextmanager
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl import __version__, rundir
from desim_fl.errors import RunDirectoryError, RunError
from desim_fl.provenance import versions
from desim_fl.scenario.overrides import path_of
from desim_fl.study import crew, digest, effects, tuning
from desim_fl.study.journal import NAME, Journal
from desim_fl.study.playing import Task, key_of
from desim_fl.study.variants import factor_names, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from desim_fl.scenario import Scenario
    from desim_fl.study.crew import Players
    from desim_fl.study.playing import Row
    from desim_fl.study.reading import Plan
    from desim_fl.study.variants import Setting, Variant


class Progress(NamedTuple):
    """How far a study is: its stage, the label and seed of the run that just ended, its row, and counts."""

    stage: str
    label: str
    seed: int
    row: Row
    done: int
    total: int


class _Run(NamedTuple):
    """A run of the study before it is played."""

    label: str
    seed: int
    task: Task


def conduct(
    plan: Plan,
    folder: Path,
    workers: int | None = None,
    watch: Callable[[Progress], None] | None = None,
    players: Players | None = None,
) -> dict[str, Any]:
    """Conduct a study in a folder, going on where it stopped; returns its manifest.

    ``workers`` is how many runs play side by side (``None`` = one a core) on this machine, unless ``players`` are others, as on a
    :class:`~desim_fl.study.cluster.Cluster`. Raises ``RunDirectoryError`` where the
    folder holds something else. A run that fails is a row; the others go on.
    """
    with _claimed(folder, plan), Journal(folder) as journal:
        here = crew.Processes(crew.processes() if workers is None else workers)
        player = _Player(plan, folder, journal, players or here, watch)
        opening = Thread(target=_open_page)
        opening.start()
        chosen, trials = player.tuned()
        played = player.played(chosen)
        with _uncollected():
            tables = effects.tables(played, factor_names(plan.study), plan.study.target, plan.study.confidence)
        found = {**tables._asdict(), "tuning": trials}
        for name, table in found.items():
            rundir.write_table(folder / f"{name}.parquet", table)
        manifest = _manifest(plan, played, player.count, chosen)
        rundir.write_manifest(folder, manifest)
        rundir.write_bytes(folder / digest.NAME, digest.digest(manifest, tables).encode())
        opening.join()  # else both would bundle, where there was little to play
        _open_page().write(folder)
        return manifest


def _open_page() -> Any:
    """Import and bundle what draws the page, which nobody needs to play: beside the runs, while this process would only wait."""
    from desim_fl.report import sheet, study_page  # noqa: PLC0415

    sheet.bundle()
    return study_page


@contextmanager
def _claimed(folder: Path, plan: Plan) -> Iterator[None]:
    """Hold a study's folder, new or stopped before; raises ``RunDirectoryError`` where something else stands there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with rundir.locked(folder):
            others = [path for path in folder.iterdir() if path.name not in rundir.MARKS]
            if others and not (folder / NAME).is_file():
                raise RunDirectoryError(f"{folder} is not empty and holds no study; give another --out")
            rundir.write_bytes(folder / "study.toml", plan.text.encode())
            rundir.write_bytes(folder / "base.toml", plan.scenario.read_bytes())
            yield
    except OSError as error:
        raise RunDirectoryError(f"cannot write to {folder}: {error.strerror or error}; give another --out") from error


@contextmanager
def _uncollected() -> Iterator[None]:
    """Have no garbage collected meanwhile: of the many small objects of a large study none is in a cycle, and looking through them takes longer than the work."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class _Player:
    """Plays the runs of one study, each once."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        journal: Journal,
        players: Players,
        watch: Callable[[Progress], None] | None,
    ) -> None:
        self._plan, self._folder, self._journal, self._players, self._watch = plan, folder, journal, players, watch
        self.count = 0  # runs of the study itself that were played now, not found in the journal

    def tuned(self) -> tuple[dict[tuple[str, ...], int], Any]:
        """Play the tuning runs; return the chosen place of the grid by group, and the table. Raises RunError if none will do."""
        study = self._plan.study
        if study.tuning is None:
            return {}, tuning.empty()
        asked = tuning.trials(study, self._plan.variants)
        runs = [self._run(trial.settings, trial.seed, trial.label(study.tuning), keep=False) for trial in asked]
        rows = self._rows("tuning", runs)
        best, table = tuning.choices(study.tuning, study.target, list(zip(asked, rows, strict=True)))
        lost = [group for group, place in best.items() if not tuning.usable(table, group, study.tuning, place)]
        if lost:
            raise RunError(
                f"tuning: no value of {study.tuning.key} gave a finite {tuning.watched(study)} at the end with "
                f"{' · '.join(lost[0]) or 'the baseline'}; the rows are in {self._folder / NAME}"
            )
        return best, table

    def played(self, chosen: dict[tuple[str, ...], int]) -> list[effects.Played]:
        """Play every variant with every seed."""
        pairs = list(self._pairs(chosen))
        rows = self._rows("study", [run for _, run in pairs])
        return [effects.Played(variant, run.seed, row) for (variant, run), row in zip(pairs, rows, strict=True)]

    def _pairs(self, chosen: dict[tuple[str, ...], int]) -> Iterator[tuple[Variant, _Run]]:
        study = self._plan.study
        for variant, scenario in zip(self._plan.variants, self._plan.scenarios, strict=True):
            settings = variant.settings
            if study.tuning is not None:
                value = study.tuning.values[chosen[tuning.group_of(study, variant)]]
                settings = (*settings, (path_of(study.tuning.key), value))
                scenario = self._plan.scenario_of(settings, study.seeds[0], variant.label)  # noqa: PLW2901
            for seed in study.seeds:
                yield variant, self._of(_seeded(scenario, seed), seed, variant.label, keep=study.keep_runs)

    def _run(self, settings: Sequence[Setting], seed: int, label: str, *, keep: bool) -> _Run:
        return self._of(self._plan.scenario_of(settings, seed, label), seed, label, keep=keep)

    def _of(self, scenario: Scenario, seed: int, label: str, *, keep: bool) -> _Run:
        timing_only = self._plan.study.timing_only
        key = key_of(scenario, timing_only=timing_only)
        folder = self._folder / "runs" / key[:16] if keep else None
        return _Run(label, seed, Task(key, scenario, timing_only, folder, inline=self._players.inline))

    def _rows(self, stage: str, runs: Sequence[_Run]) -> list[Row]:
        """Play what the journal does not hold yet, equal runs once; return a row for each run, in order."""
        rows = self._journal.rows
        failed = {run.task.key for run in runs if rows.get(run.task.key, {}).get("status") == "failed"}
        wanted = {run.task.key: run for run in runs if run.task.key not in rows or run.task.key in failed}
        names = {run.task.key: run for run in runs}
        done = len(names) - len(wanted)
        with closing(self._players.played([run.task for run in wanted.values()])) as found:
            for row in found:
                self._journal.add(row)
                done += 1
                self.count += stage == "study"
                if self._watch is not None:
                    run = names[row["key"]]
                    self._watch(Progress(stage, run.label, run.seed, row, done, len(names)))
        return [rows[run.task.key] for run in runs]


def _seeded(scenario: Scenario, seed: int) -> Scenario:
    """Return the scenario with another seed."""
    run = scenario.run.model_copy(update={"seed": seed})
    return scenario.model_copy(update={"run": run})


def _manifest(
    plan: Plan, played: Sequence[effects.Played], now: int, chosen: dict[tuple[str, ...], int]
) -> dict[str, Any]:
    """Return what identifies a study, and its counts."""
    study = plan.study
    keys = {run.row["key"] for run in played}
    failed = [run for run in played if run.row["status"] != "finished"]
    picked = {} if study.tuning is None else {group: shown(study.tuning.values[at]) for group, at in chosen.items()}
    return {
        "desim_fl": __version__,
        "kind": "study",
        "status": "failed" if failed else "finished",
        "name": study.name,
        "description": study.description,
        "factors": list(factor_names(study)),
        "baseline": plan.variants[0].label,
        "seeds": list(study.seeds),
        "timing_only": study.timing_only,
        "confidence": study.confidence,
        "target": None if study.target is None else study.target.model_dump(),
        "published": [entry.model_dump() for entry in study.published],
        "tuned": None
        if study.tuning is None
        else {
            "key": study.tuning.key,
            "chosen": {" · ".join(group) or "all": value for group, value in picked.items()},
        },
        "runs": len(played),
        "distinct": len(keys),
        "played_now": now,
        "failed": [f"{run.variant.label}, seed {run.seed}: {run.row['error'].splitlines()[0]}" for run in failed],
        "versions": versions(),
    }
