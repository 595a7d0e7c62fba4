"""Plays one run of a study and returns what the study keeps of it: plain values, ready for JSON."""

from __future__ import annotations

import hashlib
import json
import shutil
import traceback
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from desim_fl import __version__
from desim_fl.build import build
from desim_fl.errors import DesimError
from desim_fl.run import Session, execute, finite, manifest

if TYPE_CHECKING:
    from pathlib import Path

    from desim_fl.evaluation import Evaluation
    from desim_fl.scenario import Scenario

Row = dict[str, Any]
CURVE = ("ticks", "version", "updates", "split", "loss", "accuracy")


@dataclass(frozen=True, slots=True)
class Task:
    """One run to play: a scenario, its seed included, and where to keep the run directory, if at all.

    ``key`` is the hash of what decides the result: equal keys, equal results. ``inline`` trains in the process that
    plays, beside other runs.
    """

    key: str
    scenario: Scenario
    timing_only: bool
    folder: Path | None = None
    inline: bool = True


def key_of(scenario: Scenario, *, timing_only: bool) -> str:
    """Return the hash of everything that decides a run's result; vmap does, in its last bits."""
    document = scenario.resolved()
    document.pop("checkpoint", None)
    document["executor"] = scenario.executor.bits()
    document.update(timing_only=timing_only, version=__version__)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def play(task: Task) -> Row:
    """Play a task; what goes wrong becomes a row with status "failed", so that other runs go on."""
    try:
        scenario = _alone(task.scenario) if task.inline else task.scenario
        return {"key": task.key, **_played(scenario, task)}
    except DesimError as error:
        return failed(task.key, str(error))
    except Exception as error:  # noqa: BLE001  (a study goes on; the row tells)
        return failed(task.key, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")


def failed(key: str, error: str) -> Row:
    """Return the row of a run that failed."""
    return {"key": key, "status": "failed", "error": error[:20_000]}


def _alone(scenario: Scenario) -> Scenario:
    """Let a scenario train in the process that plays it, beside other runs; the results are the same (law 2)."""
    if scenario.executor.bits():
        return scenario
    executor = scenario.executor.model_copy(update={"name": "inline", "workers": None, "address": None})
    return scenario.model_copy(update={"executor": executor})


def _played(scenario: Scenario, task: Task) -> Row:
    if task.folder is not None:
        return _kept(scenario, task)
    session = Session(build(scenario, timing_only=task.timing_only), None)
    session.play()
    return _row(manifest(session, None), session, session.evaluations)


def _kept(scenario: Scenario, task: Task) -> Row:
    """Play into a run directory; one that is there already, from a study that was stopped, is taken away first."""
    assert task.folder is not None
    shutil.rmtree(task.folder, ignore_errors=True)
    seen: dict[str, Session] = {}
    watch = partial(seen.__setitem__, "session")
    found = execute(scenario, task.folder, timing_only=task.timing_only, watch=watch)
    session = seen.get("session")
    return _row(found, session, [] if session is None else session.evaluations)


def _row(found: dict[str, Any], session: Session | None, evaluations: list[Evaluation]) -> Row:
    summary = found["summary"]
    arrivals = [] if session is None else session.engine.usage.arrivals
    people = 0 if session is None else len(session.built.population)
    hashes = {name: found[name] for name in ("timeline_sha256", "model_sha256", "partition_sha256")}
    return {
        "status": found["status"],
        "error": found["error"],
        **hashes,
        "reuse": found.get("reuse"),
        "fairness": jain(arrivals, people),
        "summary": summary,
        "curve": [
            [e.ticks, e.version, e.updates, score.split, finite(score.loss), finite(score.accuracy)]
            for e in evaluations
            for score in e.scores
        ],
    }


def jain(arrivals: list[int], clients: int) -> float | None:
    """Jain's fairness index of updates over all clients: 1 = all alike, 1/N = one alone (Jain, Chiu, Hawe 1984)."""
    squares = sum(count * count for count in arrivals)
    return sum(arrivals) ** 2 / (clients * squares) if squares else None
