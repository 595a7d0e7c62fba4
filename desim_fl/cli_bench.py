"""The command line's ``bench``: speed on this machine, each figure beside a baseline of the same run."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path  # noqa: TC003  (typer reads annotations)
from typing import Annotated

import typer

from desim_fl.errors import ScenarioError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else.")]

bench = typer.Typer(
    help="Measure speed on this machine, each figure beside a baseline of the same run.", no_args_is_help=True
)


@bench.command()
def train(
    *,
    models: Annotated[
        list[str] | None, typer.Option("--models", help="mlp, cnn, batchnorm, ...; repeatable; all.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns that each side takes.")] = 5,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Jobs in each turn.")] = 24,
    ray: Annotated[bool, typer.Option("--ray", help="On a local Ray instance too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare local training by each executor with the bare PyTorch loop, in one and in several processes."""
    from desim_fl import bench as measure  # noqa: PLC0415  (numpy is not needed to print help)

    unknown = [name for name in models or () if name not in measure.MODELS]
    if unknown:
        raise ScenarioError(f"--models {unknown[0]}: the models are {', '.join(measure.MODELS)}")
    found, chosen, near = {}, {}, {}
    for name in models or measure.MODELS:
        figures = measure.train(name, jobs, repeats, ray=ray)
        choice = measure.auto(name, figures)
        nearly = measure.auto_near(name, figures, choice)
        found[name] = [{**figure._asdict(), "mean": figure.mean, "sd": figure.sd} for figure in figures]
        chosen[name], near[name] = choice._asdict(), nearly._asdict()
        if not as_json:
            typer.echo(measure.table(name, figures))
            typer.echo(f"  auto takes {choice.side}, {choice.share:.0%} of the fastest exact one: {choice.reason}")
            typer.echo(f"  with executor.near = true it takes {nearly.side}, {nearly.share:.0%} of the fastest of all")
    if as_json:
        typer.echo(
            json.dumps({"machine": measure.machine(), "jobs_per_second": found, "auto": chosen, "auto_near": near})
        )


@bench.command()
def reuse(
    scenario: Annotated[Path | None, typer.Argument(help="Scenario file; the bench's own without.")] = None,
    *,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Times, each with an empty store.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Play six runs that differ only by a delay scale, and compare all their training with the first one's."""
    from desim_fl import bench_reuse as measure  # noqa: PLC0415  (torch is not needed to print help)

    with contextlib.redirect_stdout(sys.stderr):
        found = [measure.six_runs(scenario) for _ in range(repeats)]
    if as_json:
        runs = [[run._asdict() for run in runs] for runs in found]
        typer.echo(json.dumps({"runs": runs, "ratios": [measure.ratio(runs) for runs in found]}))
    else:
        typer.echo(measure.table(found))


_LINK_EVENTS = 10_000  # in each turn


@bench.command("plan")
def bench_plan(
    *,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns that each side takes.")] = 5,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Jobs in each turn.")] = 100_000,
    as_json: AsJson = False,
) -> None:
    """Compare timing-only runs, event log written, with bare SimPy; and what a million clients, long delays and shared links cost."""
    from desim_fl import bench_links  # noqa: PLC0415
    from desim_fl import bench_plan as measure  # noqa: PLC0415  (simpy is not needed to print help)

    figures = measure.plan(jobs, repeats)
    megabytes = measure.peak_megabytes(jobs)
    shared = bench_links.links(min(jobs, _LINK_EVENTS), repeats)
    if as_json:
        links = [{"side": each.side, "us_an_event": each.rates, "mean": each.mean, "sd": each.sd} for each in shared]
        typer.echo(json.dumps({**measure.result(jobs, figures, megabytes), "links": links}))
    else:
        typer.echo(measure.table(jobs, figures, megabytes))
        typer.echo(bench_links.table(shared))


@bench.command()
def report(
    *,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Times that the page is written.")] = 5,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Jobs of the run; each has four event rows.")] = 250_000,
    as_json: AsJson = False,
) -> None:
    """Write the report of a long run: event rows, real seconds, memory and the size of the page."""
    from desim_fl import bench_report as measure  # noqa: PLC0415  (polars is not needed to print help)

    found = measure.report(jobs, repeats)
    typer.echo(json.dumps(measure.result(found)) if as_json else measure.table(found))
