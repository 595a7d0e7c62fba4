"""The synchronous and semi-synchronous methods by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desim_fl.strategies.fedavg import FedAvg
from desim_fl.strategies.fednova import FedNova
from desim_fl.strategies.fedopt import fedadagrad, fedadam, fedavgm, fedyogi
from desim_fl.strategies.fedprox import FedProx
from desim_fl.strategies.safa import Safa
from desim_fl.strategies.scaffold import Scaffold
from desim_fl.strategies.semi_async import SemiAsync
from desim_fl.strategies.tiers import FedAT
from desim_fl.strategies.tifl import TiFL

if TYPE_CHECKING:
    from collections.abc import Callable

    from desim_fl.core import Strategy

SYNCHRONOUS: dict[str, Callable[..., Strategy]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": fedavgm,
    "fedadagrad": fedadagrad,
    "fedadam": fedadam,
    "fedyogi": fedyogi,
    "fednova": FedNova,
    "scaffold": Scaffold,
    "semi_async": SemiAsync,
    "safa": Safa,
    "fedat": FedAT,
    "tifl": TiFL,
}
