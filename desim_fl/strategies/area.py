"""AREA and ASO-Fed: the server holds what amounts to the latest model of every client."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from desim_fl import algebra
from desim_fl.core import Reply
from desim_fl.errors import RefusedError
from desim_fl.strategies.buffer import Buffer, learners
from desim_fl.strategies.options import require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, Update, View


class Changes(NamedTuple):
    """Changes of the clients' latest models since the last version, the model they all began with, and N."""

    buffer: Buffer
    first: Params
    clients: int


@dataclass(frozen=True, slots=True)
class Area:
    """Each arrival gives ``d = x_i - y_i`` (then ``y_i = x_i``); at every K-th, ``x <- x + (1/N) sum d``.

    Iakovidou, Kim, "Asynchronous Federated Stochastic Optimization for Heterogeneous Objectives Under Arbitrary Delays",
    arXiv 2405.10123, as in the author's simulator. ``y_i``, the latest model of client i, is x_0 before the first. The
    division is by N, the clients that have samples, not by the buffer: so always ``x_v = x_0 + (1/N) sum (y_i - x_0)``, the
    mean of the latest models, however often each of them arrives. (The author's simulator also scales client i's rate by
    n_i / sum n; here rates are the scenario's.) The engine keeps the y_i: N models of memory. A non-finite update
    leaves y_i as it was.
    """

    buffer_size: int = 1
    max_staleness: int | None = None
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.buffer_size >= 1, "buffer_size", self.buffer_size, "must be at least 1")

    def start(self, view: View) -> tuple[Changes, Reply]:
        """Remember the model that all begin with."""
        return Changes(Buffer(), view.params, learners(view)), Reply()

    def arrive(self, state: Changes, view: View, update: Update) -> tuple[Changes, Reply]:
        """Take the change of this client's model in; step at the K-th."""
        model = update.outcome.params
        known = state.first if update.cache is None else update.cache
        state = state._replace(buffer=state.buffer.plus(model - known, finite=update.finite))
        keep = ((update.job.client, model),) if update.finite else ()
        reply = Reply(keep=keep, weight=update.counts)
        if state.buffer.filled < self.buffer_size:
            return state, reply
        if not state.buffer.finite:
            return state._replace(buffer=Buffer()), reply._replace(params=view.params, shares=(), scale=0.0)
        params = view.params + state.buffer.total / state.clients
        return state._replace(buffer=Buffer()), reply._replace(params=params, scale=1.0 / state.clients)

    def lose(self, state: Changes, view: View, loss: Loss) -> tuple[Changes, Reply]:  # noqa: ARG002
        """Let the engine refill the place."""
        return state, Reply()

    def alarm(self, state: Changes, view: View, name: str) -> tuple[Changes, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()


class Copies(NamedTuple):
    """The model that all clients' copies began with, and how many samples there are."""

    first: Params
    examples: int


@dataclass(frozen=True, slots=True)
class AsoFed:
    """Experimental. At each arrival ``x <- x + (n_i / sum n) (x_i - y_i)``, y_i being the server's copy of that client.

    Chen, Ning, Slawski, Rangwala, "Asynchronous Online Federated Learning for Edge Devices with Non-IID Data", IEEE
    BigData 2020 (arXiv 1911.02134): the server's rule, with the copies x_0 at first. The clients' part is local training:
    ``training.proximal_mu`` is the paper's lambda, ``training.gradient_decay`` its beta
    (:mod:`desim_fl.learning.gradients`), and ``training.delay_step`` the dynamic step (:mod:`desim_fl.delays`). With
    ``feature_learning`` the feature representation learning follows each step: of the first layer's weights, which lead the
    vector, ``first_layer`` = (units, inputs) of them, ``w_ij <- exp|w_ij| / sum_j exp|w_ij| w_ij``. The paper's text was not at hand: both as the
    formulas have been told. The number of samples does not grow. The engine keeps the copies: N models of memory. A
    non-finite update leaves copy and model as they were.
    """

    feature_learning: bool = False
    first_layer: tuple[int, int] | None = None
    max_staleness: int | None = None
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def start(self, view: View) -> tuple[Copies, Reply]:
        """Remember the model that all begin with. Raises RefusedError for feature learning on a layer that is not known."""
        if self.feature_learning and self.first_layer is None:
            raise RefusedError("feature_learning needs first_layer = (units, inputs), the weights that lead the vector")
        return Copies(view.params, sum(view.sizes)), Reply()

    def arrive(self, state: Copies, view: View, update: Update) -> tuple[Copies, Reply]:
        """Add what this client's copy changed by, in its share of all samples."""
        if not update.finite:
            return state, Reply(params=view.params, shares=(), weight=0.0, scale=1.0)
        model, share = update.outcome.params, update.outcome.examples / state.examples
        known = state.first if update.cache is None else update.cache
        params, keep = view.params + share * (model - known), ((update.job.client, model),)
        if self.feature_learning and self.first_layer is not None:
            params = algebra.salient(params, *self.first_layer)
        return state, Reply(params=params, shares=((update.job.id, share),), keep=keep, weight=share, scale=1.0)

    def lose(self, state: Copies, view: View, loss: Loss) -> tuple[Copies, Reply]:  # noqa: ARG002
        """Let the engine refill the place."""
        return state, Reply()

    def alarm(self, state: Copies, view: View, name: str) -> tuple[Copies, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()
