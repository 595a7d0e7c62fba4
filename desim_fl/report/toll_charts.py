"""Charts of what a run cost and lost: jobs whose work counts for nothing, energy, and how full links were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from desim_fl.core import TICKS_PER_SECOND
from desim_fl.report import window
from desim_fl.report.figures import Figure, Numbers, named
from desim_fl.report.formats import duration, joules, many, percent

if TYPE_CHECKING:
    from desim_fl.report.window import Span

_ALL = "all clients"
_FATES = ["lost", "cancelled", "rejected"]
_USES = ("compute", "send", "receive", "idle")
_LINKS = 6  # as many as there are colours
_SERVER = -1


def losses(frame: pl.DataFrame) -> list[Figure]:
    """Return jobs that counted for nothing by reason and class; no figure where every job counted."""
    if frame.is_empty():
        return []
    several = frame["device_class"].drop_nulls().n_unique() > 1
    no_reason = pl.col("reason").fill_null("no longer wanted")
    rows = frame.select(
        group=pl.col("device_class").fill_null(_ALL), fate="fate", jobs="jobs", clients="clients", spent="spent_s",
        why=pl.concat_str([pl.col("fate"), no_reason], separator=": "),
    )  # fmt: skip
    lead = (
        f"{many(int(rows['jobs'].sum()), 'job')} came to nothing, after {duration(float(rows['spent'].sum()))} of virtual time on "
        "clients, added up from their dispatches to their ends."
    )
    headings = {
        "why": "What became of them",
        "group": "Devices",
        "jobs": "Jobs",
        "clients": "Clients",
        "spent": "Seconds spent",
    }
    headings = headings if several else {key: title for key, title in headings.items() if key != "group"}
    numbers = {"losses": Numbers("Jobs that came to nothing", rows, headings)}
    return [Figure("losses", "Which work was lost, and why", lead, _losses(rows, several=several), numbers)]


def _losses(rows: pl.DataFrame, *, several: bool) -> alt.Chart:
    """Bars of jobs by reason, by class where there are several, else by fate."""
    sums = rows.group_by("why").agg(pl.col("jobs").sum())
    order = sums.sort("jobs", "why", descending=[True, False])["why"].to_list()
    by_fate = alt.Color("fate:N", title=None, scale=alt.Scale(domain=_FATES), legend=None)
    return (
        alt.Chart(named("losses"), height=max(70, 34 * len(order)))
        .mark_bar(height={"band": 0.72})
        .encode(
            x=alt.X("jobs:Q", title="Jobs", axis=alt.Axis(tickMinStep=1, format=",d")),
            y=alt.Y("why:N", title=None, sort=order, axis=alt.Axis(grid=False, labelLimit=220)),
            color=alt.Color("group:N", title=None) if several else by_fate,
            tooltip=[
                alt.Tooltip("why:N", title="What"),
                alt.Tooltip("group:N", title="Devices"),
                alt.Tooltip("jobs:Q", title="Jobs", format=",d"),
                alt.Tooltip("clients:Q", title="Clients", format=",d"),
                alt.Tooltip("spent:Q", title="Seconds spent", format=",.4~g"),
            ],
        )
    )


def energy(classes: pl.DataFrame) -> list[Figure]:
    """Return the energy of clients by class of devices and use; no figure where no power is stated."""
    columns = {use: f"energy_{use}_j" for use in _USES}
    if classes.is_empty() or not classes.select(pl.sum_horizontal(pl.col(list(columns.values())).count())).item():
        return []
    parts = [
        classes.select(
            group=pl.col("device_class").fill_null(_ALL), use=pl.lit(use), rank=pl.lit(rank, pl.Int64), joules=column
        )
        for rank, (use, column) in enumerate(columns.items())
    ]
    rows = pl.concat(parts).filter(pl.col("joules") > 0)
    if rows.is_empty():
        return []
    order = rows["group"].unique(maintain_order=True).to_list()
    uses = [use for use in _USES if use in set(rows["use"])]
    chart = (
        alt.Chart(named("energy"), height=max(70, 34 * len(order)))
        .mark_bar(height={"band": 0.72})
        .encode(
            x=alt.X("joules:Q", title="Energy (J)"),
            y=alt.Y("group:N", title=None, sort=order, axis=alt.Axis(grid=False)),
            color=alt.Color("use:N", title=None, scale=alt.Scale(domain=uses)),
            order=alt.Order("rank:Q"),
            tooltip=[
                alt.Tooltip("group:N", title="Devices"),
                alt.Tooltip("use:N", title="Use"),
                alt.Tooltip("joules:Q", title="Joules", format=",.4~g"),
            ],
        )
    )
    total = float(rows["joules"].sum())
    used = rows.group_by("use").agg(pl.col("joules").sum()).sort("joules", "use", descending=[True, False])
    most, share = str(used["use"][0]), float(used["joules"][0]) / total
    lead = f"Together {joules(total)}, of which {percent(round(share, 3))} to {most}." if most != "idle" else (
        f"Together {joules(total)}, of which {percent(round(share, 3))} while idle."
    )  # fmt: skip
    headings = {"group": "Devices", "use": "Use", "joules": "Joules"}
    numbers = {"energy": Numbers("Energy by devices and use", rows, headings)}
    return [Figure("energy", "What the clients' energy went into", lead, chart, numbers)]


def links(table: pl.DataFrame, whole: Span) -> list[Figure]:
    """Return how full each shared link was over time; no figure where no link is shared."""
    if table.is_empty() or not whole.end:
        return []
    rows = _spans(table, whole)
    headings = {
        "name": "Link", "time": f"From ({whole.unit.name})", "until": f"to ({whole.unit.name})", "mbps": "Mbit/s",
        "share": "Share of capacity", "full": "Share of time at capacity",
    }  # fmt: skip
    return [
        Figure(
            "links",
            "How full the shared links were",
            _links_lead(table, whole),
            window.watched(_links(rows, whole), whole),
            {"links": Numbers("Shared links over time", rows, headings)},
            wide=True,
            follow=window.Follow(axis=True, cut={"links": "name"}),
        )
    ]


def _links(rows: pl.DataFrame, whole: Span) -> alt.Chart:
    """Lines of how full links were; of what they carried, where none has a capacity."""
    limited = rows["share"].null_count() < rows.height
    field, title = ("share", "Share of capacity used") if limited else ("mbps", "Mbit/s")
    names = rows["name"].unique(maintain_order=True).to_list()
    y: Any = alt.Y(f"{field}:Q", title=title, axis=alt.Axis(format=".0%" if limited else ",.3~g", tickCount=5))
    return (
        alt.Chart(named("links"), height=200)
        .mark_line(interpolate="step-after", strokeWidth=1.5, clip=True)
        .encode(
            x=alt.X("time:Q", title=f"Virtual time ({whole.unit.name})", scale=window.scale(whole)),
            y=y.scale(domain=[0, 1]) if limited else y,
            color=alt.Color("name:N", title=None, scale=alt.Scale(domain=names), legend=alt.Legend(symbolType="stroke", offset=30)),
            strokeDash=alt.StrokeDash(
                "name:N", scale=alt.Scale(domain=names, range=[[1, 0], [5, 3], [2, 2]]), title=None,
                legend=alt.Legend(symbolType="stroke", offset=30),
            ),
            tooltip=[
                alt.Tooltip("name:N", title="Link"),
                alt.Tooltip("time:Q", title=f"From ({whole.unit.name})", format=",.4~g"),
                alt.Tooltip("mbps:Q", title="Mbit/s", format=",.4~g"),
                alt.Tooltip("full:Q", title="At capacity", format=".0%"),
            ],
        )
    )  # fmt: skip


def _spans(table: pl.DataFrame, whole: Span) -> pl.DataFrame:
    """Return ``name, time, until, mbps, share, full`` of the links, the server's first, then those that carried most."""
    seconds = pl.col("to_s") - pl.col("from_s")
    mbps = pl.when(seconds > 0).then(pl.col("bytes") * 8 / 1e6 / seconds)
    where = (
        pl.when(pl.col("region") == _SERVER)
        .then(pl.lit("server"))
        .otherwise("region " + pl.col("region").cast(pl.String))
    )
    named_rows = table.with_columns(name=pl.concat_str([where, pl.col("link")], separator=" "), mbps=mbps)
    server = named_rows.filter(pl.col("region") == _SERVER)["name"].unique(maintain_order=True).to_list()
    others = named_rows.filter(pl.col("region") != _SERVER).group_by("name").agg(pl.col("bytes").sum())
    busiest = others.sort("bytes", "name", descending=[True, False])["name"].to_list()
    kept = [*server, *busiest][:_LINKS]
    return (
        named_rows.filter(pl.col("name").is_in(kept))
        .with_columns(
            place=pl.col("name").replace_strict({name: at for at, name in enumerate(kept)}, return_dtype=pl.Int64)
        )
        .sort("place", "from_s")
        .select(
            "name",
            time=pl.col("from_s") / whole.unit.seconds,
            until=pl.col("to_s") / whole.unit.seconds,
            mbps="mbps",
            share=(pl.col("mbps") / pl.col("capacity_mbps")).clip(0, 1),
            full=pl.when(seconds > 0).then(pl.col("full_s") / seconds),
        )
    )


def _links_lead(table: pl.DataFrame, whole: Span) -> str:
    said = " ".join(f"{sentence}." for sentence in full_links(table, whole.end / TICKS_PER_SECOND))
    lead = (
        f"{said} A link that is full makes transfers wait for each other."
        if said
        else "No link of the server was ever full."
    )
    many_links = table.select("link", "region").n_unique() > _LINKS
    return lead + (f" Shown: the server's links and those that carried most, {_LINKS} in all." if many_links else "")


def full_links(table: pl.DataFrame, seconds: float) -> list[str]:
    """Return, for each link of the server that was at capacity for a share of the time worth telling, a clause about it."""
    ways = {"egress": "The server's link down to clients", "ingress": "The server's link up from clients"}
    found = []
    for link, name in ways.items():
        mine = table.filter(pl.col("link") == link, pl.col("region") == _SERVER)
        share = float(mine["full_s"].sum()) / seconds if seconds else 0.0
        if share >= 0.001:  # noqa: PLR2004  (less rounds to 0 %)
            found.append(f"{name} was full {percent(round(share, 3))} of the time")
    return found
