"""What the timeline reads of training comes out as it went in, now and when it is told again."""

from __future__ import annotations

import math
import struct

import pytest

from desim_fl.errors import CheckpointError
from desim_fl.readings import Readings

VALUES = (0.1, None, -0.0, math.nextafter(1.0, 2.0), 5e-324, math.inf, 0.0, None, 1e308)


def bits(values):
    """Values to the last bit, where -0.0 is not 0.0."""
    return [None if value is None else struct.pack("<d", value) for value in values]


def test_a_value_that_is_read_is_the_value_that_was_trained():
    """To the last bit, no value included; told again in the same order, then new ones follow."""
    readings = Readings()
    assert bits(map(readings.read, VALUES)) == bits(VALUES)
    kept = readings.kept()
    readings.tell_again(kept)
    assert bits(readings.read(99.0) for _ in VALUES) == bits(VALUES)
    readings.replay.end()
    assert readings.read(7.5) == 7.5
    assert bits(readings.read(value) for value in VALUES) == bits(VALUES)
    other = Readings()
    other.tell_again(readings.kept())
    assert bits(other.read(None) for _ in range(2 * len(VALUES) + 1)) == bits((*VALUES, 7.5, *VALUES))


def test_a_timeline_that_reads_more_or_less_than_is_kept_is_another_one():
    """Both are named, rather than told something else."""
    readings = Readings()
    readings.read(1.0)
    readings.tell_again(readings.kept())
    with pytest.raises(CheckpointError, match="reads less of training than is kept"):
        readings.replay.end()
    readings.read(None)
    with pytest.raises(CheckpointError, match="reads more of training than is kept"):
        readings.read(None)
