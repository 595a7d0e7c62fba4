"""Who holds which training samples: drawn from the seed, read from a map, or read back from a run's own table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl import closed_form, held_out, population
from desim_fl import data as holdings
from desim_fl.draws import Purpose, stream
from desim_fl.errors import ScenarioError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from desim_fl.datasets import Labels
    from desim_fl.population import Population
    from desim_fl.scenario import Scenario


class Stored(NamedTuple):
    """A partition as a run directory holds it: each client's samples, those of the validation part, and those held out."""

    parts: tuple[NDArray[np.int64], ...]
    validation: NDArray[np.int64] | None
    held: tuple[NDArray[np.int64], ...] = ()


class Allotment(NamedTuple):
    """The clients with their samples, the validation part, and what is known of the data (``None`` = there is none).

    ``held`` is what each client keeps back from training; empty where nobody does.
    """

    people: Population
    validation: NDArray[np.int64] | None
    known: Labels | None
    held: tuple[NDArray[np.int64], ...] = ()


def allotted(scenario: Scenario, stored: Stored | None = None, *, anew: bool = False) -> Allotment:
    """Deal samples out as a scenario says; with ``stored`` as that says, without a draw; ``anew`` draws even what was drawn just before.

    Raises ``ScenarioError`` where samples do not suffice, or the stored partition is not of these data.
    """
    data: Any = scenario.data
    clients = scenario.clients
    names = tuple(clients.names or ())
    if data.name == "quadratic":
        sizes = closed_form.each(data.examples_per_client, clients.count)
        return Allotment(population.sized(sizes, keys=clients.keys, names=names), None, None)
    if data.name == "least_squares":
        return Allotment(_rows(scenario, data.examples, stored, shared=data.shared), None, None)
    known = holdings.labels(data, scenario.run.seed)
    if stored is not None:
        people = _as_stored(scenario, stored, known.train, known.classes)
        return Allotment(people, stored.validation, known, stored.held)
    pool, validation = None, None
    if data.validation_share:
        rng = stream(scenario.run.seed, Purpose.VALIDATION, 0, 0)
        pool, validation = population.validation_split(len(known.train), data.validation_share, rng)
    people = _drawn(scenario, known, pool, anew=anew)
    if data.client_test_share is None:
        return Allotment(people, validation, known)
    people, held = held_out.kept_back(
        people, data.client_test_share, seed=scenario.run.seed, labels=known.train, classes=known.classes
    )
    return Allotment(people, validation, known, held)


def _drawn(scenario: Scenario, known: Labels, pool: NDArray[np.int64] | None, *, anew: bool) -> Population:
    clients = scenario.clients
    table = None
    if clients.partition == "map":
        from desim_fl.datasets import mapping  # noqa: PLC0415  (imports polars)

        table = mapping.read(Path(clients.map or ""))
    asked: dict[str, Any] = {
        "seed": scenario.run.seed,
        "count": clients.count,
        "classes": known.classes,
        "partition": clients.partition,
        "alpha": clients.alpha,
        "per_client": clients.classes_per_client,
        "min_samples": clients.min_samples,
        "keys": clients.keys,
        "names": tuple(clients.names or ()),
    }
    if anew or table is not None or clients.count > _FEW:
        return population.divide(known.train, table=table, pool=pool, **asked)
    latest = _latest[0]
    same = latest is not None and latest.asked == asked and np.array_equal(latest.labels, known.train)
    if latest is None or not same or not _alike(latest.pool, pool):
        latest = _latest[0] = _Dealt(asked, known.train, pool, population.divide(known.train, pool=pool, **asked))
    return latest.people


class _Dealt(NamedTuple):
    """How samples were dealt out, and to whom."""

    asked: dict[str, Any]
    labels: NDArray[np.int64]
    pool: NDArray[np.int64] | None
    people: Population


# The runs of a study mostly deal the same samples out to the same clients: the latest deal is kept, not drawn again.
_FEW = 10_000
_latest: list[_Dealt | None] = [None]


def _alike(one: NDArray[np.int64] | None, other: NDArray[np.int64] | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)


def _as_stored(scenario: Scenario, stored: Stored, labels: NDArray[np.int64], classes: int) -> Population:
    """Take a stored partition as it is."""
    clients = scenario.clients
    apart = [*([] if stored.validation is None else [stored.validation]), *stored.held]
    indices = np.concatenate([*stored.parts, *apart])
    if len(stored.parts) != clients.count or (indices.size and not 0 <= indices.min() <= indices.max() < len(labels)):
        raise ScenarioError("the stored partition is not one of these clients and data")
    return population.Population(
        range(clients.count) if clients.keys is None else clients.keys,
        tuple(clients.names or ()),
        stored.parts,
        tuple(len(part) for part in stored.parts),
        population.class_counts(labels, stored.parts, classes),
    )


def _rows(scenario: Scenario, examples: int, stored: Stored | None, *, shared: bool) -> Population:
    """Deal out rows without labels, or let every client have all of them."""
    clients = scenario.clients
    names = tuple(clients.names or ())
    if shared:
        return population.sized((examples,) * clients.count, keys=clients.keys, names=names)
    labels = np.zeros(examples, np.int64)
    if stored is not None:
        return replace(_as_stored(scenario, stored, labels, 1), class_counts=None)
    return replace(
        population.divide(
            labels, seed=scenario.run.seed, count=clients.count, classes=1, min_samples=clients.min_samples,
            keys=clients.keys, names=names,
        ),
        class_counts=None,
    )  # fmt: skip
