"""Several jobs as one sequence of common steps, though they differ in length, batch sizes and learning rates.

Jobs are put in order of falling length, so that those that still train are always the first rows of every stacked
tensor: a job that has ended is not touched again, and nothing has to be masked to keep it still. Within a step, either
all batches are filled up to the largest (``padded``: a filled-in sample is the batch's first one again, with weight 0),
or jobs whose batches are equally large make a call of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray


class Course(NamedTuple):
    """What one job trains on: the sample indices and the learning rate of each of its steps."""

    batches: Sequence[NDArray[np.int64]]
    rates: Sequence[float]


class Call(NamedTuple):
    """One batched computation: ``jobs`` jobs on ``size`` samples each, which stand from ``start`` in the plan.

    ``rows`` are the jobs' places, or ``None`` for the first ``jobs``.
    """

    rows: NDArray[np.int64] | None
    jobs: int
    size: int
    start: int


class Step(NamedTuple):
    """One optimiser step of the first ``active`` jobs; ``rate`` is their learning rate if all have the same."""

    active: int
    calls: tuple[Call, ...]
    rate: float | None


class Plan(NamedTuple):
    """All steps of some jobs; ``indices`` and ``weights`` hold the samples of all calls in a row.

    ``rates`` has one row a step, one column a job, 0 where a job has ended.
    """

    steps: tuple[Step, ...]
    indices: NDArray[np.int64]
    weights: NDArray[np.float32]
    rates: NDArray[np.float64]


def dealt(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Deal jobs (by number) into as few hands of at most ``most`` as possible, of like size and like total length.

    Each hand is in order of falling length, equal ones by number.
    """
    ranked = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    hands = -(-len(lengths) // most)
    return [ranked[hand::hands] for hand in range(hands)]


def planned(courses: Sequence[Course], *, padded: bool) -> Plan:
    """Plan jobs that are in order of falling length."""
    lengths = [len(course.batches) for course in courses]
    rates = np.zeros((max(lengths, default=0), len(courses)))
    for column, course in enumerate(courses):
        rates[: lengths[column], column] = course.rates
    steps, indices, weights = [], [], []
    start = 0
    for number in range(len(rates)):
        active = sum(length > number for length in lengths)
        batches = [course.batches[number] for course in courses[:active]]
        calls = []
        for rows, size in _together([len(batch) for batch in batches], padded=padded):
            chosen = batches if rows is None else [batches[row] for row in rows]
            calls.append(Call(rows, len(chosen), size, start))
            start += len(chosen) * size
            indices += [_filled(batch, size) for batch in chosen]
            weights += [_weights(len(batch), size) for batch in chosen]
        same = (rates[number, :active] == rates[number, 0]).all()
        steps.append(Step(active, tuple(calls), float(rates[number, 0]) if same else None))
    return Plan(tuple(steps), _joined(indices, np.int64), _joined(weights, np.float32), rates)


def _together(sizes: Sequence[int], *, padded: bool) -> Iterator[tuple[NDArray[np.int64] | None, int]]:
    """Yield which of some batches are computed in one call (``None`` = all of them), and how large that makes them."""
    largest = max(sizes)
    if padded or min(sizes) == largest:
        yield None, largest
        return
    for size in sorted(dict.fromkeys(sizes), reverse=True):
        yield np.array([row for row, its in enumerate(sizes) if its == size], np.int64), size


def _filled(batch: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    if len(batch) == size:
        return batch
    return np.concatenate((batch, np.full(size - len(batch), batch[0])))


def _weights(real: int, size: int) -> NDArray[np.float32]:
    """Weights that make a sum over ``size`` samples the mean of the first ``real``."""
    weights = np.zeros(size, np.float32)
    weights[:real] = 1.0 / real
    return weights


def _joined(parts: list[NDArray], dtype: type) -> NDArray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
