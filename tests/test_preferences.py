"""Selectors that prefer some clients: exact chances by weight, speed, reported losses, utilities."""

from __future__ import annotations

import sys
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest

import scenarios
from desim_fl import preferences
from desim_fl.build import build
from desim_fl.checkpointing import identity
from desim_fl.core import Send
from desim_fl.draws import Purpose, uniform, word
from desim_fl.errors import RefusedError, ScenarioError
from desim_fl.population import Roster
from desim_fl.preferences import FastestFirst, Lots, Oort, PowerOfChoice, Traits, Weighted
from desim_fl.run import execute
from desim_fl.scenario import load
from desim_fl.testing import SELECTOR_PROMISES, check_selector

COUNT = 20
SIZES = tuple(1 + client % 5 for client in range(COUNT))
TRAITS = Traits(SIZES, np.arange(COUNT, 0, -1) / 1.0)


class Crowd(NamedTuple):
    """As much of a View as selectors look at."""

    clients: int
    groups: dict[str, tuple[int, ...]] = {}  # noqa: RUF012  (never changed)


def roster_without(busy, count=COUNT):
    """A roster in which some are busy."""
    roster = Roster(count)
    for client in busy:
        roster.take(client)
    return roster


@pytest.mark.parametrize("name", preferences.TABLE)
def test_every_selector_conforms(name):
    """It keeps the promises of selectors, chooses nobody where nobody is free, and a whole group if so many are asked for; CASES SA-01."""
    selector = preferences.build(name, seed=1, keys=range(COUNT), traits=TRAITS, order=[3, 1, 4, 9, 2, 6], **({"candidates": 4} if name == "power_of_choice" else {}))  # fmt: skip
    assert check_selector(selector, COUNT) == tuple(SELECTOR_PROMISES)
    state, view = selector.start(), Crowd(COUNT, {"odd": tuple(range(1, COUNT, 2))})
    assert selector.choose(state, view, roster_without(range(COUNT)), Send(count=2), 99)[1] == ()
    if name != "order":
        members = selector.choose(state, view, Roster(COUNT), Send(count=12, group="odd"), 99)[1]
        assert sorted(members) == list(range(1, COUNT, 2))


# ---- a selector of one's own

OWN = """
class Last:
    reads_outcomes = False
    def __init__(self, least=0): self.least = least
    def start(self): return None
    def choose(self, state, view, roster, send, number):
        able = [one for one in range(self.least, view.clients) if roster.is_selectable(one)]
        return state, tuple(able[::-1][:send.count])

class Deaf(Last):
    reads_outcomes = True

class Half:
    reads_outcomes = False
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A working folder with the user's selectors."""
    (tmp_path / "mychoice.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mychoice", raising=False)
    return tmp_path


def test_one_s_own_selector_chooses_and_is_part_of_the_run_s_identity(own):
    """With at least client 2, only 2 and 3 are ever sent out; plan agrees; the selector's source is in the identity of a run."""
    keys = ['run.selector="mychoice:Last"', "run.selector_args.least=2", "run.concurrency=2"]
    scenario = load(scenarios.write(own), keys)
    run, plan = scenarios.in_memory(scenario), scenarios.in_memory(scenario, timing_only=True)
    assert plan.sha256 == run.sha256
    assert run.engine.dispatches[:2] == [0, 0]
    assert min(run.engine.dispatches[2:]) > 0
    assert "selection" not in scenario.resolved()["run"]
    assert "module mychoice" in identity(build(scenario), {})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (['run.selector="mychoice:Deaf"'], "reads outcomes, and lacks hear"),
        (['run.selector="mychoice:Half"'], "makes a Half that lacks start, choose"),
        (['run.selector="mychoice:Nobody"'], "mychoice has no 'Nobody'; it has"),
        (['run.selector="nowhere:Last"'], "cannot import 'nowhere'"),
        (['run.selector="mychoice:Last"', "run.selector_args.most=2"], "its options are least"),
        (['run.selector="Last"'], "selector"),
        (['run.selector="mychoice:Last"', 'run.selection="uniform"'], "selector and selection must not both be given"),
        (["run.selector_args.least=2"], "selector_args must not be given without selector"),
        (
            ['run.selector="mychoice:Last"', 'strategy={name="malenia"}'],
            "selector must not be given with strategy malenia; all clients compute at once",
        ),
    ],
)
def test_a_selector_that_cannot_be_used_is_named(own, keys, said):
    """Each way to go wrong is a ScenarioError with the key and the way out."""
    with pytest.raises(ScenarioError, match=said):
        build(load(scenarios.write(own), keys))


@pytest.mark.parametrize("busy", [(), (4, 9), tuple(range(2, COUNT)), tuple(range(4, COUNT, 5))])
def test_weighted_chances_are_exact(busy):
    """Free, the heaviest busy, all but two busy: chi-square of 20,000 choices against n_i / sum n over the free; CASES SA-03."""
    selector, roster, view = Weighted(Lots(5, np.array(SIZES))), roster_without(busy), Crowd(COUNT)
    seen = Counter(selector.choose(None, view, roster, Send(), number)[1][0] for number in range(20_000))
    free = [client for client in range(COUNT) if client not in busy]
    total = sum(SIZES[client] for client in free)
    expected = {client: 20_000 * SIZES[client] / total for client in free}
    assert seen.keys() == expected.keys()
    chi_square = sum((seen[client] - due) ** 2 / due for client, due in expected.items())
    freedom = len(free) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_weighted_sends_nobody_without_data_out():
    """Weight 0 is never chosen, not even where nobody else is free; one client of weight 1 among a million is found."""
    lots = Lots(0, np.array([0, 5, 0]))
    view = Crowd(3)
    assert {Weighted(lots).choose(None, view, Roster(3), Send(count=3), number)[1] for number in range(50)} == {(1,)}
    assert Weighted(lots).choose(None, view, roster_without([1], 3), Send(), 0)[1] == ()
    crowd = np.full(100_000, 1_000_000)
    crowd[77] = 1
    alone = roster_without([client for client in range(100_000) if client != 77], 100_000)
    assert Weighted(Lots(1, crowd)).choose(None, Crowd(100_000), alone, Send(), 0)[1] == (77,)


def test_sa_03_weighted_selection_sees_the_whole_population():
    """100 clients with 1 to 5 examples, 10 a round, 50 rounds: at least 90 distinct, in proportion to their data."""
    sizes = np.array([1 + client % 5 for client in range(100)])
    selector, view, roster, seen = Weighted(Lots(0, sizes)), Crowd(100), Roster(100), Counter()
    for number in range(0, 500, 10):
        cohort = selector.choose(None, view, roster, Send(count=10), number)[1]
        assert len(set(cohort)) == 10
        seen.update(cohort)
    assert len(seen) >= 90
    by_size = [sum(seen[client] for client in range(100) if sizes[client] == size) for size in range(1, 6)]
    assert by_size == sorted(by_size)


def test_fastest_first_goes_by_typical_time():
    """The fastest free ones, equal times by number, also within a group."""
    selector, view = FastestFirst((3.0, 1.0, 2.0, 1.0)), Crowd(4, {"g": (0, 2)})
    assert selector.choose(None, view, Roster(4), Send(count=3), 0)[1] == (1, 3, 2)
    assert selector.choose(None, view, roster_without([1], 4), Send(), 0)[1] == (3,)
    assert selector.choose(None, view, Roster(4), Send(count=3, group="g"), 0)[1] == (2, 0)


def test_typical_times_are_those_of_the_laws_at_their_medians(tmp_path):
    """Compute, pauses, waits and both network legs of a client whose every law is constant: exactly its trip."""
    text = scenarios.QUADRATIC.replace(
        'jitter_factor = { law = "exponential", mean = 1.0 }', "jitter_factor = 2.0\nepoch_idle_s = 3.0"
    )
    text = text.replace('wait_s = { law = "uniform", low = 0.0, high = 2.0 }', "wait_s = 1.5").replace('latency_jitter_factor = { law = "half_normal", sd = 1.0, min = 0.1 }', "latency_jitter_factor = 3.0")  # fmt: skip
    built = build(load(scenarios.write(tmp_path, text), ["run.selection=fastest"]), timing_only=True)
    works = built.world.assignment.usual
    for client, typical in enumerate(built.world.selector.typical):
        trip = built.trips.trip(client, 0, works[client])
        assert typical == pytest.approx((trip.download + trip.wait + trip.compute + trip.upload) / 1e6, abs=4e-6)


def test_power_of_choice_takes_the_largest_losses_of_its_candidates():
    """Unheard ones first; then by last reported loss; candidates are drawn by data; a loss that is none changes nothing."""
    selector = PowerOfChoice(Lots(5, np.array(SIZES)), candidates=COUNT)
    view, roster, state = Crowd(COUNT), Roster(COUNT), selector.start()
    for client in range(COUNT - 1):
        state = selector.hear(state, client, float(client % 7))
    assert selector.choose(state, view, roster, Send(count=4), 3)[1][0] == COUNT - 1
    state = selector.hear(state, COUNT - 1, 0.5)
    chosen = selector.choose(state, view, roster, Send(count=2), 3)[1]
    assert set(chosen) == {6, 13}
    same = selector.hear(selector.hear(state, 6, float("nan")), 13, None)
    assert same is state
    few = PowerOfChoice(Lots(5, np.array(SIZES)), candidates=3)
    seen = Counter(few.choose(few.start(), view, roster, Send(), number)[1][0] for number in range(2000))
    assert seen[4] / seen[0] == pytest.approx(5.0, rel=0.35)  # nobody is known: the first lot decides


def test_power_of_choice_keeps_its_own_state():
    """Hearing makes a new state; the old one is as it was."""
    selector = PowerOfChoice(Lots(5, np.array(SIZES)), candidates=3)
    before = selector.start()
    after = selector.hear(before, 3, 2.0)
    assert before[3] == np.inf
    assert after[3] == 2.0


def plain_utility(sizes, losses, reports, heard, times, preferred, penalty):
    """Oort's formula, client by client."""
    score = {}
    for client, loss in losses.items():
        value = sizes[client] * loss + (0.1 * np.log(reports) / heard[client]) ** 0.5
        if preferred is not None and times[client] > preferred:
            value *= (preferred / times[client]) ** penalty
        score[client] = value
    return score


def test_oort_chooses_by_utility_speed_and_exploration():
    """Against the formula written plainly: who explores, who is within 95 % of the best, and in which proportions."""
    selector = Oort(9, SIZES, TRAITS.typical_s, exploration=0.25, preferred_s=8.0)
    state, losses, heard = selector.start(), {}, {}
    for report, client in enumerate((3, 8, 4, 9, 14, 4, 0), 1):
        losses[client], heard[client] = 2.0 + client / 50, report
        state = selector.hear(state, client, losses[client])
    score = plain_utility(SIZES, losses, 7, heard, TRAITS.typical_s, 8.0, 2.0)
    near = [client for client in sorted(score) if score[client] >= 0.95 * max(score.values())]
    explored = 0
    for number in range(400):
        (client,) = selector.choose(state, Crowd(COUNT), Roster(COUNT), Send(), number)[1]
        if uniform(word(9, Purpose.SELECTION, 0, number, 0)) < 0.25:
            explored += 1
            assert client not in losses
        else:
            assert client in near
    assert 60 < explored < 140
    assert near == [14]  # the only one of the heavy that is not too slow


def test_oort_utilities_change_only_for_those_that_reported():
    """A report changes the utility of its client alone, and everybody's doubt by the count of reports."""
    selector = Oort(9, SIZES, TRAITS.typical_s)
    state = selector.hear(selector.start(), 3, 1.0)
    after = selector.hear(state, 7, 4.0)
    changed = [client for client in range(COUNT) if repr(after.utility[client]) != repr(state.utility[client])]
    assert changed == [7]
    assert np.isnan(state.utility[7])
    assert after.utility[7] == 4.0 * SIZES[7]
    assert selector.hear(after, 2, float("nan")).utility[2] == 0.0


def test_the_pacer_relaxes_the_preferred_time_when_utility_falls():
    """Windows of two reports worth 6, 8, 4, 4: T rises once, after the third."""
    selector = Oort(0, (1,) * 4, np.ones(4), preferred_s=5.0, pacer_s=2.0, pacer_window=2)
    state, found = selector.start(), []
    for report, loss in enumerate((3, 3, 4, 4, 2, 2, 2, 2)):
        state = selector.hear(state, report % 4, float(loss))
        found.append(state.preferred_s)
    assert found == [5, 5, 5, 5, 5, 7, 7, 7]


@pytest.mark.parametrize("name", ["power_of_choice", "oort"])
def test_selections_that_read_outcomes_run_and_plan_refuses_them(tmp_path, name):
    """A run repeats itself, to the bit; plan names the selector, unless it is told to assume full work, and says so."""
    text = scenarios.QUADRATIC.replace(
        "seed = 7", f'seed = 7\nselection = "{name}"\n' + ("poc_candidates = 2" if name != "oort" else "")
    )
    scenario = load(scenarios.write(tmp_path, text))
    runs = [execute(scenario, None) for _ in range(2)]
    assert runs[0]["timeline_sha256"] == runs[1]["timeline_sha256"]
    assert runs[0]["summary"]["updates"] == 60
    with pytest.raises(RefusedError, match=r"reads trained values .*--assume-full-work"):
        execute(scenario, None, timing_only=True)
    assumed = execute(scenario, None, timing_only=True, assume_full_work=True)
    assert assumed["assumed_full_work"] is True
    assert runs[0]["assumed_full_work"] is False


@pytest.mark.parametrize("name", ["weighted", "fastest"])
def test_plan_and_run_agree_under_each_selection(tmp_path, name):
    """Law 1: the same timeline with and without training."""
    scenario = load(scenarios.write(tmp_path), [f"run.selection={name}"])
    assert execute(scenario, None)["timeline_sha256"] == execute(scenario, None, timing_only=True)["timeline_sha256"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("poc_candidates = 2", r'poc_candidates must not be given with selection = "uniform"; it belongs to "power_of_choice"'),
        ('selection = "power_of_choice"', r"poc_candidates = 10 is more than the 4 clients"),
        ('selection = "oort"\noort_pacer_s = 1', r"oort_pacer_s needs the key oort_preferred_s"),
        ('selection = "oort"\noort_penalty = 1', r"oort_penalty needs the key oort_preferred_s"),
        ('selection = "oort"\noort_preferred_s = 1\noort_pacer_window = 3', r"oort_pacer_window needs the key oort_pacer_s"),
        ('selection = "oort"\noort_exploration = 1.5', r"oort_exploration must be at most 1"),
        ('selection = "ort"', r'did you mean "oort"'),
    ],
)  # fmt: skip
def test_options_without_effect_are_refused(tmp_path, keys, message):
    """What belongs to another selection, or needs another key, is named with its line."""
    with pytest.raises(ScenarioError, match=message):
        load(scenarios.write(tmp_path, scenarios.QUADRATIC.replace("seed = 7", f"seed = 7\n{keys}")))
