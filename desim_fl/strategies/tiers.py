"""Methods of tiers: clients in groups "tier 0" (fastest) to "tier M - 1", sorted by how long their usual trip takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from desim_fl.core import Reply
from desim_fl.strategies.fedavg import FedAvg, Round
from desim_fl.strategies.options import require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, Send, Update, View


def tier_name(number: int) -> str:
    """The group of a tier, from 0, the fastest."""
    return f"tier {number}"


class Tiers(NamedTuple):
    """FedAT's state: the running round, the model and the number of finished rounds of each tier."""

    rounds: tuple[Round, ...]
    models: tuple[Params, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FedAT:
    """Each tier has rounds of its own; each finished one makes ``x <- sum over tiers m of T_(M-1-m) / T * W_m``.

    Chai et al., "FedAT: A High-Performance and Communication-Efficient Federated Learning System with Asynchronous Tiers",
    SC 2021. W_m is the newest FedAvg model of tier m (x_0 before its first), T_m the rounds that it has finished, T their
    sum: slow tiers get the weight of the fast tiers' counts. Each tier starts its next round from the newest x. Clients have
    a proximal term of weight ``mu``, of which the task is told when it is made.

    As published, what the fastest tier does first stays unseen: all weight is the slowest tier's, which still holds x_0.
    ``uniform_at_first`` gives every tier 1 / M until each has finished a round. ``deadline_s``, ``over_selection`` and the
    rest are those of FedAvg's rounds, for every tier alike.
    """

    tiers: int = 5
    clients_per_round: int = 10
    mu: float = 0.4
    uniform_at_first: bool = False
    over_selection: float = 1.0
    deadline_s: float | None = None
    min_fraction: float = 0.0
    cancel_stragglers: bool = False
    weights: str = "examples"
    partial_work: str = "keep"
    max_staleness: int | None = field(default=None, init=False, repr=False)
    reads_outcomes: bool = field(default=False, init=False, repr=False)
    machines: tuple[FedAvg, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.tiers >= 1, "tiers", self.tiers, "must be at least 1")
        require(self.mu >= 0, "mu", self.mu, "must be at least 0")
        machines = tuple(
            FedAvg(
                self.clients_per_round,
                over_selection=self.over_selection,
                deadline_s=self.deadline_s,
                min_fraction=self.min_fraction,
                cancel_stragglers=self.cancel_stragglers,
                weights=self.weights,
                partial_work=self.partial_work,
                group=tier_name(number),
                first=number,
                stride=self.tiers,
            )
            for number in range(self.tiers)
        )
        object.__setattr__(self, "machines", machines)

    def start(self, view: View) -> tuple[Tiers, Reply]:
        """Send a cohort of each tier out."""
        begun = [machine.start(view) for machine in self.machines]
        rounds = tuple(state for state, _ in begun)
        sends: tuple[Send, ...] = sum(((*(reply.sends or ()),) for _, reply in begun), ())
        alarms = sum((reply.alarms for _, reply in begun), ())
        state = Tiers(rounds, (view.params,) * self.tiers, (0,) * self.tiers)
        return state, Reply(sends=sends, alarms=alarms)

    def arrive(self, state: Tiers, view: View, update: Update) -> tuple[Tiers, Reply]:
        """Let the update's tier have it."""
        tier = update.job.tag % self.tiers
        return self._moved(state, tier, self.machines[tier].arrive(state.rounds[tier], view, update))

    def lose(self, state: Tiers, view: View, loss: Loss) -> tuple[Tiers, Reply]:
        """Let the job's tier know."""
        tier = loss.job.tag % self.tiers
        return self._moved(state, tier, self.machines[tier].lose(state.rounds[tier], view, loss))

    def alarm(self, state: Tiers, view: View, name: str) -> tuple[Tiers, Reply]:
        """Let the tier hear whose deadline it is."""
        number = name.rpartition(" ")[2]
        tier = int(number) % self.tiers if number.isdigit() else 0
        return self._moved(state, tier, self.machines[tier].alarm(state.rounds[tier], view, name))

    def shares(self, counts: tuple[int, ...]) -> tuple[float, ...]:
        """What each tier's model weighs after so many finished rounds of each."""
        total = sum(counts)
        if not total or (self.uniform_at_first and min(counts) == 0):
            return (1.0 / self.tiers,) * self.tiers
        return tuple(counts[self.tiers - 1 - tier] / total for tier in range(self.tiers))

    def _moved(self, state: Tiers, tier: int, answer: tuple[Round, Reply]) -> tuple[Tiers, Reply]:
        """Put a tier's answer in its place; if its round is over, mix all tiers."""
        running, reply = answer
        rounds = (*state.rounds[:tier], running, *state.rounds[tier + 1 :])
        if reply.params is None or reply.shares == ():  # none finite: the version is that in force
            return state._replace(rounds=rounds), reply
        models = (*state.models[:tier], reply.params, *state.models[tier + 1 :])
        counts = (*state.counts[:tier], state.counts[tier] + 1, *state.counts[tier + 1 :])
        weights = self.shares(counts)
        shares = tuple((job, share * weights[tier]) for job, share in reply.shares or ())
        reply = reply._replace(
            params=_mixed(models, weights), shares=shares, scale=(reply.scale or 0.0) * weights[tier]
        )
        return Tiers(rounds, models, counts), reply


def _mixed(models: tuple[Params, ...], weights: tuple[float, ...]) -> Params:
    """Sum of models by weights; one of weight 0 leaves no trace."""
    parts = [weight * model for model, weight in zip(models, weights, strict=True) if weight]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
