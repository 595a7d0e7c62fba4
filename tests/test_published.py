"""Published shapes that take milliseconds (docs/published.md has all), each a statement about stated seeds, from the shipped studies."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from desim_fl.scenario.overrides import path_of
from desim_fl.study import effects, load
from desim_fl.study.playing import Task, key_of, play

STUDIES = Path(__file__).resolve().parent.parent / "scenarios" / "studies"
SEEDS = (0, 1, 2)

study = cache(lambda name: load(STUDIES / f"{name}.toml"))


def row(name: str, label: str, seed: int, more: dict[str, Any], *, timing_only: bool = False) -> dict[str, Any]:
    """What a variant of a shipped study gives with this seed, with some keys set otherwise."""
    plan = study(name)
    variant = next(variant for variant in plan.variants if variant.label == label)
    settings = (*variant.settings, *((path_of(key), value) for key, value in more.items()))
    scenario = plan.scenario_of(settings, seed, label)
    found = play(Task(key_of(scenario, timing_only=timing_only), scenario, timing_only))
    assert found["status"] == "finished", found["error"]
    return found


def seconds(name: str, label: str, seed: int, more: dict[str, Any]) -> float:
    """Virtual time to the study's target, which must be reached."""
    found = effects.arrival(row(name, label, seed, more), study(name).study.target)
    assert found["reached"], (label, seed)
    return found["time_to_target_s"]


# ---- Mishchenko et al., NeurIPS 2022: 8 workers and 20 columns instead of 40 and 400; the rate of a gradient is 40 / 8 times theirs

SMALL = {
    "data.examples": 500, "data.features": 20, "training.batch_size": 16, "clients.count": 8, "run.max_updates": 640,
}  # fmt: skip
MINIBATCH = {**SMALL, "strategy.clients_per_round": 8, "run.eval_every_versions": 1}
ASYNCHRONOUS = {**SMALL, "training.lr": 0.43 * 5, "run.concurrency": 8, "run.eval_every_versions": 4}


@pytest.mark.parametrize("seed", SEEDS)
def test_asynchronous_sgd_needs_fewer_gradients_than_minibatches(seed):
    """At the published rates: under 0.75 times the gradients of minibatch SGD with wide delays; with narrow ones it diverges."""
    name, target = "mishchenko_quadratic", study("mishchenko_quadratic").study.target
    minibatch = effects.arrival(row(name, "Minibatch SGD · sigma 1", seed, MINIBATCH), target)
    for method in ("Asynchronous SGD", "Delay-adaptive"):
        wide = effects.arrival(row(name, f"{method} · sigma 1", seed, ASYNCHRONOUS), target)
        assert minibatch["reached"]
        assert wide["reached"]
        assert wide["updates_to_target"] < 0.75 * minibatch["updates_to_target"]
        narrow = row(name, f"{method} · sigma 0.25", seed, ASYNCHRONOUS)["curve"]
        assert narrow[-1][4] is None or narrow[-1][4] > 1e3 * narrow[0][4]


# ---- the fixed computation model (Tyurin and Richtarik, NeurIPS 2023, and others)

CHOSEN = {"training.lr": 0.16, "run.max_updates": 800}


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_a_slow_worker_stops_minibatches_and_nobody_else(seed):
    """A worker 1000 times slower makes minibatches 1000 times slower, exactly; all others take at most twice as long."""
    name = "one_slow_worker"
    for method, least, most in (
        ("Minibatch SGD", 1000, 1000), ("Asynchronous SGD", 0.5, 2), ("Ringmaster", 0.5, 2), ("Rennala", 0.5, 2),
    ):  # fmt: skip
        usual, slow = (seconds(name, f"{method} · h_n = {h} s", seed, CHOSEN) for h in (1, 1000))
        assert least <= slow / usual <= most


# ---- PORT (Su and Li, IWQoS 2022), Fig. 2: what waiting costs, without training


@pytest.mark.parametrize("seed", SEEDS)
def test_waiting_for_everybody_takes_the_longest(seed):
    """500 reports take at least 2.5 times as long with all 20 waited for as with 5, and 1.2 times each step that staleness is bound tighter."""

    def length(name: str, label: str) -> float:
        return row(name, label, seed, {}, timing_only=True)["summary"]["virtual_time_s"]

    everybody, five = (length("port_min_clients", label) for label in ("20", "5"))
    assert everybody > 2.5 * five
    bounded = [length("port_staleness_bound", label) for label in ("1", "4", "10")]
    assert bounded[0] > 1.2 * bounded[1]
    assert bounded[1] > 1.2 * bounded[2]


# ---- clients with queues (Alahyane et al., 2025), rates as the study chose them


@pytest.mark.parametrize("seed", SEEDS[:1])
def test_time_to_the_target_is_u_shaped_in_the_jobs_in_flight(seed):
    """100 jobs in flight for 50 clients with queues: at least 10 times as soon there as 1, and 1.5 times as soon as 500."""
    rates = {"1": 0.016, "100": 0.008, "500": 0.008}
    few, right, many = (
        seconds(
            "concurrency_u_shape", label, seed, {"training.lr": rate, "run.max_time_s": 5000 if label == "1" else 600}
        )
        for label, rate in rates.items()
    )
    assert few > 10 * right
    assert many > 1.5 * right


# ---- Birch SGD (Tyurin and Sivtsov, ICLR 2026): who is best and worst


def test_slow_messages_favour_local_steps_and_unequal_workers_asynchrony():
    """Over three seeds, one rate for all: local steps take under half of synchronized SGD's time where messages are slow, and asynchronous ones where workers differ."""

    def total(method: str, regime: str, limit: float) -> float:
        more = {"training.lr": 0.008, "run.max_time_s": limit}
        return sum(seconds("birch_ordering", f"{method} · {regime}", seed, more) for seed in SEEDS)

    slow = total("Synchronized SGD", "h 10, messages 100", 13_000)
    assert total("Local SGD", "h 10, messages 100", 3000) < 0.5 * slow
    assert total("Async-Local SGD", "h 10, messages 100", 3000) < 0.5 * slow
    assert total("Async-Local SGD", "h 1 or 10", 600) < 0.5 * total("Synchronized SGD", "h 1 or 10", 1200)
