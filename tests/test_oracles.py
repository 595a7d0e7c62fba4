"""The simulator against closed forms, and the table that shows it."""

from __future__ import annotations

import json
import math
from itertools import product

import pytest
from typer.testing import CliRunner

from desim_fl import oracles
from desim_fl.cli import app
from desim_fl.oracles import Line, Oracle, complexities, fixed_times, measuring, queues, rounds


@pytest.mark.parametrize("oracle", oracles.ORACLES, ids=lambda oracle: oracle.name)
def test_every_oracle_holds(oracle):
    """Each line of theory is met: equal where it is exact, within its z-test where it is an expectation."""
    found = list(oracle.lines())
    assert found
    assert [line for line in found if not line.holds] == []


def test_closed_networks_by_counting_every_state():
    """Buzen's constants and mean queues are those of a sum over all states of the network."""
    loads, customers = (0.5, 0.15, 0.05, 0.2), 5
    states = [state for state in product(range(customers + 1), repeat=4) if sum(state) == customers]
    weights = [math.prod(load**n for load, n in zip(loads, state, strict=True)) for state in states]
    assert queues.buzen(loads, customers)[customers] == pytest.approx(sum(weights), rel=1e-12)
    for place in range(4):
        mean = sum(w * state[place] for w, state in zip(weights, states, strict=True)) / sum(weights)
        assert queues.mean_queue(loads, customers, place) == pytest.approx(mean, rel=1e-12)
    uniform = queues.buzen((0.2,) * 5, 3)
    assert uniform[2] / uniform[3] == pytest.approx(5 * 3 / 7)  # n mu C / (n + C - 1)


def test_expected_values_are_those_of_the_literature():
    """H_10 = 2.929, 10 of 13: 1.347, P(commit) = 0.9125, t(1, 4, 10, 25) = 1, 3, 6, 15, and the delays 8.93, 1.41, 0.554 of the network."""
    assert rounds.harmonic(10) == pytest.approx(2.929, abs=5e-4)
    assert rounds.harmonic(13) - rounds.harmonic(3) == pytest.approx(1.347, abs=5e-4)
    assert rounds.at_least(13, 10, 2.0) == pytest.approx(0.9125, abs=5e-5)
    times = (1, 2, 5, 9)
    assert [fixed_times.first(times, lambda n, b=b: sum(n) >= b) for b in (1, 4, 10, 25)] == [1, 3, 6, 15]
    delays = [queues.mean_queue((0.5, 0.15, 0.05), 5, place) / share for place, share in enumerate((0.5, 0.3, 0.2))]
    assert delays == pytest.approx([8.93, 1.41, 0.554], abs=5e-3)


def test_time_complexities_are_those_of_the_papers():
    """With equal workers all but Ringmaster's factor 2 agree; at h = 1, 2, 4 (a = 2, b = 6) by hand; at sqrt(i) the best m stays when n grows."""
    alike = complexities.bounds((2.0,) * 4, 3, 8)
    assert alike.minibatch == alike.asynchronous[0] == alike.rennala[1] == 2 * (3 + 8 / 4)  # h (a + b / n)
    assert alike.malenia[0] == 3 * 2.0
    found = complexities.bounds((1.0, 2.0, 4.0), 2, 6)
    assert found.minibatch == 4 * (2 + 6 / 3)
    assert found.asynchronous == pytest.approx((12 / 1.75, 15 / 1.75))  # S = 1, 3/2, 7/4
    assert found.rennala == pytest.approx((6 / 1.75, 10 / 1.5))  # (a m + b) / S_m = 8, 20/3, 48/7
    assert found.ringmaster == pytest.approx(40 / 3)
    assert found.malenia == pytest.approx((8.0, 8 + 2 * 7 / 3 * 2))
    few, many = (complexities.bounds(complexities.roots(n), 4, 64) for n in (16, 400))
    assert few.rennala[1] == pytest.approx(many.rennala[1], rel=0.2)
    assert (few.minibatch, many.minibatch) == pytest.approx((32.0, 20 * 4.16))


def test_a_line_fails_beyond_its_bound():
    """Exact lines must be equal, bounds may be met but not passed; others may deviate by 3.89 standard errors, and by no more."""
    assert Line("q", 2.0, 2.0).holds
    assert not Line("q", 2.0, 2.0 + 1e-9).holds
    assert Line("q", 2.0, 2.38, 0.1).holds
    assert not Line("q", 2.0, 2.40, 0.1).holds
    assert not Line("q", 2.0, 1.60, 0.1).holds
    assert Line("q", 2.0, 2.0, relation="<=").holds
    assert not Line("q", 2.0, 2.1, relation="<=").holds
    assert Line("q", 2.0, 2.1, relation=">=").holds
    assert not Line("q", 2.0, 1.9, relation=">=").holds


def test_correlated_values_have_the_error_of_their_batches():
    """A value repeated a hundred times says no more than once: the error is that of the batch means."""
    values = [float((7 * number) % 11) for number in range(400) for _ in range(100)]
    independent = measuring.averaged("q", 5.0, values, independent=True)
    batched = measuring.averaged("q", 5.0, values)
    assert batched.measured == pytest.approx(independent.measured)
    assert batched.error != independent.error


def test_the_command_prints_the_table_and_fails_with_a_line(monkeypatch):
    """Oracle, expected, measured, deviation and confidence of each line; exit code 1 if one does not hold."""
    lines = [Line("one", 3.0, 3.0), Line("two", 1.0, 1.1, 0.1)]
    monkeypatch.setattr(
        oracles, "checked", lambda: [(Oracle("O0", "nowhere", lambda: iter(lines)), line) for line in lines]
    )
    done = CliRunner().invoke(app, ["verify", "--oracles"])
    assert done.exit_code == 0
    header, exact, tested = done.output.splitlines()
    assert header.split() == ["oracle", "quantity", "expected", "measured", "deviation", "confidence"]
    assert "exact" in exact
    assert "z = +1.00" in tested
    lines[0] = Line("one", 3.0, 4.0)
    failed = CliRunner().invoke(app, ["verify", "--oracles", "--json"])
    assert failed.exit_code == 1
    found = json.loads(failed.output)
    assert (found["ok"], found["lines"][0]["holds"], found["lines"][1]["holds"]) == (False, False, True)
    assert found["lines"][0]["deviation"] == 1.0


@pytest.mark.parametrize(
    "arguments", [["verify"], ["verify", "somewhere", "--oracles"], ["verify", "--oracles", "--rerun"]]
)
def test_a_run_or_the_oracles_not_both(arguments):
    """What is asked must be one of the two."""
    done = CliRunner().invoke(app, arguments)
    assert "a run directory, or --oracles alone" in str(done.exception)
