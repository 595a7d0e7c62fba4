"""The command line's ``compare``: runs side by side, in the terminal and as a page."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003  (typer reads annotations)
from typing import TYPE_CHECKING, Annotated

import typer

from desim_fl.errors import RunDirectoryError, ScenarioError

if TYPE_CHECKING:
    from desim_fl.compare import Comparison
    from desim_fl.study.document import Target


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="A B [...]", help="Run directories.", show_default=False)],
    target: Annotated[
        str | None, typer.Option("--target", metavar="METRIC=VALUE", help="Time to accuracy=0.8, or to loss=0.5.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write a page to this file (HTML).")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else.")] = False,
) -> None:
    """Compare runs: settings that differ, the first event at which timelines part, results, curves on one axis."""
    from desim_fl import compare as room  # noqa: PLC0415  (polars is not needed to print help)
    from desim_fl import damage  # noqa: PLC0415

    if len(folders) < 2:  # noqa: PLR2004
        raise RunDirectoryError("compare needs two run directories or more")
    with damage.named(folders):
        found = room.compare(folders, None if target is None else read_target(target))
        if out is not None:
            from desim_fl import comparison_page  # noqa: PLC0415  (altair is not needed for the terminal)

            if not out.parent.is_dir() or out.is_dir():
                raise RunDirectoryError(f"cannot write {out}: give a file in a folder that is there")
            comparison_page.write(out, found)
        if as_json:
            typer.echo(json.dumps(room.as_json(found), allow_nan=False))
        else:
            _say(found)
            if out is not None:
                typer.echo(f"page: {out}")


def read_target(text: str) -> Target:
    """Read ``accuracy=0.8`` or ``loss=0.5``; anything else is a ``ScenarioError``."""
    from desim_fl.study.document import Target  # noqa: PLC0415

    metric, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = None
    if number is None or not abs(number) <= 1e12 or metric not in ("accuracy", "loss"):  # noqa: PLR2004
        raise ScenarioError(f"--target {text}: write accuracy=0.8, or loss=0.5")
    return Target.model_validate({"metric": metric, "value": number})


def _say(found: Comparison) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from desim_fl.compare import described, rows  # noqa: PLC0415

    console = Console(highlight=False)
    results = Table("", *map(escape, found.labels), box=None)
    for title, values in rows(found):
        results.add_row(title, *("-" if value is None else f"{value:.6g}" for value in values))
    console.print(results)
    for setting in found.settings:
        console.print(f"{setting.key}: {' | '.join(setting.values)}", markup=False, soft_wrap=True)
    for row in found.partings:
        if row.seq is None:
            console.print(f"{row.run}: the same timeline as {found.labels[0]}", markup=False)
            continue
        if row.same_order:
            console.print(f"{row.run}: the events of {found.labels[0]} in their order, at other times", markup=False)
        console.print(f"{row.run} leaves {found.labels[0]} at event {row.seq}:", markup=False)
        console.print(f"  {found.labels[0]}: {described(row.first)}\n  {row.run}: {described(row.other)}", markup=False)
