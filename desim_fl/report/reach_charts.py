"""Charts of what a study is about: values to the target by factor, and paired ratios, with published numbers beside them.

Published numbers stand in the study file (``[[published]]``): values of variants, or ratios to the baseline's level of a factor.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import altair as alt
import polars as pl

from desim_fl.report.figures import Figure, Numbers, named
from desim_fl.report.measures import TIME, TITLES
from desim_fl.report.study_charts import MOST_BARS, MOST_LINES, axis_factor, level_axis, spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.report.study_reading import StudyFolder

_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:[eE][-+]?\d+)?")
_MOST_SLOTS = 60  # marks beside each other in one chart
_SPAN, _INTERVAL = ("Soonest run", "Last run"), ("Interval from", "to")
_SHAPES = ["diamond", "triangle-up", "square", "cross"]
_PUBLISHED: dict[str, Any] = {"variant": pl.String, "published": pl.String, "value": pl.Float64}


def reached(study: StudyFolder, metric: str = TIME) -> Figure:
    """Return what it took to the target: means over the runs that got there, their span, and how many did."""
    title, factor = TITLES[metric].title, axis_factor(study)
    heading, id_ = f"{title} by {factor}", f"reach-{metric}"
    rows = _reached(study, metric, factor)
    if rows["mean"].is_null().all():
        return Figure(id_, heading, "No run got there.")
    lines, levels = _distinct(rows, "line"), ordered(_distinct(rows, "level"))
    if len(lines) > MOST_LINES or len(lines) * len(levels) > _MOST_SLOTS:
        return Figure(id_, heading, f"{rows.height} variants do not fit into a chart; see the table below.")
    marks = published(study, metric, None).join(rows.select("variant", "level", "line"), on="variant")
    lead = "Means over the runs that got there; bars span the soonest and the last of those."
    if (rows["n"] < rows["runs"]).any():
        lead += " Where not all did, it says how many did (2/3), and the mean leaves out the slowest."
    log = spans(pl.concat([rows["mean"], marks["value"]]))
    others = " · ".join(name for name in study.factors if name != factor)
    shape = _Shape(title, factor, levels, lines, log=log, bars=_SPAN, others=others)
    return _figure(id_, heading, lead, rows, marks, shape)


def ratios(study: StudyFolder, factor: str, metric: str = TIME) -> Figure:
    """Return paired ratios to the baseline's level of a factor; pairs with a run that did not get there are left out."""
    title = f"{TITLES[metric].title.removesuffix(' (s)')}: ratio"
    place = study.factors.index(factor) + 1
    heading, id_ = f"{title} to the baseline's {factor}", f"ratio-{metric}-{place}"
    rows = _ratios(study, factor, metric)
    if rows.is_empty():
        return Figure(id_, heading, "There is no pair of variants all of whose runs got there.")
    if rows.height > MOST_BARS:
        return Figure(id_, heading, f"{rows.height} comparisons do not fit into a chart; see the table below.")
    marks = published(study, metric, factor).join(rows.select("variant", "level", "line"), on="variant")
    lead = (
        f"Geometric means of the ratios seed by seed, with {study.manifest['confidence']:.0%} intervals from the paired logarithms; "
        "only variants all of whose runs got there."
    )
    shape = _Shape(title, "", _distinct(rows, "level"), ["all"], log=True, bars=_INTERVAL)
    return _figure(id_, heading, lead, rows, marks, shape)


def published(study: StudyFolder, metric: str, against: str | None) -> pl.DataFrame:
    """Return published numbers (``variant, published, value``): of variants, or ratios ``against`` a factor's baseline."""
    rows = [
        (variant, entry["label"], float(value))
        for entry in study.manifest.get("published", ())
        if entry["metric"] == metric and entry["against"] == against
        for variant, value in entry["values"].items()
    ]
    return pl.DataFrame(rows, schema=_PUBLISHED, orient="row")


def ordered(labels: Sequence[str]) -> list[str]:
    """Return labels that differ in one number only by that number, others as they stand."""
    found = [_NUMBER.findall(label) for label in labels]
    alike = {_NUMBER.sub("#", label) for label in labels}
    if len(alike) > 1 or any(len(numbers) != 1 for numbers in found):
        return list(labels)
    return sorted(labels, key=lambda label: float(_NUMBER.findall(label)[0].replace(",", "")))


def _distinct(rows: pl.DataFrame, name: str) -> list[str]:
    return rows[name].unique(maintain_order=True).to_list()


def _reached(study: StudyFolder, metric: str, factor: str) -> pl.DataFrame:
    others = [f"level: {name}" for name in study.factors if name != factor]
    line = pl.concat_str(others, separator=" · ") if others else pl.lit("all")
    there = pl.col(metric).filter(pl.col("reached") == 1)
    rows = study.runs.group_by("variant", maintain_order=True).agg(
        pl.col(f"level: {factor}").first().alias("level"),
        line.first().alias("line"),
        runs=pl.len(),
        n=there.len(),
        mean=there.mean(),
        low=there.min(),
        high=there.max(),
    )
    return rows.with_columns(note=_note())


def _note() -> pl.Expr:
    """How many got there, where not all did."""
    return pl.when(pl.col("n") < pl.col("runs")).then(pl.format("{}/{}", "n", "runs")).otherwise(pl.lit(""))


def _ratios(study: StudyFolder, factor: str, metric: str) -> pl.DataFrame:
    whole = study.reach.filter((pl.col("measure") == metric) & (pl.col("reached") == pl.col("n")))["variant"]
    rows = study.effects.filter(
        (pl.col("metric") == metric)
        & (pl.col("factor") == factor)
        & pl.col("variant").is_in(whole.implode())
        & pl.col("against").is_in(whole.implode())
        & pl.col("ratio").is_not_null()
    )
    return rows.select(
        "variant", "against", "n", level="variant", line=pl.lit("all"), mean="ratio", low="ratio_low",
        high="ratio_high", note=pl.lit(""),
    )  # fmt: skip


class _Shape(NamedTuple):
    """How a chart is laid out: title of the values, factor and its levels, lines beside each other, kind of axis."""

    title: str
    factor: str
    levels: list[str]
    lines: list[str]
    log: bool
    bars: tuple[str, str]  # what the ends of a bar are
    others: str = ""  # the factors that tell the lines apart

    @property
    def beside(self) -> str | None:
        """The title beside the values; none where a legend stands there, and the heading says it."""
        return self.title if self.lying or len(self.lines) == 1 else None

    @property
    def lying(self) -> bool:
        """Whether levels stand below each other: long names, one line."""
        return len(self.lines) == 1 and any(map(_wordy, self.levels))

    @property
    def joined(self) -> bool:
        """Whether levels are points of a scale, so that a line through them means something."""
        return len(self.lines) == 1 and not self.lying


def _wordy(label: str) -> bool:
    return _NUMBER.fullmatch(label) is None


def _figure(id_: str, heading: str, lead: str, rows: pl.DataFrame, marks: pl.DataFrame, shape: _Shape) -> Figure:
    name, beside = id_.replace("-", "_"), f"{id_.replace('-', '_')}_published"
    numbers = {
        name: Numbers(heading, rows, {
            "variant": "Variant", "n": "Runs", "mean": f"{shape.title}: mean", "low": shape.bars[0], "high": shape.bars[1],
        })
    }  # fmt: skip
    if not marks.is_empty():
        headings = {"variant": "Variant", "published": "Published", "value": shape.title}
        numbers[beside] = Numbers(f"{heading}: published", marks, headings)
        lead += " Hollow marks are published numbers."
    chart = _chart(shape, name, beside if beside in numbers else None)
    return Figure(id_, heading, lead, chart, numbers, wide=True)


def _chart(shape: _Shape, name: str, beside: str | None) -> Any:
    """Return means with intervals, notes at those that not every run reached, and published numbers."""
    where, across = _where(shape), "y" if shape.lying else "x"
    up = "x" if shape.lying else "y"
    channel: Any = alt.X if shape.lying else alt.Y
    scale = alt.Scale(type="log", nice=False, padding=12) if shape.log else alt.Scale(zero=False)
    axis = _axis(shape)
    base = alt.Chart(named(name)).transform_filter("isValid(datum.mean)").encode(**where)
    bars = base.transform_filter("isValid(datum.low)").mark_rule(style="interval", strokeWidth=1.5)
    bars = bars.encode(**{up: channel("low:Q", title=shape.title, scale=scale, axis=axis), f"{up}2": "high:Q"})
    points = base.mark_point(filled=True, size=55, opacity=1)
    points = points.encode(**{up: channel("mean:Q", title=shape.title, axis=axis)}, tooltip=_tips())
    notes = base.mark_text(style="note", fontSize=10, dy=-9 if up == "y" else 0, dx=0 if up == "y" else 22)
    notes = notes.encode(text="note:N", **{up: channel("high:Q", title=shape.title, axis=axis)})
    never = alt.Chart(named(name)).transform_filter("!isValid(datum.mean)").encode(**where)
    never = never.mark_text(style="note", fontSize=10, align="left" if shape.lying else "center")
    never = never.encode(text="note:N", **{up: alt.value(4)})
    layers: list[Any] = [bars, points, notes, never]
    if shape.joined:
        line = base.mark_line(strokeWidth=1, opacity=0.6)
        layers.insert(0, line.encode(**{up: channel("mean:Q", title=shape.title, axis=axis)}))
    if beside is not None:
        layers.append(_published(shape, beside, {across: where[across]}, up))
    height = max(80, 24 * len(shape.levels)) if shape.lying else 260
    return alt.layer(*layers).properties(height=height)


def _axis(shape: _Shape) -> alt.Axis:
    """Return the axis of the values; marks keep the title for who hears them, where it is not written beside the axis."""
    return alt.Axis(format=",.6~g", grid=True, tickCount=8, title=shape.beside)


def _where(shape: _Shape) -> dict[str, Any]:
    """Return the encoding of who a mark is about: its level, and its line beside others."""
    if shape.lying:
        axis = alt.Axis(grid=False, labelLimit=320, domain=False, ticks=False)
        return {"y": alt.Y("level:N", title=None, sort=shape.levels, axis=axis)}
    axis = level_axis(shape.levels, grid=False)
    where: dict[str, Any] = {"x": alt.X("level:O", title=shape.factor, sort=shape.levels, axis=axis)}
    if len(shape.lines) > 1:
        where["xOffset"] = alt.XOffset("line:N", sort=shape.lines)
        where["color"] = alt.Color("line:N", title=shape.others, sort=shape.lines)
    return where


def _published(shape: _Shape, name: str, where: dict[str, Any], up: str) -> alt.Chart:
    channel: Any = alt.X if up == "x" else alt.Y
    offset: dict[str, Any] = {"xOffset": alt.XOffset("line:N", sort=shape.lines)} if len(shape.lines) > 1 else {}
    chart = alt.Chart(named(name)).mark_point(style="end-mark", size=90, filled=False)
    return chart.encode(
        **where,
        **offset,
        **{up: channel("value:Q", title=shape.title, axis=_axis(shape))},
        shape=alt.Shape(
            "published:N", title=None, scale=alt.Scale(range=_SHAPES), legend=alt.Legend(columns=1, labelLimit=320)
        ),
        tooltip=[alt.Tooltip("published:N", title="Published"), alt.Tooltip("value:Q", format=".4~g")],
    )


def _tips() -> list[alt.Tooltip]:
    names = {"mean": "Mean", "low": "From", "high": "To"}
    return [
        alt.Tooltip("variant:N", title="Variant"),
        *(alt.Tooltip(f"{name}:Q", title=title, format=".5~g") for name, title in names.items()),
        alt.Tooltip("n:Q", title="Runs"),
    ]
