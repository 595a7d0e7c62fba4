"""TiFL: rounds of clients that are about equally fast, of one tier each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from desim_fl import draws
from desim_fl.draws import Purpose
from desim_fl.strategies.fedavg import FedAvg, Round
from desim_fl.strategies.options import require
from desim_fl.strategies.tiers import tier_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.core import Reply, Send, Update, View

Losses = tuple["float | None", ...]  # by tier; None = nothing was reported yet


class Heard(NamedTuple):
    """Sum of the reported losses of a round, weighted by examples, and of these examples."""

    total: float = 0.0
    examples: int = 0


class Prospects(NamedTuple):
    """What the adaptive rule goes by: the round's tier, chances and credits, newest losses, and those of the last review."""

    tier: int
    chances: tuple[float, ...]
    credits: tuple[int, ...] | None
    losses: Losses
    reviewed: Losses


@dataclass(frozen=True, slots=True)
class TiFL(FedAvg):
    """FedAvg's rounds, each with a cohort from one tier, which is drawn anew.

    Chai et al., "TiFL: A Tier-based Federated Learning System", HPDC 2020. The tier of round r is drawn from ``seed`` and r.
    Static selection (section 4.3): ``chances`` are those of the tiers from the fastest on (``None`` = all the same; the
    paper's "fast" is 1, 0, 0, ...).

    ``adaptive = True`` (section 4.4, algorithm 2; the change of chances is known from re-implementations): before every
    ``interval``-th round the server looks whether the running tier has become worse since the last review, or stayed as
    it was. If so, tiers are ranked, worst first, and have the chances n / D, (n - 1) / D, ..., 1 / D, D = n (n + 1) / 2, n being
    the number of tiers with credits left; the others have none. A round takes one of its tier's ``credits`` (``None`` = no
    bound; if all are used up there is no bound any more). How good a tier is, is told in the paper by the accuracy on its
    clients' test data; here, where test data never decide, by the mean training loss that its last round reported. A tier that
    reported nothing yet counts as the worst.
    """

    tiers: int = 5
    chances: tuple[float, ...] | None = None
    adaptive: bool = False
    interval: int = 10
    credits: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        FedAvg.__post_init__(self)
        require(self.tiers >= 1, "tiers", self.tiers, "must be at least 1")
        require(self.interval >= 1, "interval", self.interval, "must be at least 1")
        require(not (self.adaptive and self.chances), "chances", self.chances, "must be None with adaptive = True")
        if self.chances is not None:
            sound = all(chance >= 0 for chance in self.chances) and abs(math.fsum(self.chances) - 1.0) <= 1e-9  # noqa: PLR2004
            require(sound, "chances", self.chances, "must be at least 0 each and add up to 1")
            require(len(self.chances) == self.tiers, "chances", self.chances, "must be one a tier")
        if self.credits is not None:
            require(all(credit >= 0 for credit in self.credits), "credits", self.credits, "must be at least 0 each")
            require(len(self.credits) == self.tiers, "credits", self.credits, "must be one a tier")
        object.__setattr__(self, "reads_outcomes", self.adaptive)

    def tier(self, number: int) -> int:
        """The tier of a round with fixed chances."""
        return self._drawn(number, self.chances)

    def _drawn(self, number: int, chances: Sequence[float] | None) -> int:
        drawn = draws.word(self.seed, Purpose.TIER, 0, number, 0)
        if chances is None:
            return drawn * self.tiers >> 32
        level, below = draws.uniform(drawn), 0.0
        for tier, chance in enumerate(chances):
            below += chance
            if level < below:
                return tier
        return max(tier for tier, chance in enumerate(chances) if chance)  # what rounding left over

    def _first(self, view: View) -> Round:
        state = FedAvg._first(self, view)  # noqa: SLF001
        if not self.adaptive:
            return state
        unknown: Losses = (None,) * self.tiers
        begun = Prospects(0, (1.0 / self.tiers,) * self.tiers, self.credits, unknown, unknown)
        return state._replace(carried=self._turned(begun, state.number))

    def _taken_in(self, state: Round, view: View, update: Update, mine: int) -> Round:
        loss, heard = update.outcome.loss, state.gathered or Heard()
        if self.adaptive and isinstance(loss, (int, float)) and math.isfinite(loss):
            examples = update.outcome.examples
            state = state._replace(gathered=Heard(heard.total + examples * loss, heard.examples + examples))
        return FedAvg._taken_in(self, state, view, update, mine)  # noqa: SLF001

    def _end(self, state: Round, view: View, gone: int = -1) -> tuple[Round, Reply]:
        if self.adaptive:
            state = state._replace(carried=self._turned(_told(state), state.number + self.stride))
        return FedAvg._end(self, state, view, gone)  # noqa: SLF001

    def _turned(self, prospects: Prospects, number: int) -> Prospects:
        """Review the chances if it is time, draw the tier of a round, and take its credit."""
        if number and number % self.interval == 0:
            prospects = reviewed(prospects)
        left = [credit > 0 for credit in prospects.credits or ()]
        able = left if any(left) else [True] * self.tiers
        open_chances = [chance * free for chance, free in zip(prospects.chances, able, strict=True)]
        if not any(open_chances):  # those that have credits left have no chance: all of them alike
            open_chances = [float(free) for free in able]
        total = math.fsum(open_chances)
        tier = self._drawn(number, [chance / total for chance in open_chances])
        if prospects.credits is None:
            return prospects._replace(tier=tier)
        spent = tuple(max(0, credit - (other == tier)) for other, credit in enumerate(prospects.credits))
        return prospects._replace(tier=tier, credits=spent)

    def _send(self, state: Round) -> Send:
        tier = state.carried.tier if self.adaptive else self.tier(state.number)
        return FedAvg._send(self, state)._replace(group=tier_name(tier))  # noqa: SLF001


def _told(state: Round) -> Prospects:
    """The prospects with what a round's reports said of its tier."""
    prospects, heard = state.carried, state.gathered
    if heard is None or not heard.examples:
        return prospects
    mean = heard.total / heard.examples
    losses = (mean if tier == prospects.tier else loss for tier, loss in enumerate(prospects.losses))
    return prospects._replace(losses=tuple(losses))


def reviewed(prospects: Prospects) -> Prospects:
    """The prospects after a review: other chances if the running tier has not become better since the last one."""
    tier, losses = prospects.tier, prospects.losses
    now, before = losses[tier], prospects.reviewed[tier]
    prospects = prospects._replace(reviewed=losses)
    if now is None or before is None or now < before:
        return prospects
    left = [True] * len(losses) if prospects.credits is None else [credit > 0 for credit in prospects.credits]
    able = [other for other, free in enumerate(left) if free] or list(range(len(losses)))
    ranked = sorted(able, key=lambda other: (_badness(losses[other]), -other), reverse=True)
    count = len(ranked)
    chances = [0.0] * len(losses)
    for place, other in enumerate(ranked):
        chances[other] = (count - place) / (count * (count + 1) / 2)
    return prospects._replace(chances=tuple(chances))


def _badness(loss: float | None) -> float:
    return math.inf if loss is None else loss
