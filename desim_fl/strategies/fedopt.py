"""Rounds with an optimiser at the server, by the names under which they were published.

Each is FedAvg's round under :class:`desim_fl.strategies.optimized.Optimized`, and prints as what it is. The papers average
the cohort's deltas with equal weights; here, as in FedAvg, by examples unless ``weights = "uniform"``. None corrects its
bias unless asked to (``bias_correction``, FedAdam only); a round without a finite report is no step.
"""

from __future__ import annotations

from typing import Any

from desim_fl.strategies.fedavg import FedAvg
from desim_fl.strategies.optimized import Optimized
from desim_fl.strategies.optimizers import ServerOptimizer


def fedavgm(*, server_lr: float = 1.0, beta: float = 0.9, **rounds: Any) -> Optimized:
    """``m <- beta m + Delta; x <- x + server_lr m`` (Hsu, Qi, Brown, arXiv 1909.06335); ``rounds`` are FedAvg's options."""
    return Optimized(FedAvg(**rounds), ServerOptimizer("momentum", server_lr, beta1=beta))


def fedadagrad(
    *, server_lr: float = 0.1, beta1: float = 0.0, eps: float = 1e-3, initial_v: float = 0.0, **rounds: Any
) -> Optimized:
    """FedAdagrad of Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2."""
    optimizer = ServerOptimizer("adagrad", server_lr, beta1=beta1, eps=eps, initial_v=initial_v)
    return Optimized(FedAvg(**rounds), optimizer)


def fedadam(
    *,
    server_lr: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-3,
    initial_v: float = 0.0,
    bias_correction: bool = False,
    **rounds: Any,
) -> Optimized:
    """FedAdam of Reddi et al., algorithm 2."""
    optimizer = ServerOptimizer("adam", server_lr, beta1, beta2, eps, initial_v, bias_correction)
    return Optimized(FedAvg(**rounds), optimizer)


def fedyogi(
    *,
    server_lr: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.99,
    eps: float = 1e-3,
    initial_v: float = 0.0,
    **rounds: Any,
) -> Optimized:
    """FedYogi of Reddi et al., algorithm 2."""
    return Optimized(FedAvg(**rounds), ServerOptimizer("yogi", server_lr, beta1, beta2, eps, initial_v))
