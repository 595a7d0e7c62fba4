"""What strategies, selectors and executors can express: a tiny one for each, played against results worked by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from test_random_worlds import engine_of
from worlds import Plain, ScriptedTrips, play

from desim_fl import standstill
from desim_fl.algebra import Null
from desim_fl.assignment import Assignment
from desim_fl.core import Alarm, Model, Reply, Send, Stop, Work
from desim_fl.errors import RefusedError, RunError, StalledError
from desim_fl.executors.null import NullExecutor
from desim_fl.laws import Audit, Row
from desim_fl.selection import RoundRobin
from desim_fl.world import StopRules, World


def _sound(played):
    """The play itself, once the audit has found nothing in its rows."""
    rows = [Row(seq, *row) for seq, row in enumerate(played.sink.tuples())]
    assert list(Audit().problems(rows)) == []
    return played


@dataclass(frozen=True)
class Ending(Plain):
    """Publishes every arrival; the first one ends job 1 in some way."""

    how: str = "cancel"

    def arrive(self, state, view, update):
        state, reply = super().arrive(state, view, update)
        return state, reply._replace(stops=(Stop(1, self.how),) if 1 in view.flying and update.job.id == 0 else ())


def test_cancel_a_running_job():
    """At the first arrival (1 s) the slow job is cancelled one version old, both places are refilled at once."""
    played = _sound(play(ScriptedTrips([1, 9]), strategy=Ending(), concurrency=2, stops=StopRules(max_updates=2)))
    assert played.rows("cancel") == [(1, "cancel", 1, 1, 1, 1)]
    assert [(t, client, v) for t, _, client, _, v, _ in played.rows("dispatch")][2:4] == [(1, 0, 1), (1, 1, 1)]
    assert 1 in played.executor.released
    assert [row[3] for row in played.rows("computed")] == [0, 2]
    assert played.engine.ledger.cancelled == 1


@pytest.mark.parametrize(
    ("how", "arrives", "steps"),
    [("epoch", 5.0, 4), ("step", 4.0, 3)],
)
def test_a_running_job_reports_at_its_next_boundary(how, arrives, steps):
    """8 steps of 1 s in 4 epochs, asked at 3 s: the epoch ends at 4 s, the step at 3 s sharp; the upload adds 1 s."""
    trips = ScriptedTrips([2, 8], upload=1)
    played = _sound(
        play(trips, strategy=Ending(how=how), concurrency=2, steps=2, epochs=4, stops=StopRules(max_ticks=6_000_000))
    )
    assert [(t, job) for t, _, _, job, *_ in played.rows("arrive") if job == 1] == [(arrives, 1)]
    assert [t for t, _, _, job, *_ in played.rows("computed") if job == 1] == [arrives - 1]
    done = dict(zip([(row[1], row[3]) for row in played.rows()], played.sink.notes("steps"), strict=True))
    assert (done["dispatch", 1], done["arrive", 1]) == (8, steps)
    assert played.engine.usage.accounts[1].legs.compute == (arrives - 1) * 1_000_000 + (
        played.engine.final_ticks - round(arrives * 1_000_000)
    )


def test_a_job_that_would_be_lost_reports_before():
    """Lost at 7 s, but asked at 3 s to report at its next epoch: it arrives at 5 s, with the end of its computing at 4 s."""
    trips = ScriptedTrips([2, 8], upload=1, lost={(1, 0): (7.0, "crash")})
    played = _sound(
        play(
            trips, strategy=Ending(how="epoch"), concurrency=2, steps=2, epochs=4, stops=StopRules(max_ticks=8_000_000)
        )
    )
    assert [row[:2] for row in played.rows("computed", "arrive", "lose") if row[3] == 1] == [
        (4, "computed"),
        (5, "arrive"),
    ]


@pytest.mark.parametrize(
    ("download", "wait", "asked", "arrives", "steps"),
    [
        (1, 1, 6.5, 7.5, 4),  # computing began at 2 s: 4.5 steps of 1 s, 4 of them whole
        (1, 1, 6.0, 7.0, 4),  # a step that ends in that very instant counts
        (1, 1, 1.5, 2.5, 0),  # waiting: turns back at once with what it was given
        (1, 1, 0.5, 2.0, 0),  # still on its way there: turns back when it is there
        (1, None, 0.5, 2.0, 0),
        (1, 1, 10.5, 11.0, 8),  # already on its way back: nothing to shorten
    ],
)
def test_a_running_job_reports_at_once(download, wait, asked, arrives, steps):
    """8 steps of 1 s, asked for what is done by now: whole steps count, none of them is nothing, the upload adds 1 s."""

    class Polled(Plain):
        def start(self, view):
            return None, Reply(alarms=(Alarm("poll", asked),))

        def alarm(self, state, view, name):
            return state, Reply(stops=(Stop(0, "now"),), sends=())

    trips = ScriptedTrips([8], download=download, wait=wait, upload=1)
    played = _sound(play(trips, strategy=Polled(), concurrency=1, steps=8, stops=StopRules(max_updates=1)))
    assert played.arrivals() == [(arrives, 0, 0)]
    notes = dict(zip([row[1] for row in played.rows()], played.sink.notes("steps"), strict=True))
    assert (notes["dispatch"], notes["arrive"]) == (8, steps)
    assert sum(played.engine.usage.accounts[0].legs) == round(arrives * 1_000_000)


def test_a_job_that_reports_early_keeps_its_place_among_those_of_an_instant():
    """Job 0, cut short at 6.5 s, and job 1, planned from the start for 7.5 s, land in one instant: by number, as ever."""

    class Polled(Plain):
        def start(self, view):
            return None, Reply(alarms=(Alarm("poll", 6.5),))

        def alarm(self, state, view, name):
            return state, Reply(stops=(Stop(0, "now"),), sends=())

    trips = ScriptedTrips([8, 6.5], upload=1)
    played = _sound(play(trips, strategy=Polled(), concurrency=2, steps=8, stops=StopRules(max_updates=2)))
    assert [(t, job) for t, _, _, job, *_ in played.rows("arrive")] == [(7.5, 0), (7.5, 1)]


@pytest.mark.parametrize("how", ["cancel", "epoch", "step", "now"])
def test_the_old_landing_of_a_stopped_job_never_happens(how):
    """Played on beyond the instant at which the job would have landed, each job still lands once at most."""
    trips = ScriptedTrips([2, 8], upload=1)
    played = _sound(
        play(trips, strategy=Ending(how=how), concurrency=2, steps=2, epochs=4, stops=StopRules(max_ticks=30_000_000))
    )
    landed = [row[3] for row in played.rows("arrive", "cancel")]
    assert len(landed) == len(set(landed))
    assert 1 in landed


def test_stopping_what_does_not_fly_or_in_an_unknown_way_is_an_error():
    """A stop names a job in flight and one of three ways, or the run says what is wrong."""
    with pytest.raises(RefusedError, match='how = "gently"'):
        play(ScriptedTrips([1, 9]), strategy=Ending(how="gently"), concurrency=2)

    class Ghost(Plain):
        def arrive(self, state, view, update):
            return state, super().arrive(state, view, update)[1]._replace(stops=(Stop(77),))

    with pytest.raises(RunError, match="job 77, which is not in flight"):
        play(ScriptedTrips([1]), strategy=Ghost(), concurrency=1)


def test_send_that_client_again():
    """Asynchronous SGD: who arrives leaves again, so clients of 1 s and 3 s keep their own beat."""

    class Again(Plain):
        def start(self, view):
            return None, Reply(sends=(Send(clients=tuple(range(view.clients))),))

        def arrive(self, state, view, update):
            reply = super().arrive(state, view, update)[1]
            return state, reply._replace(sends=(Send(clients=(update.job.client,)),))

    played = _sound(play(ScriptedTrips([1, 3]), strategy=Again(), concurrency=2, stops=StopRules(max_updates=6)))
    assert played.arrivals() == [(1, 0, 0), (2, 0, 0), (3, 1, 2), (3, 0, 1), (4, 0, 0), (5, 0, 0)]


def test_send_to_a_group():
    """FedAT's tiers: each arrival refills its own group; the two slow clients take turns at 4 s each."""

    class Tiers(Plain):
        def start(self, view):
            return None, Reply(sends=tuple(Send(group=group, tag=tag) for tag, group in enumerate(view.groups)))

        def arrive(self, state, view, update):
            group = list(view.groups)[update.job.tag]
            reply = super().arrive(state, view, update)[1]
            return state, reply._replace(sends=(Send(group=group, tag=update.job.tag),))

    played = _sound(
        play(
            ScriptedTrips([3, 4, 3, 4]),
            strategy=Tiers(),
            groups={"fast": (0, 2), "slow": (1, 3)},
            concurrency=2,
            stops=StopRules(max_ticks=9_000_000),
        )
    )
    assert [(t, c) for t, c, _ in played.arrivals()] == [(3, 0), (4, 1), (6, 2), (8, 3), (9, 0)]
    with pytest.raises(RefusedError, match='group "fast"'):
        play(ScriptedTrips([1]), strategy=_Asking(send=Send(group="fast")), concurrency=1)


@dataclass(frozen=True)
class _Asking(Plain):
    """Begins with one send."""

    send: Send = field(default_factory=Send)

    def start(self, view):
        return None, Reply(sends=(self.send,))


def test_start_from_an_older_version():
    """FedAsync's sampled staleness: every job starts from version 0, so the k-th arrival is k versions old; CASES AS-01."""

    class Old(Plain):
        def start(self, view):
            return view.model, Reply(sends=(Send(),))

        def arrive(self, state, view, update):
            reply = super().arrive(state, view, update)[1]
            return state, reply._replace(sends=(Send(start=state),))

    played = _sound(
        play(ScriptedTrips([1]), strategy=Old(), learn=lambda job: 2 * job.params + 1, start=3.0, concurrency=1,
             stops=StopRules(max_updates=4))
    )  # fmt: skip
    assert [staleness for *_, staleness in played.arrivals()] == [0, 1, 2, 3]
    assert [row[4] for row in played.rows("dispatch")] == [0, 0, 0, 0]
    assert {job.params for job, _ in played.executor.submitted} == {3.0}
    assert played.engine.model.params == 3 + 4 * 4  # each delta is 2 * 3 + 1 - 3


def test_client_memory_and_extra_broadcasts():
    """SCAFFOLD's shape: the control c goes down with each job, the client's own variate comes back next time."""

    class Control(Plain):
        def start(self, view):
            return 0.0, Reply(sends=(Send(extra=0.0),))

        def arrive(self, state, view, update):
            state += update.outcome.extra
            return state, Reply(params=view.params + update.delta, sends=(Send(extra=state),))

    seen = []

    def variate(job, _steps, outcome):
        seen.append((job.client, job.extra, job.memory))
        own = (job.memory or 0.0) + 1.0 + job.client
        return outcome._replace(params=job.params + job.extra - (job.memory or 0.0), memory=own, extra=1.0)

    played = play(ScriptedTrips([1, 1]), strategy=Control(), outcome=variate, concurrency=1, select="round_robin",
                  stops=StopRules(max_updates=4))  # fmt: skip
    assert seen == [(0, 0.0, None), (1, 1.0, None), (0, 2.0, 1.0), (1, 3.0, 2.0)]
    assert played.engine.model.params == 0 + 1 + (2 - 1) + (3 - 2)


def test_caches_by_client_held_by_the_engine():
    """CA2FL's and MIFA's table: each arrival gives its change against the client's last delta, and is kept."""

    class Cached(Plain):
        def arrive(self, state, view, update):
            step = update.delta - (update.cache or 0.0)
            return state, Reply(params=view.params + step, keep=((update.job.client, update.delta),))

    deltas = {0: [1.0, 4.0], 1: [10.0, 20.0]}
    played = play(
        ScriptedTrips([1, 1]), strategy=Cached(), concurrency=1, select="round_robin",
        learn=lambda job: job.params + deltas[job.client][job.nth], stops=StopRules(max_updates=4),
    )  # fmt: skip
    assert [evaluation.scores[0].loss for evaluation in played.evaluations] == [24.0]  # the sum of the latest deltas


def test_caches_can_be_looked_at_in_any_event():
    """A server that looks by the clock finds what it last asked to be kept for each client, and nothing for others."""
    seen = []

    class Looking(Plain):
        def start(self, view):
            return None, Reply(alarms=(Alarm("look", 3.5),))

        def arrive(self, state, view, update):
            return state, Reply(keep=((update.job.client, update.job.id),))

        def alarm(self, state, view, name):
            seen.extend(view.cache(client) for client in range(view.clients))
            return state, Reply(sends=())

    trips = ScriptedTrips([1, 2, 9])  # one after another: client 0 is back at 1 s, client 1 at 3 s, client 2 is out
    play(trips, strategy=Looking(), select="round_robin", concurrency=1, stops=StopRules(max_ticks=4_000_000))
    assert seen == [0, 1, None]


def test_several_named_alarms():
    """Alarms of 1 s and 2 s ring by name; one set anew rings once, later; one taken back never; ties by setting."""

    class Clocks(Plain):
        def start(self, view):
            alarms = (Alarm("b", 2.0), Alarm("a", 1.0), Alarm("never", 1.5), Alarm("late", 0.5), Alarm("late", 2.0))
            return (), Reply(alarms=alarms)

        def alarm(self, state, view, name):
            state += (name,)
            back = (Alarm("never", None), Alarm("a", 1.0)) if state == ("a",) else ()
            return state, Reply(alarms=back, sends=())

    played = _sound(play(ScriptedTrips([9]), strategy=Clocks(), concurrency=1, stops=StopRules(max_ticks=3_000_000)))
    rung = zip(played.rows(), played.sink.notes("reason"), strict=True)
    assert [(row[0], reason) for row, reason in rung if row[1] == "alarm"] == [
        (1, "a"),
        (2, "b"),
        (2, "late"),
        (2, "a"),
    ]
    assert {row[2:4] for row in played.rows("alarm")} == {(-1, -1)}


def test_an_alarm_may_publish():
    """A publish by the clock names no job: rows alarm, publish (-1, -1)."""

    class Tick(Plain):
        def start(self, view):
            return 0.0, Reply(alarms=(Alarm("tick", 2.5),))

        def arrive(self, state, view, update):
            return state + update.delta, Reply()

        def alarm(self, state, view, name):
            return 0.0, Reply(params=view.params + state, alarms=(Alarm("tick", 2.5),))

    played = _sound(play(ScriptedTrips([1]), strategy=Tick(), concurrency=1, stops=StopRules(max_versions=2)))
    assert played.rows("publish") == [(2.5, "publish", -1, -1, 1, -1), (5, "publish", -1, -1, 2, -1)]
    assert played.arrivals() == [(1, 0, 0), (2, 0, 0), (3, 0, 1), (4, 0, 0), (5, 0, 0)]
    assert played.engine.model.params == 5.0


def test_server_optimiser_state():
    """Server momentum 1/2 lives in the strategy's state: deltas of 1 give steps 1, 1.5 and 1.75."""

    class Momentum(Plain):
        def start(self, view):
            return 0.0, Reply()

        def arrive(self, state, view, update):
            state = 0.5 * state + update.delta
            return state, Reply(params=view.params + state)

    played = play(ScriptedTrips([1]), strategy=Momentum(), concurrency=1, stops=StopRules(max_updates=3))
    assert played.engine.model.params == 1 + 1.5 + 1.75


@dataclass(frozen=True)
class Worst:
    """Chooses the client that reported the highest loss; unheard ones first, by number."""

    reads_outcomes: bool = True

    def start(self):
        """Nothing has been heard."""
        return {}

    def hear(self, state, client, loss):
        """Remember a client's last loss."""
        return {**state, client: loss}

    def choose(self, state, view, roster, send, number):
        """The idle clients by falling loss."""
        del number
        idle = [client for client in range(view.clients) if roster.is_selectable(client)]
        ranked = sorted(idle, key=lambda client: -state.get(client, float("inf")))
        return state, tuple(ranked[: send.count])


def test_selection_that_reads_outcomes():
    """With losses 1, 5 and 3 the chooser of the worst client sends 0, 1, 2 out and then client 1 for ever."""
    losses = (1.0, 5.0, 3.0)
    played = play(
        ScriptedTrips([1, 1, 1]), select=Worst(), concurrency=1, stops=StopRules(max_updates=6),
        outcome=lambda job, _steps, outcome: outcome._replace(loss=losses[job.client]),
    )  # fmt: skip
    assert [client for _, client, _ in played.arrivals()] == [0, 1, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("send", "said"),
    [
        (Send(clients=(3, 3)), r"clients \(3, 3\); one send names distinct client numbers from 0 to 3"),
        (Send(clients=(0, 4)), r"clients \(0, 4\)"),
        (Send(clients=(-1,)), r"clients \(-1,\)"),
        (Send(start=Model(1, 0.0)), "sends version 1 out, but the server is at version 0"),
    ],
)
def test_sends_that_make_no_sense_are_errors(send, said):
    """A client twice, a client that does not exist and a version that does not exist yet are named; CASES SA-02."""
    with pytest.raises(RunError, match=said):
        play(ScriptedTrips([1] * 4), strategy=_Asking(send=send), concurrency=2)


@pytest.mark.parametrize("after_s", [float("nan"), -1.0, float("inf")])
def test_an_alarm_that_can_never_ring_is_an_error(after_s):
    """An alarm after no duration is an error with the alarm's name; CASES EV-08."""

    class Broken(Plain):
        def start(self, view):
            return None, Reply(alarms=(Alarm("tea", after_s),))

    with pytest.raises(RunError, match='alarm "tea": a duration of'):
        play(ScriptedTrips([1]), strategy=Broken(), concurrency=1)


def test_an_alarm_that_rings_for_ever_in_one_instant_is_an_error(monkeypatch):
    """An alarm that sets itself again without delay would hold the clock: a named error instead; CASES EV-02."""
    monkeypatch.setattr(standstill, "_SAME_INSTANT_LIMIT", 500)

    class Restless(Plain):
        def start(self, view):
            return None, Reply(alarms=(Alarm("now", 0.0),))

        def alarm(self, state, view, name):
            return state, Reply(alarms=(Alarm("now", 0.0),))

    with pytest.raises(StalledError, match=r'the alarm "now" rings again and again at t = 0\.0 s'):
        play(ScriptedTrips([1]), strategy=Restless(), concurrency=1)


def test_another_amount_of_work():
    """FedProx's partial work: a send may ask for its own epochs, steps and rate; what it leaves open is filled in."""
    for asked, expected in (
        (Work(epochs=3), (3, 6, 0.05)),
        (Work(steps=5), (3, 5, 0.05)),
        (Work(lr=0.5), (4, 8, 0.5)),
    ):
        played = play(ScriptedTrips([1]), strategy=_Asking(send=Send(work=asked)), steps=2, epochs=4, concurrency=1,
                      stops=StopRules(max_updates=1))  # fmt: skip
        work = played.executor.submitted[0][0].work
        assert (work.epochs, work.steps, work.lr) == expected


@pytest.mark.parametrize(
    ("send", "named"),
    [(Send(work=Work(part=(0, 1))), r"Work\.part"), (Send(secret=True), r"Send\.secret")],
)
def test_sends_that_cannot_be_played_yet_are_refused_by_name(send, named):
    """Sub-models and secure groups are words of the language; playing them is refused with their name."""
    with pytest.raises(RefusedError, match=named):
        play(ScriptedTrips([1]), strategy=_Asking(send=send), concurrency=1)


def test_contended_links_and_early_stopping_are_refused_by_name():
    """Trips without transfers where no links are shared, and local training that ends early, are refused by name; CASES RE-05."""
    with pytest.raises(RefusedError, match=r"Trips\.contended"):
        play(ScriptedTrips([1], contended=True))
    with pytest.raises(RefusedError, match=r"early stopping.*Outcome\.stopped"):
        play(ScriptedTrips([1]), concurrency=1, outcome=lambda _j, _s, outcome: outcome._replace(stopped=True))


def _planned(strategy, selector):
    return World(
        strategy=strategy, selector=selector, trips=ScriptedTrips([1]), executor=NullExecutor([1]),
        assignment=Assignment([1]), sizes=[1], model=Model(0, Null), average=lambda base, _: base,
        stops=StopRules(max_updates=1), timing_only=True,
    )  # fmt: skip


def test_plan_refuses_what_reads_outcomes_by_name():
    """Without training, a strategy or selector that reads trained values is refused, naming its class."""

    class LossAware(Plain):
        pass

    with pytest.raises(RefusedError, match=r"strategy LossAware reads trained values \(reads_outcomes\)"):
        _planned(LossAware(reads_outcomes=True), RoundRobin((0,)))
    with pytest.raises(RefusedError, match=r"selector Worst reads trained values \(reads_outcomes\)"):
        _planned(Plain(), Worst())
    assert _planned(Plain(), RoundRobin((0,))).timing_only


def test_plan_catches_a_strategy_that_does_not_declare_what_it_reads():
    """A decision on parameters that were never trained is an error, not a guess."""

    class Sly(Plain):
        def arrive(self, state, view, update):
            return state, Reply(params=view.params) if update.delta > 0 else Reply()

    from desim_fl.engine import Engine  # noqa: PLC0415
    from desim_fl.eventlog import EventLog  # noqa: PLC0415

    with pytest.raises(RefusedError, match="reads_outcomes"):
        Engine(_planned(Sly(), RoundRobin((0,))), EventLog()).run()


@pytest.mark.parametrize("name", ["fedasync", "fedbuff", "fedavg"])
def test_plan_gives_the_timeline_of_the_run(name):
    """Null parameters drive the built-in strategies through the same rows as floats."""
    from reference import Legs, Method, Setting  # noqa: PLC0415

    legs = tuple((Legs(1, 0, 2 + client % 3, 1),) for client in range(6))
    method = Method(name, buffer_size=2, goal=2, over_selection=1.5, deadline_ticks=5, max_staleness=None)
    setting = Setting(
        sizes=(1, 2, 3, 0, 5, 6), trips=legs, losses={(1, 0): 2}, bad=frozenset({(2, 0)}), method=method,
        selection="uniform", order=(), seed=5, dispatch="immediate", concurrency=3, max_updates=40, max_ticks=1000,
    )  # fmt: skip
    run, plan = engine_of(setting), engine_of(setting, plan=True)
    assert run.engine.run() == plan.engine.run()
    assert run.sink.tuples() == plan.sink.tuples()
    assert plan.engine.model.params is Null
    assert plan.evaluations == []
