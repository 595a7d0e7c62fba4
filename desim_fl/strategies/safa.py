"""SAFA: semi-asynchronous rounds over a cache of every client's newest model, with a tolerance for lag."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from desim_fl.core import Alarm, Reply, Send, Stop
from desim_fl.strategies.fedavg import share_of
from desim_fl.strategies.options import require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, Update, View


class Report(NamedTuple):
    """What a client brought; ``model`` is ``None`` where it is not finite."""

    job: int
    client: int
    model: Params


class Collected(NamedTuple):
    """The running round: its number, who was picked in the last one, and who has reported, in order of arrival.

    ``picked`` are those that count now, ``undrafted`` those that were picked last time and wait. ``cache`` holds the model
    of every client that the server aggregates.
    """

    number: int
    cache: tuple[Params, ...]
    last: tuple[int, ...] = ()
    picked: tuple[Report, ...] = ()
    undrafted: tuple[Report, ...] = ()


@dataclass(frozen=True, slots=True)
class Safa:
    """At the end of a round ``x <- sum over ALL clients k of n_k / n * w*_k``, the cache w* refreshed by those picked.

    Wu et al., "SAFA: A Semi-Asynchronous Protocol for Fast Federated Learning with Low Overhead", IEEE Transactions on
    Computers 2021. All clients train all the time. A round picks ``quota = ceil(fraction * N)`` reports, first of clients
    that were not picked last time, in order of arrival; it ends when it has them, at ``round_limit_s``, or when nothing more
    can come, and is then filled up with the others that reported. What these bring beyond the quota (undrafted) enters
    the cache after the aggregation. Whoever reported starts again from x; who still trains goes on with the model that
    it has, unless that is more than ``lag_tolerance`` versions old: then its job is cancelled, its cache entry becomes x, and
    it starts again from x.

    The cache starts with x_0 for everybody (the authors' code trains all clients once before the first round). A round
    without a report is abandoned. The server holds one model a client.
    """

    fraction: float = 0.1
    lag_tolerance: int = 5
    round_limit_s: float | None = None
    max_staleness: int | None = field(default=None, init=False, repr=False)
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, "fraction", self.fraction, "must lie in (0, 1]")
        require(self.lag_tolerance >= 0, "lag_tolerance", self.lag_tolerance, "must be at least 0")
        limit = self.round_limit_s
        require(limit is None or limit > 0, "round_limit_s", limit, "must be above 0")

    def start(self, view: View) -> tuple[Collected, Reply]:
        """Send everybody out."""
        state = Collected(0, (view.params,) * view.clients)
        return state, Reply(sends=(Send(view.clients, wait=False),), alarms=self._alarms(0))

    def arrive(self, state: Collected, view: View, update: Update) -> tuple[Collected, Reply]:
        """Pick the report, or let it wait; end the round if the quota is full or nobody is out any more."""
        client = update.job.client
        report = Report(update.job.id, client, update.outcome.params if update.finite else None)
        if client in state.last:
            state = state._replace(undrafted=(*state.undrafted, report))
        else:
            state = state._replace(picked=(*state.picked, report))
        if len(state.picked) < self._quota(view) and view.flying:
            return state, Reply(sends=())
        return self._end(state, view)

    def lose(self, state: Collected, view: View, loss: Loss) -> tuple[Collected, Reply]:  # noqa: ARG002
        """End the round if nobody is out any more."""
        return (state, Reply(sends=())) if view.flying else self._end(state, view)

    def alarm(self, state: Collected, view: View, name: str) -> tuple[Collected, Reply]:
        """End the round with what is there."""
        if name != _limit(state.number):
            return state, Reply(sends=())
        if not view.flying and not state.picked and not state.undrafted:  # those asked for still wait in the engine
            return state, Reply(abandon=True, sends=(), alarms=self._alarms(state.number))
        return self._end(state, view)

    def _end(self, state: Collected, view: View) -> tuple[Collected, Reply]:
        quota, following = self._quota(view), state.number + 1
        short = max(0, quota - len(state.picked))
        picked, undrafted = (*state.picked, *state.undrafted[:short]), state.undrafted[short:]
        alarms = self._alarms(following, taken_back=state.number)
        if not picked:
            return Collected(following, state.cache), Reply(abandon=True, sends=_everybody(view), alarms=alarms)
        cache = _refreshed(state.cache, picked)
        x, shares = self._aggregated(cache, picked, view)
        cache = _refreshed(cache, undrafted)
        flying = view.flying.items()
        behind = {job: flight.client for job, flight in flying if flight.staleness + 1 > self.lag_tolerance}
        late = tuple(behind.values())
        cache = tuple(x if client in late else model for client, model in enumerate(cache))
        reply = Reply(
            params=x,
            shares=shares,
            sends=_everybody(view, len(behind)),
            stops=tuple(Stop(job) for job in behind),
            alarms=alarms,
        )
        return Collected(following, cache, tuple(report.client for report in picked)), reply

    def _aggregated(
        self, cache: tuple[Params, ...], picked: tuple[Report, ...], view: View
    ) -> tuple[Params, tuple[tuple[int, float], ...]]:
        """The mean of the cache, and the shares of those picked; the version in force where none of them is finite."""
        total, sizes, mean, seen = sum(view.sizes), view.sizes, None, 0
        finite = [report for report in picked if report.model is not None]
        if not finite:
            return view.params, ()
        for client, model in enumerate(cache):
            if sizes[client]:
                seen += sizes[client]
                mean = model if mean is None else mean + (sizes[client] / seen) * (model - mean)
        return mean, tuple((report.job, sizes[report.client] / total) for report in finite)

    def _quota(self, view: View) -> int:
        return max(1, share_of(self.fraction, view.clients))

    def _alarms(self, number: int, taken_back: int | None = None) -> tuple[Alarm, ...]:
        if self.round_limit_s is None:
            return ()
        alarm = Alarm(_limit(number), self.round_limit_s)
        return (alarm,) if taken_back is None else (Alarm(_limit(taken_back), None), alarm)


def _limit(number: int) -> str:
    return f"round {number}"


def _everybody(view: View, stopped: int = 0) -> tuple[Send, ...]:
    """Send out whoever is not out, with those whose jobs are stopped now."""
    idle = view.clients - len(view.flying) + stopped
    return (Send(idle, wait=False),) if idle else ()


def _refreshed(cache: tuple[Params, ...], reports: tuple[Report, ...]) -> tuple[Params, ...]:
    """The cache with what these reports brought, where it is finite."""
    newer = {report.client: report.model for report in reports if report.model is not None}
    return tuple(newer.get(client, model) for client, model in enumerate(cache)) if newer else cache
