"""What a job is asked to do: stragglers that manage a part, and rates that change with the version."""

from __future__ import annotations

from collections import Counter

import polars as pl
import pytest
from worlds import ScriptedTrips, play

import scenarios
from desim_fl.assignment import Assignment, Stragglers
from desim_fl.core import Trip, Work
from desim_fl.errors import ScenarioError
from desim_fl.scenario import load
from desim_fl.strategies.schedules import Step
from desim_fl.world import StopRules

WHOLE = Work(epochs=5, steps=15, lr=0.1)


def managed(share: float, *, in_steps: bool = False, keys=range(4), work: Work = WHOLE) -> list[Work]:
    """What a thousand jobs of each of four clients manage, an epoch being three steps."""
    stragglers = Stragglers(7, keys, share, in_steps)
    return [stragglers.manage(client, nth, work, 3) for client in range(4) for nth in range(1000)]


def test_stragglers_are_a_share_and_do_any_part_equally_often():
    """Of 4,000 jobs 30 % within four standard deviations, 1 to 4 of 5 epochs each a quarter of them."""
    works = managed(0.3)
    part = Counter(work.epochs for work in works if work.partial)
    assert sum(part.values()) == pytest.approx(1200, abs=4 * 29)
    assert sorted(part) == [1, 2, 3, 4]
    assert all(count == pytest.approx(300, abs=4 * 15 + 29) for count in part.values())
    assert all(work.steps == 3 * (work.epochs or 0) for work in works)
    assert {work for work in works if not work.partial} == {WHOLE}


def test_stragglers_of_jobs_counted_in_steps():
    """Of 15 steps 1 to 14 are done, and the epochs that they reach into are counted."""
    works = managed(1.0, in_steps=True)
    assert {work.steps for work in works} == set(range(1, 15))
    assert all(work.epochs == -(-(work.steps or 0) // 3) and work.partial for work in works)


def test_all_or_nothing_shares_and_single_epochs():
    """A share of 0 leaves every job whole, 1 none; of one epoch there is no part."""
    assert not any(work.partial for work in managed(0.0))
    assert all(work.partial for work in managed(1.0))
    assert set(managed(1.0, work=Work(1, 3, 0.1))) == {Work(1, 3, 0.1)}
    assert not Assignment([3]).managed(0, 0, WHOLE).partial


def test_stragglers_belong_to_the_client_s_key_and_job_count():
    """A client that changes places takes its stragglers along; with a larger share the same jobs straggle, and more."""
    few, turned, many = managed(0.2), managed(0.2, keys=[3, 2, 1, 0]), managed(0.5)
    assert [few[1000 * client : 1000 * client + 1000] for client in range(4)] == [
        turned[1000 * client : 1000 * client + 1000] for client in (3, 2, 1, 0)
    ]
    assert all(more == less for less, more in zip(few, many, strict=True) if less.partial)


def test_rates_follow_the_version_a_job_starts_from():
    """A rate halved every two versions, on top of the rule for the wait: 0.1, 0.05 ... at versions 0, 2."""
    plain = Assignment([3], lr=0.1, schedule=Step(2, 0.5))
    trip = Trip(0, 2_000_000, 0, 0)
    assert [plain.rated(WHOLE, trip, version).lr for version in (0, 1, 2, 5)] == pytest.approx([0.1, 0.1, 0.05, 0.025])
    both = Assignment([3], rate=lambda wait_s: 1 / (1 + wait_s), schedule=Step(2, 0.5))
    assert both.rated(WHOLE, trip, 3).lr == pytest.approx(1 / 3 * 0.5)
    assert (plain.varies, Assignment([3]).varies) == (True, False)


def test_the_engine_hands_out_the_rate_of_the_version():
    """One client, a version an arrival: its jobs start from versions 0 to 3 with rates halved each time."""
    played = play(ScriptedTrips([1]), concurrency=1, stops=StopRules(max_updates=4))
    assert {job.work.lr for job, _ in played.executor.submitted} == {0.05}
    world = played.engine.world
    again = play(ScriptedTrips([1]), concurrency=1, stops=StopRules(max_updates=4), schedule=Step(1, 0.5))
    assert [job.work.lr for job, _ in again.executor.submitted] == pytest.approx([0.05, 0.025, 0.0125, 0.00625])
    assert not world.assignment.varies


WORLD = [
    "clients.straggler_share=0.5",
    "training.epochs=4",
    'training.lr_schedule={name="step",every_versions=4,factor=0.5}',
]


def test_stragglers_and_schedules_in_a_scenario(tmp_path):
    """Shorter jobs take less virtual time, plan agrees with the run, rates in the log fall, and a resolved file says so."""
    folder, manifest = scenarios.played(tmp_path, scenarios.QUADRATIC, *WORLD)
    plan = scenarios.played(tmp_path, scenarios.QUADRATIC, *WORLD, out="plan", timing_only=True)[1]
    whole = scenarios.played(tmp_path, scenarios.QUADRATIC, *WORLD[1:], out="whole")[1]
    assert plan["timeline_sha256"] == manifest["timeline_sha256"] != whole["timeline_sha256"]
    assert manifest["summary"]["virtual_time_s"] < whole["summary"]["virtual_time_s"]
    events = pl.concat([pl.read_parquet(path) for path in sorted(folder.rglob("events*/*.parquet"))])
    sent = events.filter(pl.col("kind") == "dispatch")
    assert sent["lr"].unique(maintain_order=True).to_list()[:3] == [0.1, 0.05, 0.025]
    assert sent["steps"].n_unique() > 4
    resolved = load(scenarios.write(tmp_path), WORLD).resolved()
    assert resolved["clients"]["straggler_share"] == 0.5
    assert resolved["training"]["lr_schedule"] == {"name": "step", "every_versions": 4, "factor": 0.5}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["clients.straggler_share=0.5", "training.epochs=1"], r"needs \[training\] epochs of at least 2"),
        (["clients.straggler_share=1.5"], "straggler_share must be at most 1"),
        (['training.lr_schedule={name="step",floor=0.5}'], 'floor must not be given with name = "step"'),
        (['training.lr_schedule={name="cosine",floor=2.0}'], "floor must be at most 1"),
        (['training.lr_schedule={name="cosin"}'], 'did you mean "cosine"'),
        (["training.lr_schedule={factor=0.5}"], 'needs the key "name"'),
        (['training.lr_schedule={name="step",every=5}'], 'has no key "every"'),
    ],
)
def test_nonsense_is_refused_with_its_key(tmp_path, overrides, said):
    """Shares, epochs and schedules that make no sense name the key and the way out."""
    with pytest.raises(ScenarioError, match=said):
        load(scenarios.write(tmp_path), overrides)
