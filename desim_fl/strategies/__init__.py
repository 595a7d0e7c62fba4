"""Server strategies: pure functions of (state, event), without clock, random numbers or third-party packages.

A name in :data:`TABLE` or ``"your_package.module:YourStrategy"`` chooses one; see :class:`desim_fl.core.Strategy`.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from desim_fl.core import Strategy
from desim_fl.errors import ScenarioError
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
    factory = _imported(name) if ":" in name else _listed(name)
    _check_options(name, factory, options)
    try:
        strategy = factory(**options)
    except (TypeError, ValueError) as error:
        raise ScenarioError(f"strategy {name}: {error} (options given: {dict(options)!r})") from error
    if not isinstance(strategy, Strategy):
        lacking = [word for word in _WANTED if not hasattr(strategy, word)]
        raise ScenarioError(f"strategy {name} makes a {type(strategy).__name__} that lacks {', '.join(lacking)}")
    return strategy


_WANTED = ("reads_outcomes", "max_staleness", "start", "arrive", "lose", "alarm")


def _listed(name: str) -> Callable[..., Any]:
    one_of("name", name, [*TABLE, "pkg.mod:Strategy"])
    return TABLE[name]


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        raise ScenarioError(
            f"strategy {name}: cannot import {module_name!r} ({error}); install it, or run where Python can find it "
            f"(for example with PYTHONPATH=.)"
        ) from error
    if not hasattr(module, attribute):
        near = [word for word in vars(module) if not word.startswith("_")]
        raise ScenarioError(f"strategy {name}: {module_name} has no {attribute!r}; it has {', '.join(near)}")
    return getattr(module, attribute)


def _check_options(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError) as error:
        raise ScenarioError(f"strategy {name}: {factory!r} is not something that makes a strategy") from error
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ScenarioError(f"strategy {name}: {error}; its options are {', '.join(signature.parameters)}") from error
