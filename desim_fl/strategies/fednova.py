"""FedNova: rounds of normalised updates, so that clients with more local steps do not pull harder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from desim_fl.strategies.fedavg import FedAvg, Round, taken_in
from desim_fl.strategies.options import require

if TYPE_CHECKING:
    from desim_fl.core import Params, Update, View


@dataclass(frozen=True, slots=True)
class FedNova(FedAvg):
    """``x <- x + server_lr * tau_eff * sum p_i delta_i / ||a_i||_1``, with ``tau_eff = sum p_i ||a_i||_1``.

    Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", NeurIPS 2020,
    equations 6 to 8. ``a_i`` are the factors with which client i's tau_i gradients enter its change, so that for equal
    ``||a_i||_1`` this is FedAvg:

        plain SGD          ||a||_1 = tau
        momentum rho       ||a||_1 = (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho)
        proximal term mu   ||a||_1 = (1 - (1 - lr mu)^tau) / (lr mu)

    ``momentum`` and ``mu`` are those of local training, not both; lr is that of the job. tau_i are the steps really done.
    """

    momentum: float = 0.0
    mu: float = 0.0

    def __post_init__(self) -> None:
        FedAvg.__post_init__(self)
        require(0 <= self.momentum < 1, "momentum", self.momentum, "must lie in [0, 1)")
        require(self.mu >= 0, "mu", self.mu, "must be at least 0")
        require(not (self.mu and self.momentum), "mu", self.mu, "must be 0 beside momentum: no norm of both is known")

    def norm(self, steps: int, lr: float | None) -> float:
        """``||a||_1`` of so many local steps."""
        rho, shrink = self.momentum, (lr or 0.0) * self.mu
        if rho:
            return (steps - rho * (1.0 - rho**steps) / (1.0 - rho)) / (1.0 - rho)
        return (1.0 - (1.0 - shrink) ** steps) / shrink if shrink else float(steps)

    def _taken_in(self, state: Round, view: View, update: Update, mine: int) -> Round:  # noqa: ARG002
        length = self.norm(update.outcome.steps, update.job.work.lr)
        known = 0.0 if state.gathered is None else state.gathered
        gathered = known + (mine / (state.total + mine)) * (length - known)
        part = update.delta / length if length else update.delta  # no step, no direction: a delta of 0
        return taken_in(state._replace(gathered=gathered), update.job.id, part, mine)

    def _target(self, state: Round, view: View) -> Params:
        return view.params + (self.server_lr * state.gathered) * state.mean
