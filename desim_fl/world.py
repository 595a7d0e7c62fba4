"""What a run is made of: the parts of one simulated world, wired by ``build`` or by hand in tests."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.errors import LawError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from desim_fl import core
    from desim_fl.assignment import Assignment
    from desim_fl.availability import Availability
    from desim_fl.failures import Perils
    from desim_fl.network import SharedWays
    from desim_fl.service import OpenLaw, ServiceLaw


class StopRules(NamedTuple):
    """When a run ends; ``None`` = not by this rule. Maximum time is played whole, counts stop at once."""

    max_ticks: int | None = None
    max_versions: int | None = None
    max_updates: int | None = None
    target_accuracy: float | None = None

    def most(self) -> tuple[float, float]:
        """Versions and updates at which the run stops; infinite where no count stops it."""
        versions, updates = self.max_versions, self.max_updates
        return math.inf if versions is None else versions, math.inf if updates is None else updates


class Monitor(NamedTuple):
    """When a run ends for want of improvement: ``patience`` evaluations on the split ``validation``."""

    patience: int
    measure: str = "accuracy"


class Evaluations(NamedTuple):
    """When the global model is evaluated besides at the end; with either, version 0 is evaluated at the start."""

    every_versions: int | None = None
    every_ticks: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The parts of one run.

    ``sizes`` are training examples by client. ``average(base, members)`` makes the buffers of a new version from
    those in force and ``(share, buffers)`` of the updates. ``dispatch`` is ``immediate`` or ``after_aggregation``.
    ``shared`` are the links that transfers contend for; the trips then leave out what those carry.
    ``availability`` says who is online when (``None`` = everybody always), ``perils`` what may befall a job on its way.
    ``patience`` is that of local training in epochs, ``monitor`` that of the run (:mod:`desim_fl.patience`).
    ``arrivals`` open the system (``None`` = closed: ``concurrency`` jobs in flight), a client may have ``client_queue`` open
    jobs, and the ``server`` may take time to take updates in (``None`` = it takes none).
    ``timing_only`` worlds train nothing; what reads outcomes is refused in them, unless they ``assume_full_work``: then
    it reads nothing, as if no value had ever been reported.
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
    shared: SharedWays | None = None
    availability: Availability | None = None
    perils: Perils | None = None
    assume_full_work: bool = False
    patience: int | None = None
    monitor: Monitor | None = None
    arrivals: OpenLaw | None = None
    client_queue: int = 1
    server: ServiceLaw | None = None

    def __post_init__(self) -> None:
        """Refuse by name what the engine cannot play."""
        if self.trips.contended != (self.shared is not None):
            raise RefusedError(
                "trips without transfers (Trips.contended) go with shared links (World.shared), and no others"
            )
        self._refuse_early()
        for what, part in (("strategy", self.strategy), ("selector", self.selector)):
            if self.timing_only and part.reads_outcomes and not self.assume_full_work:
                raise RefusedError(
                    f"the {what} {type(part).__name__} reads trained values (reads_outcomes), so the timeline is not "
                    "known without training; use run instead of plan, or plan --assume-full-work for the timeline as if "
                    "nothing had been read"
                )

    def _refuse_early(self) -> None:
        """Refuse early stops where the timeline could not follow them."""
        target = None if self.assume_full_work else self.stops.target_accuracy
        readers = (self.patience, self.monitor, target)
        for key, value in zip(("training.patience", "run.patience", "run.target_accuracy"), readers, strict=True):
            if self.timing_only and value is not None:
                raise RefusedError(
                    f"{key} reads trained values, so the timeline is not known without training; use run instead of plan, or "
                    "plan --assume-full-work for the timeline without early stops"
                )

    def averaged(self, base: Any, buffers: Mapping[int, Any], shares: tuple[tuple[int, float], ...] | None) -> Any:
        """Buffers of the next version: float statistics by convex shares, the rest stays with the server's own.

        ``buffers`` are those of the updates since the last publish by job, ``None`` for one that is not finite. Raises
        ``LawError`` where the strategy's shares are not convex.
        """
        if not base:
            return base
        finite = {job: mine for job, mine in buffers.items() if mine is not None}
        if shares is None:
            shares = tuple((job, 1.0 / len(finite)) for job in finite)
        total = math.fsum(share for _, share in shares)
        if any(share < 0.0 for _, share in shares) or total > 1.0 + 1e-9:
            raise LawError(f"the strategy's shares are not convex: they add up to {total}")
        members = [(share, finite[job]) for job, share in shares if job in finite and share > 0.0]
        return self.average(base, members)
