"""Numbers as people read them: durations, bytes, counts and shares, always with their unit."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import NamedTuple

_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_PARTS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_SHORT = 6  # digits of a share beyond which it is rounded for show


class TimeUnit(NamedTuple):
    """A unit for an axis: its name and how many seconds it has."""

    name: str
    seconds: float


def time_unit(longest_s: float) -> TimeUnit:
    """Return the unit in which times up to ``longest_s`` seconds are read best."""
    if longest_s < 0.1:  # noqa: PLR2004  (a tenth of a second still reads well as 0.1 s)
        return TimeUnit("ms", 0.001)
    for limit, name, seconds in ((180, "s", 1), (3 * 3600, "min", 60), (3 * 86_400, "h", 3600)):
        if longest_s < limit:
            return TimeUnit(name, seconds)
    return TimeUnit("d", 86_400)


def number(value: float | None, digits: int = 4) -> str:
    """Return a measured value with ``digits`` significant digits; a dash where there is none."""
    if value is None:
        return "\N{EN DASH}"
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or 1e-4 <= abs(value) < 1e6:  # noqa: PLR2004  (the range without powers of ten)
        rounded = f"{Decimal(f'{value:.{digits}g}'):f}"
        return rounded if "." not in rounded else rounded.rstrip("0").rstrip(".")
    return f"{value:.{digits}g}"


def count(value: int | None) -> str:
    """Return a whole number with separators; a dash where there is none."""
    return "\N{EN DASH}" if value is None else f"{value:,}"


def many(value: int, noun: str) -> str:
    """Return a count with its noun: ``1 update``, ``2,000 updates``."""
    return f"{count(value)} {noun}" if value == 1 else f"{count(value)} {noun}s"


def percent(share: float | None) -> str:
    """Return a share as a percentage, exact where the exact value is short."""
    if share is None:
        return "\N{EN DASH}"
    if not math.isfinite(share):
        return "not finite"
    exact = (Decimal(repr(share)) * 100).normalize()
    shown = exact if len(exact.as_tuple().digits) <= _SHORT else Decimal(f"{share * 100:.2f}")
    return f"{shown:f} %"


def size(total: float | None) -> str:
    """Bytes in decimal units."""
    if total is None:
        return "\N{EN DASH}"
    for factor, unit in _BYTES:
        if total >= factor:
            return f"{number(total / factor, 3)} {unit}"
    return f"{total:.0f} B"


def joules(total: float) -> str:
    """Energy in the largest unit that it fills."""
    for factor, unit in ((3.6e9, "MWh"), (3.6e6, "kWh"), (1e6, "MJ"), (1e3, "kJ")):
        if total >= factor:
            return f"{number(total / factor, 3)} {unit}"
    return f"{number(total, 3)} J"


def duration(seconds: float | None) -> str:
    """Seconds as ``2 d 5 h``, ``3 min 20 s``, ``4.25 s`` or ``350 ms``: at most the two largest units."""
    if seconds is None:
        return "\N{EN DASH}"
    if not math.isfinite(seconds):
        return "not finite"
    if seconds < 1:
        return "0 s" if seconds == 0 else f"{number(seconds * 1000, 3)} ms"
    if seconds < 60:  # noqa: PLR2004
        return f"{number(seconds, 3)} s"
    return _two_units(round(seconds))


def _two_units(whole: int) -> str:
    largest = next(rank for rank, (unit, _) in enumerate(_PARTS) if whole >= unit)
    (first, first_name), (second, second_name) = _PARTS[largest : largest + 2]
    rest = round(whole % first / second)
    head = whole // first + (rest * second == first)
    rest = 0 if rest * second == first else rest
    return f"{head:,} {first_name} {rest} {second_name}" if rest else f"{head:,} {first_name}"
