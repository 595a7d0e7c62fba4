"""The engine against timelines worked by hand."""

from __future__ import annotations

import math
import time

import pytest
from worlds import Plain, ScriptedTrips, play

from desim_fl.core import Alarm, Reply, Send, Work
from desim_fl.errors import JobError, RefusedError, RunError, StalledError
from desim_fl.strategies.fedasync import FedAsync
from desim_fl.strategies.fedbuff import FedBuff
from desim_fl.world import Evaluations, StopRules


def test_ev_01_equal_instants_are_played_in_dispatch_order():
    """Three clients that finish in one instant are applied in the order in which they were dispatched; CASES RP-02."""
    played = play(
        ScriptedTrips([10, 10, 10]),
        strategy=FedAsync(),
        select="order",
        order=[2, 0, 1],
        concurrency=3,
        stops=StopRules(max_updates=3),
    )
    assert played.arrivals() == [(10, 2, 0), (10, 0, 1), (10, 1, 2)]
    assert [row[4] for row in played.rows("publish")] == [1, 2, 3]


def test_ev_02a_zero_durations_reach_a_version_stop_at_time_zero():
    """50 clients, 48 in flight, all durations zero: version 5 after 50 accepted updates at t = 0."""
    played = play(
        ScriptedTrips([0] * 50), strategy=FedBuff(buffer_size=10), concurrency=48, stops=StopRules(max_versions=5)
    )
    assert (played.engine.model.version, played.engine.ledger.applied, played.engine.final_ticks) == (5, 50, 0)


def test_ev_02b_a_clock_that_cannot_advance_is_an_error():
    """The same world with only a maximum time ends quickly with an error that says so."""
    began = time.monotonic()
    with pytest.raises(StalledError, match="virtual time is not advancing: client"):
        play(ScriptedTrips([0] * 50), strategy=FedBuff(), concurrency=48, stops=StopRules(max_ticks=100_000_000))
    assert time.monotonic() - began < 10


def test_ev_02_a_version_stop_that_is_never_reached_is_an_error_too():
    """A strategy that never publishes cannot hang a world whose jobs take no time."""

    class Never(Plain):
        def arrive(self, state, view, update):
            return state, super().arrive(state, view, update)[1]._replace(params=None)

    with pytest.raises(StalledError, match="virtual time is not advancing"):
        play(ScriptedTrips([0, 0]), strategy=Never(), concurrency=2, stops=StopRules(max_versions=5))


def test_ev_03a_slots_are_refilled_at_the_arrival_that_freed_them():
    """Concurrency 2, order A B C D, durations 10 3 4 5: starts 0 0 3 7, arrivals B3 C7 A10 D12, staleness 0 0 2 1."""
    played = play(
        ScriptedTrips([10, 3, 4, 5]),
        strategy=FedAsync(),
        select="order",
        order=[0, 1, 2, 3, 0, 1, 2, 3],
        concurrency=2,
        stops=StopRules(max_updates=4),
    )
    assert [(t, client) for t, _, client, *_ in played.rows("dispatch")][:4] == [(0, 0), (0, 1), (3, 2), (7, 3)]
    assert played.arrivals() == [(3, 1, 0), (7, 2, 0), (10, 0, 2), (12, 3, 1)]


def test_ev_03b_concurrency_is_kept_full_after_every_instant():
    """20 clients, concurrency 8, buffer 3: exactly 8 in flight after each instant before the stop, never more."""
    played = play(
        ScriptedTrips([1 + 0.37 * i for i in range(20)]),
        strategy=FedBuff(buffer_size=3),
        concurrency=8,
        stops=StopRules(max_versions=30),
    )
    change = {"dispatch": 1, "arrive": -1}
    flying, after = 0, {}
    for t, kind, *_ in played.rows():
        flying += change.get(kind, 0)
        assert flying <= 8
        after[t] = flying
    assert set(list(after.values())[:-1]) == {8}


def test_ev_08_a_duration_that_is_none_names_the_client_before_time_moves():
    """NaN, infinite, negative and fractional legs of client 3 stop the run with its name, at t = 0."""
    for bad in (math.nan, math.inf, -1, 2.5):

        class Bad(ScriptedTrips):
            def trip(self, client, nth, work, bad=bad):
                trip = super().trip(client, nth, work)
                return trip._replace(compute=bad) if client == 3 else trip

        with pytest.raises(RunError, match="client 3"):
            play(Bad([1, 1, 1, 1]), concurrency=4)


def test_ev_09c_a_trainer_that_reports_no_steps_is_an_error():
    """Step counts and example counts that differ from what was timed are errors, not zero cost."""

    def no_steps(_job, _steps, outcome):
        return outcome._replace(steps=0)

    with pytest.raises(JobError, match=r"job 0 \(client 0, from version 0, executor floats\).*0 optimiser steps"):
        play(ScriptedTrips([1]), concurrency=1, outcome=no_steps)
    with pytest.raises(JobError, match="7 examples"):
        play(ScriptedTrips([1]), concurrency=1, outcome=lambda _job, _steps, outcome: outcome._replace(examples=7))


def test_as_01_staleness_counts_from_the_dispatched_version():
    """A=1, B=9.5, C=1 with two in flight and longest idle first: C starts fresh, B arrives 9 versions late."""
    played = play(ScriptedTrips([1, 9.5, 1]), strategy=FedAsync(), concurrency=2, stops=StopRules(max_ticks=10_000_000))
    arrivals = played.arrivals()
    assert arrivals[:2] == [(1, 0, 0), (2, 2, 0)]
    assert [row for row in arrivals if row[0] == 9.5] == [(9.5, 1, 9)]
    assert arrivals[-1][0::2] == (10, 1)


def test_o4_equal_times_give_staleness_up_to_n_minus_one_for_ever():
    """Five workers with equal times: staleness 0, 1, 2, 3, 4, then 4 for ever (ALGORITHMS O4)."""
    played = play(ScriptedTrips([2] * 5), concurrency=5, stops=StopRules(max_updates=20))
    assert [staleness for _, _, staleness in played.arrivals()] == [0, 1, 2, 3, *([4] * 16)]


def test_o5_deterministic_one_and_three():
    """Workers of 1 and 3 seconds give the published sequence with period 3 (ALGORITHMS O5)."""
    played = play(ScriptedTrips([1, 3]), concurrency=2, stops=StopRules(max_updates=11))
    expected = [(1, 0, 0), (2, 0, 0), (3, 1, 2), (3, 0, 1), (4, 0, 0), (5, 0, 0), (6, 1, 3), (6, 0, 1)]
    assert played.arrivals() == [*expected, (7, 0, 0), (8, 0, 0), (9, 1, 3)]


def test_sa_02_everybody_in_flight_and_more_places_than_clients():
    """5 of 5 in flight completes with one open job a client; 1 client with concurrency 3 has 1 in flight."""
    played = play(ScriptedTrips([1, 2, 3, 4, 5]), concurrency=5, stops=StopRules(max_updates=100))
    open_jobs = dict.fromkeys(range(5), 0)
    for _, kind, client, *_ in played.rows("dispatch", "arrive"):
        open_jobs[client] += 1 if kind == "dispatch" else -1
        assert open_jobs[client] in {0, 1}
    departures = {(t, client) for t, _, client, *_ in played.rows("dispatch")}
    assert {(t, client) for t, client, _ in played.arrivals()[:-1]} <= departures
    alone = play(ScriptedTrips([1]), concurrency=3, stops=StopRules(max_updates=4))
    assert [row[0] for row in alone.rows("dispatch")] == [0, 1, 2, 3]


def test_ag_07_the_dispatched_parameters_stay_what_they_were():
    """Locals 2, 3, 0 from W = 1 and their mean 5/3: nobody trains on somebody else's result."""
    from desim_fl.strategies.fedavg import FedAvg  # noqa: PLC0415

    played = play(
        ScriptedTrips([1, 1, 1]),
        strategy=FedAvg(clients_per_round=3),
        start=1.0,
        learn=lambda job: job.params + (1.0, 2.0, -1.0)[job.client],
        stops=StopRules(max_versions=1),
    )
    assert played.engine.model.params == pytest.approx(5 / 3, abs=1e-15)
    assert {job.params for job, _ in played.executor.submitted} == {1.0}


def test_ag_05_a_non_finite_update_keeps_its_place_with_weight_zero():
    """Deltas 1, 2, NaN, 4, 5 move the model by 3; the row of the NaN says so and the version advances once."""
    deltas = (1.0, 2.0, math.nan, 4.0, 5.0)
    played = play(
        ScriptedTrips([1] * 5),
        strategy=FedBuff(buffer_size=5, staleness="constant"),
        concurrency=5,
        learn=lambda job: job.params + deltas[job.client],
        stops=StopRules(max_versions=1),
    )
    assert played.engine.model.params == 3.0
    outcomes = [
        note for kind, note in zip(_kinds(played), played.sink.notes("outcome"), strict=True) if kind == "arrive"
    ]
    assert outcomes == [None, None, "rejected: non-finite", None, None]
    keys = [note for kind, note in zip(_kinds(played), played.sink.notes("bad_key"), strict=True) if kind == "arrive"]
    assert keys == [None, None, "params", None, None]
    with pytest.raises(RunError, match="non_finite"):
        play(ScriptedTrips([1]), concurrency=1, learn=lambda _: math.inf, non_finite="fail")


def _kinds(played):
    return [row[1] for row in played.rows()]


def test_as_05_too_stale_updates_are_rejected_and_free_their_client():
    """max_staleness 2: staleness 2 is accepted, 3 is a reject row, the client leaves again in that instant."""
    strategy = FedAsync(max_staleness=2)
    accepted = play(ScriptedTrips([1, 2.5]), strategy=strategy, concurrency=2, stops=StopRules(max_ticks=2_500_000))
    assert accepted.arrivals()[-1] == (2.5, 1, 2)
    assert accepted.rows("reject") == []
    late = play(ScriptedTrips([1, 3.5]), strategy=strategy, concurrency=2, stops=StopRules(max_ticks=3_500_000))
    assert late.rows("reject") == [(3.5, "reject", 1, 1, 3, 3)]
    assert [row[4] for row in late.rows("publish")] == [1, 2, 3]
    assert late.rows("dispatch")[-1][:3] == (3.5, "dispatch", 1)


def test_a_leg_end_comes_before_everything_else_of_its_instant():
    """Download ends and computing ends stand before arrivals of the same tick, new entries included."""
    played = play(ScriptedTrips([1, 1], download=1, upload=1), concurrency=2, stops=StopRules(max_ticks=4_000_000))
    at_three = [(kind, client, version) for t, kind, client, _, version, _ in played.rows() if t == 3]
    assert at_three == [
        ("arrive", 0, 0), ("publish", 0, 1), ("dispatch", 0, 1),
        ("arrive", 1, 1), ("publish", 1, 2), ("dispatch", 1, 2),
    ]  # fmt: skip
    at_four = [(kind, client, version) for t, kind, client, _, version, _ in played.rows() if t == 4]
    assert at_four == [("downloaded", 0, 2), ("downloaded", 1, 2), ("stop", -1, 2)]
    instant = play(ScriptedTrips([0, 0]), concurrency=2, stops=StopRules(max_updates=2))
    assert [(kind, client) for _, kind, client, *_ in instant.rows()] == [
        ("dispatch", 0), ("dispatch", 1), ("downloaded", 0), ("computed", 0), ("downloaded", 1), ("computed", 1),
        ("arrive", 0), ("publish", 0), ("dispatch", 0), ("downloaded", 0), ("computed", 0),
        ("arrive", 1), ("publish", 1), ("stop", -1),
    ]  # fmt: skip


def test_started_rows_appear_only_where_a_wait_is_set():
    """With a wait law a job is dispatch, downloaded, started, computed, arrive."""
    played = play(ScriptedTrips([1], download=1, wait=2, upload=1), concurrency=1, stops=StopRules(max_updates=1))
    assert [(t, kind) for t, kind, *_ in played.rows()] == [
        (0, "dispatch"), (1, "downloaded"), (3, "started"), (4, "computed"), (5, "arrive"), (5, "publish"), (5, "stop"),
    ]  # fmt: skip


def test_a_loss_frees_its_place_and_takes_the_later_legs_with_it():
    """A job lost at 1.5 s has no computed row, its place is refilled then, and the strategy hears of it once; CASES EV-03, SA-05."""
    played = play(
        ScriptedTrips([2, 9], download=1, lost={(0, 0): (1.5, "crash")}),
        concurrency=1,
        stops=StopRules(max_ticks=3_000_000),
    )
    assert played.rows("lose") == [(1.5, "lose", 0, 0, 0, 0)]
    assert [(t, client) for t, _, client, *_ in played.rows("dispatch")] == [(0, 0), (1.5, 1)]
    assert [row[3] for row in played.rows("computed")] == []
    assert played.engine.ledger.lost == 1
    landed = play(
        ScriptedTrips([2], download=1, lost={(0, 0): (3, "crash")}), concurrency=1, stops=StopRules(max_updates=1)
    )
    assert landed.arrivals() == [(3, 0, 0)]


def test_after_aggregation_places_wait_for_the_publish():
    """With two in flight and buffer 2, replacements leave together at the flush and are always fresh; CASES EV-03."""
    played = play(
        ScriptedTrips([1, 3]),
        strategy=FedBuff(buffer_size=2),
        concurrency=2,
        dispatch="after_aggregation",
        stops=StopRules(max_versions=3),
    )
    assert [row[0] for row in played.rows("dispatch")] == [0, 0, 3, 3, 6, 6]
    assert {staleness for _, _, staleness in played.arrivals()} == {0}


def test_a_world_in_which_nothing_is_left_to_happen_says_why():
    """A buffer larger than the concurrency under after_aggregation can never flush: a named error, no hang."""
    with pytest.raises(StalledError, match="1 updates buffered"):
        play(
            ScriptedTrips([1]),
            strategy=FedBuff(buffer_size=2),
            concurrency=1,
            dispatch="after_aggregation",
            stops=StopRules(max_versions=3),
        )


def test_evaluations_see_the_version_itself_and_leave_the_timeline_alone():
    """Each published version is evaluated with its own parameters, the clock's turns change no hash; CASES LT-03."""
    worlds = [Evaluations(), Evaluations(every_versions=1), Evaluations(every_ticks=700_000)]
    plays = [play(ScriptedTrips([1, 1]), concurrency=2, evaluations=e, stops=StopRules(max_versions=4)) for e in worlds]
    assert len({played.sha256 for played in plays}) == 1
    every = [(e.ticks, e.version, e.scores[0].loss) for e in plays[1].evaluations]
    assert every == [(0, 0, 0.0), (1_000_000, 1, 1.0), (1_000_000, 2, 2.0), (2_000_000, 3, 3.0), (2_000_000, 4, 4.0)]
    clock = [(e.ticks, e.version) for e in plays[2].evaluations]
    assert clock == [(0, 0), (700_000, 0), (1_400_000, 2), (2_000_000, 4)]
    assert [e.version for e in plays[0].evaluations] == [4]


def test_segment_size_and_batches_change_neither_rows_nor_hash():
    """The log is the same whatever the segment size; long worlds settle in several batches."""
    worlds = {"stops": StopRules(max_updates=6_000), "concurrency": 7}
    small = play(ScriptedTrips([1, 1.5, 0.25, 3, 7, 2, 2, 4], download=0.25, upload=0.5), segment_rows=1_000, **worlds)
    large = play(ScriptedTrips([1, 1.5, 0.25, 3, 7, 2, 2, 4], download=0.25, upload=0.5), **worlds)
    assert small.sha256 == large.sha256
    assert small.rows() == large.rows()
    assert {len(segment.rows) for segment in small.sink[:-1]} == {1_000}


def test_what_cannot_be_played_is_refused_by_name():
    """Trips without transfers where no links are shared, and early-stopped outcomes, are named, not ignored."""
    with pytest.raises(RefusedError, match="go with shared links"):
        play(ScriptedTrips([1], contended=True))
    with pytest.raises(RefusedError, match="early stopping"):
        play(ScriptedTrips([1]), concurrency=1, outcome=lambda _j, _s, outcome: outcome._replace(stopped=True))


def test_rounds_that_are_abandoned_for_ever_are_an_error():
    """A deadline below the fastest client with cancelled stragglers ends with a named error, not an endless run; CASES EV-02."""
    from desim_fl.strategies.fedavg import FedAvg  # noqa: PLC0415

    strategy = FedAvg(clients_per_round=2, deadline_s=0.5, cancel_stragglers=True)
    with pytest.raises(StalledError, match=r"rounds in a row were abandoned.*max_time_s"):
        play(ScriptedTrips([1, 1]), strategy=strategy, concurrency=2, stops=StopRules(max_updates=3))
    bounded = play(
        ScriptedTrips([1, 1]), strategy=strategy, concurrency=2, stops=StopRules(max_ticks=5_000_000, max_updates=3)
    )
    assert len(bounded.rows("abandon")) == 10


def test_a_strategy_that_answers_with_anything_else_is_named():
    """No tuple, or something that is no Reply, is a RunError naming strategy, event and job."""

    class Mute(Plain):
        def arrive(self, state, view, update):
            return None

    class Wrong(Plain):
        def arrive(self, state, view, update):
            return state, 1.0

    with pytest.raises(RunError, match=r"strategy Mute failed in arrive about job 0 \(client 0, from version 0\)"):
        play(ScriptedTrips([1]), strategy=Mute(), concurrency=1)
    with pytest.raises(RunError, match=r"Wrong must answer arrive .* with \(state, Reply\) .*not with a float"):
        play(ScriptedTrips([1]), strategy=Wrong(), concurrency=1)


def test_a_strategy_that_fails_at_the_end_is_named():
    """Finish is asked once at the stop; raising there, or answering with None, is a RunError that names it."""

    class Late(Plain):
        def finish(self, state, view):
            raise ValueError("too late")

    class Silent(Plain):
        def finish(self, state, view):
            return None

    with pytest.raises(RunError, match="strategy Late failed in finish: ValueError: too late"):
        play(ScriptedTrips([1]), strategy=Late(), concurrency=1)
    with pytest.raises(RunError, match=r"Silent must answer finish .*not with a NoneType"):
        play(ScriptedTrips([1]), strategy=Silent(), concurrency=1)


def test_rejections_without_end_are_an_error():
    """Clients without examples, and only a version stop: a named error instead of an endless run; CASES EV-02, AG-04."""
    with pytest.raises(StalledError, match=r"rejected .*as no examples.*max_versions is never reached"):
        play(ScriptedTrips([1, 1]), concurrency=2, sizes=[0, 0], stops=StopRules(max_versions=1))


def test_an_arrival_beyond_all_time_is_an_error():
    """Legs that are sound one by one but add up beyond 2**62 ticks are refused, naming the client; CASES EV-08."""
    with pytest.raises(RunError, match="client 0: its job number 3 would arrive after 146,000 years"):
        play(ScriptedTrips([1.4e12]), concurrency=1, stops=StopRules(max_updates=50))


def test_a_strategy_that_changes_shared_parameters_is_named():
    """In-place arithmetic on the global model would reach jobs in flight: it is an error, not a silent fault (AG-07)."""
    import torch  # noqa: PLC0415

    class Careless(Plain):
        def arrive(self, state, view, update):
            view.params.add_(1.0)
            return super().arrive(state, view, update)

    with pytest.raises(RunError, match="Careless changed shared parameters in place in arrive about job 0"):
        play(ScriptedTrips([1]), strategy=Careless(), concurrency=1, start=torch.zeros(3))


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ({"sends": Send(2)}, "sends"),
        ({"sends": (Send(-1),)}, "sends"),
        ({"sends": (Send(clients=("a",)),)}, "sends"),
        ({"sends": (Send(work=Work(epochs=1, steps=-3)),)}, "sends"),
        ({"sends": (Send(work=Work(lr=math.nan)),)}, "sends"),
        ({"stops": (3,)}, "stops"),
        ({"alarms": Alarm("a", 1.0)}, "alarms"),
        ({"alarms": (Alarm("a", "soon"),)}, "alarms"),
        ({"keep": (1, 2)}, "keep"),
        ({"shares": 0.5}, "shares"),
        ({"shares": ((0, math.nan),)}, "shares"),
        ({"weight": "heavy"}, "weight"),
        ({"reject": 5}, "reject"),
        ({"abandon": 1}, "abandon"),
        ({"params": [1.0]}, "params like the model's"),
    ],
)
def test_unsound_replies_are_named_before_they_do_harm(reply, told):
    """Whatever of a reply has the wrong type or range is a RunError naming strategy, job and field."""

    class Odd(Plain):
        def arrive(self, state, view, update):
            return state, Reply(params=view.params + 1.0)._replace(**reply)

    with pytest.raises(RunError, match=f"strategy Odd must answer arrive about job 0 .*{told}"):
        play(ScriptedTrips([1, 1]), strategy=Odd(), concurrency=1)


def test_a_model_of_another_shape_or_type_is_refused():
    """A tensor of another length or precision cannot become the next version; CASES AS-04."""
    import torch  # noqa: PLC0415

    for wrong in (torch.zeros(4), torch.zeros(3, dtype=torch.float64), 1.0):

        class Other(Plain):
            def arrive(self, state, view, update, wrong=wrong):
                return state, Reply(params=wrong)

        with pytest.raises(RunError, match="params like the model's"):
            play(ScriptedTrips([1]), strategy=Other(), concurrency=1, start=torch.zeros(3))


def test_old_versions_are_protected_too():
    """Changing the parameters that an old job started from is noticed as well; CASES AG-07."""
    import torch  # noqa: PLC0415

    class Digger(Plain):
        def arrive(self, state, view, update):
            if update.staleness:
                update.job.params.mul_(0.5)
            return super().arrive(state, view, update)

    with pytest.raises(RunError, match="Digger changed shared parameters in place"):
        play(ScriptedTrips([1, 2.5]), strategy=Digger(), concurrency=2, start=torch.zeros(3))
