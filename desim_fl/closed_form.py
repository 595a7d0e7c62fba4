"""From a scenario to the tasks that need no torch: a quadratic, least squares, logistic regression."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from desim_fl import data as holdings
from desim_fl import datasets
from desim_fl.learning.convex import ConvexTask, Logistic, least_squares, sealed
from desim_fl.learning.descent import Descent
from desim_fl.learning.quadratic import QuadraticTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from desim_fl.learning.task import Task
    from desim_fl.population import Population
    from desim_fl.scenario import Scenario

MODELS = ("scalar", "linear", "logistic")
_WHITE = 255.0


def each(value: Any, count: int) -> tuple[Any, ...]:
    """Repeat one value for every client, or take the list as it is."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * count


def numbers(scenario: Scenario, shape: Sequence[int], classes: int) -> int:
    """How many parameters a model in :data:`MODELS` has, on samples of this shape."""
    if scenario.model.name == "scalar":
        return 1
    return scenario.data.features if scenario.model.name == "linear" else (math.prod(shape) + 1) * classes  # pyright: ignore[reportAttributeAccessIssue]


def task(scenario: Scenario, people: Population, validation: Any, proximal_mu: float) -> tuple[Task, str | None]:
    """Make the task of a model in :data:`MODELS`; the data's sha256 beside it (``None`` where there is no data set)."""
    if scenario.model.name == "scalar":
        return _quadratic(scenario, people, proximal_mu), None
    if scenario.model.name == "linear":
        return _least_squares(scenario, people, proximal_mu)
    return _logistic(scenario, people, validation, proximal_mu)


def _quadratic(scenario: Scenario, people: Population, proximal_mu: float) -> Task:
    data: Any = scenario.data
    training, count = scenario.training, scenario.clients.count
    return QuadraticTask(
        curvature=each(data.curvature, count),
        optimum=each(data.optimum, count),
        examples=people.sizes,
        start=getattr(scenario.model, "start", 0.0),
        batch_size=training.batch_size,
        optimizer=training.optimizer,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        proximal_mu=proximal_mu,
        gradient_decay=training.gradient_decay,
    )


def _descent(scenario: Scenario, proximal_mu: float) -> Descent:
    training = scenario.training
    return Descent(training.batch_size, training.momentum, training.weight_decay, proximal_mu, training.gradient_decay)


def _least_squares(scenario: Scenario, people: Population, proximal_mu: float) -> tuple[Task, str]:
    data: Any = scenario.data
    seed, count = scenario.run.seed, scenario.clients.count
    parts = [np.arange(data.examples)] * count if data.shared else people.parts
    made = least_squares(
        seed=seed,
        examples=data.examples,
        features=data.features,
        noise=data.noise_sd,
        own=data.client_shift_sd,
        parts=parts,
    )
    convex = ConvexTask(
        objective=made,
        seed=seed,
        keys=people.keys,
        parts=parts,
        descent=_descent(scenario, proximal_mu),
        start=getattr(scenario.model, "start", 0.0),
        noise=data.gradient_noise_sd,
    )
    return convex, datasets.content_hash(made.matrix, made.target)


def _logistic(scenario: Scenario, people: Population, validation: Any, proximal_mu: float) -> tuple[Task, str]:
    whole = holdings.whole(scenario.data, scenario.run.seed)
    inputs = _features(whole.train_images, whole)
    splits = {"test": (_features(whole.test_images, whole), whole.test_labels)}
    if validation is not None and len(validation):
        splits["validation"] = (inputs[validation], whole.train_labels[validation])
    made = Logistic(inputs, whole.train_labels, whole.classes, splits, getattr(scenario.model, "l2", 0.0))
    convex = ConvexTask(
        objective=made,
        seed=scenario.run.seed,
        keys=people.keys,
        parts=people.parts,
        descent=_descent(scenario, proximal_mu),
    )
    return convex, whole.sha256


def _features(images: NDArray, whole: datasets.Dataset) -> NDArray[np.float64]:
    """Flat rows in double precision: images normalised as for networks, features as they are."""
    if images.dtype != np.uint8:
        return sealed(images.astype(np.float64))
    pixels = images.reshape(*images.shape[:3], -1) / _WHITE
    return sealed(((pixels - np.array(whole.mean)) / np.array(whole.std)).reshape(len(images), -1))
