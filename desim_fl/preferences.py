"""Selectors that prefer some clients: by data, by speed, by reported losses. Pure, like those of :mod:`desim_fl.selection`.

A lot is drawn by weight without bias and without endless tries: up to 16 draws from the whole population, each taken if
that client is selectable, then one draw from exactly those that are. Both give a client its weight over the weights of all
selectable clients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl import elementary, own, selection
from desim_fl.draws import Purpose, uniform, word
from desim_fl.errors import ScenarioError
from desim_fl.selection import TRIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from desim_fl.core import Roster, Selector, Send, View

BLOCK = 32  # slots of one lot: the tries, then the draw among those selectable


@dataclass(frozen=True, slots=True)
class Lots:
    """Lots by whole-number weights; a client of weight 0 is never drawn."""

    seed: int
    weights: NDArray[np.int64]
    _upto: NDArray[np.int64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_upto", np.cumsum(self.weights))

    def draw(self, roster: Roster, group: Sequence[int] | None, number: int, base: int, without: Iterable[int]) -> int:
        """Draw one selectable client that is not in ``without``; -1 where nobody with a weight is left."""
        taken = frozenset(without)
        if group is None:
            total = int(self._upto[-1])
            for attempt in range(TRIES if total else 0):
                client = self._at(self._upto, number, base + attempt, total)
                if roster.is_selectable(client) and client not in taken:
                    return client
        open_now = np.asarray(roster.mask(), np.int64).copy()
        open_now[list(taken)] = 0
        if group is not None:
            member = np.zeros(len(open_now), np.int64)
            member[list(group)] = 1
            open_now *= member
        upto = np.cumsum(self.weights * open_now)
        total = int(upto[-1])
        return self._at(upto, number, base + TRIES, total) if total else -1

    def _at(self, upto: NDArray[np.int64], number: int, slot: int, total: int) -> int:
        value = (word(self.seed, Purpose.SELECTION, 0, number, slot) * total) >> 32
        return int(np.searchsorted(upto, value, side="right"))


@dataclass(frozen=True, slots=True)
class Weighted:
    """Each selectable client with a chance in proportion to its training examples; who has none is not sent out."""

    lots: Lots
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def start(self) -> None:
        """Nothing to remember."""

    def choose(self, state: None, view: View, roster: Roster, send: Send, number: int) -> tuple[None, tuple[int, ...]]:
        """Choose up to ``send.count`` clients one after another; ``number`` is the dispatch number of the first."""
        group = None if send.group is None else view.groups[send.group]
        chosen: list[int] = []
        for dispatch in range(number, number + min(send.count, roster.selectable)):
            client = self.lots.draw(roster, group, dispatch, 0, chosen)
            if client < 0:
                break
            chosen.append(client)
        return state, tuple(chosen)


@dataclass(frozen=True, slots=True)
class FastestFirst:
    """Those whose jobs take least, by the typical time of each client, equal ones by number."""

    typical: Sequence[float] = field(repr=False)
    reads_outcomes: bool = field(default=False, init=False, repr=False)
    _order: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_order", np.argsort(np.asarray(self.typical), kind="stable").tolist())

    def start(self) -> None:
        """Nothing to remember."""

    def choose(self, state: None, view: View, roster: Roster, send: Send, number: int) -> tuple[None, tuple[int, ...]]:  # noqa: ARG002
        """Choose up to ``send.count`` clients."""
        members = None if send.group is None else frozenset(view.groups[send.group])
        wanted = min(send.count, roster.selectable)
        free = (
            client for client in self._order if roster.is_selectable(client) and (members is None or client in members)
        )
        return state, tuple(islice(free, wanted)) if wanted else ()


def _candidates(lots: Lots, view: View, roster: Roster, send: Send, number: int, count: int) -> list[int]:
    """Draw distinct candidates by weight, the first of them with the slots after those of all other rules."""
    group = None if send.group is None else view.groups[send.group]
    found: list[int] = []
    for place in range(1, 1 + min(count, roster.selectable)):
        client = lots.draw(roster, group, number, BLOCK * place, found)
        if client < 0:
            break
        found.append(client)
    return found


@dataclass(frozen=True, slots=True)
class PowerOfChoice:
    """Of d candidates drawn by data, those with the largest loss (Cho, Wang, Joshi, arXiv 2010.01243).

    The loss is the one last reported; a client that never reported counts as the largest of all, in the order of the lots.
    The state holds one loss a client. With ``probes`` the losses are asked for instead (:mod:`desim_fl.polling`): ``ask`` names
    the candidates, and ``best`` ranks those who answered.
    """

    lots: Lots
    candidates: int
    probes: bool = False
    reads_outcomes: bool = field(default=True, init=False, repr=False)

    def start(self) -> NDArray[np.float64]:
        """Nobody has reported."""
        return np.full(len(self.lots.weights), np.inf)

    def choose(
        self, state: NDArray[np.float64], view: View, roster: Roster, send: Send, number: int
    ) -> tuple[NDArray[np.float64], tuple[int, ...]]:
        """Choose up to ``send.count`` clients."""
        found = self.ask(view, roster, send, number)
        ranked = sorted(found, key=lambda client: -state[client])  # stable: equal losses in the order drawn
        return state, tuple(ranked[: send.count])

    def ask(self, view: View, roster: Roster, send: Send, number: int) -> tuple[int, ...]:
        """Draw the candidates for the places of a send: at least as many as those."""
        return tuple(_candidates(self.lots, view, roster, send, number, max(self.candidates, send.count)))

    def best(self, answers: Sequence[tuple[int, float | None]], count: int) -> tuple[int, ...]:
        """Up to ``count`` clients of the largest loss, equal ones in the order given; who told none that is finite comes last."""
        told = [-np.inf if loss is None or not np.isfinite(loss) else loss for _, loss in answers]
        ranked = sorted(range(len(answers)), key=lambda place: -told[place])
        return tuple(answers[place][0] for place in ranked[:count])

    def hear(self, state: NDArray[np.float64], client: int, loss: float | None) -> NDArray[np.float64]:
        """Take a reported loss; one that is no finite number changes nothing, and nothing does where losses are asked for."""
        if self.probes or loss is None or not np.isfinite(loss):
            return state
        after = state.copy()
        after[client] = loss
        return after


class Utilities(NamedTuple):
    """What Oort remembers: the utility and the report number of each client that reported (NaN = it never did).

    ``window`` adds up the utilities of the reports since the pacer last looked, ``before`` those of the window before.
    """

    utility: NDArray[np.float64]
    heard: NDArray[np.float64]
    reports: int
    window: float
    before: float | None
    preferred_s: float | None


@dataclass(frozen=True, slots=True)
class Oort:
    """Clients of high utility, slow ones penalised, some unexplored (Lai et al., OSDI 2021, algorithm 1).

    utility = examples * reported loss + sqrt(0.1 log R / L), times (T / t)^penalty where the client's typical time t
    exceeds the preferred one T; R counts reports, L is when the client last reported. A dispatch explores with
    probability ``exploration``: one of those that never reported, all alike. Else one is drawn by utility among those with
    at least 95 % of the largest. The pacer raises T by ``pacer_s`` where a window's utility falls short of the one before.
    """

    seed: int
    sizes: Sequence[int] = field(repr=False)
    typical_s: NDArray[np.float64] = field(repr=False)
    exploration: float = 0.1
    preferred_s: float | None = None
    penalty: float = 2.0
    pacer_s: float | None = None
    pacer_window: int = 20
    reads_outcomes: bool = field(default=True, init=False, repr=False)

    def start(self) -> Utilities:
        """Nobody has reported."""
        unknown = np.full(len(self.sizes), np.nan)
        return Utilities(unknown, unknown, 0, 0.0, None, self.preferred_s)

    def choose(
        self, state: Utilities, view: View, roster: Roster, send: Send, number: int
    ) -> tuple[Utilities, tuple[int, ...]]:
        """Choose up to ``send.count`` clients one after another."""
        free = np.asarray(roster.mask(), bool).copy()
        if send.group is not None:
            member = np.zeros(len(free), bool)
            member[list(view.groups[send.group])] = True
            free &= member
        score, chosen = self._scores(state), []
        for dispatch in range(number, number + min(send.count, int(free.sum()))):
            client = self._one(score, free, dispatch)
            free[client] = False
            chosen.append(client)
        return state, tuple(chosen)

    def _one(self, score: NDArray[np.float64], free: NDArray[np.bool_], number: int) -> int:
        known = free & ~np.isnan(score)
        fresh = np.flatnonzero(free & np.isnan(score))
        explores = self._uniform(number, 0) < self.exploration
        if len(fresh) and (explores or not known.any()):
            return int(fresh[(word(self.seed, Purpose.SELECTION, 0, number, 1) * len(fresh)) >> 32])
        best = np.flatnonzero(known)
        best = best[score[best] >= 0.95 * score[best].max()]
        upto = np.cumsum(np.maximum(score[best], 1e-300))
        place = int(np.searchsorted(upto, self._uniform(number, 2) * upto[-1], side="right"))
        return int(best[min(place, len(best) - 1)])

    def _uniform(self, number: int, slot: int) -> float:
        return uniform(word(self.seed, Purpose.SELECTION, 0, number, slot))

    def _scores(self, state: Utilities) -> NDArray[np.float64]:
        """Utility of each client as of now; NaN for those that never reported."""
        if not state.reports:
            return state.utility
        doubt = np.sqrt(0.1 * elementary.log(float(max(state.reports, 1))) / state.heard)
        score = state.utility + doubt
        if state.preferred_s is None:
            return score
        slow = self.typical_s > state.preferred_s
        ratio = np.where(slow, state.preferred_s / np.where(slow, self.typical_s, 1.0), 1.0)
        return score * np.where(slow, elementary.power(ratio, self.penalty), 1.0)

    def hear(self, state: Utilities, client: int, loss: float | None) -> Utilities:
        """Take a reported loss; one that is no finite number counts as 0."""
        sound = loss is not None and np.isfinite(loss)
        worth = self.sizes[client] * max(float(loss or 0.0), 0.0) if sound else 0.0
        utility, heard, reports = state.utility.copy(), state.heard.copy(), state.reports + 1
        utility[client], heard[client] = worth, reports
        window, before, preferred = state.window + worth, state.before, state.preferred_s
        if reports % self.pacer_window == 0:
            if preferred is not None and self.pacer_s is not None and before is not None and window < before:
                preferred += self.pacer_s
            window, before = 0.0, window
        return Utilities(utility, heard, reports, window, before, preferred)


TABLE: Mapping[str, type[Any]] = {
    **selection.TABLE,
    "weighted": Weighted,
    "fastest": FastestFirst,
    "power_of_choice": PowerOfChoice,
    "oort": Oort,
}


def foreign(name: str, options: Mapping[str, Any]) -> Selector:
    """Make a selector of one's own, ``"package.module:Selector"``; ScenarioError where that cannot be done."""
    made = own.made("selector", name, own.imported("selector", name), options, ("reads_outcomes", "start", "choose"))
    if made.reads_outcomes and not hasattr(made, "hear"):
        raise ScenarioError(f"selector {name} says that it reads outcomes, and lacks hear(state, client, loss)")
    return made


class Traits(NamedTuple):
    """What selectors may know of the clients from the start: examples, and typical seconds of a job."""

    sizes: Sequence[int]
    typical_s: NDArray[np.float64]


def build(
    name: str, *, seed: int, keys: Sequence[int], traits: Traits, order: Sequence[int] = (), **options: Any
) -> Selector:
    """Make the selector of that name; ``options`` are those of its class. ScenarioError for an unknown name."""
    if name in selection.TABLE or name not in TABLE:
        return selection.build(name, seed=seed, keys=keys, order=order)
    if name == "fastest":
        return FastestFirst(traits.typical_s.tolist())
    if name == "oort":
        return Oort(seed, traits.sizes, traits.typical_s, **options)
    lots = Lots(seed, np.asarray(traits.sizes, np.int64))
    if name == "weighted":
        return Weighted(lots)
    return PowerOfChoice(lots, options["candidates"], probes=options.get("probe", False))
