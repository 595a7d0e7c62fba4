"""Generated worlds keep the laws, and every rare situation comes about in them: ``generated.py`` and ``playing.py``."""

from __future__ import annotations

import pytest
from generated import EXECUTORS, RARE, TABLES, Seen
from playing import Campaign, check_executor, generate

WORLDS, DIRECTORIES = 500, 60
BLOCKS = 4


@pytest.fixture(scope="module")
def campaign() -> Campaign:
    """One ledger for all worlds of this module."""
    return Campaign()


@pytest.mark.parametrize("block", range(BLOCKS))
def test_generated_worlds_keep_the_laws(campaign, block):
    """Plan, another executor, kills at random instants and an audit of the rows agree with the run; CASES CK-01, EV-08."""
    share = WORLDS // BLOCKS
    for seed in range(block * share, (block + 1) * share):
        campaign.one(seed)


def test_generated_directories_survive_a_kill_in_any_write(campaign):
    """Killed before, in, or after a write of each kind of file, and resumed, a directory is the undisturbed one; CASES CK-04."""
    for seed in range(DIRECTORIES):
        campaign.directory(seed)


def test_every_line_was_played_and_every_rare_situation_met(campaign):
    """The ledger: a line that is always refused, or a situation that never came about, tests nothing."""
    if sum(campaign.played.values()) < WORLDS // 2 * len(TABLES):
        pytest.fail("the worlds before this test were not played: run the whole module")
    assert campaign.missing() == []
    assert campaign.refused < WORLDS / 5


@pytest.mark.parametrize("name", [name for name in EXECUTORS if name != "ray"])
def test_generated_worlds_under_real_executors(name):
    """Small networks in generated worlds: each executor plays the same events and, but for vmap, gives the same bits."""
    wanted = {"threads": 4, "vmap": 3, "pool": 1}[name]
    for seed in range(30):
        wanted -= check_executor(seed, name)
        if wanted == 0:
            return
    pytest.fail("too many of these worlds were refused")


def test_the_ledger_sees_nothing_in_an_empty_world():
    """Each entry asks for something: in a world without rows, kills and evaluations none of them holds."""
    assert [name for name, holds in RARE.items() if holds(Seen())] == []


def test_the_same_seed_makes_the_same_world():
    """A seed that broke a law breaks it again."""
    for seed in range(5):
        one, other = generate(seed), generate(seed)
        assert (one and (one.lines, one.scenario)) == (other and (other.lines, other.scenario))
