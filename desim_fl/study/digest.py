"""The digest of a study: its tables in Markdown, short enough for a note or a paper's appendix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from desim_fl.report.formats import number
from desim_fl.report.measures import TIME, TITLES, UPDATES
from desim_fl.study import statistics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from desim_fl.study.effects import Tables

NAME = "digest.md"
_WITH_TARGET = (TIME, UPDATES, "accuracy", "loss", "staleness_mean")
_WITHOUT = ("accuracy", "loss", "virtual_time_s", "updates_a_second", "staleness_mean")
_DASH = "\N{EN DASH}"


def digest(manifest: Mapping[str, Any], tables: Tables) -> str:
    """Return a page: what was asked, a row for each variant (mean, sd over seeds), and the paired ratios of what it is about.

    With a target, times and updates to it are means over the runs that got there, beside how many did. Ratios are
    those of the table ``effects``, where a run that did not get there counts with the time at which it ended, at most: if
    some of one side did not, the ratio is a bound and marked so; if of both, there is none.
    """
    target = manifest["target"]
    metrics = [name for name in (_WITHOUT if target is None else _WITH_TARGET) if _known(tables.runs, name)]
    text = [f"# {_cell(manifest['name'])}", "", " ".join(manifest["description"].split()), "", _setting(manifest), ""]
    text += _table(["variant", "runs", *([] if target is None else ["got there"]), *map(_title, metrics)], [
        _row(runs["variant"][0], runs, metrics, targeted=target is not None)
        for runs in tables.runs.partition_by("variant", maintain_order=True)
    ])  # fmt: skip
    return "\n".join(text + _ratios(manifest, tables, metrics)) + "\n"


def _known(runs: pl.DataFrame, name: str) -> bool:
    return name in runs.columns and runs[name].is_not_null().any()


def _title(name: str) -> str:
    return TITLES[name].title


def _setting(manifest: Mapping[str, Any]) -> str:
    target, tuned = manifest["target"], manifest["tuned"]
    parts = [f"Seeds {', '.join(map(str, manifest['seeds']))}; mean \N{PLUS-MINUS SIGN} standard deviation."]
    if target is not None:
        bound = "at least" if target["metric"] == "accuracy" else "at most"
        hold = "" if target["hold"] == 1 else f", {target['hold']} evaluations on end"
        parts.append(f"Target: {target['split']} {target['metric']} of {bound} {target['value']:g}{hold}.")
    if tuned is not None:
        chosen = ", ".join(f"{_cell(group)}: {value}" for group, value in tuned["chosen"].items())
        parts.append(f"Tuned beforehand: {tuned['key']} ({chosen}).")
    return " ".join(parts)


def _row(label: str, runs: pl.DataFrame, metrics: Sequence[str], *, targeted: bool) -> list[str]:
    there = runs.filter(pl.col("reached") == 1) if targeted else runs
    cells = [_spread((there if name in {TIME, UPDATES} else runs)[name].drop_nulls().to_list()) for name in metrics]
    return [_cell(label), str(runs.height), *([f"{there.height}/{runs.height}"] if targeted else []), *cells]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return _DASH
    found = statistics.summary(values, 0.95)
    return number(found.mean) + ("" if found.sd is None else f" \N{PLUS-MINUS SIGN} {number(found.sd, 2)}")


def _ratios(manifest: Mapping[str, Any], tables: Tables, metrics: Sequence[str]) -> list[str]:
    """Return the table of paired ratios, or nothing where nothing is compared."""
    about = [name for name in (TIME, UPDATES) if name in metrics] or list(metrics[:1])
    rows = tables.effects.filter(pl.col("metric").is_in(about))
    if rows.is_empty():
        return []
    short = {
        (row["variant"], row["measure"]) for row in tables.reach.iter_rows(named=True) if row["reached"] < row["n"]
    }
    head = ["variant", "against", "metric", "pairs", f"ratio ({manifest['confidence']:.0%} interval)"]
    return ["", *_table(head, [
        [_cell(row["variant"]), _cell(row["against"]), _title(row["metric"]), str(row["n"]), _ratio(row, short)]
        for row in rows.iter_rows(named=True)
    ])]  # fmt: skip


def _ratio(row: Mapping[str, Any], short: set[tuple[str, str]]) -> str:
    """Return a ratio with its interval; a bound where only one side got there, a dash where neither did."""
    upper, lower = (row["against"], row["metric"]) in short, (row["variant"], row["metric"]) in short
    if row["ratio"] is None or (upper and lower):
        return _DASH
    if upper or lower:
        return f"{'below' if upper else 'above'} {number(row['ratio'], 3)}"
    interval = "" if row["ratio_low"] is None else f" ({number(row['ratio_low'], 3)} to {number(row['ratio_high'], 3)})"
    return number(row["ratio"], 3) + interval


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _cell(text: str) -> str:
    """Keep a label from breaking out of its cell, or from being read as markup."""
    return " ".join(text.replace("|", "&#124;").replace("<", "&lt;").split())
