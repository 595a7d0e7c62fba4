"""Whole runs from scenario files: what stands in the run directory, and identities between strategies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import textwrap

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

import scenarios
from desim_fl import eventlog, rundir
from desim_fl.build import build
from desim_fl.core import Job, Work
from desim_fl.errors import DesimError, JobError, RefusedError, RunDirectoryError, RunError, ScenarioError
from desim_fl.run import execute
from desim_fl.scenario import load
from desim_fl.verify import verify


def events(folder) -> pl.DataFrame:
    """The table events."""
    return eventlog.read(folder / "events").collect()


def final(folder) -> float:
    """The scalar of a quadratic run."""
    return float(load_file(folder / "model.safetensors")["x"][0])


def test_a_run_directory_holds_everything_that_is_promised(tmp_path):
    """Manifest, resolved scenario, tables with their schemas, model and report; hashes are those of the files; CASES RE-01."""
    folder, manifest = scenarios.played(tmp_path, scenarios.BLOBS)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "manifest.json", "scenario.toml", "events", "metrics.parquet", "clients.parquet", "wall.parquet",
        "classes.parquet", "losses.parquet",
        "partition.parquet", "model.safetensors", "report.html",
    }  # fmt: skip
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == manifest["model_sha256"]
    assert eventlog.timeline_sha256(events(folder)) == manifest["timeline_sha256"]
    assert dict(events(folder).schema) == eventlog.schema()
    metrics = pl.read_parquet(folder / "metrics.parquet")
    assert metrics["split"].unique().sort().to_list() == ["test", "validation"]
    last = metrics.filter(pl.col("split") == "test").row(-1, named=True)
    summary = manifest["summary"]
    assert (last["accuracy"], last["loss"]) == (summary["accuracy"], summary["loss"])
    assert (last["version"], last["updates"]) == (summary["versions"], summary["updates"]) == (30, 30)
    assert metrics["version"].unique().sort().to_list() == [0, 10, 20, 30]
    partition = pl.read_parquet(folder / "partition.parquet")
    assert partition["index"].n_unique() == len(partition) == 600
    assert len(partition.filter(pl.col("client") == -1)) == 60  # the validation part
    partition = partition.filter(pl.col("client") >= 0)
    clients = pl.read_parquet(folder / "clients.parquet")
    assert clients["examples"].to_list() == partition.group_by("client").len().sort("client")["len"].to_list()
    assert verify(folder, rerun=True) == []


def test_totals_add_up_between_tables_and_manifest(tmp_path):
    """Bytes, seconds by leg and steps of the clients are those of the log; in flight averages to the concurrency."""
    folder, manifest = scenarios.played(tmp_path, scenarios.QUADRATIC)
    clients, log, summary = pl.read_parquet(folder / "clients.parquet"), events(folder), manifest["summary"]
    arrivals = log.filter(pl.col("kind") == "arrive")
    assert clients["steps"].sum() == arrivals["steps"].sum()
    assert clients["bytes_up"].sum() == arrivals["bytes"].sum() == summary["bytes_up"] == 60 * 8
    assert clients["busy_s"].sum() == pytest.approx(3 * summary["virtual_time_s"], rel=1e-9)
    assert summary["mean_in_flight"] == pytest.approx(3)
    legs = clients.select(pl.col("download_s", "wait_s", "compute_s", "upload_s")).sum().row(0)
    assert sum(legs) == pytest.approx(clients["busy_s"].sum(), rel=1e-9)


def test_the_model_is_the_one_that_plain_arithmetic_gives(tmp_path):
    """FedBuff on quadratics, replayed from the event log by hand, gives the saved number exactly."""
    folder, _ = scenarios.played(tmp_path, scenarios.QUADRATIC)
    curvature, optimum = (1.0, 2.0, 0.5, 1.5), (1.0, -1.0, 3.0, 0.5)
    versions, results, buffer = [5.0], {}, []
    for row in events(folder).iter_rows(named=True):
        client = row["client"]
        if row["kind"] == "dispatch":
            x = versions[row["version"]]
            for _ in range(row["steps"]):
                x -= 0.1 * (curvature[client] * (x - optimum[client]))
            results[row["job"]] = (x - versions[row["version"]], row["version"])
        elif row["kind"] == "arrive":
            delta, base = results[row["job"]]
            buffer.append((1.0 + row["version"] - base) ** -0.5 * delta)
        elif row["kind"] == "publish":
            versions.append(versions[-1] + (1.0 / 2.0) * (buffer[0] + buffer[1]))
            buffer = []
    assert final(folder) == pytest.approx(versions[-1], abs=1e-12)


def test_2_19_2_fedbuff_after_aggregation_is_fedavg_with_equal_sizes(tmp_path):
    """FedBuff(K = c, after_aggregation, weight 1) equals FedAvg with c clients a round, and nothing is ever stale."""
    equal = scenarios.QUADRATIC.replace("[40, 10, 70, 33]", "20")
    buffered, first = scenarios.played(
        tmp_path, equal, 'run.dispatch="after_aggregation"', "strategy.buffer_size=3", 'strategy.staleness="constant"',
        'run.selection="round_robin"', out="buffered",
    )  # fmt: skip
    sync = equal.replace('name = "fedbuff"\nbuffer_size = 2', 'name = "fedavg"\nclients_per_round = 3')
    averaged, _ = scenarios.played(
        tmp_path, sync.replace("concurrency = 3\n", ""), 'run.selection="round_robin"', out="averaged"
    )
    assert final(buffered) == pytest.approx(final(averaged), rel=1e-12)
    assert first["summary"]["staleness"]["max"] == 0


@pytest.mark.parametrize("concurrency", [1, 3])
def test_2_19_3_fedbuff_of_one_is_fedasync_with_deltas(tmp_path, concurrency):
    """FedBuff(K = 1, eta_g = a) equals FedAsync(delta, alpha = a); with one in flight also model mixing."""
    common = (f"run.concurrency={concurrency}", 'strategy.staleness="constant"')
    buffered, _ = scenarios.played(
        tmp_path, scenarios.QUADRATIC, *common, "strategy.buffer_size=1", "strategy.server_lr=0.4", out="buffered"
    )
    mixed = scenarios.QUADRATIC.replace('name = "fedbuff"\nbuffer_size = 2', 'name = "fedasync"\nalpha = 0.4')
    ends = {}
    for mixing in ("delta", "model"):
        folder, _ = scenarios.played(tmp_path, mixed, *common, f'strategy.mixing="{mixing}"', out=mixing)
        ends[mixing] = final(folder)
    assert ends["delta"] == pytest.approx(final(buffered), rel=1e-12)
    assert (ends["model"] == pytest.approx(final(buffered), rel=1e-12)) == (concurrency == 1)


def test_2_19_4_one_job_at_a_time_is_sequential_sgd(tmp_path):
    """With one in flight and weight 1 the clients train one after the other on one model."""
    text = scenarios.QUADRATIC.replace('name = "fedbuff"\nbuffer_size = 2', 'name = "fedasync"\nalpha = 1.0')
    folder, _ = scenarios.played(tmp_path, text, "run.concurrency=1")
    x = 5.0
    for row in events(folder).filter(pl.col("kind") == "arrive").iter_rows(named=True):
        client = row["client"]
        for _ in range(row["steps"]):
            x -= 0.1 * ((1.0, 2.0, 0.5, 1.5)[client] * (x - (1.0, -1.0, 3.0, 0.5)[client]))
    assert final(folder) == x


@pytest.mark.parametrize(("factor", "stable"), [(0.95, True), (1.05, False)])
@pytest.mark.parametrize(("workers", "bound"), [(1, 2.0), (2, 1.0), (3, 0.618034), (5, 0.347296)])
def test_4_5_the_stability_bound_of_delayed_gradient_descent(tmp_path, workers, bound, factor, stable):
    """C equal workers give delay c - 1: steps below 2 sin(pi / (2 (2 tau + 1))) converge, above they blow up."""
    text = f"""
    data = {{ name = "quadratic" }}
    clients = {{ count = {workers}, seconds_per_step = 1.0 }}
    model = {{ name = "scalar", start = 1.0 }}
    training = {{ lr = {factor * bound} }}
    strategy = {{ name = "fedasync", alpha = 1.0, mixing = "delta", staleness = "constant" }}
    run = {{ concurrency = {workers}, max_updates = 1500, selection = "round_robin" }}
    """
    folder, _ = scenarios.played(tmp_path, textwrap.dedent(text))
    assert (abs(final(folder)) < 1e-3) == stable
    assert stable or abs(final(folder)) > 1e3


def test_lt_03_evaluations_change_no_bit_of_the_training(tmp_path, monkeypatch):
    """Dropout and BatchNorm, evaluated every version, every second or only at the end: one model, one timeline."""
    monkeypatch.syspath_prepend(str(_models(tmp_path)))
    changes = ([], ["run.eval_every_versions=1"], ["run.eval_every_s=0.5"])
    text = scenarios.BLOBS.replace("eval_every_versions = 10\n", "").replace(
        'name = "mlp"\nhidden = [16]', 'name = "desim_test_models:shaky"'
    )
    found = [scenarios.played(tmp_path, text, *change, out=f"run{n}")[1] for n, change in enumerate(changes)]
    assert len({manifest["model_sha256"] for manifest in found}) == 1
    assert len({manifest["timeline_sha256"] for manifest in found}) == 1


def test_ag_01_one_client_with_full_mixing_hands_its_whole_state_over(tmp_path, monkeypatch):
    """FedAsync(alpha = 1, fresh) with BatchNorm: the global state is that of a plain loop over the client's jobs, for every key, exactly."""
    monkeypatch.syspath_prepend(str(_models(tmp_path)))
    text = NORMED.replace("count = 6", "count = 1").replace('partition = "dirichlet"\nalpha = 0.5\n', "")
    options = ("strategy.alpha=1.0", "run.concurrency=1", "run.max_updates=4", "executor.name=inline")
    folder, manifest = scenarios.played(tmp_path, text, *options)
    state = load_file(folder / "model.safetensors")
    assert state["1.num_batches_tracked"].item() == manifest["summary"]["updates"] * math.ceil(540 / 32)
    assert state["1.num_batches_tracked"].dtype.name == "int64"
    assert abs(state["1.running_mean"]).max() > 0
    task = build(load(scenarios.write(tmp_path, text), options)).task
    model = task.initial()
    for number in range(4):
        job = Job(number, 0, number, number, model.params, model.buffers, Work(1, 17, 0.1))
        outcome = task.train(job, 17)
        model = model._replace(params=outcome.params, buffers=outcome.buffers)
    task.state.load(model.params, model.buffers)
    own = {name: value.numpy() for name, value in task.module.state_dict().items()}
    assert own.keys() == state.keys()
    assert all(np.array_equal(own[name], state[name]) for name in own)


def test_ag_01_lt_04_clients_of_33_65_and_one_sample_with_batch_norm(tmp_path, monkeypatch):
    """LT-04: batches of 32 never leave one over, and the log has the steps of the rule; one sample trains with statistics at rest.

    AG-01: after one round of clients with n = 33, 65 and 1 every float statistic is the mean of theirs, weighted by n.
    """
    monkeypatch.syspath_prepend(str(_models(tmp_path)))
    rows = {"index": range(99), "client": [0] * 33 + [1] * 65 + [2]}
    pl.DataFrame(rows).write_csv(tmp_path / "map.csv")
    text = NORMED.replace(
        'partition = "dirichlet"\nalpha = 0.5\nmin_samples = 5\n', f'partition = "map"\nmap = "{tmp_path}/map.csv"\n'
    )
    text = text.replace('"fedasync"', '"fedavg"\nclients_per_round = 3').replace(
        "concurrency = 3\nmax_updates = 30", "max_versions = 1"
    )
    options = ("clients.count=3", "training.epochs=2", "data.validation_share=0", "executor.name=inline")
    folder, _ = scenarios.played(tmp_path, text, *options)
    came = events(folder).filter(pl.col("kind") == "arrive").sort("client")
    assert came.select("examples", "steps").rows() == [(33, 4), (65, 6), (1, 2)]
    assert came["loss"].is_finite().all()
    task = build(load(scenarios.write(tmp_path, text), options)).task
    model = task.initial()
    found = []
    for client, steps in ((0, 4), (1, 6), (2, 2)):
        job = Job(client, client, 0, 0, model.params, model.buffers, Work(2, steps, 0.1))
        found.append(task.train(job, steps))
    assert [int(outcome.buffers["1.num_batches_tracked"]) for outcome in found] == [4, 6, 0]
    state = load_file(folder / "model.safetensors")
    assert state["1.num_batches_tracked"].item() == 6
    for name in ("1.running_mean", "1.running_var"):
        parts = [outcome.buffers[name].double().numpy() * n for outcome, n in zip(found, (33, 65, 1), strict=True)]
        assert state[name] == pytest.approx(sum(parts) / 99, rel=1e-6, abs=1e-7)


NORMED = scenarios.BLOBS.replace('name = "mlp"\nhidden = [16]', 'name = "desim_test_models:normed"')


def _models(folder):
    """A module with test models, importable under a name of its own."""
    place = folder / "importable"
    place.mkdir()
    (place / "desim_test_models.py").write_text(
        textwrap.dedent(
            """
            import time
            from torch import nn
            def shaky():
                return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 4))
            def normed():
                return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
            class Slow(nn.Linear):
                def forward(self, x):
                    if self.training:
                        time.sleep(0.005)
                    return super().forward(x)
            def slow():
                return Slow(8, 4)
            def fast():
                return nn.Linear(8, 4)
            class Broken(nn.Linear):
                calls = 0
                def forward(self, x):
                    Broken.calls += 1
                    if Broken.calls > 60:
                        raise ValueError("the network caught fire")
                    return super().forward(x)
            def broken():
                return Broken(8, 4)
            """
        )
    )
    sys.modules.pop("desim_test_models", None)
    return place


def test_ev_09b_real_time_spent_in_training_changes_no_virtual_time(tmp_path, monkeypatch):
    """A model that sleeps in every step has the timeline of one that does not."""
    monkeypatch.syspath_prepend(str(_models(tmp_path)))
    text = scenarios.BLOBS.replace('name = "mlp"\nhidden = [16]', 'name = "desim_test_models:fast"')
    _, fast = scenarios.played(tmp_path, text, out="fast")
    _, slow = scenarios.played(tmp_path, text.replace("models:fast", "models:slow"), out="slow")
    for name in ("timeline_sha256", "model_sha256"):
        assert fast[name] == slow[name]


def test_a_failure_inside_a_run_names_the_job_and_keeps_what_was_computed(tmp_path, monkeypatch):
    """Job, client and version are named; log, metrics and manifest say how far the run came, and verify accepts them."""
    monkeypatch.syspath_prepend(str(_models(tmp_path)))
    text = scenarios.BLOBS.replace('name = "mlp"\nhidden = [16]', 'name = "desim_test_models:broken"')
    with pytest.raises(JobError, match=r"job \d+ \(client \d, from version \d+, executor inline\).*caught fire"):
        scenarios.played(tmp_path, text)
    folder = tmp_path / "run"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "caught fire" in manifest["error"]
    assert manifest["summary"]["updates"] > 0
    assert (events(folder)["kind"] == "arrive").sum() == manifest["summary"]["updates"]
    assert (folder / "report.html").exists()
    assert verify(folder) == []


def test_a_directory_that_holds_something_is_never_overwritten(tmp_path):
    """A second run into the same directory is refused, and the first one stays as it was."""
    folder, manifest = scenarios.played(tmp_path)
    with pytest.raises(RunDirectoryError, match="exists already"):
        scenarios.played(tmp_path)
    assert json.loads((folder / "manifest.json").read_text()) == manifest


def test_bad_scenarios_write_nothing(tmp_path):
    """What fails before the run leaves no directory behind."""
    with pytest.raises(ScenarioError):
        scenarios.played(tmp_path, scenarios.BLOBS, "clients.min_samples=500")
    with pytest.raises(ScenarioError, match="no_such_module"):
        scenarios.played(tmp_path, scenarios.BLOBS, 'model={name="no_such_module:net"}')
    assert not (tmp_path / "run").exists()


def test_delay_aware_rates_stand_in_the_log(tmp_path):
    """Meaning (a): each job's first rate is gamma_0 / (1 + alpha_lr d) with its own drawn wait d in seconds."""
    text = scenarios.QUADRATIC.replace("lr = 0.1\n", "delay_aware = { gamma_0 = 0.1, alpha_lr = 0.5 }\n")
    folder, _ = scenarios.played(tmp_path, text)
    sent = events(folder).filter(pl.col("kind") == "dispatch")
    assert sent["wait_s"].min() < 0.5
    assert sent["wait_s"].max() > 1.5
    for lr, wait in zip(sent["lr"], sent["wait_s"], strict=True):
        assert lr == pytest.approx(0.1 / (1 + 0.5 * wait), rel=1e-15)


def test_delay_aware_staleness_weighs_at_the_server(tmp_path):
    """Meaning (b): weights are 1 / (1 + alpha_lr tau) instead of the strategy's own; with combine, times them."""
    rule = 'delay_aware = {{ meaning = "staleness", gamma_0 = 0.1, alpha_lr = 0.5, combine = {} }}\n'
    for combine in ("false", "true"):
        text = scenarios.QUADRATIC.replace("lr = 0.1\n", rule.format(combine))
        folder, _ = scenarios.played(tmp_path, text, out=combine)
        arrived = events(folder).filter(pl.col("kind") == "arrive")
        assert arrived["staleness"].max() >= 2
        for weight, tau in zip(arrived["weight"], arrived["staleness"], strict=True):
            own = (1 + tau) ** -0.5 if combine == "true" else 1.0
            assert weight == pytest.approx(own / (1 + 0.5 * tau), rel=1e-12)
        assert set(events(folder).filter(pl.col("kind") == "dispatch")["lr"]) == {0.1}


def test_a_diverged_run_ends_with_null_scores_and_a_report(tmp_path):
    """A step far above the stability bound overflows: the manifest stays strict JSON, the report says so; CASES RE-03."""
    folder, manifest = scenarios.played(tmp_path, scenarios.QUADRATIC, "training.lr=1e6", "run.max_updates=400")
    rejected = events(folder).filter(pl.col("outcome") == "rejected: non-finite")
    assert len(rejected) > 0
    assert manifest["summary"]["updates"] == 400
    assert (folder / "report.html").stat().st_size > 100_000
    assert verify(folder, rerun=True) == []


def test_plan_directories_hold_the_timeline_and_no_model(tmp_path):
    """Plan --out writes events, clients and a report; hashes agree with run's; verify --rerun accepts it."""
    folder, planned = scenarios.played(tmp_path, scenarios.BLOBS, out="planned", timing_only=True)
    _, trained = scenarios.played(tmp_path, scenarios.BLOBS, out="trained")
    assert planned["timeline_sha256"] == trained["timeline_sha256"]
    assert planned["partition_sha256"] == trained["partition_sha256"]
    assert not (folder / "model.safetensors").exists()
    same = [name for name in planned["summary"] if name not in {"accuracy", "loss", "wall_s"}]
    assert [planned["summary"][name] for name in same] == [trained["summary"][name] for name in same]
    assert verify(folder, rerun=True) == []


def test_verify_names_the_first_difference(tmp_path):
    """A changed staleness, a swapped model and another partition are each found, with their place."""
    folder, _ = scenarios.played(tmp_path, scenarios.QUADRATIC)
    part = folder / "events" / "part-00000.parquet"
    content, table = part.read_bytes(), pl.read_parquet(part)
    row = table.with_row_index().filter(pl.col("kind") == "arrive").row(7, named=True)
    wrong = pl.when(pl.col("seq") == row["seq"]).then(pl.col("staleness") + 1).otherwise(pl.col("staleness"))
    table.with_columns(wrong.alias("staleness")).write_parquet(part)
    problems = verify(folder)
    assert f"row {row['seq']} (arrive" in problems[0]
    assert "staleness should be" in problems[0]
    assert any("timeline_sha256" in problem for problem in problems)
    part.write_bytes(content)
    assert verify(folder) == []
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "model_sha256": "0" * 64}))
    assert any("model_sha256" in problem for problem in verify(folder))


def test_verify_rerun_finds_a_result_that_another_scenario_gave(tmp_path):
    """A run whose scenario was edited afterwards is told apart, with the first differing row."""
    folder, manifest = scenarios.played(tmp_path, scenarios.QUADRATIC)
    edited = load(folder / "scenario.toml", ["training.lr=0.11"])
    (folder / "scenario.toml").write_text(edited.to_toml())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "scenario_sha256": edited.sha256()}))
    assert verify(folder)[1:] == [f"{name} is not what the run wrote" for name in ("scenario.toml", "manifest.json")]
    rundir.write_manifest(folder, {**rundir.read_manifest(folder), "files": rundir.file_hashes(folder)})
    assert verify(folder) == ["row 0 of the table events says lr = 0.1; played again it is 0.11"]
    edited = load(folder / "scenario.toml", ["training.lr=0.1", "model.start=5.5"])
    (folder / "scenario.toml").write_text(edited.to_toml())
    changed = {"scenario_sha256": edited.sha256(), "files": rundir.file_hashes(folder)}
    rundir.write_manifest(folder, {**manifest, **changed})
    assert verify(folder) == []  # where a model starts bears on no timeline
    problems = verify(folder, rerun=True)
    assert problems[0].startswith("model_sha256")
    assert any(problem.startswith("table events, row") for problem in problems)


def test_execute_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    """A plan for its summary alone leaves the working folder as it was."""
    path = scenarios.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    execute(load(path), None, timing_only=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_that_differ_by_a_delay_scale_train_once(tmp_path, monkeypatch):
    """Six scales: the first run trains, the others take every job and evaluation from the store, with equal models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = [
        scenarios.played(tmp_path, scenarios.BLOBS, "executor.reuse=true", f"run.delay_scale={scale}", out=f"x{scale}")[
            1
        ]
        for scale in (1, 2, 5, 10, 100, 1000)
    ]
    assert len({run["model_sha256"] for run in runs}) == 1
    assert len({run["timeline_sha256"] for run in runs}) == 6
    assert runs[0]["reuse"] == {"reused": 0, "trained": 30, "rescored": 0}
    assert [run["reuse"] for run in runs[1:]] == [{"reused": 30, "trained": 0, "rescored": 4}] * 5
    _, plain = scenarios.played(tmp_path, scenarios.BLOBS, out="plain")
    assert plain["reuse"] is None
    assert plain["model_sha256"] == runs[0]["model_sha256"]
    for run in (1, 1000):
        tables = [pl.read_parquet(tmp_path / name / "metrics.parquet") for name in (f"x{run}", "plain")]
        assert tables[0].drop("ticks", "time_s").equals(tables[1].drop("ticks", "time_s"))


def test_what_a_user_model_prints_does_not_mix_with_json(tmp_path):
    """A model that prints in its forward pass leaves stdout to the one JSON object, inline and in the pool."""
    import subprocess  # noqa: PLC0415

    (tmp_path / "talker.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    def forward(self, x):\n        print('hello from forward')\n"
        "        return super().forward(x)\ndef net():\n    return Net(8, 4)\n"
    )
    text = scenarios.BLOBS.replace('name = "mlp"\nhidden = [16]', 'name = "talker:net"')
    path = scenarios.write(tmp_path, text)
    given = ["run", str(path), "--json", "--out"]
    command = [sys.executable, "-m", "desim_fl", *given, str(tmp_path / "pool"), "--executor", "pool"]
    pool = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    for done in (pool, scenarios.commanded(*given, tmp_path / "inline", "--executor", "inline", cwd=tmp_path)):
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["updates"] == 30
        assert "hello from forward" in done.stderr


def test_a_strategy_that_fails_leaves_a_log_that_adds_up(tmp_path, monkeypatch):
    """A strategy that raises at its fifth arrival: the error is told, and what was written obeys the laws."""
    (tmp_path / "moody.py").write_text(
        "from desim_fl.strategies.fedasync import FedAsync\nclass Moody(FedAsync):\n    __slots__ = ()\n"
        "    def arrive(self, state, view, update):\n        if update.job.id == 4:\n            raise ValueError('not today')\n"
        "        return FedAsync.arrive(self, state, view, update)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = scenarios.QUADRATIC.replace('name = "fedbuff"\nbuffer_size = 2', 'name = "moody:Moody"')
    told = r"strategy Moody failed in arrive about job 4 \(client \d, from version \d\): ValueError: not today"
    with pytest.raises(RunError, match=told):
        scenarios.played(tmp_path, text)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert verify(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("clients.parquet", None),
        ("partition.parquet", None),
        ("metrics.parquet", b"PAR1"),
        ("scenario.toml", None),
        ("scenario.toml", b"junk"),
        ("model.safetensors", None),
        ("clients.parquet", b"PAR1 cut"),
        ("manifest.json", b'{"summary": 5}'),
    ],
)
def test_verify_tells_of_missing_and_broken_parts(tmp_path, name, content):
    """Whatever part is gone or damaged, verify says so in words (a problem, or a RunDirectoryError), never a traceback."""
    folder, _ = scenarios.played(tmp_path, scenarios.QUADRATIC)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert verify(folder, rerun=True) != []


def test_an_event_log_that_is_gone_or_damaged_is_named(tmp_path):
    """No parts, a cut part, a foreign table in its place, a gap between parts: a problem that names the file or the table."""
    folder, _ = scenarios.played(tmp_path, scenarios.QUADRATIC)
    part = folder / "events" / "part-00000.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:500])
    assert verify(folder)[0].startswith("events/part-00000.parquet cannot be read")
    part.unlink()
    assert verify(folder) == ["events/part-00000.parquet is missing"]
    part.write_bytes((folder / "partition.parquet").read_bytes())
    assert "schema" in verify(folder)[0]
    part.unlink()
    (folder / "events" / "part-00001.parquet").write_bytes(whole)
    assert verify(folder)[0] == "events/part-00000.parquet is missing, though later ones are there"


def test_verify_finds_a_sample_that_changed_hands(tmp_path):
    """One sample moved to another client, or all clients renumbered: both are told; CASES PT-04, RP-02."""
    folder, _ = scenarios.played(tmp_path, scenarios.BLOBS)
    table = pl.read_parquet(folder / "partition.parquet")
    owners = table["client"].to_list()
    owners[owners.index(1)] = 0
    table.with_columns(pl.Series("client", owners)).write_parquet(folder / "partition.parquet")
    assert any("partition" in problem for problem in verify(folder))
    table.with_columns(client=5 - pl.col("client")).write_parquet(folder / "partition.parquet")
    assert any("partition" in problem for problem in verify(folder))
    table.write_parquet(folder / "partition.parquet")
    assert verify(folder) == []


def _edited(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    summary = {**manifest["summary"], **changes.pop("summary", {})}
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes, "summary": summary}))
    return manifest


@pytest.mark.parametrize(
    "change",
    [
        {"summary": {"accuracy": 0.99}},
        {"summary": {"loss": 0.0}},
        {"summary": {"staleness": {"mean": 0.0, "p50": 0, "p99": 0, "max": 0}}},
        {"summary": {"leg_s": {"download": 1.0, "wait": 1.0, "compute": 1.0, "upload": 1.0}}},
        {"summary": {"utilisation": 0.4}},
        {"summary": {"updates_a_client": {"min": 1, "median": 1, "mean": 1, "max": 1}}},
        {"summary": {"bytes_up": 7}},
        {"seed": 77},
        {"scenario_name": "another"},
    ],
    ids=str,
)
def test_verify_recounts_the_summary_from_the_tables(tmp_path, change):
    """Every number of the manifest that the tables know is counted anew; a changed one is told."""
    folder, _ = scenarios.played(tmp_path, scenarios.BLOBS)
    manifest = _edited(folder, **change)
    assert any("the manifest says" in problem for problem in verify(folder))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert verify(folder) == []


@pytest.mark.parametrize(
    "name", ["busy_s", "compute_s", "download_s", "wait_s", "upload_s", "steps", "arrivals", "bytes_up"]
)
def test_verify_recounts_every_client(tmp_path, name):
    """Busy time, steps, jobs and bytes of each client add up from the event log (law 5)."""
    folder, _ = scenarios.played(tmp_path, scenarios.QUADRATIC)
    table = pl.read_parquet(folder / "clients.parquet")
    table.with_columns(pl.col(name) + 1).write_parquet(folder / "clients.parquet")
    assert any(f"the table says {name}" in problem for problem in verify(folder))


def test_verify_checks_metrics_and_seconds(tmp_path):
    """An edited accuracy in metrics and an edited time_s in events are told."""
    folder, _ = scenarios.played(tmp_path, scenarios.BLOBS)
    metrics = pl.read_parquet(folder / "metrics.parquet")
    metrics.with_columns(accuracy=pl.lit(0.99)).write_parquet(folder / "metrics.parquet")
    assert any("accuracy" in problem for problem in verify(folder))
    metrics.write_parquet(folder / "metrics.parquet")
    part = folder / "events" / "part-00000.parquet"
    table = pl.read_parquet(part)
    table.with_columns(pl.col("time_s") * 2).write_parquet(part)
    assert any("time_s" in problem for problem in verify(folder))


def test_verify_accepts_deadlines_cancelled_and_waiting_jobs(tmp_path):
    """Busy time recounts to the tick where jobs are cancelled, late or still flying, with and without a wait law."""
    sync = scenarios.QUADRATIC.replace("concurrency = 3\n", "")
    for number, cancel in enumerate(("true", "false")):
        for wait in ('wait_s = { law = "uniform", low = 0.0, high = 2.0 }\n', ""):
            rule = f'name = "fedavg"\nclients_per_round = 3\ndeadline_s = 6.0\ncancel_stragglers = {cancel}'
            text = sync.replace('name = "fedbuff"\nbuffer_size = 2', rule)
            text = text.replace('wait_s = { law = "uniform", low = 0.0, high = 2.0 }\n', wait)
            folder, manifest = scenarios.played(tmp_path, text, "run.max_time_s=200", out=f"run{number}{len(wait)}")
            assert manifest["summary"]["cancelled" if cancel == "true" else "rejected"] > 0
            assert verify(folder, rerun=True) == []


def test_plan_gives_no_number_where_training_would(tmp_path, monkeypatch):
    """A strategy that reads the local loss without saying so is refused by plan, not handed a None."""
    (tmp_path / "peeking.py").write_text(
        "from desim_fl.strategies.fedasync import FedAsync\nclass Peek(FedAsync):\n    __slots__ = ()\n"
        "    def arrive(self, state, view, update):\n        late = update.outcome.loss > 1.0\n"
        "        return FedAsync.arrive(self, state, view, update)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = scenarios.QUADRATIC.replace('name = "fedbuff"\nbuffer_size = 2', 'name = "peeking:Peek"')
    with pytest.raises(RefusedError, match="reads_outcomes"):
        scenarios.played(tmp_path, text, timing_only=True)


def test_a_model_with_hidden_state_is_refused(tmp_path, monkeypatch):
    """A counter in Python that changes results would make them depend on where jobs ran: refused before the run."""
    (tmp_path / "hidden_state.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    calls = 0\n    def forward(self, x):\n"
        "        self.calls += 1\n        return super().forward(x) * (1 + 0.1 * self.calls)\ndef net():\n    return Net(8, 4)\n"
        "class Bad(nn.Linear):\n    def forward(self, x):\n        if not self.training:\n            raise ValueError('no eval')\n"
        "        return super().forward(x)\ndef bad():\n    return Bad(8, 4)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for factory, told in (("net", "same step done twice"), ("bad", "cannot be evaluated")):
        text = scenarios.BLOBS.replace('name = "mlp"\nhidden = [16]', f'name = "hidden_state:{factory}"')
        with pytest.raises(ScenarioError, match=told):
            scenarios.played(tmp_path, text)
    assert not (tmp_path / "run").exists()


def test_the_manifest_is_written_whatever_else_fails(tmp_path, monkeypatch):
    """A report that cannot be made leaves a complete directory with a manifest that says so, and an error."""
    from desim_fl import report  # noqa: PLC0415

    def broken(_folder):
        raise ValueError("no ink")

    monkeypatch.setattr(report, "write", broken)
    with pytest.raises(DesimError, match=r"complete in .*report.html could not be written: ValueError: no ink"):
        scenarios.played(tmp_path)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["unwritten"] == ["report.html could not be written: ValueError: no ink"]
    assert manifest["model_sha256"] is not None
    assert verify(tmp_path / "run") == []


def test_of_two_runs_that_come_at_once_one_gets_the_directory(tmp_path):
    """The claim is exclusive: of many threads that ask for one directory, exactly one gets it."""
    import threading  # noqa: PLC0415

    from desim_fl import rundir  # noqa: PLC0415

    for turn in range(30):
        got, gate = [], threading.Barrier(4)

        def ask(folder=tmp_path / f"{turn}", got=got, gate=gate):
            gate.wait()
            with contextlib.suppress(RunDirectoryError), rundir.claimed(folder):
                got.append(folder)
                rundir.write_bytes(folder / "scenario.toml", b"")  # as a run does first

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1
