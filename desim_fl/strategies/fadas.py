"""FADAS: an adaptive server step (AMSGrad) on buffered updates."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from desim_fl.algebra import maximum, sqrt
from desim_fl.core import Reply
from desim_fl.strategies.buffer import Buffer
from desim_fl.strategies.options import one_of, require

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, Update, View


class Moments(NamedTuple):
    """The buffer, the largest staleness in it, steps made, and AMSGrad's moments (``None`` = zero)."""

    buffer: Buffer = Buffer()
    oldest: int = 0
    steps: int = 0
    m: Params = None
    v: Params = None
    vhat: Params = None


@dataclass(frozen=True, slots=True)
class Fadas:
    """The mean delta of M arrivals is the gradient of an AMSGrad step of the server.

    Wang, Wang, Lu, Chen, "FADAS: Towards Federated Adaptive Asynchronous Optimization", ICML 2024, algorithm 1:
    ``m = b1 m + (1 - b1) D``, ``v = b2 v + (1 - b2) D^2``, ``vhat = max(vhat, v)``, ``x <- x + eta m / (sqrt(vhat) +
    eps)``; neither staleness nor sample weights. ``bias_correction`` is what the authors' code does and the formula does
    not: the step is divided by ``1 - b1^t``, the root by ``sqrt(1 - b2^t)``. (The code's rate is eta times the clients'
    rate: give the product as ``server_lr``.)

    With ``delay_adaptive``, a buffer whose largest staleness tau exceeds ``tau_c`` makes a step of ``eta / tau``
    (``delay_rule = "code"``, as in the authors' code) or of ``min(eta, 1 / tau)`` (``"formula"``, which for a small eta
    binds only at enormous delays). A non-finite update fills its place, but neither mean nor largest staleness knows
    of it; a buffer without a finite one is no step.
    """

    buffer_size: int = 5
    server_lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    bias_correction: bool = True
    delay_adaptive: bool = True
    delay_rule: str = "code"
    tau_c: int = 1
    max_staleness: int | None = None
    reads_outcomes: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        require(self.buffer_size >= 1, "buffer_size", self.buffer_size, "must be at least 1")
        require(self.server_lr > 0, "server_lr", self.server_lr, "must be greater than 0")
        require(0 <= self.beta1 < 1, "beta1", self.beta1, "must lie in [0, 1)")
        require(0 <= self.beta2 < 1, "beta2", self.beta2, "must lie in [0, 1)")
        require(self.eps > 0, "eps", self.eps, "must be greater than 0")
        require(self.tau_c >= 0, "tau_c", self.tau_c, "must be at least 0")
        one_of("delay_rule", self.delay_rule, ("code", "formula"))

    def rate(self, oldest: int) -> float:
        """The server's rate for a buffer whose largest staleness is this."""
        if not self.delay_adaptive or oldest <= self.tau_c:
            return self.server_lr
        return self.server_lr / oldest if self.delay_rule == "code" else min(self.server_lr, 1.0 / oldest)

    def start(self, view: View) -> tuple[Moments, Reply]:  # noqa: ARG002
        """Begin with an empty buffer and moments of zero."""
        return Moments(), Reply()

    def arrive(self, state: Moments, view: View, update: Update) -> tuple[Moments, Reply]:
        """Take the update in; step at the M-th."""
        oldest = max(state.oldest, update.staleness) if update.finite else state.oldest
        state = state._replace(buffer=state.buffer.plus(update.delta, finite=update.finite), oldest=oldest)
        if state.buffer.filled < self.buffer_size:
            return state, Reply(weight=update.counts)
        if not state.buffer.finite:
            state = state._replace(buffer=Buffer(), oldest=0)
            return state, Reply(params=view.params, shares=(), weight=0.0, scale=0.0)
        state = self._moved(state, state.buffer.total / state.buffer.finite)
        rate, root = self.rate(oldest), sqrt(state.vhat)
        if self.bias_correction:
            rate /= 1.0 - self.beta1**state.steps
            root = root / math.sqrt(1.0 - self.beta2**state.steps)
        return state, Reply(params=view.params + rate * state.m / (root + self.eps), weight=update.counts, scale=rate)

    def _moved(self, state: Moments, delta: Params) -> Moments:
        m, v = (1.0 - self.beta1) * delta, (1.0 - self.beta2) * (delta * delta)
        if state.steps:
            m, v = self.beta1 * state.m + m, self.beta2 * state.v + v
        return Moments(Buffer(), 0, state.steps + 1, m, v, maximum(state.vhat, v) if state.steps else v)

    def lose(self, state: Moments, view: View, loss: Loss) -> tuple[Moments, Reply]:  # noqa: ARG002
        """Let the engine refill the place."""
        return state, Reply()

    def alarm(self, state: Moments, view: View, name: str) -> tuple[Moments, Reply]:  # noqa: ARG002
        """Do nothing: no alarm is ever set."""
        return state, Reply()
