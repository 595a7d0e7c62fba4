"""Generated worlds: tables of what may vary, and a ledger of situations so rare that a test must see to it they come.

A world is one line of every table in ``TABLES``, drawn by a seed, put together into one scenario of a few clients with
quadratic functions: it plays in milliseconds, and every trained value is exact. ``playing.py`` plays each world as a
plan, with two executors, stopped and resumed, and checks laws 1, 2, 4 and 5; ``test_generated.py`` does so for some
hundreds, ``python tests/playing.py 20000 [first seed]`` for as many as you like.

**To join with a new feature**

1. Add a line to the table it belongs to (or a table, for a new axis): a name, and the keys that it sets, written as for
   ``--set``. A list stands for one of its entries (a tuple: several keys), drawn by the seed. A later table overrides an earlier one, and a key
   without a value is taken out.
2. What no key can say is a function ``(world, chance) -> world`` beside the keys, on ``desim_fl.world.World``.
3. A combination that the scenario's own rules refuse is passed over; but every line must be played.
4. If the feature brings a situation that rarely comes about, or that is hard (two things in one instant, a kill while
   something is under way), add a line to ``RARE``: a name, and how it shows in a world that was played (``Seen``).
   The tests fail for as long as no world of the sample met it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.core import Alarm, Model, Reply, Send, Stop, Trip
from desim_fl.executors.asking import AskingExecutor
from desim_fl.executors.inline import InlineExecutor

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from desim_fl.world import World

BASE = """
[data]
name = "quadratic"
curvature = [1.0, 2.0, 0.5, 1.5, 0.25, 3.0]
optimum = [1.0, -1.0, 3.0, 0.5, -2.0, 0.0]
examples_per_client = [40, 10, 70, 33, 5, 1]
[clients]
count = 6
seconds_per_step = 0.5
[model]
name = "scalar"
start = 5.0
[training]
batch_size = 16
lr = 0.1
[strategy]
name = "fedasync"
[run]
concurrency = 3
max_updates = 24
"""


# ---- what no key can say


@dataclass
class Crashing:
    """Trips of which some end before they arrive: in the first instant, half-way, or in the instant of arrival."""

    inner: Any
    shares: dict[tuple[int, int], float]

    @property
    def contended(self) -> bool:
        """As the trips themselves."""
        return self.inner.contended

    def trip(self, client: int, nth: int, work: Any) -> Trip:
        """The client's nth trip, perhaps lost."""
        return self._crashed(client, nth, self.inner.trip(client, nth, work))

    def probe(self, client: int, nth: int, retry: int = 0) -> Trip:
        """The same where that job is a probe."""
        trip = self.inner.probe(client, nth, retry)
        return trip if retry else self._crashed(client, nth, trip)

    def _crashed(self, client: int, nth: int, trip: Trip) -> Trip:
        share = self.shares.get((client, nth))
        whole = trip.download + (trip.wait or 0) + trip.compute + trip.upload
        return trip if share is None else trip._replace(lost=(int(share * whole), "crash"))


def crashing(world: World, chance: random.Random) -> World:
    """Losses among the first trips of each client."""
    wanted = {
        (client, nth): chance.choice([None, None, 0.0, 0.5, 1.0])
        for client in range(len(world.sizes))
        for nth in range(4)
    }
    return replace(
        world, trips=Crashing(world.trips, {job: share for job, share in wanted.items() if share is not None})
    )


@dataclass
class Poisoned:
    """A task of which some jobs give no number."""

    inner: Any
    bad: frozenset[tuple[int, int]]

    def train(self, job: Any, steps: int) -> Any:
        """Train, or give NaN."""
        outcome = self.inner.train(job, steps)
        return outcome._replace(params=math.nan) if (job.client, job.nth) in self.bad else outcome

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def poisoned(world: World, chance: random.Random) -> World:
    """Updates that are not finite among the first of each client."""
    bad = frozenset((client, nth) for client in range(len(world.sizes)) for nth in range(4) if chance.random() < 0.3)
    task = getattr(world.executor, "task", None)
    if task is None:
        return world
    made = InlineExecutor(Poisoned(task, bad))
    return replace(world, executor=made if world.patience is None else AskingExecutor(made))


class Kept(NamedTuple):
    """What ``Restless`` remembers: an older version, what it broadcasts, an update that waits for another, a count."""

    older: Model
    control: Any
    waiting: Any
    count: int


@dataclass(frozen=True)
class Restless:
    """Asks for everything that a strategy may: older versions, broadcasts, caches, reports before time, cancellations, alarms."""

    reads_outcomes: bool = False
    max_staleness: int | None = 3

    def start(self, view: Any) -> tuple[Kept, Reply]:
        """Send to as many as may be in flight, and set an alarm."""
        sends = (Send(view.concurrency, extra=0.0),)
        return Kept(view.model, 0.0, None, 0), Reply(sends=sends, alarms=(Alarm("look", 1.0),))

    def arrive(self, state: Kept, view: Any, update: Any) -> tuple[Kept, Reply]:
        """Publish every second update; send out again, sometimes from an older version; end others early."""
        move = update.counts * (update.delta - (0.0 if update.cache is None else update.cache) * 0.125)
        count = state.count + 1
        start = state.older if count % 3 == 0 else None
        sends = (Send(extra=state.control, start=start),)
        others = sorted(view.flying)
        stops = (Stop(others[0], "cancel" if count % 8 == 0 else "epoch"),) if others and count % 4 == 0 else ()
        extra = (Send(),) if stops and stops[0].how == "cancel" else ()
        reply = Reply(sends=(*sends, *extra), stops=stops, keep=((update.job.client, move),), weight=0.5)
        kept = state._replace(control=state.control + move, count=count)
        if state.waiting is None:
            return kept._replace(waiting=move), reply
        older = view.model if count % 5 == 0 else state.older
        return kept._replace(waiting=None, older=older), reply._replace(params=view.params + 0.5 * state.waiting + move)

    def lose(self, state: Kept, view: Any, loss: Any) -> tuple[Kept, Reply]:
        """Send another out."""
        del view, loss
        return state, Reply(sends=(Send(),))

    def alarm(self, state: Kept, view: Any, name: str) -> tuple[Kept, Reply]:
        """Give up what waits, once in a while, and set the alarm anew."""
        del view
        abandon = state.waiting is not None and state.count % 2 == 0
        return state._replace(waiting=None) if abandon else state, Reply(
            alarms=(Alarm(name, 1.0),), sends=(), abandon=abandon
        )


@dataclass(frozen=True)
class Choosy(Restless):
    """The same, deciding by trained values: small moves are turned away, large ones end others."""

    reads_outcomes: bool = True

    def arrive(self, state: Kept, view: Any, update: Any) -> tuple[Kept, Reply]:
        """Turn away by the size of the move."""
        if abs(update.delta) < 0.05:
            return state, Reply(reject="too small", sends=(Send(),))
        kept, reply = super().arrive(state, view, update)
        return kept, reply._replace(weight=0.5 * update.delta)


@dataclass(frozen=True)
class Loudest:
    """A selector that reads outcomes: of those who are idle, the ones with the highest last loss."""

    reads_outcomes: bool = True

    def start(self) -> dict[int, float]:
        """Nobody was heard."""
        return {}

    def hear(self, state: dict[int, float], client: int, loss: float | None) -> dict[int, float]:
        """Remember a client's last loss."""
        return {**state, client: -1.0 if loss is None else loss}

    def choose(self, state: dict[int, float], view: Any, roster: Any, send: Send, number: int) -> Any:
        """Choose by falling loss, strangers first."""
        del number
        idle = [client for client in range(view.clients) if roster.is_selectable(client)]
        return state, tuple(sorted(idle, key=lambda client: (-state.get(client, 1e9), client))[: send.count])


@dataclass(frozen=True)
class Tired(Restless):
    """Publishes what comes and sends nobody out again: soon nothing is left to happen."""

    def start(self, view: Any) -> tuple[None, Reply]:
        """Send to as many as may be in flight."""
        return None, Reply(sends=(Send(view.concurrency),))

    def arrive(self, state: None, view: Any, update: Any) -> tuple[None, Reply]:
        """Publish."""
        return state, Reply(params=view.params + update.counts * update.delta, sends=())

    def lose(self, state: None, view: Any, loss: Any) -> tuple[None, Reply]:
        """Let it go."""
        del view, loss
        return state, Reply(sends=())


def tired(world: World, _: random.Random) -> World:
    """The strategy that stops by itself."""
    return replace(world, strategy=Tired())


def restless(world: World, _: random.Random) -> World:
    """The strategy that asks for everything."""
    return replace(world, strategy=Restless())


def choosy(world: World, _: random.Random) -> World:
    """The one that reads trained values."""
    return replace(world, strategy=Choosy())


def loudest(world: World, _: random.Random) -> World:
    """The selector that reads them."""
    return replace(world, selector=Loudest())


# ---- the tables

Line = tuple[Any, ...]
ROUNDS = ("strategy.name=fedavg", "run.concurrency")  # a key without a value is taken out
EVERYBODY = ("run.concurrency", "run.selection", "run.order", "run.dispatch")
SLOW = "{name='slow',share=1.0,device_factor={law='uniform',low=2.0,high=4.0},epoch_idle_s=0.25,watts_compute=2.0,price_per_hour=1.0}"
CLASSES = "clients.classes=[{name='quick',share=2.0,device_factor=1.0}," + SLOW + "]"
TABLES: dict[str, dict[str, Line]] = {
    "speed": {
        "equal": (),
        "halves": ("clients.device_factor={law='uniform',low=1.0,high=2.0}",),
        "heavy": ("clients.device_factor={law='pareto',alpha=1.5,scale=1.0}", "clients.jitter_factor={law='exponential',mean=1.0}"),
        "no time at all": ("clients.seconds_per_step=0.0",),
        "waits": (["clients.wait_s=1.0", "clients.wait_s={law='uniform',low=0.0,high=2.0}", "clients.wait_s=0.0"],),
    },
    "network": {
        "none": (),
        "latency": ("network.latency_s=0.5",),
        "links": ("network.latency_s=0.05", "network.down_mbps=0.001", "network.up_mbps={law='pareto',alpha=2.0,scale=0.0005}"),
        "scaled": ("network.latency_s=0.25", "network.latency_jitter_factor={law='half_normal',sd=1.0,min=0.1}", ["run.delay_scale=10", "run.delay_scale=0.5"]),
    },
    "noise": {
        "none": (),
        "on links of one's own": (
            "network.down_mbps=0.001", ["network.up_mbps=0.0005", "network.latency_s=0.01"],
            ["network.noise_factor={law='uniform',low=0.2,high=2.0}", "network.noise_factor={law='pareto',alpha=1.5,scale=0.1}"],
            ["network.noise_window_s=0.5", "network.noise_window_s=0.05"],
        ),
    },
    "sharing": {
        "none": (),
        "uploads": (["network.server_ingress_mbps=0.0002", "network.server_ingress_mbps=1000.0"],),
        "downloads": (["network.server_egress_mbps=0.0002", "network.server_egress_mbps=0.0007"],),
        "both, regions": (
            "network.server_ingress_mbps=0.0004", "network.region_shares=[1.0, 2.0]", "network.region_up_mbps=[0.0001, 0.001]",
            ["network.region_down_mbps=[0.0002, 0.0002]", "network.server_egress_mbps=0.0003"],
        ),
    },
    "accidents": {
        "none": (),
        "crashes": (crashing,),
        "no numbers": (poisoned,),
        "both": (crashing, poisoned),
    },
    "availability": {
        "always": (),
        "renewal": (
            "availability.name=renewal", "availability.on_s={law='exponential',mean=4.0}", "availability.off_s={law='exponential',mean=1.0}",
            ["availability.on_leave=drop", "availability.on_leave=pause", "availability.on_leave=finish"], "run.max_time_s=60",
        ),
        "windows": (
            "availability.name=windows", "availability.period_s=5.0", "availability.windows_s=[[[0,3]],[[0,2],[2,4]],[[1,5]],[[0,5]],[[2.5,4.5]],[[0,1],[2,3],[4,5]]]",
            ["availability.on_leave=pause", "availability.on_leave=drop"], "run.max_time_s=20",
        ),
        "by day": (
            "availability.name=diurnal", "availability.window_s=1", "availability.mean=0.6", "availability.time_zone_h={law='uniform',low=0.0,high=24.0}",
            ["availability.on_leave=drop", "availability.on_leave=pause", "availability.on_leave=finish"], "run.max_time_s=30",
        ),
    },
    "failures": {
        "none": (),
        "crashes and retries": (
            "failures.crash_download=0.1", "failures.crash_compute=0.2", "failures.crash_upload=0.1", "failures.upload_loss=0.1",
            ["failures.max_retries=2", "failures.crash_hazard_per_s=0.05"], "run.max_time_s=60",
        ),
        "late and again": ("failures.timeout_s=1.0", "failures.duplicate=0.4", "failures.duplicate_delay_s={law='uniform',low=0.0,high=1.0}", "run.max_time_s=8"),
        "outages": (
            "failures.outages_s=[[1, 1.5], [3, 3.25]]", ["failures.on_outage=wait", "failures.on_outage=fail"],
            ["failures.timeout_s=2.0", "failures.crash_compute=0.1"], "run.max_time_s=12",
        ),
    },
    "server": {
        "at once": (),
        "takes time": ("server.aggregation_s=0.25", ["server.queue=1", "server.batch=2", "server.batch=1"]),
        "drawn": ("server.aggregation_s={law='exponential',mean=0.25}", "server.queue=2"),
        "a short queue": ("server.aggregation_s=0.5", "server.queue=1"),
        "busy with evaluations": (
            ["server.aggregation_s=0.125", "server.aggregation_s=0.0"], ["server.evaluation_s=0.25", "server.evaluation_s=0.5"],
            "server.blocking=true", ["run.eval_every_versions=1", "run.eval_every_versions=2", "run.eval_every_s=0.5"],
        ),
    },
    "queues": {
        "one job": (),
        "several": (["run.client_queue=2", "run.client_queue=3"],),
    },
    "work": {
        "usual": (),
        "epochs": ("training.epochs=3",),
        "one explodes": ("data.curvature=[1.0, 1e12, 0.5, 1.5, 0.25, 3.0]", "training.steps=3"),
        "some have nothing": ("data.examples_per_client=[40, 0, 70, 0, 5, 1]",),
        "one alone": ("clients.count=1", "data.curvature=1.0", "data.optimum=1.0", "data.examples_per_client=20"),
        "balanced gradients": ("training.gradient_decay=0.5", "training.proximal_mu=0.5", "training.steps=3", "training.delay_step=logarithmic"),
        "slowed by staleness": ("training.delay_aware={meaning='staleness',gamma_0=0.1,alpha_lr=0.5}", "training.lr"),
    },
    "devices": {
        "one kind": (),
        "two classes": (
            CLASSES,
            ["clients.class_shares=drawn", "clients.class_shares=exact"], "clients.watts_compute=1.0", "clients.watts_idle=0.1", "clients.price_per_gb=1.0",
        ),
        "pauses": ("clients.epoch_idle_s={law='zipf',exponent=1.7,cap=6,scale=0.25}", "training.epochs=2", "training.steps"),
    },
    "selection": {
        "uniform": (),
        "by data": ("run.selection=weighted",),
        "the fastest": ("run.selection=fastest",),
        "round robin": ("run.selection=round_robin",),
        "longest idle": ("run.selection=longest_idle",),
        "in order": ("run.selection=order", "run.order=[0, 5, 5, 2]"),
        "loudest": (loudest,),
        "asked first": (
            "run.selection=power_of_choice", "run.poc_probe=true", ["run.poc_candidates=1", "run.poc_candidates=3"],
            ["run.poc_probe_share=1.0", "run.poc_probe_share=0.0"],
        ),
        "those of high utility": ("run.selection=oort",),
    },
    "dispatch": {
        "immediate": (["run.concurrency=3", "run.concurrency=1", "run.concurrency=6", "run.concurrency=16"],),
        "after aggregation": ("run.dispatch=after_aggregation", ["run.concurrency=4", "run.concurrency=6"]),
        "as they come": (
            ["run.arrivals=poisson", "run.arrivals=constant"], ["run.arrival_rate=2.0", "run.arrival_rate=8.0"], "run.concurrency", "run.max_time_s=20",
        ),
    },
    "stop": {
        "updates": (["run.max_updates=24", "run.max_updates=1", "run.max_updates=40"],),
        "versions": (["run.max_versions=6", "run.max_versions=1"], "run.max_updates=60"),
        "time": ("run.max_time_s=6", "run.max_updates=200"),
        "time alone": ("run.max_time_s=5", "run.max_updates"),
    },
    "evaluation": {
        "at the end": (),
        "every version": (["run.eval_every_versions=1", "run.eval_every_versions=3"],),
        "by the clock": (["run.eval_every_s=0.5", "run.eval_every_s=1.0"],),
        "both": ("run.eval_every_versions=2", "run.eval_every_s=0.25"),
    },
    "strategy": {
        "fedasync": (["strategy.alpha=0.6", "strategy.alpha=1.0"], ["strategy.mixing=model", "strategy.mixing=delta"]),
        "fedasync, bounded": (["strategy.max_staleness=0", "strategy.max_staleness=1"], "strategy.staleness=hinge"),
        "fedbuff": ("strategy.name=fedbuff", ["strategy.buffer_size=1", "strategy.buffer_size=3", "strategy.buffer_size=5"]),
        "fedbuff, flushed": ("strategy.name=fedbuff", "strategy.buffer_size=4", "strategy.flush_at_end=true", "strategy.normalize=sum_w"),
        "fedbuff, bounded": ("strategy.name=fedbuff", "strategy.buffer_size=2", "strategy.max_staleness=1"),
        "rounds": (*ROUNDS, "strategy.clients_per_round=3"),
        "rounds, over-selected": (
            *ROUNDS, "strategy.clients_per_round=2", "strategy.over_selection=1.5",
            ["strategy.cancel_stragglers=true", "strategy.cancel_stragglers=false"],
        ),
        "rounds with a deadline": (
            *ROUNDS, "strategy.clients_per_round=3", ["strategy.deadline_s=1.0", "strategy.deadline_s=2.5"],
            ["strategy.min_fraction=0.0", "strategy.min_fraction=1.0"], "run.max_time_s=30",
        ),
        "rounds by name": (
            ["strategy.name=fedavgm", "strategy.name=fednova", "strategy.name=fedprox"],
            "run.concurrency", "strategy.clients_per_round=2", ["strategy.weights=uniform", "strategy.weights=examples"],
        ),
        "adaptive rounds": (
            ["strategy.name=fedadagrad", "strategy.name=fedadam", "strategy.name=fedyogi"],
            "run.concurrency", "strategy.clients_per_round=2", ["strategy.weights=uniform", "strategy.weights=examples"],
        ),
        "rounds of stragglers": (
            *ROUNDS, "strategy.clients_per_round=2", "clients.straggler_share=0.5", "training.epochs=3", "training.steps",
            ["strategy.partial_work=drop", "strategy.partial_work=keep"], "strategy.over_selection=1.5",
        ),
        "rounds with variates": (
            "strategy.name=scaffold", "run.concurrency", "strategy.clients_per_round=2",
            ["strategy.over_selection=1.5", "strategy.deadline_s=2.5"], "run.max_time_s=30",
        ),
        "tiers": (
            ["strategy.name=fedat", "strategy.name=tifl"], "run.concurrency", "strategy.tiers=2",
            ["strategy.clients_per_round=1", "strategy.clients_per_round=3"], "run.max_time_s=30",
        ),
        "tiers that adapt": (
            "strategy.name=tifl", "run.concurrency", "strategy.tiers=2", "strategy.clients_per_round=1", "strategy.adaptive=true",
            ["strategy.interval=1", "strategy.interval=3"], ["strategy.credits=[9, 2]", "run.max_time_s=30"],
        ),
        "everybody's cache": (
            "strategy.name=safa", "run.concurrency", "run.dispatch", ["strategy.fraction=0.2", "strategy.fraction=0.6"],
            ["strategy.lag_tolerance=0", "strategy.lag_tolerance=1", "strategy.lag_tolerance=5"], ["strategy.round_limit_s=2.0", "run.seed=3"],
            "run.max_time_s=30",
        ),
        "the first few": (
            "strategy.name=semi_async", "run.dispatch", ["strategy.clients_per_version=1", "strategy.clients_per_version=2"],
            ["strategy.mixing=model", "strategy.mixing=delta"], ["strategy.max_staleness=1", "strategy.max_staleness=9"],
        ),
        "an optimiser at the server": (
            "strategy.name=fedbuff", "strategy.buffer_size=2",
            ["strategy.server_optimizer={name='adam',lr=0.1}", "strategy.server_optimizer={name='momentum',beta1=0.5}"],
            ["strategy.server_lr_schedule={name='cosine',over_versions=5}", "training.lr_schedule={name='step',every_versions=3}"],
        ),
        "fedasync, sampled": (["strategy.sampled_staleness=0", "strategy.sampled_staleness=3"], "run.concurrency", "run.dispatch"),
        "one by one": (
            ["strategy.name=fedasmu_static", "strategy.name=fedfa", "strategy.name=asofed", "strategy.name=area"],
            ["strategy.max_staleness=1", "strategy.max_staleness=9"],
        ),
        "buffers": (
            ["strategy.name=fadas", "strategy.name=ca2fl", "strategy.name=fedstale", "strategy.name=fedvarp", "strategy.name=mifa"],
            ["strategy.buffer_size=1", "strategy.buffer_size=2", "strategy.buffer_size=4"],
        ),
        "workers": (
            "strategy.name=asyncsgd", ["strategy.delay_rule=none", "strategy.delay_rule=koloskova", "strategy.delay_rule=mishchenko"],
            ["strategy.workers=same", "strategy.max_staleness=1"], "run.dispatch",
        ),
        "workers, sampled": ("strategy.name=asyncsgd", "strategy.workers=sampled", "strategy.server_lr=0.5"),
        "workers, bounded": (
            "strategy.name=ringmaster", ["strategy.delay_threshold=1", "strategy.delay_threshold=2"],
            ["strategy.stop=true", "strategy.stop=false"], "run.dispatch", "run.max_time_s=40",
        ),
        "minibatches": (
            "strategy.name=rennala", ["strategy.batch=2", "strategy.batch=4"],
            ["strategy.stop_unfinished=true", "strategy.stop_unfinished=false"], "run.dispatch", "run.max_time_s=40",
        ),
        "everybody": (
            *EVERYBODY, ["strategy.name=malenia", "strategy.name=ringleader"], ["strategy.server_lr=1.0", "strategy.server_lr=0.5"],
            ["run.max_time_s=40", "run.max_time_s=4"],
        ),
        "everybody, much": (*EVERYBODY, "strategy.name=malenia", "strategy.gradients=8", "run.max_time_s=40"),
        "polled": (
            *EVERYBODY, ["strategy.name=quafl", "strategy.name=favas"], ["strategy.contacted=1", "strategy.contacted=2"],
            ["strategy.interval_s=0.75", "strategy.interval_s=2.0"], "run.max_time_s=20",
        ),
        "waiting for the slow": (
            "strategy.name=port", ["strategy.min_clients=1", "strategy.min_clients=2"],
            ["strategy.staleness_bound=1", "strategy.staleness_bound=2"], ["training.epochs=3", "training.epochs=1"], "training.steps",
        ),
        "tired": (tired,),
        "restless": (restless, "run.max_time_s=40"),
        "choosy": (choosy, "run.max_time_s=40"),
    },
}  # fmt: skip
QUIET = {  # every third world: nothing comes between dispatch and arrival, so that instants coincide and time may stand still
    "noise": "none", "sharing": "none", "availability": "always", "failures": "none", "server": "at once", "queues": "one job",
}  # fmt: skip
# Many strategies say themselves whom to send out, and rules then refuse a queue; many want more than one client.
WITHOUT = {"queues": "one job", "work": "usual", "dispatch": "immediate"}
LEARNING = (  # instead of quadratic functions: a small network, so that every executor can train it
    "data", "data.name=blobs", "data.examples=240", "data.test_examples=60", "data.classes=3", "data.features=4",
    "data.validation_share=0.1", "model", "model.name=mlp", "model.hidden=[5]",
    [
        ("clients.partition=dirichlet", "clients.alpha=0.5", "clients.min_samples=3"),
        ("clients.partition=dirichlet_sizes", "clients.alpha=0.5", "clients.min_samples=3"),
        ("clients.partition=shards", "clients.classes_per_client=2"),
    ],
    [(), "data.client_test_share=0.2"],
    [(), ("training.epochs=3", "training.patience=1", "training.steps"), ("run.eval_every_versions=1", "run.patience=3")],
)  # fmt: skip
PATIENCE = ("training.patience", "run.patience", "run.monitor")  # what reads trained values, and so asks for equal ones
EXECUTORS: dict[str, tuple[str, ...]] = {
    "threads": ("executor.name=threads", "executor.workers=3"),
    "pool": ("executor.name=pool", "executor.workers=2"),
    "ray": ("executor.name=ray", "executor.workers=2"),
    "vmap": ("executor.name=vmap", "executor.width=3"),
}


# ---- the ledger


class Kill(NamedTuple):
    """What was under way in the instant after which a world was stopped, to be resumed."""

    tick: int
    buffered: int
    bases: tuple[int, ...]  # of the jobs in flight
    version: int
    open_places: int
    alarms: int
    caches: int
    read: int  # values, or replies, that training decided
    moving: int  # transfers on shared links


@dataclass
class Seen:
    """A world that was played: its rows (ticks, kind, client, job, version, staleness), what stands beside them, its kills.

    ``writes`` are the kinds of files in the middle of whose writing it was killed; ``error`` names how it ended, if badly.
    """

    rows: list[tuple[int, str, int, int, int, int]] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)
    outcomes: set[str] = field(default_factory=set)
    evaluations: list[Any] = field(default_factory=list)
    why: str | None = None
    error: str | None = None
    open_places: int = 0
    kills: list[Kill] = field(default_factory=list)
    writes: set[str] = field(default_factory=set)
    trips: Any = None
    shares: bool = False  # whether links are shared
    serves: bool = False  # whether the server takes time
    stop_params: float = 0.0

    def ticks(self, kind: str) -> list[int]:
        """Instants of the rows of a kind."""
        return [row[0] for row in self.rows if row[1] == kind]

    def together(self, one: str, other: str) -> bool:
        """Whether rows of two kinds share an instant."""
        return bool(set(self.ticks(one)) & set(self.ticks(other)))

    def evaluated(self) -> set[int]:
        """Instants of evaluations but the first."""
        return {evaluation.ticks for evaluation in self.evaluations if evaluation.ticks}


def _crash_at_the_finish(seen: Seen) -> bool:
    shares = getattr(seen.trips, "shares", {})
    sent = Counter()
    for _, kind, client, _, _, _ in seen.rows:
        if kind == "arrive" and shares.get((client, sent[client])) == 1.0:
            return True
        sent[client] += kind in {"arrive", "lose", "cancel"}
    return False


def _breaks_off(seen: Seen, kind: str) -> bool:
    """Whether a job stands still, or ends, between its dispatch and the end of its download."""
    last: dict[int, str] = {}
    for _, what, _, job, *_ in seen.rows:
        if what == kind and last.get(job) == "dispatch":
            return True
        last[job] = what
    return False


def _held_up(seen: Seen) -> bool:
    """Whether a job is sent out to a client whose other job is being tried again, and starts after that."""
    retried: dict[int, int] = {}
    for _, kind, client, job, *_ in seen.rows:
        if kind == "retry":
            retried[client] = job
        elif kind == "computed" and retried.get(client) == job:
            del retried[client]
        elif kind == "dispatch" and client in retried:
            return True
    return False


RARE: dict[str, Callable[[Seen], bool]] = {
    "an update that meets a full queue": lambda s: any("queue" in reason for reason in s.reasons),
    "two arrivals in one instant": lambda s: len(set(s.ticks("arrive"))) < len(s.ticks("arrive")),
    "a job that takes no time": lambda s: any(
        row[1] == "arrive" and ("dispatch", row[3]) in {(r[1], r[3]) for r in s.rows if r[0] == row[0]} for row in s.rows
    ),
    "a loss": lambda s: bool(s.ticks("lose")),
    "a loss and an arrival in one instant": lambda s: s.together("lose", "arrive"),
    "a loss in the instant of departure": lambda s: s.together("lose", "dispatch"),
    "a drop at the finish instant, which has arrived": _crash_at_the_finish,
    "a stale update turned away": lambda s: "stale" in s.reasons,
    "an update without examples turned away": lambda s: "no examples" in s.reasons,
    "an update turned away by its trained value": lambda s: "too small" in s.reasons,
    "an update that is not finite": lambda s: "rejected: non-finite" in s.outcomes,
    "a client that leaves in the middle": lambda s: bool(s.ticks("leave")),
    "a client that comes back to its job": lambda s: bool(s.ticks("come")),
    "a standstill": lambda s: bool(s.ticks("halt")),
    "a retry": lambda s: bool(s.ticks("retry")),
    "a job that ends after it was given up": lambda s: bool(s.ticks("late")),
    "a second delivery": lambda s: bool(s.ticks("duplicate")),
    "a leave in the middle of a transfer on a shared link": lambda s: s.shares and _breaks_off(s, "leave"),
    "an outage in the middle of transfers on a shared link": lambda s: s.shares and s.ticks("halt") != sorted(set(s.ticks("halt"))),
    "a retry on a shared link": lambda s: s.shares and bool(s.ticks("retry")),
    "a job given up that goes on over a shared link": lambda s: s.shares and bool(s.ticks("late")),
    "a client with two open jobs that leaves": lambda s: any(
        (tick, "leave", client) == (other[0], other[1], other[2])
        for (tick, kind, client, *_), other in pairwise(s.rows)
        if kind == "leave"
    ),
    "a retry that others of its client wait for": _held_up,
    "a server that turns an update away": lambda s: "server queue full" in s.reasons,
    "a second delivery of what waited for the server": lambda s: s.serves and bool(s.ticks("duplicate")),
    "a cancelled job": lambda s: bool(s.ticks("cancel")),
    "a cancellation in the instant of an arrival": lambda s: s.together("cancel", "arrive"),
    "an abandoned round": lambda s: bool(s.ticks("abandon")),
    "an alarm and an arrival in one instant": lambda s: s.together("alarm", "arrive"),
    "a publish without an arrival": lambda s: any(row[1] == "publish" and row[3] == -1 for row in s.rows),
    "a place nobody can fill": lambda s: s.open_places > 0,
    "an evaluation in the instant of a publish": lambda s: bool(s.evaluated() & set(s.ticks("publish"))),
    "an evaluation in an instant without a publish": lambda s: bool(s.evaluated() - set(s.ticks("publish"))),
    "an evaluation by the clock in the instant of the stop": lambda s: len(
        {e.version for e in s.evaluations if s.rows and e.ticks == s.rows[-1][0]}
    ) > 1,
    "a job from an older version": lambda s: any(
        row[1] == "dispatch" and row[4] < max((r[4] for r in s.rows if r[0] < row[0] and r[1] == "publish"), default=0)
        for row in s.rows
    ),
    "two publishes in one instant": lambda s: len(set(s.ticks("publish"))) < len(s.ticks("publish")),
    "stopped by time": lambda s: s.why == "max_time",
    "stopped by versions": lambda s: s.why == "max_versions",
    "stopped by updates": lambda s: s.why == "max_updates",
    "nothing left to happen": lambda s: "nothing is left" in (s.error or ""),
    "time stands still": lambda s: "not advancing" in (s.error or ""),
    "killed with a half-full buffer": lambda s: any(kill.buffered for kill in s.kills),
    "killed with jobs of several versions in flight": lambda s: any(len(set(kill.bases)) > 1 for kill in s.kills),
    "killed before the first publish": lambda s: any(kill.version == 0 for kill in s.kills),
    "killed with a place open": lambda s: any(kill.open_places for kill in s.kills),
    "killed with an alarm set": lambda s: any(kill.alarms for kill in s.kills),
    "killed with caches of clients": lambda s: any(kill.caches for kill in s.kills),
    "killed after the timeline has read trained values": lambda s: any(kill.read for kill in s.kills),
    "killed while transfers share a link": lambda s: any(kill.moving > 1 for kill in s.kills),
    "killed in an instant of several arrivals": lambda s: any(s.ticks("arrive").count(kill.tick) > 1 for kill in s.kills),
    "killed in the instant of a cancellation": lambda s: any(kill.tick in s.ticks("cancel") for kill in s.kills),
    "killed in the instant of a loss": lambda s: any(kill.tick in s.ticks("lose") for kill in s.kills),
    **{
        f"killed while a {kind} was written": lambda s, kind=kind: kind in s.writes
        for kind in ("scenario", "partition", "manifest", "part", "checkpoint", "metrics", "clients", "wall", "model", "report")
    },
    "killed while an old checkpoint was removed": lambda s: "removal" in s.writes,
}  # fmt: skip
