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
_BY_CLOCK = (1 << NUMBER_BITS) - 2  # within an instant the clock's evaluation follows those of versions
_BY_TARGET = _BY_CLOCK + 1  # and what they say is acted on last


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
        self._target = None if world.timing_only else world.stops.target_accuracy
        self._over = False
        self._occupy: Callable[[], None] | None = None

    def start(
        self,
        model: Model,
        current: Callable[[], tuple[Model, int]],
        lasts: Callable[[], bool],
        occupy: Callable[[], None] | None = None,
    ) -> None:
        """Evaluate version 0 where evaluations are asked for, and start the clock; ``lasts`` keeps it running.

        ``occupy`` is called at each later evaluation of a run, with training or without.
        """
        self._current, self._lasts, self._occupy = current, lasts, occupy
        if self._world.evaluations != (None, None):
            self.now(model, 0, 0)
        self._arm()

    def aim(self, read: Callable[[float | None], float | None], reached: Callable[[Due], None]) -> None:
        """Pass validation accuracies through ``read``; an event at which the target is reached goes to ``reached``."""
        self._read, self._reached = read, reached

    def published(self, model: Model) -> None:
        """Take note of a new version."""
        every = self._world.evaluations.every_versions
        if every is None or model.version % every != 0:
            return
        if self._occupy is not None:
            self._occupy()
        if not self._world.timing_only:
            self._pending.append(model)
            Due(self._env, self._on_version, model, EVALUATION, model.version, 0)

    def finish(self, model: Model, tick: int, updates: int) -> None:
        """Evaluate what was published in the last instant, and the final model."""
        self._over = True
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
        if self._target is not None and not self._over:
            self._look(promise, self._target, tick)
        self.settle(wait=False)

    def _look(self, promise: Promise, target: float, tick: int) -> None:
        """Wait for the scores; at the target, stop when this evaluation ends."""
        found = (score.accuracy for score in promise() if score.split == "validation")
        accuracy = self._read(next(found, None))
        if accuracy is not None and accuracy >= target:
            law = self._world.server
            delay = 0 if law is None else law.evaluation_ticks
            Due(self._env, self._reached, (tick + delay, "target_accuracy"), EVALUATION, _BY_TARGET, delay)

    def _arm(self) -> None:
        every = self._world.evaluations.every_ticks
        if every is not None and (not self._world.timing_only or self._occupy is not None):
            Due(self._env, self._on_clock, None, EVALUATION, _BY_CLOCK, every)

    def _on_version(self, event: Due) -> None:
        model: Model = event.subject
        self._pending.remove(model)
        self.now(model, int(self._env.now), self._current()[1])

    def _on_clock(self, _: Due) -> None:
        model, updates = self._current()
        if self._occupy is not None:
            self._occupy()
        self.now(model, int(self._env.now), updates)
        if self._lasts():
            self._arm()
