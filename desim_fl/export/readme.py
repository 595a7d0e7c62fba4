"""The files that scripts of asynchronous federated learning usually write: losses, selected clients, execution times, plots.

``client_X_losses.npy`` holds client X's local training losses in the order in which its updates arrived, ``server_losses.npy``
the server's test losses and ``server_accuracies.npy`` its accuracies in the order of evaluations; ``execution_times.csv`` one row a
job with virtual seconds by leg and real seconds of training beside them; ``selected_clients.csv`` one row a round with the
clients that were sent out. A round of a barrier run ends with its publish, or when it is abandoned; in any other run it is as many
dispatches as jobs may be in flight. Not finite is NaN.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, NamedTuple

import altair as alt
import numpy as np
import polars as pl
import vl_convert

from desim_fl.report.reading import read
from desim_fl.report.trips import returned, trips

if TYPE_CHECKING:
    from pathlib import Path

    from desim_fl.report.reading import Run


def write(run_dir: Path, out: Path) -> list[Path]:
    """Write all files and return their paths."""
    run = read(run_dir)
    jobs = trips(run.events)
    return [*_losses(run, jobs, out), *_times(run, jobs, out), _selected(run, jobs, out), *_plots(run, jobs, out)]


def _losses(run: Run, jobs: pl.DataFrame, out: Path) -> list[Path]:
    back = returned(jobs).sort("ended", "job")
    paths = []
    for client in run.clients["client"].to_list():
        mine = back.filter(pl.col("client") == client)["loss"]
        paths.append(_array(out / f"client_{client}_losses.npy", mine))
    test = run.metrics.filter(pl.col("split") == "test").sort("version", maintain_order=True)
    paths.append(_array(out / "server_losses.npy", test["loss"]))
    paths.append(_array(out / "server_accuracies.npy", test["accuracy"]))
    return paths


def _array(path: Path, values: pl.Series) -> Path:
    np.save(path, values.cast(pl.Float64).fill_null(float("nan")).to_numpy(), allow_pickle=False)
    return path


def _seconds(later: str, earlier: str) -> pl.Expr:
    return (pl.col(later) - pl.col(earlier)) / 1e6


def _times(run: Run, jobs: pl.DataFrame, out: Path) -> list[Path]:
    """One row a job that came back."""
    start = pl.coalesce("started", "downloaded").alias("begun")
    rows = returned(jobs).with_columns(start).sort("ended", "job")
    rows = rows.select(
        "client",
        "job",
        round=_round(run, jobs, rows),
        version="version",
        dispatched_s=pl.col("dispatched") / 1e6,
        download_s=_seconds("downloaded", "dispatched"),
        wait_s=_seconds("begun", "downloaded"),
        compute_s=_seconds("computed", "begun"),
        upload_s=_seconds("ended", "computed"),
        execution_time_s=_seconds("ended", "dispatched"),
    )
    real = run.wall.select("job", real_train_s="train_s").unique("job", keep="last")
    path = out / "execution_times.csv"
    rows.join(real, on="job", how="left", maintain_order="left").write_csv(path)
    return [path]


class Round(NamedTuple):
    """What a round is: the work of one version (a barrier), or so many dispatches."""

    barrier: bool
    size: int


def _round_of(run: Run) -> Round:
    try:
        scenario: dict[str, Any] = tomllib.loads(run.scenario)
    except tomllib.TOMLDecodeError:
        scenario = {}
    strategy, settings = scenario.get("strategy", {}), scenario.get("run", {})
    size = strategy.get("clients_per_round")
    return Round(size is not None, max(1, int(size or settings.get("concurrency") or 1)))


def _round(run: Run, jobs: pl.DataFrame, rows: pl.DataFrame) -> pl.Series:
    numbers = _rounds(run, jobs)
    return rows.select("job").join(numbers, on="job", how="left", maintain_order="left")["round"]


def _rounds(run: Run, jobs: pl.DataFrame) -> pl.DataFrame:
    """Return the round of each job: where rounds are a barrier, how many ended before it was sent out, else by its number."""
    found = _round_of(run)
    if not found.barrier:
        return jobs.select("job", "client", round=pl.col("job") // found.size)
    over = pl.col("kind").is_in(["publish", "abandon"]).cast(pl.Int64).cum_sum()
    sent = run.events.sort("seq").select("kind", "job", round=over).filter(pl.col("kind") == "dispatch")
    return jobs.select("job", "client").join(sent.select("job", "round"), on="job", how="left", maintain_order="left")


def _selected(run: Run, jobs: pl.DataFrame, out: Path) -> Path:
    rounds = _rounds(run, jobs).group_by("round", maintain_order=True).agg(pl.col("client"))
    joined = pl.col("client").list.eval(pl.element().cast(pl.String)).list.join(" ").alias("clients")
    path = out / "selected_clients.csv"
    rounds.select("round", joined).write_csv(path)
    return path


def _plots(run: Run, jobs: pl.DataFrame, out: Path) -> list[Path]:
    folder = out / "plots"
    folder.mkdir()
    test = run.metrics.filter(pl.col("split") == "test")
    back = returned(jobs).select(
        client=pl.col("client").cast(pl.String), time_s=pl.col("ended") / 1e6, loss="loss", away_s="away_s"
    )
    drawn = {
        "server_losses": _line(test, "loss", "Test loss"),
        "server_accuracies": _line(test, "accuracy", "Test accuracy"),
        "client_losses": _points(back, "loss", "Local training loss"),
        "execution_times": _points(back, "away_s", "Virtual seconds from dispatch to arrival"),
    }
    return [_png(folder / f"{name}.png", chart) for name, chart in drawn.items() if chart is not None]


def _line(rows: pl.DataFrame, measure: str, title: str) -> alt.Chart | None:
    known = rows.filter(pl.col(measure).is_finite()).select("time_s", measure)
    if known.is_empty():
        return None
    x = alt.X("time_s:Q", title="Virtual time (s)")
    chart = alt.Chart(alt.InlineData(known.to_dicts()))
    return chart.mark_line(point=True).encode(x=x, y=alt.Y(f"{measure}:Q", title=title, scale=alt.Scale(zero=False)))


def _points(rows: pl.DataFrame, measure: str, title: str) -> alt.Chart | None:
    known = rows.filter(pl.col(measure).is_finite()).select("client", "time_s", measure)
    if known.is_empty():
        return None
    few = known["client"].n_unique() <= 10  # noqa: PLR2004  (as many as there are colours)
    chart = alt.Chart(alt.InlineData(known.to_dicts())).mark_circle(size=18, opacity=0.6)
    encoded = chart.encode(x=alt.X("time_s:Q", title="Virtual time (s)"), y=alt.Y(f"{measure}:Q", title=title))
    return encoded.encode(color=alt.Color("client:N", title="Client")) if few else encoded


def _png(path: Path, chart: alt.Chart) -> Path:
    spec = chart.properties(width=560, height=320).to_dict()
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    path.write_bytes(vl_convert.vegalite_to_png(spec, vl_version=version, scale=2))
    return path
