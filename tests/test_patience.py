"""Early stopping: of local training, which shortens virtual time, and of the run."""

from __future__ import annotations

import json
import math

import polars as pl
import pytest
import torch
import worlds
from typer.testing import CliRunner

import scenarios
from desim_fl.cli import app
from desim_fl.core import Promise, Score
from desim_fl.errors import RefusedError, ScenarioError
from desim_fl.learning.local import EpochLosses
from desim_fl.patience import Best
from desim_fl.run import execute, resume
from desim_fl.scenario import load
from desim_fl.verify import verify
from desim_fl.world import Evaluations, Monitor, StopRules

SEQUENCE = [0.1, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3, 0.9]
STOPPING = ("training.epochs=8", "training.lr=1.5", "training.patience=1", "run.max_updates=16", "executor.name=inline")


# ---- of the run


def judged(monkeypatch, values, patience=3, measure="accuracy"):
    """A run with one evaluation a version, whose validation scores are these."""

    def evaluate(self, model):
        loss, accuracy = (values[model.version], 0.5) if measure == "loss" else (0.5, values[model.version])
        return Promise(lambda: (Score("test", 0.0, 1.0, 1), Score("validation", loss, accuracy, 1)))

    monkeypatch.setattr(worlds.FloatExecutor, "evaluate", evaluate)
    return worlds.play(
        worlds.ScriptedTrips([3.0, 4.0, 5.0]),
        concurrency=2,
        stops=StopRules(max_updates=len(values) - 1),
        evaluations=Evaluations(1, None),
        monitor=Monitor(patience, measure),
    )


def test_re_05_a_run_stops_at_the_eighth_evaluation(monkeypatch):
    """RE-05: patience 3 on .1 .2 .2 .2 .3 .3 .3 .3 stops at the 8th evaluation; the best is .3, from the 5th.

    What is in flight then is not applied: the stop row is the last one, and the jobs count as in flight.
    """
    played = judged(monkeypatch, SEQUENCE)
    engine = played.engine
    assert (engine.why, engine.model.version, len(played.evaluations)) == ("patience", 7, 8)
    assert engine.monitored.best == Best(0.3, 5, 4, 8)
    last = played.rows()[-1]
    assert (last[1], last[4]) == ("stop", 7)
    assert (len(engine.flights), engine.ledger.dispatched, engine.ledger.arrived) == (2, 9, 7)
    assert last[0] == played.arrivals()[-1][0]


@pytest.mark.parametrize(
    ("values", "measure", "version"),
    [
        ([0.1, math.nan, math.nan, math.nan, 0.5], "accuracy", 3),  # NaN is no improvement
        ([math.nan, math.nan, math.nan, 0.1, 0.2], "accuracy", 2),  # even where nothing was before
        ([5.0, 4.0, 4.0, 3.0, 3.5, 9.0, math.inf, 0.0], "loss", 6),
        ([0.1, 0.2, 0.3, 0.4], "accuracy", 3),  # never: the run ends otherwise
    ],
)
def test_re_05_what_counts_as_better(monkeypatch, values, measure, version):
    """RE-05: accuracy is better when higher, loss when lower; equal values and NaN are no improvement."""
    played = judged(monkeypatch, values, measure=measure)
    assert played.engine.model.version == version
    assert played.engine.why == ("max_updates" if values[-1] == 0.4 else "patience")


def test_re_05_a_real_run_stops_on_its_validation_part_and_resumes(tmp_path):
    """RE-05: the best evaluation stands in the manifest and is that of the table; an interrupted run ends alike."""
    options = ("run.patience=2", "run.eval_every_versions=2", "run.max_updates=400", "checkpoint.every_versions=3")
    folder, manifest = scenarios.played(tmp_path, scenarios.BLOBS, *options, "executor.name=inline", "training.lr=2.0")
    scores = pl.read_parquet(folder / "metrics.parquet").filter(pl.col("split") == "validation")
    best = manifest["summary"]["best"]
    assert manifest["summary"]["stop"] == "patience"
    assert best["value"] == scores["accuracy"].max() == scores["accuracy"][best["evaluation"] - 1]
    assert len(scores) == best["evaluation"] + 2
    assert verify(folder) == []
    again = interrupted(
        tmp_path, [*options, "executor.name=inline", "training.lr=2.0"], manifest["summary"]["updates"] - 2
    )
    same_run(folder, manifest, *again)


# ---- of local training


def test_re_05_epochs_worked_by_hand():
    """RE-05: losses 3, 2, 2.5, 2, 1, 5 with patience 2 stop after the fourth epoch; a better one in between starts anew."""

    def epochs_of(patience, means):
        watch, losses = EpochLosses(patience), []
        for epoch, mean in enumerate(means):
            if watch.ended(epoch, losses):
                return epoch
            losses += [torch.tensor(mean - 0.5), torch.tensor(mean + 0.5)]
            assert not watch.ended(epoch, losses)
        return len(means)

    assert epochs_of(2, [3, 2, 2.5, 2, 1, 5]) == 4
    assert epochs_of(2, [3, 2, 2.5, 1.9, 2, 1.8]) == 6
    assert epochs_of(1, [1, math.nan, 0.5]) == 2
    assert epochs_of(None, [1, 2, 3, 4]) == 4
    assert epochs_of(3, [1, 2, 3]) == 3  # as many epochs as patience: it cannot fire


def stopping(monkeypatch, ends, **options):
    """A world in which jobs of five epochs, two seconds each, stop after the epoch that ``ends`` gives by client."""
    asked = []

    def stopped(self, job, steps):
        asked.append((job.id, steps))
        return ends[job.client] is not None and steps >= ends[job.client]

    monkeypatch.setattr(worlds.FloatExecutor, "stopped", stopped, raising=False)
    played = worlds.play(
        worlds.ScriptedTrips([10.0] * len(ends), download=1.0, upload=0.5),
        epochs=5,
        patience=1,
        concurrency=len(ends),
        **options,
    )
    return played, asked


def test_a_job_that_stops_early_takes_less_virtual_time(monkeypatch):
    """After three of five epochs of 2 s: computed at 1 + 6 s, arrived half a second later; who never stops takes all 10 s."""
    played, asked = stopping(monkeypatch, [3, None], stops=StopRules(max_updates=2))
    assert [row[:4] for row in played.rows("downloaded", "computed", "arrive")] == [
        (1.0, "downloaded", 0, 0),
        (1.0, "downloaded", 1, 1),
        (7.0, "computed", 0, 0),
        (7.5, "arrive", 0, 0),
        (8.5, "downloaded", 0, 2),
        (11.0, "computed", 1, 1),
        (11.5, "arrive", 1, 1),
    ]
    assert asked == [
        (0, 2),
        (1, 2),
        (0, 3),
        (1, 3),
        (1, 4),
    ]  # from the first epoch that can end it, up to the last but one
    assert played.sink.notes("reason").count("stopped early") == 1
    steps = [
        value for value, kind in zip(played.sink.notes("steps"), played.rows(), strict=True) if kind[1] == "arrive"
    ]
    assert steps == [3, 5]
    account = played.engine.usage.accounts
    assert account[0].compute == (6 + 3) * worlds.S  # and its next job has computed since 8.5 s
    assert account[1].compute == 10 * worlds.S


def test_a_job_that_is_lost_before_it_stops_is_lost(monkeypatch):
    """A loss at 4 s comes before the end of the third epoch at 7 s; one at 8 s comes too late, after the arrival."""
    for lost, kinds in ((4.0, ["lose"]), (8.0, ["arrive"])):
        monkeypatch.setattr(worlds.FloatExecutor, "stopped", lambda self, job, steps: steps >= 3, raising=False)
        trips = worlds.ScriptedTrips([10.0], download=1.0, upload=0.5, lost={(0, 0): (lost, "gone")})
        played = worlds.play(trips, epochs=5, patience=1, concurrency=1, stops=StopRules(max_ticks=8 * worlds.S))
        assert [row[1] for row in played.rows("lose", "arrive")] == kinds


def played(folder, name, *overrides):
    """The small scenario of blobs with early stops."""
    return scenarios.played(folder, scenarios.BLOBS, *STOPPING, *overrides, out=name)


def interrupted(folder, overrides, updates):
    """The same, interrupted after so many updates, and resumed."""

    def watch(session):
        if session.engine.ledger.arrived >= updates and session.engine.between_instants:
            raise KeyboardInterrupt

    place = folder / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        execute(load(scenarios.write(folder, scenarios.BLOBS), overrides), place, watch=watch)
    assert json.loads((place / "manifest.json").read_text())["status"] == "interrupted"
    manifest, notes = resume(place)
    assert notes == []
    assert manifest["resumed_at_s"] is not None
    return place, manifest


def same_run(folder, manifest, place, again):
    """Model, timeline and tables are the same."""
    for name in ("timeline_sha256", "model_sha256"):
        assert again[name] == manifest[name]
    for name in ("events/*", "metrics", "clients"):
        assert pl.read_parquet(folder / f"{name}.parquet").equals(
            pl.read_parquet(place / f"{name}.parquet"), null_equal=True
        )


def test_every_executor_stops_jobs_alike_and_a_resumed_run_too(tmp_path):
    """Some jobs stop; inline, threads, pool and vmap (one by one) agree in every bit, and so does a run that was resumed."""
    folder, manifest = played(tmp_path, "inline")
    events = pl.read_parquet(folder / "events/*.parquet")
    arrivals = events.filter(pl.col("kind") == "arrive").join(events.filter(pl.col("kind") == "dispatch"), on="job")
    early = arrivals.filter(pl.col("steps") < pl.col("steps_right"))
    assert 0 < len(early) < len(arrivals)
    assert early["reason"].to_list() == ["stopped early"] * len(early)
    assert verify(folder) == []
    for name in ("threads", "pool", "vmap"):
        other = played(tmp_path, name, f"executor.name={name}", *(["executor.workers=2"] if name != "vmap" else []))[1]
        assert (other["timeline_sha256"], other["model_sha256"]) == (
            manifest["timeline_sha256"],
            manifest["model_sha256"],
        )
    same_run(folder, manifest, *interrupted(tmp_path, [*STOPPING, "checkpoint.every_versions=2"], 9))
    never = played(tmp_path, "never", "training.patience=7")[1]
    assert never["timeline_sha256"] != manifest["timeline_sha256"]


def test_outcomes_that_stopped_are_kept_and_used_again(tmp_path):
    """With the store of outcomes a second run trains nothing and is the same."""
    first, second = (played(tmp_path, name, "executor.reuse=true")[1] for name in ("one", "two"))
    assert second["reuse"]["trained"] == 0
    assert second["model_sha256"] == first["model_sha256"] == played(tmp_path, "three")[1]["model_sha256"]


def test_plan_refuses_what_only_training_knows(tmp_path):
    """``plan`` names the key and the way out; with --assume-full-work the timeline is that of no patience, and says so."""
    path = scenarios.write(tmp_path, scenarios.BLOBS)
    for key in ("training.patience=1", "run.patience=1"):
        with pytest.raises(RefusedError, match=rf"{key[:-2]} reads trained values.*--assume-full-work"):
            execute(load(path, ["training.epochs=4", key]), None, timing_only=True)
    usual = execute(load(path, ["training.epochs=4"]), None, timing_only=True)
    asked = CliRunner().invoke(
        app, ["plan", str(path), "--set", "training.epochs=4", "--set", "training.patience=1", "--assume-full-work"]
    )
    assert usual["timeline_sha256"] in asked.output
    assert "full work: no trained value was read" in asked.output
    assert not usual["assumed_full_work"]


@pytest.mark.parametrize("patience", [3, 4, 10])
def test_patience_that_cannot_fire_does_not_count(tmp_path, patience):
    """As many epochs as there are, or one less: plan plays it, and the timeline is the usual one."""
    path = scenarios.write(tmp_path, scenarios.BLOBS)
    with_it, without = (
        execute(load(path, ["training.epochs=4", *more]), None, timing_only=True)
        for more in ([f"training.patience={patience}"], [])
    )
    assert with_it["timeline_sha256"] == without["timeline_sha256"]
    assert not with_it["assumed_full_work"]


@pytest.mark.parametrize(
    ("text", "overrides", "why"),
    [
        (scenarios.QUADRATIC, ["training.patience=1"], 'patience does not go with model "scalar"'),
        (scenarios.QUADRATIC, ["run.patience=1"], "patience needs .data. validation_share"),
        (scenarios.BLOBS, ["run.patience=1", "data.validation_share=0.0"], "patience needs .data. validation_share"),
        (
            scenarios.BLOBS.replace("eval_every_versions = 10", ""),
            ["run.patience=1"],
            "patience needs eval_every_versions",
        ),
        (scenarios.BLOBS, ["run.monitor=loss"], "monitor must not be given without patience"),
    ],
)
def test_patience_without_what_it_needs_is_refused(tmp_path, text, overrides, why):
    """Keys that belong together are named where one is missing."""
    with pytest.raises(ScenarioError, match=why):
        load(scenarios.write(tmp_path, text), overrides)
