"""From the rows of a study to its tables: what each variant gave, and how it differs from the baseline, pair by pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from desim_fl.report.measures import METRICS, TIME, UPDATES
from desim_fl.study import statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from desim_fl.study.document import Target
    from desim_fl.study.variants import Variant

Row = dict[str, Any]


CURVES: dict[str, Any] = {
    "variant": pl.String,
    "seed": pl.UInt64,
    "time_s": pl.Float64,
    "version": pl.Int64,
    "updates": pl.Int64,
    "split": pl.String,
    "loss": pl.Float64,
    "accuracy": pl.Float64,
}


class Tables(NamedTuple):
    """All tables of a study."""

    runs: pl.DataFrame
    variants: pl.DataFrame
    effects: pl.DataFrame
    reach: pl.DataFrame
    survival: pl.DataFrame
    curves: pl.DataFrame


class Played(NamedTuple):
    """A run of the study: who, with which seed, and the row it gave."""

    variant: Variant
    seed: int
    row: Row


def tables(played: Sequence[Played], factors: Sequence[str], target: Target | None, confidence: float) -> Tables:
    """Make all tables; the variant of the first run is the baseline."""
    values = {(run.variant.label, run.seed): measures(run.row, target) for run in played}
    variants = list({run.variant.label: run.variant for run in played}.values())
    seeds = list(dict.fromkeys(run.seed for run in played))
    columns = {
        label: {seed: values.get((label, seed), {}) for seed in seeds}
        for label in (variant.label for variant in variants)
    }
    return Tables(
        runs=_runs(played, factors, values, target),
        variants=_variants(columns, confidence),
        effects=_effects(columns, comparisons(variants, factors), target, confidence),
        reach=_reach(columns, target, confidence),
        survival=_survival(columns, target),
        curves=_curves(played),
    )


def measures(row: Row, target: Target | None) -> dict[str, float]:
    """Return the numbers of a run by name; what it does not have, or is not finite, is left out."""
    if row["status"] != "finished":
        return {}
    summary, staleness = row["summary"], row["summary"]["staleness"]
    scores = [point[5] for point in row["curve"] if point[3] == "test" and point[5] is not None]
    found: dict[str, float | None] = {
        **{metric.name: summary.get(metric.name) for metric in METRICS},
        "energy_j": (summary.get("energy_j") or {}).get("total"),
        "best_accuracy": max(scores, default=None),
        **{f"staleness_{name}": staleness[name] for name in ("mean", "p99", "max")},
        "fairness": row["fairness"],
        "bytes": summary["bytes_down"] + summary["bytes_up"],
    }
    if target is not None:
        found |= arrival(row, target)
    return {name: float(value) for name, value in found.items() if value is not None}


def arrival(row: Row, target: Target) -> dict[str, float]:
    """Return when a run that finished reached the target, to stay as long as asked, or when it ended without (``reached`` = 0)."""
    place = 5 if target.metric == "accuracy" else 4
    scored = [point for point in row["curve"] if point[3] == target.split and point[place] is not None]
    there = 0
    for at, point in enumerate(scored):
        value = point[place]
        good = value >= target.value if target.metric == "accuracy" else value <= target.value
        there = there + 1 if good else 0
        if there == target.hold:
            first = scored[at + 1 - there]
            return {TIME: first[0] / 1e6, UPDATES: first[2], "reached": 1}
    return {TIME: row["summary"]["virtual_time_s"], UPDATES: row["summary"]["updates"], "reached": 0}


def _runs(
    played: Sequence[Played],
    factors: Sequence[str],
    values: Mapping[tuple[str, int], Mapping[str, float]],
    target: Target | None,
) -> pl.DataFrame:
    names = [metric.name for metric in METRICS] + ([TIME, UPDATES, "reached"] if target is not None else [])
    schema: dict[str, Any] = {
        "variant": pl.String,
        **dict.fromkeys((f"level: {name}" for name in factors), pl.String),
        "seed": pl.UInt64,
        "status": pl.String,
        "error": pl.String,
        **dict.fromkeys(names, pl.Float64),
        **dict.fromkeys(("timeline_sha256", "model_sha256", "scenario_key"), pl.String),
        "wall_s": pl.Float64,
    }
    rows = [
        (
            run.variant.label,
            *run.variant.levels,
            run.seed,
            run.row["status"],
            run.row["error"],
            *(values[run.variant.label, run.seed].get(name) for name in names),
            run.row.get("timeline_sha256"),
            run.row.get("model_sha256"),
            run.row["key"],
            run.row.get("summary", {}).get("wall_s"),
        )
        for run in played
    ]
    return pl.DataFrame(rows, schema=schema, orient="row")


Columns = dict[str, dict[int, dict[str, float]]]


def _pairs(columns: Columns, a: str, b: str, name: str) -> tuple[list[float], list[float]]:
    """Return the values of two variants over the seeds for which both have one."""
    seeds = [seed for seed in columns[a] if name in columns[a][seed] and name in columns[b][seed]]
    return [columns[a][seed][name] for seed in seeds], [columns[b][seed][name] for seed in seeds]


def _variants(columns: Columns, confidence: float) -> pl.DataFrame:
    schema = {"variant": pl.String, "metric": pl.String, "n": pl.Int64}
    schema |= dict.fromkeys(("mean", "sd", "low", "high"), pl.Float64)
    rows = []
    for label, by_seed in columns.items():
        for metric in METRICS:
            values = [found[metric.name] for found in by_seed.values() if metric.name in found]
            if values:
                rows.append((label, metric.name, *statistics.summary(values, confidence)))
    return pl.DataFrame(rows, schema=schema, orient="row")


EFFECTS: dict[str, Any] = {
    "factor": pl.String,
    "variant": pl.String,
    "against": pl.String,
    "metric": pl.String,
    "n": pl.Int64,
    **dict.fromkeys(
        ("difference", "low", "high", "bootstrap_low", "bootstrap_high", "ratio", "ratio_low", "ratio_high"), pl.Float64
    ),
    "pairing_gain": pl.Float64,
    "p": pl.Float64,
}


def comparisons(variants: Sequence[Variant], factors: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return what is compared: (factor, variant, the one it is compared with).

    For each factor, a variant is compared with the one that has the baseline's level there and the same levels
    elsewhere; where that one is not part of the study, with the baseline itself.
    """
    base = variants[0]
    known = {variant.levels: variant.label for variant in variants}
    found = []
    for variant in variants[1:]:
        pairs = []
        for place, factor in enumerate(factors):
            other = (*variant.levels[:place], base.levels[place], *variant.levels[place + 1 :])
            if variant.levels[place] != base.levels[place] and other in known:
                pairs.append((factor, variant.label, known[other]))
        found += pairs or [("all", variant.label, base.label)]
    return found


def _effects(
    columns: Columns, compared: Sequence[tuple[str, str, str]], target: Target | None, confidence: float
) -> pl.DataFrame:
    names = [metric.name for metric in METRICS]
    pairs = [
        (factor, label, against, name, *_pairs(columns, against, label, name))
        for factor, label, against in compared
        for name in names
    ]
    if target is not None:
        pairs += [
            (factor, label, against, name, *_restricted(columns, against, label, name))
            for factor, label, against in compared
            for name in (TIME, UPDATES)
        ]
    pairs = [pair for pair in pairs if pair[-1]]
    found = statistics.differences([(a, b) for *_, a, b in pairs], confidence)
    rows = [(*pair[:4], *_flat(effect)) for pair, effect in zip(pairs, found, strict=True)]
    return pl.DataFrame(rows, schema=EFFECTS, orient="row")


def _flat(found: statistics.Difference) -> tuple[Any, ...]:
    ratio = found.ratio or (None, None, None)
    student, bootstrap = found.student, found.bootstrap
    return (found.n, found.mean, student.low, student.high, bootstrap.low, bootstrap.high, *ratio, found.gain, found.p)


def _restricted(columns: Columns, a: str, b: str, name: str) -> tuple[list[float], list[float]]:
    """Return paired times to the target, cut at the first end of a run that did not get there: known for every run."""
    first, second = _pairs(columns, a, b, name)
    ends = [
        found[name] for label in (a, b) for found in columns[label].values() if name in found and not found["reached"]
    ]
    horizon = min(ends, default=None)
    if horizon is None:
        return first, second
    return [min(value, horizon) for value in first], [min(value, horizon) for value in second]


REACH: dict[str, Any] = {
    "variant": pl.String,
    "measure": pl.String,
    "n": pl.Int64,
    "reached": pl.Int64,
    **dict.fromkeys(("median", "low", "high", "restricted_mean", "horizon"), pl.Float64),
}


def _reach(columns: Columns, target: Target | None, confidence: float) -> pl.DataFrame:
    rows = []
    for label, by_seed in columns.items():
        for name in (TIME, UPDATES) if target is not None else ():
            times, reached = _times(by_seed, name)
            if not times:
                continue
            ends = [time for time, there in zip(times, reached, strict=True) if not there]
            found = statistics.reach(times, reached, min(ends, default=max(times)), confidence)
            median = found.median or (None, None, None)
            rows.append((label, name, found.n, found.reached, *median, found.restricted, found.horizon))
    return pl.DataFrame(rows, schema=REACH, orient="row")


def _times(by_seed: Mapping[int, Mapping[str, float]], name: str) -> tuple[list[float], list[bool]]:
    known = [found for found in by_seed.values() if name in found]
    return [found[name] for found in known], [bool(found["reached"]) for found in known]


def _survival(columns: Columns, target: Target | None) -> pl.DataFrame:
    schema = {"variant": pl.String, "time_s": pl.Float64, "not_yet": pl.Float64}
    rows = []
    for label, by_seed in columns.items() if target is not None else ():
        times, reached = _times(by_seed, TIME)
        if times:
            rows += [(label, *step) for step in statistics.survival(times, reached)]
    return pl.DataFrame(rows, schema=schema, orient="row")


def _curves(played: Sequence[Played]) -> pl.DataFrame:
    rows = [
        (run.variant.label, run.seed, ticks / 1e6, version, updates, split, loss, accuracy)
        for run in played
        for ticks, version, updates, split, loss, accuracy in run.row.get("curve", ())
    ]
    return pl.DataFrame(rows, schema=CURVES, orient="row")
