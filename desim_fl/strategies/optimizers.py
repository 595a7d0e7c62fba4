"""Optimisers of the server: how far a version moves, given the pseudo-gradient Delta that a method computed (to be added).

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2 (FedAdagrad, FedAdam, FedYogi); Hsu, Qi, Brown,
"Measuring the Effects of Non-Identical Data Distribution", 2019 (FedAvgM); Wang et al., "FADAS", ICML 2024 (AMSGrad).
Each is a pure function of (moments, Delta), elementwise on floats, arrays, torch vectors and ``Null``:

    sgd        x <- x + lr Delta
    momentum   m <- beta1 m + Delta;  x <- x + lr m
    adagrad    v <- v + Delta^2
    adam       v <- beta2 v + (1 - beta2) Delta^2
    yogi       v <- v - (1 - beta2) Delta^2 sign(v - Delta^2)
    amsgrad    v as adam, and the largest v so far in its place

where the last four have ``m <- beta1 m + (1 - beta1) Delta`` and ``x <- x + lr m / (sqrt(v) + eps)``, from m = 0 and
v = ``initial_v``. There is no bias correction unless ``bias_correction`` is set: then m is divided by 1 - beta1^t and
v by 1 - beta2^t, t = 1 at the first step, as in Kingma and Ba's Adam (Google's published runs and FADAS's code use it;
algorithm 2 does not).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.algebra import maximum, sign, sqrt
from desim_fl.strategies.options import one_of, require

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.core import Params

    Second = Callable[[Params, Params, float], Params]


class Moments(NamedTuple):
    """What an optimiser remembers: steps done, first and second moment, and the largest second one (amsgrad).

    Before the first step the moments are the numbers that they start from.
    """

    steps: int = 0
    first: Params = 0.0
    second: Params = 0.0
    largest: Params = 0.0


def _adagrad(second: Params, square: Params, beta2: float) -> Params:  # noqa: ARG001  (one signature)
    return second + square


def _adam(second: Params, square: Params, beta2: float) -> Params:
    return beta2 * second + (1.0 - beta2) * square


def _yogi(second: Params, square: Params, beta2: float) -> Params:
    return second - (1.0 - beta2) * (square * sign(second - square))


SECOND: dict[str, Second] = {"adagrad": _adagrad, "adam": _adam, "yogi": _yogi, "amsgrad": _adam}
NAMES = ("sgd", "momentum", *SECOND)
CORRECTABLE = ("adam", "amsgrad")


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """One of :data:`NAMES` with its options; the formulas stand in the module's docstring.

    ``beta1`` is momentum's beta, too; adagrad usually has ``beta1 = 0``.
    """

    name: str = "sgd"
    lr: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-3
    initial_v: float = 0.0
    bias_correction: bool = False

    def __post_init__(self) -> None:
        one_of("server_optimizer.name", self.name, NAMES)
        require(0 < self.lr < math.inf, "server_optimizer.lr", self.lr, "must be greater than 0")
        require(0 <= self.beta1 < 1, "server_optimizer.beta1", self.beta1, "must lie in [0, 1)")
        require(0 <= self.beta2 < 1, "server_optimizer.beta2", self.beta2, "must lie in [0, 1)")
        require(0 < self.eps < math.inf, "server_optimizer.eps", self.eps, "must be greater than 0")
        require(0 <= self.initial_v < math.inf, "server_optimizer.initial_v", self.initial_v, "must be at least 0")
        if self.bias_correction:
            corrects = self.name in CORRECTABLE
            require(corrects, "server_optimizer.bias_correction", value=True, rule="belongs to adam and amsgrad")
            require(
                self.initial_v == 0,
                "server_optimizer.initial_v",
                self.initial_v,
                "must be 0 with bias_correction, which corrects for a start from 0",
            )

    def start(self) -> Moments:
        """Begin without a step."""
        return Moments(second=self.initial_v, largest=self.initial_v)

    def step(self, moments: Moments, params: Params, delta: Params, *, factor: float = 1.0) -> tuple[Moments, Params]:
        """Do one step from ``params`` along ``delta``; ``factor`` multiplies the learning rate of this step alone."""
        lr = self.lr * factor
        if self.name == "sgd":
            return moments._replace(steps=moments.steps + 1), params + lr * delta
        if self.name == "momentum":
            first = self.beta1 * moments.first + delta
            return moments._replace(steps=moments.steps + 1, first=first), params + lr * first
        moments = self._moved(moments, delta)
        numerator, denominator = self._corrected(moments)
        return moments, params + lr * numerator / denominator

    def _moved(self, moments: Moments, delta: Params) -> Moments:
        first = self.beta1 * moments.first + (1.0 - self.beta1) * delta
        second = SECOND[self.name](moments.second, delta * delta, self.beta2)
        largest = maximum(moments.largest, second) if self.name == "amsgrad" else moments.largest
        return Moments(moments.steps + 1, first, second, largest)

    def _corrected(self, moments: Moments) -> tuple[Params, Params]:
        """Numerator and denominator of the step."""
        root: Any = sqrt(moments.largest if self.name == "amsgrad" else moments.second)
        if not self.bias_correction:
            return moments.first, root + self.eps
        first = moments.first / (1.0 - self.beta1**moments.steps)
        return first, root / math.sqrt(1.0 - self.beta2**moments.steps) + self.eps
