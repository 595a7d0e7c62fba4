"""What every table of a scenario file has in common, and the number types that its keys use."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

LARGEST = 10**12  # seconds, factors, Mbit/s: beyond it a sum of microseconds leaves 64 bits
WHOLE_MAX = 2**53  # whole numbers up to here survive JSON and Parquet on every reader
CLIENT_MAX = 2**32  # client numbers and keys are 32-bit words of the random streams

Loc = tuple[str | int, ...]  # where a key stands: table, key, index ...

Whole = Annotated[int, Field(ge=0, le=WHOLE_MAX)]
Count = Annotated[int, Field(ge=1, le=WHOLE_MAX)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Amount = Annotated[float, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
PartShare = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Args = dict[str, Any]
CUSTOM = ":"  # the tag of "pkg.mod:attr" names; no built-in name holds a colon
FileName = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]
CustomName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$", max_length=500),
]


class Table(BaseModel):
    """A TOML table: strict about types, closed to unknown keys, never changed after it was read."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def idle(self) -> frozenset[str]:
        """Return the keys that have no effect beside the others of this table."""
        return frozenset()

    def entries(self) -> dict[str, Any]:
        """Return every key that has an effect, defaults included, as plain TOML values."""
        idle = self.idle()
        pairs = ((key, getattr(self, key)) for key in _in_order(type(self)) if key not in idle)
        return {key: plain(value) for key, value in pairs if value is not None}

    def given(self, *keys: str) -> list[str]:
        """Return those of the keys that were written down rather than left to their defaults."""
        return [key for key in keys if key in self.model_fields_set]


@cache
def _in_order(kind: type[Table]) -> tuple[str, ...]:
    """Return what names a variant first, the rest in the order of the class."""
    return tuple(sorted(kind.model_fields, key=lambda key: key not in ("name", "law")))


def plain(value: Any) -> Any:
    """Return the TOML value that reads back as this one; equal values give the same text (no -0.0, keys sorted)."""
    if isinstance(value, Table):
        short = getattr(value, "short", None)
        return value.entries() if short is None else plain(short)
    if isinstance(value, dict):
        return {key: plain(value[key]) for key in sorted(value)}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    return value + 0.0 if isinstance(value, float) else value


class Problem(NamedTuple):
    """One thing that is wrong.

    ``loc`` is its place (table, key, index ...), ``text`` what the message says after the table's name. ``doubts``
    are other keys it may stem from: if one of those is itself reported, this problem is not.
    """

    loc: Loc
    text: str
    doubts: tuple[Loc, ...] = ()


def tag_of(value: Any, default: str) -> str | None:
    """Return the name of a variant, ``CUSTOM`` for a "pkg.mod:attr" name, ``None`` where there is no proper name."""
    name = value.get("name", default) if isinstance(value, dict) else getattr(value, "name", None)
    if not isinstance(name, str):
        return None
    return CUSTOM if ":" in name else name
