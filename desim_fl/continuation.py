"""What a run must remember besides its timeline, to go on from an instant as if it had never stopped.

Everything that virtual time decides (who is in flight, versions, queues, alarms, accounts) comes back by playing the
timeline again on ``Null`` parameters, at the speed of ``plan``. What training made does not; it is held here. Where
the timeline reads trained values, those values, or what a strategy asked for on seeing them, are held too, and told again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.engine import Engine
from desim_fl.errors import CheckpointError
from desim_fl.executors.resuming import ResumingExecutor, ahead
from desim_fl.readings import OTHER_RUN, Decided, Decisions, Read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from desim_fl.buffers import Brought
    from desim_fl.core import Job, Model, Send
    from desim_fl.eventlog import Tail


class Carried(NamedTuple):
    """What a job in flight took with it."""

    params: Any
    buffers: Any
    extra: Any
    memory: Any


class Held(NamedTuple):
    """The trained values of a run at the end of instant ``tick``.

    ``state`` is the strategy's, ``asked`` the sends that wait for a client, or for what candidates say (they may start from older versions),
    ``jobs`` the jobs in flight by id; ``caches`` and ``memories`` by client, ``buffers`` those that no version has
    averaged yet; ``ahead`` what the executor trained before it was needed, ``tail`` the rows of the log that
    are in no segment yet; ``read`` and ``decided`` what the timeline read of training (:mod:`desim_fl.readings`).
    """

    tick: int
    model: Model
    state: Any
    asked: tuple[Send, ...]
    jobs: dict[int, Carried]
    caches: dict[int, Any]
    memories: dict[int, Any]
    buffers: Brought
    ahead: Any
    tail: Tail
    read: Read = Read()
    decided: Decided = Decided()


def carried(jobs: Iterable[Job]) -> dict[int, Carried]:
    """What these jobs took with them, by id."""
    return {job.id: Carried(job.params, job.buffers, job.extra, job.memory) for job in jobs}


def loaded(job: Job, carries: Carried) -> Job:
    """The job with what it took with it."""
    return job._replace(**carries._asdict())


class ResumableEngine(Engine):
    """An engine that tells what it holds between instants, and can go on from there."""

    def resume(self, held: Held, watch: Callable[[Engine], None] | None = None) -> str:
        """Play the timeline up to the instant of ``held`` again, on an executor that trains nothing; then go on."""
        self.readings.tell_again(held.read)
        if isinstance(self._strategy, Decisions):
            self._strategy.tell_again(held.decided)
        self.play_to(held.tick)
        if self.why is not None or self.now != held.tick:
            raise CheckpointError(f"the timeline has no instant at tick {held.tick}; {OTHER_RUN}")
        self._take_up(held)
        return self._play(watch)

    def play_to(self, tick: int) -> None:
        """Play the start, and every instant up to this one."""
        self._begin()
        while self.why is None and self._env.peek() <= tick:
            self._env.step()

    @property
    def between_instants(self) -> bool:
        """Whether everything of this instant has been played, evaluations included."""
        return self._env.peek() > self._env.now

    def held(self) -> Held:
        """Return the trained values; only between instants, and never changed afterwards but by the engine."""
        return Held(
            tick=self.now,
            model=self.model,
            state=self._strategy.state,
            asked=self._desk.unfilled,
            jobs=carried(flying.job for flying in self.flights.values()),
            caches=self._caches,
            memories=self._memories,
            buffers=self.buffers.brought,
            ahead=ahead(self.world.executor),
            tail=self.log.tail(),
            read=self.readings.kept(),
            decided=self._strategy.kept() if isinstance(self._strategy, Decisions) else Decided(),
        )

    def _take_up(self, held: Held) -> None:
        """Put trained values in the places of those that were not trained."""
        executor, desk = self.world.executor, self._desk
        known = self.model.version == held.model.version and self.flights.keys() == held.jobs.keys()
        if not known or len(desk.unfilled) != len(held.asked) or not isinstance(executor, ResumingExecutor):
            raise CheckpointError(f"the timeline has other jobs in flight at tick {held.tick}; {OTHER_RUN}")
        self.readings.replay.end()
        if isinstance(self._strategy, Decisions):
            self._strategy.replay.end()
        self.log.take_up(held.tail)
        self.model, self._strategy.state = held.model, held.state
        desk.take_up(held.asked)
        self._view.model = held.model
        self._caches.clear()
        self._caches.update(held.caches)
        self._memories, self.buffers.brought = held.memories, held.buffers
        for flying in self.flights.values():
            flying.job = loaded(flying.job, held.jobs[flying.job.id])
        self._evaluator.forget()
        executor.wake([(flying.job, flying.ends) for flying in self.flights.values()], held.ahead)
