"""Rennala SGD: minibatches that whoever is fast fills."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from desim_fl.core import Reply, Send, Stop
from desim_fl.strategies.buffer import Buffer, again, back_to
from desim_fl.strategies.options import require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Update, View


@dataclass(frozen=True, slots=True)
class Rennala:
    """Gradients at the model in force are collected; after B of them ``x <- x + server_lr * (their mean delta)``.

    Tyurin, Richtarik, "Optimal Time Complexities of Parallel Stochastic Optimization Methods Under a Fixed Computation
    Model", NeurIPS 2023. A client that arrives leaves at once with the model in force, so the same client may fill
    several places. Work that is unfinished when the model changes is ignored when it arrives (rejected as "late"), or,
    with ``stop_unfinished = true``, stopped then and there, and its clients start again from the new model: two methods
    with different timing. With one local step a job the paper's gamma is ``server_lr * training.lr``.
    """

    batch: int = 10
    stop_unfinished: bool = False
    server_lr: float = 1.0
    max_staleness: int | None = field(default=None, init=False, repr=False)
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", self.batch, "must be at least 1")
        require(self.server_lr > 0, "server_lr", self.server_lr, "must be greater than 0")

    def start(self, view: View) -> tuple[Buffer, Reply]:  # noqa: ARG002
        """Let the engine fill the concurrency."""
        return Buffer(), Reply()

    def arrive(self, state: Buffer, view: View, update: Update) -> tuple[Buffer, Reply]:
        """Take in what was computed at the model in force; step at the B-th."""
        client = update.job.client
        if update.staleness > 0:
            return state, Reply(reject="late", sends=back_to(client))
        state = state.plus(update.delta, finite=update.finite)
        if state.filled < self.batch:
            return state, Reply(sends=back_to(client), weight=update.counts)
        return Buffer(), self._step(state, view, update)

    def _step(self, state: Buffer, view: View, update: Update) -> Reply:
        flying = view.flying.items() if self.stop_unfinished else ()
        unfinished = [(job, out.client) for job, out in flying if job != update.job.id]
        reply = Reply(
            params=view.params,
            shares=(),
            stops=tuple(Stop(job) for job, _ in unfinished),
            sends=(Send(clients=(update.job.client, *(client for _, client in unfinished))),),
            weight=update.counts,
            scale=0.0,
        )
        if not state.finite:
            return reply
        scale = self.server_lr / state.finite
        return reply._replace(params=view.params + scale * state.total, shares=None, scale=scale)

    def lose(self, state: Buffer, view: View, loss: Loss) -> tuple[Buffer, Reply]:
        """Send the same client out again."""
        return state, Reply(sends=again(view, loss))

    def alarm(self, state: Buffer, view: View, name: str) -> tuple[Buffer, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()
