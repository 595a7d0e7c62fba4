"""What happens to a strategy while its promises are watched: a fixed mixture of everything that an engine can bring."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.algebra import Null
from desim_fl.core import Model, Send, Work
from desim_fl.testing.playground import Playground, once

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from desim_fl.core import Job, Params, Reply, Strategy
    from desim_fl.testing.playground import Ask

_STEPS = 3
NOTHING: Mapping[int, float] = MappingProxyType({})


class Scene(NamedTuple):
    """On what ground a strategy is played, and what is known of it.

    ``sizes`` are the clients' training examples (one of them has none; free clients leave by number, so it is not the
    first), ``concurrency`` and ``policy`` those of a scenario's
    [run]. With ``tiers`` client c is in the group "tier c mod tiers". ``events`` is how many things happen.
    ``fresh_as`` is the base rule: a strategy that this one must equal where nothing is stale. ``ordered = True`` says that the
    order in which the updates of one version come matters. ``moves = False`` says that the method is not indifferent to
    where the origin lies (a server with weight decay, say).
    """

    sizes: tuple[int, ...] = (3, 1, 0, 3, 2, 2, 1)
    concurrency: int = 4
    policy: str = "immediate"
    tiers: int = 0
    events: int = 40
    fresh_as: Strategy | None = None
    ordered: bool = False
    moves: bool = True

    def ground(self, strategy: Strategy, values: Values, **options: Any) -> Playground:
        """Set the scene up."""
        options = {"concurrency": self.concurrency, "policy": self.policy, "ask": once, **options}
        groups = {
            f"tier {tier}": tuple(range(tier, len(self.sizes), self.tiers)) for tier in range(self.tiers)
        }  # clients by number: who is fast does not matter here
        return Playground(
            strategy,
            values.of(1.0),
            clients=len(self.sizes),
            sizes=self.sizes,
            groups=groups,
            work=Work(1, _STEPS, 0.1),
            **options,
        )


class Values(NamedTuple):
    """How the numbers of a script become parameters: through ``make``, all moved by ``shift``.

    ``instead`` are values of some events that differ from the script's.
    """

    make: Callable[[float], Params] = float
    shift: float = 0.0
    instead: Mapping[int, float] = NOTHING

    def of(self, value: float) -> Params:
        """Parameters of a number."""
        return self.make(value + self.shift)

    def brought(self, event: int) -> Params:
        """The model that an arrival brings, or the base that a non-finite one leaves."""
        return self.of(self.instead.get(event, event * event % 13 / 4 - 1.0))


class Event(NamedTuple):
    """The ``number``-th thing that happened, to which job, whether its values were finite, and what the strategy replied."""

    number: int
    what: str
    job: Job | None
    reply: Reply
    finite: bool = True

    @property
    def told(self) -> str:
        """The event in words."""
        if self.job is None:
            return f"event {self.number}: {self.what}"
        return f"event {self.number}: {self.what} of job {self.job.id} (client {self.job.client})"


def play(strategy: Strategy, scene: Scene, values: Values, ask: Ask = once) -> list[Event]:
    """Play a fixed mixture of fresh, stale, late, lost, partial and non-finite jobs, and of alarms that were set."""
    ground = scene.ground(strategy, values, ask=ask)
    played: list[Event] = []
    for number in range(scene.events):
        if not ground.jobs and not ground.alarms:
            break
        played.append(_next(ground, number, values))
    if len(played) == scene.events and hasattr(strategy, "finish"):
        ending: Any = Ending(strategy)
        played.append(Event(scene.events, "finish", None, ask(ending, "finish", (ground.state, ground))[1]))
    return played


class Ending(NamedTuple):
    """A strategy at the stop of a run, whose answer is like those to other events."""

    strategy: Any

    def finish(self, state: Any, view: Playground) -> tuple[Any, Reply]:
        """Ask what to publish of what is left; the state is not asked for again."""
        return state, self.strategy.finish(state, view)


def _next(ground: Playground, number: int, values: Values) -> Event:
    """Let the next thing happen: what it is depends on its number and on who is out, never on a value."""
    if ground.alarms and (not ground.jobs or number % 6 == 5):  # noqa: PLR2004
        return Event(number, "alarm", None, ground.alarm(next(iter(ground.alarms))))
    flying = list(ground.jobs)
    chosen = ground.urged[0] if ground.urged else flying[number * number % len(flying)]
    job = ground.jobs[chosen]
    if not ground.sizes[job.client]:
        return Event(number, "lose", job, ground.lose(chosen, "no examples"))
    if number % 5 == 3:  # noqa: PLR2004
        return Event(number, "lose", job, ground.lose(chosen))
    return come(ground, number, chosen, values, finite=number % 7 != 6)  # noqa: PLR2004


def come(ground: Playground, number: int, chosen: int, values: Values, *, finite: bool = True) -> Event:
    """Let a job arrive with what the script has for this event."""
    job, model = ground.jobs[chosen], values.brought(number)
    if number % 11 == 4:  # noqa: PLR2004
        job = job._replace(work=job.work._replace(partial=True))
    if not finite:  # as the engine does: the base stands for what it brought
        job = job._replace(params=model)
    ground.jobs[chosen] = job
    reply = ground.arrive(
        chosen,
        model,
        examples=ground.sizes[job.client],
        finite=finite,
        steps=number % (_STEPS + 1),
        stopped=number % 9 == 8,  # noqa: PLR2004
        loss=Null if model is Null else 1.0 + number % 4,
        extra=_answer(job, values, number),
    )
    return Event(number, "arrive", job, reply, finite)


def _answer(job: Job, values: Values, number: int) -> Any:
    """Answer what a strategy broadcast as its clients would: with a value of its kind for each that came."""
    if not isinstance(job.extra, dict):
        return None
    return {key: values.make(0.25 * (number % 3) - 0.25) for key in job.extra}


def requests(reply: Reply) -> tuple[object, ...]:
    """Return what the timeline sees of a reply: everything but trained values, weights and shares."""
    sends = None if reply.sends is None else tuple(map(_asked, reply.sends))
    return (reply.params is None, sends, reply.stops, reply.alarms, reply.reject, reply.abandon)


def _asked(send: Send) -> Send:
    """Return a send without the values that go with it: of the start, which version it is; of the rest, whether there is any."""
    start = None if send.start is None else Model(send.start.version, None)
    return send._replace(start=start, extra=send.extra is not None)
