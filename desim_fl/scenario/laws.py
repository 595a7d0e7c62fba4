"""The named distributions a scenario may draw durations, factors and bandwidths from.

A bare number stands for ``{law = "constant", value = ...}``. What a law draws is never negative and, capped or
not, always finite; the ranges of the shape parameters see to that. How a draw is made is :mod:`desim_fl.timing`'s
business, and so is the meaning of ``cap`` beyond "no larger value comes out".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from desim_fl.scenario.table import Amount, Positive, Table

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

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


LAWS: dict[str, type[LawTable]] = {
    "constant": Constant,
    "uniform": Uniform,
    "exponential": Exponential,
    "lognormal": Lognormal,
    "half_normal": HalfNormal,
    "pareto": Pareto,
    "lomax": Lomax,
    "zipf": Zipf,
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
    | Annotated[Zipf, Tag("zipf")],
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
Factor = Annotated[AnyLaw, AfterValidator(_at_least(0, "a factor must be above 0")), _Bare]
Bandwidth = Annotated[
    AnyLaw, AfterValidator(_at_least(ONE_BIT_A_SECOND, "a bandwidth must be at least 0.000001 (1 bit/s)")), _Bare
]
