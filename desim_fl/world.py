"""What a run is made of: the parts of one simulated world, wired by ``build`` or by hand in tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from desim_fl import core
    from desim_fl.assignment import Assignment


class StopRules(NamedTuple):
    """When a run ends; ``None`` = not by this rule. Maximum time is played whole, counts stop at once."""

    max_ticks: int | None = None
    max_versions: int | None = None
    max_updates: int | None = None

    def reached(self, versions: int, updates: int) -> str | None:
        """Name the count that is reached, if one is."""
        if self.max_versions is not None and versions >= self.max_versions:
            return "max_versions"
        if self.max_updates is not None and updates >= self.max_updates:
            return "max_updates"
        return None


class Evaluations(NamedTuple):
    """When the global model is evaluated besides at the end; with either, version 0 is evaluated at the start."""

    every_versions: int | None = None
    every_ticks: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The parts of one run.

    ``sizes`` are training examples by client. ``average(base, members)`` makes the buffers of a new version from
    those in force and ``(share, buffers)`` of the updates. ``dispatch`` is ``immediate`` or ``after_aggregation``.
    ``timing_only`` worlds train nothing; what reads outcomes is refused in them.
    """

    strategy: core.Strategy
    selector: core.Selector
    trips: core.Trips
    executor: core.Executor
    assignment: Assignment
    sizes: Sequence[int]
    model: core.Model
    average: Callable[[Any, list[tuple[float, Any]]], Any]
    stops: StopRules
    concurrency: int = 10
    dispatch: str = "immediate"
    evaluations: Evaluations = Evaluations()  # noqa: RUF009  (immutable)
    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)
    non_finite: str = "skip"
    timing_only: bool = False

    def __post_init__(self) -> None:
        """Refuse by name what the engine cannot play."""
        if self.trips.contended:
            raise RefusedError("links that jobs contend for (Trips.contended) cannot be played yet")
        for what, part in (("strategy", self.strategy), ("selector", self.selector)):
            if self.timing_only and part.reads_outcomes:
                raise RefusedError(
                    f"the {what} {type(part).__name__} reads trained values (reads_outcomes), so the timeline is not "
                    "known without training; use run instead of plan"
                )
