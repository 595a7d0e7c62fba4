"""The tables of the guide to strategies are true: what each method reads, what it keeps, and the tests that pin it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
from test_promises import TABLE_OF_PROMISES

from desim_fl.core import Update
from desim_fl.scenario.training import Training
from desim_fl.strategies import TABLE, build
from desim_fl.testing import Values, play
from desim_fl.testing.promises import frozen

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "desim_fl" / "docs" / "strategies.md").read_text()
OF_UPDATES = {"delta": "deltas", "staleness": "staleness", "cache": "caches"}
OF_OUTCOMES = {
    "params": "models", "examples": "examples", "steps": "steps", "loss": "losses", "extra": "variates",
}  # fmt: skip
OF_VIEWS = {"sizes": "sizes", "flying": "flights", "cache": "caches"}


class Spied:
    """Something whose attributes are read in the open: each that has a word is noted."""

    def __init__(self, value, words, noted):
        self._value, self._words, self._noted = value, words, noted

    def __getattr__(self, name):
        if name in self._words:
            self._noted.add(self._words[name])
        found = getattr(self._value, name)
        return Spied(found, OF_OUTCOMES, self._noted) if name == "outcome" else found


def reads(strategy, scene) -> set[str]:
    """What a strategy looks at in a play: of updates, their outcomes, and the server."""
    noted: set[str] = set()

    def ask(strategy, event, arguments):
        words = {Update: OF_UPDATES}
        spied = [
            Spied(each, OF_VIEWS, noted) if hasattr(each, "flying")
            else Spied(each, words[Update], noted) if isinstance(each, Update) else each
            for each in arguments
        ]  # fmt: skip
        return getattr(strategy, event)(*spied)

    play(strategy, scene, Values(), ask)
    return noted


def rows() -> dict[str, list[str]]:
    """The table of what each method keeps and reads, by name."""
    part = GUIDE.split("| method | keeps at the server |")[1].split("\n\n")[0]
    lines = [re.split(r" \| ", line.strip("| ")) for line in part.splitlines()[2:]]
    return {cells[0].strip("`"): cells[1:] for cells in lines}


def test_every_method_has_a_row_in_both_tables():
    """Rule and paper in the first; state, memory, what it reads, differences and a test in the second, nothing left empty."""
    found = rows()
    assert set(found) == set(TABLE)
    assert {len(cells) for cells in found.values()} == {5}
    assert all(cell.strip() for cells in found.values() for cell in cells)
    first = GUIDE.split("| `strategy.name` | rule | paper |")[1].split("\n\n")[0]
    told = [name for line in first.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split(" | ")[0])]
    assert sorted(told) == sorted(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_what_a_method_reads_is_what_the_table_says(name):
    """Over all its variants: nothing else of an update or of the server is looked at, and all that is listed is."""
    variants = [(options, scene) for other, options, scene in TABLE_OF_PROMISES if other == name]
    found = set().union(*(reads(build(name, options), scene) for options, scene in variants))
    assert sorted(found) == rows()[name][2].split(", ")


def test_the_tests_that_pin_methods_and_local_rules_exist():
    """Each is a test function of the file that is named; every local rule has a key of the scenario, too."""
    learning = (ROOT / "desim_fl" / "docs" / "learning.md").read_text()
    local = [line for line in learning.split("## Local rules")[1].split("##")[0].splitlines() if line.startswith("| ")][
        1:
    ]
    assert len(local) == 8  # behind the heads of the columns
    for row in (*(cells[-1] for cells in rows().values()), *local):
        assert "::test_" in row, row
    pinned = re.findall(r"`(test_\w+\.py)::(test_\w+)`", GUIDE + learning)
    for file, test in pinned:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, (file, test)
    keys = re.findall(r"`training\.(\w+)`", learning.split("## Local rules")[1].split("##")[0])
    assert set(keys) <= set(Training.model_fields)


def arrays(value, found: dict) -> dict:
    """The distinct models in a nested value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        for each in value:
            arrays(each, found)
    elif isinstance(value, np.ndarray):
        found[id(value)] = value
    elif hasattr(value, "params"):  # an optimiser's moments, an older version
        arrays(value.params, found)
    return found


def models_held(strategy, scene) -> int:
    """The most models that state, caches and the server hold together in a long play."""
    most = [0]

    def ask(strategy, event, arguments):
        view = next(each for each in arguments if hasattr(each, "flying"))
        state, reply = getattr(strategy, event)(*arguments)
        now = view.params if reply.params is None else reply.params
        most[0] = max(most[0], len(arrays((state, view.caches, now), {})))
        return state, reply

    play(strategy, scene._replace(events=120), Values(frozen), ask)
    return most[0]


@pytest.mark.parametrize("name", TABLE)
def test_a_method_holds_no_more_models_than_the_table_says(name):
    """State, caches and model in force, counted in a play; the bound is reached up to clients that came seldom."""
    told = rows()[name][1].partition(", and")[0].rpartition(": ")[2]
    found, bounds = [], []
    for other, options, scene in TABLE_OF_PROMISES:
        if other == name:
            strategy = build(name, options)
            words = {"N": sum(map(bool, scene.sizes)), "M": scene.tiers, "K": options.get("sampled_staleness", 5)}
            bounds.append(eval(re.sub(r"(\d)(?=[MNp])|(\)) (?=p)", r"\1\2*", told), {"p": 1, **words}))  # noqa: S307  (our own table)
            found.append(models_held(strategy, scene))
    assert max(map(int.__sub__, found, bounds)) <= 0
    assert max(found) >= max(bounds) / 2
