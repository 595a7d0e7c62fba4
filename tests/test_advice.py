"""What plan tells beyond its summary: worked by hand, and against the plans of the variants themselves."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import scenarios
from desim_fl.advice import MOST_UPDATES, Advisor, advice, settings, spread_of
from desim_fl.build import build
from desim_fl.cli import app
from desim_fl.run import execute
from desim_fl.scenario import load

ROUNDS = """
[data]
name = "quadratic"
[clients]
count = 2
seconds_per_job = 1.0
[[clients.classes]]
name = "quick"
share = 1
[[clients.classes]]
name = "slow"
share = 1
seconds_per_job = 4.0
[strategy]
name = "fedavg"
clients_per_round = 2
{more}
[run]
max_versions = 3
"""


def advised(scenario):
    """Play a plan and return its manifest and its advice."""
    advisor = Advisor()
    manifest = execute(scenario, None, timing_only=True, observe=advisor.attach)
    return manifest, advice(advisor)


def two_classes(tmp_path, more=""):
    """Rounds of one quick and one slow client: 1 s and 4 s."""
    text = (
        ROUNDS.format(more=more)
        .replace("count = 2", 'count = 2\nclass_shares = "exact"')
        .replace("seconds_per_job = 1.0\n", "", 1)
    )
    return load(
        scenarios.write(
            tmp_path, text.replace('name = "quick"\nshare = 1', 'name = "quick"\nshare = 1\nseconds_per_job = 1.0')
        )
    )


def test_rounds_of_a_quick_and_a_slow_client_by_hand(tmp_path):
    """Three rounds of 1 s and 4 s: ages 1 and 4, the quick one waits 3 s each time, each class sends half, nothing is wasted."""
    _, told = advised(two_classes(tmp_path))
    assert told["staleness_s"] == {"mean": 2.5, "p50": 1.0, "p99": 4.0, "max": 4.0}
    assert told["waits_for_others_s"] == {"mean": 1.5, "p50": 0.0, "p99": 3.0, "max": 3.0}
    assert told["wasted"] == {"client_s": 0.0, "share": 0.0}
    assert told["fairness"]["jain"] == 1.0
    half = {"clients": 1, "share_of_clients": 0.5, "share_of_updates": 0.5}
    assert told["fairness"]["classes"] == {"quick": half, "slow": half}


def test_links_in_use_by_hand(tmp_path):
    """Six downloads of 0.1 s and uploads of 0.2 s, 64 bits each, by two clients in three rounds of 4.3 s."""
    scenario = two_classes(tmp_path, "\n[network]\ndown_mbps = 0.00064\nup_mbps = 0.00032")
    manifest, told = advised(scenario)
    assert manifest["summary"]["virtual_time_s"] == pytest.approx(12.9)
    mbps = pytest.approx(6 * 64 / 12.9e6)
    assert told["links"] == {
        "down": {"clients_busy": pytest.approx(0.6 / 25.8), "mean_mbps": mbps},
        "up": {"clients_busy": pytest.approx(1.2 / 25.8), "mean_mbps": mbps},
    }


def test_links_of_clients_with_several_jobs_are_counted_not_shared_out(tmp_path):
    """One client with three jobs at a time, each 1 s up and nothing else: three transfers under way all the time, not 300 %."""
    path = scenarios.write(
        tmp_path,
        """
        data = { name = "quadratic" }
        clients = { count = 1, seconds_per_step = 0.0 }
        network = { up_mbps = 0.000064 }
        model = { name = "scalar" }
        strategy = { name = "fedasync" }
        run = { concurrency = 3, client_queue = 3, max_updates = 30 }
        """,
    )
    _, told = advised(load(path))
    assert told["links"]["up"] == {"transfers_each": 3.0, "mean_mbps": pytest.approx(3 * 0.000064)}
    assert told["links"]["down"]["transfers_each"] == 0.0


def test_cancelled_stragglers_are_waste(tmp_path):
    """A deadline of 2 s cancels the slow client in two of three rounds: 4 of 7 client seconds are waste; all updates are quick."""
    _, told = advised(two_classes(tmp_path, "deadline_s = 2.0\ncancel_stragglers = true"))
    assert told["wasted"] == {"client_s": 4.0, "share": pytest.approx(4 / 7)}
    assert told["fairness"]["classes"]["quick"]["share_of_updates"] == 1.0
    assert told["fairness"]["jain"] == 0.5
    changed = [found["changed"] for found in told["what_if"]]
    assert changed == [
        {},
        {"strategy.clients_per_round": 1},
        {"strategy.deadline_s": 1.0},
        {"strategy.deadline_s": 4.0},
    ]


def test_variants_are_the_plans_of_their_scenarios(tmp_path):
    """Each variant's rates and staleness are those of a plan of the scenario with that setting, written down as a file."""
    scenario = load(scenarios.write(tmp_path))
    manifest, told = advised(scenario)
    assert told["what_if"][0]["updates_a_second"] == manifest["summary"]["updates_a_second"]
    assert [found["changed"] for found in told["what_if"]] == [{}, {"run.concurrency": 1}, {"strategy.buffer_size": 1}, {"strategy.buffer_size": 4}]  # fmt: skip
    for found in told["what_if"]:
        sets = [f"{key}={value}" for key, value in found["changed"].items()]
        summary = execute(load(scenarios.write(tmp_path), sets), None, timing_only=True)["summary"]
        assert found["updates_a_second"] == summary["updates_a_second"]
        assert found["staleness"]["mean"] == pytest.approx(summary["staleness"]["mean"])
        assert found["staleness"]["p99"] == summary["staleness"]["p99"]
        assert found["rejected"] == summary["rejected"]


def test_variants_are_bounded(tmp_path):
    """However long the run, a variant plays 2,000 updates at most; doubled settings stay within the clients there are."""
    scenario = load(scenarios.write(tmp_path), ["run.max_updates=1000000000"])
    advisor = Advisor()
    built = build(load(scenarios.write(tmp_path), ["run.max_updates=10"]), timing_only=True)
    advisor.session = type(
        "Played",
        (),
        {
            "ticks": 0,
            "built": type(built)(
                scenario, *[getattr(built, name) for name in built.__dataclass_fields__ if name != "scenario"]
            ),
        },
    )()
    told = advice(advisor)
    assert {found["updates"] for found in told["what_if"]} == {MOST_UPDATES}
    assert {"run.concurrency": 6} not in [changed for changed, _ in settings(scenario)]


def test_quantiles_are_values_that_came():
    """Mean, median, 99th percentile and maximum of 1 to 200; nothing of nothing."""
    values = [float(value) for value in range(200, 0, -1)]
    import numpy as np  # noqa: PLC0415

    assert spread_of(np.array(values)) == {"mean": 100.5, "p50": 100.0, "p99": 198.0, "max": 200.0}
    assert spread_of(np.zeros(0)) == {"mean": None, "p50": None, "p99": None, "max": None}


def test_plan_prints_its_advice_and_leaves_it_out(tmp_path):
    """In words, under --json, and not with --no-advice; the timeline is the same."""
    path = str(scenarios.write(tmp_path))
    words = CliRunner().invoke(app, ["plan", path])
    assert words.exit_code == 0, words.output
    assert "age of a model at its update" in words.output
    assert "run.concurrency = 1" in words.output
    told = json.loads(CliRunner().invoke(app, ["plan", path, "--json"]).stdout)
    plain = json.loads(CliRunner().invoke(app, ["plan", path, "--json", "--no-advice"]).stdout)
    assert told["timeline_sha256"] == plain["timeline_sha256"]
    assert set(told) - set(plain) == {"advice"}
    assert told["advice"]["what_if"][0]["changed"] == {}
