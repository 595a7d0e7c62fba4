"""Partitions beyond IID and Dirichlet over labels, maps of one's own, and the stored partition."""

from __future__ import annotations

import json
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import scenarios
from desim_fl import population, rundir
from desim_fl.cli import app
from desim_fl.datasets import mapping
from desim_fl.errors import DataError, RunDirectoryError, ScenarioError
from desim_fl.run import resume
from desim_fl.scenario import load
from desim_fl.verify import verify

TEN = np.repeat(np.arange(10), 60)


def whole(parts, total):
    """Whether every sample is there exactly once."""
    return sorted(np.concatenate(parts).tolist()) == list(range(total))


@given(
    seed=st.integers(0, 50),
    count=st.integers(1, 12),
    per_client=st.integers(1, 4),
    totals=st.lists(st.integers(1, 60), min_size=1, max_size=6),
)
def test_pt_03_shards_lose_and_double_nothing(seed, count, per_client, totals):
    """PT-03: whatever the class sizes, each sample has one owner, and nobody holds more classes than asked."""
    labels = np.repeat(np.arange(len(totals)), totals)
    enough = len(totals) <= count * per_client <= labels.size

    def dealt():
        return population.divide(
            labels,
            seed=seed,
            count=count,
            classes=len(totals),
            partition="shards",
            per_client=per_client,
            min_samples=1,
        )

    if not enough:
        with pytest.raises(ScenarioError, match="clients:"):
            dealt()
        return
    people = dealt()
    assert whole(people.parts, labels.size)
    assert people.class_counts is not None
    assert (people.class_counts > 0).sum(axis=1).max() <= per_client


@pytest.mark.parametrize(("count", "per_client"), [(10, 1), (10, 2), (20, 3), (7, 3)])
def test_shards_of_equal_classes_give_everybody_so_many_classes(count, per_client):
    """Ten equal classes: exactly ``per_client`` different ones each, and equal sizes where the numbers go up."""
    people = population.divide(TEN, seed=1, count=count, classes=10, partition="shards", per_client=per_client)
    assert (people.class_counts > 0).sum(axis=1).tolist() == [per_client] * count
    if count * per_client % 10 == 0:
        assert set(people.sizes) == {600 // count}
    again = population.divide(TEN, seed=2, count=count, classes=10, partition="shards", per_client=per_client)
    assert again.sha256() != people.sha256()


def test_shards_worked_by_hand():
    """Classes of 6, 3 and 3 samples and two clients with two shards each: 2, 1 and 1 shards of 3 samples."""
    people = population.divide(
        np.repeat([0, 1, 2], [6, 3, 3]), seed=0, count=2, classes=3, partition="shards", per_client=2
    )
    assert sorted(map(tuple, people.class_counts.tolist())) == [(3, 0, 3), (3, 3, 0)]


@pytest.mark.parametrize("alpha", [1e-6, 0.1, 1.0, 1e6])
def test_pt_01_sizes_of_any_alpha_are_a_whole_partition(alpha):
    """PT-01: Dirichlet sizes from one giant to all alike: no sample lost, nobody below the minimum, classes mixed."""
    people = population.divide(
        np.arange(60_000) % 10, seed=0, count=100, classes=10, partition="dirichlet_sizes", alpha=alpha, min_samples=5
    )
    assert whole(people.parts, 60_000)
    assert min(people.sizes) >= 5
    largest = int(np.argmax(people.sizes))
    assert max(people.sizes) > 59_000 if alpha < 1e-3 else people.sizes[largest] < 20_000 or alpha < 1
    assert alpha < 1e3 or max(people.sizes) - min(people.sizes) < 30
    shares = people.class_counts[largest] / people.sizes[largest]
    assert np.abs(shares - 0.1).max() < 0.06
    with pytest.raises(ScenarioError, match="alpha"):
        population.divide(TEN, seed=0, count=3, classes=10, partition="dirichlet_sizes", alpha=float("nan"))


def test_pt_04_the_other_partitions_of_a_seed_are_the_ones_published():
    """PT-04: golden hashes for seed 0; if one differs with the same code, NumPy deals otherwise."""
    golden = {
        "dirichlet_sizes": "22a1eb3bee3c0175b8aac2dc1daf07675ff43bd5591dc5294025cc356ee5a018",
        "shards": "90d16e72698ab32b9c3d2a1c0ca17cbd4a40d60d4cb45157085cc734ba442911",
    }
    found = {
        name: population.divide(TEN, seed=0, count=10, classes=10, partition=name, **options).sha256()
        for name, options in (("dirichlet_sizes", {"alpha": 0.5}), ("shards", {"per_client": 2}))
    }
    assert found == golden, f"NumPy {np.__version__} deals otherwise"


# ---- maps


def blobs(folder, *overrides):
    """The small scenario of 600 blobs and 6 clients, without a partition of its own."""
    text = scenarios.BLOBS.replace('partition = "dirichlet"\nalpha = 0.5\nmin_samples = 5\n', "")
    return load(scenarios.write(folder, text), ["clients.partition=map", 'clients.map="map.csv"', *overrides])


def test_pt_03_a_map_gives_everybody_what_it_says(tmp_path, monkeypatch):
    """PT-03: a CSV map is followed sample by sample, less the validation part; a run's own table maps alike."""
    monkeypatch.chdir(tmp_path)
    owners = np.arange(600) % 6
    pl.DataFrame({"client": owners, "index": np.arange(600)[::-1]}).write_csv("map.csv")
    scenario = blobs(tmp_path)
    from desim_fl.allotment import allotted  # noqa: PLC0415

    people, validation, known, _ = allotted(scenario)
    for client, part in enumerate(people.parts):
        expected = np.setdiff1d(np.arange(600)[::-1][owners == client], validation)
        assert part.tolist() == expected.tolist()
    assert np.array_equal(
        people.class_counts.sum(axis=0) + np.bincount(known.train[validation]), np.bincount(known.train)
    )
    folder, manifest = scenarios.played(tmp_path, scenarios.BLOBS, "run.max_updates=3")
    text = (
        (folder / "scenario.toml")
        .read_text()
        .replace('partition = "dirichlet"\nalpha = 0.5\n', f'partition = "map"\nmap = "{folder}/partition.parquet"\n')
    )
    assert allotted(load(scenarios.write(tmp_path, text, "again.toml"))).people.sha256() == manifest["partition_sha256"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("index,client\n0,0\n0,1\n", "names sample 0 more than once"),
        ("index,client\n0,6\n", "client 6 in row 0; there are 6"),
        ("index,client\n600,0\n", "index 600 in row 0; there are 600"),
        ("index,client\n-3,0\n", "index -3 in row 0"),
        ("index,client\n0,0\n1,1\n2,2\n3,3\n4,4\n", "client 5 gets 0 training samples, min_samples = 1"),
        ("index,who\n0,0\n", "has no column client"),
        ("index,client\n0,a\n", "whole numbers"),
        ("index,client\n0,\n", "whole numbers"),
        ("index,client\n", "names no sample"),
        (None, "no such file"),
    ],
)
def test_a_map_that_cannot_be_followed_is_refused_by_name(tmp_path, monkeypatch, content, why):
    """Each fault of a map is an error that says what, and where."""
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "map.csv").write_text(content)
    from desim_fl.allotment import allotted  # noqa: PLC0415

    with pytest.raises(ScenarioError, match=why):
        allotted(blobs(tmp_path, "data.validation_share=0.0"))


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["clients.partition=shards"], 'partition = "shards" needs the key classes_per_client'),
        (["clients.partition=map"], 'partition = "map" needs the key map'),
        (["clients.partition=dirichlet_sizes"], 'partition = "dirichlet_sizes" needs the key alpha'),
        (["clients.classes_per_client=2"], 'it belongs to "shards"'),
        (["clients.alpha=2"], 'it belongs to "dirichlet" or "dirichlet_sizes"'),
    ],
)
def test_partition_keys_belong_together(tmp_path, overrides, why):
    """A key that a partition needs, or that it does not have, is named with its place."""
    text = scenarios.BLOBS.replace('partition = "dirichlet"\nalpha = 0.5\n', "")
    with pytest.raises(ScenarioError, match=why):
        load(scenarios.write(tmp_path, text), overrides)


# ---- the stored partition


def otherwise(monkeypatch):
    """A NumPy that deals otherwise."""
    real = population.divide

    def divide(labels, **options):
        return real(labels, **{**options, "seed": options["seed"] + 1})

    monkeypatch.setattr(population, "divide", divide)


def test_pt_04_resume_and_rerun_read_the_stored_partition(tmp_path, monkeypatch):
    """PT-04: with a generator that deals otherwise, a resumed run is still the same run, and a rerun names NumPy."""
    folder, manifest = scenarios.played(tmp_path, scenarios.BLOBS, "run.max_updates=8")
    table = pl.read_parquet(folder / "partition.parquet")
    assert (table["client"] == -1).sum() == 60  # the validation part
    written = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**written, "status": "interrupted"}))
    otherwise(monkeypatch)
    again, _ = resume(folder)
    assert (again["partition_sha256"], again["model_sha256"]) == (
        manifest["partition_sha256"],
        manifest["model_sha256"],
    )
    assert pl.read_parquet(folder / "partition.parquet").equals(table)
    (problem,) = verify(folder)
    assert "does not hold the samples of client" in problem
    rundir.write_manifest(folder, {**again, "versions": {**again["versions"], "numpy": "another"}})
    assert verify(folder) == []  # it says so in a note
    (problem,) = verify(folder, rerun=True)
    assert f"with NumPy {np.__version__}" in problem


def test_numbers_beyond_64_bits_in_a_map_are_refused(tmp_path):
    """Neither the largest unsigned number, which would wrap around to the validation part, nor a larger one is a client."""
    for dtype, value in ((pl.UInt64, 2**64 - 1), (pl.Int128, 2**100)):
        for name in ("index", "client"):
            table = pl.DataFrame({"index": [0, 1], "client": [0, 1]}, schema={"index": pl.Int64, "client": pl.Int64})
            table.with_columns(pl.Series(name, [0, value], dtype=dtype)).write_parquet(tmp_path / "map.parquet")
            with pytest.raises(DataError, match=f"the column {name} must hold whole numbers"):
                mapping.read(tmp_path / "map.parquet")


def test_a_stored_partition_that_changed_is_not_taken_up(tmp_path):
    """A table that is not the manifest's stops a resume before anything is trained."""
    folder, manifest = scenarios.played(tmp_path, scenarios.BLOBS, "run.max_updates=4")
    table = pl.read_parquet(folder / "partition.parquet")
    table.with_columns(client=pl.col("client").shuffle(seed=1)).write_parquet(folder / "partition.parquet")
    (folder / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    with pytest.raises(RunDirectoryError, match="not the partition that the run began with"):
        resume(folder)


def test_a_partition_can_be_looked_at_before_any_run(tmp_path):
    """``data partition`` prints sizes and classes, and writes the chart or the map; the hash is the run's."""
    path = scenarios.write(tmp_path, scenarios.BLOBS)
    folder, manifest = scenarios.played(tmp_path, scenarios.BLOBS, "run.max_updates=1")
    asked = CliRunner().invoke(app, ["data", "partition", str(path), "--json", "--out", str(tmp_path / "p.svg")])
    facts = json.loads(asked.stdout)
    assert facts["partition_sha256"] == manifest["partition_sha256"]
    assert np.sum(facts["class_counts"]) == sum(facts["sizes"]) == 540
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    CliRunner().invoke(app, ["data", "partition", str(path), "--out", str(tmp_path / "p.html")])
    page = (tmp_path / "p.html").read_text()
    assert "vegaEmbed" in page
    assert not re.search(r"<script[^>]*\bsrc=|<link\b", page)  # it opens offline
    CliRunner().invoke(app, ["data", "partition", str(path), "--out", str(tmp_path / "map.parquet")])
    assert (
        pl.read_parquet(tmp_path / "map.parquet")
        .sort("client", "index")
        .select("client", "index")
        .equals(pl.read_parquet(folder / "partition.parquet").sort("client", "index"))
    )
    wrong = CliRunner().invoke(app, ["data", "partition", str(path), "--out", str(tmp_path / "p.bmp")])
    assert "a preview ends in" in str(wrong.exception)
