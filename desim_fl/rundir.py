"""The run directory: what a run leaves behind, written so that nothing half-done ever bears a final name."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import polars as pl

from desim_fl import balance, durable
from desim_fl.allotment import Stored
from desim_fl.devices import JOB, SAMPLE, STEP
from desim_fl.errors import RunDirectoryError
from desim_fl.population import partition_sha256
from desim_fl.usage import LEGS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from desim_fl.build import Built
    from desim_fl.evaluation import Evaluation
    from desim_fl.usage import Usage

MANIFEST, SCENARIO = "manifest.json", "scenario.toml"
_CLAIM = ".being-written"
_TRACES = {_CLAIM, SCENARIO + durable.ASIDE}  # all that a run leaves that was killed before it could begin
MARKS = (_CLAIM,)  # what may stand in a folder that is empty otherwise
MODEL_METADATA = {"format": "pt"}  # constant, so that the bytes depend on the tensors alone

METRICS_SCHEMA: dict[str, Any] = {
    "ticks": pl.Int64,
    "time_s": pl.Float64,
    "version": pl.Int64,
    "updates": pl.Int64,
    "split": pl.String,
    "loss": pl.Float64,
    "accuracy": pl.Float64,
    "examples": pl.Int64,
}
CLIENTS_SCHEMA: dict[str, Any] = {
    "client": pl.Int64,
    "key": pl.Int64,
    "name": pl.String,
    "examples": pl.Int64,
    "class_counts": pl.List(pl.Int64),
    "device_class": pl.String,
    **dict.fromkeys(("device_factor", "seconds_per_step", "seconds_per_sample", "seconds_per_job"), pl.Float64),
    **dict.fromkeys(("down_mbps", "up_mbps", "latency_s"), pl.Float64),
    **dict.fromkeys(("dispatches", "arrivals", "steps"), pl.Int64),
    **dict.fromkeys(("busy_s", "download_s", "wait_s", "compute_s", "upload_s", "paused_s", "late_s"), pl.Float64),
    **dict.fromkeys(("bytes_down", "bytes_up"), pl.Int64),
    **dict.fromkeys(("energy_j", "cost"), pl.Float64),
}
PARTITION_SCHEMA: dict[str, Any] = {"client": pl.Int64, "index": pl.Int64}
WALL_SCHEMA: dict[str, Any] = {"job": pl.Int64, "client": pl.Int64, "train_s": pl.Float64}
WALL_ROWS = 16_384  # that an executor gathers before they are moved to the disk
SCHEMAS = {"metrics": METRICS_SCHEMA, "clients": CLIENTS_SCHEMA, "partition": PARTITION_SCHEMA, **balance.SCHEMAS}
COUNTED = (
    "client",
    "index",
    "examples",
    "dispatches",
    "arrivals",
    "steps",
    "bytes_down",
    "bytes_up",
    "ticks",
    "version",
)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make a new run directory, and keep others out of it; raises ``RunDirectoryError`` where something stands there."""
    try:
        _refuse_taken(folder)
        folder.mkdir(parents=True, exist_ok=True)
        mark = (folder / _CLAIM).open("a")
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL byte
        why = getattr(error, "strerror", None) or error
        raise RunDirectoryError(f"cannot write to {folder}: {why}; give another --out") from error
    with _held(folder, mark):
        if not _is_empty(folder):  # another run may have come and gone
            raise RunDirectoryError(f"{folder} was written by another run just now; give another --out")
        durable.sweep(folder)
        yield


def _is_empty(folder: Path) -> bool:
    return all(path.name in _TRACES for path in folder.iterdir())


def _refuse_taken(folder: Path) -> None:
    """Raise ``RunDirectoryError`` where something stands there that is no empty folder."""
    if folder.is_symlink() and not folder.exists():
        raise RunDirectoryError(f"{folder} is a link that leads nowhere; give another --out")
    if folder.exists() and not folder.is_dir():
        raise RunDirectoryError(f"{folder} is a file; give another --out")
    if folder.exists() and not _is_empty(folder):
        raise RunDirectoryError(f"{folder} exists already and is not empty; {_way_out(folder)}")


@contextmanager
def reclaimed(folder: Path) -> Iterator[None]:
    """Keep others out of a run directory that is there; raises ``RunDirectoryError`` where there is none."""
    if not (folder / SCENARIO).is_file():
        raise RunDirectoryError(f"{folder} is not a run directory: it has no {SCENARIO}; run the scenario anew")
    try:
        mark = (folder / _CLAIM).open("a")
    except OSError as error:
        raise RunDirectoryError(f"cannot write to {folder}: {error.strerror}; resume a copy of it elsewhere") from error
    with _held(folder, mark):
        durable.sweep(folder)
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others out of a folder that is there, whatever it holds; raises ``RunDirectoryError`` where somebody writes."""
    with _held(folder, (folder / _CLAIM).open("a")):
        durable.sweep(folder)
        yield


def _way_out(folder: Path) -> str:
    """What a user may want who names a directory that is there."""
    known = known_manifest(folder)
    if (folder / SCENARIO).is_file() and (known is None or not complete(known)):
        return f"it holds a run that is not finished: desim-fl resume {folder} goes on with it; or give another --out"
    return "give another --out, or remove it first"


@contextmanager
def _held(folder: Path, mark: IO[str]) -> Iterator[None]:
    """Lock a directory by its mark while the body runs; the lock ends with the process, however that ends."""
    with mark as file:
        try:
            _lock(file)
        except OSError as error:
            raise RunDirectoryError(f"{folder} is being written by another run; give another --out") from error
        try:
            yield
        finally:
            (folder / _CLAIM).unlink(missing_ok=True)


def _lock(file: IO[str]) -> None:
    """Raise ``OSError`` where another open file holds the lock."""
    try:
        import fcntl  # noqa: PLC0415  (Windows has none, and is trusted to start a run once)
    except ModuleNotFoundError:
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def safe_name(name: str) -> str:
    """Return a name that is one on every file system."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)[:100].strip("-") or "run"


def free_name(parent: Path, name: str) -> Path:
    """Find the first of ``name``, ``name-2``, ``name-3``, ... that is not taken in ``parent``."""
    safe = safe_name(name)
    number = 1
    while (parent / (safe if number == 1 else f"{safe}-{number}")).exists():
        number += 1
    return parent / (safe if number == 1 else f"{safe}-{number}")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    durable.write(path, content)


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Write a Parquet table whole or not at all."""
    content = io.BytesIO()
    table.write_parquet(content, compression="zstd")
    durable.write(path, content.getvalue())


class WallParts:
    """Moves the rows of an executor's ``wall`` to the disk while the run goes on, so that they do not fill the memory.

    Parts lie in the folder ``wall`` until ``finish`` joins them, and what is left, as ``wall.parquet``.
    """

    def __init__(self, folder: Path, rows: list[Any]) -> None:
        self._folder, self._rows = folder, rows
        self._parts: list[Path] = []
        shutil.rmtree(folder / "wall", ignore_errors=True)  # of a run that stopped

    def drain(self) -> None:
        """Write a part, if there are rows enough for one; other threads may append meanwhile."""
        if len(self._rows) < WALL_ROWS:
            return
        path = self._folder / "wall" / f"part-{len(self._parts):05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        write_table(path, self._table(self._rows[:WALL_ROWS]))
        del self._rows[:WALL_ROWS]
        self._parts.append(path)

    def finish(self) -> None:
        """Write the whole table."""
        tables = [*(pl.read_parquet(path) for path in self._parts), self._table(self._rows)]
        write_table(self._folder / "wall.parquet", pl.concat(tables))
        for path in self._parts:
            path.unlink()
        if self._parts:
            (self._folder / "wall").rmdir()

    @staticmethod
    def _table(rows: list[Any]) -> pl.DataFrame:
        return pl.DataFrame(rows, schema=WALL_SCHEMA, orient="row")


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest as strict JSON, among its ``files`` its own hash; NaN is an error here, so callers null it."""
    if isinstance(manifest.get("files"), dict):
        manifest = {**manifest, "files": dict(sorted({**manifest["files"], MANIFEST: seal(manifest)}.items()))}
    write_bytes(folder / MANIFEST, json.dumps(manifest, indent=2, allow_nan=False).encode() + b"\n")


def seal(manifest: Mapping[str, Any]) -> str:
    """Hash of what a manifest says, but for this hash itself; raises ``ValueError`` where it is no strict JSON."""
    files = {name: sha256 for name, sha256 in manifest["files"].items() if name != MANIFEST}
    said = json.dumps({**manifest, "files": files}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(said.encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a run's manifest; raises ``RunDirectoryError`` where there is none, or not a whole one."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
        json.dumps(found, allow_nan=False)  # what no manifest says, but Python reads: NaN, and numbers beyond all
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirectoryError(f"{folder} is not a run directory: {MANIFEST} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise RunDirectoryError(f"{folder / MANIFEST} holds no table")
    return found


def complete(manifest: Mapping[str, Any]) -> bool:
    """Whether a run is finished and everything is written; ``unwritten`` is the last thing that a run writes."""
    return manifest.get("status") == "finished" and manifest.get("unwritten") == []


def known_manifest(folder: Path) -> dict[str, Any] | None:
    """Read a run's manifest if there is a whole one."""
    try:
        return read_manifest(folder)
    except RunDirectoryError:
        return None


def metrics(evaluations: Sequence[Evaluation]) -> pl.DataFrame:
    """Make the table ``metrics``: one row an evaluation and split."""
    rows = [
        (e.ticks, e.ticks / 1e6, e.version, e.updates, score.split, score.loss, score.accuracy, score.examples)
        for e in evaluations
        for score in e.scores
    ]
    return pl.DataFrame(rows, schema=METRICS_SCHEMA, orient="row")


def clients(built: Built, usage: Usage, ticks: int) -> pl.DataFrame:
    """Make the table ``clients``: constants and totals, one row a client, of a run that lasted ``ticks``."""
    people, trips, links = built.population, built.trips, built.trips.links
    count = len(people)
    totals = usage.columns()
    seconds = {f"{name}_s": totals[name] / 1e6 for name in (*LEGS, "paused", "late")}
    devices = trips.devices
    units = {f"seconds_per_{unit}": number for unit, number in (("step", STEP), ("sample", SAMPLE), ("job", JOB))}
    columns: dict[str, Any] = {
        "client": range(count),
        "key": people.keys,
        "name": [people.name(client) for client in range(count)],
        "examples": people.sizes,
        "class_counts": [None] * count if people.class_counts is None else people.class_counts.tolist(),
        "device_class": [None] * count if devices.classes is None else np.array(devices.class_names)[devices.classes],
        "device_factor": np.asarray(devices.factor),
        **{name: pl.Series(devices.seconds_per(unit)).fill_nan(None) for name, unit in units.items()},
        "down_mbps": [None] * count if links.down_mbps is None else np.asarray(links.down_mbps),
        "up_mbps": [None] * count if links.up_mbps is None else np.asarray(links.up_mbps),
        "latency_s": np.asarray(links.latency_s),
        "busy_s": sum(totals[leg] for leg in LEGS) / 1e6,
        **seconds,
        **{
            name: [None] * count if each is None else each
            for name, each in built.tariff.of(totals, ticks).columns.items()
        },
        **{name: totals[name] for name in ("dispatches", "arrivals", "steps", "bytes_down", "bytes_up")},
    }
    return pl.DataFrame([pl.Series(name, columns[name], dtype=dtype) for name, dtype in CLIENTS_SCHEMA.items()])


def write_clients(folder: Path, built: Built, usage: Usage, ticks: int) -> None:
    """Write the table ``clients``, and what it and the event log say of each class of devices."""
    table = clients(built, usage, ticks)
    write_table(folder / "clients.parquet", table)
    for name, each in balance.tables(folder, table, built.tariff.of(usage.columns(), ticks)).items():
        write_table(folder / f"{name}.parquet", each)


def partition(built: Built) -> pl.DataFrame:
    """Make the table ``partition``: which training sample belongs to which client; -1 is the validation part."""
    parts: list[Any] = list(enumerate(built.population.parts))
    if built.validation is not None:
        parts.append((-1, built.validation))
    owners = [np.full(len(part), client, np.int64) for client, part in parts]
    columns = [np.concatenate(column) if column else [] for column in (owners, [part for _, part in parts])]
    return pl.DataFrame(dict(zip(PARTITION_SCHEMA, columns, strict=True)), schema=PARTITION_SCHEMA)


def stored_partition(folder: Path) -> Stored | None:
    """Read the partition of a run back, so that nothing has to be drawn again; ``None`` where there is none.

    Raises ``RunDirectoryError`` where it is not the one that the manifest names.
    """
    path, known = folder / "partition.parquet", known_manifest(folder)
    if not path.is_file() or known is None:
        return None
    try:
        table = pl.read_parquet(path)
        owners, indices = table["client"].to_numpy(), table["index"].to_numpy()
    except (pl.exceptions.PolarsError, OSError, TypeError) as error:
        raise RunDirectoryError(f"{path} cannot be read: {error}") from error
    if not len(owners):
        return None
    parts = by_client(owners, indices, int(owners.max()) + 1)
    if partition_sha256(parts) != known.get("partition_sha256"):
        raise RunDirectoryError(f"{path} is not the partition that the run began with")
    held = indices[owners == -1]
    return Stored(parts, held if len(held) else None)


def by_client(owners: NDArray[np.int64], indices: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], ...]:
    """Samples of each of the clients 0 to ``count`` - 1, in the order of the table."""
    order = np.argsort(owners, kind="stable")
    ends = np.searchsorted(owners[order], np.arange(count + 1))
    return tuple(np.split(indices[order], ends)[1:-1]) if count else ()


def save_model(folder: Path, tensors: Mapping[str, Any]) -> str:
    """Write ``model.safetensors`` and return its sha256."""
    from safetensors.numpy import save  # noqa: PLC0415  (only runs that train need it)

    content = save(dict(tensors), metadata=MODEL_METADATA)
    write_bytes(folder / "model.safetensors", content)
    return hashlib.sha256(content).hexdigest()


def model_bytes(folder: Path) -> int | None:
    """Size of all tensors in ``model.safetensors``, from its header alone; ``None`` where there is no such file."""
    try:
        with (folder / "model.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, MemoryError):
        return None


def file_hashes(folder: Path) -> dict[str, str]:
    """Hash every file of a run directory by its name in there; the manifest, checkpoints and half-written files apart."""
    apart = (MANIFEST, _CLAIM)
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())
    names = ((path.relative_to(folder).as_posix(), path) for path in found)
    return {
        name: file_sha256(path)
        for name, path in names
        if name not in apart and not name.startswith("checkpoints/") and path.suffix != durable.ASIDE
    }


def rehash(folder: Path, name: str) -> None:
    """Put the hash of one file that was written anew into the manifest."""
    manifest = read_manifest(folder)
    if isinstance(manifest.get("files"), dict):
        files = {**manifest["files"], name: file_sha256(folder / name)}
        write_manifest(folder, {**manifest, "files": files})


def file_sha256(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
