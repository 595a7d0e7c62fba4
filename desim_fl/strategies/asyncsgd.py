"""Asynchronous SGD, plain and with step sizes that adapt to the delay."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from desim_fl.core import Reply
from desim_fl.strategies.buffer import again, back_to
from desim_fl.strategies.options import one_of, require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Update, View


@dataclass(frozen=True, slots=True)
class AsyncSGD:
    """``x <- x + server_lr * factor(tau) * delta`` at each arrival; the model goes back to the client that arrived.

    Koloskova, Stich, Jaggi, "Sharper Convergence Guarantees for Asynchronous SGD for Distributed and Federated
    Learning", NeurIPS 2022, algorithm 1; ``workers = "sampled"`` is its algorithm 2, where the next client is one that
    the selector chooses. ``delay_rule``:

    * ``"none"``: factor 1.
    * ``"koloskova"`` (same paper, theorem 8, eq. (11), and section 4.4): 1 up to tau_C; beyond, ``min(1, 1 / tau)`` with
      ``beyond = "inv"``, or 0 with ``"drop"`` (a step of length 0: the iteration counts, the model stays).
    * ``"mishchenko"`` (Mishchenko, Bach, Even, Woodworth, "Asynchronous SGD Beats Minibatch SGD Under Arbitrary Delays",
      NeurIPS 2022, as in the authors' code): ``M / max(M, tau)``.

    ``threshold`` is tau_C or M; ``None`` = the number of jobs in flight. With one local step a job
    (``training.steps = 1``) a delta is ``-lr * g``, so the papers' gamma is ``server_lr * training.lr``. A job that is lost
    goes back to its client with the model in force.
    """

    server_lr: float = 1.0
    delay_rule: str = "none"
    beyond: str = "inv"
    threshold: int | None = None
    workers: str = "same"
    max_staleness: int | None = None
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.server_lr > 0, "server_lr", self.server_lr, "must be greater than 0")
        one_of("delay_rule", self.delay_rule, ("none", "koloskova", "mishchenko"))
        one_of("beyond", self.beyond, ("inv", "drop"))
        one_of("workers", self.workers, ("same", "sampled"))
        require(self.threshold is None or self.threshold >= 1, "threshold", self.threshold, "must be at least 1")

    def factor(self, tau: int, concurrency: int) -> float:
        """What the delay leaves of a step."""
        threshold = concurrency if self.threshold is None else self.threshold
        if self.delay_rule == "none" or tau <= threshold:
            return 1.0
        if self.delay_rule == "mishchenko":
            return threshold / tau
        return 0.0 if self.beyond == "drop" else 1.0 / tau

    def start(self, view: View) -> tuple[None, Reply]:  # noqa: ARG002
        """Let the engine fill the concurrency."""
        return None, Reply()

    def arrive(self, state: None, view: View, update: Update) -> tuple[None, Reply]:
        """Make the step, and hand the new model back."""
        sends = back_to(update.job.client) if self.workers == "same" else None
        rate = self.server_lr * self.factor(update.staleness, view.concurrency) * update.counts
        if rate == 0:
            return state, Reply(params=view.params, shares=(), sends=sends, weight=0.0, scale=1.0)
        return state, Reply(params=view.params + rate * update.delta, sends=sends, weight=rate, scale=1.0)

    def lose(self, state: None, view: View, loss: Loss) -> tuple[None, Reply]:
        """Send the same client out again."""
        return state, Reply(sends=again(view, loss) if self.workers == "same" else None)

    def alarm(self, state: None, view: View, name: str) -> tuple[None, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()
