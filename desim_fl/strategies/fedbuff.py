"""FedBuff: every K-th arrival makes a version."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.core import Reply, applied
from desim_fl.strategies.options import one_of, require
from desim_fl.strategies.staleness import Staleness, named

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, Update, View


class Buffer(NamedTuple):
    """What arrived since the last flush: how many, their weighted sum, and ``(job, weight)`` of the finite ones.

    ``total`` is ``None`` while no finite update is in.
    """

    filled: int = 0
    total: Params = None
    members: tuple[tuple[int, float], ...] = ()


EMPTY = Buffer()
new: Any = tuple.__new__  # a NamedTuple from all its fields at half the price


@dataclass(frozen=True, slots=True)
class FedBuff:
    """``buf += s(tau) delta``; at the K-th arrival ``x <- x + server_lr * buf / K`` and the buffer is empty again.

    Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022, algorithm 1.
    ``normalize`` says what the sum is divided by: ``"K"``, the number of updates whatever they weigh (the paper,
    the default), ``"sum_w"``, the sum of their weights, or ``"none"``, nothing. A non-finite update fills its
    place but is not counted in the divisor; a buffer without a finite one publishes the unchanged model.
    ``flush_at_end`` applies the last, partial buffer when the run stops, divided by the number it holds.
    """

    buffer_size: int = 10
    server_lr: float = 1.0
    normalize: str = "K"
    staleness: str | Staleness = "polynomial"
    staleness_power: float = 0.5
    hinge_a: float = 10.0
    hinge_b: float = 4.0
    staleness_offset: int = 0
    flush_at_end: bool = False
    max_staleness: int | None = None
    reads_outcomes: bool = field(default=False, init=False, repr=False)
    weigh: Staleness = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.buffer_size >= 1, "buffer_size", self.buffer_size, "must be at least 1")
        require(self.server_lr > 0, "server_lr", self.server_lr, "must be greater than 0")
        one_of("normalize", self.normalize, ("K", "sum_w", "none"))
        weigh = named(
            self.staleness,
            power=self.staleness_power,
            hinge_a=self.hinge_a,
            hinge_b=self.hinge_b,
            offset=self.staleness_offset,
        )
        object.__setattr__(self, "weigh", weigh)

    def start(self, view: View) -> tuple[Buffer, Reply]:  # noqa: ARG002
        """Begin with an empty buffer and let the engine fill the concurrency."""
        return EMPTY, Reply()

    def arrive(self, state: Buffer, view: View, update: Update) -> tuple[Buffer, Reply]:
        """Add the update; flush if it was the K-th."""
        filled, total, members = state
        weight = 0.0
        if update.finite:
            weight = float(self.weigh(update.staleness))
            part = weight * update.delta
            total = part if total is None else total + part
            members = (*members, (update.job.id, weight))
        state = new(Buffer, (filled + 1, total, members))
        if filled + 1 < self.buffer_size:
            return state, _taken_in(weight)
        return EMPTY, self._flush(state, view, weight)

    def lose(self, state: Buffer, view: View, loss: Loss) -> tuple[Buffer, Reply]:  # noqa: ARG002
        """Let the engine refill the slot; the buffer waits for the next arrival."""
        return state, Reply()

    def alarm(self, state: Buffer, view: View, name: str) -> tuple[Buffer, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()

    def finish(self, state: Buffer, view: View) -> Reply:
        """Answer the engine's one question when the run stops: what to publish of a partial buffer."""
        return self._flush(state, view) if self.flush_at_end and state.filled else Reply()

    def _flush(self, state: Buffer, view: View, weight: float | None = None) -> Reply:
        weights = sum([weight for _, weight in state.members])
        if weights == 0:  # no finite member, or a steep power that underflowed: nothing to divide by
            return Reply(params=view.params, shares=(), weight=weight, scale=0.0)
        scale = self.server_lr / {"K": len(state.members), "sum_w": weights, "none": 1}[self.normalize]
        shares = tuple([(job, part / weights) for job, part in state.members])
        return applied(view.params + scale * state.total, shares, weight, scale)


@lru_cache(maxsize=4096)
def _taken_in(weight: float) -> Reply:
    """The reply to an arrival that is buffered with this weight; few weights occur, and each reply is a constant."""
    return Reply(weight=weight)
