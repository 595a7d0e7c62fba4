"""FedAsync: every arrival makes a version."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from desim_fl.core import Reply, Send, applied
from desim_fl.draws import Purpose, word
from desim_fl.strategies.options import one_of, require
from desim_fl.strategies.staleness import Staleness, named

if TYPE_CHECKING:
    from desim_fl.core import Loss, Model, Update, View


class Replay(NamedTuple):
    """Jobs sent so far, and the versions before the one in force that they may start from, oldest first."""

    sent: int = 0
    older: tuple[Model, ...] = ()


@dataclass(frozen=True, slots=True)
class FedAsync:
    """``x <- (1 - a) x + a x_new`` at each arrival, with ``a = alpha * s(tau)``; ``mixing="delta"``: ``x + a delta``.

    Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, algorithm 1. The two mixings agree for fresh
    updates; the delta form forgets that a stale model also pulls the server back to its old base. ``a`` starts
    from ``alpha`` anew each time. A non-finite update publishes the unchanged model.

    ``sampled_staleness = K`` replays the paper's experiments (section 6), where staleness is drawn and does not emerge: one
    job at a time starts from a version that is tau ~ Uniform{0, ..., K} old, or from version 0 where there is none so
    old yet. The last K models before the one in force are the state. ``seed`` is for these draws.
    """

    alpha: float = 0.6
    mixing: str = "model"
    staleness: str | Staleness = "polynomial"
    staleness_power: float = 0.5
    hinge_a: float = 10.0
    hinge_b: float = 4.0
    staleness_offset: int = 0
    max_staleness: int | None = None
    sampled_staleness: int | None = None
    seed: int = 0
    reads_outcomes: bool = field(default=False, init=False, repr=False)
    weigh: Staleness = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require(0 < self.alpha <= 1, "alpha", self.alpha, "must lie in (0, 1]")
        one_of("mixing", self.mixing, ("model", "delta"))
        sampled = self.sampled_staleness
        require(sampled is None or sampled >= 0, "sampled_staleness", sampled, "must be at least 0")
        weigh = named(
            self.staleness,
            power=self.staleness_power,
            hinge_a=self.hinge_a,
            hinge_b=self.hinge_b,
            offset=self.staleness_offset,
        )
        object.__setattr__(self, "weigh", weigh)

    def start(self, view: View) -> tuple[Replay | None, Reply]:  # noqa: ARG002
        """Let the engine fill the concurrency; or send the one job of a replay."""
        return (None, Reply()) if self.sampled_staleness is None else self._draw(Replay(), Reply())

    def arrive(self, state: Replay | None, view: View, update: Update) -> tuple[Replay | None, Reply]:
        """Mix the update in and publish."""
        job, finite = update.job, update.finite
        share = self.alpha * self.weigh(update.staleness) if finite else 0.0
        if not 0 <= share <= 1:
            require(False, "alpha * s(tau)", share, "must lie in [0, 1], else the model runs away")  # noqa: FBT003
        if not finite:
            reply = applied(view.params, (), 0.0, 1.0)
        elif self.mixing == "delta":
            reply = applied(view.params + share * update.delta, ((job.id, share),), share, 1.0)
        else:  # not x + a (x_new - x): in floats that is not x_new where a = 1
            params = (1.0 - share) * view.params + share * update.outcome.params
            reply = applied(params, ((job.id, share),), share, 1.0)
        if state is None:
            return state, reply
        return self._draw(Replay(state.sent, (*state.older, view.model)), reply)

    def _draw(self, state: Replay, reply: Reply) -> tuple[Replay, Reply]:
        """Send the next job of a replay, from a version as old as is drawn."""
        most = self.sampled_staleness or 0
        older = state.older[-most:] if most else ()
        tau = min(word(self.seed, Purpose.SAMPLED_STALENESS, 0, state.sent, 0) * (most + 1) >> 32, len(older))
        start = older[-tau] if tau else None
        return Replay(state.sent + 1, older), reply._replace(sends=(Send(start=start),))

    def lose(self, state: Replay | None, view: View, loss: Loss) -> tuple[Replay | None, Reply]:  # noqa: ARG002
        """Let the engine refill the slot; in a replay draw the next job."""
        return (None, Reply()) if state is None else self._draw(state, Reply())

    def alarm(self, state: Replay | None, view: View, name: str) -> tuple[Replay | None, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()
