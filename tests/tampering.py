"""Run directories that were tampered with: ``PYTHONPATH=.:tests python tests/tampering.py [rounds] [first seed]``.

One value of one column is changed (or filled, or emptied), or a row is dropped, doubled or swapped with another, or a claim
of the manifest is changed; or a file is removed, cut, exchanged, or one bit of it flipped. Then, for all but the last, every
hash is put right again, as one would who knows how: only the content can tell. Tables, columns and claims are those of
the directories themselves, so that later ones join without a word here.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

import scenarios
from desim_fl import eventlog, inventory, report, rundir
from desim_fl.population import partition_sha256
from desim_fl.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

CLASSES = "clients.classes=[{name='fast',share=1,seconds_per_sample=0.01},{name='slow',share=1,seconds_per_job=1.0},{name='usual',share=2}]"
SCENARIOS = {
    "scalar": (scenarios.QUADRATIC, ("run.max_updates=25", "run.eval_every_s=2.0", "strategy.max_staleness=1", "clients.watts_compute=3.0", "clients.price_per_gb=0.5")),
    "network": (scenarios.BLOBS, ("run.max_updates=20", "training.lr=1e12", "run.eval_every_versions=4", "run.patience=50", "data.client_test_share=0.2")),
    "links": (scenarios.QUADRATIC, ("run.max_updates=20", "network.up_mbps={law='constant',value=0.001}", "network.server_ingress_mbps=0.0015", "strategy.max_staleness=1",
                                    "network.latency_jitter_factor={law='constant',value=1.0}", CLASSES, 'clients.class_shares="exact"')),
}  # fmt: skip
# Only training again can tell: what it gave. (That an update is not finite is bound to what it weighs; its name is not.)
TRAINED = {
    ("events", "loss"),
    ("events", "bad_key"),
    ("metrics", "loss"),
    ("metrics", "accuracy"),
    ("held_out", "loss"),
    ("held_out", "accuracy"),
}
# Nothing can tell but a hash: real seconds of this host, and which of its jobs it timed, in which order.
REAL = {("wall", "train_s")}
HOST = {"created", "desim_fl", "host", "versions", "executor_reason", "executor", "reuse", "checkpoints", "resumed_at_s", "wall_s", "files", "unwritten", "device", "data.sha256"}  # fmt: skip
ROWS = ("drop", "double", "swap")


def sound(place: Path) -> dict[str, Path]:
    """One run of each scenario."""
    return {name: scenarios.played(place, text, *keys, out=name)[0] for name, (text, keys) in SCENARIOS.items()}


def tables(run: Path) -> dict[str, Path]:
    """The tables of a run directory, by name."""
    found = {name: run / f"{name}.parquet" for name in inventory.SCHEMAS}
    return {
        name: path for name, path in {**found, "events": run / "events/part-00000.parquet"}.items() if path.exists()
    }


def other(value: Any, kind: pl.DataType, chance: random.Random) -> Any:
    """Another value of a kind."""
    if kind == pl.Enum:
        return chance.choice([name for name in eventlog.KIND_NAMES if name != value])
    if isinstance(kind, pl.List):
        return [value[0] + 1, *value[1:]] if value else [1]
    if kind == pl.String:
        return "another" if value is None else value + "x"
    if kind.is_float():
        return 0.25 if value is None or value == 0 else value * 1.5
    return 1 if value is None else value + 1


def changed(table: pl.DataFrame, column: str, how: str, chance: random.Random) -> pl.DataFrame | None:
    """Change a value, fill a gap or make one; ``None`` where there is nothing of that kind to do it to."""
    gaps = table[column].is_null().to_list()
    rows = [row for row, gap in enumerate(gaps) if gap == (how == "fill")]
    if not rows:
        return None
    row, values = chance.choice(rows), table[column].to_list()
    values[row] = None if how == "empty" else other(values[row], table.schema[column], chance)
    return table.with_columns(pl.Series(column, values, dtype=table.schema[column]))


def moved(table: pl.DataFrame, how: str, chance: random.Random) -> pl.DataFrame | None:
    """Drop or double a row, or swap two; ``None`` where nothing is another table then."""
    if len(table) < 2:
        return None
    row, second = sorted(chance.sample(range(len(table)), 2))
    parts = {
        "drop": [table[:row], table[row + 1 :]],
        "double": [table[: row + 1], table[row:]],
        "swap": [table[:row], table[second : second + 1], table[row + 1 : second], table[row : row + 1], table[second + 1 :]],
    }  # fmt: skip
    after = pl.concat(parts[how])
    return None if after.equals(table, null_equal=True) else after


def put_right(run: Path, **claims: Any) -> None:
    """Make every hash in the manifest fit the files, as far as they can be read; ``claims`` change what it says."""
    found = json.loads((run / "manifest.json").read_text()) | claims
    people = pl.read_parquet(run / "clients.parquet")
    samples = pl.read_parquet(run / "partition.parquet")
    parts = [
        samples.filter(pl.col("client") == client)["index"].fill_null(0).to_numpy() for client in range(len(people))
    ]
    found |= {
        "timeline_sha256": eventlog.timeline_sha256(eventlog.read(run / "events").fill_null(0).collect()),
        "partition_sha256": partition_sha256(parts if len(samples) else [], people["examples"].fill_null(0).to_list()),
    }
    rundir.write_manifest(run, {**found, "files": rundir.file_hashes(run)})


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What a manifest says, by where it says it."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def said_otherwise(manifest: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The manifest with another value in one place."""
    made = json.loads(json.dumps(manifest))
    table = made
    for key in path[:-1]:
        table = table[key]
    value = table[path[-1]]
    others = {bool: lambda: not value, str: lambda: value + "x", type(None): lambda: "x", list: lambda: [*value, "x"], dict: lambda: {"x": 1}}  # fmt: skip
    table[path[-1]] = others.get(type(value), lambda: value * 1.5 + 1)()
    return made


def of_the_host(path: tuple[str, ...]) -> bool:
    """Whether only the manifest's own hash can tell."""
    return bool({path[0], path[-1], ".".join(path)} & HOST)


def spoiled(run: Path, name: str, how: str, chance: random.Random) -> bool:
    """Do something to one file without putting anything right; whether it is another now."""
    path = run / name
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: chance.randrange(len(content))])
    elif how == "flipped":
        place = chance.randrange(8 * len(content))
        path.write_bytes(
            bytes([*content[: place // 8], content[place // 8] ^ 1 << place % 8, *content[place // 8 + 1 :]])
        )
    else:
        path.write_bytes(
            chance.choice([other for other in run.rglob("*") if other.is_file() and other != path]).read_bytes()
        )
    return not path.exists() or path.read_bytes() != content


def one(runs: dict[str, Path], space: Path, seed: int) -> str | None:
    """Tamper once, in any way; what is wrong with the answer of verify, ``None`` = nothing, or nothing was changed."""
    chance = random.Random(seed)
    name = chance.choice(list(runs))
    run = space / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(runs[name], run)
    table = chance.choice(list(tables(run)))
    kind = chance.choice(["cell", "cell", "row", "claim", "file"])
    if kind == "file":
        files = [path.relative_to(run).as_posix() for path in sorted(run.rglob("*")) if path.is_file()]
        file, how = chance.choice(files), chance.choice(["removed", "cut", "flipped", "exchanged"])
        what, words, told = f"{file} {how}", [file], spoiled(run, file, how, chance)
    elif kind == "claim":
        manifest = rundir.read_manifest(run)
        path = chance.choice([path for path, _ in leaves(manifest) if path[0] != "files"])
        what, words, told = f"claim {'.'.join(path)}", [path[-1], path[0]], not of_the_host(path)
        made = said_otherwise(manifest, path)
        rundir.write_manifest(run, {**made, "files": rundir.file_hashes(run)})
    else:
        before = pl.read_parquet(tables(run)[table])
        column, how = (
            chance.choice(before.columns),
            chance.choice(["change", "fill", "empty"] if kind == "cell" else ROWS),
        )
        after = changed(before, column, how, chance) if kind == "cell" else moved(before, how, chance)
        if after is None:
            return None
        after.write_parquet(tables(run)[table])
        put_right(run)
        what = f"{table} {column if kind == 'cell' else 'row'} {how}"
        words = [column, f"table {table}", "row"] if kind == "cell" else [table, "row"]
        told = (table != "wall" or how == "double") if kind == "row" else (table, column) not in TRAINED | REAL
    said = verify(run)
    if told and not any(word in " ".join(said) for word in words):
        return f"seed {seed}: {name}: {what}: {said or 'nothing is said'}"
    return None


def main(rounds: int = 500, first: int = 0) -> int:
    """Tamper so often, and tell of what verify did not find."""
    report.write = lambda folder: (folder / "report.html").write_text("page")  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as space:
        runs = sound(Path(space))
        found = [told for seed in range(first, first + rounds) if (told := one(runs, Path(space) / "copy", seed))]
    sys.stdout.write("\n".join([*found, f"{rounds} times tampered, {len(found)} not found", ""]))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:])))
