"""Synchronous rounds: means over who answers, over-selection, deadlines, losses, late reports."""

import math

import pytest

from desim_fl.core import Alarm, Reply, Send, Stop
from desim_fl.strategies import FedAvg
from desim_fl.testing import Playground


def test_a_round_is_the_example_weighted_mean_of_models():
    """Models 1 and 4 with 10 and 20 examples: (10 * 1 + 20 * 4) / 30 = 3."""
    ground = Playground(FedAvg(clients_per_round=2), 0.0)
    first = ground.arrive(0, 1.0, examples=10)
    assert first == Reply(weight=10.0, sends=())
    last = ground.arrive(1, 4.0, examples=20)
    assert ground.params == pytest.approx(3.0, abs=1e-15)
    assert (last.weight, last.scale) == (20.0, 1 / 30)
    assert last.shares == ((0, 10 / 30), (1, 20 / 30))
    assert last.sends == (Send(count=2, tag=1, wait=False),)


def test_ag_06_a_client_that_drops_out_is_in_no_weight():
    """Sizes 10, 20, 70, deltas 1, 2, 3, the third lost: (10 + 40) / 30 = 50/30, not 50/100."""
    ground = Playground(FedAvg(clients_per_round=3), 0.0)
    ground.arrive(0, 1.0, examples=10)
    ground.arrive(1, 2.0, examples=20)
    reply = ground.lose(2)
    assert ground.params == pytest.approx(50 / 30, abs=1e-12)
    assert math.fsum(share for _, share in reply.shares) == pytest.approx(1.0, abs=1e-12)
    assert reply.abandon is False


@pytest.mark.parametrize("members", range(1, 8))
def test_ag_06_equal_models_have_exactly_that_model_as_mean(members):
    """Whatever the sizes and however many report, not a bit is lost on the way."""
    ground = Playground(FedAvg(clients_per_round=7), 0.3)
    for job in range(7):
        if job < members:
            ground.arrive(job, 0.1, examples=3 * job + 7)
        else:
            ground.lose(job)
    assert (ground.version, ground.params) == (1, 0.1)


def test_ag_04_clients_without_examples():
    """All without examples: abandoned, version and model unchanged, next round sent. One left: exactly its model."""
    ground = Playground(FedAvg(clients_per_round=2), 0.7)
    assert ground.lose(0, "no examples") == Reply(sends=())
    reply = ground.lose(1, "no examples")
    assert reply == Reply(abandon=True, sends=(Send(count=2, tag=1, wait=False),))
    assert (ground.version, ground.params) == (0, 0.7)
    ground.lose(2, "no examples")
    ground.arrive(3, 0.1 + 0.2, examples=10)
    assert (ground.version, ground.params) == (1, 0.1 + 0.2)


def test_ag_05_a_non_finite_report_keeps_its_place_and_weighs_nothing():
    """Five of equal size with deltas 1, 2, NaN, 4, 5: the model moves by 12 / 4 = 3 and the round is complete."""
    ground = Playground(FedAvg(clients_per_round=5), 0.0)
    deltas = (1.0, 2.0, math.nan, 4.0, 5.0)
    replies = [ground.arrive(job, delta, finite=math.isfinite(delta)) for job, delta in enumerate(deltas)]
    assert (ground.version, ground.params) == (1, pytest.approx(3.0, abs=1e-12))
    assert replies[2].weight == 0.0
    assert [job for job, _ in replies[-1].shares] == [0, 1, 3, 4]


@pytest.mark.parametrize(("server_lr", "expected"), [(1.0, 0.1), (0.5, 0.55), (2.0, -0.8)])
def test_server_lr_moves_that_share_of_the_way_to_the_mean(server_lr, expected):
    """From 1 to a mean of 0.1: 1 + lr * (0.1 - 1); at 1 exactly the mean."""
    ground = Playground(FedAvg(clients_per_round=1, server_lr=server_lr), 1.0)
    reply = ground.arrive(0, 0.1, examples=4)
    assert ground.params == (0.1 if server_lr == 1 else pytest.approx(expected))
    assert reply.scale == server_lr / 4


@pytest.mark.parametrize(
    ("share", "number", "cohort"), [(1.0, 10, 10), (1.1, 10, 11), (1.3, 10, 13), (1.25, 3, 4), (2, 3, 6)]
)
def test_over_selection_rounds_up_the_number_as_written(share, number, cohort):
    """1.1 * 10 is 11 clients, although 1.1 * 10 is a little more than 11 in binary."""
    assert FedAvg(clients_per_round=number, over_selection=share).cohort == cohort


@pytest.mark.parametrize(("fraction", "quorum"), [(0.0, 1), (0.05, 1), (0.7, 7), (0.71, 8), (1.0, 10)])
def test_the_quorum_is_at_least_one(fraction, quorum):
    """ceil(min_fraction * 10), and never an empty round."""
    assert FedAvg(min_fraction=fraction).quorum == quorum


def test_over_selection_ends_at_the_k_th_report_and_turns_late_ones_away():
    """Three start for two; the third comes into the next round, is rejected and starts nothing."""
    ground = Playground(FedAvg(clients_per_round=2, over_selection=1.5), 0.0)
    assert sorted(ground.jobs) == [0, 1, 2]
    ground.arrive(2, 2.0)
    reply = ground.arrive(0, 4.0)
    assert (ground.version, ground.params) == (1, 3.0)
    assert reply.stops == ()
    assert sorted(ground.jobs) == [1, 3, 4, 5]
    assert ground.arrive(1, 100.0) == Reply(reject="late", sends=())
    assert (ground.version, ground.params) == (1, 3.0)
    ground.arrive(3, 5.0)
    ground.arrive(5, 7.0)
    assert (ground.version, ground.params) == (2, 6.0)


def test_a_lost_straggler_of_a_closed_round_changes_nothing():
    """Its loss is not one of the running round."""
    ground = Playground(FedAvg(clients_per_round=1, over_selection=2.0), 0.0)
    ground.arrive(0, 1.0)  # closes round 0; job 1 is still out, jobs 2 and 3 are round 1
    assert ground.lose(1) == Reply(sends=())
    assert ground.lose(2) == Reply(sends=())
    assert ground.lose(3).abandon


def test_cancel_stragglers_ends_the_jobs_of_the_closed_round_only():
    """With the option, everybody still out for the closed round is cancelled at its end."""
    ground = Playground(FedAvg(clients_per_round=2, over_selection=2.0, cancel_stragglers=True), 0.0)
    ground.arrive(1, 1.0)
    reply = ground.arrive(2, 1.0)
    assert reply.stops == (Stop(0, "cancel"), Stop(3, "cancel"))
    assert sorted(ground.jobs) == [4, 5, 6, 7]
    assert {flight.tag for flight in ground.flying.values()} == {1}


def test_a_round_never_waits_for_more_than_were_sent_out():
    """Only two clients exist for five places: the round ends with both of them; CASES SA-01."""
    ground = Playground(FedAvg(clients_per_round=5), 0.0, clients=2)
    assert sorted(ground.jobs) == [0, 1]
    assert ground.arrive(0, 1.0).params is None
    ground.arrive(1, 3.0)
    assert (ground.version, ground.params) == (1, 2.0)


def test_losses_lower_what_can_still_come():
    """Of four, one reports and three are lost: the round ends at the last loss with the one there is."""
    ground = Playground(FedAvg(clients_per_round=4), 0.0)
    ground.lose(0)
    ground.arrive(1, 8.0)
    ground.lose(2)
    assert ground.version == 0
    ground.lose(3)
    assert (ground.version, ground.params) == (1, 8.0)


def test_too_few_left_for_the_quorum_abandon_the_round():
    """Half of four are needed; one report and three losses are not a round."""
    ground = Playground(FedAvg(clients_per_round=4, min_fraction=0.5), 0.0)
    for job in (0, 1, 2):
        ground.lose(job)
    reply = ground.arrive(3, 8.0)
    assert reply.abandon
    assert reply.weight == 1.0
    assert (ground.version, ground.params) == (0, 0.0)
    assert {flight.tag for flight in ground.flying.values()} == {1}


def test_a_deadline_commits_what_is_there():
    """Two of four have reported at the deadline and half is enough; the next round has its own alarm."""
    strategy = FedAvg(clients_per_round=4, deadline_s=9.0, min_fraction=0.5)
    assert strategy.start(Playground(strategy, 0.0))[1].alarms == (Alarm("deadline 0", 9.0),)
    ground = Playground(strategy, 0.0)
    ground.arrive(0, 1.0)
    ground.arrive(3, 2.0)
    reply = ground.alarm("deadline 0")
    assert (ground.version, ground.params) == (1, 1.5)
    assert reply.alarms == (Alarm("deadline 0", None), Alarm("deadline 1", 9.0))
    assert ground.arrive(1, 50.0).reject == "late"


def test_a_deadline_before_enough_reports_abandons():
    """One of four where half is needed: no publish, the model stays, the report is lost."""
    ground = Playground(FedAvg(clients_per_round=4, deadline_s=9.0, min_fraction=0.5), 0.0)
    ground.arrive(0, 1.0)
    reply = ground.alarm("deadline 0")
    assert (reply.abandon, reply.params, ground.version) == (True, None, 0)
    # The abandoned report does not leak into the next round's mean.
    sent = [job for job, flight in ground.flying.items() if flight.tag == 1]
    assert len(sent) == 4
    for job in sent:
        ground.arrive(job, 6.0)
    assert (ground.version, ground.params) == (1, 6.0)


def test_a_deadline_before_any_arrival_abandons_and_goes_on():
    """Faster than the fastest client: each round is abandoned, everybody's report is late; CASES EV-05."""
    ground = Playground(FedAvg(clients_per_round=2, deadline_s=0.1), 0.0)
    for number in range(3):
        reply = ground.alarm(f"deadline {number}")
        assert reply.abandon
        assert reply.sends == (Send(count=2, tag=number + 1, wait=False),)
    assert ground.arrive(0, 1.0).reject == "late"
    assert ground.version == 0


def test_a_deadline_while_the_cohort_still_waits_asks_for_no_second_one():
    """Nobody could be sent out: the places stay open, so the round keeps its number and sets its alarm again."""
    ground = Playground(FedAvg(clients_per_round=2, deadline_s=5.0), 0.0, clients=0)
    assert ground.alarm("deadline 0") == Reply(abandon=True, sends=(), alarms=(Alarm("deadline 0", 5.0),))


def test_an_alarm_of_a_closed_round_does_nothing():
    """A deadline that lost the race in its own instant is ignored."""
    ground = Playground(FedAvg(clients_per_round=1, deadline_s=5.0), 0.0)
    reply = ground.arrive(0, 1.0)
    assert reply.alarms[0] == Alarm("deadline 0", None)
    assert ground.alarm("deadline 0") == Reply(sends=())
    assert ground.version == 1


def test_a_place_filled_after_the_first_report_is_waited_for():
    """Two are out when the first is lost; a third joins the round before the second reports: the mean is of both; CASES SA-01."""
    ground = Playground(FedAvg(clients_per_round=3), 0.0, clients=2)
    ground.lose(0)
    ground.jobs[9] = ground.jobs[1]._replace(id=9, client=0)
    assert ground.arrive(1, 2.0) == Reply(weight=1.0, sends=())
    ground.arrive(9, 4.0)
    assert (ground.version, ground.params) == (1, 3.0)
