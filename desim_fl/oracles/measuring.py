"""Playing a world and comparing what comes of it with theory: the instruments of all oracles."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl.build import build
from desim_fl.devices import JOB, Devices
from desim_fl.engine import Engine
from desim_fl.eventlog import EventLog, MemorySink
from desim_fl.scenario import Scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from desim_fl.records import Kind

ALPHA, Z = 1e-4, 3.8906  # two-sided, of each line
BATCHES = 40
SECOND = 1_000_000
EXPONENTIAL = {"law": "exponential", "mean": 1.0}
RELATIONS: dict[str, Callable[[float, float], bool]] = {"=": operator.eq, "<=": operator.le, ">=": operator.ge}


class Line(NamedTuple):
    """One number of theory and what was measured; ``error`` is its standard error (``None`` = no chance is involved).

    ``relation`` says how the measured number must stand to the expected one: ``"="``, or ``"<="`` and ``">="`` for bounds.
    """

    quantity: str
    expected: float
    measured: float
    error: float | None = None
    relation: str = "="

    @property
    def deviation(self) -> float:
        """Measured minus expected."""
        return self.measured - self.expected

    @property
    def holds(self) -> bool:
        """Whether the measurement agrees with theory."""
        if self.error is None:
            return RELATIONS[self.relation](self.measured, self.expected)
        return abs(self.deviation) <= Z * self.error

    @property
    def confidence(self) -> str:
        """What the comparison is worth, in words."""
        if self.error is None:
            return "exact" if self.relation == "=" else f"bound, measured {self.relation} expected"
        z = self.deviation / self.error if self.error else math.inf
        return f"z = {z:+.2f}, |z| <= {Z:.2f} (alpha = {ALPHA:g})"


class Oracle(NamedTuple):
    """A closed form: its name, where it comes from, and what plays it."""

    name: str
    source: str
    lines: Callable[[], Iterator[Line]]


class Played(NamedTuple):
    """The timeline of a world that was played to its stop: its rows, and the engine."""

    rows: NDArray[np.void]
    engine: Engine

    def of(self, kind: Kind) -> NDArray[np.void]:
        """Return the rows of one kind."""
        return self.rows[self.rows["kind"] == int(kind)]

    @property
    def seconds(self) -> float:
        """Virtual time of the stop."""
        return self.engine.final_ticks / SECOND


def played(
    count: int,
    *,
    strategy: dict[str, Any],
    run: dict[str, Any],
    jitter: Any = 1.0,
    times: Sequence[float] | None = None,
    examples: Any = 1,
    **tables: dict[str, Any],
) -> Played:
    """Play ``count`` clients that compute ``jitter`` seconds a job, times ``times`` of each client, on free links.

    ``tables`` are further tables of the scenario.
    """
    scenario = Scenario.model_validate(
        {
            "data": {"name": "quadratic", "examples_per_client": examples},
            "clients": {"count": count, "seconds_per_job": 1.0, "jitter_factor": jitter},
            "strategy": strategy,
            "run": {"seed": 1, **run},
            **tables,
        }
    )
    world = build(scenario, timing_only=True).world
    if times is not None:
        devices = Devices(tuple(map(float, times)), 1.0, JOB)
        world = replace(world, trips=replace(world.trips, devices=devices))  # pyright: ignore[reportArgumentType, reportCallIssue]
    sink = MemorySink()
    engine = Engine(world, EventLog(sink))
    engine.run()
    return Played(np.concatenate([segment.rows for segment in sink]), engine)


def averaged(quantity: str, expected: float, values: Any, *, independent: bool = False) -> Line:
    """Compare the mean of measured values; those of one run, in order, are taken in batches unless they are independent."""
    values = np.asarray(values, np.float64)
    if not independent:
        size = len(values) // BATCHES
        values = values[-size * BATCHES :].reshape(BATCHES, size).mean(axis=1)
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return Line(quantity, expected, float(values.mean()), error)
