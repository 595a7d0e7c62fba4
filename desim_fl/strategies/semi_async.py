"""K of M: the server waits for the first K of M clients, whatever versions they started from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from desim_fl.core import Reply
from desim_fl.strategies.fedavg import Round, taken_in
from desim_fl.strategies.options import one_of, require
from desim_fl.strategies.staleness import Staleness, named

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, Update, View


@dataclass(frozen=True, slots=True)
class SemiAsync:
    """At the K-th arrival ``x <- sum p_i x_i`` over those K, with ``p_i`` in proportion to ``n_i s(tau_i)``.

    M = ``run.concurrency`` clients train; the K that came are sent out again with the new model, the other M - K go on. The
    rule of semi-asynchronous systems such as FedSA (Ma et al., IEEE JSAC 2021) and of PORT's study of the minimum number of
    clients (Su and Li, IWQoS 2022, section III), in its plain form: s = 1 unless a staleness function is chosen.
    ``mixing = "delta"`` adds the mean of the deltas instead. With K = M nothing is stale, and this is FedAvg.
    """

    clients_per_version: int = 10
    server_lr: float = 1.0
    mixing: str = "model"
    weights: str = "examples"
    staleness: str | Staleness = "constant"
    staleness_power: float = 0.5
    hinge_a: float = 10.0
    hinge_b: float = 4.0
    staleness_offset: int = 0
    max_staleness: int | None = None
    reads_outcomes: bool = field(default=False, init=False, repr=False)
    weigh: Staleness = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.clients_per_version >= 1, "clients_per_version", self.clients_per_version, "must be at least 1")
        require(self.server_lr > 0, "server_lr", self.server_lr, "must be greater than 0")
        one_of("mixing", self.mixing, ("model", "delta"))
        one_of("weights", self.weights, ("examples", "uniform"))
        weigh = named(
            self.staleness,
            power=self.staleness_power,
            hinge_a=self.hinge_a,
            hinge_b=self.hinge_b,
            offset=self.staleness_offset,
        )
        object.__setattr__(self, "weigh", weigh)

    def start(self, view: View) -> tuple[Round, Reply]:  # noqa: ARG002
        """Let the engine fill the concurrency."""
        return Round(), Reply()

    def arrive(self, state: Round, view: View, update: Update) -> tuple[Round, Reply]:
        """Take the update in; publish if it was the K-th."""
        state, weight = state._replace(reports=state.reports + 1), 0.0
        if update.finite:
            weight = self.weigh(update.staleness) * (update.outcome.examples if self.weights == "examples" else 1)
        if weight:
            value = update.outcome.params if self.mixing == "model" else update.delta
            state = taken_in(state, update.job.id, value, weight)
        if state.reports < self.clients_per_version:
            return state, Reply(weight=float(weight))
        return Round(state.number + 1), self._publish(state, view)._replace(weight=float(weight))

    def lose(self, state: Round, view: View, loss: Loss) -> tuple[Round, Reply]:  # noqa: ARG002
        """Let the engine refill the place."""
        return state, Reply()

    def alarm(self, state: Round, view: View, name: str) -> tuple[Round, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()

    def _publish(self, state: Round, view: View) -> Reply:
        if state.mean is None:
            return Reply(params=view.params, shares=(), scale=0.0)
        shares = tuple((job, mine / state.total) for job, mine in state.members)
        return Reply(params=self._target(state, view.params), shares=shares, scale=self.server_lr / state.total)

    def _target(self, state: Round, x: Params) -> Params:
        if self.mixing == "delta":
            return x + self.server_lr * state.mean
        return state.mean if self.server_lr == 1 else x + self.server_lr * (state.mean - x)
