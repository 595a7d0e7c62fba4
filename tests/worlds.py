"""Small worlds on floats for tests of the engine: scripted durations, arithmetic instead of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from desim_fl.assignment import Assignment
from desim_fl.core import Job, Model, Outcome, Promise, Reply, Score, Trip, Work
from desim_fl.engine import Engine
from desim_fl.eventlog import EventLog, MemorySink
from desim_fl.selection import ExplicitOrder, LongestIdle, RoundRobin
from desim_fl.world import StopRules, World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

S = 1_000_000  # ticks in a second


@dataclass
class ScriptedTrips:
    """Compute durations in seconds by client: a number, or a list by the client's job count (last one repeats)."""

    compute: Sequence[float | Sequence[float]]
    download: float = 0.0
    upload: float = 0.0
    wait: float | None = None
    lost: dict[tuple[int, int], tuple[float, str]] = field(default_factory=dict)
    contended: bool = False

    def trip(self, client: int, nth: int, work: Work) -> Trip:
        """The scripted trip of this client's nth job."""
        entry = self.compute[client]
        compute = entry[min(nth, len(entry) - 1)] if isinstance(entry, (list, tuple)) else entry
        lost = self.lost.get((client, nth))
        return Trip(
            download=round(self.download * S),
            wait=None if self.wait is None else round(self.wait * S),
            compute=round(compute * S),
            upload=round(self.upload * S),
            bytes_down=100,
            bytes_up=100,
            lost=None if lost is None else (round(lost[0] * S), lost[1]),
        )


@dataclass
class FloatExecutor:
    """Trains by a function of the job; the default adds 1 to the parameter."""

    sizes: Sequence[int]
    learn: Callable[[Job], float] = lambda job: job.params + 1.0
    name: str = "floats"
    submitted: list[tuple[Job, int]] = field(default_factory=list)
    evaluated: list[Model] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    outcome: Callable[[Job, int, Outcome], Outcome] = lambda job, steps, outcome: outcome

    def submit(self, job: Job, due: int) -> None:
        """Remember the job and when it is due."""
        self.submitted.append((job, due))

    def collect(self, job: Job, steps: int) -> Outcome:
        """Apply the function."""
        plain = Outcome(self.learn(job), examples=self.sizes[job.client], steps=steps, loss=0.5)
        return self.outcome(job, steps, plain)

    def release(self, job: Job) -> None:
        """Remember which jobs were let go."""
        self.released.append(job.id)

    def evaluate(self, model: Model) -> Promise:
        """The parameter is its own loss."""
        self.evaluated.append(model)
        return Promise(lambda: (Score("test", model.params, None, 1),))

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Plain:
    """A strategy that publishes every arrival by adding its delta; the base of tiny test strategies."""

    reads_outcomes: bool = False
    max_staleness: int | None = None

    def start(self, view):
        return None, Reply()

    def arrive(self, state, view, update):
        return state, Reply(params=view.params + update.delta, weight=1.0, scale=1.0)

    def lose(self, state, view, loss):
        return state, Reply()

    def alarm(self, state, view, name):
        return state, Reply()


@dataclass
class Played:
    """A finished engine with its log."""

    engine: Engine
    sink: MemorySink
    sha256: str
    executor: FloatExecutor
    evaluations: list

    def rows(self, *kinds: str) -> list[tuple]:
        """(seconds, kind, client, job, version, staleness) of the rows of these kinds (all if none is named)."""
        return [(t / S, k, *rest) for t, k, *rest in self.sink.tuples() if not kinds or k in kinds]

    def arrivals(self) -> list[tuple]:
        """(seconds, client, staleness) of arrivals."""
        return [(t, client, staleness) for t, _, client, _, _, staleness in self.rows("arrive")]


def selector(name: str, clients: int, order: Sequence[int] = ()):
    """A selector that draws nothing."""
    if name == "order":
        return ExplicitOrder(tuple(order))
    return LongestIdle() if name == "longest_idle" else RoundRobin(tuple(range(clients)))


def play(
    trips: ScriptedTrips,
    *,
    strategy=None,
    select: str = "longest_idle",
    order: Sequence[int] = (),
    stops: StopRules | None = None,
    learn=None,
    sizes: Sequence[int] | None = None,
    start: float = 0.0,
    outcome=None,
    steps: int = 1,
    epochs: int = 1,
    average=lambda base, members: base,
    buffers=None,
    segment_rows: int = 65_536,
    schedule=None,
    **world,
) -> Played:
    """Play a world of floats to its stop."""
    sizes = sizes if sizes is not None else [1] * len(trips.compute)
    executor = FloatExecutor(sizes)
    if learn is not None:
        executor.learn = learn
    if outcome is not None:
        executor.outcome = outcome
    chosen = select if not isinstance(select, str) else selector(select, len(sizes), order)
    sink, evaluations = MemorySink(), []
    engine = Engine(
        World(
            strategy=strategy or Plain(),
            selector=chosen,
            trips=trips,
            executor=executor,
            assignment=Assignment([steps] * len(sizes), epochs=epochs, schedule=schedule),
            sizes=sizes,
            model=Model(0, start, buffers),
            average=average,
            stops=stops or StopRules(max_updates=10),
            **world,
        ),
        EventLog(sink, segment_rows),
        evaluations.append,
    )
    sha256 = engine.run()
    return Played(engine, sink, sha256, executor, evaluations)
