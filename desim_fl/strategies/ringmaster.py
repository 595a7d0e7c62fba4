"""Ringmaster ASGD: gradients that are too old are discarded, or not even finished."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from desim_fl.core import Reply, Send, Stop
from desim_fl.strategies.buffer import again, back_to
from desim_fl.strategies.options import require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Update, View


@dataclass(frozen=True, slots=True)
class Ringmaster:
    """At an arrival of delay tau: ``x <- x + server_lr * delta`` if ``tau < delay_threshold``, else it is discarded.

    Maranjyan, Tyurin, Richtarik, "Ringmaster ASGD: The First Asynchronous SGD with Optimal Time Complexity", ICML 2025.
    Either way the model in force goes back to that client. ``delay_threshold`` is the paper's R: 1 takes fresh
    gradients only; ``None`` takes all (plain asynchronous SGD). With ``stop = true`` a job whose delay reaches R is
    stopped at once and its client starts again from the new model, so that nothing is ever discarded on arrival.

    What is discarded is work lost: arrivals rejected as "stale", or cancelled jobs. A client slower than R updates of the
    others never counts, which biases the result where clients have different data. With one local step a job the paper's
    gamma is ``server_lr * training.lr``.
    """

    delay_threshold: int | None = None
    stop: bool = False
    server_lr: float = 1.0
    max_staleness: int | None = field(default=None, init=False, repr=False)
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        threshold = self.delay_threshold
        require(threshold is None or threshold >= 1, "delay_threshold", threshold, "must be at least 1")
        require(self.server_lr > 0, "server_lr", self.server_lr, "must be greater than 0")

    def start(self, view: View) -> tuple[None, Reply]:  # noqa: ARG002
        """Let the engine fill the concurrency."""
        return None, Reply()

    def arrive(self, state: None, view: View, update: Update) -> tuple[None, Reply]:
        """Apply or discard; hand the model in force back."""
        client = update.job.client
        if self.delay_threshold is not None and update.staleness >= self.delay_threshold:
            return state, Reply(reject="stale", sends=back_to(client))
        late = self._late(view, update.job.id)
        reply = Reply(
            params=view.params,
            shares=None if update.finite else (),
            stops=tuple(Stop(job) for job, _ in late),
            sends=(Send(clients=(client, *(late_client for _, late_client in late))),),
            weight=self.server_lr * update.counts,
            scale=1.0,
        )
        return state, reply._replace(params=view.params + self.server_lr * update.delta) if update.finite else reply

    def _late(self, view: View, arrived: int) -> list[tuple[int, int]]:
        """Jobs and clients whose delay reaches the threshold with this update."""
        if not self.stop or self.delay_threshold is None:
            return []
        limit = self.delay_threshold
        return [(job, out.client) for job, out in view.flying.items() if job != arrived and out.staleness + 1 >= limit]

    def lose(self, state: None, view: View, loss: Loss) -> tuple[None, Reply]:
        """Send the same client out again."""
        return state, Reply(sends=again(view, loss))

    def alarm(self, state: None, view: View, name: str) -> tuple[None, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()
