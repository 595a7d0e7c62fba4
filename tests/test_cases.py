"""Cases of tests/CASES.md that are about several rooms at once, or about the whole program."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap

import polars as pl
import pytest
from worlds import Plain, ScriptedTrips, play

import scenarios
from desim_fl import eventlog, rundir
from desim_fl.core import Alarm, Reply, Score
from desim_fl.evaluation import Evaluation
from desim_fl.strategies.fedasync import FedAsync
from desim_fl.strategies.fedavg import FedAvg
from desim_fl.strategies.fedbuff import FedBuff
from desim_fl.verify import verify
from desim_fl.world import StopRules

EQUAL = """
[data]
name = "quadratic"
[clients]
count = 3
seconds_per_step = 10
[strategy]
name = "fedasync"
[run]
concurrency = 3
selection = "order"
order = [2, 0, 1]
max_updates = 3
"""


def fresh(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "desim_fl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})


def test_ev_01_five_fresh_processes_write_the_same_bytes(tmp_path):
    """Three clients that finish at 10 s, sent out in the order 2, 0, 1: the event log is the same file every time."""
    path = scenarios.write(tmp_path, EQUAL)
    parts = []
    for number in range(5):
        fresh("plan", path, "--out", tmp_path / f"run{number}", PYTHONHASHSEED=str(number))
        parts.append((tmp_path / f"run{number}" / "events" / "part-00000.parquet").read_bytes())
    assert len(set(parts)) == 1
    arrivals = eventlog.read(tmp_path / "run0" / "events").filter(pl.col("kind") == "arrive").collect()
    assert arrivals.select("time_s", "client", "staleness").rows() == [(10, 2, 0), (10, 0, 1), (10, 1, 2)]


def test_ev_05_waiting_with_a_deadline_loses_no_later_update():
    """A 10 s deadline passes twice; then updates at 25 to 29 s: each is applied once, at its time, one wait is left."""

    class Patient(Plain):
        def start(self, view):
            return 0, Reply(alarms=(Alarm("deadline", 10.0),))

        def arrive(self, state, view, update):
            return state, super().arrive(state, view, update)[1]._replace(alarms=(Alarm("deadline", 10.0),), sends=())

        def alarm(self, state, view, name):
            return state + 1, Reply(alarms=(Alarm("deadline", 10.0),), sends=())

    played = play(
        ScriptedTrips([25, 26, 27, 28, 29]), strategy=Patient(), concurrency=5, stops=StopRules(max_ticks=45_000_000)
    )
    assert [row[0] for row in played.rows("alarm")] == [10, 20, 39]  # set anew by each arrival: never two at once
    assert played.arrivals() == [(25, 0, 0), (26, 1, 1), (27, 2, 2), (28, 3, 3), (29, 4, 4)]
    assert (played.engine.model.version, played.engine.model.params) == (5, 5.0)
    assert list(played.engine._alarms) == ["deadline"]


@pytest.mark.parametrize("turned", [False, True])
def test_ev_07_a_loss_at_the_instant_of_the_arrival_is_an_arrival(turned):
    """Lost at 5 s, arrived at 5 s: it has arrived, whoever was sent out first; a microsecond before, it is lost."""
    order = [1, 0] if turned else [0, 1]
    for lost, landed in ((5.0, "arrive"), (4.999999, "lose")):
        trips = ScriptedTrips([5, 5], lost={(0, 0): (lost, "left")})
        played = play(trips, select="order", order=order, concurrency=2, stops=StopRules(max_ticks=5_000_000))
        ends = [row[1] for row in played.rows("arrive", "lose") if row[2] == 0]
        assert ends == [landed]


def test_ag_04_clients_without_examples_make_no_version(tmp_path):
    """Two clients with n = 0: rows that say so, no version, the model and its score untouched; beside n = 10 it is that one's."""
    text = textwrap.dedent(
        """
        [data]
        name = "quadratic"
        optimum = [7.0, 3.0]
        examples_per_client = [0, 0]
        [clients]
        count = 2
        seconds_per_step = 1
        [network]
        latency_s = 1
        [model]
        name = "scalar"
        start = 0.1
        [training]
        lr = 0.5
        [strategy]
        name = "fedavg"
        clients_per_round = 2
        [run]
        max_time_s = 10
        eval_every_versions = 1
        """
    )
    folder, found = scenarios.played(tmp_path, text, out="none")
    assert (found["summary"]["versions"], found["summary"]["loss"], found["summary"]["updates"]) == (0, None, 10)
    log = eventlog.read(folder / "events").collect()
    assert log.filter(pl.col("kind") == "reject")["reason"].to_list() == ["no examples"] * 10
    assert (log["kind"] == "abandon").sum() == 5
    assert model(folder) == 0.1
    assert verify(folder) == []
    folder, found = scenarios.played(tmp_path, text, "data.examples_per_client=[0,10]", "run.max_versions=1", out="one")
    assert found["summary"]["versions"] == 1
    assert model(folder) == 0.1 - 0.5 * (0.1 - 3.0)
    assert found["summary"]["loss"] == pytest.approx((model(folder) - 3.0) ** 2 / 2)
    assert verify(folder) == []


def model(folder) -> float:
    """The scalar of a quadratic run."""
    from safetensors.numpy import load_file  # noqa: PLC0415

    return float(load_file(folder / "model.safetensors")["x"][0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "strategy", [FedBuff(buffer_size=5, staleness="constant"), FedAvg(clients_per_round=5)], ids=["fedbuff", "fedavg"]
)
def test_ag_05_no_kind_of_non_finite_value_reaches_the_model(strategy, bad):
    """Deltas 1, 2, x, 4, 5 of equal clients move the model by 3, for x = NaN and both infinities."""
    deltas = (1.0, 2.0, bad, 4.0, 5.0)
    played = play(
        ScriptedTrips([1] * 5), strategy=strategy, concurrency=5, learn=lambda job: job.params + deltas[job.client],
        stops=StopRules(max_versions=1),
    )  # fmt: skip
    assert played.engine.model.params == pytest.approx(3.0, abs=1e-12)
    outcomes = zip((row[1:3] for row in played.rows()), played.sink.notes("outcome"), strict=True)
    assert [found for found in outcomes if found[1]] == [(("arrive", 2), "rejected: non-finite")]


def test_ag_06_a_client_that_drops_mid_task_is_in_no_weight():
    """Sizes 10, 20, 70 and deltas 1, 2, 3; the third is lost at half of its task: the step is 50/30; CASES SA-05."""
    played = play(
        ScriptedTrips([1, 1, 1], lost={(2, 0): (0.5, "left")}),
        strategy=FedAvg(clients_per_round=3),
        sizes=[10, 20, 70],
        learn=lambda job: job.params + (1.0, 2.0, 3.0)[job.client],
        concurrency=3,
        stops=StopRules(max_ticks=1_000_000),
    )
    assert played.engine.model.params == pytest.approx(50 / 30, abs=1e-12)
    assert [row[:3] for row in played.rows("lose")] == [(0.5, "lose", 2)]


def test_lt_05_a_client_smaller_than_the_batch_takes_virtual_time(tmp_path):
    """A client of 5, batch 32, two epochs: 2 steps, 5 examples and 2 s in the log, a finite loss > 0, a model that moved."""
    text = scenarios.BLOBS.replace("examples = 600", "examples = 5", 1).replace("validation_share = 0.1", "")
    text = text.replace("count = 6", "count = 1").replace('partition = "dirichlet"\nalpha = 0.5', "")
    text = text.replace("seconds_per_step = 0.1", "seconds_per_step = 1").replace("sigma = 0.5", "sigma = 0.0")
    folder, _ = scenarios.played(tmp_path, text, "training.epochs=2", "run.max_updates=1")
    row = eventlog.read(folder / "events").filter(pl.col("kind") == "arrive").collect().row(0, named=True)
    computed = eventlog.read(folder / "events").filter(pl.col("kind") == "computed").collect()["ticks"][0]
    downloaded = eventlog.read(folder / "events").filter(pl.col("kind") == "downloaded").collect()["ticks"][0]
    assert (row["steps"], row["examples"], computed - downloaded) == (2, 5, 2_000_000)
    assert 0 < row["loss"] < math.inf
    losses = pl.read_parquet(folder / "metrics.parquet")["loss"]
    assert losses[0] != losses[-1]


def test_sa_01_a_round_of_eight_where_four_exist_runs_with_four():
    """Asked for eight at once, the four there are leave at once, none of them twice, and a round is those four."""
    played = play(
        ScriptedTrips([1, 1, 1, 1]),
        strategy=FedAvg(clients_per_round=8),
        concurrency=8,
        stops=StopRules(max_versions=2),
    )
    first = [client for t, _, client, *_ in played.rows("dispatch") if t == 0]
    assert sorted(first) == [0, 1, 2, 3]
    assert [row[0] for row in played.rows("publish")] == [1, 2]
    many = play(ScriptedTrips([1, 1, 1, 1]), strategy=FedAsync(), concurrency=8, stops=StopRules(max_updates=8))
    assert max(sum(t == at for t, *_ in many.rows("dispatch")) for at in range(3)) == 4


def test_rp_02_the_samples_of_a_client_never_change(tmp_path):
    """The stored partition is what every job of a client trained on: its sizes are those of all its rows, run after run."""
    folder, first = scenarios.played(tmp_path, scenarios.BLOBS)
    _, second = scenarios.played(tmp_path, scenarios.BLOBS, "run.concurrency=1", "training.lr=0.3", out="other")
    assert first["partition_sha256"] == second["partition_sha256"]
    sizes = dict(pl.read_parquet(folder / "partition.parquet").group_by("client").len().iter_rows())
    rows = eventlog.read(folder / "events").filter(pl.col("kind") == "arrive").collect()
    assert all(sizes[client] == examples for client, examples in rows.select("client", "examples").iter_rows())


def test_rp_05_threads_change_no_virtual_time_and_stand_in_the_manifest(tmp_path):
    """One thread or two: the same timeline; device, threads and versions of torch and NumPy are written down."""
    import torch  # noqa: PLC0415

    _, one = scenarios.played(tmp_path, scenarios.BLOBS, "run.max_updates=12", out="one")
    _, two = scenarios.played(tmp_path, scenarios.BLOBS, "run.max_updates=12", "executor.threads_per_job=2", out="two")
    assert one["timeline_sha256"] == two["timeline_sha256"]
    assert (one["device"], one["threads_per_job"], two["threads_per_job"]) == ("cpu", 1, 2)
    assert one["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"python", "numpy", "polars", "simpy"} <= set(one["versions"])


def test_re_01_the_tables_of_a_run_infer_nothing():
    """150 evaluations with a whole accuracy and no loss, then 0.5 and 1.25: both are stored exactly as floats."""
    scored = [Evaluation(at, at, at, (Score("test", None, 0, 10),)) for at in range(150)]  # type: ignore[arg-type]
    table = rundir.metrics([*scored, Evaluation(150, 150, 150, (Score("test", 1.25, 0.5, 10),))])
    assert dict(table.schema) == rundir.METRICS_SCHEMA
    assert table["accuracy"].to_list() == [0.0] * 150 + [0.5]
    assert table["loss"].to_list() == [None] * 150 + [1.25]


# ---- RS-01, in a process of its own, because memory is measured

LONG = """
import gc, json, sys, weakref
import numpy as np
from worlds import FloatExecutor, ScriptedTrips, play
from desim_fl import eventlog
from desim_fl.strategies.fedbuff import FedBuff
from desim_fl.world import StopRules

class Params(np.ndarray):
    live = 0
    def __array_finalize__(self, other):
        Params.live += 1
        weakref.finalize(self, Params.gone)
    @staticmethod
    def gone():
        Params.live -= 1

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

clients, updates, flying = int(sys.argv[1]), int(sys.argv[2]), 10
seen = {"arrived": 0, "most": 0, "memory": {}}
def learn(job):
    seen["arrived"] += 1
    if seen["arrived"] % 500 == 0:
        gc.collect()
        seen["most"] = max(seen["most"], Params.live)
    if seen["arrived"] % 2000 == 0:
        seen["memory"][seen["arrived"]] = resident()
    return (np.asarray(job.params) + 1.0).view(Params)
start = np.zeros(100).view(Params)
FloatExecutor.submit = lambda self, job, due: None  # the usual one remembers every job
eventlog.MemorySink.__call__ = lambda self, segment: None
play(ScriptedTrips([1 + client % 7 for client in range(clients)]), strategy=FedBuff(buffer_size=5), start=start,
     learn=learn, concurrency=flying, stops=StopRules(max_updates=updates), segment_rows=1000)
print(json.dumps(seen))
"""


def long_run(clients: int, updates: int) -> dict:
    """Play so many updates with 10 in flight; what was measured on the way."""
    code = LONG.replace('"""', "")
    path = os.pathsep.join(["tests", ".", os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, str(clients), str(updates)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_rs_01_memory_does_not_grow_with_updates_or_clients():
    """40,000 updates: the least memory of the last 16,000 is that of the 16,000 before, to 5 %; models alive do not follow the clients.

    This process is so small that before 8,000 updates the event log has not yet filled its first batches, and that batches on their
    way into a segment are a tenth of it: so the least counts, not a moment.
    """
    many, few = long_run(1000, 40_000), long_run(100, 4_000)
    least = [min(many["memory"][str(at)] for at in range(end - 14_000, end + 1, 2000)) for end in (24_000, 40_000)]
    assert least[1] <= 1.05 * least[0]
    assert many["most"] == few["most"] <= 10 + 1
