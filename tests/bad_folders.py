"""Run directories, checkpoints and data files that were damaged or made to deceive, made from a seed."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import polars as pl
from bad_scenarios import HOSTILE, STRANGE, Asked, spoil

if TYPE_CHECKING:
    import random
    from pathlib import Path


def _parts(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file())


def _json_safe(value: Any) -> Any:
    return value if not isinstance(value, list) else [entry for entry in value if entry is not None]


def _manifest(chance: random.Random, run: Path) -> None:
    """Change a value of the manifest, at any depth, or drop it."""
    whole = json.loads((run / "manifest.json").read_text())
    table = whole
    while True:
        key = chance.choice(list(table))
        if not isinstance(table[key], dict) or not table[key] or chance.random() < 0.3:
            break
        table = table[key]
    if chance.random() < 0.3:
        del table[key]
    else:
        table[key] = _json_safe(chance.choice([*STRANGE, *HOSTILE, None]))
    strange = [whole, whole, whole, whole, [], None, 3, "x", [whole], {}]
    (run / "manifest.json").write_text(json.dumps(chance.choice(strange)))


def _column(chance: random.Random, run: Path) -> None:
    """Change a column of a table: its values, its type, its name, its order; or the rows."""
    path = chance.choice([path for path in _parts(run) if path.suffix == ".parquet"])
    table = pl.read_parquet(path)
    name = chance.choice(table.columns)
    column = pl.col(name)
    huge = chance.choice([2**62, -(2**62), -1, 2**40, 0])
    changes = {
        "gone": lambda: table.drop(name),
        "renamed": lambda: table.rename({name: "x"}),
        "text": lambda: table.with_columns(column.cast(pl.String, strict=False) if not isinstance(table[name].dtype, pl.List) else pl.lit("x").alias(name)),
        "words": lambda: table.with_columns(pl.lit(chance.choice(HOSTILE)[:500]).alias(name)),
        "null": lambda: table.with_columns(pl.lit(None, table[name].dtype).alias(name)),
        "huge": lambda: table.with_columns(pl.lit(huge).alias(name)),
        "same type": lambda: table.with_columns(pl.lit(huge).cast(table[name].dtype, strict=False).alias(name)) if not isinstance(table[name].dtype, pl.List) else table.drop(name),
        "wild": lambda: table.with_columns(pl.lit(chance.choice([float("nan"), float("inf"), -1e300])).alias(name)),
        "none": lambda: table.head(0),
        "half": lambda: table.head(len(table) // 2),
        "double": lambda: pl.concat([table, table]),
        "back": table.reverse,
        "more": lambda: table.with_columns(pl.lit(1).alias("more")),
        "foreign": lambda: pl.DataFrame({"x": [1, 2]}),
        "nothing": pl.DataFrame,
    }  # fmt: skip
    changes[chance.choice(list(changes))]().write_parquet(path)


def _bytes(chance: random.Random, run: Path) -> None:
    path = chance.choice(_parts(run))
    path.write_bytes(spoil(chance, path.read_bytes()))


def _cut(chance: random.Random, run: Path) -> None:
    path = chance.choice(_parts(run))
    raw = path.read_bytes()
    path.write_bytes(raw[: chance.choice([0, 1, 4, 8, len(raw) // 2, max(0, len(raw) - 1)])])


def _other(chance: random.Random, run: Path) -> None:
    """Put something else in a file's place."""
    parts = _parts(run)
    path = chance.choice(parts)
    other = chance.choice([part for part in parts if part != path])
    content = other.read_bytes()
    path.unlink()
    kinds = {
        "missing": lambda: None,
        "another's": lambda: path.write_bytes(content),
        "folder": path.mkdir,
        "dangling": lambda: path.symlink_to(run / "nowhere"),
        "loop": lambda: path.symlink_to(path),
        "link": lambda: path.symlink_to(other),
        "null": lambda: path.symlink_to("/dev/null"),
        "noise": lambda: path.write_bytes(chance.randbytes(500)),
    }
    kinds[chance.choice(list(kinds))]()


def _events(chance: random.Random, run: Path) -> None:
    """Do something to the folder of segments."""
    events = run / "events"
    first = min(events.iterdir())
    kinds = {
        "gone": lambda: shutil.rmtree(events),
        "file": lambda: (shutil.rmtree(events), events.write_text("x")),
        "empty": first.unlink,
        "twice": lambda: shutil.copy(first, events / "part-00001.parquet"),
        "gap": lambda: first.rename(events / "part-00007.parquet"),
        "strange": lambda: (events / "part-x.parquet").write_text("x"),
        "foreign": lambda: pl.DataFrame({"x": [1]}).write_parquet(events / "part-00001.parquet"),
        "link": lambda: (first.rename(run / "moved"), first.symlink_to(run / "moved")),
    }
    kinds[chance.choice(list(kinds))]()


def _scenario(chance: random.Random, run: Path) -> None:
    path = run / ("scenario.toml" if (run / "scenario.toml").exists() else "study.toml")
    text = path.read_text()
    lines = text.splitlines()
    lines.insert(
        chance.randrange(len(lines)),
        chance.choice(["x = 1", "[run]", "seed = 3", "name = '<b>'", "[model]", "count = 10"]),
    )
    path.write_text("\n".join(lines))


DAMAGE = {
    "manifest": _manifest, "column": _column, "bytes": _bytes, "cut": _cut, "other": _other, "events": _events, "scenario": _scenario,
}  # fmt: skip


def damaged(chance: random.Random, folder: Path, sound: Path) -> Asked:
    """Copy a sound run directory, damage it, and say how it is asked for."""
    return Asked([chance.choice(["verify", "verify", "report"]), str(_copied(chance, folder, sound))])


def shown(chance: random.Random, folder: Path, sound: Path) -> Asked:
    """The same, asked to be compared with the sound one, or for other tools: with a file or a folder to write."""
    run, out = str(_copied(chance, folder, sound)), str(folder / "out")
    if (sound / "study.toml").exists():
        return Asked(["export", run, "--layout", "svg", "--out", out])
    if chance.random() < 0.5:
        return Asked(["export", run, "--layout", chance.choice(["csv", "perfetto", "readme"]), "--out", out])
    return Asked(["compare", *chance.sample([run, str(sound)], 2), *chance.choice([[], ["--out", out], ["--json"]])])


def _copied(chance: random.Random, folder: Path, sound: Path) -> Path:
    run = folder / "run"
    shutil.copytree(sound, run)
    kinds = [kind for kind in DAMAGE if kind != "events" or (sound / "events").exists()]
    for _ in range(chance.choice([1, 1, 1, 2])):
        try:
            DAMAGE[chance.choice(kinds)](chance, run)
        except (OSError, ValueError, TypeError, pl.exceptions.PolarsError, IndexError):
            continue  # the first damage left nothing for the second
    return run
