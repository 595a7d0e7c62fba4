"""Learning curves of a study as means over the seeds with the span of the runs, a panel for each level of a factor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from desim_fl.report.figures import Figure, Numbers, named
from desim_fl.report.reach_charts import ordered
from desim_fl.report.study_charts import MOST_LINES, axis_factor

if TYPE_CHECKING:
    from desim_fl.report.study_reading import StudyFolder

POINTS = 40  # of one curve; evaluations are averaged in so many stretches of equal length
_MOST_PANELS = 6


def bands(study: StudyFolder, measure: str) -> Figure:
    """Return means by number of updates: each evaluation at which every run of its variant has a test score."""
    factor = axis_factor(study)
    heading, id_ = f"Test {measure} against updates received, by {factor}", f"bands-{measure}"
    rows = _stretches(study, measure, factor)
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
        "variant": "Variant", "updates": "Updates received", "n": "Scores", "mean": f"Test {measure}: mean",
        "low": "Lowest", "high": "Highest",
    }  # fmt: skip
    numbers = {name: Numbers(heading, rows, headings)}
    return Figure(id_, heading, _lead(rows), _chart(name, measure, panels, lines), numbers, wide=True)


def _lead(rows: pl.DataFrame) -> str:
    span = int(rows["stretch"].max() or 0)  # pyright: ignore[reportArgumentType]
    several = f" A point is the mean over {span:,} updates." if rows["n"].max() != rows["runs"].max() else ""
    return f"Means over the seeds; bands span the lowest and the highest score.{several}"


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
    return found.agg(n=pl.len(), mean=score.mean(), low=score.min(), high=score.max())


def _panel(factor: str, level: str) -> str:
    return f"{factor}: {level}"


def _chart(name: str, measure: str, panels: list[str], lines: list[str]) -> alt.FacetChart:
    colour: dict[str, Any] = (
        {}
        if len(lines) == 1
        else {"color": alt.Color("line:N", title=None, sort=lines, legend=alt.Legend(symbolOpacity=1))}
    )
    x = alt.X("updates:Q", title="Updates received", axis=alt.Axis(tickCount=4))
    title = {"accuracy": "Test accuracy (share)", "loss": "Test loss"}[measure]
    base = alt.Chart().encode(x=x, **colour)
    scale = alt.Scale(zero=False)
    area = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q")
    path = base.mark_line(strokeWidth=1.5).encode(y=alt.Y("mean:Q", title=title, scale=scale))
    width = max(120, 640 // len(panels) - 20)
    layers = alt.layer(area, path, data=named(name)).properties(width=width, height=240)
    header = alt.Header(title=None, labelLimit=width)
    return layers.facet(column=alt.Column("panel:N", sort=panels, header=header))
