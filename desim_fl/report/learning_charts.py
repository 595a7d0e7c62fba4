"""Charts of learning: accuracy and loss against virtual time and against updates, and local loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import altair as alt
import polars as pl

from desim_fl.report import curves, window
from desim_fl.report.figures import Figure, Numbers, named, text_height

if TYPE_CHECKING:
    from desim_fl.report.formats import TimeUnit
    from desim_fl.report.populations import Sample
    from desim_fl.report.window import Span

_FEW = 40  # points of a line that are drawn one by one
_SPLITS = list(curves.SPLITS)


class Axis(NamedTuple):
    """What stands on the horizontal axis."""

    field: str
    title: str

    @property
    def timed(self) -> bool:
        """Whether it is virtual time."""
        return self.field == "time"


def learning(
    figure_id: str, frame: pl.DataFrame, axis: Axis, whole: Span, diverged: curves.Divergence | None
) -> Figure:
    """Accuracy above loss, linked: pointing at one shows the same evaluation in the other."""
    against = axis.title.split(" (")[0].lower()
    if frame.is_empty():
        return Figure(figure_id, f"Learning against {against}", "This run holds no evaluation, so there is no curve.")
    numbers = _learning_numbers(frame, whole.unit)
    measures = [name for name in ("accuracy", "loss") if frame[name].count()]
    panels = [_panel(measure, frame, axis, whole, diverged) for measure in measures]
    what = "accuracy and loss" if measures == ["accuracy", "loss"] else " and ".join(measures) or "loss"
    if not panels:
        return Figure(figure_id, f"Learning against {against}", "No evaluation gave a finite loss.", numbers=numbers)
    return Figure(
        figure_id,
        f"{what.capitalize()} against {against}",
        _learning_lead(frame),
        _linked(alt.vconcat(*panels, data=named("learning"), spacing=26), axis, whole),
        numbers,
        follow=window.Follow(axis=axis.timed and bool(whole.end), cut={"learning": "part"}),
    )


def _hover(axis: Axis) -> str:
    return f"hover_{axis.field}"


def _linked(chart: alt.VConcatChart, axis: Axis, whole: Span) -> alt.VConcatChart:
    """One selection of the nearest evaluation for both panels (``add_params`` would make one of each panel's own)."""
    views = [
        layer["name"]
        for panel in chart.to_dict(validate=False)["vconcat"]
        for layer in panel["layer"]
        if "name" in layer
    ]
    select = {"type": "point", "fields": [axis.field], "nearest": True, "on": "pointerover", "clear": "pointerout"}
    linked = chart.copy()
    linked.params = [alt.TopLevelSelectionParameter(name=_hover(axis), select=select, views=views)]
    return window.watched(linked, whole) if axis.timed else linked


def _learning_lead(frame: pl.DataFrame) -> str:
    both = "validation" in frame["part"]
    return "Each point is one evaluation of the global model" + (
        "; validation samples are split from the training data." if both else " on the test data."
    )


def _learning_numbers(frame: pl.DataFrame, unit: TimeUnit) -> dict[str, Numbers]:
    headings = {
        "part": "Part of the data",
        "time": f"Virtual time ({unit.name})",
        "version": "Version",
        "updates": "Updates received",
        "accuracy": "Accuracy",
        "loss": "Loss",
    }
    if not frame["accuracy"].count():
        del headings["accuracy"]
    return {"learning": Numbers("Evaluations of the global model", frame, headings)}


def _scale(values: pl.Series) -> alt.Scale:
    if curves.wants_log(values):
        return alt.Scale(type="log", nice=False)
    only = values.drop_nulls().unique()
    if len(only) == 1:  # an axis of no length would bear one number, rounded to a wrong one
        value = float(only[0])
        room = abs(value) / 10 or 1.0
        return alt.Scale(domain=[value - room, value + room], zero=False)
    return alt.Scale(zero=False)


def _panel(measure: str, frame: pl.DataFrame, axis: Axis, whole: Span, diverged: curves.Divergence | None) -> Any:
    share = measure == "accuracy"
    ticks = alt.Axis(tickCount=5, format=".3~%") if share else alt.Axis(tickCount=5)
    ends = window.scale(whole) if axis.timed else alt.Scale(nice=False, zero=False)
    x = alt.X(f"{axis.field}:Q", title=axis.title if not share else None, scale=ends)
    y = alt.Y(f"{measure}:Q", title=measure.capitalize(), scale=_scale(frame[measure]), axis=ticks)
    colour = alt.Color("part:N", title=None, scale=alt.Scale(domain=_SPLITS), legend=_legend(frame))
    base = alt.Chart().encode(x=x)
    near = {"param": _hover(axis), "empty": False}
    dash = alt.StrokeDash(
        "part:N", scale=alt.Scale(domain=_SPLITS, range=[[1, 0], [5, 3]]), title=None, legend=_legend(frame)
    )
    line = base.mark_line(clip=True).encode(y=y, color=colour, strokeDash=dash)
    few = frame.height <= _FEW
    points = base.mark_point(filled=True, clip=True, size=30 if few else 60).encode(
        y=y,
        color=colour,
        opacity={"condition": {**near, "value": 1}, "value": 1 if few else 0},
        tooltip=[
            # No name of the part here: with a nearest-point rule Vega-Lite shows texts as "undefined" (6.4).
            alt.Tooltip(f"{axis.field}:Q", title=axis.title, format=",.4~g" if axis.field == "time" else ",d"),
            alt.Tooltip("version:Q", title="Version"),
            alt.Tooltip(f"{measure}:Q", title=measure.capitalize(), format=".2%" if share else ".4~g"),
        ],
    )
    rule = base.mark_rule(style="hover-line", clip=True).encode(
        opacity={"condition": {**near, "value": 0.8}, "value": 0}
    )
    watched = points.properties(name=f"{measure}_{axis.field}")
    alarms = _alarm(diverged, frame, axis, worded=not share) if diverged else []
    return alt.layer(rule, line, watched, *alarms, height=170)


def _legend(frame: pl.DataFrame) -> alt.Legend | None:
    return alt.Legend(symbolType="stroke") if frame["part"].n_unique() > 1 else None


def _alarm(diverged: curves.Divergence, frame: pl.DataFrame, axis: Axis, *, worded: bool) -> list[alt.Chart]:
    """Return a rule where the loss stopped being finite; its place comes with the table ``divergence``."""
    base = alt.Chart(named("divergence")).encode(x=alt.X(f"{axis.field}:Q"))
    rule = base.mark_rule(style="alarm-line", clip=True)
    if not worded:
        return [rule]
    early = frame.filter(pl.col("version") < diverged.version).height * 2 < frame.height
    note = base.mark_text(
        style="alarm",
        clip=True,
        align="left" if early else "right",
        dx=6 if early else -6,
        text=f"diverged at version {diverged.version}",
    )
    return [rule, note.encode(y=alt.value(8))]


def local_loss(frame: pl.DataFrame, whole: Span) -> Figure:
    """Band of the clients' own training loss over virtual time."""
    unit = whole.unit
    heading = "Clients' own training loss over virtual time"
    if frame.is_empty():
        return Figure("local-loss", heading, "No update carries a local training loss: nothing was trained.")
    scale = _scale(pl.concat([frame["p10"], frame["p90"]]))
    x = alt.X("time:Q", title=f"Virtual time ({unit.name})", scale=window.scale(whole))
    base = alt.Chart().encode(x=x)
    title = "Local loss"
    band = base.mark_area(style="band", clip=True).encode(y=alt.Y("p10:Q", title=title, scale=scale), y2="p90:Q")
    line = base.mark_line(point=frame.height <= _FEW, clip=True).encode(
        y=alt.Y("median:Q", title=title, scale=scale),
        tooltip=[
            alt.Tooltip("time:Q", title=f"Virtual time ({unit.name})", format=",.4~g"),
            alt.Tooltip("median:Q", title="Median", format=".4~g"),
            alt.Tooltip("updates:Q", title="Updates", format=",d"),
        ],
    )
    headings = {
        "time": f"Virtual time ({unit.name})",
        "p10": "10th percentile",
        "median": "Median",
        "p90": "90th percentile",
        "updates": "Updates",
    }
    return Figure(
        "local-loss",
        heading,
        "The line is the median over the updates that arrived around that time; the band holds the middle 80 %.",
        window.watched(alt.layer(band, line, data=named("local_loss"), height=220), whole),
        {"local_loss": Numbers("Local training loss by time of arrival", frame, headings)},
        follow=window.Follow(axis=bool(whole.end), cut={"local_loss": None}),
    )


def client_losses(frame: pl.DataFrame, shown: Sample) -> Figure:
    """First and last local loss of each shown client."""
    heading = "Which clients still find the model hard"
    if frame.is_empty():
        return Figure("client-losses", heading, "No update carries a local training loss: nothing was trained.")
    labels = [label for label in shown.labels if label in set(frame["label"])]
    y = alt.Y("label:N", title=None, sort=labels, axis=alt.Axis(grid=False))
    x = alt.X("loss:Q", title="Mean loss during local training", scale=_scale(frame["loss"]))
    line = alt.Chart().mark_line(style="quiet-line").encode(x=x, y=y, detail="label:N")
    dots = (
        alt.Chart()
        .mark_point(filled=True, size=50, opacity=1)
        .encode(
            x=x,
            y=y,
            color=alt.Color("when:N", title=None, scale=alt.Scale(domain=["last", "first"])),
            tooltip=[
                alt.Tooltip("label:N", title="Client"),
                alt.Tooltip("when:N", title="Update"),
                alt.Tooltip("loss:Q", title="Local loss", format=".4~g"),
                alt.Tooltip("updates:Q", title="Updates", format=",d"),
            ],
        )
    )
    headings = {"label": "Client", "when": "Update", "loss": "Local loss", "updates": "Updates"}
    return Figure(
        "client-losses",
        heading,
        "From a client's first update to its last: the mean loss over the steps of its local training.",
        alt.layer(line, dots, data=named("client_losses"), height=text_height(len(labels))),
        {"client_losses": Numbers("Local loss by client", frame, headings)},
        wide=not shown.whole,
    )
