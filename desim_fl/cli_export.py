"""The command line's ``export``: a run, or a study's charts, for other tools."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path  # noqa: TC003  (typer reads annotations)
from typing import Annotated

import typer


def export(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run directory, or a study's folder (svg, png).", show_default=False)
    ],
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            help="csv (every table), readme (losses as .npy, CSV, plots), perfetto (a trace), tensorboard (extra); of a study "
            "svg or png (its charts).",
        ),
    ] = "csv",
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write, new or empty; RUN-LAYOUT.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else.")] = False,
) -> None:
    """Write a run as CSV, losses and plots, a Perfetto (Chrome) trace or TensorBoard events; a study's charts as SVG or PNG."""
    from desim_fl import damage  # noqa: PLC0415
    from desim_fl.export import export as write  # noqa: PLC0415  (polars is not needed to print help)

    target = out or folder.with_name(f"{folder.resolve().name}-{layout}")
    with contextlib.redirect_stdout(sys.stderr), damage.named([folder]):
        files = write(folder, layout, target)
    if as_json:
        typer.echo(json.dumps({"out": str(target), "files": [str(path) for path in files]}))
    else:
        typer.echo(f"{len(files)} files in {target}")
