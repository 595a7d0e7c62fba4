"""The promises of a selector, which chooses who is sent out next."""

from __future__ import annotations

import copy
import pickle
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from desim_fl import checkpoint
from desim_fl.algebra import Null
from desim_fl.core import Model, Send
from desim_fl.errors import CheckpointError, PromiseError, RefusedError
from desim_fl.population import Roster
from desim_fl.testing.watching import same

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from desim_fl.core import Selector

SELECTOR_PROMISES: Mapping[str, str] = {
    "complete": "it has reads_outcomes, start and choose, and hear if it reads outcomes",
    "pure": "asked the same twice, it answers the same; nothing is remembered outside its state",
    "unchanged": "the state that it is handed is not changed in place",
    "sound": "it chooses distinct clients that can be selected, of the group if one is named, and no more than asked for",
    "storable": "it can be pickled, and its state goes through a checkpoint unchanged",
    "fills": "while clients can be selected it chooses somebody, sooner or later",
}
_CALLS = 60


class Bystander:
    """The View of a server that stands still."""

    version, params, concurrency = 0, Null, 4
    model = Model(0, Null)
    flying: Mapping[int, Any] = MappingProxyType({})

    def __init__(self, clients: int) -> None:
        self.clients, self.sizes = clients, tuple(1 + client % 3 for client in range(clients))
        self.groups: Mapping[str, Sequence[int]] = {"even": tuple(range(0, clients, 2))}

    def cache(self, client: int) -> None:
        """Nothing was kept."""


class _Desk:
    """Puts each question twice, and once more with the state as a checkpoint gives it back."""

    def __init__(self, selector: Selector, clients: int) -> None:
        self.selector, self.view, self.roster = selector, Bystander(clients), Roster(clients)
        self.calls, self.name = 0, type(selector).__name__
        self.state = self.watched("start", selector.start)

    def broken(self, promise: str, call: str, why: str) -> NoReturn:
        raise PromiseError(self.name, promise, call, why)

    def watched(self, told: str, ask: Callable[..., Any], *state: Any) -> Any:
        """Ask with a state (or without one, at the start)."""
        self.calls += 1
        call, before, kept = f"call {self.calls}, {told}", repr(self.selector), copy.deepcopy(state)
        answer = ask(*state)
        if not same(kept, state):
            self.broken("unchanged", call, f"the state was {kept!r:.200} and is {state!r:.200} now; make a new one")
        if not same(answer, ask(*state)) or repr(self.selector) != before:
            self.broken(
                "pure", call, "asked the same again, it answers otherwise; all it remembers must be in its state"
            )
        try:
            stored = checkpoint.decoded(checkpoint.encoded(answer))
        except CheckpointError as error:
            self.broken("storable", call, str(error))
        if not same(stored, answer):
            self.broken("storable", call, f"its state {answer!r:.200} is another after a checkpoint")
        return answer

    def choose(self, count: int, number: int, group: str | None) -> tuple[int, ...]:
        """Let it choose, and take those that it chose."""
        told = f"choose {count} of {self.roster.selectable} selectable clients" + (f' in "{group}"' if group else "")
        send = Send(count, group=group)
        try:
            answer = self.watched(
                told, lambda state: self.selector.choose(state, self.view, self.roster, send, number), self.state
            )
        except RefusedError:
            if group is None:
                raise
            return self.choose(count, number, None)  # it says that it knows no groups
        call = f"call {self.calls}, {told}"
        if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], tuple):  # noqa: PLR2004
            self.broken("sound", call, f"it must answer with (state, tuple of clients), not with {answer!r:.200}")
        self.state, chosen = answer
        able = range(self.view.clients) if group is None else self.view.groups[group]
        wrong = [client for client in chosen if client not in able or not self.roster.is_selectable(client)]
        if wrong or len(dict.fromkeys(chosen)) != len(chosen) or len(chosen) > count:
            self.broken(
                "sound", call, f"it chooses {chosen}, for {count} places" + (f"; {wrong} cannot be" if wrong else "")
            )
        for client in chosen:
            self.roster.take(client)
        return chosen

    def hear(self, client: int, number: int) -> None:
        """Let a client report, if the selector wants to know, and be free again."""
        if self.selector.reads_outcomes:
            loss = None if number % 5 == 4 else 0.5 + number % 3  # noqa: PLR2004
            hear: Any = getattr(self.selector, "hear")  # noqa: B009  (only these selectors have it)
            self.state = self.watched(
                f"hear of client {client}, loss {loss}", lambda state: hear(state, client, loss), self.state
            )
        self.roster.free(client)


def check_selector(
    selector: Selector | Callable[..., Selector], clients: int = 12, /, **options: Any
) -> tuple[str, ...]:
    """Check every promise of a selector, an instance or a class with its options, among so many clients; returns their names.

    Raises PromiseError for the first promise that is broken, with the call that broke it.
    """
    made: Any = selector(**options) if isinstance(selector, type) else selector
    lacking = [word for word in ("reads_outcomes", "start", "choose") if not hasattr(made, word)]
    if not lacking and made.reads_outcomes and not hasattr(made, "hear"):
        lacking = ["hear, though it reads outcomes"]
    if lacking:
        raise PromiseError(type(made).__name__, "complete", "no call yet", f"it lacks {', '.join(lacking)}")
    found = _played(made, clients)
    try:
        again = _played(pickle.loads(pickle.dumps(made)), clients)  # noqa: S301  (our own bytes)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise PromiseError(type(made).__name__, "storable", "pickling the selector", f"{error}") from error
    if found != again:
        raise PromiseError(type(made).__name__, "storable", "pickling the selector", "it chooses others after that")
    return tuple(SELECTOR_PROMISES)


def _played(selector: Selector, clients: int) -> list[tuple[int, ...]]:
    """Ask for clients, one or several, from everybody or a group, and let them come back; nobody is left at times."""
    desk = _Desk(selector, clients)
    out: list[int] = []
    found: list[tuple[int, ...]] = []
    number = 0
    for turn in range(_CALLS):
        chosen = desk.choose(1 + turn % 4, number, "even" if turn % 7 == 5 else None)  # noqa: PLR2004
        number += len(chosen)
        out.extend(chosen)
        found.append(chosen)
        for _ in range(turn % 5 if len(out) < clients else clients // 2):
            if out:
                desk.hear(out.pop(0), turn)
    if not any(found):
        desk.broken("fills", f"{_CALLS} calls", "it never chose anybody")
    return found
