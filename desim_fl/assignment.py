"""What a client is asked to compute: epochs, steps and the learning rate of a job, known at dispatch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from desim_fl import draws
from desim_fl.core import TICKS_PER_SECOND, Trip, Work
from desim_fl.draws import Purpose, WorkSlot
from desim_fl.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class Stragglers:
    """Which jobs manage only a part of their work: a ``share`` of all, drawn by client key and the client's job count.

    FedProx's systems heterogeneity (Li et al., MLSys 2020): such a job does e of E epochs, e = 1 to E - 1, all equally
    likely; of S steps where jobs are counted in steps. Nobody can do less than all of 1.
    """

    seed: int
    keys: Sequence[int]
    share: float
    in_steps: bool = False

    def manage(self, client: int, nth: int, work: Work, epoch: int) -> Work:
        """What becomes of a job's work, an epoch of this client being ``epoch`` steps."""
        whole = (work.steps if self.in_steps else work.epochs) or 0
        drawn = draws.block(self.seed, Purpose.WORK, self.keys[client], nth, 0)
        if whole <= 1 or draws.uniform(drawn[WorkSlot.STRAGGLES]) >= self.share:
            return work
        part = 1 + (drawn[WorkSlot.AMOUNT] * (whole - 1) >> 32)
        if self.in_steps:
            return work._replace(steps=part, epochs=-(-part // epoch) if epoch else 0, partial=True)
        return work._replace(steps=part * epoch, epochs=part, partial=True)


@dataclass(frozen=True, slots=True)
class Assignment:
    """The scenario's local training, by client number.

    ``steps_per_epoch`` depends on the client's data and batch size only, never on the model. ``steps`` replaces
    ``epochs`` where the scenario asks for a number of steps. ``rate`` turns the drawn wait in seconds into the
    first learning rate (``None``: the rate is ``lr``). ``schedule`` says what every rate is multiplied with at the version
    that a job starts from. ``stragglers`` make some jobs do less. ``pace`` says what a rate is multiplied with, given the mean
    delay of the client's earlier jobs in seconds (:mod:`desim_fl.delays`).
    """

    steps_per_epoch: Sequence[int]
    epochs: int = 1
    steps: int | None = None
    lr: float = 0.05
    decay: str = "constant"
    rate: Callable[[float], float] | None = None
    schedule: Callable[[int], float] | None = None
    stragglers: Stragglers | None = None
    pace: Callable[[float], float] | None = None
    usual: Sequence[Work] = field(
        init=False, repr=False, compare=False
    )  # by client: what is asked unless said otherwise

    def __post_init__(self) -> None:
        works = {epoch: self._filled(epoch, Work()) for epoch in dict.fromkeys(self.steps_per_epoch)}
        object.__setattr__(self, "usual", [works[epoch] for epoch in self.steps_per_epoch])

    def work(self, client: int, asked: Work | None) -> Work:
        """Fill in what the strategy left open; raises ``RefusedError`` for sub-models."""
        return self.usual[client] if asked is None else self._filled(self.steps_per_epoch[client], asked)

    def _filled(self, epoch: int, asked: Work) -> Work:
        if asked.probe:
            return Work(epochs=0, steps=0, lr=0.0, decay=self.decay, probe=True)
        if asked.part is not None:
            raise RefusedError("sub-models (Work.part) cannot be trained yet; leave part = None")
        steps = asked.steps if asked.epochs is None and asked.steps is not None else None
        if steps is None and asked.epochs is None:
            steps = self.steps
        epochs = asked.epochs or (self.epochs if steps is None else -(-steps // epoch) if epoch else 0)
        lr = self.lr if asked.lr is None else asked.lr
        return Work(epochs=epochs, steps=epochs * epoch if steps is None else steps, lr=lr, decay=self.decay)

    @property
    def varies(self) -> bool:
        """Whether rates differ from job to job."""
        return self.rate is not None or self.schedule is not None or self.pace is not None

    def managed(self, client: int, nth: int, work: Work) -> Work:
        """What the client's ``nth`` job does of its work."""
        if self.stragglers is None:
            return work
        return self.stragglers.manage(client, nth, work, self.steps_per_epoch[client])

    def rated(self, work: Work, trip: Trip, version: int = 0) -> Work:
        """The same work with the rate that the job's drawn wait, and the version it starts from, ask for."""
        if work.probe:
            return work
        lr = work.lr if self.rate is None else self.rate((trip.wait or 0) / TICKS_PER_SECOND)
        factor = 1.0 if self.schedule is None else self.schedule(version)
        return work._replace(lr=None if lr is None else lr * factor)
