"""The engine: one run in virtual time.

SimPy keeps the clock. Every event carries the key (tick, class, number) as SimPy's (time, priority), so that an
instant plays in one defined order, whatever order things were scheduled in. The engine counts (versions,
staleness, idle clients, open places); the strategy computes; the executor trains.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import simpy

from desim_fl.algebra import Null, is_finite
from desim_fl.complaints import abandoned_for_ever, rejected_for_ever
from desim_fl.consultation import consult
from desim_fl.core import Alarm, Job, Loss, Model, Outcome, Reply, Send, Stop, Update
from desim_fl.dispatch import Desk
from desim_fl.errors import JobError, LawError, RefusedError, RunError, StalledError
from desim_fl.evaluation import Evaluation, Evaluator
from desim_fl.eventlog import EventLog, Kind, Note
from desim_fl.flight import ALARM, ARRIVAL, Due, Flying, check_trip
from desim_fl.ledger import Ledger
from desim_fl.ticks import to_ticks
from desim_fl.usage import Usage
from desim_fl.view import LiveView

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.world import World

_SAME_CLIENT_LIMIT = 100
_SAME_INSTANT_LIMIT = 100_000
_ABANDONED_LIMIT = 10_000


class Engine:
    """Plays one world, once. ``run`` returns when a stop rule holds; ``why`` then names it."""

    def __init__(self, world: World, log: EventLog, record: Callable[[Evaluation], None] | None = None) -> None:
        self.world, self.log = world, log
        self.model = world.model
        self.ledger = Ledger()
        self.usage = Usage()
        self.flights: dict[int, Flying] = {}
        self.dispatches = [0] * len(world.sizes)
        self.why: str | None = None
        self.final_ticks = 0
        self._env = simpy.Environment(initial_time=0)
        self._view = LiveView(world, self.flights)
        self._desk = Desk(world, self._view, self._depart)
        self._evaluator = Evaluator(self._env, world, record or (lambda _: None))
        self._watch: Callable[[Engine], None] = lambda _: None
        self._state: Any = None
        self._abandoned = self._rejected = 0  # rounds and updates since the last publish
        self._alarms: dict[str, Due] = {}
        self._alarm_count = 0
        self._caches: dict[int, Any] = {}
        self._memories: dict[int, Any] = {}
        self._buffers: dict[int, Any] = {}  # by job: buffers of the finite updates since the last publish
        self._instant, self._instant_events, self._by_client = -1, 0, dict[int, int]()

    @property
    def now(self) -> int:
        """Virtual time in ticks."""
        return self._env.now  # pyright: ignore[reportReturnType]

    # ---- the run

    def run(self, watch: Callable[[Engine], None] | None = None) -> str:
        """Play until a stop rule holds and return ``timeline_sha256``; ``watch`` is called after every arrival."""
        self._watch = watch or self._watch
        self._evaluator.start(self.model, lambda: (self.model, self.ledger.arrived), self._goes_on)
        self.log.block(0)
        reply = self._consult("start")
        self._answer(reply, freed=self.world.concurrency, at_once=True)
        limit = self.world.stops.max_ticks
        while self.why is None:
            upcoming = self._env.peek()
            if limit is not None and upcoming > limit:
                self.log.block(limit)
                self._stop("max_time", limit)
            elif upcoming == math.inf:
                raise StalledError(self._stalled())
            else:
                self._env.step()
        return self.log.finish(self.final_ticks)

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
        reply = self._consult("finish") if hasattr(self.world.strategy, "finish") else Reply()
        if reply.params is not None:
            self._publish(reply, -1, -1)
        self.log.row(Kind.STOP, -1, -1, self.model.version)
        self.ledger.check(self.model.version)
        self.usage.close(self.flights.values(), tick)
        self.why, self.final_ticks = why, tick
        self._evaluator.finish(self.model, tick, self.ledger.arrived)

    # ---- landings and alarms

    def _on_landing(self, event: Due) -> None:
        flying: Flying | None = event.subject
        if flying is None:
            return  # cancelled, or moved to another instant
        self.log.block(self.now)
        if flying.loss is not None:
            self._lose(flying, flying.loss[1])
        else:
            self._arrive(flying)
        self.world.executor.release(flying.job)
        self._watch(self)

    def _arrive(self, flying: Flying) -> None:
        job = flying.job
        self._guard_progress(job.client)
        outcome = self._collect(flying)
        staleness = self._land(flying, "arrived", flying.trip.bytes_up)
        reason = self._turned_away(job, staleness)
        if reason is None:
            self._hand_over(flying, outcome, staleness)
            return
        self._log_arrival(flying, outcome, staleness)
        self._reject(job, staleness, reason)
        reply = self._consult("lose", Loss(job, staleness, reason), job)
        self._answer(reply, job.client, job.id, freed=1, at_once=True)

    def _hand_over(self, flying: Flying, outcome: Outcome, staleness: int) -> None:
        """Let the strategy have the update, and do as it replies."""
        job = flying.job
        finite = outcome.bad is None and is_finite(outcome.params)
        if not finite and self.world.non_finite == "fail":
            raise RunError(
                f"job {job.id} (client {job.client}, from version {job.version}) gave a non-finite update in "
                f'"{outcome.bad or "params"}"; run.non_finite = "skip" would give it weight 0 and go on'
            )
        seen = outcome if finite else outcome._replace(params=job.params)
        update = Update(job, seen, staleness, finite, self._caches.get(job.client))
        self._log_arrival(flying, outcome, staleness, finite=finite)
        self.ledger.buffered += 1  # counted before the strategy is asked: it may fail, and the log must still add up
        reply = self._consult("arrive", update, job)
        self.log.amend(weight=reply.weight)
        if reply.reject is None:
            self._buffers[job.id] = outcome.buffers if finite else None
        else:
            self.ledger.buffered -= 1
            self._reject(job, staleness, reply.reject)
        self._desk.hear(job.client, outcome.loss)
        self._answer(reply, job.client, job.id, freed=1, at_once=reply.reject is not None)

    def _collect(self, flying: Flying) -> Outcome:
        """Get the outcome, check what the timeline took for granted, and store the client's memory."""
        job, name = flying.job, self.world.executor.name
        outcome = self.world.executor.collect(job, flying.steps)
        if outcome.stopped:
            raise RefusedError("early stopping of local training (Outcome.stopped) cannot be played yet")
        if outcome.steps != flying.steps:
            why = f"the trainer reports {outcome.steps} optimiser steps, but {flying.steps} were asked for and timed"
            raise JobError(job.id, job.client, job.version, name, why)
        if outcome.examples != self.world.sizes[job.client]:
            why = f"the trainer reports {outcome.examples} examples, but the client has {self.world.sizes[job.client]}"
            raise JobError(job.id, job.client, job.version, name, why)
        if outcome.memory is not None:
            self._memories[job.client] = outcome.memory
        return outcome

    def _turned_away(self, job: Job, staleness: int) -> str | None:
        """Say why the engine rejects an arrival, for every strategy alike, or ``None``."""
        bound = self.world.strategy.max_staleness
        if bound is not None and staleness > bound:
            return "stale"
        return "no examples" if self.world.sizes[job.client] == 0 else None

    def _land(self, flying: Flying, fate: str, size_bytes: int = 0) -> int:
        """End a flight, free its client and return the job's staleness."""
        job, version = flying.job, self.model.version
        del self.flights[job.id]
        self._call_off(flying)
        self._desk.roster.free(job.client)
        self.ledger.land(job.version, version, fate, size_bytes)
        self.usage.land(flying, self.now, version - job.version if fate == "arrived" else None)
        return version - job.version

    def _log_arrival(self, flying: Flying, outcome: Outcome, staleness: int, *, finite: bool = True) -> None:
        note = Note(
            steps=outcome.steps,
            examples=outcome.examples,
            loss=None if outcome.loss is Null else outcome.loss,
            bytes=flying.trip.bytes_up,
            outcome=None if finite else "rejected: non-finite",
            bad_key=None if finite else outcome.bad or "params",
        )
        self.log.row(Kind.ARRIVE, flying.job.client, flying.job.id, self.model.version, staleness, note)

    def _reject(self, job: Job, staleness: int, reason: str) -> None:
        self.ledger.rejected += 1
        self._rejected += 1
        if self._rejected >= _SAME_INSTANT_LIMIT and self.world.stops[::2] == (None, None):
            raise rejected_for_ever(self._rejected, reason, self.now)
        self.log.row(Kind.REJECT, job.client, job.id, self.model.version, staleness, Note(reason=reason))

    def _lose(self, flying: Flying, why: str) -> None:
        job = flying.job
        self._guard_progress(job.client, lost=True)
        staleness = self._land(flying, "lost")
        self.log.row(Kind.LOSE, job.client, job.id, self.model.version, staleness, Note(reason=why))
        reply = self._consult("lose", Loss(job, staleness, why), job)
        self._answer(reply, job.client, job.id, freed=1, at_once=True)

    def _on_alarm(self, event: Due) -> None:
        name: str = event.subject
        if self._alarms.get(name) is not event:
            return  # taken back, or set anew
        del self._alarms[name]
        if self._count_event() >= _SAME_INSTANT_LIMIT:
            raise StalledError(
                f'virtual time is not advancing: the alarm "{name}" rings again and again at t = {self.now / 1e6} s; '
                "set it at least a microsecond ahead"
            )
        self.log.block(self.now)
        self.log.row(Kind.ALARM, -1, -1, self.model.version, note=Note(reason=name))
        reply = self._consult("alarm", name)
        self._answer(reply, freed=0)

    def _count_event(self) -> int:
        """Count the landings and alarms of this instant so far."""
        if self.now != self._instant:
            self._instant, self._instant_events, self._by_client = self.now, 0, {}
        self._instant_events += 1
        return self._instant_events

    def _guard_progress(self, client: int, *, lost: bool = False) -> None:
        """Raise ``StalledError`` where virtual time does not advance and no stop rule would end it."""
        events = self._count_event()
        count = self._by_client[client] = self._by_client.get(client, 0) + 1
        stops = self.world.stops
        uncounted = stops.max_versions is None and stops.max_updates is None
        endless = (lost or stops.max_updates is None) and events >= _SAME_INSTANT_LIMIT
        if (uncounted and count >= _SAME_CLIENT_LIMIT) or endless:
            fate = "arrived or was lost" if lost else "arrived"
            raise StalledError(
                f"virtual time is not advancing: client {client} {fate} {count} times at t = {self.now / 1e6} s; "
                "give jobs a duration (clients.seconds_per_step, network.latency_s) or set run.max_updates"
            )

    # ---- the strategy and what its replies ask for

    def _consult(self, event: str, subject: Any = None, job: Job | None = None) -> Reply:
        """Tell the strategy of an event and keep its new state."""
        self._state, reply = consult(self.world.strategy, self._state, self._view, event, subject, job)
        return reply

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
        self.model = Model(self.model.version + 1, reply.params, self._averaged(reply.shares))
        self.log.version = self.model.version
        self._view.moved(self.model)
        self.ledger.publish()
        self._buffers, self._abandoned, self._rejected = {}, 0, 0
        self.log.row(Kind.PUBLISH, client, job, self.model.version, note=Note(scale=reply.scale))
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
            staleness = self._land(flying, "cancelled")
            self.log.cut(job.id)
            self.log.row(Kind.CANCEL, job.client, job.id, self.model.version, staleness)
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
        flying.steps, flying.trip = steps, flying.trip._replace(compute=compute)
        later = tuple(end for end in flying.legs() if end[0] in ahead)  # a boundary in this very instant included
        self.log.legs(flying.job.client, flying.job.id, later)
        self._call_off(flying)
        self._schedule_landing(flying)

    def _call_off(self, flying: Flying) -> None:
        if flying.due is not None:
            flying.due.forget()
            flying.due = None

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
        world, nth, start = self.world, self.dispatches[client], send.start or self.model
        work = world.assignment.work(client, send.work)
        trip = world.trips.trip(client, nth, work)
        check_trip(client, nth, trip, self.now)
        job = Job(
            id=self.ledger.dispatched,
            client=client,
            nth=nth,
            version=start.version,
            params=start.params,
            buffers=start.buffers,
            work=world.assignment.rated(work, trip),
            extra=send.extra,
            memory=self._memories.get(client),
            tag=send.tag,
        )
        flying = self.flights[job.id] = Flying(job, trip, self.now, work.steps or 0)
        self.dispatches[client] = nth + 1
        self._desk.roster.take(client)
        self.ledger.depart(start.version, self.model.version, trip.bytes_down)
        self.usage.depart(flying)
        self._log_departure(flying)
        self._schedule_landing(flying)
        world.executor.submit(job, flying.ends)

    def _log_departure(self, flying: Flying) -> None:
        job, trip = flying.job, flying.trip
        wait_s = None if trip.wait is None else trip.wait / 1e6
        note = Note(nth=job.nth, steps=job.work.steps, lr=job.work.lr, bytes=trip.bytes_down, wait_s=wait_s)
        self.log.row(Kind.DISPATCH, job.client, job.id, job.version, note=note)
        self.log.legs(job.client, job.id, flying.legs())

    def _schedule_landing(self, flying: Flying) -> None:
        flying.due = Due(self._env, self._on_landing, flying, ARRIVAL, flying.job.id, flying.ends - self.now)
