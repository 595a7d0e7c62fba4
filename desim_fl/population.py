"""Who the clients are: which training samples each holds, and who of them is free to be sent out.

A partition is drawn from one NumPy stream and handed out by the rank of the clients' keys, so that permuting the
keys permutes the data with them. Everything here is NumPy, so ``plan`` knows the sizes without torch.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from desim_fl import partitions
from desim_fl.draws import Purpose, stream
from desim_fl.errors import LawError, ScenarioError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Indices = NDArray[np.int64]

_FEW = 4096  # clients up to which a look at all is faster than one at the counts of blocks
_ALPHAS = (1e-300, 1e300)  # beyond, 1 / alpha or alpha + 1 leave the range of a float


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """The clients, numbered from 0.

    ``keys``          what names each client's random streams
    ``names``         for people; empty = "client 0", "client 1", ...
    ``parts``         training sample numbers of each client, ascending; empty where the task has no data set
    ``sizes``         examples of each client
    ``class_counts``  shape (clients, classes); ``None`` where there are no labels
    """

    keys: Sequence[int]
    names: tuple[str, ...]
    parts: tuple[Indices, ...]
    sizes: Sequence[int]
    class_counts: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.sizes)

    def name(self, client: int) -> str:
        """Return what to call this client in a table or a chart."""
        return self.names[client] if self.names else f"client {client}"

    def sha256(self) -> str:
        """Hash of the partition; where there are no samples to list, of the sizes alone."""
        return partition_sha256(self.parts, self.sizes)


def sized(sizes: Sequence[int], *, keys: Sequence[int] | None = None, names: Sequence[str] = ()) -> Population:
    """Make a population of clients with these numbers of examples and no data set (the quadratic task)."""
    return Population(_keys(keys, len(sizes)), tuple(names), (), tuple(sizes), None)


def divide(
    labels: ArrayLike,
    *,
    seed: int,
    count: int,
    classes: int,
    partition: str = "iid",
    alpha: float | None = None,
    per_client: int | None = None,
    table: tuple[Indices, Indices] | None = None,
    min_samples: int = 1,
    pool: Indices | None = None,
    keys: Sequence[int] | None = None,
    names: Sequence[str] = (),
) -> Population:
    """Divide labelled training samples among ``count`` clients.

    ``labels`` are those of all training samples, ``pool`` the sample numbers that may be handed out (``None`` = all;
    the rest is the validation part). ``per_client`` classes go to each client with "shards"; ``table`` is the map, sample
    and client numbers, with "map". Part r of a partition that is drawn goes to the client with the r-th smallest key.
    Raises ScenarioError where the samples do not suffice.
    """
    labels = np.asarray(labels, np.int64)
    pool = np.arange(labels.size) if pool is None else pool
    rng = stream(seed, Purpose.PARTITION, 0, 0)
    owners = _keys(keys, count)
    if partition == "map" and table is not None:
        parts = partitions.mapped(*table, count, pool, labels.size)
        partitions.check_least(
            [len(part) for part in parts], min_samples, "give it some in the map, or lower min_samples"
        )
    else:
        drawn = _drawn(labels[pool], count, partition, min_samples, rng, alpha=alpha, per_client=per_client)
        parts = tuple(pool[part] for part in by_key(drawn, owners))
    counts = class_counts(labels, parts, classes)
    return Population(owners, tuple(names), parts, tuple(len(part) for part in parts), counts)


def _drawn(
    labels: Indices,
    count: int,
    partition: str,
    min_samples: int,
    rng: np.random.Generator,
    *,
    alpha: float | None,
    per_client: int | None,
) -> tuple[Indices, ...]:
    """Draw a partition by its name."""
    if partition == "iid":
        return iid(labels.size, count, min_samples, rng)
    if partition == "dirichlet" and alpha is not None:
        return dirichlet(labels, count, alpha, min_samples, rng)
    if partition == "dirichlet_sizes" and alpha is not None:
        return dirichlet_sizes(labels.size, count, alpha, min_samples, rng)
    if partition == "shards" and per_client is not None:
        return shards(labels, count, per_client, min_samples, rng)
    raise ScenarioError(
        f"clients: partition = {partition!r} with alpha = {alpha!r}, classes_per_client = {per_client!r}; use iid, "
        "dirichlet or dirichlet_sizes and alpha, shards and classes_per_client, or map and a map"
    )


def dirichlet_sizes(
    total: int, count: int, alpha: float, min_samples: int, rng: np.random.Generator
) -> tuple[Indices, ...]:
    """Deal ``total`` samples out at random in parts whose shares are symmetric Dirichlet(alpha): alike, but unequal.

    Clients below ``min_samples`` are filled up from the largest ones. Raises ScenarioError as :func:`dirichlet`.
    """
    _check_feasible(total, count, min_samples)
    _check_alpha(alpha)
    owner = partitions.sized(total, _shares(alpha, (1, count), rng)[0], rng)
    return _parts(_filled_up(owner, count, min_samples, rng), count)


def shards(
    labels: ArrayLike, count: int, per_client: int, min_samples: int, rng: np.random.Generator
) -> tuple[Indices, ...]:
    """Give each client samples of ``per_client`` classes; see :func:`desim_fl.partitions.shards`.

    Raises ScenarioError where somebody would have fewer than ``min_samples``: filling up would bring other classes in.
    """
    labels = np.asarray(labels)
    _check_feasible(labels.size, count, min_samples)
    parts = _parts(partitions.shards(labels, count, per_client, rng), count)
    partitions.check_least([len(part) for part in parts], min_samples, "lower min_samples, or raise classes_per_client")
    return parts


def _check_alpha(alpha: float) -> None:
    if not _ALPHAS[0] <= alpha <= _ALPHAS[1]:  # NaN fails, too
        raise ScenarioError(f"clients: alpha = {alpha!r} cannot be; it must be finite and greater than 0 (0.5, say)")


def iid(total: int, count: int, min_samples: int, rng: np.random.Generator) -> tuple[Indices, ...]:
    """Shuffle ``total`` samples and deal them out in ``count`` parts whose sizes differ by one at most."""
    _check_feasible(total, count, min_samples)
    owner = np.empty(total, np.int64)
    owner[rng.permutation(total)] = np.arange(total) % count
    return _parts(owner, count)


def dirichlet(
    labels: ArrayLike, count: int, alpha: float, min_samples: int, rng: np.random.Generator
) -> tuple[Indices, ...]:
    """Split each class among ``count`` clients by shares from a symmetric Dirichlet(alpha).

    Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution", 2019, drawn class by class as in
    Yurochkin et al., ICML 2019. The shares are exact for alpha from 1e-300 to 1e300. Clients below ``min_samples``
    are filled up from the largest ones. Returns ascending positions in ``labels``; each occurs exactly once.
    Raises ScenarioError for another alpha or too few samples.
    """
    labels = np.asarray(labels)
    _check_feasible(labels.size, count, min_samples)
    _check_alpha(alpha)
    _, classes, totals = np.unique(labels, return_inverse=True, return_counts=True)
    shuffled = rng.permutation(labels.size)
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    shares = _shares(alpha, (totals.size, count), rng)
    cuts = np.minimum(np.rint(np.cumsum(shares, axis=1) * totals[:, None]).astype(np.int64), totals[:, None])
    cuts[:, -1] = totals
    lengths = np.diff(cuts, axis=1, prepend=0)
    owner = np.empty(labels.size, np.int64)
    owner[by_class] = np.repeat(np.tile(np.arange(count), totals.size), lengths.ravel())
    return _parts(_filled_up(owner, count, min_samples, rng), count)


def validation_split(total: int, share: float, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Split ``total`` samples in (training, validation) numbers, both ascending; validation has round(share * total).

    Raises ScenarioError if a share above 0 gives no validation sample, or leaves no training sample.
    """
    held = round(share * total) if 0 <= share < 1 else total  # NaN fails, too
    if held >= total or (share > 0 and held == 0):
        raise ScenarioError(
            f"data: validation_share = {share!r} of {total} samples gives {held} for validation; "
            f"choose a share that leaves at least one on either side, or 0 for none"
        )
    shuffled = rng.permutation(total)
    return np.sort(shuffled[held:]), np.sort(shuffled[:held])


def by_key(parts: Sequence[Indices], keys: Sequence[int]) -> tuple[Indices, ...]:
    """Give part r to the client with the r-th smallest key; returns the parts in the order of the clients."""
    rank = np.argsort(np.argsort(np.asarray(keys), kind="stable"), kind="stable")
    return tuple(parts[r] for r in rank.tolist())


def class_counts(labels: ArrayLike, parts: Sequence[Indices], classes: int) -> NDArray[np.int64]:
    """How many samples of each class each client holds, shape (clients, classes)."""
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    cells = owner * classes + np.asarray(labels)[np.concatenate(parts)]
    return np.bincount(cells, minlength=len(parts) * classes).reshape(len(parts), classes)


def partition_sha256(parts: Sequence[Indices], sizes: Sequence[int] | None = None) -> str:
    """Hash of a partition: sha256 over little-endian 64-bit integers, without separators.

    First the number of clients, then each client's number of samples, then all sample numbers client by client.
    """
    sizes = [len(part) for part in parts] if sizes is None else sizes
    digest = hashlib.sha256(np.array([len(sizes), *sizes], "<i8").tobytes())
    for part in parts:
        digest.update(np.asarray(part, "<i8").tobytes())
    return digest.hexdigest()


def _keys(keys: Sequence[int] | None, count: int) -> Sequence[int]:
    return range(count) if keys is None else tuple(keys)


def _check_feasible(total: int, count: int, min_samples: int) -> None:
    if total < count * min_samples:
        raise ScenarioError(
            f"clients: {count} clients with min_samples = {min_samples} need {count * min_samples} training samples, "
            f"there are {total}; lower clients.count or clients.min_samples, or raise data.examples"
        )


def _shares(alpha: float, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Rows of a symmetric Dirichlet, from gamma variates in logarithms: small alphas underflow otherwise.

    Gamma(alpha) = Gamma(alpha + 1) * U^(1/alpha) (Marsaglia and Tsang, 2000).
    """
    logs = np.log(rng.standard_gamma(alpha + 1.0, shape)) + np.log1p(-rng.random(shape)) / alpha
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _parts(owner: Indices, count: int) -> tuple[Indices, ...]:
    bounds = np.cumsum(np.bincount(owner, minlength=count))[:-1]
    return tuple(np.split(np.argsort(owner, kind="stable"), bounds))


def _filled_up(owner: Indices, count: int, min_samples: int, rng: np.random.Generator) -> Indices:
    """Move samples, any of its own, from each client above a common level to those below ``min_samples``."""
    sizes = np.bincount(owner, minlength=count)
    lacking = np.maximum(min_samples - sizes, 0)
    if not lacking.any():
        return owner
    giving = _above_level(sizes, int(lacking.sum()))
    shuffled = rng.permutation(owner.size)
    by_owner = shuffled[np.argsort(owner[shuffled], kind="stable")]
    place = np.arange(owner.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    moved = by_owner[place < np.repeat(giving, sizes)]
    filled = owner.copy()
    filled[moved] = np.repeat(np.arange(count), lacking)
    return filled


def _above_level(sizes: Indices, needed: int) -> Indices:
    """How many each gives if always the largest gives one, ``needed`` times: all above a level, found by halving."""
    low, high = 0, int(sizes.max())
    while high - low > 1:
        level = (low + high) // 2
        low, high = (level, high) if np.maximum(sizes - level, 0).sum() >= needed else (low, level)
    giving = np.maximum(sizes - low, 0)
    spared = int(giving.sum()) - needed
    giving[np.flatnonzero(giving)[:spared]] -= 1
    return giving


class Roster:
    """Which clients are selectable now; kept by the engine with ``take`` and ``free``, both of constant time.

    Free clients are marked in one byte each and counted by blocks, so that the n-th free one is found without a
    walk over all; ``is_selectable(client)`` looks a mark up. Who is idle longest is kept as a ring from the first time that somebody asks: few selectors do.
    """

    __slots__ = (
        "_block",
        "_counts",
        "_counts_view",
        "_flags",
        "_flags_view",
        "_frees",
        "_ring",
        "_since",
        "is_selectable",
        "selectable",
    )

    def __init__(self, count: int) -> None:
        self.selectable = count
        self._block = max(64, 1 << math.isqrt(count).bit_length())
        blocks = -(-count // self._block)
        self._flags = bytearray(b"\x01") * count
        self.is_selectable: Any = self._flags.__getitem__  # asked most often: no call of our own
        self._flags_view = np.frombuffer(self._flags, np.uint8)
        self._counts = array("q", [self._block] * blocks if count > _FEW else [])
        if self._counts:
            self._counts[-1] -= blocks * self._block - count
        self._counts_view = np.frombuffer(self._counts, np.int64)
        self._frees = 0  # how often somebody became free
        self._since = array("q", bytes(8 * count))  # of each client: that count when it last became free
        self._ring: _Ring | None = None

    def take(self, client: int) -> None:
        """Mark a client as busy; LawError if it is already."""
        if not self._flags[client]:
            raise LawError(f"client {client} was sent out although it was not selectable")
        self._flags[client] = 0
        if self._counts:
            self._counts[client // self._block] -= 1
        self.selectable -= 1
        if self._ring is not None:
            self._ring.remove(client)

    def free(self, client: int) -> None:
        """Mark a client as selectable again, idle from now on; LawError if it was not busy."""
        if self._flags[client]:
            raise LawError(f"client {client} was freed although it was not busy")
        self._flags[client] = 1
        if self._counts:
            self._counts[client // self._block] += 1
        self.selectable += 1
        self._frees = self._since[client] = self._frees + 1
        if self._ring is not None:
            self._ring.append(client)

    def mask(self) -> Any:
        """1 for each selectable client, else 0, by number (uint8): live, to be read at once."""
        return self._flags_view

    def nth_selectable(self, rank: int) -> int:
        """Return the selectable client with exactly ``rank`` selectable ones of smaller number."""
        if not 0 <= rank < self.selectable:
            raise LawError(f"asked for selectable client number {rank} of {self.selectable}")
        if not self._counts and self.selectable == 1:
            return self._flags.find(1)  # a crowded world asks this at every arrival
        if not self._counts:
            return int(self._flags_view.nonzero()[0][rank])
        upto = np.cumsum(self._counts_view)
        block = int(np.searchsorted(upto, rank, side="right"))
        rank -= int(upto[block - 1]) if block else 0
        start = block * self._block
        return start + int(np.flatnonzero(self._flags_view[start : start + self._block])[rank])

    def longest_idle(self, count: int) -> list[int]:
        """Up to ``count`` selectable clients, those idle longest first."""
        if self._ring is None:
            since = np.where(self._flags_view == 1, np.frombuffer(self._since, np.int64), self._frees + 1)
            idle = np.argsort(since, kind="stable")[: self.selectable]
            self._ring = _Ring(len(self._flags), idle)
        return self._ring.first(count)


class _Ring:
    """Idle clients linked in the order of becoming free, behind those never used in the order of their numbers.

    Entry ``count`` is the anchor.
    """

    __slots__ = ("_after", "_anchor", "_before")

    def __init__(self, count: int, idle: NDArray[np.int64]) -> None:
        self._anchor = count
        self._before, self._after = array("q", bytes(8 * count + 8)), array("q", bytes(8 * count + 8))
        around = np.concatenate([[count], idle, [count]])
        np.frombuffer(self._before, np.int64)[around[1:]] = around[:-1]
        np.frombuffer(self._after, np.int64)[around[:-1]] = around[1:]

    def remove(self, client: int) -> None:
        """Take a client out."""
        before, after = self._before[client], self._after[client]
        self._after[before] = after
        self._before[after] = before

    def append(self, client: int) -> None:
        """Link a client behind all others."""
        last = self._before[self._anchor]
        self._after[last], self._before[client] = client, last
        self._after[client], self._before[self._anchor] = self._anchor, client

    def first(self, count: int) -> list[int]:
        """Up to ``count`` clients from the front."""
        found: list[int] = []
        client = self._after[self._anchor]
        while client != self._anchor and len(found) < count:
            found.append(client)
            client = self._after[client]
        return found
