"""A second, deliberately naive player of small worlds on floats, written from the rules and not from the engine.

Nothing here is fast: every end of a leg is an entry of its own, and each step looks at all entries for the smallest
key (tick, class, number). It serves as the oracle of the engine in ``test_random_worlds``.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from fluid import Flow, Fluid, per_tick

from desim_fl.draws import Purpose, word

LEG, ARRIVAL, ALARM = 0, 1, 4  # classes within an instant
KINDS = (
    "dispatch", "downloaded", "started", "computed", "arrive", "reject", "publish",
    "lose", "cancel", "abandon", "leave", "come", "alarm", "stop", "halt", "resume", "retry", "overdue", "late", "duplicate",
)  # fmt: skip
PATIENCE = 100


class Legs(NamedTuple):
    """Ticks of one trip; ``lost`` = ticks after dispatch at which the job is lost."""

    download: int
    wait: int | None
    compute: int
    upload: int
    lost: int | None = None

    @property
    def whole(self) -> int:
        """Ticks from dispatch to arrival."""
        return self.download + (self.wait or 0) + self.compute + self.upload


class Shared(NamedTuple):
    """A direction that transfers share, rates in bit/s (``None`` = no limit); ``caps`` and ``regions`` by client."""

    capacity: int | None
    regional: tuple[int | None, ...]
    regions: tuple[int, ...]
    caps: tuple[int | None, ...]

    def fluid(self) -> Fluid:
        """The link, empty."""
        return Fluid(per_tick(self.capacity), [per_tick(own) for own in self.regional])


class Method(NamedTuple):
    """A server method and its options; each method reads only its own."""

    name: str
    alpha: float = 0.6
    mixing: str = "model"
    staleness: str = "polynomial"
    offset: int = 0
    max_staleness: int | None = None
    buffer_size: int = 3
    server_lr: float = 1.0
    normalize: str = "K"
    flush_at_end: bool = False
    goal: int = 2
    over_selection: float = 1.0
    deadline_ticks: int | None = None
    min_fraction: float = 0.0
    cancel_stragglers: bool = False


class Setting(NamedTuple):
    """One small world. ``trips[client]`` is gone through again and again; losses come with the first trips only."""

    sizes: tuple[int, ...]
    trips: tuple[tuple[Legs, ...], ...]
    losses: dict[tuple[int, int], int]  # (client, nth) -> ticks after dispatch
    bad: frozenset[tuple[int, int]]  # (client, nth) of updates that are not finite
    method: Method
    selection: str
    order: tuple[int, ...]
    seed: int
    dispatch: str
    concurrency: int
    max_ticks: int | None = None
    max_versions: int | None = None
    max_updates: int | None = None
    down: Shared | None = None  # then trips have latencies where they had downloads
    up: Shared | None = None

    def legs(self, client: int, nth: int) -> Legs:
        """The client's nth trip."""
        mine = self.trips[client]
        return mine[nth % len(mine)]._replace(lost=self.losses.get((client, nth)))

    def learned(self, base: float, client: int, nth: int) -> float:
        """What training gives: a contraction towards a place of the client's own, or a number that is none."""
        return math.nan if (client, nth) in self.bad else 0.5 * base + 1.0 + client + 0.25 * nth


class Stalled(Exception):  # noqa: N818  (an outcome of a world, not a fault)
    """Nothing can happen any more, or time stands still."""


@dataclass
class Trip:
    """A job under way."""

    id: int
    client: int
    nth: int
    base: int
    start: float
    round: int
    legs: Legs
    at: int = 0  # 1 once the download is through


class Entry(NamedTuple):
    """Something that will happen."""

    tick: int
    order: int
    number: int
    what: str
    subject: Any


def weight(method: Method, tau: int) -> float:
    """Staleness weight of ALGORITHMS 2.5: constant, polynomial with a = 0.5, hinge with a = 10 and b = 4."""
    tau += method.offset
    if method.staleness == "constant":
        return 1.0
    if method.staleness == "polynomial":
        return (tau + 1) ** -0.5
    return 1.0 if tau <= 4 else 1.0 / (10.0 * (tau - 4) + 1.0)


def rounded_up(share: float, number: int) -> int:
    """Smallest whole number not below the product of two numbers as written."""
    return math.ceil(Fraction(str(share)) * number)


@dataclass
class Reference:
    """Plays a setting to its stop; ``rows`` are (ticks, kind, client, job, version, staleness)."""

    setting: Setting
    now: int = 0
    version: int = 0
    params: float = 0.0
    rows: list[tuple[int, str, int, int, int, int]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    flying: dict[int, Trip] = field(default_factory=dict)
    idle: list[int] = field(default_factory=list)  # longest idle first
    sent: dict[int, int] = field(default_factory=dict)
    dispatched: int = 0
    arrived: int = 0
    open: int = 0
    held: int = 0
    pointer: int = 0
    stopped: bool = False
    buffer: list[tuple[float, float]] = field(default_factory=list)  # (weight, delta); weight 0 = not finite
    filled: int = 0
    round: int = 0
    cohort_waits: bool = False
    reports: list[tuple[int, float]] = field(default_factory=list)  # (examples, model)
    reported: int = 0
    alarms: int = 0
    met: set[str] = field(default_factory=set)
    landings: list[tuple[int, int]] = field(default_factory=list)  # (tick, client)
    roads: dict[str, Fluid] = field(default_factory=dict)  # by what is written at the end of a transfer

    def play(self) -> Reference:
        """Play until a stop rule holds; raises ``Stalled``."""
        self.idle = list(range(len(self.setting.sizes)))
        both = {"downloaded": self.setting.down, "uploaded": self.setting.up}
        self.roads = {what: shared.fluid() for what, shared in both.items() if shared is not None}
        if self.setting.method.name == "fedavg":
            self.begin_round()
        else:
            self.open = self.setting.concurrency
        self.fill()
        while not self.stopped:
            self.step()
        return self

    def step(self) -> None:
        """Let the entry with the smallest key happen."""
        limit = self.setting.max_ticks
        self.watch_the_roads()
        following = min(self.entries, key=lambda entry: entry[:3], default=None)
        if limit is not None and (following is None or following.tick > limit):
            self.now = limit
            self.stop()
            return
        if following is None:
            self.met.add("nothing left to happen")
            raise Stalled
        self.entries.remove(following)
        self.now = following.tick
        getattr(self, following.what)(following.subject)

    def row(self, kind: str, trip: Trip | None = None, version: int | None = None, staleness: int = -1) -> None:
        """Write a row; the version is the one in force unless another is given."""
        client, job = (-1, -1) if trip is None else (trip.client, trip.id)
        self.rows.append((self.now, kind, client, job, self.version if version is None else version, staleness))

    # ---- trips

    @property
    def under_way(self) -> dict[int, Trip]:
        """All jobs that somebody works at."""
        return self.flying

    def watch_the_roads(self) -> None:
        """Make an entry of every transfer that ends no later than the next entry."""
        following = {what: road.first_end() for what, road in self.roads.items()}
        ticks = [tick for tick in following.values() if tick is not None]
        first = min([*ticks, *(entry.tick for entry in self.entries)], default=None)
        for what, road in self.roads.items():
            if following[what] is not None and following[what] == first:
                road.advance(first)
                for job, _, end in road.ended:
                    assert end == first
                    self.entries.append(Entry(first, LEG, job, what, self.under_way[job]))
                road.ended.clear()

    def transfer(self, trip: Trip) -> None:
        """The latency is over, and the bytes begin to move."""
        if "downloaded" in self.roads and trip.at == 0:
            self.roll("downloaded", trip, self.setting.down)
        elif trip.at == 0:
            self.downloaded(trip)
        elif "uploaded" in self.roads:
            self.roll("uploaded", trip, self.setting.up)
        else:
            self.uploaded(trip)

    def roll(self, what: str, trip: Trip, shared: Shared) -> None:
        """Enter a shared road."""
        road, cap, region = self.roads[what], shared.caps[trip.client], shared.regions[trip.client]
        road.advance(self.now)
        if cap is shared.capacity is shared.regional[region] is None:
            getattr(self, what)(trip)
        else:
            road.flows[trip.id] = Flow(Fraction(800), per_tick(cap), region, self.now)
            self.met.add("shared road")
            if len(road.flows) > 1:
                self.met.add("crowded road")

    def uploaded(self, trip: Trip) -> None:
        """The last bit is there: an arrival."""
        self.entries.append(Entry(self.now, ARRIVAL, trip.id, "arrive", trip))

    def send_out(self, client: int) -> None:
        """Dispatch a job to a client."""
        nth = self.sent.get(client, 0)
        trip = Trip(self.dispatched, client, nth, self.version, self.params, self.round, self.setting.legs(client, nth))
        self.sent[client] = nth + 1
        self.dispatched += 1
        self.flying[trip.id] = trip
        self.idle.remove(client)
        self.row("dispatch", trip)
        self.entries.append(Entry(self.now + trip.legs.download, LEG, trip.id, "transfer", trip))
        if trip.legs.lost is not None and (trip.legs.lost < trip.legs.whole or self.roads):
            self.entries.append(Entry(self.now + trip.legs.lost, ARRIVAL, trip.id, "lose", trip))
        elif trip.legs.lost == trip.legs.whole:
            self.met.add("loss in the instant of arrival")
        if trip.legs.whole == 0:
            self.met.add("zero-duration job")

    def downloaded(self, trip: Trip) -> None:
        """End of the download; the wait or computing begins."""
        trip.at = 1
        self.row("downloaded", trip)
        if trip.legs.wait is None:
            self.entries.append(Entry(self.now + trip.legs.compute, LEG, trip.id, "computed", trip))
        else:
            self.entries.append(Entry(self.now + trip.legs.wait, LEG, trip.id, "started", trip))

    def started(self, trip: Trip) -> None:
        """End of the wait; computing begins."""
        self.row("started", trip)
        self.entries.append(Entry(self.now + trip.legs.compute, LEG, trip.id, "computed", trip))

    def computed(self, trip: Trip) -> None:
        """End of computing; the upload begins."""
        self.row("computed", trip)
        self.entries.append(Entry(self.now + trip.legs.upload, LEG, trip.id, "transfer", trip))

    def land(self, trip: Trip) -> None:
        """Free the client and forget what else would have become of the job."""
        del self.flying[trip.id]
        self.idle.append(trip.client)
        self.entries = [entry for entry in self.entries if entry.subject is not trip]
        for road in self.roads.values():
            if trip.id in road.flows:
                road.advance(self.now)
                if road.flows.pop(trip.id, None) is not None:
                    self.met.add("transfer broken off")

    # ---- landings

    def arrive(self, trip: Trip) -> None:
        """An update is there."""
        self.notice(trip)
        tau = self.version - trip.base
        self.land(trip)
        self.arrived += 1
        self.row("arrive", trip, staleness=tau)
        reason = self.turned_away(trip, tau)
        if reason is not None:
            self.met.add(reason)
            self.row("reject", trip, staleness=tau)
            self.without(trip)
        else:
            getattr(self, f"{self.setting.method.name}_arrival")(trip, tau)

    def notice(self, trip: Trip) -> None:
        """Remember who arrived when; raise ``Stalled`` if time stands still and nothing would end it."""
        if any(tick == self.now and client != trip.client for tick, client in self.landings):
            self.met.add("tie of two arrivals")
        self.landings.append((self.now, trip.client))
        endless = self.setting.max_versions is None and self.setting.max_updates is None
        if endless and self.landings.count((self.now, trip.client)) >= PATIENCE:
            self.met.add("time stands still")
            raise Stalled

    def turned_away(self, trip: Trip, tau: int) -> str | None:
        """Why an arrival does not count, if so."""
        method = self.setting.method
        if method.max_staleness is not None and tau > method.max_staleness:
            return "too stale"
        if self.setting.sizes[trip.client] == 0:
            return "no examples"
        return "late straggler" if method.name == "fedavg" and trip.round != self.round else None

    def lose(self, trip: Trip) -> None:
        """A job will not return, unless its arrival is of the same instant."""
        if any(entry.what == "arrive" and entry.subject is trip for entry in self.entries):
            return
        self.met.add("loss")
        tau = self.version - trip.base
        self.land(trip)
        self.row("lose", trip, staleness=tau)
        self.without(trip)

    def without(self, trip: Trip) -> None:
        """Go on after a landing that brought nothing: its place is refilled at once, under every policy."""
        if self.setting.method.name != "fedavg":
            self.open += 1
        elif trip.round == self.round and not self.of_round():
            self.end_round(trip)
            return
        self.go_on()

    def go_on(self) -> None:
        """Stop if a count is reached, else send out."""
        limits = self.setting
        if (limits.max_versions is not None and self.version >= limits.max_versions) or (
            limits.max_updates is not None and self.arrived >= limits.max_updates
        ):
            self.stop()
        else:
            self.fill()

    def stop(self) -> None:
        """The last row, after a last flush where that is asked for."""
        method = self.setting.method
        if method.name == "fedbuff" and self.filled:
            self.met.add("half-full buffer at the stop")
            if method.flush_at_end:
                self.flush(None)
        self.row("stop")
        self.stopped = True

    def publish(self, params: float, trip: Trip | None) -> None:
        """Make a version."""
        self.version += 1
        self.params = params
        self.row("publish", trip)
        self.open, self.held = self.open + self.held, 0

    def freed(self) -> None:
        """Open the place of an update that counts, or keep it for the next publish."""
        if self.setting.dispatch == "immediate":
            self.open += 1
        else:
            self.held += 1

    # ---- methods

    def local(self, trip: Trip) -> float:
        """The job's model."""
        value = self.setting.learned(trip.start, trip.client, trip.nth)
        if not math.isfinite(value):
            self.met.add("update that is not finite")
        return value

    def fedasync_arrival(self, trip: Trip, tau: int) -> None:
        """X <- (1 - a) x + a x_new, or x + a delta, with a = alpha s(tau)."""
        method, model = self.setting.method, self.local(trip)
        share = method.alpha * weight(method, tau)
        self.freed()
        if not math.isfinite(model):
            mixed = self.params
        elif method.mixing == "delta":
            mixed = self.params + share * (model - trip.start)
        else:
            mixed = (1 - share) * self.params + share * model
        self.publish(mixed, trip)
        self.go_on()

    def fedbuff_arrival(self, trip: Trip, tau: int) -> None:
        """Fill the buffer; the K-th update flushes it."""
        method, model = self.setting.method, self.local(trip)
        self.filled += 1
        if math.isfinite(model):
            self.buffer.append((weight(method, tau), model - trip.start))
        self.freed()
        if self.filled == method.buffer_size:
            self.flush(trip)
        self.go_on()

    def flush(self, trip: Trip | None) -> None:
        """X <- x + eta * sum(w delta) / divisor; without a finite member the model stays."""
        method = self.setting.method
        divisor = {"K": len(self.buffer), "sum_w": sum(w for w, _ in self.buffer), "none": 1}[method.normalize]
        step = sum(w * delta for w, delta in self.buffer) / divisor if self.buffer else 0.0
        self.buffer, self.filled = [], 0
        self.publish(self.params + method.server_lr * step, trip)

    # ---- rounds

    def of_round(self) -> list[Trip]:
        """Jobs of the running round that may still report."""
        return [trip for trip in self.flying.values() if trip.round == self.round]

    def begin_round(self) -> None:
        """Ask for a cohort and set the deadline."""
        self.reports, self.reported, self.cohort_waits = [], 0, True
        self.set_deadline()

    def set_deadline(self) -> None:
        """Replace the deadline."""
        self.entries = [entry for entry in self.entries if entry.what != "deadline"]
        if self.setting.method.deadline_ticks is not None:
            tick = self.now + self.setting.method.deadline_ticks
            self.entries.append(Entry(tick, ALARM, self.alarms, "deadline", None))
            self.alarms += 1

    def fedavg_arrival(self, trip: Trip, tau: int) -> None:
        """A report to the running round; the goal, or the last that can come, ends it."""
        assert tau == self.version - trip.base
        model = self.local(trip)
        self.reported += 1
        if math.isfinite(model):
            self.reports.append((self.setting.sizes[trip.client], model))
        if self.reported == self.setting.method.goal or not self.of_round():
            self.end_round(trip)
        else:
            self.go_on()

    def deadline(self, _: None) -> None:
        """The reporting window closes."""
        self.met.add("deadline")
        self.row("alarm")
        if self.cohort_waits:
            self.met.add("round that nobody could join")
            self.row("abandon")
            self.set_deadline()
            self.go_on()
        else:
            self.end_round(None)

    def end_round(self, trip: Trip | None) -> None:
        """Commit or abandon, end stragglers if asked for, and begin the next round."""
        method, stragglers = self.setting.method, self.of_round()
        if self.reported >= max(1, rounded_up(method.min_fraction, method.goal)):
            self.commit(trip)
        else:
            self.met.add("abandoned round")
            self.row("abandon", trip)
        self.round += 1
        if self.count_reached():
            self.stop()
            return
        for straggler in stragglers if method.cancel_stragglers else ():
            self.met.add("cancelled straggler")
            self.land(straggler)
            self.row("cancel", straggler, staleness=self.version - straggler.base)
        self.begin_round()
        self.fill()

    def count_reached(self) -> bool:
        """Whether a count stop holds."""
        versions, updates = self.setting.max_versions, self.setting.max_updates
        return (versions is not None and self.version >= versions) or (updates is not None and self.arrived >= updates)

    def commit(self, trip: Trip | None) -> None:
        """X <- x + eta * (sum n x_i / sum n - x)."""
        total = sum(examples for examples, _ in self.reports)
        mean = sum(examples * model for examples, model in self.reports) / total if total else self.params
        self.publish(self.params + self.setting.method.server_lr * (mean - self.params), trip)

    # ---- selection

    def fill(self) -> None:
        """Send somebody out for every place that can be taken."""
        method = self.setting.method
        if method.name == "fedavg":
            if self.cohort_waits:
                self.cohort_waits = not self.choose(rounded_up(method.over_selection, method.goal))
            return
        self.open -= self.choose(self.open)
        if self.open:
            self.met.add("a place nobody can fill")

    def choose(self, count: int) -> int:
        """Send up to so many clients out, one after another; returns how many it were."""
        for done in range(count):
            client = getattr(self, f"by_{self.setting.selection}")() if self.idle else None
            if client is None:
                return done
            self.send_out(client)
        return count

    def by_longest_idle(self) -> int:
        """Who waits longest."""
        return self.idle[0]

    def by_round_robin(self) -> int:
        """The next by number behind the last one."""
        clients = len(self.setting.sizes)
        while self.pointer % clients not in self.idle:
            self.pointer += 1
        self.pointer += 1
        return (self.pointer - 1) % clients

    def by_order(self) -> int | None:
        """The next of the list, or nobody while it is busy."""
        client = self.setting.order[self.pointer % len(self.setting.order)]
        if client not in self.idle:
            return None
        self.pointer += 1
        return client

    def by_uniform(self) -> int:
        """Sixteen tries in the whole population, then one draw among those who are idle."""
        seed, clients = self.setting.seed, len(self.setting.sizes)
        if 8 * len(self.idle) >= clients:
            for attempt in range(16):
                drawn = (word(seed, Purpose.SELECTION, 0, self.dispatched, attempt) * clients) >> 32
                if drawn in self.idle:
                    return drawn
        else:
            self.met.add("crowded selection")
        last = word(seed, Purpose.SELECTION, 0, self.dispatched, 16)
        return sorted(self.idle)[(last * len(self.idle)) >> 32]


def timeline_sha256(rows: list[tuple[int, str, int, int, int, int]]) -> str:
    """The hash over rows as the timeline's definition packs them, one struct at a time."""
    digest = hashlib.sha256()
    for seq, (ticks, kind, *rest) in enumerate(rows):
        digest.update(struct.pack("<QqBqqqq", seq, ticks, KINDS.index(kind), *rest))
    return digest.hexdigest()
