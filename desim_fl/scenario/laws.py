"""The named distributions a scenario may draw durations, factors and bandwidths from.

A bare number stands for ``{law = "constant", value = ...}``. What a law draws is never negative and, capped or
not, always finite; the ranges of the shape parameters see to that. How a draw is made is :mod:`desim_fl.timing`'s
business, and so is the meaning of ``cap`` beyond "no larger value comes out".
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from desim_fl.scenario.table import Amount, Positive, Share, Table

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

SHORTEST_S = 0.001  # of times that follow each other: shorter ones would be too many
ONE_BIT_A_SECOND = 1e-6  # in Mbit/s
MIN_SHAPE = 0.05  # below it a heavy tail leaves the range of a double
Cap = Annotated[Positive | None, Field(description="Largest value that is drawn; larger ones become this one.")]


def problem(key: str, text: str) -> PydanticCustomError:
    """Return an error about one key of the table that is being read."""
    return PydanticCustomError("rule", "{text}", {"text": text, "key": key})


class LawTable(Table):
    """A law as a table; ``law`` names it, ``cap`` bounds it."""

    @property
    def sizes(self) -> dict[str, float]:
        """The parameters that set how large a draw is, by key."""
        keys = ("value", "low", "mean", "median", "sd", "scale")
        return {key: getattr(self, key) for key in keys if key in type(self).model_fields}

    @property
    def least(self) -> tuple[str, float]:
        """The key that gives the smallest value, and that value; ``("", 0.0)`` where there is none but 0."""
        keys = [key for key in ("value", "low", "min") if key in type(self).model_fields]
        return (keys[0], getattr(self, keys[0])) if keys else ("", 0.0)

    @property
    def most(self) -> float | None:
        """The largest value that comes out; ``None`` where there is none."""
        keys = [key for key in ("value", "high") if key in type(self).model_fields]
        found = [getattr(self, key) for key in (*keys, "cap") if getattr(self, key, None) is not None]
        return min(found) if found and "exponent" not in type(self).model_fields else None

    def parameters(self) -> dict[str, Any]:
        """Return name and parameters as :func:`desim_fl.durations.build` takes them."""
        named = {key: getattr(self, key) for key in type(self).model_fields}
        idle = ("cap",) if isinstance(self, Constant) else ()  # never below the value, so without effect
        return {key: value for key, value in named.items() if value is not None and key not in idle}

    @model_validator(mode="after")
    def _cap_above_least(self) -> Self:
        key, least = self.least
        cap = getattr(self, "cap", None)
        if cap is not None and cap < least:
            raise problem("cap", f"cap = {cap:g} is below the smallest value, {key} = {least:g}")
        return self


class Constant(LawTable):
    """Always the same value; the same as writing the bare number."""

    law: Literal["constant"] = Field(default="constant", description="The same value every time.")
    value: Amount = Field(description="The value.")
    cap: Cap = None

    @property
    def short(self) -> float | None:
        """The bare number that says the same."""
        return self.value if self.cap is None else None


class Uniform(LawTable):
    """Evenly spread between two values."""

    law: Literal["uniform"] = Field(default="uniform", description="Evenly spread between low and high.")
    low: Amount = Field(description="Smallest value.")
    high: Amount = Field(description="Largest value; not below low.")
    cap: Cap = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high < self.low:
            raise problem("high", f"high = {self.high:g} is below low = {self.low:g}")
        return self


class Exponential(LawTable):
    """Memoryless."""

    law: Literal["exponential"] = Field(default="exponential", description="Memoryless, from its mean.")
    mean: Amount = Field(description="Mean.")
    cap: Cap = None


class Lognormal(LawTable):
    """The exponential of a normal variable."""

    law: Literal["lognormal"] = Field(default="lognormal", description="median * exp(sigma * N(0, 1)).")
    median: Amount = Field(description="Median.")
    sigma: float = Field(ge=0, le=50, description="Standard deviation of the logarithm.")
    cap: Cap = None


class HalfNormal(LawTable):
    """A smallest value plus the absolute value of a normal variable."""

    law: Literal["half_normal"] = Field(default="half_normal", description="min + |N(0, sd)|.")
    sd: Amount = Field(description="Standard deviation of the normal variable before its absolute value is taken.")
    min: Amount = Field(default=0.0, description="Smallest value, added to every draw.")
    cap: Cap = None

    @property
    def sizes(self) -> dict[str, float]:
        """A smallest value above 0 is enough, else the deviation counts."""
        return {"min": self.min} if self.min > 0 else {"sd": self.sd}


class HeavyTail(LawTable):
    """What the two power laws share: an infinite mean needs a cap."""

    alpha: float = Field(ge=MIN_SHAPE, le=1e6, description="Tail exponent; at 1 or below the mean is infinite.")
    scale: Positive = Field(description="Scale.")
    cap: Cap = None

    @model_validator(mode="after")
    def _finite_mean(self) -> Self:
        if self.alpha <= 1 and self.cap is None:
            raise problem("cap", f"needs the key cap: with alpha = {self.alpha:g} (1 or less) the mean is infinite")
        return self


class Pareto(HeavyTail):
    """A power law that starts at its scale."""

    law: Literal["pareto"] = Field(default="pareto", description="Power law from scale upwards: scale * U^(-1/alpha).")

    @property
    def least(self) -> tuple[str, float]:
        """Nothing below the scale comes out."""
        return "scale", self.scale


class Lomax(HeavyTail):
    """A power law that starts at 0."""

    law: Literal["lomax"] = Field(default="lomax", description="Power law from 0 upwards: scale * (U^(-1/alpha) - 1).")


class Zipf(LawTable):
    """A rank with probability proportional to a power of it, no larger than the cap, times a scale."""

    law: Literal["zipf"] = Field(
        default="zipf", description="scale * min(rank, cap), rank k with probability ~ k^-exponent."
    )
    exponent: float = Field(gt=1, le=100, description="How fast the probability falls with the rank.")
    scale: Positive = Field(default=1.0, description="Value of rank 1.")
    cap: int = Field(ge=1, le=1_000_000, description="Largest rank (a whole number, not a value).")

    @model_validator(mode="after")
    def _cap_above_least(self) -> Self:
        return self  # this cap counts ranks


class LognormalMoments(LawTable):
    """The lognormal law by its moments."""

    law: Literal["lognormal_moments"] = Field(
        default="lognormal_moments", description="Lognormal with this mean and standard deviation."
    )
    mean: Positive = Field(description="Mean.")
    sd: Amount = Field(description="Standard deviation; at most a million times the mean.")
    cap: Cap = None

    @property
    def sizes(self) -> dict[str, float]:
        """The mean sets how large a draw is."""
        return {"mean": self.mean}

    @model_validator(mode="after")
    def _not_too_wide(self) -> Self:
        if self.sd > 1e6 * self.mean:
            raise problem("sd", f"sd = {self.sd:g} is more than a million times the mean = {self.mean:g}")
        return self


class Gaussian(LawTable):
    """A normal variable, no smaller than a least value."""

    law: Literal["gaussian"] = Field(default="gaussian", description="max(N(mean, sd), min).")
    mean: Amount = Field(description="Mean before the least value is kept.")
    sd: Amount = Field(description="Standard deviation before the least value is kept.")
    min: Amount = Field(default=0.0, description="Smallest value; smaller ones become this one.")
    cap: Cap = None

    @property
    def sizes(self) -> dict[str, float]:
        """The smallest value, where there is any spread, else the mean."""
        return {"min": self.min} if self.sd > 0 else {"mean": max(self.mean, self.min)}


class Erlang(LawTable):
    """A sum of exponential times."""

    law: Literal["erlang"] = Field(default="erlang", description="Sum of exponential times, from its mean.")
    stages: Annotated[int, Field(ge=1, le=256)] = Field(description="How many exponential times are added.")
    mean: Amount = Field(description="Mean of the sum.")
    cap: Cap = None


class Shaped(LawTable):
    """What the two laws with a shape share."""

    shape: float = Field(ge=MIN_SHAPE, le=1e6, description="Shape; the smaller, the heavier the tail.")
    scale: Positive = Field(description="Scale.")
    cap: Cap = None


class Weibull(Shaped):
    """A power of an exponential time."""

    law: Literal["weibull"] = Field(default="weibull", description="scale * E^(1/shape), E exponential of mean 1.")


class Frechet(Shaped):
    """The reciprocal of a Weibull time; with shape 1 the time of work at an exponential speed."""

    law: Literal["frechet"] = Field(default="frechet", description="scale * E^(-1/shape), E exponential of mean 1.")

    @model_validator(mode="after")
    def _finite_mean(self) -> Self:
        if self.shape <= 1 and self.cap is None:
            raise problem("cap", f"needs the key cap: with shape = {self.shape:g} (1 or less) the mean is infinite")
        return self


class LogCauchy(LawTable):
    """The exponential of a Cauchy variable: so heavy a tail that no moment exists."""

    law: Literal["log_cauchy"] = Field(default="log_cauchy", description="median * exp(sigma * Cauchy).")
    median: Positive = Field(description="Median.")
    sigma: float = Field(ge=0, le=1e6, description="Scale of the logarithm.")
    cap: Positive = Field(description="Largest value that is drawn; required, for the mean is infinite without.")

    @property
    def sizes(self) -> dict[str, float]:
        """Anything above 0 may come out."""
        return {"median": self.median if self.sigma == 0 else math.exp(-300.0) * self.median}

    @model_validator(mode="after")
    def _cap_above_median(self) -> Self:
        if self.cap < self.median:
            raise problem("cap", f"cap = {self.cap:g} is below the median = {self.median:g}")
        return self


Listed = Annotated[tuple[Amount, ...], Field(strict=False, min_length=1, max_length=10_000)]


class Tabled(LawTable):
    """What the two laws share that are given as a list."""

    @property
    def sizes(self) -> dict[str, float]:
        """The least of the values."""
        return {"values": min(getattr(self, "values"))}  # noqa: B009  (both have it)

    @property
    def least(self) -> tuple[str, float]:
        """The least of the values."""
        return "values", self.sizes["values"]


class Quantiles(Tabled):
    """A law by its quantiles, as measured."""

    law: Literal["quantiles"] = Field(default="quantiles", description="Straight lines between given quantiles.")
    values: Annotated[Listed, Field(min_length=2)] = Field(description="Quantiles, from the smallest value up.")
    probabilities: Annotated[tuple[Share, ...], Field(strict=False, min_length=2, max_length=10_000)] | None = Field(
        default=None, description="Of each value, from 0 up to 1; absent = in equal steps."
    )
    cap: Cap = None

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if any(left > right for left, right in pairwise(self.values)):
            raise problem("values", "values must not fall: quantiles go from the smallest value up")
        places = self.probabilities
        if places is None:
            return self
        if len(places) != len(self.values):
            raise problem("probabilities", f"probabilities has {len(places)} entries, values has {len(self.values)}")
        if (places[0], places[-1]) != (0.0, 1.0) or any(left >= right for left, right in pairwise(places)):
            raise problem("probabilities", "probabilities must rise from 0 to 1, each above the one before")
        return self


class Discrete(Tabled):
    """One of a few values."""

    law: Literal["discrete"] = Field(default="discrete", description="One of the values, by weight.")
    values: Listed = Field(description="The values.")
    weights: Annotated[tuple[Amount, ...], Field(strict=False, min_length=1, max_length=10_000)] | None = Field(
        default=None, description="How likely each value is, in proportion; absent = all alike."
    )
    cap: Cap = None

    @model_validator(mode="after")
    def _weighed(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.values):
            raise problem("weights", f"weights has {len(self.weights)} entries, values has {len(self.values)}")
        if self.weights is not None and sum(self.weights) <= 0:
            raise problem("weights", "weights are all 0, so that no value could be drawn")
        return self


LAWS: dict[str, type[LawTable]] = {
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


def _constant(value: Any) -> Any:
    """Read a bare number as a constant law."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {"law": "constant", "value": value} if number else value


def _law_of(value: Any) -> str | None:
    law = value.get("law") if isinstance(value, dict) else getattr(value, "law", None)
    return law if isinstance(law, str) else None


AnyLaw = Annotated[
    Annotated[Constant, Tag("constant")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Exponential, Tag("exponential")]
    | Annotated[Lognormal, Tag("lognormal")]
    | Annotated[HalfNormal, Tag("half_normal")]
    | Annotated[Pareto, Tag("pareto")]
    | Annotated[Lomax, Tag("lomax")]
    | Annotated[Zipf, Tag("zipf")]
    | Annotated[LognormalMoments, Tag("lognormal_moments")]
    | Annotated[Gaussian, Tag("gaussian")]
    | Annotated[Erlang, Tag("erlang")]
    | Annotated[Weibull, Tag("weibull")]
    | Annotated[Frechet, Tag("frechet")]
    | Annotated[LogCauchy, Tag("log_cauchy")]
    | Annotated[Quantiles, Tag("quantiles")]
    | Annotated[Discrete, Tag("discrete")],
    Discriminator(_law_of),
]


def _at_least(smallest: float, what: str) -> Callable[[LawTable], LawTable]:
    """Return a check that nothing below ``smallest`` (0 = nothing at 0) can come out."""

    def check(law: LawTable) -> LawTable:
        for key, size in law.sizes.items():
            if size <= 0 or size < smallest:
                raise problem(key, f"{key} = {size:g} is too small: {what}")
        return law

    return check


_Bare = BeforeValidator(_constant, json_schema_input_type=Amount | AnyLaw)
Duration = Annotated[AnyLaw, _Bare]
Span = Annotated[
    AnyLaw, AfterValidator(_at_least(SHORTEST_S, "such a time must be at least a millisecond (0.001)")), _Bare
]
Factor = Annotated[AnyLaw, AfterValidator(_at_least(0, "a factor must be above 0")), _Bare]
Bandwidth = Annotated[
    AnyLaw, AfterValidator(_at_least(ONE_BIT_A_SECOND, "a bandwidth must be at least 0.000001 (1 bit/s)")), _Bare
]
