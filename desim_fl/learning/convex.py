"""Convex tasks with gradients in closed form, in double precision without torch: least squares and logistic regression.

For checks against theory, which must take milliseconds. Nothing here uses a linear algebra library, whose sums depend on
how many threads it has: results have the same bits in every executor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from desim_fl.core import Job, Model, Outcome, Score
from desim_fl.draws import Purpose, stream
from desim_fl.errors import RefusedError, ScenarioError
from desim_fl.learning import batches

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from desim_fl.learning.descent import Descent

    Floats = NDArray[np.float64]

MATRIX, TRUTH, NOISE, OWN = range(64, 68)  # the nth of streams of Purpose.DATA, client 0. Never renumbered.
_AT_ONCE = 4096  # samples scored together


class Objective(Protocol):
    """A mean of losses over samples, as a function of a flat vector of ``size`` numbers."""

    @property
    def size(self) -> int:
        """Length of the vector."""
        ...

    def at(self, x: Floats, rows: NDArray[np.int64]) -> tuple[float, Floats]:
        """Mean loss of these training samples at ``x``, and its gradient."""
        ...

    def scores(self, x: Floats) -> tuple[Score, ...]:
        """How good ``x`` is."""
        ...

    def score_part(self, x: Floats, rows: NDArray[np.int64]) -> Score:
        """How good ``x`` is on these training samples."""
        ...

    def arrays(self, x: Floats) -> dict[str, NDArray]:
        """Named parts of ``x``."""
        ...


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """``F(x) = 1 / (2 n) * ||A x - b||^2``; ``matrix`` is A, shape (n, d), ``target`` is b, shape (n,)."""

    matrix: Floats
    target: Floats

    @property
    def size(self) -> int:
        """One number a column."""
        return self.matrix.shape[1]

    def at(self, x: Floats, rows: NDArray[np.int64]) -> tuple[float, Floats]:
        """Loss and gradient ``A^T (A x - b) / n`` of some rows."""
        part = self.matrix[rows]
        away = np.einsum("nd,d->n", part, x) - self.target[rows]
        return 0.5 * float(np.mean(away * away)), np.einsum("nd,n->d", part, away) / len(rows)

    def scores(self, x: Floats) -> tuple[Score, ...]:
        """F itself, over all rows; there is nothing else to test on."""
        away = np.einsum("nd,d->n", self.matrix, x) - self.target
        return (Score("test", 0.5 * float(np.mean(away * away)), None, len(away)),)

    def score_part(self, x: Floats, rows: NDArray[np.int64]) -> Score:
        """Mean loss of these rows."""
        return Score("held out", self.at(x, rows)[0], None, len(rows))

    def arrays(self, x: Floats) -> dict[str, NDArray]:
        """The vector as "x"."""
        return {"x": x.copy()}


@dataclass(frozen=True, slots=True)
class Logistic:
    """Multinomial logistic regression: mean cross entropy of ``softmax(W a + w0)``, plus ``l2 / 2 * ||x||^2``.

    x is W, shape (features, classes), row by row, then w0. ``splits`` are the ``(inputs, labels)`` to score; scores leave
    the penalty out.
    """

    inputs: Floats
    labels: NDArray[np.int64]
    classes: int
    splits: Mapping[str, tuple[Floats, NDArray[np.int64]]]
    l2: float = 0.0

    @property
    def size(self) -> int:
        """Weights and biases."""
        return (self.inputs.shape[1] + 1) * self.classes

    def _chances(self, x: Floats, inputs: Floats) -> tuple[Floats, Floats]:
        """Logarithms of the classes' chances, and the chances."""
        weights, bias = x[: -self.classes].reshape(-1, self.classes), x[-self.classes :]
        logits = np.einsum("nd,dc->nc", inputs, weights) + bias
        logits -= logits.max(axis=1, keepdims=True)
        odds = np.exp(logits)
        total = odds.sum(axis=1, keepdims=True)
        return logits - np.log(total), odds / total

    def at(self, x: Floats, rows: NDArray[np.int64]) -> tuple[float, Floats]:
        """Loss and gradient of some samples: ``a (p - y)^T`` in the mean, plus ``l2 x``."""
        inputs, labels, places = self.inputs[rows], self.labels[rows], np.arange(len(rows))
        logs, chances = self._chances(x, inputs)
        loss = -float(np.mean(logs[places, labels])) + 0.5 * self.l2 * float(np.sum(x * x))
        chances[places, labels] -= 1.0
        weights = np.einsum("nd,nc->dc", inputs, chances) / len(rows)
        return loss, np.concatenate((weights.reshape(-1), chances.mean(axis=0))) + self.l2 * x

    def scores(self, x: Floats) -> tuple[Score, ...]:
        """Cross entropy and accuracy on each split."""
        return tuple(self._score(name, x, *samples) for name, samples in self.splits.items())

    def score_part(self, x: Floats, rows: NDArray[np.int64]) -> Score:
        """Cross entropy and accuracy on these training samples."""
        return self._score("held out", x, self.inputs[rows], self.labels[rows])

    def _score(self, name: str, x: Floats, inputs: Floats, labels: NDArray[np.int64]) -> Score:
        loss, right = 0.0, 0
        for start in range(0, len(labels), _AT_ONCE):
            mine = labels[start : start + _AT_ONCE]
            logs, _ = self._chances(x, inputs[start : start + _AT_ONCE])
            loss -= float(np.sum(logs[np.arange(len(mine)), mine]))
            right += int(np.sum(logs.argmax(axis=1) == mine))
        return Score(name, loss / len(labels), right / len(labels), len(labels))

    def arrays(self, x: Floats) -> dict[str, NDArray]:
        """Weights, shape (classes, features), and biases, as torch's ``Linear`` has them."""
        weights = x[: -self.classes].reshape(-1, self.classes)
        return {"weight": weights.T.copy(), "bias": x[-self.classes :].copy()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvexTask:
    """Local SGD on one objective; see :class:`desim_fl.learning.task.Task`. Parameters are a float64 array.

    ``parts`` are each client's training samples, ``keys`` name its streams. Batches are dealt as for networks. With
    ``noise`` above 0 each gradient has that standard deviation of Gaussian noise added to every entry.
    """

    objective: Objective
    seed: int
    keys: Sequence[int]
    parts: Sequence[NDArray[np.int64]]
    descent: Descent
    start: float = 0.0
    noise: float = 0.0

    def initial(self) -> Model:
        """Return version 0: all entries the start value."""
        return Model(0, sealed(np.full(self.objective.size, float(self.start))))

    def train(self, job: Job, steps: int) -> Outcome:
        """Do ``steps`` steps on the client's batches; depends on seed, client key and nth only."""
        if job.work.part is not None:
            raise RefusedError("work.part: training a part of the model is not available")
        part, key = self.parts[job.client], self.keys[job.client]
        if job.work.probe:
            with np.errstate(over="ignore", invalid="ignore"):
                loss = self.objective.at(job.params, part)[0] if len(part) else None
            return Outcome(job.params, job.buffers, len(part), loss=loss)
        order = batches.sequence(part, self.descent.batch_size, stream(self.seed, Purpose.BATCH_ORDER, key, job.nth))
        shaken = stream(self.seed, Purpose.TRAINING, key, job.nth) if self.noise else None

        def at(x: Floats, step: int) -> tuple[float, Floats]:
            del step
            loss, gradient = self.objective.at(x, next(order)[1])
            return loss, gradient if shaken is None else gradient + self.noise * shaken.standard_normal(len(x))

        with np.errstate(over="ignore", invalid="ignore"):  # what diverges is named by its outcome
            outcome = self.descent.outcome(job, steps, len(part), at)
        sealed(outcome.params)
        return outcome

    def evaluate(self, model: Model) -> tuple[Score, ...]:
        """Score a version."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.objective.scores(model.params)

    def score_parts(self, model: Model, parts: Sequence[NDArray[np.int64]]) -> list[Score | None]:
        """Score a version on each of these parts of the training samples; ``None`` for a part that is empty."""
        with np.errstate(over="ignore", invalid="ignore"):
            return [self.objective.score_part(model.params, part) if len(part) else None for part in parts]

    def replica(self, halted: Callable[[], bool]) -> ConvexTask:
        """Return the task itself: it never changes, so threads can share it."""
        del halted
        return self

    def average(self, base: Any, members: Sequence[tuple[float, Any]]) -> Any:
        """Return ``base``: there are no buffers."""
        del members
        return base

    def tensors(self, model: Model) -> dict[str, NDArray]:
        """Return named copies of the parameters."""
        return self.objective.arrays(model.params)


def sealed(array: Floats) -> Floats:
    """The array, which nobody can change by accident any more."""
    array.flags.writeable = False
    return array


def least_squares(
    *, seed: int, examples: int, features: int, noise: float, own: float = 0.0, parts: Sequence[NDArray[np.int64]] = ()
) -> LeastSquares:
    """Make ``b = A x* + noise`` as in Mishchenko, Bach, Even, Woodworth, NeurIPS 2022: A uniform in (0, 1) over sqrt(d).

    x* is standard normal. With ``own`` above 0 the rows of client i (``parts[i]``) have a truth of their own, x* plus
    ``own`` times standard normal noise.
    """
    if min(examples, features) < 1:
        raise ScenarioError("[data] least_squares needs at least one example and one feature")
    matrix = stream(seed, Purpose.DATA, 0, MATRIX).random((examples, features)) / np.sqrt(features)
    truth = stream(seed, Purpose.DATA, 0, TRUTH).standard_normal(features)
    target = np.einsum("nd,d->n", matrix, truth)
    if own:
        for client, part in enumerate(parts):
            away = own * stream(seed, Purpose.DATA, client, OWN).standard_normal(features)
            target[part] += np.einsum("nd,d->n", matrix[part], away)
    target += noise * stream(seed, Purpose.DATA, 0, NOISE).standard_normal(examples)
    return LeastSquares(sealed(matrix), sealed(target))
