"""FedStale, FedVARP and MIFA: rounds, or buffers, in which those who are absent take part with what they sent last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from desim_fl.core import Reply
from desim_fl.strategies.buffer import Buffer, learners
from desim_fl.strategies.options import one_of, require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, Update, View


class Memory(NamedTuple):
    """The cohort so far, the change of its memories, ``sum p_k h_k`` before it (``None`` = 0), and N."""

    cohort: Buffer  # of delta_i - beta h_i
    change: Params  # sum of delta_i - h_i
    mean: Params
    clients: int


@dataclass(frozen=True, slots=True)
class FedStale:
    """``x <- x + server_lr * (sum_S w_i (delta_i - beta h_i) + beta sum_k p_k h_k)``; then h_i is the last delta of i in S.

    Rodio, Neglia, "FedStale: leveraging stale client updates in federated learning", ECAI 2024. ``beta = 1`` is FedVARP
    (Jhunjhunwala, Sharma, Nagarkatti, Joshi, "FedVARP: Tackling the Variance Due to Partial Client Participation in
    Federated Learning", UAI 2022) and, with ``weights = "population"``, MIFA (Gu, Huang, Zhang, Huang, "Fast Federated
    Learning in the Presence of Arbitrary Device Unavailability", NeurIPS 2021); ``beta = 0`` is FedBuff with weight 1.
    S are ``buffer_size`` arrivals: the published rounds with ``run.dispatch = "after_aggregation"`` and as many in
    flight, an asynchronous method otherwise. ``w_i`` is 1/|S| (``weights = "cohort"``) or p_i = 1/N (``"population"``), N
    counting the clients that have samples. A client that is in S twice is the second time compared with its first. The
    engine keeps the h_i: N models of memory. A non-finite update leaves h_i as it was; |S| counts the finite ones.
    """

    buffer_size: int = 10
    beta: float = 0.5
    weights: str = "cohort"
    server_lr: float = 1.0
    max_staleness: int | None = None
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.buffer_size >= 1, "buffer_size", self.buffer_size, "must be at least 1")
        require(0 <= self.beta <= 1, "beta", self.beta, "must lie in [0, 1]")
        one_of("weights", self.weights, ("cohort", "population"))
        require(self.server_lr > 0, "server_lr", self.server_lr, "must be greater than 0")

    def start(self, view: View) -> tuple[Memory, Reply]:
        """Begin without memories."""
        return Memory(Buffer(), None, None, learners(view)), Reply()

    def arrive(self, state: Memory, view: View, update: Update) -> tuple[Memory, Reply]:
        """Take the update into the cohort and remember it; step at the last."""
        delta, known = update.delta, update.cache
        part = delta if known is None else delta - self.beta * known
        state = state._replace(cohort=state.cohort.plus(part, finite=update.finite))
        keep = ()
        if update.finite:
            keep, news = ((update.job.client, delta),), delta if known is None else delta - known
            state = state._replace(change=news if state.change is None else state.change + news)
        if state.cohort.filled < self.buffer_size:
            return state, Reply(keep=keep, weight=update.counts)
        return self._step(state, view, Reply(params=view.params, shares=(), keep=keep, weight=update.counts, scale=0.0))

    def _step(self, state: Memory, view: View, reply: Reply) -> tuple[Memory, Reply]:
        cohort, change, before, clients = state
        if not cohort.finite:
            return state._replace(cohort=Buffer()), reply
        divisor = cohort.finite if self.weights == "cohort" else clients
        step = cohort.total / divisor if before is None else cohort.total / divisor + self.beta * before
        mean = change / clients if before is None else before + change / clients
        params = view.params + self.server_lr * step
        reply = reply._replace(params=params, shares=None, scale=self.server_lr / divisor)
        return Memory(Buffer(), None, mean, clients), reply

    def lose(self, state: Memory, view: View, loss: Loss) -> tuple[Memory, Reply]:  # noqa: ARG002
        """Let the engine refill the place."""
        return state, Reply()

    def alarm(self, state: Memory, view: View, name: str) -> tuple[Memory, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()


@dataclass(frozen=True, slots=True)
class FedVarp(FedStale):
    """FedStale with ``beta = 1`` and ``weights = "cohort"``: see there."""

    beta: float = field(default=1.0, init=False, repr=False)
    weights: str = field(default="cohort", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class Mifa(FedStale):
    """FedStale with ``beta = 1`` and ``weights = "population"``: ``x <- x + server_lr * (1/N) sum_k h_k``, all latest deltas."""

    beta: float = field(default=1.0, init=False, repr=False)
    weights: str = field(default="population", init=False, repr=False)
