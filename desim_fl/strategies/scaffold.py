"""SCAFFOLD: rounds with control variates against the drift of clients whose data differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from desim_fl.errors import RefusedError
from desim_fl.strategies.fedavg import FedAvg, Round, taken_in

if TYPE_CHECKING:
    from desim_fl.core import Params, Update, View

CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Scaffold(FedAvg):
    """``x <- x + server_lr * mean of delta_i`` and ``c <- c + |S| / N * mean of (c_i+ - c_i)``; N counts all clients.

    Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, algorithm 1. c goes
    out with each job; clients add ``c - c_i`` to their gradients, keep their c_i and return its change
    (:mod:`desim_fl.learning.controls`, option II). Every client of the cohort counts alike (``weights = "uniform"``), as
    in the paper. A client whose report comes too late for its round has renewed its c_i all the same, so c hears of it.
    """

    weights: str = "uniform"

    def _first(self, view: View) -> Round:
        return Round(self.first, carried=view.params - view.params)  # c = 0, of the parameters' kind

    def _late(self, state: Round, view: View, update: Update) -> Round:
        return _heard(state, view, update) if update.finite else state

    def _taken_in(self, state: Round, view: View, update: Update, mine: int) -> Round:
        return taken_in(_heard(state, view, update), update.job.id, update.delta, mine)

    def _target(self, state: Round, view: View) -> Params:
        return view.params + self.server_lr * state.mean

    def _extra(self, state: Round) -> Any:
        return {CONTROL: state.carried}


def _heard(state: Round, view: View, update: Update) -> Round:
    """The state with a client's change of its own variate in c."""
    extra, job = update.outcome.extra, update.job
    if extra is None:
        if update.outcome.steps and (job.work.lr or 0.0) > 0:
            raise RefusedError(
                "strategy scaffold: the task returned no control variate (Outcome.extra); use a built-in one"
            )
        return state  # a job without a step changes nothing
    return state._replace(carried=state.carried + extra[CONTROL] / view.clients)
