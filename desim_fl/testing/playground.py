"""A server without a clock, on which a strategy is played by hand or by a script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.core import Flight, Job, Loss, Model, Outcome, Reply, Send, Update, Work
from desim_fl.errors import LawError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from desim_fl.core import Params, Strategy

    Ask = Callable[[Strategy, str, tuple[Any, ...]], tuple[Any, Reply]]


def once(strategy: Strategy, event: str, arguments: tuple[Any, ...]) -> tuple[Any, Reply]:
    """Ask a strategy, and believe it."""
    return getattr(strategy, event)(*arguments)


def twice(strategy: Strategy, event: str, arguments: tuple[Any, ...]) -> tuple[Any, Reply]:
    """Ask a strategy the same twice; raises LawError if the two answers differ."""
    method = getattr(strategy, event)
    first, again = method(*arguments), method(*arguments)
    # By their text: arrays have no single truth value to compare with.
    if repr(first) != repr(again):
        raise LawError(f"{method.__qualname__} asked twice answers {first!r} and {again!r}; it must be pure")
    return first


class Playground:
    """A server without a clock: the caller says which job arrives or is lost next, and with what.

    It is also the strategy's View. Free clients are sent out by number; places that nobody can take are dropped; a client
    that is sent to while it is out leaves when it is back. Alarms go off only when the caller says so; ``alarms`` holds
    those that are set, with their seconds. ``urged`` are the jobs that were told to report early, ``work`` is what a job
    does where the strategy leaves it open. Every question goes through ``ask``: ``twice``, unless told otherwise.
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
        work: Work | None = None,
        ask: Ask = twice,
    ) -> None:
        self.strategy = strategy
        self.version, self.params = 0, params
        self.clients, self.concurrency, self.policy = clients, concurrency, policy
        self.sizes: Sequence[int] = (1,) * clients if sizes is None else sizes
        self.groups: Mapping[str, Sequence[int]] = groups or {}
        self.work = work or Work()
        self.jobs: dict[int, Job] = {}
        self.caches: dict[int, Any] = {}
        self.alarms: dict[str, float] = {}
        self.urged: list[int] = []
        self.sent = 0
        self.state: Any = None
        self._ask, self._owed = ask, concurrency
        self._trips = [0] * clients
        self._waiting: list[tuple[int, Send]] = []
        self._obey(self._reply("start", self), refill=True)

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
        loss: Any = None,
        extra: Any = None,
        stopped: bool = False,
    ) -> Reply:
        """Bring a job back with this model; what a non-finite one brings is replaced by its base."""
        job = self._landed(job_id)
        outcome = Outcome(params if finite else job.params, None, examples, steps, stopped, loss, extra)
        update = Update(job, outcome, self.version - job.version, finite, self.cache(job.client))
        return self._obey(self._reply("arrive", self.state, self, update), freed=1)

    def lose(self, job_id: int, why: str = "lost") -> Reply:
        """Let a job never return."""
        job = self._landed(job_id)
        loss = Loss(job, self.version - job.version, why)
        return self._obey(self._reply("lose", self.state, self, loss), freed=1, refill=True)

    def alarm(self, name: str) -> Reply:
        """Let an alarm go off."""
        self.alarms.pop(name, None)
        return self._obey(self._reply("alarm", self.state, self, name))

    def _landed(self, job_id: int) -> Job:
        self.urged = [other for other in self.urged if other != job_id]
        return self.jobs.pop(job_id)

    def _reply(self, event: str, *arguments: Any) -> Reply:
        self.state, reply = self._ask(self.strategy, event, arguments)
        return reply

    def _obey(self, reply: Reply, *, freed: int = 0, refill: bool = False) -> Reply:
        if reply.params is not None:
            self.version, self.params = self.version + 1, reply.params
        self.caches.update(reply.keep)
        for stop in reply.stops:
            if stop.how == "cancel":  # the others report later, when the caller says so
                self._landed(stop.job)
            else:
                self.urged.append(stop.job)
        for alarm in reply.alarms:
            self.alarms.pop(alarm.name, None)
            if alarm.after_s is not None:
                self.alarms[alarm.name] = alarm.after_s
        waiting, self._waiting = self._waiting, []
        for client, send in waiting:
            self._depart(client, send)
        for send in reply.sends or ():
            self._send(send)
        if reply.sends is None:
            self._owed += freed
            if refill or self.policy == "immediate" or reply.params is not None:
                self._owed, owed = 0, self._owed
                self._send(Send(count=owed))
        return reply

    def _send(self, send: Send) -> None:
        for client in list(self._free(send))[: send.count] if send.clients is None else send.clients:
            self._depart(client, send)

    def _free(self, send: Send) -> Iterator[int]:
        busy = [job.client for job in self.jobs.values()]
        pool = range(self.clients) if send.group is None else self.groups[send.group]
        return (client for client in pool if client not in busy)

    def _depart(self, client: int, send: Send) -> None:
        if any(job.client == client for job in self.jobs.values()):
            self._waiting.append((client, send))
            return
        start, asked = send.start or self.model, send.work or Work()
        work = self.work._replace(**{key: value for key, value in asked._asdict().items() if value is not None})
        self.jobs[self.sent] = Job(
            self.sent,
            client,
            self._trips[client],
            start.version,
            start.params,
            None,
            work,
            extra=send.extra,
            tag=send.tag,
        )
        self.sent += 1
        self._trips[client] += 1
