"""Files that a scenario names, damaged or nonsense, made from a seed: maps, traces, data sets, studies."""

from __future__ import annotations

import gzip
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from bad_scenarios import HOSTILE, STRANGE, Asked, spoil

import scenarios
from desim_fl.datasets import idx

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

PLAIN = scenarios.BLOBS.replace('partition = "dirichlet"\nalpha = 0.5\nmin_samples = 5\n', "")


def _cells(chance: random.Random, table: pl.DataFrame) -> pl.DataFrame:
    """Another table: a column of another type or name, other rows, or single cells that cannot be."""
    name = chance.choice(table.columns)
    numbers = [-1, -2, 2**31, 2**53 + 1, 2**62, -(2**63), 10**6, 0, 0.5, float("nan"), float("inf"), -1e300, 1e17]
    changes: dict[str, Callable[[], pl.DataFrame]] = {
        "gone": lambda: table.drop(name),
        "renamed": lambda: table.rename({name: chance.choice(HOSTILE)[:300] or "x"}),
        "text": lambda: table.with_columns(pl.col(name).cast(pl.String, strict=False)),
        "words": lambda: table.with_columns(pl.lit(chance.choice(HOSTILE)[:500]).alias(name)),
        "null": lambda: table.with_columns(pl.lit(None, table[name].dtype).alias(name)),
        "one null": lambda: table.with_columns(pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise(pl.col(name)).alias(name)),
        "all": lambda: table.with_columns(pl.lit(chance.choice(numbers)).alias(name)),
        "one": lambda: table.with_columns(
            pl.when(pl.int_range(pl.len()) == chance.randrange(len(table))).then(pl.lit(chance.choice(numbers))).otherwise(pl.col(name)).alias(name)
        ),
        "none": lambda: table.head(0),
        "half": lambda: table.head(len(table) // 2),
        "double": lambda: pl.concat([table, table]),
        "back": table.reverse,
        "shuffled": lambda: table.with_columns(pl.col(name).shuffle(seed=chance.randrange(99))),
        "more": lambda: table.with_columns(pl.lit(chance.choice(HOSTILE)[:100]).alias("more")),
        "lists": lambda: table.with_columns(pl.concat_list(name).alias(name)),
        "flags": lambda: table.with_columns((pl.int_range(pl.len()) % 2 == 0).alias(name)),
        "unsigned": lambda: table.with_columns(pl.lit(2**64 - 1, pl.UInt64).alias(name)),
        "nothing": pl.DataFrame,
    }  # fmt: skip
    try:
        return changes[chance.choice(list(changes))]()
    except pl.exceptions.PolarsError:
        return table.head(1)


def _written(chance: random.Random, path: Path, table: pl.DataFrame) -> None:
    """Write a table, changed as a table, as bytes, or both."""
    for _ in range(chance.choice([0, 1, 1, 2])):
        table = _cells(chance, table) if table.columns and len(table) else table
    content = io.BytesIO()
    try:
        table.write_parquet(content) if path.suffix == ".parquet" else table.write_csv(content)
    except pl.exceptions.PolarsError:  # CSV holds no lists
        content = io.BytesIO(b"x\n1\n")
    raw = content.getvalue()
    path.write_bytes(spoil(chance, raw) if chance.random() < 0.5 else raw)


def of_map(chance: random.Random, folder: Path) -> Asked:
    """A scenario whose map of samples is spoiled."""
    path = folder / chance.choice(["map.csv", "map.parquet"])
    rows = [(number, number % 6) for number in range(chance.choice([300, 540, 600]))]
    _written(chance, path, pl.DataFrame(rows, schema={"index": pl.Int64, "client": pl.Int64}, orient="row"))
    text = PLAIN.replace("count = 6", f'count = 6\npartition = "map"\nmap = "{path.name}"')
    return _asked(folder, text.replace("validation_share = 0.1\n", ""))


def of_trace(chance: random.Random, folder: Path) -> Asked:
    """A scenario whose trace of availability is spoiled."""
    path = folder / chance.choice(["trace.csv", "trace.parquet"])
    rows = [(number % 5, 10.0 * number, 10.0 * number + chance.choice([0.0, 3.0, 25.0])) for number in range(30)]
    names = ("device", "start", "end")
    _written(
        chance,
        path,
        pl.DataFrame(rows, schema=dict(zip(names, (pl.Int64, pl.Float64, pl.Float64), strict=True)), orient="row"),
    )
    period = chance.choice(["", "period_s = 50.0\n", "origin_s = 20.0\n", "origin_s = 1e9\n"])
    table = f'[availability]\nname = "trace"\npath = "{path.name}"\nclient_column = "device"\nstart_column = "start"\nend_column = "end"\n{period}'
    return _asked(folder, scenarios.QUADRATIC + table, "--set", "run.max_time_s=500")


def of_data(chance: random.Random, folder: Path) -> Asked:
    """A scenario whose file of data is spoiled."""
    shapes: list[tuple[int, ...]] = [(80, 6), (80, 4, 4), (80, 4, 4, 3), (80, 4, 4, 2), (0, 4), (80,), (80, 1, 1), ()]
    kinds: list[Any] = [np.uint8, np.float32, np.float64, np.int64, np.bool_, np.complex64, "U3"]
    images = np.zeros(chance.choice(shapes), chance.choice(kinds))
    marks = np.arange(chance.choice([80, 80, 80, 79, 0])) % 4
    marks = chance.choice(
        [
            marks,
            marks.astype(np.uint8),
            marks.astype(np.float32),
            marks - 1,
            marks * 10**9,
            marks[:, None],
            marks.astype("U2"),
        ]
    )
    if chance.random() < 0.5:
        path, content = folder / "data.npz", io.BytesIO()
        names = chance.choice(
            [("train_images", "train_labels"), ("x", "y"), ("train_images", "labels"), ("images", "labels")]
        )
        np.savez(content, **dict(zip(names, (images, marks), strict=True)))
    else:
        path, content = folder / "data.parquet", io.BytesIO()
        rows = (
            images.reshape(len(images), -1).tolist()
            if images.ndim > 1 and images.size and images.dtype.kind in "fiub"
            else [[0.0, 1.0]] * 80
        )
        pixels = chance.choice(
            [
                rows,
                [b"\x89PNG\r\n\x1a\n" + bytes(20)] * len(rows),
                [bytes(5)] * len(rows),
                [row[: 1 + at % 2] for at, row in enumerate(rows)],
            ]
        )
        labels = (marks.ravel().tolist() * 2)[: len(rows)] or [0] * len(rows)
        table = pl.DataFrame({"image": pixels, "label": labels + [0] * (len(rows) - len(labels))}, strict=False)
        (_cells(chance, table) if chance.random() < 0.5 else table).write_parquet(content)
    raw = content.getvalue()
    path.write_bytes(spoil(chance, raw) if chance.random() < 0.5 else raw)
    data = f'[data]\nname = "file"\npath = "{path.name}"\n' + chance.choice(
        ["", "test_share = 0.5\n", "image_size = 8\n", "examples = 20\n"]
    )
    return _asked(folder, data + PLAIN[PLAIN.index("[clients]") :])


def of_idx(chance: random.Random, folder: Path) -> Asked:
    """A scenario whose four IDX files are spoiled."""
    for role, name in idx.FILES.items():
        sides = (60,) if "labels" in role else (60, 4, 4)
        raw = (
            b"\0\0\x08"
            + bytes([len(sides)])
            + np.array(sides, ">u4").tobytes()
            + bytes(at % 10 for at in range(int(np.prod(sides))))
        )
        if chance.random() < 0.4:
            at = chance.randrange(16)
            head = bytes(chance.choice([0, 1, 127, 255]) for _ in range(chance.choice([1, 4])))
            raw = chance.choice([raw[:at] + head + raw[at + len(head) :], spoil(chance, raw), raw[:at], raw + b"\0"])
        zipped = chance.random() < 0.3
        content = gzip.compress(raw) if zipped else raw
        content = spoil(chance, content) if zipped and chance.random() < 0.5 else content
        (folder / (name + (".gz" if zipped else ""))).write_bytes(content)
    data = '[data]\nname = "MNIST"\nfolder = "."\n'
    return _asked(folder, data + PLAIN[PLAIN.index("[clients]") :])


def _asked(folder: Path, text: str, *options: str) -> Asked:
    (folder / "bad.toml").write_text(text)
    return Asked(["plan", str(folder / "bad.toml"), *options])


STUDY = """
name = "small"
scenario = "base.toml"
seeds = [1, 2]
[[factors]]
name = "network"
key = "run.delay_scale"
values = [1, 10]
[target]
value = 0.5
"""


def sound_study(folder: Path) -> Path:
    """The study file that the others are spoiled from, beside its scenario of functions."""
    (folder / "base.toml").write_text(scenarios.QUADRATIC)
    (folder / "study.toml").write_text(STUDY.replace("value = 0.5", 'metric = "loss"\nvalue = 3.0'))
    return folder / "study.toml"


def study(chance: random.Random, folder: Path) -> Path:
    """A study file with lines exchanged, doubled, of other values, or spoiled bytes, beside a sound scenario."""
    (folder / "base.toml").write_text(scenarios.BLOBS)
    lines = STUDY.strip().splitlines()
    for _ in range(chance.choice([1, 1, 2, 3])):
        at = chance.randrange(len(lines))
        key = lines[at].partition("=")[0].strip()
        value = chance.choice([*STRANGE, *HOSTILE])
        shown = repr(value).lower() if isinstance(value, (bool, float, int)) else repr(value)[:300].replace("None", "1")
        lines[at : at + 1] = chance.choice(
            [
                [f"{key} = {shown}"],
                [],
                [lines[at]] * 2,
                [f"x = {shown}", lines[at]],
                [lines[at].replace("delay", chance.choice(HOSTILE)[:50])],
            ]
        )
        lines = lines or ["x = 1"]
    raw = "\n".join(lines).encode("utf-8", "surrogatepass")
    path = folder / "study.toml"
    path.write_bytes(spoil(chance, raw) if chance.random() < 0.3 else raw)
    return path


KINDS = {"maps": of_map, "traces": of_trace, "data files": of_data, "idx": of_idx}
