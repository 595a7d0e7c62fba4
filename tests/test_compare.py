"""Comparisons: what differs is named, and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import polars as pl
import pytest
from typer.testing import CliRunner

from desim_fl import comparison_page
from desim_fl.cli import app
from desim_fl.compare import TIMELINE, compare
from desim_fl.errors import RunDirectoryError, ScenarioError
from desim_fl.report import page
from desim_fl.report.formats import duration, many
from desim_fl.study.document import Target
from scenarios import QUADRATIC, played

if TYPE_CHECKING:
    from pathlib import Path

RUNS = {
    "a": (),
    "again": (),
    "slow": ("run.delay_scale=3",),
    "rate": ("training.lr=0.01",),
    "other": ("run.seed=5", "clients.watts_compute=2.0"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Five runs of one small scenario: twice the same, three times as slow, another rate, another seed."""
    folder = tmp_path_factory.mktemp("compare")
    return {name: played(folder, QUADRATIC, *more, out=name)[0] for name, more in RUNS.items()}


def test_equal_runs_differ_in_nothing(folders: dict[str, Path]) -> None:
    """Two plays of one scenario: no setting, no event and no measure differs."""
    found = compare([folders["a"], folders["again"]])
    assert found.settings == ()
    assert (found.partings[0].seq, found.partings[0].same_order) == (None, True)
    assert found.measures["a"] == found.measures["again"]


def test_a_uniform_scale_changes_times_but_no_order(folders: dict[str, Path]) -> None:
    """Three times slower: the same events in the same order, the first that takes time differs, and the loss does not."""
    found = compare([folders["a"], folders["slow"]])
    assert [(row.key, row.values) for row in found.settings] == [("run.delay_scale", ("1.0", "3.0"))]
    assert found.partings[0].same_order
    assert found.measures["slow"]["virtual_time_s"] == pytest.approx(3 * found.measures["a"]["virtual_time_s"])
    assert found.measures["slow"]["loss"] == found.measures["a"]["loss"]


def test_the_first_event_that_differs_is_found(folders: dict[str, Path]) -> None:
    """The row that is named is the first of all rows at which the stored tables differ."""
    found = compare([folders["a"], folders["rate"], folders["other"]])
    assert found.partings[0].seq is None  # a learning rate moves no event
    tables = [pl.read_parquet(folders[name] / "events" / "*.parquet").sort("seq") for name in ("a", "other")]
    first = next(
        at
        for at, (x, y) in enumerate(zip(*(table.select(TIMELINE).iter_rows() for table in tables), strict=False))
        if x != y
    )
    assert found.partings[1].seq == first
    assert found.partings[1].other == tables[1].select(TIMELINE).row(first, named=True)


def test_time_to_a_target_is_read_from_the_curve(folders: dict[str, Path]) -> None:
    """The first evaluation with a loss at or below the target counts."""
    loss = pl.read_parquet(folders["a"] / "metrics.parquet").filter(pl.col("split") == "test")
    goal = float(loss["loss"].median())  # type: ignore[arg-type]
    found = compare([folders["a"], folders["rate"]], Target(metric="loss", value=goal))
    there = loss.filter(pl.col("loss") <= goal)
    assert found.measures["a"]["time_to_target_s"] == there["time_s"][0]
    assert found.measures["a"]["updates_to_target"] == there["updates"][0]


def test_the_page_of_a_run_says_what_its_manifest_says(folders: dict[str, Path]) -> None:
    """The page that a run wrote at its end is the page that its directory gives afterwards, real seconds included."""
    assert (folders["a"] / "report.html").read_text("utf-8") == page.render(folders["a"])


def test_energy_is_compared_where_power_is_stated(folders: dict[str, Path]) -> None:
    """Two watts while computing: the run's energy is twice its seconds of computing; the run without power has none."""
    found = compare([folders["a"], folders["other"]])
    computing = json.loads((folders["other"] / "manifest.json").read_text())["summary"]["leg_s"]["compute"]
    assert found.measures["other"]["energy_j"] == pytest.approx(2 * computing)
    assert "energy_j" not in found.measures["a"]


def test_the_page_says_what_differs_and_escapes_names(folders: dict[str, Path]) -> None:
    """The page holds settings, the parting event and both curves; the same runs give the same bytes."""
    found = compare([folders["a"], folders["slow"], folders["other"]])
    text = comparison_page.render(found)
    assert text == comparison_page.render(compare([folders["a"], folders["slow"], folders["other"]]))
    assert "run.delay_scale" in text
    assert "at other times" in text
    words = comparison_page.paragraph(compare([folders["a"], folders["slow"]], Target(metric="loss", value=1e-9)))
    times = [found.measures[name]["virtual_time_s"] for name in ("a", "slow")]
    said = [
        f"not reached by its end at {duration(time)} in “{name}”"
        for name, time in zip(("a", "slow"), times, strict=True)
    ]
    assert words.startswith(f"Virtual time to the target: {said[0]}, {said[1]}. Test loss at the end: ")
    assert "in all of them. " in words
    assert "One setting differs: run.delay_scale." in words
    parting = found.partings[1]
    assert parting.first is not None
    assert parting.other is not None
    until = duration(min(parting.first["ticks"], parting.other["ticks"]) / 1e6)
    assert (
        f"“other” and “a” play alike for {many(parting.seq or 0, 'event')}, until {until}"
        in comparison_page.paragraph(found)
    )
    assert "curves_loss_time" in text


def test_the_command_writes_a_page_and_one_object(folders: dict[str, Path], tmp_path: Path) -> None:
    """--json prints one object; --out writes the page; a folder that is no run, or one alone, is exit code 2."""
    run = CliRunner().invoke
    done = run(app, ["compare", str(folders["a"]), str(folders["slow"]), "--json", "--out", str(tmp_path / "c.html")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["settings"] == {"run.delay_scale": {"a": "1.0", "slow": "3.0"}}
    assert (tmp_path / "c.html").stat().st_size < 1_500_000
    shown = run(app, ["compare", str(folders["a"]), str(folders["other"]), "--target", "loss=1"])
    assert " | 5" in next(line for line in shown.stdout.splitlines() if line.startswith("run.seed: "))
    for words, error in (
        ([str(folders["a"])], RunDirectoryError),
        ([str(folders["a"]), str(tmp_path)], RunDirectoryError),
        ([str(folders["a"]), str(folders["a"])], RunDirectoryError),
        ([str(folders["a"]), str(folders["slow"]), "--target", "speed=1"], ScenarioError),
        ([str(folders["a"]), str(folders["slow"]), "--target", "loss=nan"], ScenarioError),
    ):
        assert isinstance(run(app, ["compare", *words]).exception, error)
