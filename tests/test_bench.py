"""The bench measures what it says; seconds are reported, never asserted."""

from __future__ import annotations

import json
import subprocess
import sys

from desim_fl import bench
from desim_fl.bench import Figure


def test_bench_train_compares_all_sides_in_one_run():
    """One short turn: every side has a rate and a start-up time, the JSON is one object."""
    command = [sys.executable, "-m", "desim_fl", "bench", "train", "--models", "mlp", "--repeats", "1", "--jobs", "2"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["jobs_per_second"]["mlp"]
    assert [figure["side"] for figure in figures] == list(bench.sides())
    assert all(len(figure["rates"]) == 1 and figure["rates"][0] > 0 < figure["start_s"] for figure in figures)


def test_ray_is_measured_where_it_is_asked_for():
    """Its side comes last, beside all others."""
    assert list(bench.sides(ray=True))[:-1] == list(bench.sides())
    assert list(bench.sides(ray=True))[-1].startswith("desim-fl ray, ")


def test_ratios_are_to_the_bare_loop_in_all_processes():
    """10, 20, 30 and 50 jobs/s beside a baseline of 20 are 0.5, 1, 1.5 and 2.5."""
    rates = {"one": 10.0, "all": 20.0, "inline": 30.0, "pool": 50.0}
    text = bench.table("mlp", [Figure(side, (rate - 1, rate + 1), 1.0) for side, rate in rates.items()])
    assert [line.split("x ")[1].split()[0] for line in text.splitlines()[1:]] == ["0.50", "1.00", "1.50", "2.50"]
    assert "n = 2" in text
    assert "(sd 1.4)" in text
