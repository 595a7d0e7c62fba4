"""Who holds which samples, asked for again and again in one process, as the runs of a study do."""

import copy

import numpy as np
import pytest

from desim_fl import allotment, datasets
from desim_fl.scenario import Scenario

BASE = {
    "data": {"name": "blobs", "examples": 300, "validation_share": 0.1},
    "clients": {"count": 6, "partition": "dirichlet", "alpha": 0.5, "keys": [3, 1, 4, 15, 9, 2]},
    "run": {"max_updates": 5, "seed": 1},
}


def dealt(changes):
    """Deal out for the base with some keys changed."""
    tables = copy.deepcopy(BASE)
    for key, value in changes.items():
        table, name = key.split(".")
        tables[table][name] = value
        if value is None:
            del tables[table][name]
    return allotment.allotted(Scenario.model_validate(tables))


def known(found):
    """Everything that an allotment says, to compare."""
    people = found.people
    validation = None if found.validation is None else found.validation.tolist()
    parts = [part.tolist() for part in people.parts]
    return [tuple(people.keys), people.names, parts, tuple(people.sizes), people.class_counts.tolist(), validation]


CHANGES = (
    {"run.seed": 2},
    {"data.examples": 301},
    {"data.classes": 9},
    {"data.validation_share": 0.2},
    {"data.validation_share": None},
    {"clients.count": 5, "clients.keys": None},
    {"clients.partition": "iid", "clients.alpha": None},
    {"clients.partition": "shards", "clients.alpha": None, "clients.classes_per_client": 2},
    {"clients.partition": "shards", "clients.alpha": None, "clients.classes_per_client": 3},
    {"clients.alpha": 0.7},
    {"clients.min_samples": 45},
    {"clients.keys": [3, 1, 4, 15, 9, 7]},
    {"clients.names": ["a", "b", "c", "d", "e", "f"]},
)


@pytest.mark.parametrize("changes", CHANGES, ids=", ".join)
def test_a_deal_that_is_kept_is_no_other_deal(changes):
    """After any other deal, and back again, samples go to whom they would go in a process that has dealt nothing out."""
    allotment._latest[0] = None
    other = known(dealt(changes))
    allotment._latest[0] = None
    base = known(dealt({}))
    assert base != other
    assert known(dealt(changes)) == other
    assert known(dealt({})) == base


def test_the_same_deal_is_not_drawn_again():
    """Two runs that differ in no key of the deal share it; a large population is not kept."""
    first = dealt({}).people
    assert dealt({"run.max_updates": 7}).people is first
    drawn = allotment.allotted(Scenario.model_validate(BASE), anew=True)
    assert drawn.people is not first
    assert known(drawn) == known(dealt({}))
    dealt({"clients.count": allotment._FEW + 1, "clients.keys": None, "data.examples": 90_000, "clients.alpha": 50.0})
    assert dealt({}).people is first


def test_labels_of_the_embedded_images_cannot_be_changed_by_a_run():
    """They are read once a process, so whoever writes into them is refused."""
    train = datasets.labels("fashion_mnist_6k", seed=0).train
    with pytest.raises(ValueError, match="read-only"):
        train[0] = 3
    assert np.bincount(train).tolist() == [600] * 10
