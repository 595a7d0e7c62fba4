"""CA2FL: buffered updates, calibrated by what each client sent last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from desim_fl.core import Reply
from desim_fl.strategies.buffer import Buffer, learners
from desim_fl.strategies.options import require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, Update, View


class Calibration(NamedTuple):
    """The buffer of differences, the mean of all clients' last deltas (``None`` = 0) before it, and N."""

    buffer: Buffer
    mean: Params
    clients: int


@dataclass(frozen=True, slots=True)
class Ca2fl:
    """At M arrivals ``x <- x + server_lr * (h + (1/M) sum (delta_i - h_i))``; then h_i is client i's last delta.

    Wang, Cao, Wu, Chen, Chen, "Tackling the Data Heterogeneity in Asynchronous Federated Learning with Cached Update
    Calibration", ICLR 2024, algorithm 2. ``h = (1/N) sum h_i`` over all N clients that have samples, never-seen ones
    counted with 0, and as it was before this buffer. A client that is in a buffer twice is the second time compared with
    its first. Before anybody was seen it is FedBuff with weight 1. The engine keeps the h_i: N models of memory. A
    non-finite update leaves h_i as it was; M counts the finite ones.
    """

    buffer_size: int = 10
    server_lr: float = 1.0
    max_staleness: int | None = None
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.buffer_size >= 1, "buffer_size", self.buffer_size, "must be at least 1")
        require(self.server_lr > 0, "server_lr", self.server_lr, "must be greater than 0")

    def start(self, view: View) -> tuple[Calibration, Reply]:
        """Begin without memories."""
        return Calibration(Buffer(), None, learners(view)), Reply()

    def arrive(self, state: Calibration, view: View, update: Update) -> tuple[Calibration, Reply]:
        """Take the difference in and remember the delta; step at the M-th."""
        delta = update.delta
        part = delta if update.cache is None else delta - update.cache
        buffer = state.buffer.plus(part, finite=update.finite)
        keep = ((update.job.client, delta),) if update.finite else ()
        if buffer.filled < self.buffer_size:
            return state._replace(buffer=buffer), Reply(keep=keep, weight=update.counts)
        if not buffer.finite:
            return state._replace(buffer=Buffer()), Reply(params=view.params, shares=(), weight=0.0, scale=0.0)
        before, total = state.mean, buffer.total
        step = total / buffer.finite if before is None else before + total / buffer.finite
        mean = total / state.clients if before is None else before + total / state.clients
        reply = Reply(
            params=view.params + self.server_lr * step,
            keep=keep,
            weight=update.counts,
            scale=self.server_lr / buffer.finite,
        )
        return Calibration(Buffer(), mean, state.clients), reply

    def lose(self, state: Calibration, view: View, loss: Loss) -> tuple[Calibration, Reply]:  # noqa: ARG002
        """Let the engine refill the place."""
        return state, Reply()

    def alarm(self, state: Calibration, view: View, name: str) -> tuple[Calibration, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()
