"""The answer of a study in words and headline numbers, all computed from its tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

from desim_fl.report.formats import count, duration, joules, many, number, percent, size
from desim_fl.report.measures import TIME, TITLES
from desim_fl.report.story import Card, Notice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.report.study_reading import StudyFolder


_SEEDS = 3  # fewer say little about variances
_UNITS = {
    "virtual_time_s": duration, TIME: duration, "energy_j": joules, "bytes": size, "accuracy": lambda share: percent(round(share, 4)),
    "best_accuracy": lambda share: percent(round(share, 4)),
}  # fmt: skip
_WORTH = 1.05  # times less variance that are worth a sentence


def headline(study: StudyFolder) -> str:
    """Return the metric that the study is about: the time to its target, what was learned, or how long it took."""
    if study.manifest["target"] is not None and study.reach.height:
        return TIME
    found = study.metrics()
    return next((name for name in ("best_accuracy", "loss", "virtual_time_s") if name in found), "virtual_time_s")


def notices(study: StudyFolder) -> list[Notice]:
    """Failures, divergence, and what a reader might overlook."""
    found = []
    failed = study.manifest["failed"]
    if failed:
        more = f" and {count(len(failed) - 5)} more" if len(failed) > 5 else ""  # noqa: PLR2004
        found.append(Notice("alarm", f"{many(len(failed), 'run')} failed: {'; '.join(failed[:5])}{more}"))
    broken = _diverged(study)
    if broken:
        found.append(
            Notice("alarm", f"No finite test loss at the end: {'; '.join(broken)}. Their means leave those runs out.")
        )
    seeds = len(study.manifest["seeds"])
    if seeds < _SEEDS:
        what = (
            "there are no intervals: chance cannot be told from effect"
            if seeds == 1
            else "intervals are wide and say little"
        )
        found.append(Notice("hint", f"With {many(seeds, 'seed')} {what}."))
    return found


def _diverged(study: StudyFolder) -> list[str]:
    if study.manifest["timing_only"] or "loss" not in study.runs.columns:
        return []
    without = study.runs.filter((pl.col("status") == "finished") & pl.col("loss").is_null())
    counts = without.group_by("variant", maintain_order=True).len()
    return [f"{label} ({many(runs, 'run')})" for label, runs in counts.iter_rows()]


def paragraph(study: StudyFolder) -> str:
    """Return a short paragraph: what was played, who is best, how far from the baseline, and what pairing gave."""
    return " ".join(part for part in (_course(study), _best(study), _differences(study), _pairing(study)) if part)


def _course(study: StudyFolder) -> str:
    manifest = study.manifest
    what = "timelines without training" if manifest["timing_only"] else "runs with real training"
    factors = listed(study.factors)
    same = manifest["runs"] - manifest["distinct"]
    alike = f"; {many(same, 'run')} needed no playing, being equal to others" if same else ""
    varies = f" that differ in {factors}" if study.factors and study.factors != ["variant"] else ""
    named = ", named after these in this order" if varies and len(study.factors) > 1 else ""
    seeds = many(len(manifest["seeds"]), "seed") + (" each" if len(study.labels) > 1 else "")
    return (
        f"{many(len(study.labels), 'variant')}{varies}{named}{',' if named else ''} were played with {seeds}: "
        f"{count(manifest['runs'])} {what}{alike}. The baseline is {quoted(manifest['baseline'])}."
    )


def listed(names: Sequence[str]) -> str:
    """Return names as a list in words: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def valued(metric: str, value: float | None, digits: int = 4) -> str:
    """Return a metric's value with its unit."""
    if metric in _UNITS and value is not None:
        return _UNITS[metric](value)
    return number(value, digits)


def quoted(label: str) -> str:
    """Return a label in typographic quotes."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{label}\N{RIGHT DOUBLE QUOTATION MARK}"


def _best(study: StudyFolder) -> str:
    metric = headline(study)
    if metric == TIME:
        return _soonest(study)
    rows = study.variants.filter(pl.col("metric") == metric)
    if rows.height < 2:  # noqa: PLR2004
        return ""
    better = TITLES[metric].better
    best, worst = rows.sort("mean", descending=better > 0, maintain_order=True)[[0, -1]].rows(named=True)
    title = plain(metric)
    if best["mean"] == worst["mean"]:
        return f"{title} is {valued(metric, best['mean'])} for all of them."
    end = ("largest", "smallest") if better >= 0 else ("smallest", "largest")
    share = f"{study.manifest['confidence']:.0%}"
    words = [
        f"{word} with {_holders(rows, row)} ({_spread(metric, row, share)})"
        for word, row in zip(end, (best, worst), strict=True)
    ]
    return f"{title} is {' and '.join(words)}."


def _holders(rows: pl.DataFrame, row: dict[str, Any]) -> str:
    """Name the first variant with this mean, and say how many share it."""
    alike = rows.filter(pl.col("mean") == row["mean"])
    first = quoted(alike["variant"][0])
    return first if alike.height == 1 else f"{first} and {many(alike.height - 1, 'other')} alike"


def plain(metric: str) -> str:
    """Return a metric's title without its unit."""
    return TITLES[metric].title.split(" (")[0]


def _spread(metric: str, row: dict[str, Any], share: str) -> str:
    if row["low"] is None or row["low"] == row["high"]:
        return valued(metric, row["mean"])
    return (
        f"{valued(metric, row['mean'])}, {share} interval {valued(metric, row['low'])} to {valued(metric, row['high'])}"
    )


def _soonest(study: StudyFolder) -> str:
    target = study.manifest["target"]
    hold = target.get("hold", 1)
    what = f"a {target['split']} {target['metric']} of {target['value']:g}" + (
        f" for {many(hold, 'evaluation')} on end" if hold > 1 else ""
    )
    rows = study.reach.filter(pl.col("measure") == TIME)
    got = rows.filter(pl.col("median").is_not_null()).sort("median", maintain_order=True)
    never = rows.filter(pl.col("reached") == 0)["variant"].to_list()
    parts = []
    if got.height:
        best = got.row(0, named=True)
        alike = got.filter(pl.col("median") == best["median"]).height - 1
        others = f" and {many(alike, 'other')} alike" if alike else ""
        parts.append(
            f"{quoted(best['variant'])}{others} reached {what} soonest: half of "
            f"its runs within {duration(best['median'])} of virtual time ({best['reached']} of {best['n']} got there)."
        )
    else:
        parts.append(f"No variant reached {what} in half of its runs.")
    if never:
        named = [*map(quoted, never[:5]), *([f"{count(len(never) - 5)} more"] if len(never) > 5 else [])]  # noqa: PLR2004
        parts.append(f"It was never reached by {listed(named)}.")
    return " ".join(parts)


def _differences(study: StudyFolder) -> str:
    metric = headline(study)
    rows = study.effects.filter(pl.col("metric") == metric)
    known = rows.filter(pl.col("low").is_not_null())
    if metric == TIME:  # an end without the target is no time to it
        there = study.reach.filter((pl.col("measure") == TIME) & (pl.col("reached") == pl.col("n")))[
            "variant"
        ].implode()
        known = known.filter(pl.col("variant").is_in(there) & pl.col("against").is_in(there))
    if known.is_empty():
        return ""
    apart = known.filter((pl.col("low") > 0) | (pl.col("high") < 0))
    share = f"{study.manifest['confidence']:.0%}"
    among = " in which every run got there" if metric == TIME else ""
    text = (
        f"Of {many(known.height, 'paired comparison')} of {_lower(plain(metric))}{among}, "
        f"{count(apart.height)} {'has' if apart.height == 1 else 'have'} a {share} interval that leaves zero out"
    )
    by_chance = (1 - study.manifest["confidence"]) * known.height
    text += f" (if nothing differed, about {number(by_chance, 2)} would by chance)." if known.height > 1 else "."
    return text + _largest(apart, metric, share)


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]


def _largest(apart: pl.DataFrame, metric: str, share: str) -> str:
    """Name the largest ratio among those that differ, as differences and as ratios."""
    clear = (pl.col("ratio_low") > 1) | (pl.col("ratio_high") < 1)
    rows = apart.filter(pl.col("ratio").is_not_null() & (pl.col("ratio") > 0) & clear)
    if rows.is_empty():
        return ""
    row = rows.sort(pl.col("ratio").log().abs(), descending=True, maintain_order=True).row(0, named=True)
    interval = f" ({share} interval {number(row['ratio_low'], 3)} to {number(row['ratio_high'], 3)})"
    return (
        f" The largest clear ratio of {_lower(plain(metric))} is {number(row['ratio'], 3)}{interval}: {quoted(row['variant'])} over "
        f"{quoted(row['against'])}."
    )


def _pairing(study: StudyFolder) -> str:
    if len(study.manifest["seeds"]) < _SEEDS:
        return ""
    gains = study.effects.filter((pl.col("metric") == headline(study)) & pl.col("pairing_gain").is_finite())
    middle = gains["pairing_gain"].median()
    if not isinstance(middle, float) or not math.isfinite(middle):
        return ""
    return (
        f"Common random numbers divide the variance of a difference by {number(middle, 2)} (median over comparisons), as if "
        f"there were {number(middle, 2)} times as many unpaired runs."
        if middle >= _WORTH
        else ""
    )


def cards(study: StudyFolder) -> list[Card]:
    """Return the headline numbers."""
    manifest = study.manifest
    wall = study.runs["wall_s"].sum()
    target = manifest["target"]
    reached = study.runs["reached"].sum() if "reached" in study.runs.columns else None
    goal = [] if target is None else [
        Card("Reached the target", f"{count(int(reached or 0))} of {count(manifest['runs'])}", f"{target['metric']} {target['value']:g}")
    ]  # fmt: skip
    tuned = manifest["tuned"]
    chosen = [] if tuned is None else [
        Card("Tuned", tuned["key"], ", ".join(f"{group}: {value}" for group, value in list(tuned["chosen"].items())[:6]))
    ]  # fmt: skip
    return [
        Card("Variants", count(len(study.labels)), f"baseline {manifest['baseline']}"),
        Card("Seeds", count(len(manifest["seeds"])), ", ".join(map(str, manifest["seeds"][:8]))),
        Card(
            "Runs",
            count(manifest["runs"]),
            f"{count(manifest['distinct'])} distinct, {many(len(manifest['failed']), 'failure')}",
        ),
        *goal,
        *chosen,
        Card("Time of all runs", duration(float(wall)) if wall else "\N{EN DASH}", "real time, added up", real=True),
    ]
