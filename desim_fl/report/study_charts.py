"""Charts of a study: means by level, paired differences, runs that have not reached the target yet, learning curves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from desim_fl.report.figures import Figure, Numbers, named
from desim_fl.report.formats import time_unit
from desim_fl.report.measures import TIME, TITLES
from desim_fl.report.thinning import thin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.report.study_reading import StudyFolder

MOST_LINES = 12  # variants in one chart
MOST_BARS = 40
SHARES = ("accuracy", "best_accuracy", "utilisation", "fairness")  # numbers between 0 and 1
_COLOURS = 6  # of the palette, before it begins again
_DASHES = [[1, 0], [5, 3], [2, 2]]
_LETTERS = 36  # of all levels together that stand beside each other on a phone
_LOG_RANGE = 20.0  # spans of levels and times beyond this are drawn on a logarithmic axis


def axis_factor(study: StudyFolder) -> str:
    """Return the factor that stands on the horizontal axis: the one with the most levels that are numbers, or levels."""
    counts = {name: study.runs[f"level: {name}"].n_unique() for name in study.factors}
    return max(study.factors, key=lambda name: (_numeric(study, name) and counts[name] > 2, counts[name]))  # noqa: PLR2004


def _numeric(study: StudyFolder, factor: str) -> bool:
    levels = study.runs[f"level: {factor}"].unique()
    return levels.cast(pl.Float64, strict=False).is_finite().fill_null(value=False).all()


def by_level(study: StudyFolder, metric: str) -> list[Figure]:
    """Means with their intervals, by the levels of the factors; by each factor alone where a line for each combination is too many."""
    factor = axis_factor(study)
    rows = _by_level(study, metric, factor)
    if rows["line"].n_unique() > MOST_LINES:
        each = [_crowd(study, metric, name) for name in study.factors]
        return [figure for figure in each if figure is not None]
    title = TITLES[metric].title
    heading, name = f"{title} by {factor}", f"by_{metric}"
    cut = metric in SHARES and bool(((rows["low"] < 0) | (rows["high"] > 1)).any())
    lead = _by_lead(study) + (" They are cut at 0 and 1, the ends of the range." if cut else "")
    ends = [pl.col(end).clip(0, 1) if cut else pl.col(end) for end in ("low", "high")]
    rows = rows.with_columns(end.name.prefix("bar_") for end in ends)
    headings = {"variant": "Variant", "n": "Runs", "mean": f"{title}: mean", "low": "Interval from", "high": "to"}
    chart = _levels_chart(study, factor, rows, title, name)
    return [Figure(f"by-{metric}", heading, lead, chart, {name: Numbers(heading, rows, headings)})]


def _by_level(study: StudyFolder, metric: str, factor: str) -> pl.DataFrame:
    """Return a metric's mean and interval of each variant, its level of a factor, and the levels of the others as its line."""
    levels = study.runs.select("variant", *(f"level: {name}" for name in study.factors)).unique(maintain_order=True)
    rows = study.variants.filter(pl.col("metric") == metric).join(levels, on="variant", maintain_order="left")
    others = [f"level: {name}" for name in study.factors if name != factor]
    line = pl.concat_str(others, separator=" · ") if others else pl.lit("all")
    return rows.select("variant", level=f"level: {factor}", line=line, n="n", mean="mean", low="low", high="high")


def _crowd(study: StudyFolder, metric: str, factor: str) -> Figure | None:
    """Return the median over all variants of a level, with their span; ``None`` where the factor has no bearing."""
    title, place = TITLES[metric].title, study.factors.index(factor) + 1
    heading, name = f"{title} by {factor}", f"by_{metric}_{place}"
    mean = pl.col("mean")
    found = _by_level(study, metric, factor).group_by("level", maintain_order=True)
    rows = found.agg(n=pl.len(), mean=mean.median(), bar_low=mean.min(), bar_high=mean.max())
    rows = rows.with_columns(variant="level", line=pl.lit("all"))
    if rows.select("mean", "bar_low", "bar_high").n_unique() == 1:
        return None
    few, most = rows["n"].min(), rows["n"].max()
    each = f"{few:,}" if few == most else f"{few:,} to {most:,}"
    lead = f"A point is the median over the {each} variants of a level, whatever their other factors; bars span all of them."
    headings = {
        "level": factor,
        "n": "Variants",
        "mean": f"{title}: median",
        "bar_low": "Least",
        "bar_high": "Greatest",
    }
    chart = _levels_chart(study, factor, rows, title, name)
    return Figure(f"by-{metric}-{place}", heading, lead, chart, {name: Numbers(heading, rows, headings)})


def _by_lead(study: StudyFolder) -> str:
    share = f"{study.manifest['confidence']:.0%}"
    if len(study.manifest["seeds"]) == 1:
        return "One run each, so there are no intervals."
    return f"Mean over the seeds; bars are {share} intervals of the mean (Student), none where there is one run."


def _levels_chart(study: StudyFolder, factor: str, rows: pl.DataFrame, title: str, name: str) -> Any:
    order = rows["level"].unique(maintain_order=True).to_list()
    if _numeric(study, factor):
        order.sort(key=float)
    lines = rows["line"].unique(maintain_order=True).to_list()
    x = alt.X("level:O", title=factor, sort=order, axis=level_axis(order))
    log = spans(pl.concat([rows["mean"], rows["bar_low"], rows["bar_high"]]))
    scale = alt.Scale(type="log") if log else alt.Scale(zero=False)
    others = " · ".join(name for name in study.factors if name != factor)
    colour = alt.Color("line:N", title=others, sort=lines, legend=alt.Legend() if len(lines) > 1 else None)
    base = alt.Chart().encode(x=x, color=colour)
    beside = None if len(lines) > 1 else title  # where a legend stands there, the heading says it
    value = alt.Y("mean:Q", title=beside, scale=scale)
    tips = [
        alt.Tooltip("variant:N", title="Variant"),
        alt.Tooltip("mean:Q", title="Mean", format=".5~g"),
        alt.Tooltip("bar_low:Q", title="From", format=".5~g"),
        alt.Tooltip("bar_high:Q", title="To", format=".5~g"),
        alt.Tooltip("n:Q", title="Runs"),
    ]
    bars = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("bar_low:Q", scale=scale, title=beside), y2="bar_high:Q")
    path = base.mark_line(strokeWidth=1.5).encode(y=value, strokeDash=alt.StrokeDash("line:N", sort=lines, legend=None))
    points = base.mark_point(filled=True, size=60, opacity=1).encode(y=value, tooltip=tips)
    known = (
        [bars] if rows["bar_low"].count() else []
    )  # an axis that has only bars without ends makes the browser complain
    return alt.layer(*known, path, points, data=named(name), height=240)


def level_axis(levels: Sequence[str], **more: Any) -> alt.Axis:
    """Return an axis on which every level is named: words lie aslant, as beside each other some would be left out."""
    if sum(map(len, levels)) <= _LETTERS:
        return alt.Axis(labelAngle=0, **more)
    return alt.Axis(labelAngle=-30, labelOverlap=False, **more)


def spans(values: pl.Series) -> bool:
    """Whether positive values span so much that a logarithmic axis reads better."""
    known = values.cast(pl.Float64).drop_nulls()
    low, high = known.min(), known.max()
    return isinstance(low, float) and isinstance(high, float) and low > 0 and high / low > _LOG_RANGE


def differences(study: StudyFolder, metric: str) -> Figure:
    """Paired differences from the baseline, one row a comparison."""
    title = TITLES[metric].title
    heading = f"Differences: {title}"
    rows = study.effects.filter(pl.col("metric") == metric)
    if len(study.factors) > 1:
        rows = rows.with_columns(pl.format("{} ({})", "variant", "factor").alias("what"))
    else:
        rows = rows.with_columns(what="variant")
    if rows.is_empty():
        return Figure(f"differences-{metric}", heading, "There is nothing to compare: no pair of runs has this value.")
    lead = "Each variant minus the one it is compared with (the same levels, but the factor's baseline), " + (
        "with the same seed; with one pair there is no interval."
        if len(study.manifest["seeds"]) == 1
        else f"pair by pair over the seeds; bars are {study.manifest['confidence']:.0%} intervals (Student)."
    )
    shown = rows.sort(pl.col("difference").abs(), descending=True, maintain_order=True).head(MOST_BARS)
    if rows.height > MOST_BARS:
        lead += f" The {MOST_BARS} largest of {rows.height} are drawn."
    name = f"differences_{metric}"
    shown = shown.select(
        "what", "against", "n", "difference", "low", "high", "ratio", "ratio_low", "ratio_high", gain="pairing_gain"
    )
    y = alt.Y("what:N", title=None, sort=shown["what"].to_list(), axis=alt.Axis(grid=False, labelLimit=260))
    x = alt.X("difference:Q", title=f"{title}: difference", scale=alt.Scale(padding=6))
    base = alt.Chart().encode(y=y)
    tips = [alt.Tooltip("what:N", title="Variant"), alt.Tooltip("against:N", title="Compared with")]
    tips += [alt.Tooltip(f"{key}:Q", format=".4~g") for key in ("difference", "low", "high", "ratio")]
    zero = alt.Chart().mark_rule(style="mark-line").encode(x=alt.datum(0))
    bars = base.mark_rule(style="interval").encode(x=alt.X("low:Q", title=f"{title}: difference"), x2="high:Q")
    known = [bars] if shown["low"].count() else []
    points = base.mark_point(filled=True, size=60, opacity=1).encode(x=x, tooltip=tips)
    headings = {
        "what": "Variant", "against": "Compared with", "n": "Pairs", "difference": "Difference", "low": "Interval from",
        "high": "to", "ratio": "Ratio", "ratio_low": "Ratio from", "ratio_high": "Ratio to",
        "gain": "Variance without pairing, times",
    }  # fmt: skip
    chart = alt.layer(zero, *known, points, data=named(name), height=max(60, 22 * shown.height))
    return Figure(f"differences-{metric}", heading, lead, chart, {name: Numbers(heading, shown, headings)})


def survival(study: StudyFolder) -> Figure:
    """Share of the runs that have not reached the target, over virtual time."""
    target = study.manifest["target"]
    sense = "at least" if target["metric"] == "accuracy" else "at most"
    heading = f"Runs still short of a {target['split']} {target['metric']} of {sense} {target['value']:g}"
    lead = "Kaplan-Meier estimate; a run that ended without reaching the target counts until its end."
    labels = study.survival["variant"].unique(maintain_order=True).to_list()
    if not labels:
        return Figure("survival", heading, "No run was scored.")
    kept = study.survival
    if len(labels) > MOST_LINES:
        lead += f" Drawn are the {MOST_LINES} of {len(labels)} variants that got there soonest."
        times = study.reach.filter(pl.col("measure") == TIME).sort("median", nulls_last=True, maintain_order=True)
        labels = times["variant"].head(MOST_LINES).to_list()
        kept = kept.filter(pl.col("variant").is_in(labels))
    longest = float(kept["time_s"].max() or 0)  # pyright: ignore[reportArgumentType]
    unit = time_unit(longest)
    rows = kept.select("variant", time=pl.col("time_s") / unit.seconds, not_yet="not_yet")
    positive = rows.filter(pl.col("time") > 0)["time"]
    log = spans(positive)
    if log:  # nothing is at 0 there: every line begins a little before the first that got there
        first = pl.lit(0.8 * float(positive.min() or 1))  # pyright: ignore[reportArgumentType]
        rows = rows.with_columns(time=pl.when(pl.col("time") > 0).then(pl.col("time")).otherwise(first))
    chart = (
        alt.Chart(named("survival"))
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X("time:Q", title=f"Virtual time ({unit.name})", scale=alt.Scale(type="log") if log else alt.Scale()),
            y=alt.Y("not_yet:Q", title=None, axis=alt.Axis(format=".0%"), scale=alt.Scale(domain=[0, 1])),
            **_told_apart(labels),
        )
        .properties(height=240)
    )
    headings = {"variant": "Variant", "time": f"Virtual time ({unit.name})", "not_yet": "Share not there yet"}
    return Figure("survival", heading, lead, chart, {"survival": Numbers(heading, rows, headings)})


def _told_apart(labels: list[str]) -> dict[str, Any]:
    """Return the encoding of who a line is about: six colours, and dashes for the next six and the next."""
    legend = alt.Legend(symbolType="stroke", symbolOpacity=1, labelLimit=300)
    dashes = [_DASHES[place // _COLOURS % len(_DASHES)] for place in range(len(labels))]
    return {
        "color": alt.Color("variant:N", title=None, scale=alt.Scale(domain=labels), legend=legend),
        "strokeDash": alt.StrokeDash(
            "variant:N", title=None, scale=alt.Scale(domain=labels, range=dashes), legend=legend
        ),
    }


def curves(study: StudyFolder, measure: str, *, against: str) -> Figure:
    """Learning curves of all runs, coloured by variant."""
    axis = {"time": "virtual time", "updates": "updates received"}[against]
    heading = f"Test {measure} against {axis}"
    rows = study.curves.filter((pl.col("split") == "test") & pl.col(measure).is_not_null())
    labels = rows["variant"].unique(maintain_order=True).to_list()
    if not labels:
        return Figure(f"curves-{measure}-{against}", heading, f"No run has a test {measure}.")
    dropped = labels[MOST_LINES:]
    rows = rows.filter(pl.col("variant").is_in(labels[:MOST_LINES]))
    unit = time_unit(float(rows["time_s"].max() or 0))  # pyright: ignore[reportArgumentType]
    rows = rows.with_columns(time=pl.col("time_s") / unit.seconds).select(
        "variant", "seed", pl.col(against), pl.col(measure)
    )
    points = max(20, 6000 // max(1, rows.select("variant", "seed").n_unique()))
    rows = pl.concat([thin(part, [measure], points) for part in _series(rows)])
    title = f"Virtual time ({unit.name})" if against == "time" else "Updates received"
    log = spans(rows.filter(pl.col(against) > 0)[against].cast(pl.Float64)) and _ends_apart(rows, against)
    shown = rows.filter(pl.col(against) > 0) if log else rows
    name = f"curves_{measure}_{against}"
    chart = (
        alt.Chart(named(name))
        .mark_line(strokeWidth=1.5, opacity=0.85, clip=True)
        .encode(
            x=alt.X(
                f"{against}:Q", title=title, scale=alt.Scale(type="log", nice=False) if log else alt.Scale(nice=False)
            ),
            y=alt.Y(f"{measure}:Q", title=None, scale=alt.Scale(zero=False)),
            **_told_apart(labels[:MOST_LINES]),
            detail="seed:N",
            tooltip=[alt.Tooltip("variant:N", title="Variant"), alt.Tooltip("seed:N", title="Seed")],
        )
        .properties(height=280)
    )
    lead = "One line a run." + (f" The first {MOST_LINES} of {len(labels)} variants are drawn." if dropped else "")
    return Figure(f"curves-{measure}-{against}", heading, lead, chart, {name: Numbers(heading, shown, {})}, wide=True)


def staleness(rows: pl.DataFrame) -> Figure:
    """Draw which share of the updates arrived with each staleness, by run (``variant, staleness, share``)."""
    heading = "How many versions the model had moved on"
    if rows.is_empty():
        return Figure("staleness", heading, "No update arrived, so there is no staleness.")
    labels = rows["variant"].unique(maintain_order=True).to_list()
    chart = (
        alt.Chart(named("staleness"))
        .mark_line(point=alt.OverlayMarkDef(size=40), strokeWidth=1.5)
        .encode(
            x=alt.X("staleness:Q", title="Staleness (versions)", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("share:Q", title=None, axis=alt.Axis(format=".0%")),
            color=alt.Color("variant:N", title=None, sort=labels),
            strokeDash=alt.StrokeDash("variant:N", legend=None, sort=labels),
            tooltip=[
                alt.Tooltip("variant:N", title="Run"),
                alt.Tooltip("staleness:Q", title="Staleness"),
                alt.Tooltip("share:Q", title="Share of updates", format=".2%"),
            ],
        )
        .properties(height=240)
    )
    headings = {"variant": "Run", "staleness": "Staleness (versions)", "share": "Share of updates"}
    numbers = {"staleness": Numbers(heading, rows, headings)}
    return Figure(
        "staleness", heading, "Share of the updates that arrived with each staleness.", chart, numbers, wide=True
    )


def _series(rows: pl.DataFrame) -> Sequence[pl.DataFrame]:
    return rows.partition_by("variant", "seed", maintain_order=True)


def _ends_apart(rows: pl.DataFrame, against: str) -> bool:
    """Whether the runs end at very different places."""
    ends = rows.group_by("variant", "seed").agg(pl.col(against).max())[against].cast(pl.Float64)
    return math.isfinite(float(ends.max() or 0)) and spans(ends)  # pyright: ignore[reportArgumentType]
