"""Choosing a key from a grid before a study, on seeds of its own."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from desim_fl.report.measures import TIME
from desim_fl.scenario.overrides import path_of
from desim_fl.study import effects
from desim_fl.study.variants import baseline, factor_names, levels, settings_of, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from desim_fl.study.document import Study, Target, Tuning
    from desim_fl.study.variants import Setting, Variant

SCHEMA: dict[str, Any] = {
    "for": pl.String,
    "value": pl.String,
    "n": pl.Int64,
    "mean": pl.Float64,
    "chosen": pl.Boolean,
}


class Trial(NamedTuple):
    """One tuning run to come: for which levels, with which value of the grid, and what that sets."""

    levels: tuple[str, ...]  # of the factors in ``by``
    place: int  # in the grid
    seed: int
    settings: tuple[Setting, ...]

    def label(self, tuning: Tuning) -> str:
        """Name the trial in messages."""
        return " · ".join([*self.levels, f"{tuning.key} = {shown(tuning.values[self.place])}"])


def trials(study: Study, variants: Sequence[Variant]) -> list[Trial]:
    """Return every tuning run; a factor that is not in ``by`` stays at its baseline."""
    tuning = study.tuning
    assert tuning is not None
    return [
        Trial(chosen, place, seed, (*settings, (path_of(tuning.key), value)))
        for chosen, settings in _groups(study, variants).items()
        for place, value in enumerate(tuning.values)
        for seed in tuning.seeds
    ]


def _groups(study: Study, variants: Sequence[Variant]) -> Mapping[tuple[str, ...], tuple[Setting, ...]]:
    """Return what each combination of levels of the factors in ``by`` sets."""
    assert study.tuning is not None
    if study.design == "list":
        chosen = variants if study.tuning.by else variants[:1]
        return {variant.levels if study.tuning.by else (): variant.settings for variant in chosen}
    base = dict(zip(factor_names(study), baseline(study), strict=True))
    of = {factor.name: {level.label: level for level in levels(factor)} for factor in study.factors}
    found = {}
    for labels in itertools.product(*(of[name] for name in study.tuning.by)):
        at = base | dict(zip(study.tuning.by, labels, strict=True))
        found[labels] = tuple(setting for name, label in at.items() for setting in settings_of(of[name][label]))
    return found


def group_of(study: Study, variant: Variant) -> tuple[str, ...]:
    """Return the levels of the factors in ``by`` that a variant has."""
    assert study.tuning is not None
    at = dict(zip(factor_names(study), variant.levels, strict=True))
    return tuple(at[name] for name in study.tuning.by)


def choices(
    tuning: Tuning, target: Target | None, found: Sequence[tuple[Trial, dict[str, Any]]]
) -> tuple[dict[tuple[str, ...], int], pl.DataFrame]:
    """Return the place in the grid that is best for each group, and the table of all means.

    A value with a run that failed, diverged or was not scored is never chosen; a tie goes to the earlier value. With
    metric "time" the mean is that of the runs that reached the target.
    """
    played: dict[tuple[str, ...], dict[int, list[dict[str, Any]]]] = {}
    for trial, row in found:
        played.setdefault(trial.levels, {}).setdefault(trial.place, []).append(row)
    best: dict[tuple[str, ...], int] = {}
    rows = []
    for group, places in played.items():
        ranks = {place: _rank(tuning, target, runs) for place, runs in places.items()}
        best[group] = min(ranks, key=lambda place: (ranks[place], place))
        rows += [
            (
                " · ".join(group) or "all",
                shown(tuning.values[place]),
                len(places[place]),
                _mean(tuning, ranks[place]),
                place == best[group] and math.isfinite(ranks[place][0]),
            )
            for place in sorted(ranks)
        ]
    return best, pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _rank(tuning: Tuning, target: Target | None, runs: Sequence[dict[str, Any]]) -> tuple[float, ...]:
    """Return what is to be small, first things first; the first is infinite where a run failed or ended without a score.

    With metric "time": how many runs did not reach the target, the mean time of those that did, and, where times are
    equal or none did, what the target's metric was at the end.
    """
    if tuning.metric != "time" or target is None:
        return (_end(tuning.metric, tuning.split, runs),)
    end = _end(target.metric, target.split, runs)
    if not math.isfinite(end):
        return (math.inf, math.inf, math.inf)
    there = [found[TIME] for found in (effects.arrival(row, target) for row in runs) if found["reached"]]
    return (len(runs) - len(there), math.fsum(there) / len(there) if there else math.inf, end)


def _end(metric: str, split: str, runs: Sequence[dict[str, Any]]) -> float:
    """Return the mean of the last values of a metric, accuracy with its sign turned."""
    return math.fsum(_last(metric, split, row) for row in runs) / len(runs)


def _last(metric: str, split: str, row: dict[str, Any]) -> float:
    place = 5 if metric == "accuracy" else 4
    points = [point for point in row.get("curve", ()) if point[3] == split]
    if row["status"] != "finished" or not points or points[-1][place] is None:
        return math.inf
    return -points[-1][place] if metric == "accuracy" else points[-1][place]


def _mean(tuning: Tuning, rank: tuple[float, ...]) -> float | None:
    """Return the mean of the tuned metric as people read it; ``None`` where there is none."""
    value = rank[1] if tuning.metric == "time" else rank[0]
    if not math.isfinite(value):
        return None
    return -value if tuning.metric == "accuracy" else value


def empty() -> pl.DataFrame:
    """Return the table of a study that tunes nothing."""
    return pl.DataFrame(schema=SCHEMA)


def usable(table: pl.DataFrame, group: tuple[str, ...], tuning: Tuning, place: int) -> bool:
    """Whether the best value of a group gave a finite mean."""
    name, value = " · ".join(group) or "all", shown(tuning.values[place])
    return bool(table.filter((pl.col("for") == name) & (pl.col("value") == value) & pl.col("chosen")).height)


def watched(study: Study) -> str:
    """Name what every tuning run must have a finite value of at its end, for messages."""
    tuning, target = study.tuning, study.target
    of = target if tuning is not None and tuning.metric == "time" else tuning
    return "score" if of is None else f"{of.split} {of.metric}"
