"""FedFa: the mean of a queue of the latest arrivals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from desim_fl.core import Reply
from desim_fl.strategies.options import one_of, require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, Update, View

Queue = tuple["Params | None", ...]  # models or deltas, oldest first; None = one that was not finite


@dataclass(frozen=True, slots=True)
class FedFa:
    """At each arrival the queue of the last K takes it in and lets its oldest go; then ``x <- mean of the queue``.

    Xu, Ma, Liang, Wang et al., "FedFa: A Fully Asynchronous Training Paradigm for Federated Learning", IJCAI 2024 (the
    formula is recalled, not checked against the paper's text). ``content = "delta"`` is FedFa-Delta: the queue holds
    deltas, and their mean is added to the model. While fewer than K have arrived, ``fill = "average"`` takes the mean of
    what is there, ``"initial"`` lets x_0 (for deltas: 0) stand in the empty places. A non-finite update takes its place in the
    queue and counts nowhere; without a finite one in the queue the model stays. K models of memory.
    """

    queue_size: int = 5
    content: str = "model"
    fill: str = "average"
    max_staleness: int | None = None
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.queue_size >= 1, "queue_size", self.queue_size, "must be at least 1")
        one_of("content", self.content, ("model", "delta"))
        one_of("fill", self.fill, ("average", "initial"))

    def start(self, view: View) -> tuple[Queue, Reply]:
        """Begin with an empty queue, or with one of initial models."""
        if self.fill == "average":
            return (), Reply()
        initial = view.params if self.content == "model" else view.params - view.params
        return (initial,) * self.queue_size, Reply()

    def arrive(self, state: Queue, view: View, update: Update) -> tuple[Queue, Reply]:
        """Move the queue on and publish its mean."""
        content = update.outcome.params if self.content == "model" else update.delta
        queue = (*state, content if update.finite else None)[-self.queue_size :]
        finite = [entry for entry in queue if entry is not None]
        if not finite:
            return queue, Reply(params=view.params, shares=(), weight=0.0, scale=0.0)
        total = finite[0]
        for entry in finite[1:]:
            total = total + entry
        mean = total / len(finite)
        params = mean if self.content == "model" else view.params + mean
        shares = ((update.job.id, 1.0 / len(finite)),) if update.finite else ()
        return queue, Reply(params=params, shares=shares, weight=update.counts, scale=1.0 / len(finite))

    def lose(self, state: Queue, view: View, loss: Loss) -> tuple[Queue, Reply]:  # noqa: ARG002
        """Let the engine refill the place."""
        return state, Reply()

    def alarm(self, state: Queue, view: View, name: str) -> tuple[Queue, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()
