"""The same scenario gives the same bits: processes, hash seeds, processors, with and without training."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import scenarios
from desim_fl.run import execute
from desim_fl.scenario import load

QUICKSTART = Path(__file__).resolve().parent.parent / "scenarios" / "quickstart.toml"
GOLDEN = {
    "quickstart": "087dad07ee0baeccaf841f954e858519098fa5652b0a8bf6ff36938587bac07e",
    "quadratic": "59a54d38caf47786b0eb820ef710ea22a5a05f6ce2c8eebad121823fea192710",
}
CPU_NAMES = """
import json, numpy
m = numpy._core._multiarray_umath
print(json.dumps([[n for n in m.__cpu_dispatch__ if m.__cpu_features__.get(n)], numpy.__version__]))
"""


def process(arguments: list[str], **environment: str) -> dict:
    """Run the command line in a fresh process and return its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "desim_fl", *arguments, "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def dispatched_features() -> list[str]:
    """Names of the CPU features beyond the baseline that this NumPy would use here."""
    done = subprocess.run([sys.executable, "-c", CPU_NAMES], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)[0]


@pytest.mark.parametrize("name", ["quickstart", "quadratic"])
def test_the_golden_timelines_hold(name, tmp_path):
    """The committed hashes of two scenarios: whoever changes the timeline must change them knowingly."""
    path = QUICKSTART if name == "quickstart" else scenarios.write(tmp_path)
    found = execute(load(path), None, timing_only=True)
    assert found["timeline_sha256"] == GOLDEN[name], f"timeline changed; numpy {np.__version__}"


def test_the_golden_timelines_hold_with_cpu_features_masked():
    """Timelines do not depend on which vector instructions NumPy uses (RP-05, DESIGN 3)."""
    names = dispatched_features()
    masked = {"NPY_DISABLE_CPU_FEATURES": " ".join(names)}
    check = subprocess.run(
        [sys.executable, "-c", CPU_NAMES], capture_output=True, text=True, check=True, env={**os.environ, **masked}
    )
    assert json.loads(check.stdout)[0] == [], "the features were not really masked"
    assert process(["plan", str(QUICKSTART)], **masked)["timeline_sha256"] == GOLDEN["quickstart"]


def test_rp_01_plan_and_run_agree_in_fresh_processes_under_any_hash_seed(tmp_path):
    """Plan and run, three processes, hash seeds 0, 1, 2: one timeline, one model, one partition."""
    path = str(scenarios.write(tmp_path, scenarios.BLOBS))
    runs = [
        process(["run", path, "--out", str(tmp_path / f"run{seed}")], PYTHONHASHSEED=seed) for seed in ("0", "1", "2")
    ]
    planned = process(["plan", path], PYTHONHASHSEED="2")
    assert len({run["timeline_sha256"] for run in [*runs, planned]}) == 1
    assert len({run["model_sha256"] for run in runs}) == 1
    assert len({run["partition_sha256"] for run in [*runs, planned]}) == 1
    assert planned["model_sha256"] is planned["accuracy"] is planned["loss"] is None
    events = [(tmp_path / f"run{seed}" / "events" / "part-00000.parquet").read_bytes() for seed in "012"]
    assert events[0] == events[1] == events[2]


def test_rp_01_global_generators_are_neither_read_nor_changed(tmp_path):
    """Seeding random, numpy and torch before a run changes nothing, and the run leaves their states as they were."""
    import torch  # noqa: PLC0415

    hashes = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (the legacy generator is what a user might have seeded)
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        _, manifest = scenarios.played(tmp_path, scenarios.BLOBS, out=f"run{seed}")
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        assert before == after
        hashes.append((manifest["timeline_sha256"], manifest["model_sha256"]))
    assert hashes[0] == hashes[1]


def test_two_runs_in_one_process_do_not_see_each_other(tmp_path):
    """A run between two equal runs changes nothing; CASES RP-01."""
    _, first = scenarios.played(tmp_path, scenarios.BLOBS, out="a")
    scenarios.played(tmp_path, scenarios.BLOBS, "run.seed=9", "training.lr=0.3", out="b")
    _, second = scenarios.played(tmp_path, scenarios.BLOBS, out="c")
    for name in ("timeline_sha256", "model_sha256", "partition_sha256"):
        assert first[name] == second[name]


def test_the_resolved_scenario_reruns_to_the_same_result(tmp_path):
    """scenario.toml of a run directory, played again, gives equal hashes."""
    folder, first = scenarios.played(tmp_path, scenarios.BLOBS, "strategy.alpha=0.4")
    again = execute(load(folder / "scenario.toml"), tmp_path / "again")
    for name in ("scenario_sha256", "timeline_sha256", "model_sha256", "partition_sha256"):
        assert first[name] == again[name]


def test_the_seed_and_each_kind_of_heterogeneity_change_the_timeline(tmp_path):
    """EV-09d: seed, device speeds, jitter, waits, links and scale each give another timeline; training rate does not."""
    base = execute(load(scenarios.write(tmp_path)), None, timing_only=True)["timeline_sha256"]
    changes = [
        "run.seed=8",
        "clients.device_factor=1",
        "clients.jitter_factor=1",
        "clients.wait_s=1",
        "network.latency_jitter_factor=1",
        "network.down_mbps=0.002",
        "network.up_mbps=1",
        "network.latency_s=0.06",
        "clients.seconds_per_step=0.25",
        "run.delay_scale=2",
        "training.epochs=3",
    ]
    hashes = [
        execute(load(scenarios.write(tmp_path), [change]), None, timing_only=True)["timeline_sha256"]
        for change in changes
    ]
    assert len({base, *hashes}) == len(changes) + 1
    same = execute(load(scenarios.write(tmp_path), ["training.lr=0.3"]), None, timing_only=True)
    assert same["timeline_sha256"] == base


@pytest.mark.parametrize("strategy", ["fedasync", "fedbuff", "fedavg"])
def test_2_19_9_whole_delay_scales_leave_the_model_bit_identical(tmp_path, strategy):
    """All durations times 1000: virtual time times 1000 exactly, same order, same model bits (no rule reads seconds)."""
    text = scenarios.QUADRATIC.replace("concurrency = 3\n", "" if strategy == "fedavg" else "concurrency = 3\n")
    text = text.replace('name = "fedbuff"\nbuffer_size = 2', f'name = "{strategy}"')
    changes = ["strategy.clients_per_round=3"] if strategy == "fedavg" else []
    _, one = scenarios.played(tmp_path, text, *changes, out="one")
    _, thousand = scenarios.played(tmp_path, text, *changes, "run.delay_scale=1000", out="thousand")
    assert one["model_sha256"] == thousand["model_sha256"]
    assert round(one["summary"]["virtual_time_s"] * 1e6) * 1000 == round(thousand["summary"]["virtual_time_s"] * 1e6)


def test_2_19_10_permuting_clients_with_their_keys_leaves_the_trajectory(tmp_path):
    """Client numbers are names: permuted with keys, data and speeds, the model and the times stay (round-robin)."""
    keys = {"out": "plain"}, {"out": "permuted"}
    plain = "clients.keys=[0,1,2,3,4,5]"
    permuted = "clients.keys=[4,2,0,5,1,3]"
    select = 'run.selection="round_robin"'
    _, first = scenarios.played(tmp_path, scenarios.BLOBS, plain, select, **keys[0])
    _, second = scenarios.played(tmp_path, scenarios.BLOBS, permuted, select, **keys[1])
    assert first["model_sha256"] == second["model_sha256"]
    assert first["summary"]["virtual_time_s"] == second["summary"]["virtual_time_s"]
    assert first["timeline_sha256"] != second["timeline_sha256"]
