"""Rules between a server method's table and the others; each yields what is wrong, with its place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from desim_fl.scenario.learning_rules import schedule_problems
from desim_fl.scenario.method import OPTIMIZER_KEYS, STALENESS_KEYS, StalenessTable
from desim_fl.scenario.synchronous import FedAT, RoundTable, TiFL
from desim_fl.scenario.table import Loc, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from desim_fl.scenario.method import MethodTable
    from desim_fl.scenario.server import Run
    from desim_fl.scenario.table import Table
    from desim_fl.scenario.training import Training
    from desim_fl.scenario.world import Clients

_LAYERED = ("mlp", "cnn", "cnn_gap", "lenet5", "resnet20")


def server_step(strategy: MethodTable) -> Iterator[Problem]:
    """An optimiser of the server needs a delta, and its own parameters; it brings the rate."""
    yield from schedule_problems(("strategy", "server_lr_schedule"), strategy.server_lr_schedule)
    optimizer, reason, name = strategy.server_optimizer, strategy.no_optimizer(), getattr(strategy, "name", "")
    if optimizer is not None and reason is not None:
        text = f"server_optimizer does not go with strategy {name}: {reason}"
        yield Problem(("strategy", "server_optimizer"), text, (("strategy", "name"),))
    elif strategy.server_lr_schedule is not None and reason is not None and not hasattr(strategy, "server_lr"):
        text = f"server_lr_schedule does not go with strategy {name}: {reason}"
        yield Problem(("strategy", "server_lr_schedule"), text, (("strategy", "name"),))
    if optimizer is None:
        return
    if strategy.given("server_lr"):
        text = "server_lr must not be given with server_optimizer, whose lr is the rate"
        yield Problem(("strategy", "server_lr"), text, (("strategy", "server_optimizer"),))
    place = ("strategy", "server_optimizer")
    for key in optimizer.given(*OPTIMIZER_KEYS):
        if optimizer.name not in OPTIMIZER_KEYS[key]:
            owners = " or ".join(f'"{owner}"' for owner in OPTIMIZER_KEYS[key])
            text = f'{key} must not be given with name = "{optimizer.name}"; it belongs to {owners}'
            yield Problem((*place, key), text, ((*place, "name"),))
    yield from _corrected(place, optimizer)


def feature_learning(model: Table, strategy: MethodTable) -> Iterator[Problem]:
    """Which numbers are the first layer must be known."""
    name = getattr(model, "name", "")
    if getattr(strategy, "feature_learning", False) and name not in _LAYERED:
        text = f'feature_learning does not go with model "{name}", whose first layer is not known; it is for {", ".join(_LAYERED)}'
        yield Problem(("strategy", "feature_learning"), text, (("model", "name"),))


def adam(strategy: MethodTable) -> Iterator[Problem]:
    """Bias correction is for a second moment that starts at 0."""
    yield from _corrected(("strategy",), strategy)


def _corrected(place: Loc, table: Any) -> Iterator[Problem]:
    if getattr(table, "bias_correction", False) and getattr(table, "initial_v", 0.0):
        text = "initial_v must be 0 with bias_correction, which corrects for a start from 0"
        yield Problem((*place, "initial_v"), text, ((*place, "bias_correction"),))


def objections(strategy: MethodTable, training: Training) -> Iterator[Problem]:
    """Local training that a method's formula is not for, and a proximal term given twice."""
    for key, reason in strategy.objections(training):
        yield Problem(("training", key), f"{key} {reason}", (("strategy", "name"),))
    if training.proximal_mu is not None and strategy.proximal_mu() is not None:
        text = f"proximal_mu must not be given with strategy {getattr(strategy, 'name', '')}, whose mu it is"
        yield Problem(("training", "proximal_mu"), text, (("strategy", "name"),))


def partial_work(clients: Clients, strategy: MethodTable) -> Iterator[Problem]:
    """What becomes of partial work matters only where there is some."""
    if getattr(strategy, "partial_work", None) is not None and not clients.straggler_share:
        text = "partial_work has no effect without straggler_share in [clients]"
        yield Problem(("strategy", "partial_work"), text, (("clients", "straggler_share"),))


def cohort(clients: Clients, strategy: MethodTable) -> Iterator[Problem]:
    """A round, or the tiers, cannot need more clients than there are."""
    if not isinstance(strategy, RoundTable):
        return
    doubts = (("clients", "count"), ("strategy", "clients_per_round"))
    if strategy.clients_per_round > clients.count:
        text = f"clients_per_round = {strategy.clients_per_round} is more than the {clients.count} clients there are"
        yield Problem(("strategy", "clients_per_round"), text, doubts)
    elif strategy.cohort > clients.count:
        text = (
            f"over_selection = {strategy.over_selection:g} asks for {strategy.cohort} clients a round, there are "
            f"{clients.count}"
        )
        yield Problem(("strategy", "over_selection"), text, doubts)
    elif isinstance(strategy, (FedAT, TiFL)):
        yield from _tiers(clients, strategy)


def staleness(strategy: MethodTable) -> Iterator[Problem]:
    """Parameters of a staleness function that is not chosen."""
    if not isinstance(strategy, StalenessTable):
        return
    for key in strategy.given(*STALENESS_KEYS):
        owner = STALENESS_KEYS[key]
        if owner != strategy.staleness:
            text = f'{key} must not be given with staleness = "{strategy.staleness}"; it belongs to "{owner}"'
            yield Problem(("strategy", key), text, (("strategy", "staleness"),))


def settled(strategy: MethodTable, run: Run) -> Iterator[Problem]:
    """What the method itself settles of [run] must not be given."""
    reasons = strategy.settles()
    if "selection" in reasons:
        reasons = {**reasons, "selector": reasons["selection"]}
    for key in run.given(*reasons):
        text = f"{key} must not be given with strategy {getattr(strategy, 'name', '')}; {reasons[key]}"
        yield Problem(("run", key), text, (("strategy", "name"),))


def unused(strategy: MethodTable) -> Iterator[Problem]:
    """Keys that have no effect beside the others."""
    reasons = strategy.unused()
    for key in strategy.given(*reasons):
        yield Problem(("strategy", key), f"{key} must not be given; {reasons[key]}", (("strategy", "name"),))


WAITED_FOR = ("buffer_size", "min_clients")  # arrivals that make a version


def never_full(clients: Clients, strategy: MethodTable, run: Run) -> Iterator[Problem]:
    """After an arrival nobody leaves before the next version, so more than fly at once never come."""
    if run.dispatch != "after_aggregation" or "dispatch" in strategy.settles():
        return
    most = min(clients.count, run.concurrency)
    for key in WAITED_FOR:
        wanted = getattr(strategy, key, 0)
        if wanted > most:
            text = (
                f'{key} = {wanted} is never reached with dispatch = "after_aggregation" and {most} jobs in flight; lower it, '
                "or raise concurrency"
            )
            yield Problem(("strategy", key), text, (("run", "dispatch"), ("run", "concurrency"), ("clients", "count")))


def listed(strategy: MethodTable, run: Run) -> Iterator[Problem]:
    """A fixed list of clients says nothing of tiers, which some methods choose from."""
    if run.selection == "order" and hasattr(strategy, "tiers"):
        name = getattr(strategy, "name", "")
        text = (
            f'selection = "order" does not go with strategy {name}, which chooses within tiers; use another selection'
        )
        yield Problem(("run", "selection"), text, (("strategy", "name"),))


def contacted(clients: Clients, strategy: MethodTable) -> Iterator[Problem]:
    """No more can be asked than there are."""
    contacted = getattr(strategy, "contacted", 0)
    if contacted > clients.count:
        text = f"contacted = {contacted} is more than the {clients.count} clients there are"
        yield Problem(("strategy", "contacted"), text, (("clients", "count"),))


def _tiers(clients: Clients, strategy: FedAT | TiFL) -> Iterator[Problem]:
    smallest, doubts = clients.count // strategy.tiers, (("clients", "count"), ("strategy", "tiers"))
    if smallest < strategy.cohort:
        text = (
            f"tiers = {strategy.tiers} of {clients.count} clients have {smallest} each, and a round needs {strategy.cohort} "
            "of one tier"
        )
        yield Problem(("strategy", "tiers"), text, (*doubts, ("strategy", "clients_per_round")))
    chances = getattr(strategy, "chances", None)
    for key in ("chances", "credits"):
        entries = getattr(strategy, key, None)
        if entries is not None and len(entries) != strategy.tiers:
            yield Problem(("strategy", key), f"{key} has {len(entries)} entries, but tiers = {strategy.tiers}", doubts)
            return
    if chances is not None and abs(math.fsum(chances) - 1.0) > 1e-9:  # noqa: PLR2004
        yield Problem(("strategy", "chances"), f"chances must add up to 1, not {math.fsum(chances):g}")
