"""Asking a strategy: every event goes through here, and nothing unsound comes back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from desim_fl.algebra import Null
from desim_fl.core import Alarm, Job, Reply, Send, Stop, Work
from desim_fl.errors import DesimError, RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from desim_fl.core import Loss, Params, Strategy, Update, View


class Consultation:
    """One strategy, its state and what it may look at.

    Every event is a method that returns the strategy's reply. Each raises ``RunError`` naming strategy, event and job
    where the strategy fails, answers with something unsound, or changes shared parameters in place.

    Arrivals are what a run consists of. There, a reply whose every field is evidently sound passes at the price of
    one unpacking; any other goes through all checks, as the replies to rarer events do.
    """

    __slots__ = ("_arrive", "_strategy", "_view", "state", "usual")

    def __init__(self, strategy: Strategy, view: View) -> None:
        self.state: Any = None
        self.usual = False  # whether the last reply to an arrival asks for nothing but a publish
        self._strategy, self._view, self._arrive = strategy, view, strategy.arrive

    def start(self) -> Reply:
        """Ask for the first state, and whom to send out."""
        return self._careful("start", self._view)

    def arrive(self, update: Update) -> Reply:
        """Hand an update over."""
        view = self._view
        current = view.params
        if current is not Null and hasattr(current, "_version"):
            return self._careful("arrive", self.state, view, update, job=update.job)
        try:
            state, reply = self._arrive(self.state, view, update)
        except DesimError:
            raise
        except Exception as error:
            raise self._failed("arrive", update.job, error) from error
        self.usual = type(reply) is Reply and _evidently_sound(reply, current)
        if not self.usual:
            self._check(reply, "arrive", update.job)
        self.state = state
        return reply

    def lose(self, loss: Loss) -> Reply:
        """Tell of a job that will not count."""
        return self._careful("lose", self.state, self._view, loss, job=loss.job)

    def alarm(self, name: str) -> Reply:
        """Tell of an alarm that rings."""
        return self._careful("alarm", self.state, self._view, name)

    def finish(self) -> Reply:
        """Ask a strategy that has an answer what to do at the stop."""
        return self._careful("finish", self.state, self._view) if hasattr(self._strategy, "finish") else Reply()

    def _careful(self, event: str, *arguments: Any, job: Job | None = None) -> Reply:
        """Any event, with shared parameters watched."""
        self.usual = False
        shared = (self._view.params, None if job is None else job.params)
        before = _changes(shared)
        try:
            answer = getattr(self._strategy, event)(*arguments)
            state, reply = (self.state, answer) if event == "finish" else answer
        except DesimError:
            raise
        except Exception as error:
            raise self._failed(event, job, error) from error
        if _changes(shared) != before:
            raise RunError(
                f"the strategy {self._name} changed shared parameters in place in {event}{_about(job)}; make new ones"
            )
        self._check(reply, event, job)
        self.state = state
        return reply

    def _check(self, reply: Any, event: str, job: Job | None) -> None:
        fault = next(faults(reply, self._view.params), None)
        if fault is not None:
            raise RunError(f"the strategy {self._name} must answer {event}{_about(job)} with {fault}")

    def _failed(self, event: str, job: Job | None, error: Exception) -> RunError:
        return RunError(f"the strategy {self._name} failed in {event}{_about(job)}: {type(error).__name__}: {error}")

    @property
    def _name(self) -> str:
        return type(self._strategy).__name__


def _about(job: Job | None) -> str:
    return "" if job is None else f" about job {job.id} (client {job.client}, from version {job.version})"


def _changes(values: tuple[Params, Params]) -> list[int | None]:
    """How often torch has counted changes in place of each; ``None`` for what is no tensor."""
    return [None if value is Null else getattr(value, "_version", None) for value in values]


def _evidently_sound(reply: Reply, current: Params) -> bool:
    """Whether a reply asks for nothing unusual, and what it says cannot be wrong; False says nothing."""
    params, shares, sends, stops, keep, alarms, weight, scale, reject, abandon = reply
    return (
        sends is None is reject
        and stops is keep is alarms is _NOTHING
        and abandon is False
        and (weight is None or type(weight) is float)
        and (params is None or current is Null or type(params) is float is type(current))
        and (scale is None or type(scale) is float)
        and (shares is None or shares is _NOTHING or _evidently_shares(shares))
    )


_NOTHING = ()  # there is but one empty tuple; an interpreter that had several would take the way through all checks


def _evidently_shares(shares: Any) -> bool:
    """Whether these are pairs of a whole number and a finite one; one loop without calls, since there may be many."""
    if type(shares) is not tuple:
        return False
    for pair in shares:
        if type(pair) is not tuple or len(pair) != 2:  # noqa: PLR2004
            return False
        job, share = pair
        if type(job) is not int or type(share) is not float or not -math.inf < share < math.inf:
            return False
    return True


def faults(reply: Any, current: Params) -> Iterator[str]:
    """Yield what is wrong with a reply, as what it should be instead."""
    if not isinstance(reply, Reply):
        yield f"(state, Reply) (finish: with Reply alone), not with a {type(reply).__name__}"
        return
    if reply.params is not None and not _alike(reply.params, current):
        yield f"params like the model's ({_told(current)}), not {_told(reply.params)}"
    for field, sound, wanted in _CHECKS:
        value = getattr(reply, field)
        if value is not _USUAL[field] and not sound(value):
            yield f"{field} = {wanted}, not {value!r:.200}"


def _alike(new: Params, current: Params) -> bool:
    """Whether a new model can stand in the old one's place: same kind, shape and type."""
    if current is Null or new is current:
        return True
    if isinstance(current, (int, float)):
        return isinstance(new, (int, float))
    return all(getattr(new, name, None) == getattr(current, name, None) for name in ("shape", "dtype", "device"))


def _told(value: Params) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} {tuple(shape)} {value.dtype}"


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _work(work: Any) -> bool:
    """Whether a work states sensible amounts; what is left open (``None``) the scenario fills in."""
    if work is None:
        return True
    return (
        isinstance(work, Work)
        and not work.probe
        and all(amount is None or (_whole(amount) and amount >= 1) for amount in (work.epochs, work.steps))
        and (work.lr is None or (_number(work.lr) and math.isfinite(work.lr) and work.lr > 0))
    )


def _send(send: Any) -> bool:
    if not isinstance(send, Send) or not _work(send.work):
        return False
    if send.clients is None:
        return _whole(send.count) and send.count >= 1
    return isinstance(send.clients, tuple) and all(map(_whole, send.clients))


def _pairs(value: Any, second: Callable[[Any], bool]) -> bool:
    if not isinstance(value, tuple):
        return False
    return all(isinstance(pair, tuple) and len(pair) == 2 and _whole(pair[0]) and second(pair[1]) for pair in value)  # noqa: PLR2004


def _each(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and (not value or all(map(kind, value)))


def _alarm(alarm: Any) -> bool:
    return isinstance(alarm, Alarm) and isinstance(alarm.name, str) and _number(alarm.after_s)


_USUAL = Reply._field_defaults
_sends = _each(_send)
_CHECKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "sends",
        lambda value: value is None or _sends(value),
        "None or a tuple of Send with counts, or clients, and work",
    ),
    ("stops", _each(lambda stop: isinstance(stop, Stop)), "a tuple of Stop"),
    ("alarms", _each(_alarm), "a tuple of Alarm(name, seconds or None)"),
    ("keep", lambda value: not value or _pairs(value, lambda _: True), "a tuple of (client, value)"),
    (
        "shares",
        lambda value: value is None or _pairs(value, lambda share: _number(share) and math.isfinite(share)),
        "None or a tuple of (job, finite share)",
    ),
    ("weight", _number, "None or a number"),
    ("scale", _number, "None or a number"),
    ("reject", lambda value: value is None or isinstance(value, str), "None or the reason in words"),
    ("abandon", lambda value: isinstance(value, bool), "True or False"),
)
