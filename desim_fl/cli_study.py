"""The command line's ``study``: plays a study file with a live table of what its variants give."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from desim_fl.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from desim_fl.study.conductor import Progress
    from desim_fl.study.crew import Players
    from desim_fl.study.reading import Plan

_SHOWN = 20  # variants in the live table
_HEADLINES = ("accuracy", "loss", "virtual_time_s")


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="Study file (TOML).", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write, or to go on with; reports/NAME.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Runs side by side; one a core.")] = None,
    executor: Annotated[
        str, typer.Option("--executor", help="Who plays: processes of this machine (pool), or a Ray cluster (ray).")
    ] = "pool",
    address: Annotated[
        str | None,
        typer.Option("--address", help="With ray: the cluster, as in [executor]; absent = one of this machine's own."),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Only the first so many seeds.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else.")] = False,
) -> None:
    """Play every variant of a study with every seed, and compare them pair by pair; a stopped study goes on."""
    from desim_fl.study import conduct, load  # noqa: PLC0415  (scipy is not needed to print help)

    players = _players(executor, address, workers)
    plan = load(file)
    if seeds is not None:
        plan = load(file, [("seeds", list(plan.study.seeds[:seeds]))])
    folder = out or _default_folder(plan)
    with _live(plan, quiet=as_json) as watch, contextlib.redirect_stdout(sys.stderr):
        manifest = conduct(plan, folder, workers, watch, players)
    if as_json:
        typer.echo(json.dumps({"study_dir": str(folder), **manifest}, allow_nan=False))
    else:
        _say(folder, manifest)
    if manifest["failed"]:
        for line in manifest["failed"][:_SHOWN]:
            typer.echo(f"failed: {line}", err=True)
        raise typer.Exit(1)


def _players(executor: str, address: str | None, workers: int | None) -> Players | None:
    """Return who plays the runs; ``None`` = processes of this machine. Raises ScenarioError for what cannot be meant."""
    if executor not in ("pool", "ray"):
        raise ScenarioError(f'--executor {executor}: the runs of a study are played by "pool" or "ray"')
    if executor == "pool":
        if address is not None:
            raise ScenarioError(f"--address {address}: it belongs to --executor ray")
        return None
    from desim_fl.scenario.server import ADDRESS  # noqa: PLC0415  (pydantic is not needed to print help)
    from desim_fl.study.cluster import Cluster  # noqa: PLC0415

    if address is not None and not re.fullmatch(ADDRESS, address):
        raise ScenarioError(
            f'--address {address}: must be "auto", "host:port" or "ray://host:port", the address of a Ray cluster'
        )
    return Cluster(address, workers)


def _default_folder(plan: Plan) -> Path:
    """Return reports/NAME, where a study of that name goes on."""
    from desim_fl.rundir import safe_name  # noqa: PLC0415

    return Path("reports") / safe_name(plan.study.name)


@contextlib.contextmanager
def _live(plan: Plan, *, quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Show how far each variant is, with its means so far, on stderr."""
    if quiet:
        yield None
        return
    from rich.console import Console, Group  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, Any] = {}
    found: dict[str, list[dict[str, Any]]] = {variant.label: [] for variant in plan.variants}

    def shown() -> Any:  # when the screen is drawn, not for each of thousands of rows
        return Group(bar, _table(found, len(plan.study.seeds))) if "study" in tasks else bar

    with Live(console=Console(stderr=True), refresh_per_second=4, get_renderable=shown):

        def watch(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bar.add_task(progress.stage, total=progress.total)
            bar.update(tasks[progress.stage], completed=progress.done)
            if progress.stage == "study":
                found[progress.label].append(progress.row)

        yield watch


def _table(found: dict[str, list[dict[str, Any]]], seeds: int) -> Any:
    from rich.table import Table  # noqa: PLC0415

    table = Table("variant", "runs", *_HEADLINES, box=None)
    begun = [(label, list(rows)) for label, rows in found.items() if rows]
    for label, rows in begun[-_SHOWN:]:
        means = [_mean([row.get("summary", {}).get(name) for row in rows]) for name in _HEADLINES]
        wrong = sum(row["status"] != "finished" for row in rows)
        table.add_row(label, f"{len(rows)}/{seeds}" + (f", {wrong} failed" if wrong else ""), *means)
    return table


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.4g}" if known else "-"


def _say(folder: Path, manifest: dict[str, Any]) -> None:
    typer.echo(
        f"{manifest['runs']} runs of {manifest['runs'] // len(manifest['seeds'])} variants, {manifest['played_now']} of "
        f"them played now; {len(manifest['failed'])} failed"
    )
    typer.echo(f"report: {folder / 'report.html'}")
