"""How fast each client computes, and which class of devices it belongs to.

Compute takes (steps, samples or one job) x seconds of that unit x the client's device factor x the job's jitter. A
unit of work may be an optimiser step, a sample, or the whole job; seconds a sample may come from FLOPs a sample over
the device's FLOPs a second. Classes are drawn by share from each client's key, so that a client keeps its class
whoever else takes part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from desim_fl import draws
from desim_fl.draws import ClientSlot, Purpose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

STEP, SAMPLE, JOB = 0, 1, 2  # what the seconds of a unit are for
Whole = Any  # a whole number, or an array of them


@dataclass(frozen=True, slots=True)
class Samples:
    """How many samples a client's steps go through: examples and steps an epoch by client, and the batch size.

    Where one sample would be left over for the last batch, the last two batches share theirs.
    """

    examples: Sequence[int]
    epoch_steps: Sequence[int]
    batch_size: int
    _examples: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    _epoch_steps: NDArray[np.int64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_examples", np.asarray(self.examples, np.int64))
        object.__setattr__(self, "_epoch_steps", np.asarray(self.epoch_steps, np.int64))

    def of(self, clients: Whole, steps: Whole) -> Whole:
        """Samples that these clients have seen after so many steps."""
        examples, epoch = self._examples[clients], np.maximum(self._epoch_steps[clients], 1)
        epochs, more = steps // epoch, steps % epoch
        batch, shared = self.batch_size, self.batch_size + 1
        two = (examples % batch == 1) & (examples > batch) & (more == epoch - 1)  # the first of two that share
        partly = more * batch - np.where(two, batch - (shared - shared // 2), 0)
        return epochs * examples + partly


@dataclass(frozen=True, slots=True)
class Devices:
    """Speeds by client.

    ``factor`` is the device factor, ``unit_s`` the seconds of a unit of work at factor 1 (one number, or one a client),
    ``per`` says what a unit is (``STEP``, ``SAMPLE`` or ``JOB``; one for all, or one a client), ``samples`` is needed
    where that is a sample. ``classes`` numbers each client's class of devices (``None`` = there are no classes).
    """

    factor: Sequence[float]
    unit_s: Any = 0.01  # float, or float64 of shape (clients,)
    per: Any = STEP  # int, or int8 of shape (clients,)
    samples: Samples | None = None
    classes: NDArray[np.int16] | None = None
    class_names: tuple[str, ...] = ()

    def compute_s(self, client: int, steps: int) -> float:
        """Seconds that so many steps take on this client's device, before jitter."""
        unit_s = self.unit_s if isinstance(self.unit_s, float) else float(self.unit_s[client])
        per = self.per if isinstance(self.per, int) else int(self.per[client])
        return self._amount(per, client, steps) * unit_s * self.factor[client]

    def _amount(self, per: int, client: int, steps: int) -> int:
        """Units of work in so many steps; work without steps takes no time whatever the unit."""
        if per == STEP or not steps:
            return steps
        if per == JOB or self.samples is None:
            return 1
        return int(self.samples.of(client, steps))

    def computes_s(self, clients: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return :meth:`compute_s` for many jobs at once, bit for bit."""
        amount = steps
        if not isinstance(self.per, int) or self.per != STEP:
            per = np.broadcast_to(np.asarray(self.per if isinstance(self.per, int) else self.per[clients]), steps.shape)
            seen = steps if self.samples is None else self.samples.of(clients, steps)
            amount = np.where(per == STEP, steps, np.where(per == JOB, np.minimum(steps, 1), seen))
        unit_s = self.unit_s if isinstance(self.unit_s, float) else self.unit_s[clients]
        seconds: NDArray[np.float64] = amount * unit_s * np.asarray(self.factor, np.float64)[clients]
        return seconds

    def seconds_per(self, unit: int) -> NDArray[np.float64]:
        """Seconds of this unit by client, device factor included; NaN for clients that are measured otherwise."""
        per = np.broadcast_to(np.asarray(self.per), (len(self.factor),))
        found: NDArray[np.float64] = np.where(per == unit, self.unit_s * np.asarray(self.factor, np.float64), np.nan)
        return found


def assigned(shares: Sequence[float], seed: int, keys: Sequence[int], *, exact: bool) -> NDArray[np.int16]:
    """Draw each client's class: by its own chance, or (``exact``) so that the numbers of clients follow the shares.

    Exact numbers are rounded by largest remainder; who comes first in the order of the same draws gets the first class.
    """
    uniform = draws.uniforms(draws.words(seed, Purpose.CLIENT, np.asarray(keys, np.uint64), 0, ClientSlot.CLASS))
    total = sum(shares)
    upto = np.cumsum([share / total for share in shares])[:-1]
    if not exact:
        return np.searchsorted(upto, uniform, side="right").astype(np.int16)
    ideal = np.array([share / total * len(keys) for share in shares])
    counts = np.floor(ideal).astype(np.int64)
    spare = len(keys) - int(counts.sum())
    counts[np.argsort(counts - ideal, kind="stable")[:spare]] += 1
    found = np.empty(len(keys), np.int16)
    order = np.lexsort((np.asarray(keys, np.uint64), uniform))
    found[order] = np.repeat(np.arange(len(shares)), counts)
    return found
