"""The engine: one run in virtual time.

SimPy keeps the clock. Every event carries the key (tick, class, number) as SimPy's (time, priority), so that an
instant plays in one defined order, whatever order things were scheduled in. The engine counts (versions,
staleness, idle clients, open places); the strategy computes; the executor trains.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn

import simpy

from desim_fl.algebra import Null, is_finite
from desim_fl.complaints import abandoned_for_ever, rejected_for_ever
from desim_fl.consultation import Consultation
from desim_fl.continuation import Held, carried, loaded
from desim_fl.core import Alarm, Job, Loss, Model, Outcome, Reply, Send, Stop, Update
from desim_fl.dispatch import Desk
from desim_fl.errors import CheckpointError, JobError, LawError, RefusedError, RunError, StalledError
from desim_fl.evaluation import Evaluation, Evaluator
from desim_fl.eventlog import EventLog, Kind
from desim_fl.executors.resuming import ResumingExecutor
from desim_fl.flight import ALARM, ARRIVAL, END, Due, Flying, whole_trip
from desim_fl.ledger import Ledger
from desim_fl.ticks import to_ticks
from desim_fl.usage import Usage
from desim_fl.view import LiveView

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.world import World

OTHER_RUN = "the checkpoint belongs to another run, or to another version of what plays it"
_SAME_CLIENT_LIMIT = 100
_SAME_INSTANT_LIMIT = 100_000
_ABANDONED_LIMIT = 10_000


class Engine:
    """Plays one world, once. ``run`` returns when a stop rule holds; ``why`` then names it."""

    def __init__(self, world: World, log: EventLog, record: Callable[[Evaluation], None] | None = None) -> None:
        self.world, self.log = world, log
        self.model = world.model
        self.ledger = Ledger()
        self.usage = Usage(len(world.sizes))
        self.flights: dict[int, Flying] = {}
        self.dispatches = [0] * len(world.sizes)
        self.why: str | None = None
        self.final_ticks = 0
        self._env = simpy.Environment(initial_time=0)
        self._view = LiveView(world, self.flights)
        self._strategy = Consultation(world.strategy, self._view)
        self._desk = Desk(world, self._view, self.dispatches, self._depart)
        self._evaluator = Evaluator(self._env, world, record or (lambda _: None))
        self._watch: Callable[[Engine], None] | None = None
        self._abandoned = self._rejected = 0  # rounds and updates since the last publish
        self._alarms: dict[str, Due] = {}
        self._alarm_count = 0
        self._caches: dict[int, Any] = {}
        self._memories: dict[int, Any] = {}
        self._buffers: dict[int, Any] = {}  # by job: buffers of the finite updates since the last publish
        self._instant, self._instant_events, self._by_client = -1, 0, dict[int, int]()
        log.tally = self.usage.tally

    @property
    def now(self) -> int:
        """Virtual time in ticks."""
        return self._env.now  # pyright: ignore[reportReturnType]

    # ---- the run

    def run(self, watch: Callable[[Engine], None] | None = None) -> str:
        """Play until a stop rule holds and return ``timeline_sha256``; ``watch`` is called after every arrival."""
        self._begin()
        return self._play(watch)

    def resume(self, held: Held, watch: Callable[[Engine], None] | None = None) -> str:
        """Play the timeline up to the instant of ``held`` again, on an executor that trains nothing; then go on."""
        self._begin()
        while self.why is None and self._env.peek() <= held.tick:
            self._env.step()
        if self.why is not None or self.now != held.tick:
            raise CheckpointError(f"the timeline has no instant at tick {held.tick}; {OTHER_RUN}")
        self._take_up(held)
        return self._play(watch)

    def _begin(self) -> None:
        """Play the start."""
        self._evaluator.start(self.model, lambda: (self.model, self.ledger.arrived), self._goes_on)
        limit = self.world.stops.max_ticks
        if limit is not None:
            Due(self._env, self._on_end, None, END, 0, limit)
        self.log.block(0)
        self._answer(self._strategy.start(), freed=self.world.concurrency, at_once=True)

    def _play(self, watch: Callable[[Engine], None] | None) -> str:
        self._watch, step = watch, self._env.step
        try:
            while self.why is None:
                step()
        except simpy.core.EmptySchedule as error:
            raise StalledError(self._stalled()) from error
        return self.log.finish(self.final_ticks)

    def _on_end(self, _: Due) -> None:
        """The last instant has been played whole."""
        self.log.block(self.now)
        self._stop("max_time", self.now)

    # ---- holding on

    @property
    def between_instants(self) -> bool:
        """Whether everything of this instant has been played, evaluations included."""
        return self._env.peek() > self.now

    def held(self) -> Held:
        """Return the trained values; only between instants, and never changed afterwards but by the engine."""
        return Held(
            tick=self.now,
            model=self.model,
            state=self._strategy.state,
            asked=tuple(self._desk.asked),
            jobs=carried(flying.job for flying in self.flights.values()),
            caches=self._caches,
            memories=self._memories,
            buffers=self._buffers,
            tail=self.log.tail(),
        )

    def _take_up(self, held: Held) -> None:
        """Put trained values in the places of those that were not trained."""
        known = self.model.version == held.model.version and self.flights.keys() == held.jobs.keys()
        if (
            not known
            or len(self._desk.asked) != len(held.asked)
            or not isinstance(self.world.executor, ResumingExecutor)
        ):
            raise CheckpointError(f"the timeline has other jobs in flight at tick {held.tick}; {OTHER_RUN}")
        self.log.take_up(held.tail)
        self.model, self._strategy.state, self._desk.asked = held.model, held.state, list(held.asked)
        self._view.moved(held.model)
        self._caches, self._memories, self._buffers = held.caches, held.memories, held.buffers
        for flying in self.flights.values():
            flying.job = loaded(flying.job, held.jobs[flying.job.id])
        self._evaluator.forget()
        self.world.executor.wake((flying.job, flying.ends) for flying in self.flights.values())

    def settle(self) -> None:
        """Wait for evaluations that are still under way, when a run ends before its stop."""
        self._evaluator.settle(wait=True)

    def _goes_on(self) -> bool:
        """Whether anything but evaluations is still to come."""
        return bool(self.flights or self._alarms or self.world.stops.max_ticks is not None)

    def _stalled(self) -> str:
        return (
            f"nothing is left to happen at t = {self.now / 1e6} s, version {self.model.version}, and the stop rule is not "
            f"reached: {self._desk.open_places} open places, {self._desk.held_places} held until the next publish, "
            f"{self.ledger.buffered} updates buffered, {self._desk.roster.selectable} clients selectable; look at "
            "strategy.buffer_size, run.concurrency and run.dispatch, or set run.max_time_s"
        )

    def _stop(self, why: str, tick: int) -> None:
        """Write the last rows of the current block (the strategy may flush once more) and evaluate."""
        reply = self._strategy.finish()
        if reply.params is not None:
            self._publish(reply, -1, -1)
        self.log.row(Kind.STOP, -1, -1, self.model.version)
        self.ledger.check(self.model.version)
        self.usage.close(self.flights.values(), tick)
        self.why, self.final_ticks = why, tick
        self._evaluator.finish(self.model, tick, self.ledger.arrived)

    # ---- landings and alarms

    def _on_landing(self, event: Due) -> None:
        flying: Flying = event.subject
        if flying.due is not event:
            return  # cancelled, or moved to another instant
        self.log.block(flying.ends)
        self._guard_progress(flying)
        if flying.lost is None:
            self._arrive(flying)
        else:
            self._lose(flying, flying.lost)
        self.world.executor.release(flying.job)
        if self._watch is not None:
            self._watch(self)

    def _arrive(self, flying: Flying) -> None:
        """Let the strategy have the update, unless the engine turns it away, and do as it replies."""
        outcome = self._collect(flying)
        job, version = flying.job, self.model.version
        self._land(flying)
        self.ledger.arrive(job.version, version, flying.trip.bytes_up)
        staleness = version - job.version
        reason = self._turned_away(staleness, outcome)
        if reason is None:
            self._hand_over(flying, outcome, staleness)
            return
        self._log_arrival(flying, outcome, staleness)
        self._reject(job, staleness, reason)
        reply = self._strategy.lose(Loss(job, staleness, reason))
        self._answer(reply, job.client, job.id, freed=1, at_once=True)

    def _turned_away(self, staleness: int, outcome: Outcome) -> str | None:
        """Say why the engine rejects an arrival, for every strategy alike, or ``None``."""
        bound = self.world.strategy.max_staleness
        if bound is not None and staleness > bound:
            return "stale"
        return None if outcome.examples else "no examples"

    def _hand_over(self, flying: Flying, outcome: Outcome, staleness: int) -> None:
        """Let the strategy have the update, and do as it replies."""
        job, finite, seen, weight = flying.job, True, outcome, None
        if outcome.bad is not None or not (outcome.params is Null or is_finite(outcome.params)):
            self._allow_non_finite(job, outcome)
            finite, seen = False, outcome._replace(params=job.params)
        self.ledger.buffered += 1
        try:
            reply = self._strategy.arrive(Update(job, seen, staleness, finite, self._caches.get(job.client)))
            weight = reply.weight
        finally:  # where the strategy fails, the log must still add up
            self._log_arrival(flying, outcome, staleness, weight, finite=finite)
        if reply.reject is None:
            self._buffers[job.id] = outcome.buffers if finite else None
        else:
            self.ledger.buffered -= 1
            self._reject(job, staleness, reply.reject)
        self._desk.hear(job.client, outcome.loss)
        self._answer(reply, job.client, job.id, freed=1, at_once=reply.reject is not None)

    def _allow_non_finite(self, job: Job, outcome: Outcome) -> None:
        if self.world.non_finite == "fail":
            raise RunError(
                f"job {job.id} (client {job.client}, from version {job.version}) gave a non-finite update in "
                f'"{outcome.bad or "params"}"; run.non_finite = "skip" would give it weight 0 and go on'
            )

    def _collect(self, flying: Flying) -> Outcome:
        """Get the outcome, check what the timeline took for granted, and store the client's memory."""
        job = flying.job
        outcome = self.world.executor.collect(job, flying.steps)
        _, _, examples, steps, stopped, _, _, memory, _ = outcome
        if stopped or steps != flying.steps or examples != self.world.sizes[job.client]:
            self._refuse(flying, outcome)
        if memory is not None:
            self._memories[job.client] = memory
        return outcome

    def _refuse(self, flying: Flying, outcome: Outcome) -> NoReturn:
        job, name = flying.job, self.world.executor.name
        if outcome.stopped:
            raise RefusedError("early stopping of local training (Outcome.stopped) cannot be played yet")
        if outcome.steps != flying.steps:
            why = f"the trainer reports {outcome.steps} optimiser steps, but {flying.steps} were asked for and timed"
            raise JobError(job.id, job.client, job.version, name, why)
        why = f"the trainer reports {outcome.examples} examples, but the client has {self.world.sizes[job.client]}"
        raise JobError(job.id, job.client, job.version, name, why)

    def _land(self, flying: Flying) -> None:
        """End a flight and free its client."""
        job = flying.job
        del self.flights[job.id]
        flying.due = None
        self._desk.roster.free(job.client)

    def _log_arrival(
        self, flying: Flying, outcome: Outcome, staleness: int, weight: float | None = None, *, finite: bool = True
    ) -> None:
        job, loss = flying.job, outcome.loss
        self.log.arrive(
            job.client,
            job.id,
            self.model.version,
            staleness,
            outcome.examples,
            outcome.steps,
            flying.trip,
            weight,
            None if loss is Null else loss,
        )
        if not finite:
            self.log.say("outcome", "rejected: non-finite")
            self.log.say("bad_key", outcome.bad or "params")

    def _reject(self, job: Job, staleness: int, reason: str) -> None:
        self.ledger.rejected += 1
        self._rejected += 1
        if self._rejected >= _SAME_INSTANT_LIMIT and self.world.stops[::2] == (None, None):
            raise rejected_for_ever(self._rejected, reason, self.now)
        self.log.row(Kind.REJECT, job.client, job.id, self.model.version, staleness, reason)

    def _lose(self, flying: Flying, why: str) -> None:
        job, version = flying.job, self.model.version
        self._land(flying)
        self.ledger.lose(job.version, version)
        self.usage.spend(flying, flying.ends)
        staleness = version - job.version
        self.log.row(Kind.LOSE, job.client, job.id, version, staleness, why)
        reply = self._strategy.lose(Loss(job, staleness, why))
        self._answer(reply, job.client, job.id, freed=1, at_once=True)

    def _on_alarm(self, event: Due) -> None:
        name: str = event.subject
        if self._alarms.get(name) is not event:
            return  # taken back, or set anew
        del self._alarms[name]
        self._count_event()
        if self._instant_events >= _SAME_INSTANT_LIMIT:
            raise StalledError(
                f'virtual time is not advancing: the alarm "{name}" rings again and again at t = {self.now / 1e6} s; '
                "set it at least a microsecond ahead"
            )
        self.log.block(self.now)
        self.log.row(Kind.ALARM, -1, -1, self.model.version, reason=name)
        self._answer(self._strategy.alarm(name), freed=0)

    def _count_event(self, client: int = -1) -> None:
        """Count the landings and alarms of this instant so far, and those of each client."""
        now = self.now
        if now != self._instant:
            self._instant, self._instant_events, self._by_client = now, 1, {client: 1}
        else:
            self._instant_events += 1
            self._by_client[client] = self._by_client.get(client, 0) + 1

    def _guard_progress(self, flying: Flying) -> None:
        """Raise ``StalledError`` where virtual time does not advance and no stop rule would end it."""
        self._count_event(flying.job.client)
        if self._instant_events >= _SAME_CLIENT_LIMIT:
            self._guard_instant(flying.job.client, lost=flying.lost is not None)

    def _guard_instant(self, client: int, *, lost: bool) -> None:
        stops, count = self.world.stops, self._by_client[client]
        uncounted = stops.max_versions is None and stops.max_updates is None
        endless = (lost or stops.max_updates is None) and self._instant_events >= _SAME_INSTANT_LIMIT
        if (uncounted and count >= _SAME_CLIENT_LIMIT) or endless:
            fate = "arrived or was lost" if lost else "arrived"
            raise StalledError(
                f"virtual time is not advancing: client {client} {fate} {count} times at t = {self.now / 1e6} s; "
                "give jobs a duration (clients.seconds_per_step, network.latency_s) or set run.max_updates"
            )

    # ---- what a reply asks for

    def _answer(self, reply: Reply, client: int = -1, job: int = -1, *, freed: int, at_once: bool = False) -> None:
        """Publish first, then check the stop rules, then end, arm and send."""
        if reply.keep:
            self._caches.update(reply.keep)
        if reply.params is not None:
            self._publish(reply, client, job)
        if reply.abandon:
            self._abandon(client, job)
        why = self.world.stops.reached(self.model.version, self.ledger.arrived)
        if why is not None:
            self._stop(why, self.now)
            return
        for stop in reply.stops:
            freed += self._end_early(stop)
        for alarm in reply.alarms:
            self._set_alarm(alarm)
        self._desk.queue(reply.sends, freed, at_once=at_once, published=reply.params is not None)
        self._desk.fill()
        self.ledger.check(self.model.version)
        if not self._desk.explicit and self.ledger.in_flight > self.world.concurrency:
            raise LawError(f"{self.ledger.in_flight} jobs in flight exceed the concurrency {self.world.concurrency}")

    def _abandon(self, client: int, job: int) -> None:
        """Write the row of an abandoned round; raises ``StalledError`` where no round ever ends otherwise."""
        self.log.row(Kind.ABANDON, client, job, self.model.version)
        self._abandoned += 1
        if self._abandoned >= _ABANDONED_LIMIT and self.world.stops.max_ticks is None:
            raise abandoned_for_ever(self._abandoned, self.now)

    def _publish(self, reply: Reply, client: int, job: int) -> None:
        version = self.model.version + 1
        self.model = Model(version, reply.params, self._averaged(reply.shares))
        self._view.moved(self.model)
        self.ledger.publish()
        self._buffers, self._abandoned, self._rejected = {}, 0, 0
        self.log.publish(client, job, version, reply.scale)
        self._evaluator.published(self.model)

    def _averaged(self, shares: tuple[tuple[int, float], ...] | None) -> Any:
        """Buffers of the next version: float statistics by convex shares, the rest stays with the server's own."""
        if not self.model.buffers:
            return self.model.buffers
        finite = {job: buffers for job, buffers in self._buffers.items() if buffers is not None}
        if shares is None:
            shares = tuple((job, 1.0 / len(finite)) for job in finite)
        total = math.fsum(share for _, share in shares)
        if any(share < 0.0 for _, share in shares) or total > 1.0 + 1e-9:
            raise LawError(f"the strategy's shares are not convex: they add up to {total}")
        members = [(share, finite[job]) for job, share in shares if job in finite and share > 0.0]
        return self.world.average(self.model.buffers, members)

    def _end_early(self, stop: Stop) -> int:
        """Cancel a running job (returns 1: its place is free) or move its report forward (returns 0)."""
        flying = self.flights.get(stop.job)
        if flying is None:
            raise RunError(f"the strategy stops job {stop.job}, which is not in flight")
        if stop.how == "cancel":
            job = flying.job
            version = self.model.version
            self._land(flying)
            self.ledger.cancel(job.version, version)
            self.usage.spend(flying, self.now)
            self.log.cut(job.id)
            self.log.row(Kind.CANCEL, job.client, job.id, version, version - job.version)
            self.world.executor.release(job)
            return 1
        if stop.how not in {"epoch", "step"}:
            raise RefusedError(f'a job cannot be stopped with how = "{stop.how}"; use "cancel", "epoch" or "step"')
        self._report_early(flying, stop.how)
        return 0

    def _report_early(self, flying: Flying, how: str) -> None:
        """Let a job report what it has at its next epoch or step boundary."""
        steps, compute = flying.boundary(self.now, how)
        if steps == flying.steps:
            return
        ahead = {kind for kind, tick in flying.legs() if tick > self.now}
        self.log.cut(flying.job.id)
        flying.shorten(steps, compute)
        later = tuple(end for end in flying.legs() if end[0] in ahead)  # a boundary in this very instant included
        self.log.legs(flying.job.client, flying.job.id, later)
        self._schedule_landing(flying)

    def _set_alarm(self, alarm: Alarm) -> None:
        self._alarms.pop(alarm.name, None)
        if alarm.after_s is not None:
            self._alarm_count += 1
            try:
                delay = to_ticks(alarm.after_s)
            except ValueError as error:
                raise RunError(f'the strategy sets the alarm "{alarm.name}": {error}') from error
            self._alarms[alarm.name] = Due(self._env, self._on_alarm, alarm.name, ALARM, self._alarm_count, delay)

    # ---- departures

    def _depart(self, client: int, send: Send) -> None:
        """Dispatch one job to one client; its whole trip is known now."""
        world, now, version = self.world, self.now, self.model.version
        nth, start = self.dispatches[client], send.start or self.model
        work = world.assignment.work(client, send.work)
        trip = world.trips.trip(client, nth, work)
        ends, lost = whole_trip(client, nth, trip, now)
        if world.assignment.rate is not None:
            work = world.assignment.rated(work, trip)
        number = self.ledger.dispatched
        base, params, buffers = start
        memory = self._memories.get(client)
        job = Job(number, client, nth, base, params, buffers, work, send.extra, memory, send.tag)
        flying = self.flights[number] = Flying(job, trip, now, work.steps or 0, ends, lost)
        self.dispatches[client] = nth + 1
        self._desk.roster.take(client)
        self.ledger.depart(base, version, trip.bytes_down)
        self._log_departure(flying)
        self._schedule_landing(flying)
        world.executor.submit(job, ends)

    def _log_departure(self, flying: Flying) -> None:
        job = flying.job
        if flying.lost is None:
            self.log.dispatch(job.client, job.id, job.version, job.nth, job.work, flying.trip)
        else:
            self.log.dispatch(job.client, job.id, job.version, job.nth, job.work, flying.trip, 0)
            self.log.legs(job.client, job.id, flying.legs())

    def _schedule_landing(self, flying: Flying) -> None:
        flying.due = Due(self._env, self._on_landing, flying, ARRIVAL, flying.job.id, flying.ends - self.now)
