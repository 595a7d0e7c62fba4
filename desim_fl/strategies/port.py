"""PORT: waits for a few, and for whoever falls too far behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from desim_fl.algebra import Null, dot, norm
from desim_fl.core import Reply, Stop
from desim_fl.strategies.options import require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, Update, View


class Reports(NamedTuple):
    """Reports since the last version: how many, the weighted mean of their models, the sum of weights, whose they are.

    ``urged`` tells whether those who fall behind have been told to report; ``step`` is the last aggregation's
    ``w_t - w_{t-1}`` (``None`` before the first).
    """

    filled: int = 0
    mean: Params = None
    weights: Params = 0.0
    members: tuple[tuple[int, Params], ...] = ()
    urged: bool = False
    step: Params = None


@dataclass(frozen=True, slots=True)
class Port:
    """``w <- sum_k p_k w_k`` over all who reported, once ``min_clients`` did and nobody out there is too far behind.

    Su, Li, "How Asynchronous can Federated Learning Be?", IWQoS 2022, equations (1) to (4): ``s_k = alpha Omega / (S_k +
    Omega)``, ``Theta_k = beta (cos(Delta_k, w_t - w_{t-1}) + 1) / 2``, ``p_k`` in proportion to ``|D_k| (s_k + Theta_k)``.
    ``staleness_bound`` is Omega; ``None`` = infinite, where s_k = alpha; the paper's sweet spot is 10. Before an aggregation the server waits for every
    job that would be more than Omega versions old after it, and tells it to report at the end of its current epoch (the
    urgent notification); so S_k <= Omega always. The cosine is 1 before the first aggregation or if it moved nothing, and 0
    for a Delta_k of 0. Models are averaged, as in the paper; the authors' code adds weighted deltas. A non-finite report
    counts among the reports with weight 0.
    """

    min_clients: int = 15
    staleness_bound: int | None = None
    alpha: float = 3.0
    beta: float = 1.0
    max_staleness: int | None = field(default=None, init=False, repr=False)
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.min_clients >= 1, "min_clients", self.min_clients, "must be at least 1")
        bound = self.staleness_bound
        require(bound is None or bound >= 1, "staleness_bound", bound, "must be at least 1")
        require(self.alpha > 0, "alpha", self.alpha, "must be greater than 0")
        require(self.beta >= 0, "beta", self.beta, "must be at least 0")

    def start(self, view: View) -> tuple[Reports, Reply]:  # noqa: ARG002
        """Let the engine fill the concurrency."""
        return Reports(), Reply()

    def arrive(self, state: Reports, view: View, update: Update) -> tuple[Reports, Reply]:
        """Take the report in; aggregate if nobody need be waited for."""
        weight = self._weight(state, update) if update.finite else 0.0
        state = state._replace(filled=state.filled + 1)
        if update.finite:
            model, weights = update.outcome.params, state.weights + weight
            mean = model if state.mean is None else state.mean + (weight / weights) * (model - state.mean)
            state = state._replace(mean=mean, weights=weights, members=(*state.members, (update.job.id, weight)))
        state, reply = self._go_on(state, view, update.job.id)
        return state, reply._replace(weight=weight if isinstance(weight, float) else None)

    def _weight(self, state: Reports, update: Update) -> Params:
        """Weight of a report before normalisation: a number, or ``Null`` where nothing is trained."""
        bound = self.staleness_bound
        fresh = self.alpha if bound is None else self.alpha * bound / (update.staleness + bound)
        likeness = self.beta * (_cosine(update.delta, state.step) + 1.0) / 2.0 if self.beta else 0.0
        return float(update.outcome.examples) * (fresh + likeness)

    def _go_on(self, state: Reports, view: View, gone: int) -> tuple[Reports, Reply]:
        """Wait for more reports, urge those who fall behind, or aggregate."""
        if state.filled < self.min_clients:
            return state, Reply()
        behind = self._behind(view, gone)
        if behind:
            urge = () if state.urged else tuple(Stop(job, how="epoch") for job in behind)
            return state._replace(urged=True), Reply(stops=urge)
        if state.mean is None:
            return Reports(step=state.step), Reply(params=view.params, shares=(), scale=0.0)
        shares = tuple((job, weight / state.weights) for job, weight in state.members)
        known = state.weights is not Null
        reply = Reply(params=state.mean, shares=shares if known else None, scale=1.0 / state.weights if known else None)
        return Reports(step=state.mean - view.params), reply

    def _behind(self, view: View, gone: int) -> list[int]:
        """Jobs that would be too old after an aggregation."""
        if self.staleness_bound is None:
            return []
        bound = self.staleness_bound
        return [job for job, out in view.flying.items() if job != gone and out.staleness >= bound]

    def lose(self, state: Reports, view: View, loss: Loss) -> tuple[Reports, Reply]:
        """Count on this one no more; it may have been the last that was waited for."""
        return self._go_on(state, view, loss.job.id)

    def alarm(self, state: Reports, view: View, name: str) -> tuple[Reports, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()


def _cosine(delta: Params, step: Params) -> Params:
    """Cosine of the angle between an update and the last step; see the class for what has no angle."""
    if delta is Null:
        return Null
    if step is None:
        return 1.0
    lengths = norm(delta), norm(step)
    if lengths[1] == 0:
        return 1.0
    return 0.0 if lengths[0] == 0 else dot(delta, step) / (lengths[0] * lengths[1])
