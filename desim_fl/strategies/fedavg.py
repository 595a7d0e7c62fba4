"""FedAvg: synchronous rounds, with over-selection and a deadline where wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.core import Alarm, Reply, Send, Stop
from desim_fl.strategies.options import one_of, require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, Update, View


class Round(NamedTuple):
    """A running round: its number, the mean so far and who is in it.

    ``open`` is how many of the cohort can still report; ``None`` until the first of them is heard of, because
    the engine may have found fewer clients than were asked for. ``reports`` counts non-finite updates too;
    ``members`` holds ``(job, weight)`` of the finite ones, whose weights add up to ``total``. ``gathered`` and ``carried``
    are for methods that say more of a round: a second mean, and what goes on to the next round.
    """

    number: int = 0
    open: int | None = None
    reports: int = 0
    total: float = 0
    mean: Params = None
    members: tuple[tuple[int, float], ...] = ()
    gathered: Any = None
    carried: Any = None


@dataclass(frozen=True, slots=True)
class FedAvg:
    """The mean of the cohort's models, weighted by their numbers of examples.

    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    algorithm 1, normalised by those who report. With ``over_selection`` and ``deadline_s``: Bonawitz et al., "Towards
    Federated Learning at Scale", 2019, section 2.2: ``ceil(over_selection * K)`` clients start, the round ends with
    the K-th report, at the deadline, or when nothing more can come. It is committed if at least
    ``max(1, ceil(min_fraction * K))`` reported, else abandoned: time is spent, the model stays.

    Reports to a closed round are rejected as "late". Stragglers run on and stay busy unless ``cancel_stragglers``.
    A non-finite update keeps its place in the cohort with weight 0. ``server_lr`` moves the model that share of
    the way to the mean; at 1 the mean itself is published. ``weights = "uniform"`` counts every client once, as some
    papers do. ``partial_work = "drop"`` rejects what a client returns that did not manage its whole work: the baseline
    that FedProx is compared with.

    ``group``, ``first`` and ``stride`` are for methods made of several rounds at once: whom to choose from, the number of
    the first round, and how far apart numbers are.
    """

    clients_per_round: int = 10
    server_lr: float = 1.0
    over_selection: float = 1.0
    deadline_s: float | None = None
    min_fraction: float = 0.0
    cancel_stragglers: bool = False
    weights: str = "examples"
    partial_work: str = "keep"
    group: str | None = field(default=None, repr=False)
    first: int = field(default=0, repr=False)
    stride: int = field(default=1, repr=False)
    max_staleness: int | None = field(default=None, init=False, repr=False)
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.clients_per_round >= 1, "clients_per_round", self.clients_per_round, "must be at least 1")
        require(self.server_lr > 0, "server_lr", self.server_lr, "must be greater than 0")
        require(self.over_selection >= 1, "over_selection", self.over_selection, "must be at least 1")
        require(self.deadline_s is None or self.deadline_s > 0, "deadline_s", self.deadline_s, "must be above 0")
        require(0 <= self.min_fraction <= 1, "min_fraction", self.min_fraction, "must lie in [0, 1]")
        one_of("weights", self.weights, ("examples", "uniform"))
        one_of("partial_work", self.partial_work, ("keep", "drop"))

    @property
    def cohort(self) -> int:
        """How many clients a round starts."""
        return share_of(self.over_selection, self.clients_per_round)

    @property
    def quorum(self) -> int:
        """How many reports a round needs to be committed."""
        return max(1, share_of(self.min_fraction, self.clients_per_round))

    def start(self, view: View) -> tuple[Round, Reply]:
        """Send the first cohort out."""
        state = self._first(view)
        return state, Reply(sends=(self._send(state),), alarms=self._alarms(state.number))

    def arrive(self, state: Round, view: View, update: Update) -> tuple[Round, Reply]:
        """Take the report into the mean; end the round if it was the K-th or the last."""
        if update.job.tag != state.number:
            return self._late(state, view, update), Reply(reject="late", sends=())
        state = _one_less(state, view, update.job.id)
        if update.job.work.partial and self.partial_work == "drop":
            reply = Reply(sends=())
            if not state.open:
                state, reply = self._end(state, view, update.job.id)
            return state, reply._replace(reject="partial work")
        state = state._replace(reports=state.reports + 1)
        weight = self._weight(update) if update.finite else 0
        if update.finite:
            state = self._taken_in(state, view, update, weight)
        if state.reports < self.clients_per_round and state.open:
            return state, Reply(weight=float(weight), sends=())
        state, reply = self._end(state, view, update.job.id)
        return state, reply._replace(weight=float(weight))

    def lose(self, state: Round, view: View, loss: Loss) -> tuple[Round, Reply]:
        """Count on one report less; end the round if nobody is left."""
        if loss.job.tag != state.number:
            return state, Reply(sends=())
        state = _one_less(state, view, loss.job.id)
        return (state, Reply(sends=())) if state.open else self._end(state, view, loss.job.id)

    def alarm(self, state: Round, view: View, name: str) -> tuple[Round, Reply]:
        """End the round at its deadline with what is there."""
        if name != _deadline(state.number):
            return state, Reply(sends=())
        if state.open is None and not _flying(view, state.number):
            # Nobody could be sent out yet: the cohort still waits in the engine, so do not ask for a second one.
            return state, Reply(abandon=True, sends=(), alarms=self._alarms(state.number))
        return self._end(state, view)

    # ---- what other methods of rounds do otherwise

    def _first(self, view: View) -> Round:  # noqa: ARG002
        """The state of the first round."""
        return Round(self.first)

    def _weight(self, update: Update) -> int:
        """What a finite report weighs in the mean."""
        return update.outcome.examples if self.weights == "examples" else 1

    def _late(self, state: Round, view: View, update: Update) -> Round:  # noqa: ARG002
        """Hear a report to a round that is over."""
        return state

    def _taken_in(self, state: Round, view: View, update: Update, mine: int) -> Round:  # noqa: ARG002
        """Take a finite report of weight ``mine`` into the round."""
        return taken_in(state, update.job.id, update.outcome.params, mine)

    def _target(self, state: Round, view: View) -> Params:
        """Where a round with finite reports leads."""
        return state.mean if self.server_lr == 1 else view.params + self.server_lr * (state.mean - view.params)

    def _extra(self, state: Round) -> Any:  # noqa: ARG002
        """What a cohort is told beside the model."""
        return None

    # ---- rounds

    def _end(self, state: Round, view: View, gone: int = -1) -> tuple[Round, Reply]:
        following = Round(state.number + self.stride, carried=state.carried)
        stragglers = [job for job in _flying(view, state.number) if job != gone] if self.cancel_stragglers else ()
        reply = Reply(
            sends=(self._send(following),),
            stops=tuple(Stop(job) for job in stragglers),
            alarms=self._alarms(following.number, taken_back=state.number),
        )
        if state.reports < self.quorum:
            return following, reply._replace(abandon=True)
        return following, self._commit(state, view, reply)

    def _commit(self, state: Round, view: View, reply: Reply) -> Reply:
        if state.mean is None:  # every report was non-finite: they still make a version
            return reply._replace(params=view.params, shares=(), scale=0.0)
        shares = tuple((job, mine / state.total) for job, mine in state.members)
        return reply._replace(params=self._target(state, view), shares=shares, scale=self.server_lr / state.total)

    def _send(self, state: Round) -> Send:
        return Send(count=self.cohort, tag=state.number, wait=False, group=self.group, extra=self._extra(state))

    def _alarms(self, number: int, taken_back: int | None = None) -> tuple[Alarm, ...]:
        if self.deadline_s is None:
            return ()
        alarm = Alarm(_deadline(number), self.deadline_s)
        return (alarm,) if taken_back is None else (Alarm(_deadline(taken_back), None), alarm)


def _deadline(number: int) -> str:
    return f"deadline {number}"


def _flying(view: View, number: int) -> list[int]:
    return [job for job, flight in view.flying.items() if flight.tag == number]


def _one_less(state: Round, view: View, gone: int) -> Round:
    """Update how many can still report, now that one of the cohort is gone.

    Counted down, since a look at everything in flight at each event would make a round quadratic; looked up at the
    first event and again at zero, where a place may have been filled later.
    """
    left = state.open - 1 if state.open else 0
    if left == 0:
        left = sum(job != gone for job in _flying(view, state.number))
    return state._replace(open=left)


def taken_in(state: Round, job: int, value: Params, mine: float) -> Round:
    """The round with one more value of weight ``mine`` in its mean."""
    total = state.total + mine
    # m + w (x - m), not (1 - w) m + w x: equal values then have exactly that value as their mean.
    mean = value if state.mean is None else state.mean + (mine / total) * (value - state.mean)
    return state._replace(total=total, mean=mean, members=(*state.members, (job, mine)))


def share_of(share: float, number: int) -> int:
    """``ceil(share * number)`` of the number as written: 1.1 * 10 is 11, not the 12 that binary floats give."""
    return math.ceil(Decimal(repr(share)) * number)
