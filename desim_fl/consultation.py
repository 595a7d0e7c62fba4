"""Asking a strategy: every event goes through here, and nothing unsound comes back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from desim_fl.algebra import Null
from desim_fl.core import Alarm, Job, Reply, Send, Stop, Work
from desim_fl.errors import DesimError, RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from desim_fl.core import Params, Strategy, View


def consult(
    strategy: Strategy, state: Any, view: View, event: str, subject: Any = None, job: Job | None = None
) -> tuple[Any, Reply]:
    """Tell the strategy of an event and return its new state and its reply.

    Raises ``RunError`` naming strategy, event and job where the strategy fails, answers with something unsound, or
    changes shared parameters in place.
    """
    name = type(strategy).__name__
    about = "" if job is None else f" about job {job.id} (client {job.client}, from version {job.version})"
    shared = (view.params, None if job is None else job.params)
    before = _changes(shared)
    try:
        state, reply = _asked(strategy, state, view, event, subject)
    except DesimError:
        raise
    except Exception as error:
        raise RunError(f"the strategy {name} failed in {event}{about}: {type(error).__name__}: {error}") from error
    if _changes(shared) != before:
        raise RunError(f"the strategy {name} changed shared parameters in place in {event}{about}; make new ones")
    fault = next(_faults(reply, view.params), None)
    if fault is not None:
        raise RunError(f"the strategy {name} must answer {event}{about} with {fault}")
    return state, reply


def _asked(strategy: Strategy, state: Any, view: View, event: str, subject: Any) -> tuple[Any, Any]:
    method = getattr(strategy, event)
    if event == "start":
        return method(view)
    return (state, method(state, view)) if event == "finish" else method(state, view, subject)


def _changes(values: tuple[Params, Params]) -> list[int | None]:
    """How often torch has counted changes in place of each; ``None`` for what is no tensor."""
    return [None if value is Null else getattr(value, "_version", None) for value in values]


def _faults(reply: Any, current: Params) -> Iterator[str]:
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
