"""Selectors: who is sent out next."""

import pickle
from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from desim_fl.core import Selector, Send
from desim_fl.draws import Purpose, word
from desim_fl.errors import RefusedError, ScenarioError
from desim_fl.population import Roster
from desim_fl.selection import TABLE, ExplicitOrder, LongestIdle, RoundRobin, Uniform, build


class Crowd(NamedTuple):
    """As much of a View as selectors look at."""

    clients: int
    groups: dict[str, tuple[int, ...]] = {}  # noqa: RUF012  (never changed)


def roster_without(count, busy):
    """Return a roster of ``count`` clients of whom some are busy."""
    roster = Roster(count)
    for client in busy:
        roster.take(client)
    return roster


def plainly(seed, members, free, count, number):
    """Uniform selection written down straight from DESIGN 4, with scalar draws and plain lists."""
    chosen = []
    for dispatch in range(number, number + count):
        left = sorted(client for client in free if client not in chosen)
        if not left:
            break
        pick = None
        if len(left) >= len(members) / 8:
            for attempt in range(16):
                draw = word(seed, Purpose.SELECTION, 0, dispatch, attempt)
                client = members[draw * len(members) // 2**32]
                if client in left:
                    pick = client
                    break
        if pick is None:
            pick = left[word(seed, Purpose.SELECTION, 0, dispatch, 16) * len(left) // 2**32]
        chosen.append(pick)
    return tuple(chosen)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    count=st.integers(1, 200),
    share=st.sampled_from([0.0, 0.02, 0.1, 0.125, 0.3, 1.0]),
    asked=st.integers(1, 60),
    number=st.integers(0, 5000),
    grouped=st.booleans(),
    data=st.data(),
)
def test_uniform_agrees_with_a_plain_implementation(*, seed, count, share, asked, number, grouped, data):
    """Crowded or not, single or cohort, everybody or a group: the same clients in the same order."""
    wanted = min(count, max(0, round(share * count)))
    free = data.draw(st.permutations(range(count)))[:wanted]
    roster = roster_without(count, [client for client in range(count) if client not in free])
    members = tuple(range(0, count, 3)) if grouped else tuple(range(count))
    view = Crowd(count, {"some": members[::-1]})
    send = Send(count=asked, group="some" if grouped else None)
    _, chosen = Uniform(seed).choose(None, view, roster, send, number)
    assert chosen == plainly(seed, members, [client for client in free if client in members], asked, number)


def test_uniform_does_not_depend_on_what_was_asked_before():
    """The memo of words is no state: any order of dispatch numbers gives what a new selector gives."""
    roster, view = Roster(1000), Crowd(1000)
    used = Uniform(7)
    numbers = [0, 5000, 1023, 1024, 3, 2**32 - 1, 1025, 0]
    for number in numbers:
        expected = Uniform(7).choose(None, view, roster, Send(count=3), number)
        assert used.choose(None, view, roster, Send(count=3), number) == expected


def test_uniform_chooses_a_cohort_as_single_choices_one_after_another():
    """Forty at once, or forty times one with the chosen taken each time."""
    view, at_once = Crowd(48), Uniform(3).choose(None, Crowd(48), Roster(48), Send(count=40), 11)[1]
    roster, singly = Roster(48), []
    for number in range(11, 51):
        _, (client,) = Uniform(3).choose(None, view, roster, Send(), number)
        roster.take(client)
        singly.append(client)
    assert list(at_once) == singly


def test_uniform_variants_share_their_draws():
    """One busy client changes the choice of those dispatches only that would have met it."""
    view = Crowd(50)
    free, one_busy = roster_without(50, []), roster_without(50, [17])
    for number in range(300):
        usual = Uniform(1).choose(None, view, free, Send(), number)[1]
        other = Uniform(1).choose(None, view, one_busy, Send(), number)[1]
        assert (usual == other) == (usual != (17,))


def test_sa_03_uniform_selection_sees_the_whole_population():
    """100 clients, 10 a round, 50 rounds: at least 95 distinct, none over 20 times, none twice in a round."""
    selector, view, roster, seen = Uniform(0), Crowd(100), Roster(100), Counter()
    for number in range(0, 500, 10):
        _, cohort = selector.choose(None, view, roster, Send(count=10), number)
        assert len(set(cohort)) == 10
        seen.update(cohort)
    assert len(seen) >= 95
    assert max(seen.values()) <= 20


@pytest.mark.parametrize("busy", [0, 60, 92])
def test_uniform_is_uniform_over_the_selectable(busy):
    """20,000 draws, free, half crowded and below an eighth: chi-square over the free clients stays in its range; CASES SA-03."""
    selector, view, roster = Uniform(5), Crowd(100), roster_without(100, range(busy))
    seen = Counter(selector.choose(None, view, roster, Send(), number)[1][0] for number in range(20_000))
    free = 100 - busy
    expected = 20_000 / free
    chi_square = sum((seen[client] - expected) ** 2 / expected for client in range(busy, 100))
    assert sum(seen[client] for client in range(busy, 100)) == 20_000
    # Mean df, variance 2 df; five standard deviations.
    assert abs(chi_square - (free - 1)) < 5 * (2 * (free - 1)) ** 0.5


@pytest.mark.parametrize("name", TABLE)
def test_every_selector_conforms(name):
    """Distinct selectable clients, no more than asked for, the same answer twice, nothing where nobody is free; CASES SA-01."""
    selector = build(name, seed=1, keys=range(20), order=[3, 1, 4, 15, 9, 2, 6])
    assert isinstance(selector.reads_outcomes, bool)
    chooser: Selector = pickle.loads(pickle.dumps(selector))  # noqa: S301
    state, view, roster, busy = selector.start(), Crowd(20), Roster(20), []
    for number in range(60):
        send = Send(count=1 + number % 3)
        before = state
        state, chosen = selector.choose(before, view, roster, send, number)
        assert chooser.choose(before, view, roster, send, number) == (state, chosen)
        assert len(set(chosen)) == len(chosen) <= send.count
        for client in chosen:
            roster.take(client)  # an error unless it was selectable
        busy.extend(chosen)
        while len(busy) > 5:
            roster.free(busy.pop(number % 5))
    assert selector.choose(state, view, roster_without(20, range(20)), Send(count=2), 99)[1] == ()


def test_round_robin_goes_by_key_and_passes_over_the_busy():
    """Keys 30, 10, 20: the order is 1, 2, 0; it goes on behind the last chosen and starts anew at the end."""
    selector, view = RoundRobin((30, 10, 20)), Crowd(3)
    state, chosen = selector.choose(selector.start(), view, Roster(3), Send(), 0)
    assert chosen == (1,)
    state, chosen = selector.choose(state, view, roster_without(3, [2]), Send(), 1)
    assert chosen == (0,)
    state, chosen = selector.choose(state, view, Roster(3), Send(count=5), 2)
    assert chosen == (1, 2, 0)
    assert selector.choose(state, view, roster_without(3, range(3)), Send(), 5) == (state, ())


def test_round_robin_in_a_group():
    """Only members take a turn, however many places there are."""
    selector, view = RoundRobin(range(6)), Crowd(6, {"odd": (1, 3, 5)})
    state, chosen = selector.choose(0, view, roster_without(6, [3]), Send(count=4, group="odd"), 0)
    assert chosen == (1, 5)
    assert selector.choose(state, view, Roster(6), Send(group="odd"), 0)[1] == (1,)


def test_longest_idle_takes_the_unused_by_number_and_then_who_came_back_first():
    """0 to 3 were never out; 5 came back before 4."""
    roster, view = roster_without(6, [4, 5]), Crowd(6, {"late": (3, 4, 5)})
    roster.free(5)
    roster.free(4)
    assert LongestIdle().choose(None, view, roster, Send(count=6), 0)[1] == (0, 1, 2, 3, 5, 4)
    assert LongestIdle().choose(None, view, roster, Send(count=2, group="late"), 0)[1] == (3, 5)


def test_an_explicit_order_waits_for_its_next_client_and_starts_again():
    """2, 0, 2: while 2 is busy nobody goes in its place; behind the end comes the beginning."""
    selector, view = ExplicitOrder((2, 0, 2)), Crowd(3)
    state, chosen = selector.choose(selector.start(), view, Roster(3), Send(count=3), 0)
    assert chosen == (2, 0)  # the second 2 must wait for the first to come back
    assert selector.choose(state, view, roster_without(3, [2, 0]), Send(), 2) == (state, ())
    state, chosen = selector.choose(state, view, roster_without(3, [0]), Send(), 2)
    assert chosen == (2,)
    assert selector.choose(state, view, Roster(3), Send(), 3)[1] == (2,)


def test_an_explicit_order_refuses_what_it_cannot_mean():
    """A group, nobody at all, or a client that does not exist."""
    with pytest.raises(RefusedError, match="cannot choose from a group"):
        ExplicitOrder((0,)).choose(0, Crowd(1, {"g": (0,)}), Roster(1), Send(group="g"), 0)
    with pytest.raises(ScenarioError, match="names nobody"):
        ExplicitOrder(())
    with pytest.raises(ScenarioError, match="order names client 3; clients are numbered from 0 to 2"):
        build("order", seed=0, keys=range(3), order=[0, 3])


def test_a_selector_that_does_not_exist_is_refused():
    """The message lists those that do."""
    with pytest.raises(ScenarioError, match="not one of uniform, round_robin, longest_idle, order"):
        build("unifrom", seed=0, keys=range(3))
