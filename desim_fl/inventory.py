"""What lies in a run directory: which tables can be read, and whether every file is what the run wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from desim_fl import checkpoint, checkpointing, durable, eventlog, link_usage, reserve, rundir, tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SCHEMAS: dict[str, dict[str, Any]] = {
    "events": eventlog.schema(),
    **rundir.SCHEMAS,
    "wall": rundir.WALL_SCHEMA,
    "links": link_usage.SCHEMA,
    **reserve.SCHEMAS,
}
_COUNTED = {"events": ("seq", "ticks", "kind", "client", "job", "version", "staleness"), "wall": ("job", "client")}


def read(folder: Path, name: str, *, wanted: bool) -> tuple[pl.DataFrame | None, list[str]]:
    """Return a table of a run directory, ``None`` where it cannot be trusted to be one, and what is wrong with it.

    A table that is not ``wanted`` may be missing.
    """
    paths, problems = _paths(folder, name)
    if not any(path.is_file() for path in paths) and not problems:
        return None, [f"{_called(folder, name)} is missing"] if wanted else []
    parts = []
    for path in paths:
        label = path.relative_to(folder).as_posix()
        try:
            part = tables.parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            problems.append(f"{label} cannot be read: {error}")
            continue
        problems += _form(name, label if name == "events" and len(paths) > 1 else f"the table {name}", part)
        parts.append(part)
    return (None if problems or not parts else pl.concat(parts)), problems


def _paths(folder: Path, name: str) -> tuple[list[Path], list[str]]:
    """Where a table stands, and which of its parts are missing in between."""
    if name != "events":
        return [folder / f"{name}.parquet"], []
    found = sorted((folder / "events").glob("part-*.parquet"))
    names = [path.name for path in found]
    due = [f"part-{number:05d}.parquet" for number in range(len(found))]
    lacking = [each for each in due if each not in names]
    return found, [f"events/{each} is missing, though later ones are there" for each in lacking]


def _called(folder: Path, name: str) -> str:
    if name != "events":
        return f"{name}.parquet"
    return "the folder events" if not (folder / "events").is_dir() else "events/part-00000.parquet"


def _form(name: str, label: str, table: pl.DataFrame) -> Iterator[str]:
    """Yield what is wrong with the form of a table: its columns, or empty cells where a number belongs."""
    schema = SCHEMAS[name]
    if list(table.schema.items()) != list(schema.items()):
        yield f"{label} does not have the schema that this version writes"
        return
    counted = _COUNTED.get(name, rundir.COUNTED)
    empty = [column for column in counted if column in schema and table[column].null_count()]
    if empty:
        yield f"{label} has empty cells in {', '.join(empty)}"


def faults(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Compare every file with its hash in the manifest, and the manifest with its own."""
    known = manifest.get("files")
    if not isinstance(known, dict):
        if "unwritten" in manifest:
            yield f"{rundir.MANIFEST} has no hashes of the files"
        return
    if "unwritten" not in manifest:
        yield f"{rundir.MANIFEST} does not say what could not be written"
    there = rundir.file_hashes(folder)
    for name in sorted((known.keys() | there.keys()) - {rundir.MANIFEST}):
        if name not in there:
            yield f"{name} is missing"
        elif name not in known:
            yield f"{name} is there, but the run did not write it"
        elif known[name] != there[name]:
            yield f"{name} is not what the run wrote"
    if known.get(rundir.MANIFEST) != rundir.seal({**manifest, "files": known}):
        yield f"{rundir.MANIFEST} is not what the run wrote"


def checkpoints(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield which checkpoints are not what was written, are missing, or are none."""
    place = folder / checkpointing.FOLDER
    known = checkpoint.files(place)
    for path in known:
        if (fault := checkpoint.damage(path)) is not None:
            yield f"{path.relative_to(folder).as_posix()}: {fault}"
    strange = [path for path in sorted(place.glob("*")) if path not in known and path.suffix != durable.ASIDE]
    for path in strange:
        yield f"{path.relative_to(folder).as_posix()} is there, but the run did not write it"
    kept = (manifest.get("checkpoints") or {}).get("kept", 0)
    if len(known) < min(kept, checkpoint.KEPT):
        yield f"{checkpointing.FOLDER} holds {len(known)} checkpoints of {min(kept, checkpoint.KEPT)}"


def leftovers(folder: Path) -> list[str]:
    """Files that a killed process left half-written; nobody reads them."""
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob(f"*{durable.ASIDE}"))]
