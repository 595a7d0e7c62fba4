"""Learning-rate schedules: by what a rate is multiplied at server version v = 0, 1, 2, ...

At a client, v is the version that a job starts from, so that the rate is known at dispatch; at the server, the version
that the step starts from. All are 1 at v = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from desim_fl.strategies.options import require

Schedule = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Constant:
    """Always 1."""

    def __call__(self, version: int) -> float:  # noqa: ARG002  (the point of this one)
        """Factor at a version."""
        return 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """``factor ** (v // every_versions)``."""

    every_versions: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        require(self.every_versions >= 1, "every_versions", self.every_versions, "must be at least 1")
        require(0 < self.factor <= 1, "factor", self.factor, "must lie in (0, 1]")

    def __call__(self, version: int) -> float:
        """Factor at a version."""
        return self.factor ** (version // self.every_versions)


@dataclass(frozen=True, slots=True)
class Cosine:
    """From 1 down to ``floor`` along half a cosine over ``over_versions`` versions, then ``floor`` for good.

    Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts.
    """

    over_versions: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        require(self.over_versions >= 1, "over_versions", self.over_versions, "must be at least 1")
        require(0 <= self.floor <= 1, "floor", self.floor, "must lie in [0, 1]")

    def __call__(self, version: int) -> float:
        """Factor at a version."""
        if version >= self.over_versions:
            return self.floor
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * version / self.over_versions))


@dataclass(frozen=True, slots=True)
class InverseSqrt:
    """``1 / sqrt(1 + v / over_versions)``: a half at v = 3 ``over_versions``."""

    over_versions: int = 1

    def __post_init__(self) -> None:
        require(self.over_versions >= 1, "over_versions", self.over_versions, "must be at least 1")

    def __call__(self, version: int) -> float:
        """Factor at a version."""
        return 1.0 / math.sqrt(1.0 + version / self.over_versions)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": Constant,
    "step": Step,
    "cosine": Cosine,
    "inverse_sqrt": InverseSqrt,
}
