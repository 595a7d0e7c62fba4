"""Further ways to deal training samples out: uneven sizes, a few classes a client, a map of one's own.

Like those of :mod:`desim_fl.population`, each returns one ascending array of positions a client, drawn from one stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from desim_fl.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Indices = NDArray[np.int64]


def sized(total: int, shares: NDArray[np.float64], rng: np.random.Generator) -> Indices:
    """Deal ``total`` samples out at random in parts as large as these shares say; returns the owner of each sample."""
    cuts = np.minimum(np.rint(np.cumsum(shares) * total).astype(np.int64), total)
    cuts[-1] = total
    owner = np.empty(total, np.int64)
    owner[rng.permutation(total)] = np.repeat(np.arange(len(shares)), np.diff(cuts, prepend=0))
    return owner


def shards(labels: ArrayLike, count: int, classes: int, rng: np.random.Generator) -> Indices:
    """Deal shards of one class each, ``classes`` to every client, of different classes; returns the owner of each sample.

    After McMahan et al., AISTATS 2017, with shards that never straddle two classes: each class is cut into equal shards, the
    more of them the more samples it has, count * classes in all. A class of more than 1 / classes of all samples
    has more shards than there are clients, so that some get two. Raises ScenarioError where there are fewer shards
    than classes, or a shard would be empty.
    """
    labels = np.asarray(labels)
    _, kinds, totals = np.unique(labels, return_inverse=True, return_counts=True)
    numbers = _apportioned(totals, count * classes)
    order = rng.permutation(len(totals))
    kind_of = np.repeat(order, numbers[order])  # by shard
    owner_of = _owners(kind_of, count, rng)
    shuffled = rng.permutation(labels.size)
    by_kind = shuffled[np.argsort(kinds[shuffled], kind="stable")]
    owner, start = np.empty(labels.size, np.int64), np.cumsum(totals) - totals
    for kind in range(len(totals)):
        mine = owner_of[kind_of == kind]
        pieces = np.array_split(by_kind[start[kind] : start[kind] + totals[kind]], len(mine))
        for client, piece in zip(mine.tolist(), pieces, strict=True):
            owner[piece] = client
    return owner


def _apportioned(totals: Indices, pieces: int) -> Indices:
    """Share pieces among classes by their samples: one each, then the next to the class with the largest pieces."""
    if pieces < len(totals):
        raise ScenarioError(
            f"clients: {pieces} shards (clients.count * classes_per_client) cannot hold {len(totals)} classes; raise one of them"
        )
    if pieces > int(totals.sum()):
        raise ScenarioError(
            f"clients: {totals.sum()} training samples cannot be cut into {pieces} shards; lower clients.count"
        )
    ideal = totals * (pieces / totals.sum())
    numbers = np.clip(np.floor(ideal).astype(np.int64), 1, totals)
    while numbers.sum() > pieces:  # many rare classes with one shard each
        sizes = np.where(numbers > 1, totals / numbers, np.inf)
        numbers[np.argmin(sizes)] -= 1
    while numbers.sum() < pieces:
        numbers[np.argmax(np.where(numbers < totals, totals / numbers, 0.0))] += 1
    return numbers


def _owners(kind_of: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Deal shards (sorted by class) out in rounds, one to every client each, no class twice where that can be avoided."""
    owners = np.empty(len(kind_of), np.int64)
    held: list[set[int]] = [set() for _ in range(count)]
    for start in range(0, len(kind_of), count):
        clients, kinds = rng.permutation(count).tolist(), kind_of[start : start + count].tolist()
        for at, kind in enumerate(kinds):
            free = next((later for later in range(at, count) if kind not in held[clients[later]]), at)
            clients[at], clients[free] = clients[free], clients[at]
            held[clients[at]].add(kind)
        owners[start : start + count] = clients
    return owners


def mapped(indices: Indices, clients: Indices, count: int, pool: Indices, total: int) -> tuple[Indices, ...]:
    """Give each client the samples that a map names, those outside of ``pool`` (the validation part) left out.

    Raises ScenarioError for a sample or client that does not exist, or a sample that is named twice.
    """
    for what, values, limit in (("index", indices, total), ("client", clients, count)):
        wrong = np.flatnonzero((values < 0) | (values >= limit))
        if wrong.size:
            raise ScenarioError(
                f"clients: map names {what} {values[wrong[0]]} in row {wrong[0]}; there are {limit}, numbered from 0"
            )
    twice = np.flatnonzero(np.bincount(indices, minlength=total) > 1)
    if twice.size:
        raise ScenarioError(f"clients: map names sample {twice[0]} more than once; a sample belongs to one client")
    kept = np.zeros(total, np.bool_)
    kept[pool] = True
    chosen = np.sort(indices[kept[indices]])
    owner = np.full(total, -1, np.int64)
    owner[indices] = clients
    order = np.argsort(owner[chosen], kind="stable")
    bounds = np.cumsum(np.bincount(owner[chosen], minlength=count))[:-1]
    return tuple(np.split(chosen[order], bounds))


def check_least(sizes: Sequence[int], least: int, why: str) -> None:
    """Raise ScenarioError naming a client with fewer than ``least`` samples, where none can be moved to it."""
    for client, size in enumerate(sizes):
        if size < least:
            raise ScenarioError(f"clients: client {client} gets {size} training samples, min_samples = {least}; {why}")
