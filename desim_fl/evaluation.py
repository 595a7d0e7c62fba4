"""Evaluation of the global model: beside the timeline, never part of it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from desim_fl.flight import EVALUATION, NUMBER_BITS, Due

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import simpy

    from desim_fl.core import Model, Promise, Score
    from desim_fl.world import World

_MOST_WAITING = 8  # evaluations under way at once; each holds its version
_BY_CLOCK = (1 << NUMBER_BITS) - 1  # within an instant the clock's evaluation follows those of versions


class Evaluation(NamedTuple):
    """One evaluated version: when, how many updates had been received, and its scores."""

    ticks: int
    version: int
    updates: int
    scores: tuple[Score, ...]


class Evaluator:
    """Schedules evaluations as the last things of their instants and hands each result to ``record``."""

    def __init__(self, env: simpy.Environment, world: World, record: Callable[[Evaluation], None]) -> None:
        self._env, self._world, self._record = env, world, record
        self.judge: Callable[[int, Sequence[Score]], None] | None = None  # who must know scores at once
        self._pending: list[Model] = []  # published in this instant, not yet evaluated
        self._last = (-1, -1)
        self._promised: tuple[int, Promise | None] = (-1, None)  # the latest version sent to be scored
        self._waiting: deque[tuple[int, int, int, Promise]] = deque()  # ticks, version, updates, scores; in order

    def start(self, model: Model, current: Callable[[], tuple[Model, int]], lasts: Callable[[], bool]) -> None:
        """Evaluate version 0 where evaluations are asked for, and start the clock; ``lasts`` keeps it running."""
        self._current, self._lasts = current, lasts
        if self._world.evaluations != (None, None):
            self.now(model, 0, 0)
        self._arm()

    def published(self, model: Model) -> None:
        """Take note of a new version."""
        every = self._world.evaluations.every_versions
        if every is not None and model.version % every == 0 and not self._world.timing_only:
            self._pending.append(model)
            Due(self._env, self._on_version, model, EVALUATION, model.version, 0)

    def finish(self, model: Model, tick: int, updates: int) -> None:
        """Evaluate what was published in the last instant, and the final model."""
        for pending in self._pending:
            self.now(pending, tick, updates)
        self.now(model, tick, updates)
        self.settle(wait=True)

    def forget(self) -> None:
        """Score the version in force anew when it is asked for again: it was not trained until now."""
        self.settle(wait=True)
        self._promised = (-1, None)

    def settle(self, *, wait: bool) -> None:
        """Record what has been scored, in order; with ``wait`` all of it."""
        while self._waiting and (wait or len(self._waiting) > _MOST_WAITING or self._waiting[0][3].ready()):
            tick, version, updates, promise = self._waiting.popleft()
            self._record(Evaluation(tick, version, updates, tuple(promise())))

    def now(self, model: Model, tick: int, updates: int) -> None:
        """Evaluate a version, once an instant; an unchanged version keeps its scores."""
        if self._world.timing_only or self._last == (tick, model.version):
            return
        version, promise = self._promised
        if promise is None or version != model.version:
            promise = self._world.executor.evaluate(model)
            self._promised = (model.version, promise)
        self._last = (tick, model.version)
        self._waiting.append((tick, model.version, updates, promise))
        if self.judge is not None:
            self.judge(model.version, promise())
        self.settle(wait=False)

    def _arm(self) -> None:
        every = self._world.evaluations.every_ticks
        if every is not None and not self._world.timing_only:
            Due(self._env, self._on_clock, None, EVALUATION, _BY_CLOCK, every)

    def _on_version(self, event: Due) -> None:
        model: Model = event.subject
        self._pending.remove(model)
        self.now(model, int(self._env.now), self._current()[1])

    def _on_clock(self, _: Due) -> None:
        model, updates = self._current()
        self.now(model, int(self._env.now), updates)
        if self._lasts():
            self._arm()
