"""What every strategy must hold to, as a check that anybody can run on their own one.

>>> from desim_fl.strategies import FedBuff
>>> check(FedBuff(buffer_size=2))
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from desim_fl.algebra import Null
from desim_fl.core import Flight, Job, Loss, Model, Outcome, Reply, Send, Strategy, Update, Work
from desim_fl.errors import LawError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from desim_fl.core import Params


class Playground:
    """A server without a clock: the caller says which job arrives or is lost next, and with what.

    It is also the strategy's View. Free clients are sent out by number; places that nobody can take are dropped,
    and alarms go off only when the caller says so. Each call to the strategy is made twice; LawError if the two
    answers differ.
    """

    def __init__(
        self,
        strategy: Strategy,
        params: Params,
        *,
        clients: int = 10,
        concurrency: int = 3,
        policy: str = "immediate",
        sizes: Sequence[int] | None = None,
        groups: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.strategy = strategy
        self.version, self.params = 0, params
        self.clients, self.concurrency, self.policy = clients, concurrency, policy
        self.sizes: Sequence[int] = (1,) * clients if sizes is None else sizes
        self.groups: Mapping[str, Sequence[int]] = groups or {}
        self.jobs: dict[int, Job] = {}
        self.caches: dict[int, Any] = {}
        self.sent = 0
        self.state: Any = None
        self._owed = concurrency
        self._obey(self._ask(strategy.start, self), refill=True)

    @property
    def model(self) -> Model:
        """The current version."""
        return Model(self.version, self.params)

    @property
    def flying(self) -> dict[int, Flight]:
        """Who is out."""
        return {
            job.id: Flight(job.client, job.version, self.version - job.version, job.tag) for job in self.jobs.values()
        }

    def cache(self, client: int) -> Any:
        """What the strategy last asked to be kept for a client."""
        return self.caches.get(client)

    def arrive(
        self,
        job_id: int,
        params: Params,
        *,
        examples: int = 1,
        finite: bool = True,
        steps: int = 0,
        extra: Any = None,
        stopped: bool = False,
    ) -> Reply:
        """Bring a job back with this model; what a non-finite one brings is replaced by its base."""
        job = self.jobs.pop(job_id)
        outcome = Outcome(params if finite else job.params, None, examples, steps, stopped, extra=extra)
        update = Update(job, outcome, self.version - job.version, finite, self.cache(job.client))
        return self._obey(self._ask(self.strategy.arrive, self.state, self, update), freed=1)

    def lose(self, job_id: int, why: str = "lost") -> Reply:
        """Let a job never return."""
        job = self.jobs.pop(job_id)
        loss = Loss(job, self.version - job.version, why)
        return self._obey(self._ask(self.strategy.lose, self.state, self, loss), freed=1, refill=True)

    def alarm(self, name: str) -> Reply:
        """Let an alarm go off."""
        return self._obey(self._ask(self.strategy.alarm, self.state, self, name))

    def _ask(self, method: Callable[..., tuple[Any, Reply]], *arguments: Any) -> Reply:
        first, again = method(*arguments), method(*arguments)
        # By their text: arrays have no single truth value to compare with.
        if repr(first) != repr(again):
            raise LawError(f"{method.__qualname__} asked twice answers {first!r} and {again!r}; it must be pure")
        self.state, reply = first
        return reply

    def _obey(self, reply: Reply, *, freed: int = 0, refill: bool = False) -> Reply:
        if reply.params is not None:
            self.version, self.params = self.version + 1, reply.params
        self.caches.update(reply.keep)
        for stop in reply.stops:
            if stop.how == "cancel":  # the others report later, when the caller says so
                del self.jobs[stop.job]
        for send in reply.sends or ():
            self._send(send)
        if reply.sends is None:
            self._owed += freed
            if refill or self.policy == "immediate" or reply.params is not None:
                self._owed, owed = 0, self._owed
                self._send(Send(count=owed))
        return reply

    def _send(self, send: Send) -> None:
        busy = [job.client for job in self.jobs.values()]
        pool = range(self.clients) if send.group is None else self.groups[send.group]
        free = [client for client in pool if client not in busy][: send.count]
        for client in free if send.clients is None else send.clients:
            start = send.start or self.model
            work = send.work or Work()
            self.jobs[self.sent] = Job(
                self.sent, client, 0, start.version, start.params, None, work, extra=send.extra, tag=send.tag
            )
            self.sent += 1


def requests(reply: Reply) -> tuple[object, ...]:
    """Return what the timeline sees of a reply: everything but trained values, weights and shares."""
    sends = None if reply.sends is None else tuple(map(_asked, reply.sends))
    return (reply.params is None, sends, reply.stops, reply.alarms, reply.reject, reply.abandon)


def _asked(send: Send) -> Send:
    """Return a send without the values that go with it: of the start, which version it is; of the rest, whether there is any."""
    start = None if send.start is None else Model(send.start.version, None)
    return send._replace(start=start, extra=send.extra is not None)


def script(strategy: Strategy, make: Callable[[float], Params], events: int = 40) -> list[Reply]:
    """Play a fixed mixture of fresh, stale, late, lost and non-finite jobs, on parameters made from floats."""
    ground = Playground(strategy, make(1.0), concurrency=4)
    replies: list[Reply] = []
    for event in range(events):
        flying = list(ground.jobs)
        if not flying:
            break
        job = flying[event * event % len(flying)]
        if event % 5 == 3:  # noqa: PLR2004
            replies.append(ground.lose(job))
        else:
            replies.append(ground.arrive(job, make(0.5 * event), examples=1 + event % 3, finite=event % 7 != 6))  # noqa: PLR2004
    return [*replies, ground.alarm("nobody set this")]


def check(strategy: Strategy) -> None:
    """Raise LawError unless the strategy is complete, pure, can be pickled and does not decide on trained values.

    A strategy that ``reads_outcomes`` may decide on them, and is not asked to live without.
    """
    if not isinstance(strategy, Strategy):
        raise LawError(f"{strategy!r} lacks a part of desim_fl.core.Strategy")
    trained = script(strategy, float)
    if repr(script(pickle.loads(pickle.dumps(strategy)), float)) != repr(trained):  # noqa: S301  (our own bytes)
        raise LawError(f"{strategy!r} answers otherwise after pickling")
    if strategy.reads_outcomes:
        return
    untrained = script(strategy, lambda _: Null)
    for number, (left, right) in enumerate(zip(trained, untrained, strict=True)):
        if requests(left) != requests(right):
            raise LawError(f"{strategy!r}, reply {number}: {left!r} with values and {right!r} without")
