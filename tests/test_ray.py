"""The Ray executor gives the bits of the inline executor, on several nodes, whatever becomes of them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from ray_world import Errands, Guest, Unbuildable, Vanishing, errand
from test_random_worlds import a_setting, engine_of
from training_world import IMAGES, NoisyNet, blob_task, equal_buffers
from worlds import ScriptedTrips, selector

import scenarios
from desim_fl import eventlog, study
from desim_fl.assignment import Assignment
from desim_fl.build import build
from desim_fl.core import Model, Score
from desim_fl.engine import Engine
from desim_fl.errors import JobError, LawError, RefusedError, RunError, ScenarioError
from desim_fl.eventlog import EventLog, MemorySink
from desim_fl.executors import bridge as bridging
from desim_fl.executors import fingerprint
from desim_fl.executors.cluster import RayExecutor
from desim_fl.executors.crew import Fate, Hand
from desim_fl.executors.inline import InlineExecutor
from desim_fl.executors.packing import packed
from desim_fl.executors.pool import PoolExecutor
from desim_fl.executors.seat import opened, parcel
from desim_fl.executors.tickets import Shipment, Ticket
from desim_fl.learning import models
from desim_fl.learning.optimizers import OptimizerSettings
from desim_fl.rundir import read_manifest
from desim_fl.scenario import Scenario, load
from desim_fl.scenario.synchronous import SYNCHRONOUS
from desim_fl.strategies import TABLE
from desim_fl.strategies import build as strategy
from desim_fl.study.cluster import Cluster as StudyCluster
from desim_fl.verify import verify
from desim_fl.world import Evaluations, StopRules, World

HERE = Path(__file__).parent
QUICK = {  # a node that is lost is missed within a second
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}
TORCH = {
    "momentum": {"optimizer": OptimizerSettings("sgd", momentum=0.9, weight_decay=0.01)},
    "adam": {"optimizer": OptimizerSettings("adam")},
    "proximal term": {"optimizer": OptimizerSettings("sgd", proximal_mu=0.5)},
    "dropout and batch norm": {"model": NoisyNet},
    "local buffers": {"model": NoisyNet, "buffers": "local"},
    "images": {"model": models.factory("cnn", {}, IMAGES.shape, 10), "dataset": IMAGES},
}


ROUNDS = {"clients_per_round": 2}
OPTIONS = {
    **{key: {"buffer_size": 2} for key in ("fedbuff", "fadas", "ca2fl", "fedstale", "fedvarp", "mifa")},
    **{key: {"contacted": 2, "interval_s": 1.5} for key in ("quafl", "favas")},
    **{key: {"clients_per_round": 1, "tiers": 2} for key in ("fedat", "tifl")},
    "port": {"min_clients": 2, "staleness_bound": 2},
    "ringmaster": {"delay_threshold": 2, "stop": True},
    "rennala": {"batch": 2, "stop_unfinished": True},
    "fedprox": {**ROUNDS, "mu": 0.3},
    "scaffold": {**ROUNDS, "over_selection": 1.5},
    "semi_async": {"clients_per_version": 2},
    "safa": {"fraction": 0.5, "lag_tolerance": 2, "round_limit_s": 30.0},
}
ALL_AT_ONCE = {"malenia", "ringleader", "quafl", "favas"}  # no concurrency to choose


class Counting(RayExecutor):
    """Counts what it trained, so that nobody takes another executor's work for its own."""

    trained = 0

    def collect(self, job, steps):
        """Collect, and count."""
        self.trained += 1
        return super().collect(job, steps)


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs and two nodes with one each, all of this machine; workers' thread counts set to mislead."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    before = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3", "RAY_USAGE_STATS_ENABLED": "0"}
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK}
    )
    try:
        for _ in range(2):
            made.add_node(num_cpus=1)
        yield made
    finally:
        os.environ.clear()
        os.environ |= before
        made.shutdown()


@pytest.fixture
def roomy(cluster):
    """The cluster with a third node, whose CPU is not the host's."""
    while len(cluster.worker_nodes) < 3:
        cluster.add_node(num_cpus=1)
    return cluster


@pytest.fixture(scope="module")
def tasks():
    """A task for each set of options."""
    return tuple(blob_task(**options) for options in TORCH.values())


@pytest.fixture(scope="module")
def scalars():
    """A small world of numbers for each strategy of the table."""
    return {name: build(Scenario.model_validate(_document(name))) for name in TABLE}


def _document(name: str) -> dict:
    """Four clients on quadratic functions, 24 updates."""
    document = tomllib.loads(scenarios.QUADRATIC)
    document["strategy"] = {"name": name, **OPTIONS.get(name, ROUNDS if name in SYNCHRONOUS else {})}
    document["run"]["max_updates"] = 24
    document["executor"]["name"] = "inline"
    if name in ALL_AT_ONCE or (name in SYNCHRONOUS and name != "semi_async"):
        del document["run"]["concurrency"]
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the workers leave traces."""
    return tmp_path_factory.mktemp("errands")


@pytest.fixture(scope="module")
def host(cluster, tasks, scalars, folder):
    """The long-lived executor: as many workers as the cluster has CPUs."""
    numbers = tuple(built.task for built in scalars.values())
    executor = Counting(Errands(folder, (*tasks, *numbers)), address=cluster.address)
    executor.start(tasks[-1].initial())
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def numbers():
    """Thousands, one for each test."""
    return itertools.count(1000, 1000)


@pytest.fixture
def number(numbers):
    """The first job id of a test, so that no two tests share one."""
    return next(numbers)


def test_the_cluster_is_used_whole(host):
    """Absent ``workers`` means as many as there are CPUs; they sit on different nodes."""
    host.submit(errand(0), 0)
    assert host.collect(errand(0), 4).params == 10.0
    assert (host.workers, host.nodes) == (2, 3)
    for _ in range(200):
        if all(hand.ready for hand in host._crew.hands):
            break
        host._pump(0.1)
    assert len({hand.where for hand in host._crew.hands}) == 2


@pytest.mark.parametrize("method", ["fedasync", "fedbuff", "fedavg"])
def test_laws_1_and_2_on_random_worlds_of_floats(host, method, number):
    """Rows, hash, parameters and evaluations of small worlds are those of a player that trains in this process."""
    played = trained = 0
    before = host.trained
    for seed in range(120):
        setting = a_setting(random.Random(seed).choice)
        if setting.method.name != method or setting.max_updates is None or played == 6:
            continue
        guest = Guest(host, setting, number + 100 * played)
        plain, remote = engine_of(setting), engine_of(setting, executor=guest)
        ends = []
        for one in (plain, remote):
            try:
                ends.append(one.engine.run())
            except Exception as error:  # noqa: BLE001  (some worlds stall: then both do)
                ends.append(f"{type(error).__name__}: {error}")
        assert ends[0] == ends[1]
        assert plain.sink.tuples() == remote.sink.tuples()
        assert repr(plain.engine.model) == repr(remote.engine.model)
        assert repr(plain.evaluations) == repr(remote.evaluations)
        _let_go(host)
        played, trained = played + 1, trained + remote.engine.ledger.arrived
    assert played == 6
    assert trained > 20
    assert host.trained - before >= trained


@pytest.mark.parametrize("name", TABLE)
def test_laws_1_and_2_for_every_strategy(host, scalars, name, number):
    """A run of numbers under each strategy of the table: rows, parameters and scores are those of the inline executor, the hash is plan's."""
    built, which = scalars[name], len(TORCH) + list(scalars).index(name)
    ends, before = [], host.trained
    for executor in (InlineExecutor(built.task), Guest(host, which, number)):
        sink, evaluations = MemorySink(), []
        engine = Engine(replace(built.world, executor=executor), EventLog(sink), evaluations.append)
        sha256, parameters = engine.run(), np.asarray(engine.model.params, np.float64).tobytes()
        ends.append((sha256, sink.tuples(), sink.notes("loss"), parameters, repr(evaluations)))
    arrived = engine.ledger.arrived
    _let_go(host)
    assert ends[0] == ends[1]
    assert Engine(build(built.scenario, timing_only=True).world, EventLog()).run() == ends[0][0]
    assert arrived > 15
    assert host.trained - before >= arrived


def _let_go(host) -> None:
    """Release what a run left in flight."""
    for ticket in list(host._jobs.values()):
        host.release(ticket.job)


@pytest.mark.parametrize("which", range(len(TORCH)), ids=list(TORCH))
def test_laws_1_and_2_on_torch_worlds(host, tasks, which, number):
    """A whole run with each set of options: rows, parameters, buffers and scores have the bits of the inline executor."""
    runs = []
    for executor in (InlineExecutor(tasks[which]), Guest(host, which, number)):
        engine, sink, evaluations = _torch_world(executor, tasks[which])
        runs.append((engine.run(), sink.tuples(), [e.scores for e in evaluations], engine.model))
    _let_go(host)
    inline, remote = runs
    assert inline[:2] == remote[:2]
    assert inline[2] == remote[2]
    assert torch.equal(inline[3].params, remote[3].params)
    assert equal_buffers(inline[3].buffers, remote[3].buffers)


def _torch_world(executor, task) -> tuple[Engine, MemorySink, list]:
    """Four clients of different speeds, a buffer of two, eleven updates, evaluations on the way."""
    sink, evaluations = MemorySink(), []
    world = World(
        strategy=strategy("fedbuff", {"buffer_size": 2}),
        selector=selector("longest_idle", 4),
        trips=ScriptedTrips([1.0, 0.7, 3.1, [2.0, 0.2]], upload=0.1),
        executor=executor,
        assignment=Assignment([3, 2, 1, 1], epochs=2),
        sizes=[100, 33, 5, 1],
        model=task.initial(),
        average=task.average,
        stops=StopRules(max_updates=11),
        concurrency=3,
        evaluations=Evaluations(every_versions=2),
    )
    return Engine(world, EventLog(sink), evaluations.append), sink, evaluations


def test_the_most_urgent_arrival_is_handed_out_first(host, number, monkeypatch):
    """What waits while both workers are busy goes out by its due time, not by its number."""
    given = []
    monkeypatch.setattr(
        host, "_give", lambda hand, ticket, give=host._give: (given.append(ticket.job.id), give(hand, ticket))
    )
    for busy in range(4):
        host.submit(errand(number + busy, "slow"), 0)
    waiting = [(number + 10 + n, due) for n, due in enumerate((50, 20, 40, 10))]
    for job, due in waiting:
        host.submit(errand(job), due)
    by_due = sorted(waiting, key=lambda entry: entry[1])  # whoever is asked for goes first, so ask in that order too
    for job, _ in [*((number + busy, 0) for busy in range(4)), *by_due]:
        host.collect(errand(job, "slow" if job < number + 10 else None), 4)
    assert [job - number for job in given if job >= number + 10] == [13, 11, 12, 10]


def _order(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "order").read_text().split()]


def test_released_jobs_are_not_trained_and_partial_ones_are_done_again(host, folder, number):
    """A job let go before it starts never runs; one that reports after 2 of 4 steps has done 2; nothing is kept."""
    for n in range(6):
        host.submit(errand(number + n, "slow" if n < 4 else None), n)
    host.release(errand(number + 5))
    assert host.collect(errand(number + 4), 2).steps == 2
    for n in range(4):
        assert host.collect(errand(number + n, "slow"), 4).steps == 4
    assert number + 5 not in _order(folder)
    assert host._models == {}
    with pytest.raises(LawError, match=f"job {number + 5}"):
        host.collect(errand(number + 5), 4)


def test_failing_jobs_are_named_with_worker_node_and_traceback(host, number):
    """JobError with job, client, version, worker and node; the traceback there is its cause; others go on."""
    pattern = rf"job {number} \(client {number}, from version 0, executor ray, worker \d+ at [\d.]+ \(node \w+\)\): ValueError: no luck"
    host.submit(errand(number, "fail"), 0)
    host.submit(errand(number + 1), 1)
    with pytest.raises(JobError, match=pattern) as caught:
        host.collect(errand(number, "fail"), 4)
    assert "ray_world.py" in str(caught.value.__cause__)
    assert host.collect(errand(number + 1), 4).params == 10.0 + number + 1
    for extra, why in (
        ("nothing", "a NoneType, not an Outcome"),
        ("unsendable", "pickle"),
        ("memory", r"MemoryError: fewer executor\.workers need less memory"),
        (lambda: 0, "cannot be sent"),
    ):
        host.submit(errand(number + 2, extra), 2)
        with pytest.raises(JobError, match=why):
            host.collect(errand(number + 2, extra), 4)
    assert host._models == {}


def test_the_data_set_lies_in_shared_memory_once_a_node(host, number):
    """Workers map the task's arrays from Ray's store, and cannot write into them: whoever tries is ended, not heard."""
    host.submit(errand(number, "where is the data"), 0)
    where, last = host.collect(errand(number, "where is the data"), 4).extra
    assert "plasma" in where
    assert where.split()[1].startswith("r--")
    assert last == 255


def test_threads_of_the_cluster_change_nothing(host, number):
    """The nodes were started with OMP_NUM_THREADS = 3; workers have this process's number, and no bit differs."""
    host.submit(errand(number, "environment"), 0)
    there = host.collect(errand(number, "environment"), 4).extra
    assert there["MKL_NUM_THREADS"] == "3"
    assert there["OMP_NUM_THREADS"] == str(torch.get_num_threads())


def test_a_version_s_name_never_comes_again(host, number, monkeypatch):
    """Python gives the id of a freed vector to the next: a worker that has not heard of the end must not mix them up."""
    told = []
    for hand in host._crew.hands:
        monkeypatch.setattr(
            hand.pipe, "send", lambda messages, send=hand.pipe.send: (told.extend(messages), send(messages))
        )
    vector = torch.full((2000,), 1.0)  # the same id again and again, as another vector might have it
    for n in range(4):
        job = errand(number + n, params=vector)
        host.submit(job, n)
        assert host.collect(job, 4).params[-1].item() == 1.0 + number + n
    names = [message[1] for message in told if message[0] == "model"]
    assert len(names) == len(set(names)) == 4


def _bridge(said: list, kept: list) -> bridging.Bridge:
    """A bridge to a Ray that only takes notes: three workers, on node "a", which is the one that lives."""
    bridge = bridging.Bridge.__new__(bridging.Bridge)
    bridge._ray = SimpleNamespace(
        put=lambda value: kept.append(value) or len(kept),
        kill=lambda actor: None,
        nodes=lambda: [{"Alive": True, "NodeID": "a"}, {"Alive": False, "NodeID": "b"}],
    )
    bridge._connection, bridge._shelf = SimpleNamespace(send=said.append), None
    bridge._places, bridge._versions = {n: bridging.Place(None, node="a") for n in range(3)}, {}
    return bridge


def test_versions_are_put_into_the_store_once_and_freed_with_their_last_worker():
    """Two workers are told of a version: one object; it goes when both have dropped it, or ended."""
    kept = []
    bridge = _bridge([], kept)
    for worker in range(3):
        bridge._obey(worker, "model", "key", None, packed((np.ones(9), None)))
    assert len(kept) == 1
    bridge._obey(0, "drop", "key")
    bridge._lost(1, bridge._places[1], RuntimeError("gone"))
    assert list(bridge._versions) == ["key"]
    bridge._obey(2, "drop", "key")
    assert bridge._versions == {}


def test_a_node_that_dies_counts_against_no_job(tmp_path):
    """The bridge tells a worker's death from its node's; a job whose nodes die again and again is still queued."""
    said = []
    bridge = _bridge(said, [])
    bridge._places[1].node = "b"
    for number, why in enumerate(
        ("The actor is dead because its worker process has died. Some common causes", "?", "its node has died")
    ):
        bridge._lost(number, bridge._places[number], RuntimeError(why))
    assert said == [
        (0, ("ended", "its worker process has died.", True)),
        (1, ("ended", "?", False)),
        (2, ("ended", "its node has died", False)),
    ]
    executor = PoolExecutor(Errands(tmp_path), 1)
    hand = Hand(0, None, None)
    for blamed, failed in ((False, False), (False, False), (True, False), (False, False), (True, True)):
        ticket = executor._jobs.get(0) or Ticket(0, 0, Shipment((0, 0), 1.0, None, 0, users=1), 4, job=errand(0))
        executor._jobs[0], hand.tickets = ticket, {0: ticket}
        executor._replace(SimpleNamespace(replace=lambda hand, blamed=blamed: Fate("lost", blamed)), hand)
        assert (ticket.failure is not None) == failed


def test_arrays_that_are_not_aligned_in_the_store_are_copied():
    """Some kernels round differently on memory that is not aligned as torch aligns its own."""
    head, sizes, content = parcel(packed((torch.arange(1 << 19, dtype=torch.int32), torch.ones(3))), None)
    moved = np.empty(content.nbytes + 65, np.uint8)
    for shift in (0, 1):
        start = -moved.ctypes.data % 64 + shift
        place = moved[start : start + content.nbytes]
        place[:] = content
        large, small = opened((head, sizes, place))
        assert (large.data_ptr() == place.ctypes.data) == (shift == 0)
        assert large.data_ptr() % 64 == 0
        assert large.tolist() == list(range(1 << 19))
        assert small.tolist() == [1.0] * 3


def test_a_worker_that_dies_is_replaced_and_its_jobs_are_done_again(host, number):
    """Killed once, the job and those queued behind it are trained by others; killed twice, it is an error that says so."""
    host.submit(errand(number, "die once"), 0)
    host.submit(errand(number + 1, "die"), 0)
    promise = host.evaluate(Model(7, 3.5))
    host.submit(errand(number + 2), 1)
    assert host.collect(errand(number, "die once"), 4).params == 10.0 + number
    with pytest.raises(
        JobError, match=rf"job {number + 1} .*the worker died \(its worker process has died.*\), 2 times"
    ):
        host.collect(errand(number + 1, "die"), 4)
    assert host.collect(errand(number + 2), 4).params == 12.0 + number
    assert promise() == (Score("test", 3.5, None, 1),)


def test_a_cluster_without_a_free_place_is_a_named_error(host, cluster, folder):
    """No node has so many CPUs: after the time allowed the error says what there is, and what could be done."""
    other = RayExecutor(Errands(folder), 1, cluster.address, threads=4, patience_s=1.0)
    try:
        other.submit(errand(0), 0)
        with pytest.raises(
            RunError, match=r"no place for any worker .* living nodes with [23] CPUs; .*executor\.workers"
        ):
            other.collect(errand(0), 4)
    finally:
        other.close()
    host.submit(errand(1), 0)
    assert host.collect(errand(1), 4).params == 11.0  # the cluster, and whoever else is on it, is left alone


def test_a_user_s_run_with_a_node_killed_on_the_way_is_the_inline_run(host, roomy, tmp_path, monkeypatch):
    """A scenario on the cluster, its model in the current folder, a node killed in mid-run: hashes, tables, log are equal.

    Workers are not more than jobs in flight; the second finds no place as long as the run lasts, and nobody waits for it.
    """
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Linear(8, 12), nn.Dropout(0.2), nn.Linear(12, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    text = scenarios.BLOBS.replace('name = "mlp"\nhidden = [16]', 'name = "my_nets:net"')
    _, inline = scenarios.played(tmp_path, text, 'executor.name="inline"', "run.concurrency=2", out="inline")
    killed = []

    def kill(session) -> None:
        if session.engine.ledger.arrived == 12 and not killed:
            where = next(hand.where for hand in session.built.world.executor._crew.hands if hand.ready)
            killed.extend(node for node in roomy.worker_nodes if f"(node {node.node_id[:8]})" in where)
            roomy.add_node(num_cpus=1)
            roomy.remove_node(killed[0], allow_graceful=False)

    choose = ('executor.name="ray"', f'executor.address="{roomy.address}"', "run.concurrency=2")
    _, remote = scenarios.played(tmp_path, text, *choose, out="ray", watch=kill)
    assert len(killed) == 1
    assert (remote["executor"], inline["executor"]) == ("ray", "inline")
    assert remote["executor_reason"].startswith(f"asked for, 2 workers on the Ray cluster at {roomy.address} (4 nodes)")
    for name in ("timeline_sha256", "model_sha256", "partition_sha256"):
        assert inline[name] == remote[name]
    for name in ("metrics", "clients"):
        tables = [pl.read_parquet(tmp_path / run / f"{name}.parquet") for run in ("inline", "ray")]
        assert tables[0].equals(tables[1])
    logs = [eventlog.read(tmp_path / run / "events").collect() for run in ("inline", "ray")]
    assert logs[0].equals(logs[1])


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (Unbuildable, r"workers cannot rebuild the task: ValueError: .* \(worker 0 at [\d.]+ \(node \w+\)\)"),
        (Vanishing, r"workers on the Ray cluster end while starting: its worker process has died"),
    ],
)
def test_workers_that_cannot_start_are_a_named_error_and_nothing_waits(roomy, folder, task, why):
    """The reason is told, once for all: what else was asked for does not hang."""
    other = RayExecutor(task(folder), 1, roomy.address)
    try:
        other.submit(errand(0), 0)
        promise = other.evaluate(Model(1, 2.0))
        with pytest.raises(RunError, match=why):
            other.collect(errand(0), 4)
        with pytest.raises(RunError, match=r"is closed .*workers"):
            promise()
    finally:
        other.close()


def test_a_lost_connection_is_a_named_error(roomy, folder):
    """Where the process that talks to Ray is ended (as Ray does when the head node dies), the run fails and says why."""
    other = RayExecutor(Errands(folder), 1, roomy.address)
    try:
        other.submit(errand(0, "slow"), 0)
        os.kill(other.pids[0], signal.SIGKILL)
        with pytest.raises(RunError, match=r"connection to the Ray cluster is lost \(exit code -9\)"):
            other.collect(errand(0, "slow"), 4)
    finally:
        other.close()


def test_a_mix_of_machines_is_refused(roomy, folder, monkeypatch):
    """A worker whose machine is not this one's kind is an error that names node and difference."""
    real = fingerprint.facts
    monkeypatch.setattr(fingerprint, "facts", lambda *about: real(*about) | {"capability": "AVX512"})
    other = RayExecutor(Errands(folder), 1, roomy.address)
    try:
        other.submit(errand(0), 0)
        with pytest.raises(
            RefusedError, match=r"worker 0 at [\d.]+ \(node \w+\) would not .*: capability is None there, 'AVX512' here"
        ):
            other.collect(errand(0), 4)
    finally:
        other.close()


def test_facts_that_decide_bits_are_compared():
    """Kernels chosen by environment, the source of what trains and a user's model are part of the fingerprint."""
    facts = fingerprint.facts(torch.device("cpu"), "training_world")
    assert {"torch", "capability", "processor", "kernels", "desim-fl", "model source"} <= set(facts)
    assert fingerprint.differences(facts, facts) == ""
    assert fingerprint.differences(facts, facts | {"kernels": "MKL_CBWR=COMPATIBLE"}) == (
        f"kernels is 'MKL_CBWR=COMPATIBLE' there, {facts['kernels']!r} here"
    )
    task = SimpleNamespace(model=models.factory("training_world:NoisyNet", {}, (6,), 4))
    assert fingerprint.named_model(task) == "training_world"
    assert fingerprint.named_model(blob_task()) is None


@pytest.mark.parametrize(("address", "why"), [("127.0.0.1:1", "refused"), ("no-such-host.invalid:6379", "")])
def test_an_address_that_cannot_be_reached_is_refused_soon(tmp_path, address, why):
    """Before anything is written, with the address and the way out; exit code 2."""
    began = time.monotonic()
    with pytest.raises(
        RefusedError, match=rf'the cluster at "{address}" cannot be used: .*{why}.*executor\.name = "pool"'
    ) as caught:
        scenarios.played(tmp_path, scenarios.QUADRATIC, 'executor.name="ray"', f'executor.address="{address}"')
    assert caught.value.exit_code == 2
    assert time.monotonic() - began < 60
    assert not (tmp_path / "run").exists()


CLIENT_SERVER = """
import sys, ray
from ray.util.client.server.server import serve
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
server = serve("127.0.0.1", int(sys.argv[1]))
print("serving", flush=True)
sys.stdin.read()
server.stop(0)
ray.shutdown()
"""


def test_an_address_of_a_ray_client_server_is_used_or_says_what_is_missing(tmp_path, monkeypatch):
    """``ray://host:port``: the inline run's hashes through a client server; without Ray's client part, how to get that."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        address = f"ray://127.0.0.1:{port}"
        choose = ('executor.name="ray"', f'executor.address="{address}"', "executor.workers=1")
        if importlib.util.find_spec("grpc") is None:
            with pytest.raises(RefusedError, match=r"pip install ray\[client\]"):
                scenarios.played(tmp_path, scenarios.QUADRATIC, *choose)
            return
    command, pipe = [sys.executable, "-c", CLIENT_SERVER, str(port)], subprocess.PIPE
    server = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        while server.stdout.readline() not in ("serving\n", ""):  # Ray says something before
            pass
        _, inline = scenarios.played(tmp_path, scenarios.QUADRATIC, 'executor.name="inline"', out="inline")
        _, remote = scenarios.played(tmp_path, scenarios.QUADRATIC, *choose)
    finally:
        server.communicate(timeout=60)
    assert remote["executor_reason"].startswith(f"asked for, 1 workers on the Ray cluster at {address}")
    for name in ("timeline_sha256", "model_sha256"):
        assert inline[name] == remote[name]


@pytest.mark.parametrize("name", ["inline", "pool", "auto"])
def test_an_address_belongs_to_ray(tmp_path, name):
    """With another executor it is refused, and what is no address is too."""
    path = scenarios.write(tmp_path)
    with pytest.raises(ScenarioError, match=rf'address must not be given with name = "{name}"; it belongs to "ray"'):
        load(path, [f'executor.name="{name}"', 'executor.address="auto"'])
    for wrong in ("", "here", "10.0.0.1:port", "http://10.0.0.1:80"):
        with pytest.raises(ScenarioError, match="address"):
            load(path, ['executor.name="ray"', f'executor.address="{wrong}"'])
    for right in ("auto", "head:6379", "ray://10.0.0.1:10001", "[::1]:6379"):
        assert load(path, ['executor.name="ray"', f'executor.address="{right}"']).executor.address == right


def test_without_ray_the_way_out_is_told(tmp_path, monkeypatch):
    """Ray is an optional part; where it is not installed, that is what the error says."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RefusedError, match=r'pip install "desim-fl\[ray\]"'):
        RayExecutor(Errands(tmp_path))


def test_an_instance_of_this_machine_leaves_nothing_behind(tmp_path):
    """``--executor ray``: one JSON object on stdout, the inline run's hashes; afterwards no process and no file is left."""
    _, inline = scenarios.played(tmp_path, scenarios.QUADRATIC, 'executor.name="inline"', out="inline")
    command = [
        sys.executable,
        "-m",
        "desim_fl",
        "run",
        str(tmp_path / "small.toml"),
        "--out",
        str(tmp_path / "ray"),
        "--json",
    ]
    pipe = subprocess.PIPE
    choose = ["--executor", "ray", "--workers", "1"]
    parent = subprocess.Popen([*command, *choose], stdout=pipe, stderr=pipe, text=True, env=_marked(tmp_path))
    out, err = parent.communicate(timeout=300)
    assert (parent.returncode, err) == (0, "")
    result = json.loads(out)
    for name in ("timeline_sha256", "model_sha256"):
        assert result[name] == inline[name]
    manifest = json.loads((tmp_path / "ray" / "manifest.json").read_text())
    assert manifest["executor_reason"] == "asked for, 1 workers on a Ray instance of this machine (1 nodes)"
    assert _alive(tmp_path) == []
    assert _folders(parent.pid) == []


def _marked(folder: Path) -> dict[str, str]:
    """An environment by which all descendants of a process are found again."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    return {**os.environ, "PYTHONPATH": paths, "DESIM_FL_TEST": str(folder)}


def _folders(pid: int) -> list[Path]:
    """What a process's instances keep on disk."""
    return list(Path("/tmp").glob(f"desim-fl-ray-{pid}-*"))  # noqa: S108


def _alive(folder: Path, patience_s: float = 5.0) -> list[str]:
    """Command lines of processes with the mark that are still there after a while."""
    mark, ends = f"DESIM_FL_TEST={folder}\0".encode(), time.monotonic() + patience_s
    while True:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes() + b"\0":
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        if not found or time.monotonic() > ends:
            return found
        time.sleep(0.1)


PROCESS = """
import sys
from pathlib import Path
from ray_world import Errands, errand
from desim_fl.executors.cluster import RayExecutor
class Mine(Errands):
    pass
if __name__ == "__main__":
    executor = RayExecutor(Mine(Path(sys.argv[1])), 1)
    try:
        for number in range(3):
            executor.submit(errand(number, "very slow" if number else None), number)
        for number in range(3):
            executor.collect(errand(number, "very slow" if number else None), 4)
            print("collected", number, flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    finally:
        executor.close()
"""


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_a_killed_parent_leave_nothing_behind(tmp_path, end):
    """In the middle of a long job: Ctrl-C is the parent's alone, and ends quietly; without a parent Ray's processes end.

    The task's class is defined in the script that was started, which workers load as the pool's do.
    """
    (tmp_path / "parent.py").write_text(PROCESS)
    pipe = subprocess.PIPE
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)],
        env=_marked(tmp_path), start_new_session=True, stdout=pipe, stderr=pipe, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    assert parent.stdout.readline() == "collected 0\n"
    assert len(_alive(tmp_path, 0.0)) > 3
    assert len(_folders(parent.pid)) == 1
    os.killpg(parent.pid, end)
    out, err = parent.communicate(timeout=60)
    if end == signal.SIGINT:
        assert (out, err, parent.returncode) == ("interrupted\n", "", 0)
    assert _alive(tmp_path, 30.0) == []
    assert _folders(parent.pid) == []


STUDY = """
scenario = "base.toml"
seeds = [0, 1]
keep_runs = true
[[factors]]
name = "server"
levels = [
  { label = "FedBuff" },
  { label = "its process dies once", set = { strategy = { name = "mortal:once" } } },
  { label = "missing", set = { strategy = { name = "mortal:nothing" } } },
]
"""
MORTAL = """
import os, pathlib, signal
from desim_fl.strategies import FedAsync
mark = pathlib.Path(__file__).with_name("died")
def once(**options):
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return FedAsync(**options)
"""


def test_a_study_on_the_cluster_gives_the_rows_of_one_here(roomy, tmp_path, monkeypatch):
    """Rows, kept runs and failures are those of the local processes, though a worker is killed; what is there is not played again."""
    (tmp_path / "mortal.py").write_text(MORTAL)
    (tmp_path / "base.toml").write_text(scenarios.QUADRATIC)
    (tmp_path / "study.toml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    plan, there = study.load(Path("study.toml")), StudyCluster(roomy.address, 1)
    first = plan._replace(variants=plan.variants[:1], scenarios=plan.scenarios[:1])
    assert study.conduct(first, Path("there"), 1)["played_now"] == 2  # begun here, it goes on there
    found = study.conduct(plan, Path("there"), players=there)
    assert (tmp_path / "died").exists()
    assert (found["runs"], found["played_now"]) == (6, 4)
    assert study.conduct(plan, Path("here"), 1)["failed"] == found["failed"]
    rows = []
    for name in ("there", "here"):
        lines = [json.loads(line) for line in (tmp_path / name / "journal.jsonl").read_text().splitlines()]
        rows.append({line["key"]: line for line in lines})
        for line in lines:
            line.get("summary", {}).pop("wall_s", None)
    assert rows[0] == rows[1]
    kept = [
        {path.name: read_manifest(path)["timeline_sha256"] for path in Path(name, "runs").iterdir()}
        for name in ("there", "here")
    ]
    assert len(kept[0]) == 4
    assert kept[0] == kept[1]
    assert [verify(path) for path in Path("there", "runs").iterdir()] == [[]] * 4
