"""What each client keeps back from its training, to tell at the end for whom the model works.

The parts follow from seed, key and share alone, so ``plan`` knows the sizes without torch. They are looked at once, after
the last event, so nothing of the timeline or of training reads them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from desim_fl import population
from desim_fl.draws import Purpose, stream
from desim_fl.errors import ScenarioError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from desim_fl.population import Population

    Indices = NDArray[np.int64]


def kept_back(
    people: Population, share: float, *, seed: int, labels: Indices, classes: int
) -> tuple[Population, tuple[Indices, ...]]:
    """Return the clients with what they train on, and what each keeps back: round(share * n) of its n samples, n - 1 at most.

    Raises ScenarioError where nobody would keep anything back.
    """
    split = [_split(part, share, seed, key) for part, key in zip(people.parts, people.keys, strict=True)]
    parts, held = tuple(rest for rest, _ in split), tuple(kept for _, kept in split)
    if not any(map(len, held)):
        most = max(map(len, people.parts))
        raise ScenarioError(
            f"data: client_test_share = {share!r} leaves nobody a held-out sample, since no client has more than {most}; raise the "
            "share, or have fewer clients"
        )
    counts = population.class_counts(labels, parts, classes)
    return replace(people, parts=parts, sizes=tuple(map(len, parts)), class_counts=counts), held


def _split(part: Indices, share: float, seed: int, key: int) -> tuple[Indices, Indices]:
    """Return what a client trains on and what it keeps back, both ascending; drawn for its key."""
    kept = min(round(share * len(part)), max(0, len(part) - 1))
    if not kept:
        return part, part[:0]
    shuffled = stream(seed, Purpose.HELD_OUT, key, 0).permutation(len(part))
    return part[np.sort(shuffled[kept:])], part[np.sort(shuffled[:kept])]
