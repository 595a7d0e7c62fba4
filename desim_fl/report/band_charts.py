"""Learning curves of a study as means over the seeds with the span of the runs, a panel for each level of a factor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from desim_fl.report.curves import wants_log
from desim_fl.report.figures import Figure, Numbers, named
from desim_fl.report.reach_charts import ordered
from desim_fl.report.study_charts import MOST_LINES, axis_factor

if TYPE_CHECKING:
    from desim_fl.report.study_reading import StudyFolder

POINTS = 40  # of one curve; evaluations are averaged in so many stretches of equal length
ROOF = 10  # times the worst score of the models that runs begin with: a loss beyond it is cut off
TITLES = {"accuracy": "Test accuracy (share)", "loss": "Test loss"}
AXES = {"updates": "Updates received", "time_s": "Virtual time (s)"}
_MOST_PANELS = 6
_FINE = 3  # decades that have marks between their ends


def bands(study: StudyFolder, measure: str, *, against: str = "updates") -> Figure:
    """Return means by number of updates: each evaluation at which every run of its variant has a test score.

    ``against = "time_s"`` puts each of these means at the mean of the times at which the runs had received so many. A loss
    whose range spans several powers of ten has a logarithmic axis, and what diverges leaves the picture at :data:`ROOF`.
    """
    factor, axis = axis_factor(study), {"updates": "updates received", "time_s": "virtual time"}[against]
    heading = f"Test {measure} against {axis}, by {factor}"
    id_ = f"bands-{measure}" if against == "updates" else f"bands-{measure}-time"
    rows = _stretches(study, measure, factor)
    if against == "time_s" and wants_log(rows["time_s"].filter(rows["time_s"] > 0)):
        rows = rows.filter(pl.col("time_s") > 0)
    levels, lines = (rows[name].unique(maintain_order=True).to_list() for name in ("level", "line"))
    panels = [_panel(factor, level) for level in ordered(levels)]
    if rows.is_empty():
        return Figure(id_, heading, "The runs of a variant were not scored after equal numbers of updates.")
    if len(panels) > _MOST_PANELS or len(lines) > MOST_LINES:
        return Figure(
            id_, heading, f"{len(panels)} panels of {len(lines)} lines do not fit; see the chart of all runs."
        )
    name = id_.replace("-", "_")
    headings = {
        "variant": "Variant", **AXES, "n": "Scores", "mean": f"Test {measure}: mean", "low": "Lowest", "high": "Highest",
    }  # fmt: skip
    roof = _roof(study, rows, measure)
    rows = rows if roof is None else _under(rows, roof)
    numbers = {name: Numbers(heading, rows, headings)}
    whole = against == "updates"
    x = alt.X(f"{against}:Q", title=AXES[against], **_measured(rows[against], log=not whole, nice=whole))
    y = _measured(rows["low"].append(rows["high"]), log=measure == "loss")
    chart = _chart(name, x, {"title": TITLES[measure], **y}, panels, lines)
    return Figure(id_, heading, _lead(rows, roof), chart, numbers, wide=True)


def _measured(values: pl.Series, *, log: bool, nice: bool = False) -> dict[str, Any]:
    """Scale and axis of these values: in powers of ten where those span several, and may be so shown."""
    if not log or not wants_log(values):
        return (
            {"scale": alt.Scale(nice=True), "axis": alt.Axis(tickCount=4)} if nice else {"scale": alt.Scale(zero=False)}
        )
    least, most = float(values.min()), float(values.max())  # pyright: ignore[reportArgumentType]
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)))
    parts = (1, 2, 5) if len(decades) <= _FINE else (1,)
    marks = [part * 10.0**decade for decade in [*decades, decades.stop] for part in parts]
    return {
        "scale": alt.Scale(type="log", nice=False),
        "axis": alt.Axis(values=[mark for mark in marks if least <= mark <= most]),
    }


def _roof(study: StudyFolder, rows: pl.DataFrame, measure: str) -> float | None:
    """Where a picture of losses ends because runs diverge; ``None`` = at the largest."""
    first = study.curves.filter((pl.col("split") == "test") & (pl.col("version") == 0))[measure].max()
    if measure != "loss" or not isinstance(first, float) or first <= 0:
        return None
    return ROOF * first if rows["mean"].max() > ROOF * first else None  # pyright: ignore[reportOptionalOperand, reportOperatorIssue]


def _under(rows: pl.DataFrame, roof: float) -> pl.DataFrame:
    """The points of each line until the first beyond the roof, which is drawn at the roof."""
    beyond = (pl.col("mean") > roof).cast(pl.Int64)
    rows = rows.filter(beyond.cum_sum().over("variant") - beyond == 0)
    return rows.with_columns(pl.col("low", "mean", "high").clip(upper_bound=roof))


def _lead(rows: pl.DataFrame, roof: float | None) -> str:
    span = int(rows["stretch"].max() or 0)  # pyright: ignore[reportArgumentType]
    several = f" A point is the mean over {span:,} updates." if rows["n"].max() != rows["runs"].max() else ""
    cut = "" if roof is None else f" What is beyond {roof:.3g} is not drawn."
    return f"Means over the seeds; bands span the lowest and the highest score.{several}{cut}"


def _stretches(study: StudyFolder, measure: str, factor: str) -> pl.DataFrame:
    """Return one row a variant and stretch of updates: mean, least and greatest score, and how many there are."""
    others = [f"level: {name}" for name in study.factors if name != factor]
    line = pl.concat_str(others, separator=" \N{MIDDLE DOT} ") if others else pl.lit("all")
    levels = study.runs.group_by("variant", maintain_order=True).agg(
        pl.col(f"level: {factor}").first().alias("level"), line.first().alias("line"), runs=pl.len()
    )
    scores = study.curves.filter((pl.col("split") == "test") & pl.col(measure).is_finite())
    scores = scores.join(levels, on="variant", how="left", maintain_order="left")
    whole = scores.filter(pl.len().over("variant", "updates") == pl.col("runs"))
    stretch = max(1, -(-int(whole["updates"].max() or 0) // POINTS))  # pyright: ignore[reportArgumentType]
    end = (pl.col("updates") + stretch - 1) // stretch * stretch
    panel = pl.col("level").map_elements(lambda level: _panel(factor, level), pl.String)
    found = whole.with_columns(updates=end, stretch=pl.lit(stretch), panel=panel).group_by(
        "variant", "level", "panel", "line", "updates", "runs", "stretch", maintain_order=True
    )
    score = pl.col(measure)
    return found.agg(n=pl.len(), time_s=pl.col("time_s").mean(), mean=score.mean(), low=score.min(), high=score.max())


def _panel(factor: str, level: str) -> str:
    return f"{factor}: {level}"


def _chart(name: str, x: alt.X, upward: dict[str, Any], panels: list[str], lines: list[str]) -> alt.FacetChart:
    colour: dict[str, Any] = (
        {}
        if len(lines) == 1
        else {"color": alt.Color("line:N", title=None, sort=lines, legend=alt.Legend(symbolOpacity=1))}
    )
    base = alt.Chart().encode(x=x, **colour)
    area = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", **upward), y2="high:Q")
    path = base.mark_line(strokeWidth=1.5).encode(y=alt.Y("mean:Q", **upward))
    width = max(120, 640 // len(panels) - 20)
    layers = alt.layer(area, path, data=named(name)).properties(width=width, height=240)
    header = alt.Header(title=None, labelLimit=width + 16)
    return layers.facet(column=alt.Column("panel:N", sort=panels, header=header))
