"""FedProx: FedAvg's rounds, a proximal term at the client, and partial work instead of dropped stragglers."""

from __future__ import annotations

from dataclasses import dataclass

from desim_fl.strategies.fedavg import FedAvg
from desim_fl.strategies.options import require


@dataclass(frozen=True, slots=True)
class FedProx(FedAvg):
    """The mean of the cohort's models, each trained on ``f_i(x) + mu / 2 * ||x - x_b||^2``.

    Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, algorithm 2, with FedAvg's weights. The term
    acts at the client (:mod:`desim_fl.learning.corrections`): a task is told ``mu`` when it is made, and the server's part
    is FedAvg's. What a straggler managed counts in full (``partial_work = "keep"``). With mu = 0 this is FedAvg, bit for bit.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        FedAvg.__post_init__(self)  # not super(): slots make a class of its own
        require(self.mu >= 0, "mu", self.mu, "must be at least 0")
