"""Batch plans and learning rates: pure functions that never ask the model."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from desim_fl.draws import Purpose, stream
from desim_fl.errors import LawError, ScenarioError
from desim_fl.learning import batches


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [
        (0, 32, ()),
        (1, 32, (1,)),
        (5, 32, (5,)),
        (32, 32, (32,)),
        (33, 32, (17, 16)),
        (65, 32, (32, 17, 16)),
        (66, 32, (32, 32, 2)),
        (3, 1, (1, 1, 1)),
        (3, 2, (2, 1)),
        (4, 3, (2, 2)),
    ],
)
def test_lt_04_batch_sizes_worked_by_hand(n: int, size: int, expected: tuple[int, ...]) -> None:
    """A last batch of one shares samples with the one before it; everything else is cut as usual."""
    assert batches.plan(n, size) == expected


@given(st.integers(0, 2_000), st.integers(1, 300))
def test_a_plan_uses_every_sample_in_the_promised_steps(n: int, size: int) -> None:
    """Sizes add up to n, none exceeds the batch size, and there are ceil(n / size) of them."""
    sizes = batches.plan(n, size)
    assert sum(sizes) == n
    assert len(sizes) == batches.steps_per_epoch(n, size) == int(np.ceil(n / size))
    assert all(0 < each <= size for each in sizes)
    assert n < 2 or size < 3 or min(sizes) > 1


def test_every_epoch_is_a_new_permutation_of_the_client() -> None:
    """Each epoch visits every index once, in an order of its own, and the same stream repeats the sequence; CASES PT-03."""
    indices = np.arange(500, 570)

    def played() -> list[tuple[int, list[int]]]:
        order = stream(1, Purpose.BATCH_ORDER, 3, 0)
        return [(epoch, chosen.tolist()) for epoch, chosen in islice(batches.sequence(indices, 32, order), 6)]

    steps = played()
    assert [epoch for epoch, _ in steps] == [0, 0, 0, 1, 1, 1]
    first, second = ([index for _, chosen in steps[at : at + 3] for index in chosen] for at in (0, 3))
    assert sorted(first) == sorted(second) == indices.tolist()
    assert first != second
    assert steps == played()


def test_rates_worked_by_hand() -> None:
    """A constant rate stays; the inverse square root halves it in the fourth epoch."""
    assert batches.rate(0.1, "constant", 3) == 0.1
    assert batches.rate(0.1, "inverse_sqrt_epoch", 0) == 0.1
    assert batches.rate(0.1, "inverse_sqrt_epoch", 3) == 0.05
    with pytest.raises(ScenarioError, match="inverse_sqrt_epoch"):
        batches.rate(0.1, "step", 0)
    with pytest.raises(LawError, match="no learning rate"):
        batches.rate(None, "constant", 0)


def test_impossible_jobs_are_named() -> None:
    """Steps without samples, or fewer than none, are an error naming the client; no steps are fine."""
    assert batches.trainable(3, 10, 1)
    assert not batches.trainable(3, 0, 0)
    for n, steps in ((0, 1), (10, -1)):
        with pytest.raises(LawError, match="client 3"):
            batches.trainable(3, n, steps)
