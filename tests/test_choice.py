"""Which executor ``auto`` takes: from expected seconds, the length of a step, and what the model allows."""

from __future__ import annotations

import pytest
import torch
from training_world import NoisyNet, blob_task

from desim_fl.executors import choice
from desim_fl.executors.choice import Cost, Wish, choose, expected

LONG, SHORT = 0.003, 0.0003  # seconds of a step of the bench's CNN and MLP


class Own(torch.nn.Linear):
    """A user's layer, which may keep anything anywhere."""


def chosen(monkeypatch, cost: Cost, *, model=None, workers=2, made=None) -> tuple[str, str]:
    """Name and reason of what auto takes with so many cores and such a cost; pools are not started."""
    monkeypatch.setattr(choice, "cores", lambda: workers)
    monkeypatch.setattr(choice, "_cost", lambda *_: cost)
    executor, reason = choose(made or blob_task(model), Wish("auto", None, 1, 10), [4, 2, 1, 1])
    executor.close()
    return executor.name, reason


@pytest.mark.parametrize(
    ("cost", "workers", "name"),
    [
        (Cost(LONG, 0.1), 2, "inline"),
        (Cost(LONG, 5.0), 2, "threads"),
        (Cost(LONG, 30.0), 2, "threads"),
        (Cost(LONG, 60.0), 2, "pool"),
        (Cost(LONG, 1000.0), 2, "pool"),
        (Cost(LONG, None), 2, "pool"),
        (Cost(SHORT, 0.1), 2, "inline"),
        (Cost(SHORT, 5.0), 2, "inline"),
        (Cost(SHORT, 60.0), 2, "pool"),
        (Cost(SHORT, None), 2, "pool"),
        (Cost(LONG, 60.0), 16, "pool"),  # sixteen threads would wait for each other
        (Cost(LONG, 60.0), 1, "inline"),
    ],
)
def test_auto_takes_what_is_expected_to_end_first(monkeypatch, cost, workers, name):
    """Threads between the shortest and the longest runs where steps are long; never where steps are short."""
    found, reason = chosen(monkeypatch, cost, workers=workers)
    assert found == name, reason
    assert workers == 1 or f"steps of {1000 * cost.step_s:.1f} ms" in reason


@pytest.mark.parametrize("model", [NoisyNet, lambda: Own(6, 4)])
def test_auto_takes_no_threads_for_random_numbers_or_a_users_layer(monkeypatch, model):
    """Dropout, and code that is not torch's own, stay in processes; a short run in this one."""
    assert chosen(monkeypatch, Cost(LONG, 5.0), model=model)[0] == "inline"
    assert chosen(monkeypatch, Cost(LONG, 60.0), model=model)[0] == "pool"


def test_auto_takes_no_threads_for_layers_with_hooks(monkeypatch):
    """A hook is a user's code too, and so is a forward method of one object."""

    def hooked():
        layer = torch.nn.Linear(6, 4)
        layer.register_forward_hook(lambda *_: None)
        return layer

    def patched():
        layer = torch.nn.Linear(6, 4)
        layer.forward = lambda inputs: torch.nn.functional.linear(inputs, layer.weight)
        return layer

    for model in (hooked, patched):
        assert chosen(monkeypatch, Cost(LONG, 5.0), model=model)[0] == "inline"


def test_auto_falls_back_where_threads_are_refused(monkeypatch):
    """A factory that hands out one and the same module cannot be replicated: the next best is taken."""
    layer = torch.nn.Linear(6, 4)
    assert chosen(monkeypatch, Cost(LONG, 5.0), model=lambda: layer)[0] == "inline"
    assert chosen(monkeypatch, Cost(LONG, 60.0), model=lambda: layer)[0] == "pool"


def test_the_expectation_is_start_plus_training_over_those_who_are_busy():
    """100 s in steps of 0.8 ms by 16 workers: two threads are busy at most, the pool's 16 are all."""
    found = expected(Cost(2 * choice.HELD_S, 100.0), 16)
    assert found == {
        "inline": 100.0,
        "threads": choice.THREADS_START_S + 50.0,
        "pool": choice.POOL_START_S + 6.25,
    }


def test_the_cost_comes_from_a_few_steps():
    """Steps are timed, and the whole is what all jobs of an average client take."""
    cost = choice._cost(blob_task(), 100, [4, 2, 1, 1])
    assert 0 < cost.step_s < 1
    assert cost.total_s == pytest.approx(cost.step_s * 100 * 2)
    assert choice._cost(blob_task(), None, [4, 2, 1, 1]).total_s is None
    assert choice._cost(blob_task(), 100, [0, 0, 0, 0]) == Cost(0.0, 0.0)
