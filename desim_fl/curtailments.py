"""Curtailments: jobs played leg by leg that have less to do than planned, since they are asked to report, or stop of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.course import COMPUTE, WAIT
from desim_fl.flight import LEG_END, Due, pace
from desim_fl.journeys import drawn_again

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.core import Trip
    from desim_fl.passage import Passage


class Curtailments:
    """Those of one engine; ``stop`` lets a job stand still, ``go`` lets it move on."""

    __slots__ = ("_engine", "_go", "_stop")

    def __init__(self, engine: Any, stop: Callable[[Passage], None], go: Callable[[Passage], None]) -> None:
        self._engine, self._stop, self._go = engine, stop, go

    def drawn(self, passage: Passage) -> Trip:
        """The trip of an attempt with all the steps that the job was sent out with."""
        job, world = passage.job, self._engine.world
        if passage.steps == job.work.steps:
            return passage.plan
        whole = drawn_again(world, job, job.work.steps or 0, passage.retry) if passage.retry else None
        return whole or world.trips.trip(job.client, job.nth, job.work)

    def shorten(self, passage: Passage, steps: int, trip: Trip) -> Passage:
        """Let a job wait and compute less, and go on with what comes after."""
        before, passage.steps = passage.plan, steps
        passage.plan = before._replace(wait=trip.wait, compute=trip.compute)
        if passage.leg in {WAIT, COMPUTE}:
            self._stop(passage)
            less = (before.wait or 0) - (trip.wait or 0) if passage.leg == WAIT else before.compute - trip.compute
            passage.haul.ticks = max(0, passage.haul.ticks - max(0, less))
            self._go(passage)
        return passage

    def ask(self, passage: Passage) -> None:
        """Have a job that may stop of itself asked at the end of its next epoch; nobody asks what was given up."""
        early = self._engine.early
        if early is None or passage.stray:
            return
        laid_out = pace(self._engine.world, passage, self.drawn(passage))
        following = early.following(passage, laid_out, passage.asked)
        if following is not None:
            ticks = max(0, following[2] - passage.computed(int(self._engine.env.now)))
            passage.asks = Due(self._engine.env, self._on_epoch, (passage, following), LEG_END, passage.job.id, ticks)

    def _on_epoch(self, event: Due) -> None:
        passage, (epoch, steps, compute) = event.subject
        if passage.asks is not event or passage.stray:
            return
        passage.asked = epoch
        if self._engine.early.stops(passage.job, steps):
            self.shorten(passage, steps, passage.plan._replace(compute=compute))
        else:
            self.ask(passage)
