"""The delay-aware learning rate of Forootani and Iervolino, 2025 (arXiv 2508.01675), in two meanings of "delay".

The published rule is ``gamma_e = gamma_0 / (sqrt(e + 1) * (1 + alpha_lr * delay))`` for local epoch e = 0, 1, ...

(a) ``meaning = "drawn"``: the delay is the job's drawn wait before training, in seconds, known when it is sent
    out. The client trains with :func:`drawn_delay_lr` as its first rate and ``Work.decay = "inverse_sqrt_epoch"``.
    The server knows nothing of it: the strategy's own staleness weight works as always, on top.
(b) ``meaning = "staleness"``: the delay is the staleness at arrival, so it acts at the server. The client trains
    with ``gamma_0 / sqrt(e + 1)``; :func:`weigh_by_staleness` gives the strategy ``s(tau) = 1 / (1 + alpha_lr * tau)``
    INSTEAD OF its own staleness weight, or, with ``combine = true``, multiplied with it.

What (b) does to a strategy: FedAsync mixes with ``alpha / (1 + alpha_lr * tau)`` (``alpha = 1`` and ``mixing =
"delta"`` is the rule as published), FedBuff weighs each buffered delta with it (and divides as ``normalize``
says: ``"sum_w"`` leaves only the relative weights), FedAvg is unchanged, because nothing it uses is ever stale.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from desim_fl.errors import RefusedError
from desim_fl.strategies.fedavg import FedAvg
from desim_fl.strategies.staleness import InverseLinear, Product

if TYPE_CHECKING:
    from desim_fl.core import Strategy


def drawn_delay_lr(gamma_0: float, alpha_lr: float, wait_s: float) -> float:
    """First epoch's rate of a job that waited ``wait_s`` seconds: ``gamma_0 / (1 + alpha_lr * wait_s)``."""
    return gamma_0 / (1.0 + alpha_lr * wait_s)


def weigh_by_staleness(strategy: Strategy, alpha_lr: float, *, combine: bool = False) -> Strategy:
    """Return the strategy with ``1 / (1 + alpha_lr * tau)`` in place of its s(tau), or times it with ``combine``.

    Raises RefusedError for a strategy that has no staleness weight to replace.
    """
    if isinstance(strategy, FedAvg):
        return strategy
    changed: Any = strategy
    if not dataclasses.is_dataclass(strategy) or not hasattr(strategy, "weigh") or not hasattr(strategy, "staleness"):
        raise RefusedError(
            f'training.delay_aware with meaning = "staleness" needs a strategy with a staleness weight, and '
            f'{type(strategy).__name__} has none; use meaning = "drawn", or give it the dataclass field "staleness" '
            f'and the attribute "weigh" as in desim_fl/strategies/fedbuff.py'
        )
    rule = InverseLinear(alpha_lr)
    return dataclasses.replace(changed, staleness=Product(changed.weigh, rule) if combine else rule)
