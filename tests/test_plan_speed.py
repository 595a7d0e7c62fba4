"""What a job of a timing-only run may cost, in Python calls and bytes instead of seconds, and the bench that measures seconds."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

from desim_fl import bench_links, bench_plan, bench_report
from desim_fl.bench_plan import Case, Figure
from desim_fl.build import build
from desim_fl.cli import app
from desim_fl.eventlog import ParquetSink
from desim_fl.run import Session

CALLS_A_JOB = 45  # measured 34 to 40; a hundred more in this list was 9 times as slow


def _calls(case: Case, jobs: int, folder) -> Counter:
    """Python functions entered while a case plays and writes its log, by file and name."""
    session, found = Session(build(bench_plan.scenario(case, jobs), timing_only=True), folder), Counter()

    def count(frame, event, _):
        if event == "call":
            found[frame.f_code.co_filename.rsplit("/", 1)[-1], frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        session.play()
    finally:
        sys.setprofile(None)
    return found


def _calls_a_job(case: Case, folder) -> float:
    """Calls that each further job costs, those that every run makes once left out."""
    bench_plan.planned(case, 100)  # what is imported on first use
    short, long = (_calls(case, jobs, folder / str(jobs)).total() for jobs in (6_000, 12_000))
    return (long - short) / 6_000


@pytest.mark.parametrize("strategy", ["fedasync", "fedbuff"])
@pytest.mark.parametrize("concurrency", [100, 1_000])
def test_a_job_costs_a_bounded_number_of_calls(strategy, concurrency, tmp_path):
    """At 100 and at 1,000 in flight, whichever strategy, log written: no more than the budget."""
    assert _calls_a_job(Case(strategy, concurrency), tmp_path) <= CALLS_A_JOB


def test_calls_do_not_grow_with_the_population(tmp_path):
    """100,000 clients cost no more calls a job than 1,000 do, within a tenth."""
    few, many = (
        _calls_a_job(Case("fedbuff", 100, clients=clients), tmp_path / str(clients)) for clients in (1_000, 100_000)
    )
    assert many <= 1.1 * few


def test_calls_do_not_grow_with_the_delays(tmp_path):
    """Delays a million times as long make the same calls: nothing is done while time passes."""
    plain, long = (
        _calls(Case("fedbuff", 100, delay_scale=scale), 3_000, tmp_path / str(scale)).total() for scale in (1.0, 1e6)
    )
    assert abs(long - plain) <= 10


def test_memory_of_a_run_is_bounded_by_its_clients_not_by_its_jobs(tmp_path):
    """With 100,000 clients the whole of a run, log and world included, stays below 200 bytes a client and 25 MB."""
    bench_plan.planned(Case("fedbuff", 100), 100)
    gc.collect()
    tracemalloc.start()
    try:
        session = Session(
            build(bench_plan.scenario(Case("fedbuff", 100, clients=100_000), 20_000), timing_only=True), tmp_path
        )
        session.play()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 25e6 + 200 * 100_000


def test_the_log_is_written_while_it_is_measured(tmp_path, monkeypatch):
    """The bench plays what a plan plays: every job it counts has its rows in the event log."""
    rows = Counter()
    monkeypatch.setattr(ParquetSink, "__call__", lambda _, segment: rows.update(segment.rows["kind"].tolist()))
    bench_plan.planned(Case("fedasync", 10, clients=20), 500)
    assert rows[4] == 500
    assert rows[6] == 500


def test_bare_simpy_plays_every_job():
    """The baseline ends after the number of jobs asked for, and takes some time."""
    assert bench_plan.bare_simpy(1_000, 7) > 0


def test_ratios_and_costs_are_taken_turn_by_turn():
    """A case at 60 and 50 beside SimPy at 100 and 200 is 0.6 and 0.25; one at half the speed of another costs twice."""
    rates = {case.name: (60.0, 50.0) for case in bench_plan.CASES}
    rates[Case("fedbuff", 100, clients=bench_plan.MANY).name] = (30.0, 25.0)
    bare = {bench_plan.bare_name(number): (100.0, 200.0) for number in (100, 1_000)}
    figures = [Figure(side, values) for side, values in (bare | rates).items()]
    ratios = bench_plan.ratios(figures)
    assert ratios[Case("fedasync", 1_000).name].rates == (0.6, 0.25)
    costs = list(bench_plan.costs(figures).values())
    assert [cost.rates for cost in costs] == [(2.0, 2.0), (1.0, 1.0)]
    text = bench_plan.table(1_000, figures, 250.0)
    assert "x 0.425 (sd 0.247) of bare SimPy" in text
    assert "cost a job, 1,000,000 clients over 1,000: 2.00" in text
    assert "250 MB" in text


def test_bench_plan_prints_one_object():
    """One short turn of every side, a million clients included, within the memory it may take."""
    command = [sys.executable, "-m", "desim_fl", "bench", "plan", "--repeats", "1", "--jobs", "300", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [figure["side"] for figure in found["jobs_per_cpu_second"]] == list(bench_plan.sides(bench_plan.CASES))
    assert all(figure["rates"][0] > 0 for figure in found["over_bare_simpy"] + found["cost"])
    assert 50 < found["peak_megabytes"] <= 400
    assert len(found["links"]) == 2 * len(bench_links.IN_FLIGHT)
    assert all(figure["mean"] > 0 for figure in found["links"])


def test_bench_report_measures_the_page_of_a_long_run():
    """One page of 300 jobs: four rows a job and those of versions, and figures that a process has; in words, the same."""
    done = CliRunner().invoke(app, ["bench", "report", "--repeats", "1", "--jobs", "300", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (page,) = found["pages"]
    assert (found["n"], found["jobs"]) == (1, 300)
    assert found["rows"] > 4 * 300
    assert page["cpu_s"] > 0.1
    assert 50 < page["peak_megabytes"] < 1000
    assert 0.5 < page["page_megabytes"] < 5
    told = bench_report.table(
        bench_report.Found(300, 1234, [bench_report.Writing(2, 3, 250, 1), bench_report.Writing(4, 3, 250, 1)])
    )
    assert told.startswith("report of 1,234 event rows (300 jobs), n = 2")
    assert "written in        3.00 s (sd 1.41)" in told


def test_the_baseline_of_shared_links_is_max_min_fair():
    """On 12 bit/s caps of 1, 2, 9 and 9 leave 4.5 for each of the others; where the caps fit, each has its own."""
    assert bench_links.rates(np.array([9.0, 1.0, 9.0, 2.0]), 12.0).tolist() == [4.5, 1.0, 4.5, 2.0]
    assert bench_links.rates(np.array([1.0, 2.0]), 3.0).tolist() == [1.0, 2.0]


def test_both_sides_of_the_links_bench_play_the_same_transfers():
    """The same transfers are drawn every time, and each side takes some time for them."""
    load = bench_links.Load.drawn(40, 10)
    assert load == bench_links.Load.drawn(40, 10)
    assert all(play(load, 10, 20) > 0 for play in bench_links.SIDES.values())
