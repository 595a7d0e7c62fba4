"""Staleness weights s(tau): how much an update counts whose base is tau versions old.

The three of FedAsync (Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, section 5.2) and the
inverse-linear one of the delay-aware rule. A fresh update has tau = 0 here. The paper counts it as 1: ``offset = 1``
adds 1 to every tau, so that a fresh update weighs 2^-a under the polynomial. All are small values that compare,
print and pickle; anybody's callable from int to float does as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from desim_fl.strategies.options import one_of, require

Staleness = Callable[[int], float]
NAMES = ("constant", "polynomial", "hinge")


@dataclass(frozen=True, slots=True)
class Constant:
    """Every update weighs 1: s = 1."""

    def __call__(self, tau: int) -> float:  # noqa: ARG002  (the point of this one)
        """Weight of an update tau versions old."""
        return 1.0


@dataclass(frozen=True, slots=True)
class Polynomial:
    """``s = (tau + offset + 1) ** -power``."""

    power: float = 0.5
    offset: int = 0

    def __call__(self, tau: int) -> float:
        """Weight of an update tau versions old."""
        return float((tau + self.offset + 1) ** -self.power)


@dataclass(frozen=True, slots=True)
class Hinge:
    """``s = 1`` up to tau + offset = b, then ``1 / (a * (tau + offset - b) + 1)``."""

    a: float = 10.0
    b: float = 4.0
    offset: int = 0

    def __call__(self, tau: int) -> float:
        """Weight of an update tau versions old."""
        beyond = tau + self.offset - self.b
        return 1.0 if beyond <= 0 else 1.0 / (self.a * beyond + 1.0)


@dataclass(frozen=True, slots=True)
class InverseLinear:
    """``s = 1 / (1 + alpha_lr * tau)``: the delay-aware rule with the delay read as staleness."""

    alpha_lr: float

    def __call__(self, tau: int) -> float:
        """Weight of an update tau versions old."""
        return 1.0 / (1.0 + self.alpha_lr * tau)


@dataclass(frozen=True, slots=True)
class Product:
    """Two weights at once: ``s = left(tau) * right(tau)``."""

    left: Staleness
    right: Staleness

    def __call__(self, tau: int) -> float:
        """Weight of an update tau versions old."""
        return self.left(tau) * self.right(tau)


def named(
    staleness: str | Staleness,
    *,
    power: float = 0.5,
    hinge_a: float = 10.0,
    hinge_b: float = 4.0,
    offset: int = 0,
) -> Staleness:
    """Return the weight function that the options of a strategy mean; a callable is taken as it is.

    Raises ScenarioError for an unknown name or a parameter with which weights would grow with staleness.
    """
    if callable(staleness):
        return staleness
    one_of("staleness", staleness, NAMES)
    require(power >= 0, "staleness_power", power, "must be at least 0")
    require(hinge_a >= 0, "hinge_a", hinge_a, "must be at least 0")
    require(hinge_b >= 0, "hinge_b", hinge_b, "must be at least 0")
    require(offset in (0, 1), "staleness_offset", offset, "is 0 or 1")
    if staleness == "polynomial":
        return Polynomial(power, offset)
    return Hinge(hinge_a, hinge_b, offset) if staleness == "hinge" else Constant()
