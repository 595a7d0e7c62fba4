"""The promises of strategies: each of ours keeps them, and strategies that break one are caught at the call that does."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from desim_fl.algebra import Null, norm
from desim_fl.core import Alarm, Model, Reply, Send, Stop
from desim_fl.errors import PromiseError, ScenarioError
from desim_fl.strategies import TABLE, FedAsync, FedAvg, FedBuff, build
from desim_fl.strategies.optimized import Optimized
from desim_fl.strategies.optimizers import NAMES, ServerOptimizer
from desim_fl.strategies.schedules import Cosine
from desim_fl.testing import PROMISES, SELECTOR_PROMISES, Kept, Playground, Scene, check_selector, check_strategy
from desim_fl.testing.watching import same

K2 = {"buffer_size": 2}
ROUNDS = {"clients_per_round": 2}
MEAN = FedBuff(buffer_size=2, staleness="constant")
# Each method with options that make it publish in a short play; beside some the rule that it is where nothing is stale.
TABLE_OF_PROMISES: list[tuple[str, dict, Scene]] = [
    ("fedasync", {}, Scene(fresh_as=FedAsync(staleness="constant"))),
    ("fedasync", {"mixing": "delta", "staleness": "hinge", "staleness_offset": 1}, Scene()),
    ("fedasync", {"sampled_staleness": 3}, Scene()),
    ("fedbuff", K2, Scene(fresh_as=MEAN)),
    ("fedbuff", {**K2, "normalize": "sum_w", "flush_at_end": True}, Scene(fresh_as=MEAN)),
    ("fedbuff", {"buffer_size": 3, "normalize": "none", "staleness": "hinge"}, Scene(policy="after_aggregation")),
    ("asyncsgd", {}, Scene(fresh_as=FedAsync(alpha=1.0, mixing="delta", staleness="constant"))),
    ("asyncsgd", {"delay_rule": "koloskova", "threshold": 1}, Scene(fresh_as=build("asyncsgd", {}))),
    ("asyncsgd", {"delay_rule": "koloskova", "beyond": "drop", "threshold": 1}, Scene()),
    ("asyncsgd", {"delay_rule": "mishchenko", "workers": "sampled"}, Scene(fresh_as=build("asyncsgd", {}))),
    ("fadas", K2, Scene(fresh_as=build("fadas", {**K2, "delay_adaptive": False}))),
    ("fadas", {**K2, "bias_correction": False, "delay_rule": "formula"}, Scene()),
    ("ca2fl", K2, Scene()),
    ("port", {"min_clients": 2, "staleness_bound": 2}, Scene(fresh_as=build("port", {"min_clients": 2}))),
    ("port", {"min_clients": 3, "beta": 0.0}, Scene()),
    ("area", {"buffer_size": 2}, Scene()),
    ("asofed", {}, Scene()),
    ("fedasmu_static", {}, Scene(fresh_as=build("fedasmu_static", {"sigma": 0.0}))),
    ("fedfa", {}, Scene()),
    ("fedfa", {"content": "delta", "fill": "initial"}, Scene()),
    ("ringmaster", {"delay_threshold": 2}, Scene(fresh_as=build("ringmaster", {}))),
    ("ringmaster", {"delay_threshold": 2, "stop": True}, Scene(fresh_as=build("ringmaster", {}))),
    ("rennala", {"batch": 2}, Scene(fresh_as=MEAN)),
    ("rennala", {"batch": 3, "stop_unfinished": True}, Scene()),
    ("malenia", {}, Scene()),
    ("malenia", {"gradients": 8}, Scene(events=80)),
    ("ringleader", {}, Scene()),
    ("fedstale", K2, Scene()),
    ("fedstale", {**K2, "beta": 0.0}, Scene(fresh_as=MEAN)),
    ("fedvarp", K2, Scene(policy="after_aggregation")),
    ("mifa", K2, Scene()),
    ("quafl", {"contacted": 2}, Scene()),
    ("quafl", {"contacted": 3, "scale_rate": True, "lr": 0.1}, Scene()),
    ("favas", {"contacted": 2}, Scene()),
    ("favas", {"contacted": 3, "scaling": "realized"}, Scene()),
    ("fedavg", {"clients_per_round": 3, "over_selection": 1.5}, Scene()),
    ("fedavg", {**ROUNDS, "deadline_s": 3.0, "min_fraction": 0.5, "cancel_stragglers": True, "server_lr": 0.5}, Scene()),
    ("fedavg", {**ROUNDS, "partial_work": "drop", "weights": "uniform"}, Scene()),
    ("fedprox", ROUNDS, Scene(fresh_as=FedAvg(2))),
    ("fedavgm", {**ROUNDS, "beta": 0.0}, Scene(fresh_as=FedAvg(2))),
    ("fedavgm", ROUNDS, Scene()),
    ("fedadagrad", ROUNDS, Scene()),
    ("fedadam", {**ROUNDS, "bias_correction": True}, Scene()),
    ("fedyogi", ROUNDS, Scene()),
    ("fednova", ROUNDS, Scene()),
    ("scaffold", {**ROUNDS, "over_selection": 2.0}, Scene(fresh_as=FedAvg(2, over_selection=2.0, weights="uniform"))),
    ("semi_async", {"clients_per_version": 2, "staleness": "polynomial"}, Scene(policy="after_aggregation")),
    ("semi_async", {"clients_per_version": 2, "mixing": "delta"}, Scene(fresh_as=build("semi_async", {"clients_per_version": 2}))),
    ("safa", {"fraction": 0.3, "lag_tolerance": 1, "round_limit_s": 5.0}, Scene()),
    ("fedat", {"clients_per_round": 1, "tiers": 2}, Scene(tiers=2)),
    ("fedat", {"clients_per_round": 2, "tiers": 1, "deadline_s": 9.0}, Scene(tiers=1, fresh_as=FedAvg(2))),
    ("tifl", {**ROUNDS, "tiers": 2}, Scene(tiers=2)),
    ("tifl", {**ROUNDS, "tiers": 2, "adaptive": True, "interval": 2, "credits": (3, 9)}, Scene(tiers=2)),
]  # fmt: skip
WITH_OPTIMIZERS = [
    Optimized(rule, ServerOptimizer(name), Cosine(5))
    for name in NAMES
    for rule in (FedBuff(buffer_size=2), FedAvg(2, over_selection=1.5, deadline_s=1.0))
]
ALWAYS = set(PROMISES) - {"fresh", "order", "no trace", "timeline", "null"}


@cache
def checked(number: int) -> Kept:
    """What was found of one line of the table."""
    name, options, scene = TABLE_OF_PROMISES[number]
    return check_strategy(name, scene, **options)


@pytest.mark.parametrize(
    "number", range(len(TABLE_OF_PROMISES)), ids=lambda number: " ".join(map(str, TABLE_OF_PROMISES[number][:2]))
)
def test_every_method_keeps_its_promises(number):
    """Pure, storable, Null for Null, weights as promised, no trace of what must not count, going on after losses; CASES AG-05, AG-06."""
    (name, options, scene), (kept, unchecked) = TABLE_OF_PROMISES[number], checked(number)
    assert set(kept) >= ALWAYS
    assert "no trace" in kept  # each play has non-finite updates
    assert ("fresh" in unchecked) == (scene.fresh_as is None)
    assert {"timeline", "null"} <= set(kept) or build(name, options).reads_outcomes


@pytest.mark.parametrize("strategy", WITH_OPTIMIZERS, ids=repr)
def test_optimisers_of_the_server_keep_them_too(strategy):
    """Any method under any optimiser, with a schedule."""
    assert set(check_strategy(strategy).unchecked) <= {"fresh", "order"}


def test_the_whole_table_is_checked_and_buffers_are_order_free():
    """No method is left out; methods whose versions are made of several updates of one version take them in any order."""
    assert {name for name, _, _ in TABLE_OF_PROMISES} == set(TABLE)
    joint = {"fedbuff", "ca2fl", "fadas", "fedavg", "fednova", "scaffold", "rennala", "port", "malenia", "fedstale"}
    numbers = [number for number, (name, _, _) in enumerate(TABLE_OF_PROMISES) if name in joint]
    assert {TABLE_OF_PROMISES[number][0] for number in numbers if "order" in checked(number).kept} == joint


# ---- one broken strategy for each promise


@dataclass(frozen=True)
class Sound:
    """Adds every delta; what the broken ones are made from."""

    rate: float = 0.5
    reads_outcomes: bool = False
    max_staleness: int | None = None

    def start(self, view):
        return (), Reply()

    def arrive(self, state, view, update):
        return state, Reply(
            params=view.params + self.rate * update.counts * update.delta, weight=self.rate * update.counts
        )

    def lose(self, state, view, loss):
        return state, Reply()

    def alarm(self, state, view, name):
        return state, Reply()


class Box:
    """Something that no checkpoint has a form for."""

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, Box) and self.value == other.value

    __hash__ = None


class Boxed(Sound):
    """Keeps its state in an object that no checkpoint can hold."""

    def start(self, view):
        return Box(0), Reply()


class Lambda(Sound):
    """Cannot be pickled."""

    def __init__(self):
        object.__setattr__(self, "weigh", lambda tau: 1.0 / (1 + tau))


class Remembers(Sound):
    """Counts arrivals in itself instead of in its state."""

    def __init__(self):
        object.__setattr__(self, "seen", [])

    def arrive(self, state, view, update):
        self.seen.append(update.job.id)
        return state, Reply(params=view.params + update.counts * update.delta / len(self.seen))


class Adding(Sound):
    """Adds into the array of the model in force."""

    def arrive(self, state, view, update):
        params = view.params
        params += update.counts * update.delta
        return state, Reply(params=params)


class Appending(Sound):
    """Appends to the list in its state."""

    def start(self, view):
        return [], Reply()

    def arrive(self, state, view, update):
        state.append(update.job.id)
        return Sound.arrive(self, state, view, update)


class Listing(Sound):
    """Answers with a list where a tuple of Send belongs."""

    def lose(self, state, view, loss):
        return state, Reply(sends=[Send()])  # pyright: ignore[reportArgumentType]


class Bare(Sound):
    """Forgets to hand its state back."""

    def arrive(self, state, view, update):
        return Reply(params=view.params)


class Stopping(Sound):
    """Stops a job that is not in flight."""

    def arrive(self, state, view, update):
        return state, Reply(params=view.params, stops=(Stop(update.job.id),))


class Clockless(Sound):
    """Sets an alarm that can never ring."""

    def start(self, view):
        return (), Reply(alarms=(Alarm("look", -1.0),))


class Holding(Sound):
    """Its alarm sets itself again for the same instant."""

    def start(self, view):
        return (), Reply(alarms=(Alarm("look", 1.0),))

    def alarm(self, state, view, name):
        return state, Reply(alarms=(Alarm(name, 0.0),))


class Silent(Sound):
    """Never publishes."""

    def arrive(self, state, view, update):
        return state, Reply()


class Forgetful(Sound):
    """Sends nobody out in the place of a lost job."""

    def lose(self, state, view, loss):
        return state, Reply(sends=())


class Waiting(Sound):
    """A round of two that counts on every member, and waits for ever for one that is lost."""

    def start(self, view):
        return (0, 0.0), Reply(sends=(Send(2, wait=False),))

    def arrive(self, state, view, update):
        count, total = state[0] + 1, state[1] + update.counts * update.delta
        if count < 2:
            return (count, total), Reply(sends=())
        return (0, 0.0), Reply(params=view.params + total, sends=(Send(2, wait=False),))

    def lose(self, state, view, loss):
        return state, Reply(sends=())


class Peeking(Sound):
    """Publishes by what was trained, without saying so."""

    def arrive(self, state, view, update):
        if update.outcome.params is Null:
            return state, Reply()
        return Sound.arrive(self, state, view, update)


class Asking(Sound):
    """Asks trained values for a decision, without saying so."""

    def arrive(self, state, view, update):
        return Sound.arrive(self, state, view, update) if norm(update.delta) < 1e9 else (state, Reply())


class Numbers(Sound):
    """Publishes numbers where nothing is trained."""

    def arrive(self, state, view, update):
        if update.outcome.params is Null:
            return state, Reply(params=0.0)
        return Sound.arrive(self, state, view, update)


class Greedy(Sound):
    """States shares that add up to more than 1."""

    def arrive(self, state, view, update):
        reply = Sound.arrive(self, state, view, update)[1]
        return state, reply._replace(shares=((update.job.id, 1.5),) if update.finite else ())


class Stranger(Sound):
    """States a share for the next job, whoever that is."""

    def arrive(self, state, view, update):
        return state, Sound.arrive(self, state, view, update)[1]._replace(shares=((update.job.id + 1, 0.5),))


class Loyal(Sound):
    """States a share for the first job it ever heard of, again and again."""

    def arrive(self, state, view, update):
        state = state or (update.job.id,)
        return state, Sound.arrive(self, state, view, update)[1]._replace(shares=((state[0], 0.5),))


class Short(Sound):
    """Averages models with weights that add up to 0.9."""

    def arrive(self, state, view, update):
        share = 0.5 * update.counts
        return state, Reply(params=(0.9 - share) * view.params + share * update.outcome.params)


class Trusting(Sound):
    """Weighs a non-finite update like any other."""

    def arrive(self, state, view, update):
        return state, Reply(params=0.5 * view.params + 0.5 * update.outcome.params)


class Taking(Sound):
    """Turns old updates away and takes them all the same."""

    def arrive(self, state, view, update):
        answer = Sound.arrive(self, state, view, update)
        return (state, answer[1]._replace(reject="old", weight=None)) if update.staleness > 1 else answer


class Doubling(Sound):
    """Weighs a fresh update twice."""

    def arrive(self, state, view, update):
        return state, Reply(params=view.params + update.counts * update.delta / (0.5 + update.staleness))


class Ending(Sound):
    """At the stop it publishes a model of another kind."""

    def finish(self, state, view):
        return Reply(params="the end")


class First(Sound):
    """Of two updates counts the first one more."""

    def start(self, view):
        return None, Reply()

    def arrive(self, state, view, update):
        step = update.counts * update.delta
        if state is None:
            return step, Reply()
        return None, Reply(params=view.params + 0.7 * state + 0.3 * step)


BROKEN = [
    (object(), "complete", "no call yet", "lacks reads_outcomes, max_staleness, start"),
    (dataclasses.replace(Sound(), max_staleness=-1), "complete", "no call yet", "max_staleness = -1"),
    (Lambda(), "storable", "pickling the strategy", "in a module"),
    (Boxed(), "storable", "call 1, start", "a Box cannot be kept in a checkpoint"),
    (Remembers(), "pure", "arrive of job", "must be in its state"),
    (Adding(), "unchanged", "arrive of job", "make new values"),
    (Appending(), "unchanged", "arrive of job", "make new values"),
    (Listing(), "sound", "lose of job", "a tuple of Send"),
    (Bare(), "sound", "arrive of job", r"it must answer with \(state, Reply\)"),
    (Stopping(), "sound", "arrive of job", "not in flight"),
    (Ending(), "sound", "finish", "params like the model's"),
    (Clockless(), "alarms", "start", "after -1.0 s"),
    (Holding(), "alarms", r'alarm\("look"\)', "for the same instant"),
    (Silent(), "publishes", "event 39", "not one version in 40 events"),
    (Forgetful(), "publishes", "lose of job", "nobody is out"),
    (Waiting(), "publishes", "lose of job", "nobody is out"),
    (Peeking(), "timeline", "event 0: arrive of job 0", "with values and"),
    (Asking(), "timeline", "arrive of job 0", "must declare reads_outcomes"),
    (Numbers(), "null", "event 0: arrive of job 0", "where nothing is trained"),
    (Greedy(), "shares", "event 0: arrive of job 0", "sum at most 1"),
    (Stranger(), "shares", "event 0: arrive of job 0", r"jobs \[1\]"),
    (Loyal(), "shares", "arrive of job", r"jobs \[0\], which brought nothing that was not averaged"),
    (Short(), "weights", "event 0: arrive of job 0", "8.0 further"),
    (Trusting(), "no trace", "event", "must weigh nothing"),
    (Taking(), "no trace", "event", "must weigh nothing"),
    (First(), "order", "arrivals of the jobs", "in the order"),
]  # fmt: skip


@pytest.mark.parametrize(("strategy", "promise", "call", "why"), BROKEN, ids=lambda value: type(value).__name__)
def test_a_broken_promise_is_named_with_the_call_that_broke_it(strategy, promise, call, why):
    """One strategy for each way to go wrong: the promise, the call and the reason stand in the error."""
    with pytest.raises(PromiseError, match=why) as caught:
        check_strategy(strategy)
    assert caught.value.promise == promise
    assert re.search(call, caught.value.call), caught.value.call
    assert type(strategy).__name__ in str(caught.value)


def test_a_base_rule_that_is_not_met_is_named():
    """Where nothing is stale, twice the delta is not the delta."""
    with pytest.raises(PromiseError, match=r'the promise "fresh" in event 0: nothing is stale, Sound gives'):
        check_strategy(Doubling(), Scene(fresh_as=Sound(rate=1.0)))


def test_every_promise_has_a_strategy_that_breaks_it():
    """No promise is checked by something that cannot fail."""
    assert {promise for _, promise, _, _ in BROKEN} | {"fresh"} == set(PROMISES)


def test_the_sound_one_keeps_all_and_says_what_was_not_looked_at():
    """A class with options, an instance or a name; what a scene rules out stands with its reason."""
    assert check_strategy(Sound, rate=0.25) == check_strategy(Sound(0.25))
    found = check_strategy(Sound, Scene(moves=False, ordered=True, sizes=(1, 1, 1)))
    assert set(found.unchecked) == {"weights", "order", "fresh"}
    assert "origin" in found.unchecked["weights"]
    with pytest.raises(TypeError, match="takes no options"):
        check_strategy(Sound(), rate=0.5)
    with pytest.raises(ScenarioError, match='did you mean "fedbuff"'):
        check_strategy("fedbuf")


class Exacting(Sound):
    """Fails where the engine would have turned an update away."""

    def arrive(self, state, view, update):
        if not update.outcome.examples or view.sizes[update.job.client] != update.outcome.examples:
            raise ValueError("nothing to learn from")
        return Sound.arrive(self, state, view, update)


def test_a_client_without_samples_is_heard_of_as_a_loss():
    """As in the engine: its job never arrives, and the strategy is told so."""
    assert check_strategy(Exacting()) == check_strategy(Sound())


class Choosy(Sound):
    """Says that it reads outcomes, and turns large models away."""

    def __init__(self):
        object.__setattr__(self, "reads_outcomes", True)

    def arrive(self, state, view, update):
        if norm(update.outcome.params) > 3.0:
            return state, Reply(reject="large")
        return Sound.arrive(self, state, view, update)


def test_who_reads_outcomes_may_and_is_not_played_without():
    """Declared, a decision on trained values breaks nothing, nor does one that falls otherwise where all models are elsewhere."""
    assert {"timeline", "null"} == set(check_strategy(Choosy()).unchecked) - {"fresh", "order"}
    declared = dataclasses.replace(Asking(), reads_outcomes=True)
    assert {"timeline", "null"} <= set(check_strategy(declared).unchecked)


def test_values_are_compared_through_and_through():
    """Types, lengths, keys, arrays and NaN count; one value twice is the same."""
    array = np.array([1.0, np.nan])
    assert same((1, [array], {"a": Null}), (1, [array.copy()], {"a": Null}))
    assert same(float("nan"), float("nan"))
    assert not same(1, 1.0)
    assert not same((1,), (1, 2))
    assert not same({"a": 1}, {"b": 1})
    assert not same(array, array[:1])
    assert not same(Model(1, 2.0), Model(1, 3.0))
    assert not same(Sound(0.1), Sound(0.2))


def test_a_busy_client_that_is_sent_to_leaves_when_it_is_back():
    """The playground keeps such a send, as the engine does, and fills what work a send leaves open."""

    class Again(Sound):
        """Sends to client 0 when another one arrives."""

        def arrive(self, state, view, update):
            sends = (Send(clients=(0,)),) if update.job.client else ()
            return state, Reply(params=view.params, sends=sends)

    ground = Playground(Again(), 0.0, clients=3, concurrency=2)
    ground.arrive(1, 1.0)
    assert [job.client for job in ground.jobs.values()] == [0]
    ground.arrive(0, 1.0)
    assert [(job.client, job.nth, job.version) for job in ground.jobs.values()] == [(0, 1, 2)]


# ---- selectors


@dataclass(frozen=True)
class Lowest:
    """Chooses the lowest numbers; what the broken ones are made from."""

    reads_outcomes: bool = False

    def start(self):
        return ()

    def choose(self, state, view, roster, send, number):
        able = range(view.clients) if send.group is None else view.groups[send.group]
        return state, tuple([client for client in able if roster.is_selectable(client)][: send.count])


class Deaf(Lowest):
    """Reads outcomes and has no ears."""

    def __init__(self):
        object.__setattr__(self, "reads_outcomes", True)


class Turning(Lowest):
    """Counts calls in itself."""

    def __init__(self):
        object.__setattr__(self, "seen", [])

    def choose(self, state, view, roster, send, number):
        self.seen.append(number)
        return len(self.seen), Lowest.choose(self, state, view, roster, send, number)[1]


class Writing(Lowest):
    """Changes the list that is its state."""

    def start(self):
        return []

    def choose(self, state, view, roster, send, number):
        state.append(number)
        return Lowest.choose(self, state, view, roster, send, number)


class Busy(Lowest):
    """Chooses client 0, whether it can be selected or not."""

    def choose(self, state, view, roster, send, number):
        return state, (0,)


class Generous(Lowest):
    """Chooses one more than asked for."""

    def choose(self, state, view, roster, send, number):
        return Lowest.choose(self, state, view, roster, send._replace(count=send.count + 1), number)


class Groupless(Lowest):
    """Forgets the group."""

    def choose(self, state, view, roster, send, number):
        return Lowest.choose(self, state, view, roster, send._replace(group=None), number)


class Boxing(Lowest):
    """Keeps its state where no checkpoint can."""

    def start(self):
        return Box(0)


class Idle(Lowest):
    """Chooses nobody."""

    def choose(self, state, view, roster, send, number):
        return state, ()


@pytest.mark.parametrize(
    ("selector", "promise", "call"),
    [
        (object(), "complete", "no call yet"), (Deaf(), "complete", "no call yet"), (Turning(), "pure", "call 2, choose 1"),
        (Writing(), "unchanged", "call 2, choose 1"), (Busy(), "sound", "call 3, choose 2"), (Generous(), "sound", "call 2, choose 1"),
        (Groupless(), "sound", 'in "even"'), (Boxing(), "storable", "call 1, start"), (Idle(), "fills", "60 calls"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_selector_s_broken_promise_is_named_with_the_call(selector, promise, call):
    """One selector for each way to go wrong."""
    with pytest.raises(PromiseError) as caught:
        check_selector(selector)
    assert (caught.value.promise, call in caught.value.call) == (promise, True), caught.value
    assert promise in SELECTOR_PROMISES
    assert check_selector(Lowest, reads_outcomes=False) == tuple(SELECTOR_PROMISES)
