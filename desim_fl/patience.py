"""Patience: ending local training, or a whole run, when what training gives no longer gets better.

Both read trained values, so what they read passes ``Readings``: it is kept, and told again when a run goes on from a
checkpoint. A job is asked at the ends of its epochs whether its training stopped there (class 0 of that instant, like any
end of a leg); if so its compute leg ends there, and it reports. A run is judged at each evaluation of a new version, last
in its instant; at the stop nothing in flight is applied any more.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.flight import END, LEG_END, Due, Flying, fate, pace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.core import Job, Outcome, Score
    from desim_fl.evaluation import Evaluator
    from desim_fl.eventlog import EventLog
    from desim_fl.flight import Pace
    from desim_fl.world import Monitor


class Best(NamedTuple):
    """The best value so far, which evaluation of how many gave it (from 1), and its version."""

    value: float = math.nan
    evaluation: int = 0
    version: int = -1
    judged: int = 0

    def after(self, value: float | None, version: int, *, higher: bool) -> Best:
        """Count one more evaluation; NaN, nothing and an equal value are no improvement."""
        judged = self.judged + 1
        if value is None or math.isnan(value):
            return self._replace(judged=judged)
        better = math.isnan(self.value) or (value > self.value if higher else value < self.value)
        return Best(value, judged, version, judged) if better else self._replace(judged=judged)

    @property
    def waited(self) -> int:
        """Evaluations since the best one."""
        return self.judged - self.evaluation


def watched(engine: Any, evaluator: Evaluator) -> tuple[LocalPatience | None, RunPatience | None]:
    """What an engine watches, as its world says; the evaluator then waits for scores that are to be judged."""
    world = engine.world
    jobs = None if world.patience is None else LocalPatience(engine, world.patience)
    run = None if world.monitor is None else RunPatience(engine, world.monitor)
    evaluator.judge = None if run is None else run.judge
    return jobs, run


def remark(log: EventLog, bad: str | None, *, finite: bool, stopped: bool) -> None:
    """Say in the row of an arrival what is unusual about it."""
    if not finite:
        log.say("outcome", "rejected: non-finite")
        log.say("bad_key", bad or "params")
    if stopped:
        log.say("reason", "stopped early")


class RunPatience:
    """Judges the evaluations of one engine."""

    __slots__ = ("_engine", "_judged", "_monitor", "best")

    def __init__(self, engine: Any, monitor: Monitor) -> None:
        self._engine, self._monitor, self.best, self._judged = engine, monitor, Best(), -1

    def judge(self, version: int, scores: Sequence[Score]) -> None:
        """Take one evaluation in; ends the run when nothing got better for long enough."""
        engine = self._engine
        if engine.why is not None or version == self._judged:
            return
        self._judged = version
        found = next((getattr(score, self._monitor.measure) for score in scores if score.split == "validation"), None)
        value = engine.readings.read(None if found is None or math.isnan(found) else float(found))
        self.best = self.best.after(value, version, higher=self._monitor.measure == "accuracy")
        if self.best.waited >= self._monitor.patience:
            now = int(engine.env.now)
            Due(engine.env, engine.on_end, (now, "patience"), END, 1, 0)


class LocalPatience:
    """Asks the jobs of one engine, at the ends of their epochs, whether they stopped; ``stopped`` are those that did."""

    __slots__ = ("_engine", "_patience", "stopped")

    def __init__(self, engine: Any, patience: int) -> None:
        self._engine, self._patience = engine, patience
        self.stopped: set[int] = set()

    def watch(self, flying: Flying) -> None:
        """Look at a job for the first time at the first epoch that it can stop after."""
        self._next(flying, 0)

    def collect(self, job: Job, steps: int) -> Outcome:
        """Collect a job's outcome, which says that it stopped if it did, also where it was trained again for so many steps."""
        return self._engine.world.executor.collect(job, steps)._replace(stopped=job.id in self.stopped)

    def following(self, flying: Flying, laid_out: Pace, asked: int) -> tuple[int, int, int] | None:
        """The epoch after which a job is asked next, its last step, and ticks of computing up to that; ``None`` = not again."""
        epoch = max(self._patience, asked) + 1
        steps = epoch * laid_out.epoch
        if steps >= flying.steps:
            return None
        return epoch, steps, laid_out.end(steps, flying.job.work.steps or 0, rested=False)

    def stops(self, job: Job, steps: int) -> bool:
        """Ask a job whether its training ended after so many steps."""
        engine = self._engine
        stopped = bool(engine.readings.read(float(engine.world.executor.stopped(job, steps))))
        if stopped:
            self.stopped.add(job.id)
        return stopped

    def _next(self, flying: Flying, asked: int) -> None:
        """Set the event of an epoch's end, unless the job is over by then anyway."""
        engine, job = self._engine, flying.job
        following = self.following(flying, pace(engine.world, flying), asked)
        if following is None:
            return
        tick, now = flying.started + following[2], int(engine.env.now)
        if flying.lost is None or tick <= flying.ends:
            Due(engine.env, self._on_epoch, (flying, job, following), LEG_END, job.id, max(0, tick - now))

    def _on_epoch(self, event: Due) -> None:
        flying, job, (epoch, steps, compute) = event.subject
        if self._engine.flights.get(job.id) is not flying:  # it landed, or ends otherwise by now
            return
        job = flying.job  # after a resume it has its parameters again
        if self.stops(job, steps):
            self._end(flying, job, steps, compute)
        else:
            self._next(flying, epoch)

    def _end(self, flying: Flying, job: Job, steps: int, compute: int) -> None:
        """End a job's compute leg here; what comes after it follows."""
        engine, now = self._engine, int(self._engine.env.now)
        trip = flying.trip._replace(compute=compute)
        ends, lost = fate(trip, flying.left)
        behind = {kind for kind, tick in flying.legs() if tick <= now}
        engine.log.cut(job.id, now)
        flying.forget()
        shorter = Flying(engine.env, engine.handlers(lost), now, job, trip, flying.left, steps, ends, lost)
        engine.flights[job.id] = shorter
        engine.log.legs(job.client, job.id, tuple(end for end in shorter.legs() if end[0] not in behind))
