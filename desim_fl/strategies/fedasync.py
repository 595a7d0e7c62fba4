"""FedAsync: every arrival makes a version."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from desim_fl.core import Reply
from desim_fl.strategies.options import one_of, require
from desim_fl.strategies.staleness import Staleness, named

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, Update, View


@dataclass(frozen=True, slots=True)
class FedAsync:
    """``x <- (1 - a) x + a x_new`` at each arrival, with ``a = alpha * s(tau)``; ``mixing="delta"``: ``x + a delta``.

    Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, algorithm 1. The two mixings agree for fresh
    updates; the delta form forgets that a stale model also pulls the server back to its old base. ``a`` starts
    from ``alpha`` anew each time. A non-finite update publishes the unchanged model.
    """

    alpha: float = 0.6
    mixing: str = "model"
    staleness: str | Staleness = "polynomial"
    staleness_power: float = 0.5
    hinge_a: float = 10.0
    hinge_b: float = 4.0
    staleness_offset: int = 0
    max_staleness: int | None = None
    reads_outcomes: bool = field(default=False, init=False, repr=False)
    weigh: Staleness = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require(0 < self.alpha <= 1, "alpha", self.alpha, "must lie in (0, 1]")
        one_of("mixing", self.mixing, ("model", "delta"))
        weigh = named(
            self.staleness,
            power=self.staleness_power,
            hinge_a=self.hinge_a,
            hinge_b=self.hinge_b,
            offset=self.staleness_offset,
        )
        object.__setattr__(self, "weigh", weigh)

    def start(self, view: View) -> tuple[None, Reply]:  # noqa: ARG002
        """Let the engine fill the concurrency; there is nothing to remember."""
        return None, Reply()

    def arrive(self, state: None, view: View, update: Update) -> tuple[None, Reply]:
        """Mix the update in and publish."""
        share = self.alpha * self.weigh(update.staleness) * update.counts
        require(0 <= share <= 1, "alpha * s(tau)", share, "must lie in [0, 1], else the model runs away")
        if not update.finite:
            return state, Reply(params=view.params, shares=(), weight=0.0, scale=1.0)
        params = self._mix(view.params, update, share)
        return state, Reply(params=params, shares=((update.job.id, share),), weight=share, scale=1.0)

    def _mix(self, params: Params, update: Update, share: float) -> Params:
        if self.mixing == "delta":
            return params + share * update.delta
        # Not x + a (x_new - x): in floats that is not x_new where a = 1.
        return (1.0 - share) * params + share * update.outcome.params

    def lose(self, state: None, view: View, loss: Loss) -> tuple[None, Reply]:  # noqa: ARG002
        """Let the engine refill the slot."""
        return state, Reply()

    def alarm(self, state: None, view: View, name: str) -> tuple[None, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()
