"""What a client is asked to compute: epochs, steps and the learning rate of a job, known at dispatch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from desim_fl.core import TICKS_PER_SECOND, Trip, Work
from desim_fl.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class Assignment:
    """The scenario's local training, by client number.

    ``steps_per_epoch`` depends on the client's data and batch size only, never on the model. ``steps`` replaces
    ``epochs`` where the scenario asks for a number of steps. ``rate`` turns the drawn wait in seconds into the
    first learning rate (``None``: the rate is ``lr``).
    """

    steps_per_epoch: Sequence[int]
    epochs: int = 1
    steps: int | None = None
    lr: float = 0.05
    decay: str = "constant"
    rate: Callable[[float], float] | None = None
    _usual: dict[int, Work] = field(init=False, repr=False, compare=False, default_factory=dict)  # by steps an epoch

    def work(self, client: int, asked: Work | None) -> Work:
        """Fill in what the strategy left open; raises ``RefusedError`` for sub-models."""
        if asked is not None:
            return self._filled(client, asked)
        epoch = self.steps_per_epoch[client]
        usual = self._usual.get(epoch)
        if usual is None:
            usual = self._usual[epoch] = self._filled(client, Work())
        return usual

    def _filled(self, client: int, asked: Work) -> Work:
        if asked.part is not None:
            raise RefusedError("sub-models (Work.part) cannot be trained yet; leave part = None")
        epoch = self.steps_per_epoch[client]
        steps = asked.steps if asked.epochs is None and asked.steps is not None else None
        if steps is None and asked.epochs is None:
            steps = self.steps
        epochs = asked.epochs or (self.epochs if steps is None else -(-steps // epoch) if epoch else 0)
        lr = self.lr if asked.lr is None else asked.lr
        return Work(epochs=epochs, steps=epochs * epoch if steps is None else steps, lr=lr, decay=self.decay)

    def rated(self, work: Work, trip: Trip) -> Work:
        """The same work with the learning rate that the job's drawn wait asks for."""
        if self.rate is None:
            return work
        return work._replace(lr=self.rate((trip.wait or 0) / TICKS_PER_SECOND))
