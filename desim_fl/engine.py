"""The engine: one run in virtual time.

SimPy keeps the clock. Every event carries the key (tick, class, number) as SimPy's (time, priority), so that an
instant plays in one defined order, whatever order things were scheduled in. The engine counts (versions,
staleness, idle clients, open places); the strategy computes; the executor trains.

Why the usual way of a job, ``_depart`` and ``on_arrival``, is written as it is: a plan plays a hundred thousand jobs
in seconds, and then every call and every object counts. So a job is one event, since nothing can intervene between
its legs (what does, cancels the event or puts another in its place); facts are plain tuples, taken apart once; rows go
into the log packed, and totals by client, leg ends and the staleness identity are worked out from them a batch at a
time (:mod:`desim_fl.records`, ``Usage``, ``Ledger``); trips are drawn ahead for many clients at once
(:mod:`desim_fl.timing`); and what is rare (turned away, lost, alarms, sends of the strategy's own) has its own
functions, so that the usual way asks one question for each and goes on. ``tests/test_plan_speed.py`` counts the calls.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import simpy
from simpy.core import EmptySchedule

from desim_fl.algebra import Null, is_finite
from desim_fl.buffers import Buffers
from desim_fl.complaints import non_finite, nothing_left, unlike_the_plan
from desim_fl.consultation import Consultation
from desim_fl.core import Alarm, Job, Loss, Model, Outcome, Reply, Send, Update
from desim_fl.delays import Delays
from desim_fl.errors import LawError, RunError
from desim_fl.evaluation import Evaluation, Evaluator
from desim_fl.eventlog import EventLog, Kind
from desim_fl.flight import ALARM, END, Due, Flying, whole_trip
from desim_fl.ledger import Ledger
from desim_fl.patience import remark, watched
from desim_fl.premises import furnish, open_up
from desim_fl.readings import Decisions, Readings
from desim_fl.standstill import Standstill
from desim_fl.ticks import MOST_TICKS, to_ticks
from desim_fl.usage import Usage
from desim_fl.view import LiveView

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.records import Batch
    from desim_fl.world import World

new: Any = tuple.__new__  # a NamedTuple from all its fields at half the price


class Engine:
    """Plays one world, once. ``run`` returns when a stop rule holds; ``why`` then names it."""

    def __init__(self, world: World, log: EventLog, record: Callable[[Evaluation], None] | None = None) -> None:
        self.world, self.log = world, log
        self.model, self.ledger = world.model, Ledger()
        self.usage = Usage(len(world.sizes))
        self.flights: dict[int, Flying] = {}
        self.losses: Counter[str] = Counter()  # by reason
        self.dispatches = [0] * len(world.sizes)
        self.now = 0  # virtual time in ticks: SimPy's, as of the event in hand
        self.why: str | None = None
        self.final_ticks = 0
        self.env = self._env = simpy.Environment(initial_time=0)
        self._caches: dict[int, Any] = {}
        self._view = LiveView(world, self.flights, self._caches)
        self._strategy = (Decisions if world.strategy.reads_outcomes else Consultation)(world.strategy, self._view)
        self.readings = Readings()
        self.premises = furnish(self, self._view, self._depart)
        self.roster, self.desk, self._absences, self.roads, self.server, self._beyond, self._recalls = self.premises[:7]
        self._roster, self._desk = self.roster, self.desk
        self._evaluator = Evaluator(self._env, world, record or (lambda _: None))
        self._watch: Callable[[Engine], None] | None = None
        self._alarms: dict[str, Due] = {}
        self._alarm_count = 0
        self._memories: dict[int, Any] = {}
        self.buffers = Buffers()
        self._still = Standstill(world.stops)
        self._most_versions, self._most_updates = world.stops.most()
        self._hears = world.selector.reads_outcomes
        self._evaluates = world.evaluations.every_versions is not None
        self._usual, self._trip = world.assignment.usual, self.premises.trip
        self._stragglers, self._rates_vary = world.assignment.stragglers is not None, world.assignment.varies
        idle = getattr(world.executor, "idle", False)  # one that does nothing with jobs is not bothered with them
        self._submit = None if idle else world.executor.submit
        self._attended = not idle  # whether anybody wants to know of landings
        self._arrival = [self.premises.received]  # handlers, for all flights
        self._loss = [self.on_loss]
        self.early, self.monitored = watched(self, self._evaluator)
        self._collect = world.executor.collect if self.early is None else self.early.collect
        self._delays = None if (pace := world.assignment.pace) is None else Delays(pace, self.flights)
        if self._delays is not None:
            self._collect = self._delays.collecting(self._collect, lambda: self.now)
        log.tally = self._tally

    def _tally(self, batch: Batch) -> None:
        self.usage.tally(batch)
        self.ledger.tally(batch)

    # ---- the run

    def run(self, watch: Callable[[Engine], None] | None = None) -> str:
        """Play until a stop rule holds and return ``timeline_sha256``; ``watch`` is called after every arrival."""
        self._begin()
        return self._play(watch)

    def _begin(self) -> None:
        """Play the start."""
        self._evaluator.aim(self.readings.read, self.on_end)
        self._evaluator.start(
            self.model, lambda: (self.model, self.ledger.arrived), self._goes_on, self.premises.occupy
        )
        limit = self.world.stops.max_ticks
        if limit is not None:
            Due(self._env, self.on_end, (limit, "max_time"), END, 0, limit)
        self.log.block(0)
        self._answer(self._strategy.start(), -1, -1, self.world.concurrency, at_once=True)
        open_up(self)

    def _play(self, watch: Callable[[Engine], None] | None) -> str:
        self._watch, step = watch, self._env.step
        self._attended = self._attended or watch is not None
        try:
            while self.why is None:
                step()
        except EmptySchedule as error:
            raise nothing_left(self.now, self.model.version, self._desk, self.ledger.buffered) from error
        timeline_sha256 = self.log.finish(self.final_ticks)
        self.ledger.close(flying.job.version for flying in self.flights.values())
        return timeline_sha256

    def on_end(self, event: Due) -> None:
        """The last instant has been played whole."""
        self.now, why = event.subject
        self.log.block(self.now)
        self._stop(why)

    def settle(self) -> None:
        """Wait for evaluations that are still under way, when a run ends before its stop."""
        self._evaluator.settle(wait=True)

    def _goes_on(self) -> bool:
        """Whether anything but evaluations is still to come."""
        awaited = self._absences is not None and self._absences.awaits
        endless = self.world.stops.max_ticks is not None or self.world.arrivals is not None
        return bool(self.flights or self._alarms or awaited or endless)

    def _stop(self, why: str) -> None:
        """Write the last rows of the current block (the strategy may flush once more) and evaluate."""
        reply = self._strategy.finish()
        if reply.params is not None:
            self._publish(reply, -1, -1)
        self.log.row(Kind.STOP, -1, -1, self.model.version)
        self.ledger.check(self.model.version, len(self.flights))
        self.usage.close(self.flights.values(), self.now)
        self.premises.close(self.now)
        self.why, self.final_ticks = why, self.now
        self._evaluator.finish(self.model, self.now, self.ledger.arrived)

    # ---- landings and alarms

    def on_arrival(self, flying: Flying) -> None:
        """Let the strategy have the update, unless the engine turns it away, and do as it replies."""
        job, ledger, version, trip, still = flying.job, self.ledger, self.model.version, flying.trip, self._still
        number, client, base = job.id, job.client, job.version
        self.now = now = flying.ends
        if now == still.instant:
            still.crowd_in(client, lost=False)
        else:
            still.instant, still.events, still.crowd = now, 1, {client: 1}
        outcome = self._collect(job, flying.steps)
        params, _, examples, steps, stopped, loss, _, memory, bad = outcome
        if stopped or memory is not None or steps != flying.steps or examples != self.world.sizes[client]:
            self._examine(flying, outcome)
        del self.flights[number]
        self._roster.free(client)
        ledger.arrived += 1
        loss = None if loss is Null else loss
        staleness, bound = version - base, self.world.strategy.max_staleness
        stale = bound is not None and staleness > bound
        if stale or not examples or flying.lost is not None:
            self.log.arrive(now, client, number, version, staleness, examples, steps, trip, None, loss)
            self._turn_away(job, staleness, flying.lost or ("stale" if stale else "no examples"))
            return
        finite = bad is None and (params is Null or is_finite(params))
        seen, weight = outcome if finite else self._without_values(job, outcome), None
        ledger.buffered += 1
        try:
            reply = self._strategy.arrive(new(Update, (job, seen, staleness, finite, self._caches.get(client))))
            weight = reply.weight
        finally:  # where the strategy fails, the log must still add up
            self.log.arrive(now, client, number, version, staleness, examples, steps, trip, weight, loss)
            if stopped or not finite:
                remark(self.log, bad, finite=finite, stopped=stopped)
        if self._hears or self.model.buffers:
            self._remember(job, outcome, loss, averaged=reply.reject is None, finite=finite)
        if self._strategy.usual:
            self._turn_over(reply, client, number)
        else:
            self._follow(reply, job, staleness)
        if self._attended:
            self.landed(job)

    def _examine(self, flying: Flying, outcome: Outcome) -> None:
        """Check what the timeline took for granted, and store the client's memory."""
        examples = self.world.sizes[flying.job.client]
        if (outcome.stopped and self.early is None) or outcome.steps != flying.steps or outcome.examples != examples:
            raise unlike_the_plan(flying.job, outcome, flying.steps, examples, self.world.executor.name)
        self._memories[flying.job.client] = outcome.memory

    def _without_values(self, job: Job, outcome: Outcome) -> Outcome:
        """What the strategy sees of an outcome that is not finite: the job's own base; or an error, if it is to be one."""
        if self.world.non_finite == "fail":
            raise non_finite(job, outcome.bad)
        return outcome._replace(params=job.params)

    def _remember(self, job: Job, outcome: Outcome, loss: float | None, *, averaged: bool, finite: bool) -> None:
        """Keep the buffers for the next publish, and let a selector that reads outcomes know."""
        if averaged and self.model.buffers:
            self.buffers.bring(job, outcome.buffers if finite else None)
        if self._hears:
            self._desk.hear(job.client, self.readings.read(loss))

    def _turn_over(self, reply: Reply, client: int, job: int) -> None:
        """Answer a reply that asks for nothing but a publish, at most; what :meth:`_answer` would do, directly."""
        published = reply.params is not None
        if published:
            self._publish(reply, client, job)
        version, ledger = self.model.version, self.ledger
        if ledger.arrived >= self._most_updates or version >= self._most_versions:
            self._stop("max_versions" if version >= self._most_versions else "max_updates")
            return
        self._desk.turn_over(published=published)
        in_flight = len(self.flights)
        if in_flight > self.world.concurrency or self._absences is not None:
            self.balance()
        else:
            ledger.check(version, in_flight)

    def _follow(self, reply: Reply, job: Job, staleness: int) -> None:
        """Answer a reply to an arrival that asks for more."""
        if reply.reject is not None:
            self.ledger.buffered -= 1
            self._reject(job, staleness, reply.reject)
        self._answer(reply, job.client, job.id, 1, at_once=reply.reject is not None)

    def balance(self) -> None:
        """Check what must hold after every event."""
        in_flight = len(self.flights)
        self.ledger.check(self.model.version, in_flight)
        if self._absences is not None:
            in_flight -= len(self._absences.overdue)
            self._absences.look_out()
        if (
            in_flight > self.world.concurrency
            and not self._desk.explicit
            and (in_flight - len(self._desk.probes) > self.world.concurrency)
        ):
            raise LawError(f"{in_flight} jobs in flight exceed the concurrency {self.world.concurrency}")

    def landed(self, job: Job) -> None:
        """Let go of a job, and tell who watches."""
        self.world.executor.release(job)
        if self._watch is not None:
            self._watch(self)

    def _turn_away(self, job: Job, staleness: int, reason: str) -> None:
        """Reject an arrival, for every strategy alike."""
        self._reject(job, staleness, reason)
        reply = self._strategy.lose(Loss(job, staleness, reason))
        self._answer(reply, job.client, job.id, 1, at_once=True)
        self.landed(job)

    def _reject(self, job: Job, staleness: int, reason: str) -> None:
        self.ledger.rejected += 1
        self._still.reject(reason, self.now)
        self.log.row(Kind.REJECT, job.client, job.id, self.model.version, staleness, reason)

    def on_loss(self, flying: Flying) -> None:
        """A job will not come back."""
        self.lose(flying, flying.ends, flying.lost or "", free=True)

    def lose(self, flying: Flying, now: int, why: str, *, free: bool) -> None:
        """Give a job up, and tell the strategy; its client is free again, or (``free = False``) goes on in vain."""
        job = flying.job
        self.now = now
        self._still.land(now, job.client, lost=True)
        del self.flights[job.id]
        if free:
            self._roster.free(job.client)
        self.ledger.lose()
        self.losses[why] += 1
        self._still.lose(self.ledger.lost_in_a_row, why, now)
        self.usage.spend(flying, now)
        staleness = self.model.version - job.version
        self.log.block(now)
        self.log.row(Kind.LOSE, job.client, job.id, self.model.version, staleness, why, flying.sent_up(now))
        if self._desk.misses(job.id):
            self.balance()
        else:
            reply = self._strategy.lose(Loss(job, staleness, why))
            self._answer(reply, job.client, job.id, 1, at_once=True)
        self.landed(job)

    def handlers(self, lost: str | None) -> list[Callable[[Flying], None]]:
        """Whom to call at the end of a flight."""
        return self._arrival if lost is None else self._loss

    def _on_alarm(self, event: Due) -> None:
        name: str = event.subject
        if self._alarms.get(name) is not event:
            return  # taken back, or set anew
        del self._alarms[name]
        self.now = int(self._env.now)
        if self._absences is not None:
            self._absences.look_round()
        self._still.ring(name, self.now)
        self.log.block(self.now)
        self.log.row(Kind.ALARM, -1, -1, self.model.version, reason=name)
        self._answer(self._strategy.alarm(name), -1, -1, 0)

    # ---- what a reply asks for

    def _answer(self, reply: Reply, client: int, job: int, freed: int, *, at_once: bool = False) -> None:
        """Publish first, then check the stop rules, then end, arm and send."""
        params, _, sends, stops, keep, alarms, _, _, _, abandon = reply
        if keep:
            self._caches.update(keep)
        if params is not None:
            self._publish(reply, client, job)
        if abandon:
            self._abandon(client, job)
        version = self.model.version
        if self.ledger.arrived >= self._most_updates or version >= self._most_versions:
            self._stop("max_versions" if version >= self._most_versions else "max_updates")
            return
        for stop in stops:
            freed += self._recalls.end(stop)
        for alarm in alarms:
            self._set_alarm(alarm)
        self._desk.serve(sends, freed, at_once=at_once, published=params is not None)
        self.balance()

    def _abandon(self, client: int, job: int) -> None:
        """Write the row of an abandoned round; raises ``StalledError`` where no round ever ends otherwise."""
        self.log.row(Kind.ABANDON, client, job, self.model.version)
        self._still.abandon(self.now)

    def _publish(self, reply: Reply, client: int, job: int) -> None:
        version, buffers = self.model.version + 1, self.model.buffers
        if buffers:
            buffers = self.buffers.averaged(self.world, buffers, reply.shares)
        self.model = self._view.model = model = new(Model, (version, reply.params, buffers))
        self.ledger.publish()
        self._still.abandoned = self._still.rejected = 0
        self.log.publish(client, job, version, reply.scale)
        if self._evaluates:
            self._evaluator.published(model)

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
        _, _, _, asked, extra, start, tag, _, _ = send
        self._roster.take(client)
        world, now, nth = self.world, self.now, self.dispatches[client]
        self.dispatches[client] = nth + 1
        base, params, buffers = start or self.model
        work = self._usual[client] if asked is None else world.assignment.work(client, asked)
        if self._stragglers:
            work = world.assignment.managed(client, nth, work)
        trip = self._trip(client, nth, work)
        download, wait, compute, upload, _, _, lost = trip
        wait = wait or 0
        ends = now + download + wait + compute + upload
        if lost is not None or type(ends) is not int or download | wait | compute | upload < 0 or ends >= MOST_TICKS:
            ends, lost = whole_trip(client, nth, trip, now)  # lost on the way, or no trip at all
        number = self.ledger.dispatched
        if self._rates_vary:
            work = world.assignment.rated(work, trip, base)
            work = work if self._delays is None else self._delays.paced(work, client, number, now)
        self.ledger.dispatched = number + 1
        job = new(Job, (number, client, nth, base, params, buffers, work, extra, self._memories.get(client), tag))
        if self._beyond is not None:
            ends = self._beyond.set_out(job, trip)
            if self._submit is not None:
                self._submit(job, ends)
            return
        handlers = self._arrival if lost is None else self._loss
        flying = Flying(self._env, handlers, now, job, trip, now, work.steps or 0, ends, lost)
        self.flights[number] = flying
        if lost is None:
            self.log.dispatch(client, number, base, nth, work, trip)
        else:
            self.log.dispatch(client, number, base, nth, work, trip, 0)
            self.log.legs(client, number, flying.legs())
        if self._submit is not None:
            self._submit(job, ends)
        if self.early is not None:
            self.early.watch(flying)
