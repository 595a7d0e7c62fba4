"""Run directories made from a seed, without simulating: what the tests of the report read.

The rows obey the contract of the run directory (a job's legs follow each other, staleness is the version at arrival
minus the job's version), but nothing is trained: loss and accuracy are smooth made-up curves.
"""

from __future__ import annotations

import heapq
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from desim_fl import balance, eventlog

if TYPE_CHECKING:
    from pathlib import Path

KINDS = (
    "dispatch downloaded started computed arrive reject publish lose cancel abandon leave come alarm stop".split()  # noqa: SIM905
)
EVENTS = {
    "seq": pl.UInt64, "ticks": pl.Int64, "time_s": pl.Float64, "kind": pl.Enum(KINDS), "client": pl.Int64, "job": pl.Int64,
    "version": pl.Int64, "staleness": pl.Int64, "nth": pl.Int64, "steps": pl.Int64, "examples": pl.Int64,
    "loss": pl.Float64, "lr": pl.Float64, "weight": pl.Float64, "scale": pl.Float64, "bytes": pl.Int64,
    "wait_s": pl.Float64, "reason": pl.String, "outcome": pl.String, "bad_key": pl.String,
}  # fmt: skip
METRICS = {
    "ticks": pl.Int64, "time_s": pl.Float64, "version": pl.Int64, "updates": pl.Int64, "split": pl.String,
    "loss": pl.Float64, "accuracy": pl.Float64, "examples": pl.Int64,
}  # fmt: skip
CLIENTS = {
    "client": pl.Int64, "key": pl.Int64, "name": pl.String, "examples": pl.Int64, "class_counts": pl.List(pl.Int64),
    "device_class": pl.String, "device_factor": pl.Float64, "seconds_per_step": pl.Float64, "down_mbps": pl.Float64, "up_mbps": pl.Float64,
    "latency_s": pl.Float64, "dispatches": pl.Int64, "arrivals": pl.Int64, "steps": pl.Int64, "busy_s": pl.Float64,
    "download_s": pl.Float64, "wait_s": pl.Float64, "compute_s": pl.Float64, "upload_s": pl.Float64,
    "bytes_down": pl.Int64, "bytes_up": pl.Int64, "energy_j": pl.Float64,
}  # fmt: skip
LINKS = {
    "link": pl.String, "region": pl.Int64, "from_s": pl.Float64, "to_s": pl.Float64, "capacity_mbps": pl.Float64,
    "bytes": pl.Int64, "busy_s": pl.Float64, "full_s": pl.Float64,
}  # fmt: skip
HELD_OUT = {"client": pl.Int64, "examples": pl.Int64, "loss": pl.Float64, "accuracy": pl.Float64}
WALL = {"job": pl.Int64, "client": pl.Int64, "train_s": pl.Float64}


@dataclass(frozen=True, slots=True)
class Made:
    """What to make; ``nan_from`` is the version from which the loss is NaN."""

    clients: int = 30
    updates: int = 400
    concurrency: int = 10
    buffer: int = 10
    eval_every: int = 1
    nan_from: int | None = None
    classes: int = 10
    accuracy: bool = True
    names: tuple[str, ...] = ()
    device_classes: tuple[str, ...] = ()
    links: bool = False
    balance: bool = False
    held_out: bool = False
    name: str = "quickstart"
    description: str = "Thirty phones with uneven data and uneven speed."
    status: str = "finished"
    error: str | None = None
    trained: bool = True
    publishes: bool = True
    wait: bool = True
    lose: float = 0.03
    slow: float = 1.0
    max_staleness: int | None = 8
    seed: int = 0


class _Log:
    """Rows in the order in which they happen."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, ticks: int, kind: str, **more: Any) -> None:
        row = dict.fromkeys(EVENTS) | {"seq": len(self.rows), "ticks": ticks, "time_s": ticks / 1e6, "kind": kind}
        self.rows.append(row | {"client": -1, "job": -1, "version": -1, "staleness": -1} | more)


@dataclass
class _World:
    made: Made
    log: _Log
    chance: random.Random
    factor: list[float]
    version: int = 0
    job: int = 0
    received: int = 0
    buffered: int = 0

    def __post_init__(self) -> None:
        self.heap: list[tuple[int, int, str, dict[str, Any]]] = []
        self.base: dict[int, int] = {}
        self.metrics: list[tuple[Any, ...]] = []
        self.evaluate(0)

    def dispatch(self, now: int, client: int) -> None:
        job, self.job = self.job, self.job + 1
        self.base[job] = self.version
        me = {"client": client, "job": job}
        lr = 0.05 if not self.made.wait else 0.05 / (1 + self.chance.random())
        self.log.add(now, "dispatch", **me, version=self.version, lr=lr, bytes=203_560, nth=0, steps=20)
        legs = [("downloaded", self.chance.uniform(0.2, 1.0)), ("computed", self.factor[client] * 4 * self.made.slow)]
        if self.made.wait:
            legs.insert(1, ("started", self.chance.expovariate(0.5)))
        legs.append(("arrive", self.chance.uniform(0.5, 2.5)))
        lost = self.chance.random() < self.made.lose
        for kind, seconds in legs:
            now += round(seconds * 1e6)
            done = "lose" if lost and kind == "computed" else kind
            heapq.heappush(self.heap, (now, job, done, me))
            if done == "lose":
                break

    def evaluate(self, ticks: int) -> None:
        made = self.made
        if not made.trained or self.version % made.eval_every:
            return
        part = self.received / max(1, made.updates)
        loss = 2.3 * 0.2 ** (part * 1.6) + self.chance.gauss(0, 0.02)
        if made.nan_from is not None and self.version >= made.nan_from:
            loss = float("nan") if self.version % 2 else float("inf")
        for split, size in (("test", 1000), ("validation", 600)):
            accuracy = round(0.1 + 0.73 * part**0.35 + self.chance.gauss(0, 0.005), 3) if made.accuracy else None
            self.metrics.append((ticks, ticks / 1e6, self.version, self.received, split, loss, accuracy, size))

    def arrive(self, ticks: int, me: dict[str, Any]) -> None:
        staleness = self.version - self.base[me["job"]]
        self.received += 1
        loss = 2.3 * 0.3 ** (self.received / self.made.updates) * self.chance.uniform(0.7, 1.3)
        wild = self.made.nan_from is not None and self.version >= self.made.nan_from
        tail = {"loss": float("nan") if wild else loss, "outcome": "rejected: non-finite" if wild else None}
        tail = tail if self.made.trained else {"loss": None, "outcome": None}
        known = {**me, "version": self.version, "staleness": staleness}
        self.log.add(
            ticks, "arrive", **known, weight=(1 + staleness) ** -0.5, bytes=203_560, steps=20, examples=200, **tail
        )
        if self.made.max_staleness is not None and staleness > self.made.max_staleness:
            self.log.add(ticks, "reject", **known, reason="staler than max_staleness")
            return
        self.buffered += 1
        if self.made.publishes and self.buffered == self.made.buffer:
            self.buffered, self.version = 0, self.version + 1
            self.log.add(ticks, "publish", **me, version=self.version, scale=1 / self.made.buffer)
            self.evaluate(ticks)

    def play(self) -> None:
        idle = list(range(self.made.clients))
        self.chance.shuffle(idle)
        for _ in range(min(self.made.concurrency, self.made.clients)):
            self.dispatch(0, idle.pop())
        while self.heap and self.received < self.made.updates:
            ticks, _, kind, me = heapq.heappop(self.heap)
            if kind == "arrive":
                self.arrive(ticks, me)
            else:
                staleness = self.version - self.base[me["job"]] if kind == "lose" else -1
                self.log.add(
                    ticks,
                    kind,
                    **me,
                    version=self.version,
                    staleness=staleness,
                    reason="dropped" if kind == "lose" else None,
                )
            if kind in ("arrive", "lose"):
                idle.append(me["client"])
                self.dispatch(ticks, idle.pop(self.chance.randrange(len(idle))))


def make(folder: Path, made: Made) -> Path:
    """Write a run directory and return it."""
    chance = random.Random(made.seed)
    factor = [chance.lognormvariate(0, 0.8) for _ in range(made.clients)]
    world = _World(made, _Log(), chance, factor)
    if made.updates:
        world.play()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events").mkdir(exist_ok=True)
    events = pl.DataFrame(world.log.rows, schema=EVENTS, orient="row")
    half = events.height // 2
    for number, part in enumerate((events[:half], events[half:])):
        part.write_parquet(folder / "events" / f"part-{number:05d}.parquet")
    pl.DataFrame(world.metrics, schema=METRICS, orient="row").write_parquet(folder / "metrics.parquet")
    _clients(world, events).write_parquet(folder / "clients.parquet")
    if made.links:
        _links(world).write_parquet(folder / "links.parquet")
    if made.balance:
        _balance(folder)
    if made.held_out:
        _held_out(world).write_parquet(folder / "held_out.parquet")
    if made.trained:
        jobs = events.filter(pl.col("kind") == "arrive")
        seconds = [chance.uniform(0.01, 0.03) for _ in range(jobs.height)]
        wall = pl.DataFrame({"job": jobs["job"], "client": jobs["client"], "train_s": seconds}, schema=WALL)
        wall.write_parquet(folder / "wall.parquet")
    _describe(folder, world)
    return folder


def _clients(world: _World, events: pl.DataFrame) -> pl.DataFrame:
    made = world.made
    dispatched = dict(events.filter(pl.col("kind") == "dispatch")["client"].value_counts().iter_rows())
    arrived = dict(events.filter(pl.col("kind") == "arrive")["client"].value_counts().iter_rows())
    rows = []
    for client in range(made.clients):
        counts = [int(world.chance.paretovariate(0.7)) % 90 for _ in range(made.classes)] if made.classes else None
        name = made.names[client] if client < len(made.names) else ""
        kind = made.device_classes[client % len(made.device_classes)] if made.device_classes else None
        rows.append(
            (client, client, name, sum(counts) if counts else 1, counts, kind, world.factor[client], 0.01, 20.0, 5.0, 0.05,
             dispatched.get(client, 0), arrived.get(client, 0), 0, 1.0, 0.1, 0.2, 0.5, 0.2, 1000, 1000,
             2.5 * dispatched.get(client, 0) if kind else None)
        )  # fmt: skip
    return pl.DataFrame(rows, schema=CLIENTS, orient="row")


def _links(world: _World) -> pl.DataFrame:
    """Forty spans of a server's link and of two regions' links, ever fuller."""
    end = world.log.rows[-1]["ticks"] / 1e6
    rows = [
        (link, region, end * at / 40, end * (at + 1) / 40, mbps, round(end / 40 * mbps * 125_000 * at / 40), end / 50, end / 80)
        for link in ("egress", "ingress")
        for region, mbps in ((-1, 100.0), (0, 40.0), (1, 60.0))
        for at in range(40)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=LINKS, orient="row")


def _balance(folder: Path) -> None:
    """Tables of classes and losses, with the energy of the clients as that of computing."""
    events, clients = eventlog.read(folder / "events"), pl.read_parquet(folder / "clients.parquet")
    clients = clients.with_columns(pl.lit(0.0).alias(name) for name in balance.SECONDS if name not in clients.columns)
    lost = balance.losses(events, clients)
    lost.write_parquet(folder / "losses.parquet")
    energy = {"compute": clients["energy_j"].fill_null(0.0).to_list()}
    balance.classes(clients, lost, energy).write_parquet(folder / "classes.parquet")


def _held_out(world: _World) -> pl.DataFrame:
    """Accuracies that fall with the client's number; the last client's is not finite, as of a model that diverged."""
    number = world.made.clients
    rows = [(client, 10 + client, 1.0, 0.9 - 0.5 * client / number) for client in range(number)]
    rows[-1] = (number - 1, 10, float("inf"), float("nan"))
    return pl.DataFrame(rows, schema=HELD_OUT, orient="row")


def _describe(folder: Path, world: _World) -> None:
    made = world.made
    summary = {
        "virtual_time_s": world.log.rows[-1]["ticks"] / 1e6 if world.log.rows else 0.0, "versions": world.version,
        "updates": world.received, "buffered": world.buffered, "wall_s": 14.2, "stop": "max_updates",
    }  # fmt: skip
    digest = "0123456789abcdef" * 4
    manifest = {
        "desim_fl": "0.1.0", "created": "2026-01-01T00:00:00Z", "status": made.status, "scenario_name": made.name,
        "scenario_sha256": digest, "seed": made.seed, "timeline_sha256": digest, "partition_sha256": digest,
        "model_sha256": digest if made.trained else None, "data": {"name": "fashion_mnist_6k", "sha256": digest},
        "versions": {"python": "3.11.2", "torch": "2.14.1", "numpy": "2.4.6", "polars": "2.1.0", "simpy": "4.1.1"},
        "device": "cpu", "executor": "inline", "threads_per_job": 1, "host": {"system": "Linux", "cores": 2},
        "summary": summary,
    }  # fmt: skip
    if made.error:
        manifest["error"] = made.error
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    text = (
        f"name = {json.dumps(made.name)}\ndescription = {json.dumps(made.description)}\n\n[clients]\ncount = {made.clients}\n"
        f'partition = "dirichlet"\nalpha = 0.5\n\n[strategy]\nname = "fedbuff"\nbuffer_size = {made.buffer}\n\n'
        f"[run]\nseed = {made.seed}\nconcurrency = {made.concurrency}\nmax_updates = {made.updates}\n"
    )
    (folder / "scenario.toml").write_text(text, encoding="utf-8")
