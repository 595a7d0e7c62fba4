"""Ticks: whole microseconds of virtual time, so that sums are exact and equal instants are equal."""

from __future__ import annotations

from typing import Any

from desim_fl.core import TICKS_PER_SECOND

MOST_TICKS = 1 << 62  # 146,000 years; keeps every sum inside a signed 64-bit integer


def to_ticks(seconds: float) -> int:
    """Seconds as ticks, rounded half to even; raises ``ValueError`` for what is no duration."""
    if not 0.0 <= seconds < MOST_TICKS / TICKS_PER_SECOND:
        raise ValueError(f"a duration of {seconds} s is not a finite number of seconds from 0 to 146,000 years")
    return round(seconds * TICKS_PER_SECOND)


def scaled(ticks: int, scale: float) -> int:
    """Ticks times a scale: whole scales multiply exactly, others round half to even once more."""
    product = ticks * int(scale) if scale == int(scale) else round(ticks * scale)
    if product >= MOST_TICKS:
        raise ValueError(f"a duration of {ticks / TICKS_PER_SECOND} s times {scale} exceeds 146,000 years")
    return product


def is_leg(ticks: Any) -> bool:
    """Whether a value can be the length of a leg: a whole number of ticks in range, no float, NaN or negative."""
    return type(ticks) is int and 0 <= ticks < MOST_TICKS
