"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from desim_fl.report import formats


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0005, "0.5 ms"),
        (4.25, "4.25 s"),
        (59.999, "60 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3_599.7, "1 h"),
        (7_170, "2 h"),
        (11_520, "3 h 12 min"),
        (86_400 * 2 + 5 * 3600, "2 d 5 h"),
        (86_400 * 1200, "1,200 d"),
        (None, "\N{EN DASH}"),
        (math.inf, "not finite"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    """A duration shows at most its two largest units, and never 60 of the smaller one."""
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.831, "83.1 %"),
        (0.1, "10 %"),
        (1.0, "100 %"),
        (0.0, "0 %"),
        (2 / 3, "66.67 %"),
        (None, "\N{EN DASH}"),
        (math.nan, "not finite"),
    ],
)
def test_shares(share: float | None, text: str) -> None:
    """A share is exact where that is short, and otherwise has two decimals."""
    assert formats.percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.181_94, "0.1819"),
        (3.0, "3"),
        (120.0, "120"),
        (1e-9, "1e-09"),
        (2.5e7, "2.5e+07"),
        (123_456.0, "123500"),
        (None, "\N{EN DASH}"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    """Four significant digits, without zeros that say nothing and without losing those that do."""
    assert formats.number(value) == text


def test_sizes_and_counts() -> None:
    """Bytes in decimal units; counts with separators and the right plural."""
    assert [formats.size(value) for value in (12, 2_000, 86_700_000, 1.25e12)] == ["12 B", "2 kB", "86.7 MB", "1.25 TB"]
    assert formats.many(1, "update") == "1 update"
    assert formats.many(2_000, "update") == "2,000 updates"


@pytest.mark.parametrize(
    ("longest", "unit"), [(0, "ms"), (0.05, "ms"), (2, "s"), (1_000, "min"), (86_400, "h"), (864_000, "d")]
)
def test_axes_get_a_unit_that_reads_well(longest: float, unit: str) -> None:
    """The unit of a time axis follows from the longest time on it."""
    assert formats.time_unit(longest).name == unit
