"""The command line's ``data``: which sets there are, whether one is whole, and fetching it."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else.")]
Folder = Annotated[str, typer.Option("--folder", help="Folder with the files.")]
Args = Annotated[
    str, typer.Option("--args", help="More arguments of the class as a TOML table: '{ split = \"letters\" }'.")
]
Wanted = Annotated[
    str, typer.Argument(help="Name of a data set, or a scenario file that names one.", show_default=False)
]
Size = Annotated[int | None, typer.Option("--image-size", min=1, help="Make images so many pixels high and wide.")]

data = typer.Typer(help="Data sets: which there are, whether one is whole, and fetching it.", no_args_is_help=True)


@data.command("list")
def list_sets(*, as_json: AsJson = False) -> None:
    """Name the data sets that a scenario can use."""
    from desim_fl.datasets import catalogue  # noqa: PLC0415  (numpy is not needed to print help)

    groups = {"built in": catalogue.BUILT_IN, "torchvision": catalogue.TORCHVISION, "your own": catalogue.OWN}
    if as_json:
        typer.echo(json.dumps({group: dict(entries) for group, entries in groups.items()}))
        return
    for group, entries in groups.items():
        typer.echo(f"{group}:")
        for entry in entries:
            typer.echo(f"  {entry.name:24} {entry.what}")
    typer.echo(
        'Any other classification set of torchvision.datasets works by the name of its class: [data] name = "...".'
    )


@data.command()
def check(
    wanted: Wanted, folder: Folder = "data", args: Args = "{}", image_size: Size = None, *, as_json: AsJson = False
) -> None:
    """Read a data set whole, and say what it holds."""
    _show(_read(_table(wanted, folder, args, image_size, download=False)), as_json=as_json)


@data.command()
def fetch(
    wanted: Wanted, folder: Folder = "data", args: Args = "{}", image_size: Size = None, *, as_json: AsJson = False
) -> None:
    """Let torchvision fetch a data set from its own addresses, then read it as ``check`` does."""
    _show(_read(_table(wanted, folder, args, image_size, download=True)), as_json=as_json)


@data.command()
def partition(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (TOML).", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override one key; repeatable.")
    ] = None,
    unset: Annotated[
        list[str] | None,
        typer.Option("--unset", metavar="TABLE.KEY", help="Leave out one key of the file; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the chart: .html, .png or .svg; or the map itself: .csv, .parquet."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show who would hold which classes, without training anything."""
    from desim_fl.allotment import allotted  # noqa: PLC0415  (numpy is not needed to print help)
    from desim_fl.scenario import load  # noqa: PLC0415

    loaded = load(scenario, overrides or [], unset=unset or ())
    found = allotted(loaded)
    people = found.people
    if out is not None:
        from desim_fl.report import preview  # noqa: PLC0415  (altair is not needed to print help)

        preview.write(out, people, found.validation)
    counts = None if people.class_counts is None else people.class_counts.tolist()
    if as_json:
        facts = {"partition_sha256": people.sha256(), "sizes": list(people.sizes), "class_counts": counts}
        typer.echo(json.dumps(facts))
        return
    for client in range(min(len(people), 50)):
        told = "" if counts is None else "  " + " ".join(f"{number:5d}" for number in counts[client][:20])
        typer.echo(f"{people.name(client):16.16} {people.sizes[client]:7,d}{told}")
    if len(people) > 50:  # noqa: PLR2004
        typer.echo(f"... and {len(people) - 50:,} clients more")
    typer.echo(f"partition_sha256 {people.sha256()}")


def _table(wanted: str, folder: str, args: str, image_size: int | None, *, download: bool) -> Any:
    """Return the ``[data]`` that is meant: a scenario's, or one of this name."""
    from desim_fl.scenario import load  # noqa: PLC0415  (pydantic is not needed to print help)
    from desim_fl.scenario.reading import read_data  # noqa: PLC0415

    if wanted.endswith(".toml"):
        return load(Path(wanted), ["data.download=true"] if download else []).data
    given = {"folder": json.dumps(folder), "args": args, "image_size": image_size}
    if download:
        given["download"] = "true"
    return read_data(wanted, {key: str(value) for key, value in given.items() if value not in {None, "{}"}})


def _read(table: Any) -> dict[str, Any]:
    from desim_fl import data as holdings  # noqa: PLC0415
    from desim_fl.datasets import statistics  # noqa: PLC0415

    with contextlib.redirect_stdout(sys.stderr):  # torchvision tells how far it is
        found = holdings.whole(table, 0)
    images = found.train_images
    pixels = statistics.computed(images) if images.dtype.name == "uint8" else None
    return {
        "name": found.name,
        "train": len(found.train_labels),
        "test": len(found.test_labels),
        "classes": found.classes,
        "shape": list(found.shape),
        "sha256": found.sha256,
        "normalised_by": {"mean": list(found.mean), "std": list(found.std)},
        "training_images": None if pixels is None else {"mean": list(pixels[0]), "std": list(pixels[1])},
    }


def _show(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
        return
    norm = ", ".join(f"{m:.4f} +- {s:.4f}" for m, s in zip(*facts["normalised_by"].values(), strict=True))
    typer.echo(
        f"{facts['name']}: {facts['train']:,} training and {facts['test']:,} test samples of {facts['classes']} classes, "
        f"shape {'x'.join(map(str, facts['shape']))}\nnormalised by {norm}\nsha256 {facts['sha256']}"
    )
