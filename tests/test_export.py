"""Exports: what other tools read is what the tables of the run hold."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from desim_fl.cli import app
from desim_fl.errors import RefusedError, RunDirectoryError
from desim_fl.export import LAYOUTS, export
from scenarios import BLOBS, QUADRATIC, played

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with every kind of leg."""
    return played(tmp_path_factory.mktemp("export"), QUADRATIC)[0]


def events(run: Path) -> pl.DataFrame:
    """All rows of the run's log."""
    return pl.read_parquet(run / "events" / "*.parquet").sort("seq")


def test_csv_holds_every_table(run: Path, tmp_path: Path) -> None:
    """Each table comes back from its CSV with as many rows and the same numbers."""
    export(run, "csv", tmp_path / "out")
    names = {path.stem for path in run.glob("*.parquet")} | {"events"}
    assert {path.stem for path in (tmp_path / "out").iterdir()} == names
    back = pl.read_csv(tmp_path / "out" / "events.csv", infer_schema_length=None)
    assert back["ticks"].to_list() == events(run)["ticks"].to_list()
    assert back["kind"].to_list() == events(run)["kind"].cast(pl.String).to_list()


def test_the_readme_layout_holds_losses_times_and_selection(run: Path, tmp_path: Path) -> None:
    """Files by their usual names: losses by client in order of arrival, execution times that add up, rounds, plots."""
    export(run, "readme", tmp_path / "out")
    rows, out = events(run), tmp_path / "out"
    for client in range(4):
        mine = rows.filter((pl.col("kind") == "arrive") & (pl.col("client") == client))
        assert np.load(out / f"client_{client}_losses.npy").tolist() == mine["loss"].to_list()
    test = pl.read_parquet(run / "metrics.parquet").filter(pl.col("split") == "test")
    assert np.load(out / "server_losses.npy").tolist() == test["loss"].to_list()
    assert all(map(math.isnan, np.load(out / "server_accuracies.npy")))
    times = pl.read_csv(out / "execution_times.csv")
    whole = times.select(pl.sum_horizontal("download_s", "wait_s", "compute_s", "upload_s"))
    assert whole.to_series().to_list() == pytest.approx(times["execution_time_s"].to_list(), abs=1e-9)
    assert times.height == rows.filter(pl.col("kind") == "arrive").height
    selected = pl.read_csv(out / "selected_clients.csv")
    sent = " ".join(selected["clients"].cast(pl.String)).split()
    assert list(map(int, sent)) == rows.filter(pl.col("kind") == "dispatch")["client"].to_list()
    for name in ("server_losses", "client_losses", "execution_times"):
        assert (out / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_round_of_the_readme_layout_is_what_it_is_in_the_run(tmp_path: Path) -> None:
    """Three dispatches where three are in flight, whatever the description says; a cohort, abandoned ones too, where rounds are a barrier.

    The files are those of the published scripts by name and no others but the server's accuracies; numbers are the tables'.
    """
    said = ('description="clients_per_round = 99"', "run.max_updates=10", "executor.name=inline")
    free = played(tmp_path, BLOBS, *said)[0]
    export(free, "readme", tmp_path / "free")
    dispatched = events(free).filter(pl.col("kind") == "dispatch")["client"].to_list()
    rows = pl.read_csv(tmp_path / "free" / "selected_clients.csv", schema_overrides={"clients": pl.String})
    groups = [" ".join(map(str, dispatched[at : at + 3])) for at in range(0, len(dispatched), 3)]
    assert rows.rows() == list(enumerate(groups))
    arrays = {f"client_{client}_losses" for client in range(6)} | {"server_losses", "server_accuracies"}
    assert {path.stem for path in (tmp_path / "free").glob("*.npy")} == arrays
    assert {path.stem for path in (tmp_path / "free").glob("*.csv")} == {"execution_times", "selected_clients"}
    scores = pl.read_parquet(free / "metrics.parquet").filter(pl.col("split") == "test").sort("version")
    assert np.load(tmp_path / "free" / "server_accuracies.npy").tolist() == scores["accuracy"].to_list()
    wall = pl.read_parquet(free / "wall.parquet").sort("job")
    times = pl.read_csv(tmp_path / "free" / "execution_times.csv").sort("job")
    assert times["real_train_s"].to_list() == pytest.approx(wall["train_s"].to_list())

    strategy = 'strategy={name="fedavg",clients_per_round=2,deadline_s=2.0,min_fraction=1.0}'
    text = QUADRATIC.replace("concurrency = 3\n", "").replace("max_updates = 60", "max_versions = 4")
    barrier, _ = played(tmp_path, text, "run.max_time_s=60.0", strategy, out="rounds")
    export(barrier, "readme", tmp_path / "barrier")
    over, expected = 0, {}
    for kind, client in events(barrier).select(pl.col("kind").cast(pl.String), "client").rows():
        over += kind in {"publish", "abandon"}
        if kind == "dispatch":
            expected[over] = [*expected.get(over, []), str(client)]
    assert over > len(events(barrier).filter(pl.col("kind") == "publish")) > 1
    rows = pl.read_csv(tmp_path / "barrier" / "selected_clients.csv", schema_overrides={"clients": pl.String})
    assert rows.rows() == [(number, " ".join(sent)) for number, sent in expected.items()]


def test_the_trace_has_a_track_a_client_and_adds_up(run: Path, tmp_path: Path) -> None:
    """The trace is JSON; its complete events cover each client's busy time; its publishes are the run's."""
    (path,) = export(run, "perfetto", tmp_path / "out")
    found = json.loads(path.read_text())["traceEvents"]
    busy = dict.fromkeys(range(4), 0)
    for event in found:
        if event["ph"] == "X":
            assert event["dur"] >= 0
            busy[event["tid"]] += event["dur"]
    known = pl.read_parquet(run / "clients.parquet")["busy_s"].to_list()
    assert [ticks / 1e6 for ticks in busy.values()] == pytest.approx(known, abs=1e-6)
    published = [event["args"]["version"] for event in found if event["ph"] == "i" and event["name"] == "publish"]
    assert published == events(run).filter(pl.col("kind") == "publish")["version"].to_list()
    names = {event["args"]["name"] for event in found if event["name"] == "thread_name"}
    assert len(names) == 4


def test_tensorboard_reads_the_scalars(run: Path, tmp_path: Path) -> None:
    """TensorBoard's own reader finds the test loss by version, with virtual seconds as wall time."""
    export(run, "tensorboard", tmp_path / "out")
    reader = EventAccumulator(str(tmp_path / "out"), size_guidance={"scalars": 0})
    reader.Reload()
    test = pl.read_parquet(run / "metrics.parquet").filter(pl.col("split") == "test")
    found = reader.Scalars("test/loss")
    assert [event.step for event in found] == test["version"].to_list()
    assert [event.value for event in found] == pytest.approx(test["loss"].to_list(), rel=1e-6)
    assert [event.wall_time for event in found] == pytest.approx(test["time_s"].to_list())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_overwritten_and_no_run_is_named(run: Path, tmp_path: Path, layout: str) -> None:
    """A folder that holds something is refused; so is what is no run directory."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(RunDirectoryError, match="--out"):
        export(run, layout, tmp_path / "full")
    with pytest.raises(RunDirectoryError):
        export(tmp_path / "nowhere", layout, tmp_path / "out")


def test_the_command_names_its_layouts(run: Path, tmp_path: Path) -> None:
    """An unknown layout is told which there are; --json lists the files."""
    done = CliRunner().invoke(app, ["export", str(run), "--layout", "perfeto"])
    assert isinstance(done.exception, RefusedError)
    assert "perfetto" in str(done.exception)
    done = CliRunner().invoke(app, ["export", str(run), "--layout", "perfetto", "--out", str(tmp_path / "t"), "--json"])
    assert [name.rsplit("/", 1)[1] for name in json.loads(done.stdout)["files"]] == ["trace.json"]
