"""Named probability laws of durations, factors and bandwidths, drawn by inverse distribution function.

Each law maps a uniform number u (a float or a NumPy array) to a value of the law by one formula, so that a changed
parameter moves the same draw instead of drawing another. None has a unit of its own: the key that holds it does.
The parameterisations follow what simulators of federated learning use; see each class.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from desim_fl import elementary
from desim_fl.errors import ScenarioError

Values = Any  # a float, or a float64 array of any shape; what goes in comes out


class Law(Protocol):
    """A distribution of non-negative numbers; ``at`` is its quantile function."""

    def at(self, u: Values) -> Values:
        """Value at the probability ``u`` (0 < u < 1)."""


def _capped(value: Values, cap: float | None) -> Values:
    if cap is None:
        return value
    return np.minimum(value, cap) if isinstance(value, np.ndarray) else min(value, cap)


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the same value."""

    value: float

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        return np.full(u.shape, float(self.value)) if isinstance(u, np.ndarray) else float(self.value)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Evenly between ``low`` and ``high``; mean (low + high) / 2."""

    low: float
    high: float
    cap: float | None = None

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        return _capped(self.low + (self.high - self.low) * u, self.cap)


@dataclass(frozen=True, slots=True)
class Exponential:
    """Exponential with the given mean (before the cap)."""

    mean: float
    cap: float | None = None

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        return _capped(-self.mean * elementary.log(1.0 - u), self.cap)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """``median * exp(sigma * Z)``, Z standard normal; mean ``median * exp(sigma**2 / 2)``."""

    median: float
    sigma: float
    cap: float | None = None

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        return _capped(self.median * elementary.exp(self.sigma * elementary.normal_quantile(u)), self.cap)


@dataclass(frozen=True, slots=True)
class HalfNormal:
    """``min + |N(0, sd)|``, as FLSim draws training times; mean ``min + sd * sqrt(2 / pi)``."""

    sd: float
    min: float = 0.0
    cap: float | None = None

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        return _capped(self.min + self.sd * elementary.normal_quantile(0.5 + 0.5 * u), self.cap)


@dataclass(frozen=True, slots=True)
class Pareto:
    """Pareto on [scale, inf) with tail index ``alpha``; mean ``alpha * scale / (alpha - 1)`` for alpha > 1."""

    alpha: float
    scale: float
    cap: float | None = None

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        return _capped(self.scale * elementary.power(1.0 - u, -1.0 / self.alpha), self.cap)


@dataclass(frozen=True, slots=True)
class Lomax:
    """Pareto shifted to start at 0 (what ``numpy.random.pareto`` draws); mean ``scale / (alpha - 1)``."""

    alpha: float
    scale: float
    cap: float | None = None

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        return _capped(self.scale * (elementary.power(1.0 - u, -1.0 / self.alpha) - 1.0), self.cap)


def zeta(exponent: float, terms: int = 1000) -> float:
    """Riemann's zeta for exponent > 1: a partial sum and the Euler-Maclaurin remainder."""
    partial = math.fsum(elementary.power(float(k), -exponent) for k in range(1, terms))
    edge = elementary.power(float(terms), -exponent)
    return partial + edge * terms / (exponent - 1.0) + edge / 2.0 + exponent * edge / (12.0 * terms)


@dataclass(frozen=True, slots=True)
class Zipf:
    """``scale * min(K, cap)`` with P(K = k) proportional to ``k**-exponent`` over all k >= 1.

    PORT's idle time is Zipf(1.7) capped at 60 (Su and Li, IWQoS 2022, section III).
    """

    exponent: float
    cap: int
    scale: float = 1.0
    table: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        total = zeta(self.exponent)
        masses = (elementary.power(float(k), -self.exponent) / total for k in range(1, self.cap))
        object.__setattr__(self, "table", tuple(itertools.accumulate(masses)))

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        if isinstance(u, np.ndarray):
            return self.scale * (np.searchsorted(np.array(self.table), u, side="right") + 1.0)
        return self.scale * (bisect.bisect_right(self.table, u) + 1.0)


@dataclass(frozen=True, slots=True)
class LognormalMoments:
    """The lognormal law with this mean and standard deviation (FLGo states a mean and a variance)."""

    mean: float
    sd: float
    cap: float | None = None

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        spread = 1.0 + (self.sd / self.mean) * (self.sd / self.mean)
        sigma = math.sqrt(elementary.log(spread))
        median = self.mean / math.sqrt(spread)
        return _capped(median * elementary.exp(sigma * elementary.normal_quantile(u)), self.cap)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """``max(N(mean, sd), min)``, as FLSim draws times per example or per user, and Plato its sleeping times."""

    mean: float
    sd: float
    min: float = 0.0
    cap: float | None = None

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        value = self.mean + self.sd * elementary.normal_quantile(u)
        floored = np.maximum(value, self.min) if isinstance(value, np.ndarray) else max(value, self.min)
        return _capped(floored, self.cap)


@dataclass(frozen=True, slots=True)
class Erlang:
    """Sum of ``stages`` independent exponential times, with this mean in all: QuAFL's K local steps."""

    stages: int
    mean: float
    cap: float | None = None

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        return _capped(self.mean / self.stages * elementary.erlang_quantile(u, self.stages), self.cap)


@dataclass(frozen=True, slots=True)
class Weibull:
    """``scale * E^(1 / shape)``, E exponential of mean 1; mean ``scale * Gamma(1 + 1 / shape)``."""

    shape: float
    scale: float
    cap: float | None = None

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        return _capped(self.scale * elementary.power(-elementary.log(1.0 - u), 1.0 / self.shape), self.cap)


@dataclass(frozen=True, slots=True)
class Frechet:
    """``scale * E^(-1 / shape)``: the reciprocal of a Weibull time; shape 1 is one over an exponential speed (SAFA)."""

    shape: float
    scale: float
    cap: float | None = None

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        return _capped(self.scale * elementary.power(-elementary.log(u), -1.0 / self.shape), self.cap)


_LEAST_LOG = -300.0  # e to this is no duration any more


@dataclass(frozen=True, slots=True)
class LogCauchy:
    """``median * exp(sigma * C)``, C standard Cauchy: no moment exists (MindFlayer, sigma 1, 10, 100), hence the cap."""

    median: float
    sigma: float
    cap: float

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        most = elementary.log(self.cap / self.median)
        spread = self.sigma * elementary.cauchy_quantile(u)
        if isinstance(spread, np.ndarray):
            bounded = np.minimum(np.maximum(spread, _LEAST_LOG), most)
        else:
            bounded = min(max(spread, _LEAST_LOG), most)
        return _capped(self.median * elementary.exp(bounded), self.cap)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A measured or made-up law: straight lines between its quantiles ``values`` at ``probabilities``.

    Without ``probabilities`` the values are those at 0, 1 / (n - 1), ..., 1.
    """

    values: tuple[float, ...]
    probabilities: tuple[float, ...] | None = None
    cap: float | None = None
    places: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        last = len(self.values) - 1
        places = self.probabilities or tuple(place / last for place in range(last + 1))
        object.__setattr__(self, "places", tuple(places))

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        values, places, last = self.values, self.places, len(self.values) - 2
        if isinstance(u, np.ndarray):
            known, at = np.array(values), np.array(places)
            left = np.clip(np.searchsorted(at, u, side="right") - 1, 0, last)
            share = (u - at[left]) / (at[left + 1] - at[left])
            return _capped(known[left] + (known[left + 1] - known[left]) * share, self.cap)
        left = min(max(bisect.bisect_right(places, u) - 1, 0), last)
        share = (u - places[left]) / (places[left + 1] - places[left])
        return _capped(values[left] + (values[left + 1] - values[left]) * share, self.cap)


@dataclass(frozen=True, slots=True)
class Discrete:
    """One of ``values``, with probabilities in proportion to ``weights`` (absent = all alike)."""

    values: tuple[float, ...]
    weights: tuple[float, ...] | None = None
    cap: float | None = None
    upto: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        weights = self.weights or (1.0,) * len(self.values)
        total = math.fsum(weights)
        upto = tuple(share / total for share in itertools.accumulate(weights))[:-1]
        object.__setattr__(self, "upto", upto)

    def at(self, u: Values) -> Values:
        """Value at the probability ``u``."""
        if isinstance(u, np.ndarray):
            return _capped(np.array(self.values, np.float64)[np.searchsorted(self.upto, u, side="right")], self.cap)
        return _capped(float(self.values[bisect.bisect_right(self.upto, u)]), self.cap)


LAWS = {
    "constant": Constant,
    "uniform": Uniform,
    "exponential": Exponential,
    "lognormal": Lognormal,
    "half_normal": HalfNormal,
    "pareto": Pareto,
    "lomax": Lomax,
    "zipf": Zipf,
    "lognormal_moments": LognormalMoments,
    "gaussian": Gaussian,
    "erlang": Erlang,
    "weibull": Weibull,
    "frechet": Frechet,
    "log_cauchy": LogCauchy,
    "quantiles": Quantiles,
    "discrete": Discrete,
}


def build(law: str, **parameters: Any) -> Law:
    """Make a law by name; the parameters are those of its class."""
    if law not in LAWS:
        raise ScenarioError(f'there is no law "{law}"; the laws are {", ".join(LAWS)}')
    return LAWS[law](**parameters)
