"""The answer of a study in words and headline numbers, all computed from its tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

from desim_fl.report.formats import count, duration, many, number
from desim_fl.report.measures import TIME, TITLES
from desim_fl.report.story import Card, Notice

if TYPE_CHECKING:
    from desim_fl.report.study_reading import StudyFolder


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
    if len(study.manifest["seeds"]) < 3:  # noqa: PLR2004
        found.append(
            Notice(
                "hint",
                f"With {many(len(study.manifest['seeds']), 'seed')} the intervals say little, or cannot be given.",
            )
        )
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
    factors = ", ".join(study.factors)
    same = manifest["runs"] - manifest["distinct"]
    alike = f"; {many(same, 'run')} needed no playing, being equal to others" if same else ""
    varies = f" that differ in {factors}" if study.factors and study.factors != ["variant"] else ""
    return (
        f"{many(len(study.labels), 'variant')}{varies} were played with {many(len(manifest['seeds']), 'seed')} each: "
        f"{count(manifest['runs'])} {what}{alike}. The baseline is {quoted(manifest['baseline'])}."
    )


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
    ordered = rows.sort("mean", descending=better > 0, maintain_order=True)
    best, worst = ordered.row(0, named=True), ordered.row(-1, named=True)
    title = TITLES[metric].title
    if best["mean"] == worst["mean"]:
        return f"{title} is {number(best['mean'])} for all of them."
    end = ("largest", "smallest") if better >= 0 else ("smallest", "largest")
    return (
        f"{title} is {end[0]} with {quoted(best['variant'])} ({_spread(best)}) and {end[1]} with "
        f"{quoted(worst['variant'])} ({_spread(worst)})."
    )


def _spread(row: dict[str, Any]) -> str:
    if row["low"] is None:
        return number(row["mean"])
    return f"{number(row['mean'])}, interval {number(row['low'])} to {number(row['high'])}"


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
        parts.append(
            f"{quoted(best['variant'])} reached {what} soonest: half of its runs within {duration(best['median'])} of "
            f"virtual time ({best['reached']} of {best['n']} got there)."
        )
    else:
        parts.append(f"No variant reached {what} in half of its runs.")
    if never:
        listed = ", ".join(map(quoted, never[:5])) + (f" and {count(len(never) - 5)} more" if len(never) > 5 else "")  # noqa: PLR2004
        parts.append(f"Never reached by {listed}.")
    return " ".join(parts)


def _differences(study: StudyFolder) -> str:
    metric = headline(study)
    rows = study.effects.filter(pl.col("metric") == metric)
    known = rows.filter(pl.col("low").is_not_null())
    if known.is_empty():
        return ""
    apart = known.filter((pl.col("low") > 0) | (pl.col("high") < 0))
    share = f"{study.manifest['confidence']:.0%}"
    text = (
        f"Of {many(known.height, 'paired comparison')} of {_lower(TITLES[metric].title)}, "
        f"{count(apart.height)} {'has' if apart.height == 1 else 'have'} a {share} interval that leaves zero out"
    )
    by_chance = (1 - study.manifest["confidence"]) * known.height
    text += f" (about {number(by_chance, 2)} would by chance alone)." if known.height > 1 else "."
    return text + _largest(apart)


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]


def _largest(apart: pl.DataFrame) -> str:
    """Name the largest ratio among those that differ."""
    rows = apart.filter(pl.col("ratio").is_not_null() & (pl.col("ratio") > 0))
    if rows.is_empty():
        return ""
    row = rows.sort(pl.col("ratio").log().abs(), descending=True, maintain_order=True).row(0, named=True)
    interval = (
        f" ({number(row['ratio_low'], 3)} to {number(row['ratio_high'], 3)})" if row["ratio_low"] is not None else ""
    )
    return f" The largest ratio is {number(row['ratio'], 3)}{interval}: {quoted(row['variant'])} over {quoted(row['against'])}."


def _pairing(study: StudyFolder) -> str:
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
