"""What a plan can tell before anybody pays for training: waiting, waste, fairness, and what other settings would do.

Everything is counted from the timeline. The variants are the same world with one setting changed, played without training and
to a bounded number of updates; they share its draws, so that they can be compared pair by pair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from desim_fl.build import varied
from desim_fl.engine import Engine
from desim_fl.errors import DesimError
from desim_fl.eventlog import EventLog
from desim_fl.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from desim_fl.build import Built
    from desim_fl.records import Batch
    from desim_fl.run import Session
    from desim_fl.scenario import Scenario

MOST_UPDATES = 2_000  # that a variant plays
MOST_CLIENTS = 100_000  # up to which variants are played: a world of more takes long to set up
_TOLD = (Kind.DISPATCH, Kind.ARRIVE, Kind.REJECT, Kind.PUBLISH, Kind.LOSE, Kind.CANCEL)
_NOTE = np.dtype([("kind", "u1"), ("tick", "<i8"), ("client", "<i4"), ("job", "<i8"), ("staleness", "<i4")])
SIZES = ("buffer_size", "clients_per_round", "deadline_s")


class Advisor:
    """Takes note of a timeline while it is played; one that does not listen remembers whose it is."""

    def __init__(self, *, listening: bool = True) -> None:
        self._notes: list[NDArray[np.void]] = []
        self.listening = listening
        self.session: Session | None = None

    def attach(self, session: Session) -> None:
        """Listen to a session that is about to play."""
        self.session = session
        if self.listening:
            self.listen(session.engine)

    @property
    def played(self) -> Session:
        """The session that it was attached to; ``ValueError`` where it was attached to none."""
        if self.session is None:
            raise ValueError("the advisor was attached to no session")
        return self.session

    def listen(self, engine: Engine) -> None:
        """Listen to an engine's log."""
        before = engine.log.tally

        def tally(batch: Batch) -> None:
            before(batch)
            self.note(batch)

        engine.log.tally = tally

    def note(self, batch: Batch) -> None:
        """Keep what is asked of a batch of the log."""
        told = np.isin(batch.kind, [int(kind) for kind in _TOLD])
        notes = np.zeros(int(told.sum()), _NOTE)
        notes["kind"], notes["tick"] = batch.kind[told], batch.ticks[told]
        for name in ("client", "job", "staleness"):
            notes[name] = batch.records[name][told]
        self._notes.append(notes)

    def course(self) -> Course:
        """Return what was noted so far."""
        notes = np.concatenate(self._notes) if self._notes else np.zeros(0, _NOTE)
        return Course(notes)


class Course(NamedTuple):
    """The noted rows of one timeline, in order."""

    notes: NDArray[np.void]

    def of(self, *kinds: Kind) -> NDArray[np.void]:
        """Return the rows of some kinds."""
        return self.notes[np.isin(self.notes["kind"], [int(kind) for kind in kinds])]

    def _sent(self) -> NDArray[np.int64]:
        """Tick of each job's dispatch, by job."""
        return self.of(Kind.DISPATCH)["tick"]

    def age_s(self) -> NDArray[np.float64]:
        """Seconds from dispatch to arrival of each update: how old the model was that it started from."""
        arrivals = self.of(Kind.ARRIVE)
        return (arrivals["tick"] - self._sent()[arrivals["job"]]) / 1e6

    def waits_s(self) -> NDArray[np.float64]:
        """Seconds that each applied update had waited for the others of its version: for stragglers, or for a buffer to fill."""
        publish = np.flatnonzero(self.notes["kind"] == int(Kind.PUBLISH))
        came = np.flatnonzero(self.notes["kind"] == int(Kind.ARRIVE))
        rejected = self.of(Kind.REJECT)["job"]
        came = came[~np.isin(self.notes["job"][came], rejected)]
        following = np.searchsorted(publish, came)
        came, following = came[following < len(publish)], following[following < len(publish)]
        return (self.notes["tick"][publish[following]] - self.notes["tick"][came]) / 1e6

    def wasted_s(self) -> float:
        """Seconds of jobs whose work counts for nothing: rejected, lost, cancelled."""
        ends = self.of(Kind.REJECT, Kind.LOSE, Kind.CANCEL)
        return float((ends["tick"] - self._sent()[ends["job"]]).sum() / 1e6)

    def worked_s(self) -> float:
        """Seconds of all jobs that ended."""
        ends = self.of(Kind.ARRIVE, Kind.LOSE, Kind.CANCEL)
        return float((ends["tick"] - self._sent()[ends["job"]]).sum() / 1e6)


def spread_of(values: NDArray[Any]) -> dict[str, float | None]:
    """Mean, median, 99th percentile (smallest values not exceeded by that share) and maximum; ``None`` where there are none."""
    if not len(values):
        return dict.fromkeys(("mean", "p50", "p99", "max"))
    ordered = np.sort(values)
    places = {
        name: ordered[max(0, int(np.ceil(share * len(ordered))) - 1)] for name, share in (("p50", 0.5), ("p99", 0.99))
    }
    return {
        "mean": float(values.mean()),
        **{name: float(value) for name, value in places.items()},
        "max": float(ordered[-1]),
    }


def advice(advisor: Advisor) -> dict[str, Any]:
    """Return what the timeline tells, as it stands in ``plan --json``."""
    course, built = advisor.course(), advisor.played.built
    worked = course.worked_s()
    return {
        "staleness_s": spread_of(course.age_s()),
        "waits_for_others_s": spread_of(course.waits_s()),
        "links": links(advisor.played),
        "wasted": {"client_s": course.wasted_s(), "share": course.wasted_s() / worked if worked else None},
        "fairness": fairness(course, built),
        "what_if": list(variants(built)),
    }


def links(session: Session) -> dict[str, dict[str, float | None]]:
    """Return, down and up, how many transfers a client had under way on average, and what passed the server.

    Latency counts as transfer; ``mean_mbps`` are megabits a second of all clients together. A client that has one job at a time
    has one transfer at most: there it is the share of its time in which its link is in use, ``clients_busy``. Where it may have
    several they overlap, and it is ``transfers_each`` instead.
    """
    name = "transfers_each" if session.built.world.client_queue > 1 else "clients_busy"
    ticks, clients = session.ticks, len(session.built.population)

    def of(leg: str, size: str) -> dict[str, float | None]:
        if not ticks:
            return {name: None, "mean_mbps": None}
        usage = session.engine.usage
        return {
            name: usage.sum_of(leg) / (ticks * clients),
            "mean_mbps": usage.sum_of(size) * 8 / ticks,  # bits in a microsecond
        }

    return {"down": of("download", "bytes_down"), "up": of("upload", "bytes_up")}


def fairness(course: Course, built: Built) -> dict[str, Any]:
    """Return how evenly updates come: Jain's index over clients (1 = all alike), and each device class's share."""
    count, devices = len(built.population), built.trips.devices
    updates = np.bincount(course.of(Kind.ARRIVE)["client"], minlength=count).astype(float)
    total, squares = float(updates.sum()), float((updates**2).sum())
    found: dict[str, Any] = {"jain": total * total / (count * squares) if squares else None, "classes": None}
    if devices.classes is not None:
        members = np.bincount(devices.classes, minlength=len(devices.class_names))
        came = np.bincount(devices.classes, weights=updates, minlength=len(devices.class_names))
        found["classes"] = {
            name: {"clients": int(members[at]), "share_of_clients": members[at] / count, "share_of_updates": came[at] / total if total else None}
            for at, name in enumerate(devices.class_names)
        }  # fmt: skip
    return found


# ---- what other settings would do


def variants(built: Built) -> Iterator[dict[str, Any]]:
    """Yield the plan itself and each of its settings halved and doubled, played to a bounded number of updates."""
    if len(built.population) > MOST_CLIENTS:
        return
    for changed, scenario in settings(built.scenario):
        yield {"changed": changed, **_played(built, scenario)}


def settings(scenario: Scenario) -> Iterator[tuple[dict[str, Any], Scenario]]:
    """Yield what is changed, and the scenario with that."""
    yield {}, scenario
    run, strategy = scenario.run, scenario.strategy
    if "concurrency" not in strategy.settles() and run.arrivals is None:
        most = scenario.clients.count * (run.client_queue or 1)
        for value in _around(run.concurrency, most):
            yield (
                {"run.concurrency": value},
                scenario.model_copy(update={"run": run.model_copy(update={"concurrency": value})}),
            )
    for key in SIZES:
        now = getattr(strategy, key, None)
        if now is None:
            continue
        for value in _around(now, scenario.clients.count if key == "clients_per_round" else None):
            table = strategy.model_copy(update={key: value})
            if getattr(table, "cohort", 0) <= scenario.clients.count:
                yield {f"strategy.{key}": value}, scenario.model_copy(update={"strategy": table})


def _around(value: Any, most: int | None) -> Iterator[Any]:
    """Yield half and twice a value, whole where it is, within its bounds."""
    for other in (value // 2, value * 2) if isinstance(value, int) else (value / 2, value * 2):
        if other > 0 and (most is None or other <= most):
            yield other


def _played(built: Built, scenario: Scenario) -> dict[str, Any]:
    """Play a variant and sum it up; a variant that cannot be played says why."""
    advisor = Advisor()
    try:
        engine = Engine(varied(built, scenario, MOST_UPDATES), EventLog())
        advisor.listen(engine)
        engine.run()
    except DesimError as error:
        return {"error": str(error)}
    seconds, course = engine.final_ticks / 1e6, advisor.course()
    tau = course.of(Kind.ARRIVE)["staleness"]
    waits = course.waits_s()
    return {
        "updates": len(tau),
        "updates_a_second": len(tau) / seconds if seconds else None,
        "versions_a_second": engine.model.version / seconds if seconds else None,
        "staleness": spread_of(tau),
        "waits_for_others_s": float(waits.mean()) if len(waits) else None,
        "wasted_share": course.wasted_s() / worked if (worked := course.worked_s()) else None,
        "rejected": engine.ledger.rejected,
    }
