"""The nouns of the simulated world, shared by every layer.

Facts are NamedTuples: immutable, cheap to make once a job, equal by value. Time is counted in *ticks*, whole
microseconds of virtual time (int); seconds appear only in scenario files and reports. ``Params`` is whatever
supports the arithmetic of :mod:`desim_fl.algebra`: a float in tests, a NumPy array, a flat torch vector of all
trainable floats, or ``Null`` where nothing is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Params = Any
TICKS_PER_SECOND = 1_000_000
_new: Any = tuple.__new__


class Work(NamedTuple):
    """What one job is asked to compute.

    A strategy states what it wants to differ (``None`` = as the scenario says); in a dispatched job ``epochs``,
    ``steps`` and ``lr`` are always filled in. ``steps`` counts optimiser steps in total. ``lr`` is the rate of
    the first epoch; with ``decay = "inverse_sqrt_epoch"`` epoch e (from 0) uses ``lr / sqrt(e + 1)``.
    ``part`` holds the indices of a sub-model (``None`` = the whole model). ``partial`` marks a dispatched job that does less
    than it was asked for, because its client is a straggler; ``probe`` one that does not train at all: its outcome is the
    loss of the model that it brought, on all samples of the client.
    """

    epochs: int | None = None
    steps: int | None = None
    lr: float | None = None
    decay: str = "constant"
    part: tuple[int, ...] | None = None
    partial: bool = False
    probe: bool = False


class Model(NamedTuple):
    """One version of the global model. ``buffers`` never pass through a strategy's arithmetic."""

    version: int
    params: Params
    buffers: Any = None


class Job(NamedTuple):
    """One dispatch to one client: immutable and shared by engine, strategy and executor.

    ``nth`` counts the dispatches to this client before this one (from 0); with the client's key it names every
    random stream of the job. ``version`` is the model it starts from. ``extra`` is broadcast by the strategy,
    ``memory`` is what this client returned last time, ``tag`` is the strategy's own mark (a round number, say).
    """

    id: int
    client: int
    nth: int
    version: int
    params: Params
    buffers: Any
    work: Work
    extra: Any = None
    memory: Any = None
    tag: int = 0


class Trip(NamedTuple):
    """Drawn durations of a job's legs, in ticks, and the bytes it moves.

    ``wait`` is ``None`` where no wait law is set. ``lost`` is ``(ticks after dispatch, reason)`` for a job that
    never comes back; it must not exceed the whole trip, and a loss in the very instant of arrival has arrived.
    """

    download: int
    wait: int | None
    compute: int
    upload: int
    bytes_down: int = 0
    bytes_up: int = 0
    lost: tuple[int, str] | None = None


class Outcome(NamedTuple):
    """What training a job gave.

    ``examples`` is the number of distinct training samples of the client, ``steps`` the optimiser steps really
    done, ``stopped`` whether local training ended early, ``loss`` the mean training loss over those steps
    (``None`` if there is none), ``memory`` what the client keeps until its next job, ``bad`` the name of the
    first non-finite entry (``None`` = everything is finite).
    """

    params: Params
    buffers: Any = None
    examples: int = 0
    steps: int = 0
    stopped: bool = False
    loss: float | Any | None = None
    extra: Any = None
    memory: Any = None
    bad: str | None = None


class Update(NamedTuple):
    """An arrived job as a strategy sees it.

    ``staleness`` is the version at arrival minus the job's version. ``cache`` is what the strategy last asked the
    engine to keep for this client. Where ``finite`` is false the engine has put the job's own base parameters in
    the outcome's place, so that a weight of 0 leaves no trace: multiply weights by ``counts``.
    """

    job: Job
    outcome: Outcome
    staleness: int
    finite: bool = True
    cache: Any = None

    @property
    def delta(self) -> Params:
        """Local end minus base, to be added."""
        return self.outcome.params - self.job.params

    @property
    def counts(self) -> float:
        """1.0 for a finite update, 0.0 for one that keeps its place but must weigh nothing."""
        return 1.0 if self.finite else 0.0


class Loss(NamedTuple):
    """A job that will not return, or whose return was turned away by the engine; ``why`` says which."""

    job: Job
    staleness: int
    why: str


class Flight(NamedTuple):
    """A job in flight, as a strategy may look at it."""

    client: int
    version: int
    staleness: int
    tag: int


class Send(NamedTuple):
    """Whom to send out, with what.

    Either ``clients`` (exactly these, in this order) or ``count`` clients that the selector chooses, from
    ``group`` if named. A place that nobody can take stays open for the next selectable client; with
    ``wait = False`` places beyond those selectable now are dropped, unless none at all could be filled.
    ``start`` is an older version to start from. ``secret`` asks for a group of which only the sum is seen.
    """

    count: int = 1  # pyright: ignore[reportIncompatibleMethodOverride]
    clients: tuple[int, ...] | None = None
    group: str | None = None
    work: Work | None = None
    extra: Any = None
    start: Model | None = None
    tag: int = 0
    wait: bool = True
    secret: bool = False


class Stop(NamedTuple):
    """End a running job.

    ``how``: ``"cancel"`` it; have it report at its next ``"epoch"`` or ``"step"`` boundary; or ``"now"``, what it has
    done so far: whole steps, perhaps none (a job that is still on its way to the client reports as soon as it is there).
    """

    job: int
    how: str = "cancel"


class Alarm(NamedTuple):
    """Wake the strategy after so many virtual seconds; ``None`` takes a pending alarm of that name back."""

    name: str
    after_s: float | None


class Reply(NamedTuple):
    """What a strategy asks of the engine after an event.

    ``params``   a new global model: published as the next version. ``None`` = no publish.
    ``shares``   convex shares ``(job, share)`` for averaging float buffers at this publish; what is left to 1
                 stays with the server's own buffers. ``None`` = equal shares of all updates since the last publish. An update
                 that stated shares leave out can be named by a later version, until its client brings another one.
    ``sends``    ``None`` = the dispatch policy refills what became free; otherwise exactly these.
    ``stops``    running jobs to end.
    ``keep``     ``(client, value)`` pairs for the engine's per-client cache, read back as ``Update.cache``.
    ``alarms``   alarms to set or take back.
    ``weight``   what this arrival's delta or model is multiplied with, before ``scale``.
    ``scale``    at a publish: what the weighted sum was multiplied with (1/K, 1/sum of weights, ...).
    ``reject``   turn this arrival away, with the reason.
    ``abandon``  a round ended without a publish.
    """

    params: Params = None
    shares: tuple[tuple[int, float], ...] | None = None
    sends: tuple[Send, ...] | None = None
    stops: tuple[Stop, ...] = ()
    keep: tuple[tuple[int, Any], ...] = ()
    alarms: tuple[Alarm, ...] = ()
    weight: float | None = None
    scale: float | None = None
    reject: str | None = None
    abandon: bool = False


def applied(params: Params, shares: tuple[tuple[int, float], ...], weight: float | None, scale: float) -> Reply:
    """Make the reply that asks for a publish and nothing else: what ``Reply`` with these fields is, at a third of its price."""
    return _new(Reply, (params, shares, None, (), (), (), weight, scale, None, False))


class View(Protocol):
    """What a strategy and a selector may look at; live and read-only."""

    @property
    def version(self) -> int:
        """The version in force."""
        ...

    @property
    def params(self) -> Params:
        """Parameters of the version in force."""
        ...

    @property
    def model(self) -> Model:
        """The version in force, to keep or to start a job from."""
        ...

    @property
    def clients(self) -> int:
        """How many clients there are."""
        ...

    @property
    def sizes(self) -> Sequence[int]:
        """Training examples by client."""
        ...

    @property
    def groups(self) -> Mapping[str, Sequence[int]]:
        """Named groups of clients."""
        ...

    @property
    def concurrency(self) -> int:
        """How many jobs the dispatch policy keeps in flight."""
        ...

    @property
    def flying(self) -> Mapping[int, Flight]:
        """Jobs in flight, by id."""
        ...

    def cache(self, client: int) -> Any:
        """What the strategy last asked the engine to keep for a client; ``None`` = nothing."""
        ...


@runtime_checkable
class Strategy(Protocol):
    """A server method: pure functions of (state, event), without clock, random numbers or torch.

    ``reads_outcomes`` must be true where what it sends, stops, rejects or when it publishes depends on trained
    values. ``max_staleness`` (``None`` = no bound) makes the engine turn older updates away.
    """

    @property
    def reads_outcomes(self) -> bool:
        """Whether its decisions depend on trained values."""
        ...

    @property
    def max_staleness(self) -> int | None:
        """Largest staleness that is let in; ``None`` = no bound."""
        ...

    def start(self, view: View) -> tuple[Any, Reply]:
        """Make the first state, and say whom to send out."""
        ...

    def arrive(self, state: Any, view: View, update: Update) -> tuple[Any, Reply]:
        """Take an update in."""
        ...

    def lose(self, state: Any, view: View, loss: Loss) -> tuple[Any, Reply]:
        """Hear, once, of a job that will not count."""
        ...

    def alarm(self, state: Any, view: View, name: str) -> tuple[Any, Reply]:
        """Hear an alarm that was set."""
        ...


class Roster(Protocol):
    """Who can be selected now; every method is cheap and changes nothing."""

    @property
    def selectable(self) -> int:
        """How many clients can be selected."""
        ...

    def is_selectable(self, client: int) -> bool:
        """Whether this client can."""
        ...

    def nth_selectable(self, rank: int) -> int:
        """The client at this rank (from 0) of those selectable, sorted by number."""
        ...

    def longest_idle(self, count: int) -> Sequence[int]:
        """Up to ``count`` clients, idle longest first."""
        ...

    def mask(self) -> Sequence[int]:
        """1 for each client that can be selected, else 0, by number; live, to be read at once."""
        ...


class Selector(Protocol):
    """Chooses up to ``send.count`` distinct selectable clients; pure like a strategy."""

    @property
    def reads_outcomes(self) -> bool:
        """Whether its decisions depend on trained values."""
        ...

    def start(self) -> Any:
        """Make the first state."""
        ...

    def choose(self, state: Any, view: View, roster: Roster, send: Send, number: int) -> tuple[Any, tuple[int, ...]]:
        """Choose for a send; ``number`` is the dispatch number of the first client chosen."""
        ...


class Trips(Protocol):
    """Draws the durations of a job's legs.

    Where ``contended`` is false, arrival is known at dispatch. Else the legs are without the transfers over links that
    jobs share, whose ends the engine finds out.
    """

    @property
    def contended(self) -> bool:
        """Whether transfers share links with others."""
        ...

    def trip(self, client: int, nth: int, work: Work) -> Trip:
        """Durations and bytes of this client's nth job."""
        ...


class Executor(Protocol):
    """Where training runs. ``due`` (ticks) only orders work; results never depend on it."""

    name: str

    def submit(self, job: Job, due: int) -> None:
        """Take a job in; ``due`` (ticks) orders work and nothing else."""
        ...

    def collect(self, job: Job, steps: int) -> Outcome:
        """Return what training ``steps`` steps of a submitted job gives; raises ``JobError``."""
        ...

    def release(self, job: Job) -> None:
        """Let go of a job that landed or was stopped."""
        ...

    def evaluate(self, model: Model) -> Promise:
        """Promise the scores of a version on every split."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class Promise:
    """Scores that may still be computed somewhere: call it to wait for them; ``ready`` tells without waiting."""

    __slots__ = ("_get", "ready")

    def __init__(self, get: Callable[[], Sequence[Score]], ready: Callable[[], bool] | None = None) -> None:
        self._get = get
        self.ready: Callable[[], bool] = ready or (lambda: True)

    def __call__(self) -> Sequence[Score]:
        """Wait for the scores, and return them."""
        return self._get()


class Score(NamedTuple):
    """One evaluation of one version on one part of the data; ``accuracy`` is ``None`` where it has no meaning."""

    split: str
    loss: float
    accuracy: float | None
    examples: int
