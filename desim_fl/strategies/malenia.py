"""Malenia SGD and Ringleader ASGD: every client counts the same, however fast it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from desim_fl.core import Reply, Send, Stop
from desim_fl.strategies.buffer import back_to, everybody, learners
from desim_fl.strategies.options import require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, Update, View


class Mine(NamedTuple):
    """One client's deltas of one round: which round, how many arrived, how many are finite, and the mean of those."""

    round: int
    arrived: int = 0
    finite: int = 0
    mean: Params = None

    def plus(self, update: Update) -> Mine:
        """Take one more in."""
        if not update.finite:
            return self._replace(arrived=self.arrived + 1)
        finite, delta = self.finite + 1, update.delta
        mean = delta if self.mean is None else self.mean + (delta - self.mean) / finite
        return Mine(self.round, self.arrived + 1, finite, mean)


class Sum(NamedTuple):
    """The sum of the clients' means, and how many of them have one (``total`` is ``None`` while nobody has)."""

    members: int = 0
    total: Params = None

    def moved(self, before: Mine, after: Mine) -> Sum:
        """Put one client's new mean in the place of its old one."""
        if after.mean is None or after.finite == before.finite:
            return self
        change = after.mean if before.mean is None else after.mean - before.mean
        total = change if self.total is None else self.total + change
        return Sum(self.members + (before.mean is None), total)


class Round(NamedTuple):
    """A round of Malenia: its number, how many clients have sent how many (as pairs), the sum of means, and n."""

    number: int
    counts: tuple[tuple[int, int], ...]
    sum: Sum
    workers: int


@dataclass(frozen=True, slots=True)
class Malenia:
    """Waits until the harmonic mean of the clients' counts B_i exceeds S/n; then ``x <- x + server_lr (1/n) sum_i mean_i``.

    Tyurin, Richtarik, "Optimal Time Complexities of Parallel Stochastic Optimization Methods Under a Fixed Computation
    Model", NeurIPS 2023: all n clients compute at the model in force again and again, mean_i is the mean of client i's
    B_i deltas. S is ``gradients``; S < n waits for one of each, S = n for one more. Work that is unfinished when the model changes is stopped and
    begins again from the new one. With one local step a job the paper's gamma is ``server_lr * training.lr``. A non-finite
    delta counts in B_i, which decides when, and in no mean; n then becomes the number of clients with a mean. The engine
    keeps the means: n models of memory. All clients that have samples fly at once.
    """

    gradients: int = 1
    server_lr: float = 1.0
    max_staleness: int | None = field(default=None, init=False, repr=False)
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.gradients >= 1, "gradients", self.gradients, "must be at least 1")
        require(self.server_lr > 0, "server_lr", self.server_lr, "must be greater than 0")

    def start(self, view: View) -> tuple[Round, Reply]:
        """Send everybody out."""
        return Round(0, (), Sum(), learners(view)), Reply(sends=everybody(view))

    def arrive(self, state: Round, view: View, update: Update) -> tuple[Round, Reply]:
        """Take the delta into its client's mean; step if the counts suffice."""
        client, mine = update.job.client, update.cache
        if mine is None or mine.round != state.number:
            mine = Mine(state.number)
        after = mine.plus(update)
        state = state._replace(counts=_counted(state.counts, mine.arrived), sum=state.sum.moved(mine, after))
        keep = ((client, after),)
        if not self._suffices(state):
            return state, Reply(keep=keep, sends=back_to(client), weight=update.counts)
        flying = [(job, out.client) for job, out in view.flying.items() if job != update.job.id]
        reply = Reply(
            params=view.params,
            shares=(),
            keep=keep,
            stops=tuple(Stop(job) for job, _ in flying),
            sends=(Send(clients=(client, *(other for _, other in flying))),),
            weight=update.counts,
            scale=0.0,
        )
        members, total = state.sum
        if members:
            scale = self.server_lr / members
            reply = reply._replace(params=view.params + scale * total, shares=None, scale=scale)
        return Round(state.number + 1, (), Sum(), state.workers), reply

    def _suffices(self, state: Round) -> bool:
        """Whether (mean of 1/B_i)^-1 > S/n, exactly; nobody may be without one."""
        if sum(clients for _, clients in state.counts) < state.workers:
            return False
        inverse = sum(Fraction(clients, count) for count, clients in state.counts)
        return state.workers**2 > self.gradients * inverse

    def lose(self, state: Round, view: View, loss: Loss) -> tuple[Round, Reply]:  # noqa: ARG002
        """Send the same client out again."""
        return state, Reply(sends=back_to(loss.job.client))

    def alarm(self, state: Round, view: View, name: str) -> tuple[Round, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply(sends=())


def _counted(counts: tuple[tuple[int, int], ...], before: int) -> tuple[tuple[int, int], ...]:
    """Let one client go from ``before`` to one more; pairs (B, how many clients have it), by B."""
    held = dict(counts)
    if before:
        held[before] -= 1
    held[before + 1] = held.get(before + 1, 0) + 1
    return tuple(sorted((count, clients) for count, clients in held.items() if clients))


class Row(NamedTuple):
    """One client's two tables: its deltas of the round, whether it has made its step in it, and those for the next."""

    mine: Mine
    stepped: bool = False
    surplus: Mine = Mine(0)


class Tables(NamedTuple):
    """A round of Ringleader: its number, who was heard of, steps made, the sum of means; the same of the next round; n."""

    number: int
    heard: int
    steps: int
    sum: Sum
    next_heard: int
    next_sum: Sum
    workers: int


@dataclass(frozen=True, slots=True)
class Ringleader:
    """Collects one delta of every client, then makes n steps ``x <- x + server_lr (1/n) sum_i mean_i``, one a client.

    Maranjyan, Richtarik, "Ringleader ASGD: The First Asynchronous SGD with Optimal Time Complexity under Data
    Heterogeneity", ICLR 2026 (from a digest of the paper). Phase 1 lasts until every client has sent a delta. In phase 2
    each client's next delta goes into its mean and makes a step; what a client sends beyond that in this phase goes into a
    second table, which is the first one of the next round. Who arrives leaves at once with the model in force. No delta is
    more than 2n - 2 versions old. With one local step a job the paper's gamma is ``server_lr * training.lr``. A non-finite
    delta makes its step, and is in no mean; n then becomes the number of clients with a mean. The engine keeps the two
    tables: 2n models of memory. All clients that have samples fly at once.
    """

    server_lr: float = 1.0
    max_staleness: int | None = field(default=None, init=False, repr=False)
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.server_lr > 0, "server_lr", self.server_lr, "must be greater than 0")

    def start(self, view: View) -> tuple[Tables, Reply]:
        """Send everybody out."""
        return Tables(0, 0, 0, Sum(), 0, Sum(), learners(view)), Reply(sends=everybody(view))

    def arrive(self, state: Tables, view: View, update: Update) -> tuple[Tables, Reply]:
        """Take the delta into the table it belongs to; step where it is this client's turn."""
        client, collecting = update.job.client, state.heard < state.workers
        row = _row(update.cache, state.number)
        if row.stepped:
            after = row._replace(surplus=row.surplus.plus(update))
            heard = state.next_heard + (row.surplus.arrived == 0)
            state = state._replace(next_heard=heard, next_sum=state.next_sum.moved(row.surplus, after.surplus))
            return state, Reply(keep=((client, after),), sends=back_to(client), weight=update.counts)
        after = row._replace(mine=row.mine.plus(update), stepped=not collecting)
        heard = state.heard + (row.mine.arrived == 0)
        state = state._replace(heard=heard, sum=state.sum.moved(row.mine, after.mine))
        reply = Reply(keep=((client, after),), sends=back_to(client), weight=update.counts)
        return (state, reply) if collecting else self._step(state, view, reply)

    def _step(self, state: Tables, view: View, reply: Reply) -> tuple[Tables, Reply]:
        members, total = state.sum
        reply = reply._replace(params=view.params, shares=(), scale=0.0)
        if members:
            scale = self.server_lr / members
            reply = reply._replace(params=view.params + scale * total, shares=None, scale=scale)
        state = state._replace(steps=state.steps + 1)
        if state.steps == state.workers:
            state = Tables(state.number + 1, state.next_heard, 0, state.next_sum, 0, Sum(), state.workers)
        return state, reply

    def lose(self, state: Tables, view: View, loss: Loss) -> tuple[Tables, Reply]:  # noqa: ARG002
        """Send the same client out again."""
        return state, Reply(sends=back_to(loss.job.client))

    def alarm(self, state: Tables, view: View, name: str) -> tuple[Tables, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply(sends=())


def _row(cache: Row | None, number: int) -> Row:
    """Return a client's row as of this round: what it sent beyond its step in the last one is its first table now."""
    if cache is not None and cache.mine.round == number:
        return cache
    before = cache is not None and cache.mine.round == number - 1
    mine = cache.surplus if before and cache is not None else Mine(number)
    return Row(mine._replace(round=number), stepped=False, surplus=Mine(number + 1))
