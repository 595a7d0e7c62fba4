"""Scalars for TensorBoard, with virtual time as their wall time: needs the extra ``tensorboard``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from desim_fl.errors import RefusedError
from desim_fl.report.reading import read
from desim_fl.report.trips import in_flight, returned, trips

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from desim_fl.report.reading import Run

Scalar = tuple[str, float, int, float]  # tag, value, step, virtual seconds


def write(run_dir: Path, out: Path) -> list[Path]:
    """Write one event file. Raises RefusedError where the package tensorboard is not installed."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter  # noqa: PLC0415
    except ImportError as error:
        raise RefusedError('the layout tensorboard needs its extra: pip install "desim-fl[tensorboard]"') from error
    run = read(run_dir)
    with SummaryWriter(str(out)) as writer:
        for tag, value, step, seconds in scalars(run):
            writer.add_scalar(tag, value, step, walltime=seconds)
    return sorted(out.glob("events.out.tfevents.*"))


def scalars(run: Run) -> Iterator[Scalar]:
    """Yield every scalar: scores by version, local loss and staleness by update, jobs in flight by event."""
    for split in ("test", "validation"):
        for name in ("loss", "accuracy"):
            rows = run.metrics.filter((pl.col("split") == split) & pl.col(name).is_finite())
            for value, version, seconds in rows.select(name, "version", "time_s").iter_rows():
                yield f"{split}/{name}", value, version, seconds
    jobs = trips(run.events)
    back = returned(jobs).sort("ended", "job")
    for step, (ended, loss, staleness) in enumerate(back.select("ended", "loss", "staleness").iter_rows()):
        if loss is not None:
            yield "update/local_loss", loss, step, ended / 1e6
        yield "update/staleness", staleness, step, ended / 1e6
    end = int(run.events["ticks"].max() or 0)  # pyright: ignore[reportArgumentType]
    for step, (ticks, flying) in enumerate(in_flight(jobs, end).iter_rows()):
        yield "server/in_flight", flying, step, ticks / 1e6
