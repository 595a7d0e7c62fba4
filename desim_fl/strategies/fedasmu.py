"""FedASMU's server rule with fixed coefficients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from desim_fl.core import Reply
from desim_fl.strategies.options import require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Update, View


@dataclass(frozen=True, slots=True)
class FedAsmuStatic:
    """``x <- (1 - a) x + a x_i`` at each arrival, ``a = mu xi / (1 + mu xi)``, ``xi = lam / (sqrt(t) (tau+1)^sigma) + iota``.

    Liu, Jia, Che, Huo, Ren, Zhou, Yang, "FedASMU: Efficient Asynchronous Federated Learning with Dynamic Staleness-aware
    Model Update", AAAI 2024, equations (1) and (2); t counts versions from 1, so the first arrival has t = 1. The paper's
    coefficients belong to each client and are learned at the server, and a client merges a fresh model once during its
    training: neither is here, hence "static". The paper's bound of 99 on ``tau + 1`` is ``max_staleness = 98``. A non-finite
    update publishes the unchanged model.
    """

    lam: float = 1.0
    sigma: float = 0.5
    iota: float = 0.0
    mu: float = 1.0
    max_staleness: int | None = None
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("lam", "sigma", "iota"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be at least 0")
        require(self.mu > 0, "mu", self.mu, "must be greater than 0")
        require(
            self.lam + self.iota > 0, "iota", self.iota, "must be greater than 0 where lam is 0: nothing would weigh"
        )

    def share(self, version: int, tau: int) -> float:
        """How much of the model an update with staleness tau becomes, ``version`` being in force."""
        xi = self.lam / (math.sqrt(version + 1) * (tau + 1) ** self.sigma) + self.iota
        return self.mu * xi / (1.0 + self.mu * xi)

    def start(self, view: View) -> tuple[None, Reply]:  # noqa: ARG002
        """Let the engine fill the concurrency."""
        return None, Reply()

    def arrive(self, state: None, view: View, update: Update) -> tuple[None, Reply]:
        """Mix the client's model in."""
        if not update.finite:
            return state, Reply(params=view.params, shares=(), weight=0.0, scale=1.0)
        share = self.share(view.version, update.staleness)
        params = (1.0 - share) * view.params + share * update.outcome.params
        return state, Reply(params=params, shares=((update.job.id, share),), weight=share, scale=1.0)

    def lose(self, state: None, view: View, loss: Loss) -> tuple[None, Reply]:  # noqa: ARG002
        """Let the engine refill the place."""
        return state, Reply()

    def alarm(self, state: None, view: View, name: str) -> tuple[None, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()
