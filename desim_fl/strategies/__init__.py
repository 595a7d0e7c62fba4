"""Server strategies: pure functions of (state, event), without clock, random numbers or third-party packages.

A name in :data:`TABLE` or ``"your_package.module:YourStrategy"`` chooses one; see :class:`desim_fl.core.Strategy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl import own
from desim_fl.strategies.area import Area, AsoFed
from desim_fl.strategies.asyncsgd import AsyncSGD
from desim_fl.strategies.ca2fl import Ca2fl
from desim_fl.strategies.fadas import Fadas
from desim_fl.strategies.fedasmu import FedAsmuStatic
from desim_fl.strategies.fedasync import FedAsync
from desim_fl.strategies.fedavg import FedAvg
from desim_fl.strategies.fedbuff import FedBuff
from desim_fl.strategies.fedfa import FedFa
from desim_fl.strategies.fedstale import FedStale, FedVarp, Mifa
from desim_fl.strategies.malenia import Malenia, Ringleader
from desim_fl.strategies.options import one_of
from desim_fl.strategies.polled import Favas, Quafl
from desim_fl.strategies.port import Port
from desim_fl.strategies.rennala import Rennala
from desim_fl.strategies.ringmaster import Ringmaster
from desim_fl.strategies.synchronous import SYNCHRONOUS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from desim_fl.core import Strategy

__all__ = ["TABLE", "FedAsync", "FedAvg", "FedBuff", "build"]

TABLE: dict[str, Callable[..., Strategy]] = {
    # asynchronous: every arrival, or every few, makes a version
    "fedasync": FedAsync,
    "fedbuff": FedBuff,
    "asyncsgd": AsyncSGD,
    "fadas": Fadas,
    "ca2fl": Ca2fl,
    "port": Port,
    "area": Area,
    "asofed": AsoFed,
    "fedasmu_static": FedAsmuStatic,
    "fedfa": FedFa,
    "ringmaster": Ringmaster,
    "rennala": Rennala,
    "malenia": Malenia,
    "ringleader": Ringleader,
    "fedstale": FedStale,
    "fedvarp": FedVarp,
    "mifa": Mifa,
    # a server that asks by the clock
    "quafl": Quafl,
    "favas": Favas,
    # synchronous: rounds, cohorts, tiers
    **SYNCHRONOUS,
}


def build(name: str, options: Mapping[str, Any]) -> Strategy:
    """Make the strategy of that name, or of ``"pkg.mod:Strategy"``, with these options.

    Raises ScenarioError, naming the way out, for an unknown name, a module that cannot be imported, an option
    that is not taken, or a result that is no Strategy.
    """
    factory = own.imported("strategy", name) if ":" in name else _listed(name)
    return own.made("strategy", name, factory, options, _WANTED)


_WANTED = ("reads_outcomes", "max_staleness", "start", "arrive", "lose", "alarm")


def _listed(name: str) -> Callable[..., Any]:
    one_of("name", name, [*TABLE, "pkg.mod:Strategy"])
    return TABLE[name]
