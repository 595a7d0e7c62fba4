"""Closed forms that the simulator must meet, checked by playing: ``desim-fl verify --oracles``.

Each oracle plays worlds through the whole stack, from the scenario's tables to the event log, without training, at fixed
seeds. Where theory gives a number for one path, the measured one must be equal. Where it gives an expectation, a z-test is made:
the standard error comes from the spread of rounds, or of the means of consecutive batches of one long run (so that
correlation within a run counts), and a deviation beyond :data:`Z` standard errors fails. At a true expectation that happens to
one line in 10,000.

A further oracle is one more entry of :data:`ORACLES`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl.build import build
from desim_fl.devices import JOB, Devices
from desim_fl.engine import Engine
from desim_fl.eventlog import EventLog, MemorySink
from desim_fl.records import Kind
from desim_fl.scenario import Scenario

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

ALPHA, Z = 1e-4, 3.8906  # two-sided, of each line
BATCHES = 40
SECOND = 1_000_000
EXPONENTIAL = {"law": "exponential", "mean": 1.0}


class Line(NamedTuple):
    """One number of theory and what was measured; ``error`` is its standard error (``None`` = it must be equal)."""

    quantity: str
    expected: float
    measured: float
    error: float | None = None

    @property
    def deviation(self) -> float:
        """Measured minus expected."""
        return self.measured - self.expected

    @property
    def holds(self) -> bool:
        """Whether the measurement agrees with theory."""
        if self.error is None:
            return self.measured == self.expected
        return abs(self.deviation) <= Z * self.error

    @property
    def confidence(self) -> str:
        """What the comparison is worth, in words."""
        if self.error is None:
            return "exact"
        z = self.deviation / self.error if self.error else math.inf
        return f"z = {z:+.2f}, |z| <= {Z:.2f} (alpha = {ALPHA:g})"


class Oracle(NamedTuple):
    """A closed form: its name, where it comes from, and what plays it."""

    name: str
    source: str
    lines: Callable[[], Iterator[Line]]


class Played(NamedTuple):
    """The timeline of a world that was played to its stop: its rows, and the engine."""

    rows: NDArray[np.void]
    engine: Engine

    def of(self, kind: Kind) -> NDArray[np.void]:
        """Return the rows of one kind."""
        return self.rows[self.rows["kind"] == int(kind)]

    @property
    def seconds(self) -> float:
        """Virtual time of the stop."""
        return self.engine.final_ticks / SECOND


def played(
    count: int,
    *,
    strategy: dict[str, Any],
    run: dict[str, Any],
    jitter: Any = 1.0,
    times: Sequence[float] | None = None,
    examples: Any = 1,
) -> Played:
    """Play ``count`` clients that compute ``jitter`` seconds a job, times ``times`` of each client, on free links."""
    scenario = Scenario.model_validate(
        {
            "data": {"name": "quadratic", "examples_per_client": examples},
            "clients": {"count": count, "seconds_per_job": 1.0, "jitter_factor": jitter},
            "strategy": strategy,
            "run": {"seed": 1, **run},
        }
    )
    world = build(scenario, timing_only=True).world
    if times is not None:
        devices = Devices(tuple(map(float, times)), 1.0, JOB)
        world = replace(world, trips=replace(world.trips, devices=devices))  # pyright: ignore[reportArgumentType, reportCallIssue]
    sink = MemorySink()
    engine = Engine(world, EventLog(sink))
    engine.run()
    return Played(np.concatenate([segment.rows for segment in sink]), engine)


def averaged(quantity: str, expected: float, values: Any, *, independent: bool = False) -> Line:
    """Compare the mean of measured values; those of one run, in order, are taken in batches unless they are independent."""
    values = np.asarray(values, np.float64)
    if not independent:
        size = len(values) // BATCHES
        values = values[-size * BATCHES :].reshape(BATCHES, size).mean(axis=1)
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return Line(quantity, expected, float(values.mean()), error)


# ---- staleness


def _identity() -> Iterator[Line]:
    """Sum of staleness over landed jobs and ages in flight = (c - 1) F, or (c - K) F where places wait for a publish."""
    for dispatch, gain in (("immediate", 1), ("after_aggregation", 5)):
        done = played(
            50,
            strategy={"name": "fedbuff", "buffer_size": 5},
            run={"concurrency": 20, "dispatch": dispatch, "max_updates": 5000},
            jitter={"law": "pareto", "alpha": 1.5, "scale": 1.0},
        )
        version = done.engine.model.version
        ages = sum(version - flying.job.version for flying in done.engine.flights.values())
        landed = int(done.of(Kind.ARRIVE)["staleness"].sum())
        due = version * (20 - gain)
        yield Line(f"total staleness, c = 20, K = 5, {dispatch}", due, landed + ages)


def _geometric() -> Iterator[Line]:
    """Ten always busy workers with exponential times: staleness is geometric with parameter 1 / 10."""
    done = played(10, strategy={"name": "fedasync"}, run={"concurrency": 10, "max_updates": 60_000}, jitter=EXPONENTIAL)
    tau = done.of(Kind.ARRIVE)["staleness"][2000:].astype(float)
    yield averaged("mean staleness, c = 10", 9.0, tau)
    yield averaged("variance of staleness", 90.0, (tau - 9.0) ** 2)
    for k in (0, 5):
        yield averaged(f"P(staleness = {k})", 0.1 * 0.9**k, tau == k)


def _rates() -> Iterator[Line]:
    """Exponential workers of rates 1, 2, 4: shares of updates in proportion, staleness geometric in them."""
    done = played(
        3,
        strategy={"name": "fedasync"},
        run={"concurrency": 3, "max_updates": 40_000},
        jitter=EXPONENTIAL,
        times=(1, 0.5, 0.25),
    )
    arrivals = done.of(Kind.ARRIVE)[100:]
    for client, rate in enumerate((1, 2, 4)):
        mine = arrivals["client"] == client
        yield averaged(f"share of updates at rate {rate}", rate / 7, mine)
        yield averaged(f"mean staleness at rate {rate}", 7 / rate - 1, arrivals["staleness"][mine])
    yield averaged("mean staleness of updates", 2.0, arrivals["staleness"])


def _equal_times() -> Iterator[Line]:
    """Five workers of equal, fixed times: staleness 0, 1, 2, 3, 4, then 4 for ever."""
    done = played(5, strategy={"name": "fedasync"}, run={"concurrency": 5, "max_updates": 50})
    tau = done.of(Kind.ARRIVE)["staleness"].tolist()
    yield Line("updates with the staleness of theory, of 50", 50, sum(map(int.__eq__, tau, [0, 1, 2, 3] + [4] * 46)))


def _one_and_three() -> Iterator[Line]:
    """Fixed times 1 and 3: the first nine events, and period 3 from then on."""
    done = played(2, strategy={"name": "fedasync"}, run={"concurrency": 2, "max_updates": 101}, times=(1, 3))
    found = [(t // SECOND, c, s) for t, c, s in done.of(Kind.ARRIVE)[["ticks", "client", "staleness"]].tolist()]
    start = [(1, 0, 0), (2, 0, 0), (3, 1, 2), (3, 0, 1)]
    cycle = [(1, 0, 0), (2, 0, 0), (3, 1, 3), (3, 0, 1)]
    later = [(3 * lap + t, c, s) for lap in range(1, 26) for t, c, s in cycle]
    due = (start + later)[: len(found)]
    yield Line(
        "events (t, worker, staleness) of theory, of 101", 101, sum(a == b for a, b in zip(due, found, strict=True))
    )


def _open_system() -> Iterator[Line]:
    """Arrivals at rate 100 with half-normal trips, nobody ever busy: concurrency rate E[S], staleness that over K."""
    load = 100 * math.sqrt(2 / math.pi)
    for kind in ("poisson", "constant"):
        done = played(
            3000,
            strategy={"name": "fedbuff", "buffer_size": 10},
            run={"arrivals": kind, "arrival_rate": 100.0, "max_updates": 40_000},
            jitter={"law": "half_normal", "sd": 1.0},
        )
        yield averaged(f"jobs in flight, {kind} arrivals", load, _in_flight(done, 10.0, 390.0))
        tau = done.of(Kind.ARRIVE)["staleness"][1000:]
        if kind == "poisson":
            yield averaged("mean staleness, K = 10, poisson arrivals", load / 10, tau)
        else:
            below = load / 10 - float(tau.mean())
            yield Line("constant arrivals: staleness less by 0 to 1 / K", 1, float(0 <= below <= 1 / 10))


def _in_flight(done: Played, since: float, until: float) -> NDArray[np.float64]:
    """Time-average of jobs in flight in each of the batches of a stretch of virtual time."""
    rows = done.rows[np.isin(done.rows["kind"], (int(Kind.DISPATCH), int(Kind.ARRIVE)))]
    step = np.where(rows["kind"] == int(Kind.DISPATCH), 1, -1)
    level, ticks = np.concatenate([[0], np.cumsum(step)]), rows["ticks"] / SECOND
    edges = np.linspace(since, until, BATCHES + 1)
    area = np.concatenate([[0.0], np.cumsum(level[1:-1] * np.diff(ticks))])
    places = np.searchsorted(ticks, edges, side="right") - 1
    upto = area[places] + level[places + 1] * (edges - ticks[places])
    return np.diff(upto) / np.diff(edges)


# ---- closed networks of queues


def buzen(loads: Sequence[float], customers: int) -> list[float]:
    """Normalising constants G(0..C) of a closed network with these relative loads p / mu (Buzen's convolution)."""
    constants = [1.0] + [0.0] * customers
    for load in loads:
        for k in range(1, customers + 1):
            constants[k] += load * constants[k - 1]
    return constants


def mean_queue(loads: Sequence[float], customers: int, place: int) -> float:
    """Mean number of customers at one place of the network."""
    constants = buzen(loads, customers)
    return sum(loads[place] ** k * constants[customers - k] / constants[customers] for k in range(1, customers + 1))


def _jackson() -> Iterator[Line]:
    """Jobs queue at clients, the server routes at random: throughput G(C - 1) / G(C), delays by Little's discrete law."""
    for count, customers in ((5, 3), (10, 10), (10, 30)):
        done = _network(count, customers, 30_000, "uniform")
        due = count * customers / (count + customers - 1)
        yield _throughput(f"throughput, n = {count}, C = {customers}", due, done)
    rates, shares = (1.0, 2.0, 4.0), (0.5, 0.3, 0.2)
    done = _network(3, 6, 60_000, "weighted", times=[1 / rate for rate in rates], examples=[5, 3, 2])
    loads = [share / rate for share, rate in zip(shares, rates, strict=True)]
    constants = buzen(loads, 6)
    yield _throughput("throughput, mu = 1, 2, 4, p = .5, .3, .2, C = 6", constants[5] / constants[6], done)
    arrivals = done.of(Kind.ARRIVE)[1000:]
    for client, share in enumerate(shares):
        mine = arrivals["staleness"][arrivals["client"] == client]
        yield averaged(f"mean staleness of client {client}", mean_queue(loads, 5, client) / share, mine)
    yield averaged("mean staleness of updates = C - 1", 5.0, arrivals["staleness"])


def _network(count: int, customers: int, updates: int, selection: str, **world: Any) -> Played:
    run = {"concurrency": customers, "client_queue": customers, "selection": selection, "max_updates": updates}
    return played(count, strategy={"name": "fedasync"}, run=run, jitter=EXPONENTIAL, **world)


def _throughput(quantity: str, expected: float, done: Played) -> Line:
    """Compare updates a second: the mean time between arrivals, and its error carried over."""
    line = averaged(quantity, 1 / expected, np.diff(done.of(Kind.ARRIVE)["ticks"][500:]) / SECOND)
    error = (line.error or 0.0) / line.measured**2
    return Line(quantity, expected, 1 / line.measured, error)


def _without_queues() -> Iterator[Line]:
    """Ten of twenty clients busy, no queues: throughput is c / E[S], whatever the law."""
    for law, mean in ((EXPONENTIAL, 1.0), ({"law": "lognormal", "median": 1.0, "sigma": 0.6}, math.exp(0.18))):
        done = played(20, strategy={"name": "fedasync"}, run={"concurrency": 10, "max_updates": 30_000}, jitter=law)
        yield _throughput(f"throughput, c = 10, {law['law']}", 10 / mean, done)


# ---- synchronous rounds


def _rounds(strategy: dict[str, Any], rounds: int, jitter: Any, count: int = 100) -> Played:
    table = {"name": "fedavg", "cancel_stragglers": True, **strategy}
    return played(count, strategy=table, run={"max_versions": rounds}, jitter=jitter)


def _lengths(done: Played) -> NDArray[np.float64]:
    """Seconds of each round, committed or abandoned."""
    ends = done.rows[np.isin(done.rows["kind"], (int(Kind.PUBLISH), int(Kind.ABANDON)))]["ticks"]
    return np.diff(np.concatenate([[0], ends])) / SECOND


def harmonic(n: int) -> float:
    """H_n = 1 + 1/2 + ... + 1/n."""
    return float(sum(Fraction(1, k) for k in range(1, n + 1)))


def _largest(of: int, tail: Callable[[NDArray[np.float64]], NDArray[np.float64]], top: float) -> float:
    """Return E max of m variables by integrating 1 - F^m, where ``tail`` is 1 - F."""
    grid: NDArray[np.float64] = (np.arange(400_000, dtype=np.float64) + 0.5) * (top / 400_000)
    return float((1.0 - (1.0 - tail(grid)) ** of).mean() * top)


def _synchronous() -> Iterator[Line]:
    """A round lasts as long as the slowest of its cohort; over-selection waits for the K-th of N only."""
    half_normal = {"law": "half_normal", "sd": 1.0}
    normal_tail = np.vectorize(lambda x: math.erfc(x / math.sqrt(2)), otypes=[float])
    worlds = (
        ("10 of 10, exponential", {"clients_per_round": 10}, EXPONENTIAL, harmonic(10)),
        ("100 of 100, exponential", {"clients_per_round": 100}, EXPONENTIAL, harmonic(100)),
        (
            "10 of 13, exponential",
            {"clients_per_round": 10, "over_selection": 1.3},
            EXPONENTIAL,
            harmonic(13) - harmonic(3),
        ),
        ("5 of 5, uniform (0, 2)", {"clients_per_round": 5}, {"law": "uniform", "low": 1e-9, "high": 2.0}, 5 / 3),
        ("10 of 10, half-normal", {"clients_per_round": 10}, half_normal, _largest(10, normal_tail, 12.0)),
    )
    for name, strategy, law, due in worlds:
        rounds = 300 if strategy["clients_per_round"] == 100 else 1500  # noqa: PLR2004
        yield averaged(f"length of a round, {name}", due, _lengths(_rounds(strategy, rounds, law)), independent=True)


def _deadline() -> Iterator[Line]:
    """13 selected, 10 needed by 2 s, exponential times: how often a round commits, and how long it lasts."""
    strategy = {"clients_per_round": 10, "over_selection": 1.3, "deadline_s": 2.0, "min_fraction": 1.0}
    done = _rounds(strategy, 1500, EXPONENTIAL)
    ends = done.rows[np.isin(done.rows["kind"], (int(Kind.PUBLISH), int(Kind.ABANDON)))]
    yield averaged(
        "share of rounds that commit", _at_least(13, 10, 2.0), ends["kind"] == int(Kind.PUBLISH), independent=True
    )
    grid = (np.arange(20_000) + 0.5) / 10_000
    due = float(np.mean([1.0 - _at_least(13, 10, t) for t in grid]) * 2.0)
    yield averaged("length of a round", due, _lengths(done), independent=True)


def _at_least(n: int, k: int, t: float) -> float:
    """Chance that at least k of n exponential times are below t."""
    p = 1.0 - math.exp(-t)
    return sum(math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k, n + 1))


# ---- fixed computation model


def _asynchronous_sgd() -> Iterator[Line]:
    """Workers of fixed times h_i make sum floor(t / h_i) updates by t."""
    for times, until in (((2, 3), 12), ((1, 2, 5, 9), 90), ((1.5, 2.5, 7), 100)):
        run = {"concurrency": len(times), "max_time_s": float(until)}
        done = played(len(times), strategy={"name": "fedasync"}, run=run, times=times)
        due = sum(Fraction(until) // Fraction(h) for h in times)
        yield Line(f"updates by {until} s, h = {times}", int(due), len(done.of(Kind.ARRIVE)))


def _minibatch() -> Iterator[Line]:
    """K rounds of all workers take k times the slowest."""
    for times, rounds in (((1, 2, 5, 9), 7), ((0.5, 0.75), 40)):
        strategy = {"name": "fedavg", "clients_per_round": len(times)}
        done = played(len(times), strategy=strategy, run={"max_versions": rounds}, times=times)
        yield Line(f"seconds of {rounds} rounds, h = {times}", rounds * max(times), done.seconds)


ORACLES: tuple[Oracle, ...] = (
    Oracle("O1 staleness identity", "pathwise, any durations", _identity),
    Oracle("O2 geometric staleness", "equal exponential workers", _geometric),
    Oracle("O3 unequal workers", "exponential rates 1, 2, 4", _rates),
    Oracle("O4 equal fixed times", "ties by dispatch order", _equal_times),
    Oracle("O5 fixed times 1 and 3", "ties by dispatch order", _one_and_three),
    Oracle("O6 open arrivals", "Little; M/G/infinity", _open_system),
    Oracle("queues at clients", "closed Jackson network: Leconte et al. 2024; Buzen 1973", _jackson),
    Oracle("no queues", "throughput c / E[S]", _without_queues),
    Oracle("synchronous rounds", "order statistics", _synchronous),
    Oracle("rounds with a deadline", "binomial reports; Bonawitz et al. 2019", _deadline),
    Oracle("asynchronous SGD", "fixed computation model", _asynchronous_sgd),
    Oracle("minibatch SGD", "fixed computation model", _minibatch),
)


def checked(oracles: Sequence[Oracle] = ORACLES) -> Iterator[tuple[Oracle, Line]]:
    """Play every oracle and yield its lines."""
    for oracle in oracles:
        for line in oracle.lines():
            yield oracle, line


def table(found: Sequence[tuple[Oracle, Line]]) -> str:
    """Return the lines as text: oracle, quantity, expected, measured, deviation, confidence, verdict."""
    rows: list[tuple[str, ...]] = [("oracle", "quantity", "expected", "measured", "deviation", "confidence", "")]
    for oracle, line in found:
        numbers = (f"{value:.6g}" for value in (line.expected, line.measured, line.deviation))
        rows.append((oracle.name, line.quantity, *numbers, line.confidence, "holds" if line.holds else "FAILS"))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def result(found: Sequence[tuple[Oracle, Line]]) -> list[dict[str, Any]]:
    """Return the lines as JSON objects."""
    return [
        {
            "oracle": oracle.name,
            "source": oracle.source,
            **line._asdict(),
            "deviation": line.deviation,
            "confidence": line.confidence,
            "holds": line.holds,
        }
        for oracle, line in found
    ]
