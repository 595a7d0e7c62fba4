"""The promises of a strategy, each with the check that shows when it is broken."""

from __future__ import annotations

import math
import pickle
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from desim_fl import strategies
from desim_fl.algebra import Null
from desim_fl.errors import PromiseError, RefusedError
from desim_fl.testing.script import Scene, Values, come, play, requests
from desim_fl.testing.watching import Watcher, same

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from desim_fl.core import Strategy
    from desim_fl.testing.script import Event

PROMISES: Mapping[str, str] = {
    "complete": "it has every part of desim_fl.core.Strategy",
    "storable": "it can be pickled, and its state and what it keeps go through a checkpoint unchanged",
    "pure": "asked the same twice, it answers the same; nothing is remembered outside its state",
    "unchanged": "nothing that it is handed is another afterwards: neither state nor models nor updates",
    "sound": "its answers are ones that an engine can follow",
    "alarms": "alarms ring after a finite time of at least 0 s, and none holds the clock by setting itself for now",
    "publishes": "it publishes, and updates come in for as long as there are clients: losses and rejects are made up for",
    "timeline": "whom it sends out, stops and rejects, and when it publishes, depends on no trained value (unless reads_outcomes)",
    "null": "where nothing is trained, what it publishes is Null, and its weights are what they would be",
    "shares": "shares for buffers are at least 0, at most 1 in sum, and belong to finite updates that were let in",
    "weights": "weights add up to one: where every model moves by the same vector, so does what it publishes",
    "no trace": "what a non-finite or a rejected update brought changes nothing that it publishes",
    "fresh": "where nothing is stale, it is its base rule (Scene.fresh_as)",
    "order": "updates of one version that make the next one may come in any order (unless Scene.ordered)",
}
SCENE = Scene()
_DIGITS = 1e-9
_SHIFT = 8.0
_OTHER = -37.0


class Kept(NamedTuple):
    """Which promises were checked and held, and why the others were not checked."""

    kept: tuple[str, ...]
    unchecked: Mapping[str, str]


def check_strategy(strategy: Strategy | Callable[..., Strategy] | str, scene: Scene = SCENE, /, **options: Any) -> Kept:
    """Check every promise of a strategy: an instance, or a class, or a name as in a scenario, with its options.

    Raises PromiseError for the first promise that is broken, with the call that broke it, and ScenarioError where the
    strategy cannot be made.
    """
    made = _made(strategy, options)
    trial = Trial(made, scene, type(made).__name__)
    unchecked: dict[str, str] = {}
    for name, check in _CHECKS.items():
        reason = check(trial)
        if reason is not None:
            unchecked[name] = reason
    return Kept(tuple(name for name in PROMISES if name not in unchecked), unchecked)


def _made(strategy: Any, options: Mapping[str, Any]) -> Strategy:
    if isinstance(strategy, str):
        return strategies.build(strategy, options)
    made: Any = strategy
    if callable(strategy) and (isinstance(strategy, type) or not hasattr(strategy, "arrive")):
        made = strategy(**options)
    elif options:
        raise TypeError(f"{strategy!r} is made already and takes no options; give its class")
    return made


class Trial:
    """A strategy and its scene; plays are made once and looked at by several checks."""

    def __init__(self, strategy: Strategy, scene: Scene, name: str) -> None:
        self.strategy, self.scene, self.name = strategy, scene, name

    @cached_property
    def plain(self) -> list[Event]:
        """The script on floats."""
        return self.play(Values())

    @cached_property
    def untrained(self) -> list[Event]:
        """The script where nothing is trained."""
        try:
            return self.play(Values(lambda _: Null))
        except RefusedError:  # a value was asked for: once more, to see by which call
            return play(self.strategy, self.scene, Values(lambda _: Null), Watcher(self.name))

    def play(self, values: Values) -> list[Event]:
        """The script on other values."""
        return play(self.strategy, self.scene, values)

    def broken(self, promise: str, call: str, why: str) -> NoReturn:
        """Say so."""
        raise PromiseError(self.name, promise, call, why)

    def alike(self, promise: str, why: str, one: list[Event], other: list[Event], shift: float = 0.0) -> None:
        """Compare what two plays publish; the second may be ``shift`` away."""
        for left, right in zip(one, other, strict=False):
            if requests(left.reply) != requests(right.reply):
                return  # it reads outcomes, and decided otherwise: from here on these are two stories
            if left.reply.params is None:
                continue
            expected, found = left.reply.params + shift, right.reply.params
            if not math.isclose(expected, found, rel_tol=_DIGITS, abs_tol=_DIGITS):
                self.broken(promise, left.told, f"{why}: {expected!r} was due, {found!r} came")


def frozen(value: float) -> np.ndarray:
    """An array that nobody can write into."""
    array = value * np.array([1.0, -0.5, 0.25])
    array.setflags(write=False)
    return array


# ---- the checks; one that has nothing to look at returns the reason


def _complete(trial: Trial) -> None:
    wanted = ("reads_outcomes", "max_staleness", "start", "arrive", "lose", "alarm")
    lacking = [word for word in wanted if not hasattr(trial.strategy, word)]
    if lacking:
        trial.broken("complete", "no call yet", f"it lacks {', '.join(lacking)}")
    bound, reads = trial.strategy.max_staleness, trial.strategy.reads_outcomes
    if not isinstance(reads, bool) or not (bound is None or (isinstance(bound, int) and bound >= 0)):
        trial.broken(
            "complete",
            "no call yet",
            f"reads_outcomes = {reads!r} and max_staleness = {bound!r}; a bool and a count or None",
        )


def _storable(trial: Trial) -> None:
    try:
        copy: Any = pickle.loads(pickle.dumps(trial.strategy))  # noqa: S301  (our own bytes)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        trial.broken("storable", "pickling the strategy", f"{error}; define its class, and its functions, in a module")
    for one, other in zip(trial.plain, play(copy, trial.scene, Values()), strict=True):
        if not same(one.reply, other.reply):
            trial.broken("storable", one.told, f"it answers {one.reply!r}, and after pickling {other.reply!r}")


def _watched(trial: Trial) -> None:
    play(trial.strategy, trial.scene, Values(frozen), Watcher(trial.name))


def _publishes(trial: Trial) -> None:
    events = trial.plain
    if len(events) < trial.scene.events:
        last = events[-1].told if events else "start"
        trial.broken("publishes", last, "after it nobody is out and no alarm is set, so nothing more can happen")
    if all(event.reply.params is None for event in events):
        trial.broken(
            "publishes",
            events[-1].told,
            f"not one version in {len(events)} events; a smaller buffer, or Scene(events=...)",
        )
    _recovers(trial)


def _recovers(trial: Trial) -> None:
    """Lose whoever is out, again and again; then let everybody come: there must be another version."""
    scene, values = trial.scene, Values()
    ground = scene.ground(trial.strategy, values)
    for number in range(3 * scene.concurrency):
        if ground.jobs:
            ground.lose(next(iter(ground.jobs)))
        elif ground.alarms:
            ground.alarm(next(iter(ground.alarms)))
        else:
            trial.broken(
                "publishes", f"loss {number} on end", "after it nobody is out and no alarm is set; send somebody out"
            )
    version = ground.version
    for number in range(scene.events):
        able = [job.id for job in ground.jobs.values() if ground.sizes[job.client]]
        if ground.alarms and number % 6 == 5:  # noqa: PLR2004
            ground.alarm(next(iter(ground.alarms)))
        elif able:
            come(ground, number, able[0], values)
        elif ground.jobs:
            ground.lose(next(iter(ground.jobs)), "no examples")
    if ground.version == version:
        trial.broken(
            "publishes",
            f"{3 * scene.concurrency} losses on end",
            "though everybody came afterwards, there was no version more",
        )


def _timeline(trial: Trial) -> str | None:
    if trial.strategy.reads_outcomes:
        return "it says that it reads outcomes"
    plain, untrained = trial.plain, trial.untrained
    for one, other in zip(plain, untrained, strict=False):
        if requests(one.reply) != requests(other.reply):
            why = f"it asks for {one.reply!r} with values and {other.reply!r} without"
            trial.broken("timeline", one.told, why)
    if len(plain) != len(untrained):
        trial.broken("timeline", plain[-1].told, "after it more happens with values than without, or less")
    return None


def _null_through(trial: Trial) -> str | None:
    if trial.strategy.reads_outcomes:
        return "it says that it reads outcomes"
    for one, other in zip(trial.plain, trial.untrained, strict=True):
        if other.reply.params is not None and other.reply.params is not Null:
            trial.broken("null", other.told, f"it publishes {other.reply.params!r} where nothing is trained")
        if other.reply.weight is not None and other.reply.weight != one.reply.weight:
            trial.broken(
                "null",
                other.told,
                f"the weight is {one.reply.weight!r}, and {other.reply.weight!r} where nothing is trained",
            )
    return None


def _shares(trial: Trial) -> None:
    members: list[int] = []
    for event in trial.plain:
        if event.what == "arrive" and event.job is not None and event.finite and event.reply.reject is None:
            members.append(event.job.id)
        shares = dict(event.reply.shares or ())
        strange = [job for job in shares if job not in members]
        if strange:
            trial.broken(
                "shares", event.told, f"shares for the jobs {strange}, which brought nothing that was not averaged"
            )
        if any(share < 0 for share in shares.values()) or sum(shares.values()) > 1 + _DIGITS:
            trial.broken("shares", event.told, f"shares {shares}; each must be at least 0, and their sum at most 1")
        everybody = event.reply.params is not None and event.reply.shares is None
        members = [job for job in members if not everybody and job not in shares]


def _weights(trial: Trial) -> str | None:
    if not trial.scene.moves:
        return "the scene says that it is not indifferent to where the origin lies"
    why = f"all models are {_SHIFT} further, so its must be"
    trial.alike("weights", why, trial.plain, trial.play(Values(shift=_SHIFT)), _SHIFT)
    return None


def _no_trace(trial: Trial) -> str | None:
    """Let what must not count be something else; nothing that is published may change."""
    unheard = [event for event in trial.plain if not event.finite or (event.what == "arrive" and event.reply.reject)]
    if not unheard:
        return "no update was non-finite or rejected"
    for event in unheard:
        if event.reply.weight:
            trial.broken("no trace", event.told, f"its weight is {event.reply.weight}, and must be 0 or None")
    others = trial.play(Values(instead={event.number: _OTHER for event in unheard}))
    why = (
        f"other values in the events {[event.number for event in unheard]}, which must weigh nothing, change the model"
    )
    trial.alike("no trace", why, trial.plain, others)
    return None


def _fresh(trial: Trial) -> str | None:
    base = trial.scene.fresh_as
    if base is None:
        return "the scene names no base rule (fresh_as)"
    found: list[list[float]] = []
    for strategy in (base, trial.strategy):
        ground = trial.scene.ground(strategy, Values(), concurrency=1)
        path: list[float] = []
        for number in range(trial.scene.events):
            if ground.jobs:
                come(ground, number, next(iter(ground.jobs)), Values())
            path.append(ground.params)
        found.append(path)
    for number, (due, came) in enumerate(zip(*found, strict=True)):
        if not math.isclose(due, came, rel_tol=_DIGITS, abs_tol=_DIGITS):
            trial.broken(
                "fresh", f"event {number}", f"nothing is stale, {type(base).__name__} gives {due!r}, it gives {came!r}"
            )
    return None


def _order(trial: Trial) -> str | None:
    """Who makes the first version together, all out since the start, may come in any order."""
    if trial.scene.ordered:
        return "the scene says that the order matters"
    members, due = _first_version(trial, ())
    if len(members) < 2:  # noqa: PLR2004
        return "no version is made of several updates that were out together"
    for turned in (members[::-1], (*members[1:], members[0])):
        again, found = _first_version(trial, turned)
        if len(again) == len(members) and not math.isclose(due, found, rel_tol=_DIGITS, abs_tol=_DIGITS):
            trial.broken(
                "order", f"arrivals of the jobs {turned}", f"they make {found!r}, and {due!r} in the order {members}"
            )
    return None


def _first_version(trial: Trial, order: tuple[int, ...]) -> tuple[tuple[int, ...], float]:
    """Let those who are out at the start come, in an order or as they left, until there is a version."""
    ground = trial.scene.ground(trial.strategy, Values())
    able = [job.id for job in ground.jobs.values() if ground.sizes[job.client]]
    came: list[int] = []
    for number in order or able:
        if number in ground.jobs and ground.version == 0:
            come(ground, number, number, Values())
            came.append(number)
    return (tuple(came) if ground.version else ()), ground.params


_CHECKS: dict[str, Callable[[Trial], str | None]] = {
    "complete": _complete,
    "pure": _watched,  # and unchanged, sound, alarms: all that single calls show; first, so that the rest can be played
    "storable": _storable,
    "publishes": _publishes,
    "timeline": _timeline,
    "null": _null_through,
    "shares": _shares,
    "weights": _weights,
    "no trace": _no_trace,
    "fresh": _fresh,
    "order": _order,
}
