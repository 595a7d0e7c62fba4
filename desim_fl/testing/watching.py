"""Asking a strategy while its promises about single calls are watched."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from desim_fl import checkpoint
from desim_fl.consultation import faults
from desim_fl.core import Loss, Reply, Update
from desim_fl.errors import CheckpointError, PromiseError, RefusedError

if TYPE_CHECKING:
    from desim_fl.core import Strategy
    from desim_fl.testing.playground import Playground

_EACH = 8  # calls of which each goes through a checkpoint; later ones only now and then, since that takes time
_SAME_ALARM = 3  # times on end that an alarm may set itself again for the same instant


class Watcher:
    """Puts each question three times: to the strategy as it is, once more, and with the state as a checkpoint gives it back.

    Raises PromiseError where the answers differ, where something that was handed in is another afterwards, where an answer
    is not one that an engine can follow, or where a state has no form in a checkpoint.
    """

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, 0
        self._rings: dict[str, int] = {}

    def __call__(self, strategy: Strategy, event: str, arguments: tuple[Any, ...]) -> tuple[Any, Reply]:
        """Ask, and watch."""
        self.calls += 1
        call = f"call {self.calls}, {event}{_about(event, arguments)}"
        handed, before = _handed(arguments), repr(strategy)
        kept = copy.deepcopy(handed)
        state, reply = self._answer(strategy, event, arguments, call)
        if not same(kept, handed):
            self._broken(
                "unchanged", call, f"what was handed in was {kept!r:.300} and is {handed!r:.300} now; make new values"
            )
        if not same((state, reply), self._answer(strategy, event, arguments, call)) or repr(strategy) != before:
            self._broken(
                "pure", call, "asked the same again, it answers otherwise; all it remembers must be in its state"
            )
        self._sound(reply, arguments, call)
        if event == "alarm":
            self._advances(reply, arguments[-1], call)
        if self.calls <= _EACH or self.calls % _EACH == 0:
            self._storable(strategy, event, arguments, (state, reply), call)
        return state, reply

    def _answer(self, strategy: Strategy, event: str, arguments: tuple[Any, ...], call: str) -> tuple[Any, Reply]:
        try:
            answer = getattr(strategy, event)(*arguments)
        except RefusedError as error:  # of Null: a value was asked that is not there
            self._broken("timeline", call, str(error))
        except Exception as error:
            if "read-only" in str(error):
                self._broken(
                    "unchanged", call, f"it writes into an array that was handed in ({error}); make new values"
                )
            why = f"it fails: {type(error).__name__}: {error}"
            raise PromiseError(self.name, "sound", call, why) from error
        if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], Reply):  # noqa: PLR2004
            self._broken("sound", call, f"it must answer with (state, Reply), not with {answer!r:.200}")
        return answer

    def _sound(self, reply: Reply, arguments: tuple[Any, ...], call: str) -> None:
        view: Playground = next(each for each in arguments if hasattr(each, "flying"))
        fault = next(faults(reply, view.params), None)
        if fault is not None:
            self._broken("sound", call, f"it must answer with {fault}")
        unknown = [stop.job for stop in reply.stops if stop.job not in view.jobs]
        if unknown:
            self._broken("sound", call, f"it stops the jobs {unknown}, which are not in flight")
        for send in reply.sends or ():
            named = send.clients or ()
            if len(set(named)) < len(named) or not all(0 <= client < view.clients for client in named):
                self._broken("sound", call, f"it sends to the clients {named} of {view.clients}")
            if send.group is not None and send.group not in view.groups:
                self._broken("sound", call, f'it sends to the group "{send.group}", which does not exist in this scene')
        for alarm in reply.alarms:
            if alarm.after_s is not None and not 0 <= alarm.after_s < math.inf:
                self._broken("alarms", call, f'it sets the alarm "{alarm.name}" to ring after {alarm.after_s} s')

    def _advances(self, reply: Reply, name: str, call: str) -> None:
        """An alarm that sets itself again without delay holds the clock."""
        again = any(alarm.name == name and alarm.after_s == 0 for alarm in reply.alarms)
        self._rings[name] = self._rings.get(name, 0) + 1 if again else 0
        if self._rings[name] >= _SAME_ALARM:
            self._broken("alarms", call, f'the alarm "{name}" sets itself again and again for the same instant')

    def _storable(
        self, strategy: Strategy, event: str, arguments: tuple[Any, ...], answer: tuple[Any, Reply], call: str
    ) -> None:
        """The state goes into a checkpoint and comes back; asked with what came back, the strategy answers the same."""
        state, reply = answer
        try:
            stored = checkpoint.decoded(checkpoint.encoded((state, reply.keep)))
            handed = (
                arguments
                if event == "start"
                else (checkpoint.decoded(checkpoint.encoded(arguments[0])), *arguments[1:])
            )
        except CheckpointError as error:
            self._broken("storable", call, f"its state or what it keeps is {state!r:.200}: {error}")
        if not same(stored, (state, reply.keep)) or not same(self._answer(strategy, event, handed, call), answer):
            self._broken("storable", call, f"its state {state!r:.200} is another after a checkpoint")

    def _broken(self, promise: str, call: str, why: str) -> NoReturn:
        raise PromiseError(self.name, promise, call, why)


def _handed(arguments: tuple[Any, ...]) -> list[Any]:
    """What a call can read: the state, the update or loss, and of the view the model and the caches."""
    return [(each.params, each.caches) if hasattr(each, "flying") else each for each in arguments]


def _about(event: str, arguments: tuple[Any, ...]) -> str:
    """Of what a call is."""
    last = arguments[-1]
    if event == "alarm":
        return f'("{last}")'
    if not isinstance(last, (Update, Loss)):
        return ""
    job = last.job
    return f" of job {job.id} (client {job.client}, from version {job.version}, staleness {last.staleness})"


def same(left: Any, right: Any) -> bool:
    """Whether two values are the same through and through, NaN included."""
    if left is right or type(left) is not type(right):
        return left is right
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if dataclasses.is_dataclass(left):
        return all(same(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
    return left == right or (left != left and right != right)  # noqa: PLR0124  (NaN)
