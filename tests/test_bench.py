"""The bench measures what it says; seconds are reported, never asserted."""

from __future__ import annotations

import json

import pytest

import scenarios
from desim_fl import bench, bench_reuse
from desim_fl.bench import Figure
from desim_fl.errors import ScenarioError


def test_bench_train_compares_all_sides_in_one_run():
    """One short turn: every side has a rate and a start-up time, the JSON is one object."""
    done = scenarios.commanded("bench", "train", "--models", "mlp", "--repeats", 1, "--jobs", 2, "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    figures, choice = printed["jobs_per_second"]["mlp"], printed["auto"]["mlp"]
    assert [figure["side"] for figure in figures] == list(bench.sides())
    assert all(len(figure["rates"]) == 1 and figure["rates"][0] > 0 < figure["start_s"] for figure in figures)
    exact = {
        figure["side"]: figure["mean"]
        for figure in figures
        if figure["side"].startswith("desim-fl") and "vmap" not in figure["side"]
    }
    assert choice["share"] == exact[choice["side"]] / max(exact.values())
    assert choice["reason"].startswith("auto: ")
    rates = {figure["side"]: figure["mean"] for figure in figures if figure["side"].startswith("desim-fl")}
    near = printed["auto_near"]["mlp"]
    assert "vmap" in near["side"]
    assert near["share"] == rates[near["side"]] / max(rates.values())


def test_with_near_results_allowed_auto_takes_vmap_for_the_dense_network_only():
    """The CNN stays with what is taken without; shares are of the fastest side of ours, vmap among them."""
    rates = {"bare": 9.0, "desim-fl pool, 2": 4.0, "desim-fl vmap, 2 processes": 5.0}
    figures = [Figure(side, (rate, rate), 1.0, "up to 16 jobs at once") for side, rate in rates.items()]
    exact = bench.Choice("desim-fl pool, 2", 1.0, "measured")
    assert bench.auto_near("cnn", figures, exact) == ("desim-fl pool, 2", 0.8, "measured")
    assert bench.auto_near("mlp", figures, exact)[:2] == ("desim-fl vmap, 2 processes", 1.0)
    figures[-1] = figures[-1]._replace(note="trained one by one: it branches on data")
    assert bench.auto_near("mlp-branching", figures, exact) == ("desim-fl pool, 2", 0.8, "measured")


def test_ray_is_measured_where_it_is_asked_for():
    """Its side comes last, beside all others."""
    more = [side for side in bench.sides(ray=True) if side not in bench.sides()]
    assert [side.rpartition(", ")[0] for side in more] == ["desim-fl ray"]


def test_pfl_research_is_measured_where_it_is_installed(monkeypatch):
    """A package of that name adds its side, in as many processes as the baseline, and nothing else."""
    without = list(bench.sides())
    assert not any(side.startswith("pfl") for side in without)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    (more,) = [side for side in bench.sides() if side not in without]
    assert more == without[1].replace("bare loop", "pfl-research")


def test_ratios_are_to_the_bare_loop_in_all_processes():
    """10, 20, 30 and 50 jobs/s beside a baseline of 20 are 0.5, 1, 1.5 and 2.5."""
    rates = {"one": 10.0, "all": 20.0, "inline": 30.0, "pool": 50.0}
    text = bench.table("mlp", [Figure(side, (rate - 1, rate + 1), 1.0) for side, rate in rates.items()])
    assert [line.split("x ")[1].split()[0] for line in text.splitlines()[1:]] == ["0.50", "1.00", "1.50", "2.50"]
    assert "n = 2" in text
    assert "(sd 1.4)" in text


def test_bench_reuse_trains_the_first_run_only():
    """Six scales in one store: every job and evaluation of the later five is reused; the ratio is of executor seconds."""
    done = scenarios.commanded("bench", "reuse", "--repeats", 1, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (runs,) = found["runs"]
    assert [run["scale"] for run in runs] == [1, 2, 5, 10, 100, 1000]
    assert [(run["trained"], run["reused"]) for run in runs] == [(100, 0), *[(0, 100)] * 5]
    assert [run["rescored"] for run in runs] == [0, *[6] * 5]
    assert all(0 < run["executor_s"] <= run["play_s"] for run in runs)
    assert found["ratios"] == [sum(run["executor_s"] for run in runs) / runs[0]["executor_s"]]


def test_the_reuse_table_states_means_and_the_ratio():
    """Two repeats of two runs: 4 and 1 seconds, then 2 and 1, are ratios of 1.25 and 1.5."""
    pairs = [
        [bench_reuse.Played(1, 9, 0, 0, first, first, 1.0), bench_reuse.Played(2, 0, 9, 3, 1.0, 1.0, 1.0)]
        for first in (4.0, 2.0)
    ]
    text = bench_reuse.table(pairs)
    assert "n = 2" in text
    assert "trained    9 reused    0 rescored   0  training and evaluation   3.000 s" in text
    assert "x 1.375 (sd 0.177)" in text


def test_bench_reuse_refuses_a_scenario_without_a_network(tmp_path):
    """A scalar task has nothing to keep."""
    with pytest.raises(ScenarioError, match="must train a network"):
        bench_reuse.six_runs(scenarios.write(tmp_path))
