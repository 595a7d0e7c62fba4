"""desim-fl from Python."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from test_docs import blocks

import desim_fl
import scenarios
from desim_fl.errors import RefusedError, RunDirectoryError, ScenarioError
from desim_fl.run import execute
from desim_fl.scenario import Scenario, load

ROOT = Path(__file__).resolve().parent.parent
BY_HAND = {
    "name": "<b>by hand</b>",
    "data": {"name": "quadratic"},
    "clients": {"count": 3},
    "run": {"max_updates": 20, "concurrency": 2, "eval_every_versions": 1},
}


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_in_the_docs_run_as_they_stand(tmp_path, monkeypatch, number):
    """Each Python example of the docs, in an empty folder beside the shipped scenarios."""
    (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
    monkeypatch.chdir(tmp_path)
    source = blocks((ROOT / "desim_fl" / "docs" / "python.md").read_text(), "python")[number]
    exec(compile(source, "python.md", "exec"), {})  # noqa: S102


def test_a_run_from_python_is_the_run_of_the_command_line(tmp_path):
    """The same hashes as ``execute``; tables are those of the directory; a plan has the same timeline and no tables."""
    path = scenarios.write(tmp_path, scenarios.QUADRATIC)
    run = desim_fl.run(path, tmp_path / "a", overrides=["run.max_updates=9"], seed=4)
    other = execute(load(path, ["run.max_updates=9"], 4), tmp_path / "b")
    assert (run.manifest["timeline_sha256"], run.manifest["model_sha256"]) == (
        other["timeline_sha256"],
        other["model_sha256"],
    )
    assert run.summary["updates"] == (run.events["kind"] == "arrive").sum() == 9
    for name in ("metrics", "clients", "partition", "wall"):
        assert getattr(run, name).equals(pl.read_parquet(tmp_path / "a" / f"{name}.parquet"))
    assert run.metrics is run.metrics
    plan = desim_fl.plan(path, overrides=["run.max_updates=9"], seed=4)
    assert plan.manifest["timeline_sha256"] == run.manifest["timeline_sha256"]
    with pytest.raises(RunDirectoryError, match="out="):
        _ = plan.events
    assert desim_fl.load_run(tmp_path / "a").manifest == run.manifest
    with pytest.raises(RunDirectoryError):
        desim_fl.load_run(tmp_path)


def test_a_run_shows_itself_in_a_notebook(tmp_path):
    """Headline numbers and the report's place; what a scenario is called cannot write HTML."""
    run = desim_fl.run(BY_HAND, tmp_path / "run")
    shown = run._repr_html_()
    assert "<td>finished</td>" in shown
    assert "<td>20</td>" in shown
    assert str(tmp_path / "run" / "report.html") in shown
    assert "&lt;b&gt;by hand" in shown
    assert "<b>by hand" not in shown


def test_a_dict_takes_overrides_and_a_seed_and_stays_as_it_is():
    """Tables, the same tables as a Scenario, and a file that says the same give one timeline."""
    before = copy.deepcopy(BY_HAND)
    plans = [
        desim_fl.plan(what, overrides=["clients.wait_s={law='exponential',mean=1.0}"], seed=3)
        for what in (BY_HAND, Scenario.model_validate(BY_HAND))
    ]
    whole = {**BY_HAND, "clients": {"count": 3, "wait_s": {"law": "exponential", "mean": 1.0}}}
    plans.append(desim_fl.plan({**whole, "run": {**BY_HAND["run"], "seed": 3}}))
    slow = {**whole, "network": {"latency_s": 9.0}}
    plans += [desim_fl.plan(what, unset=["network"], seed=3) for what in (slow, Scenario.model_validate(slow))]
    assert len({plan.manifest["timeline_sha256"] for plan in plans}) == 1
    assert plans[0].manifest["seed"] == 3
    assert before == BY_HAND
    usual = {"data": {"name": "blobs"}, "parameters": {"num_clients": 4, "num_rounds": 3, "clients_per_round": 2}}
    assert desim_fl.plan(usual).summary["updates"] == 6
    assert repr(plans[0]) == "<Run <b>by hand</b>: finished, 20 updates, not written>"


def test_mistakes_are_scenario_errors(tmp_path):
    """A dict that is no scenario is told every mistake by table and key, an override by its own words; so is a plan that cannot be."""
    with pytest.raises(ScenarioError, match=r"^scenario: \[clients\] is missing") as caught:
        desim_fl.plan({"run": {"max_updates": 3, "concurency": 2}})
    assert 'has no key "concurency"; did you mean "concurrency"?' in str(caught.value)
    with pytest.raises(ScenarioError, match=r"--set run.max_updates=0: \[run\] max_updates"):
        desim_fl.plan(BY_HAND, overrides=["run.max_updates=0"])
    early = {**BY_HAND, "data": {"name": "blobs"}, "training": {"epochs": 4, "patience": 1}}
    with pytest.raises(RefusedError, match="patience reads trained values"):
        desim_fl.plan(early)
    assert desim_fl.plan(early, assume_full_work=True).manifest["assumed_full_work"]


def test_importing_desim_fl_is_light():
    """``import desim_fl`` loads no other package; ``run`` is a module and what runs, whichever was imported first."""
    code = (
        "import sys, desim_fl\n"
        "assert not {'numpy', 'polars', 'torch', 'pydantic', 'simpy'} & set(sys.modules)\n"
        "assert callable(desim_fl.run) and callable(desim_fl.plan) and desim_fl.__version__\n"
        "from desim_fl.run import execute\nassert callable(desim_fl.run) and desim_fl.run.execute is execute\n"
        "assert 'torch' not in sys.modules and 'polars' not in sys.modules\n"
        "try:\n    desim_fl.nothing\nexcept AttributeError as error:\n    assert 'nothing' in str(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
