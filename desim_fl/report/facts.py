"""The numbers that sum a run up, counted from its tables; the manifest gives only what no table holds."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from desim_fl.core import TICKS_PER_SECOND
from desim_fl.report import curves, fairness, toll_charts, trips

if TYPE_CHECKING:
    from desim_fl.report.reading import Run


class Evaluation(NamedTuple):
    """One row of the table of metrics."""

    version: int
    loss: float | None
    accuracy: float | None
    examples: int


class Facts(NamedTuple):
    """What the words and the headline numbers are made of; ``None`` = not known or without meaning."""

    name: str
    strategy: str | None
    status: str
    error: str | None
    stop: str | None
    planned: bool
    clients: int
    active: int
    end: int
    versions: int
    received: int
    applied: int
    rejected: int
    not_finite: int
    lost: int
    cancelled: int
    in_flight: int
    staleness_mean: float | None
    staleness_max: int | None
    bytes_down: int
    bytes_up: int
    energy: dict[str, float] | None
    cost: dict[str, float] | None
    wall_s: float | None
    first: Evaluation | None
    last: Evaluation | None
    best: Evaluation | None
    diverged: curves.Divergence | None
    even: fairness.Evenness | None = None
    reasons: tuple[tuple[str, int], ...] = ()  # why jobs were lost, the most frequent first
    full_links: tuple[str, ...] = ()  # a clause about each link of the server that was at capacity
    busy: int = 0  # clients that were given a job

    @property
    def jobs(self) -> int:
        """Jobs that were sent out, whatever became of them."""
        return self.received + self.lost + self.cancelled + self.in_flight

    @property
    def end_s(self) -> float:
        """Virtual seconds from the start to the end."""
        return self.end / TICKS_PER_SECOND

    @property
    def state(self) -> str:
        """The status in one word, for the head of the page."""
        if self.planned:
            return "plan"
        return "diverged" if self.diverged and self.status == "finished" else self.status


def scenario(run: Run) -> dict[str, Any]:
    """Return the scenario as stored; empty where it is not TOML."""
    try:
        return tomllib.loads(run.scenario)
    except tomllib.TOMLDecodeError:
        return {}


def pauses(run: Run) -> bool:
    """Whether jobs of this run stand still while their client is gone."""
    availability = scenario(run).get("availability")
    return isinstance(availability, dict) and availability.get("on_leave") == "pause"


def facts(run: Run, jobs: pl.DataFrame) -> Facts:
    """Count everything once."""
    back = trips.returned(jobs)
    test = run.metrics.filter(pl.col("split") == "test").sort("version", maintain_order=True)
    chosen = scenario(run)
    strategy = chosen.get("strategy")
    return Facts(
        name=str(run.manifest.get("scenario_name") or chosen.get("name") or "Unnamed scenario"),
        strategy=str(strategy["name"]) if isinstance(strategy, dict) and "name" in strategy else None,
        status=str(run.manifest.get("status", "unknown")),
        error=_words(run.manifest.get("error")),
        stop=_words(run.summary.get("stop")),
        planned=run.planned,
        clients=run.clients.height,
        active=back["client"].n_unique(),
        busy=jobs["client"].n_unique(),
        end=max(_end(run.events), round(float(run.summary.get("virtual_time_s") or 0) * TICKS_PER_SECOND)),
        versions=int(run.events.filter(pl.col("kind") == "publish")["version"].len()),
        received=back.height,
        applied=_applied(run),
        **_fates(jobs),
        staleness_mean=_number(back["staleness"].mean()),
        staleness_max=_whole(back["staleness"].max()),
        bytes_down=_whole(jobs["down"].sum()) or 0,
        bytes_up=_whole(back["up"].sum()) or 0,
        energy=_parts(run.summary.get("energy_j")),
        cost=_parts(run.summary.get("cost")),
        wall_s=_number(run.summary.get("wall_s")),
        first=_evaluation(test.head(1)),
        last=_evaluation(test.tail(1)),
        best=_evaluation(_best(test)),
        diverged=curves.divergence(run.metrics),
        even=fairness.evenness(run.clients["arrivals"]) if back.height else None,
        reasons=_reasons(run),
        full_links=tuple(toll_charts.full_links(run.links, _end(run.events) / TICKS_PER_SECOND)),
    )


def _reasons(run: Run) -> tuple[tuple[str, int], ...]:
    lost = run.events.filter(pl.col("kind") == "lose", pl.col("reason").is_not_null())
    return tuple(lost.group_by("reason").len().sort("len", "reason", descending=[True, False]).rows())


def _words(value: object) -> str | None:
    return str(value) if value not in (None, "") else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _parts(value: object) -> dict[str, float] | None:
    """Return numbers by name, those that are missing as 0; ``None`` where there is no table."""
    if not isinstance(value, dict):
        return None
    names = ("total", "compute", "send", "receive", "idle", "time", "traffic")
    return {name: _number(value.get(name)) or 0.0 for name in names}


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, (int, float)) else None


def _end(events: pl.DataFrame) -> int:
    return _whole(events["ticks"].max()) or 0


def _fates(jobs: pl.DataFrame) -> dict[str, int]:
    found = dict(jobs["fate"].value_counts().iter_rows())
    return {fate.replace(" ", "_"): found.get(fate, 0) for fate in trips.FATES if fate != "accepted"}


def _applied(run: Run) -> int:
    """Return updates that went into a publish: those not turned away before the last one, unless the run counted itself."""
    counted = run.summary.get("applied")
    if isinstance(counted, int):
        return counted
    last = run.events.filter(pl.col("kind") == "publish")["seq"].max()
    if last is None:
        return 0
    before = run.events.filter(pl.col("seq") < last)
    return before.filter(pl.col("kind") == "arrive").height - before.filter(pl.col("kind") == "reject").height


def _evaluation(row: pl.DataFrame) -> Evaluation | None:
    for found in row.iter_rows(named=True):
        return Evaluation(found["version"], found["loss"], found["accuracy"], found["examples"])
    return None


def _best(test: pl.DataFrame) -> pl.DataFrame:
    """Return the evaluation with the highest accuracy, or the lowest loss where there is no accuracy."""
    known = test.filter(pl.col("accuracy").is_finite())
    if known.is_empty():
        return test.filter(pl.col("loss").is_finite()).sort("loss", maintain_order=True).head(1)
    return known.sort("accuracy", descending=True, maintain_order=True).head(1)
