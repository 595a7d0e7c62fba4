"""Rules that hold between keys. Each looks at finished tables and yields what is wrong, with its place.

A rule that needs a table which could not be read is left out, so that one mistake does not hide the others.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from desim_fl.scenario import device_rules, journey_rules, learning_rules, method_rules, run_rules
from desim_fl.scenario.data import LeastSquares, Quadratic
from desim_fl.scenario.table import Loc, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from desim_fl.scenario.parameters import Parameters
    from desim_fl.scenario.server import Executor, Run
    from desim_fl.scenario.table import Table
    from desim_fl.scenario.world import Clients, Network

ARGS_DEPTH = 16
PARTITION_KEYS = {"alpha": ("dirichlet", "dirichlet_sizes"), "classes_per_client": ("shards",), "map": ("map",)}
SHOWN = 60  # characters of a value in a message


def quoted(text: str) -> str:
    """Return a text in quotes, on one line, cut where it is long, with nothing unprintable in it."""
    short = text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
    return json.dumps(short, ensure_ascii=not short.isprintable())


def bare(key: str) -> str:
    """Return a key as TOML would write it: bare where that is possible, else in quotes."""
    return key if len(key) <= SHOWN and re.fullmatch(r"[A-Za-z0-9_-]+", key) else quoted(key)


def key_of(loc: Loc) -> str:
    """Return a key as a message names it, with its list indices."""
    last = max(index for index, part in enumerate(loc) if isinstance(part, str))
    return bare(str(loc[last])) + "".join(f"[{index}]" for index in loc[last + 1 :])


def _partition(data: Table, clients: Clients) -> Iterator[Problem]:
    if isinstance(data, Quadratic):
        for key in clients.given("partition", *PARTITION_KEYS, "min_samples"):
            yield Problem(
                ("clients", key),
                f"{key} must not be given with data quadratic, where every client has its own function",
                (("data", "name"),),
            )
        return
    if isinstance(data, LeastSquares):
        yield from _rows(data, clients)
    for key, owners in PARTITION_KEYS.items():
        doubts = (("clients", "partition"), ("clients", key))
        if clients.partition in owners and getattr(clients, key) is None:
            yield Problem(("clients", "partition"), f'partition = "{clients.partition}" needs the key {key}', doubts)
        if clients.partition not in owners and getattr(clients, key) is not None:
            names = " or ".join(f'"{owner}"' for owner in owners)
            text = f'{key} must not be given with partition = "{clients.partition}"; it belongs to {names}'
            yield Problem(("clients", key), text, doubts)


def _rows(data: LeastSquares, clients: Clients) -> Iterator[Problem]:
    if clients.partition != "iid":
        text = f'partition = "{clients.partition}" needs labels, and data least_squares has none; use "iid"'
        yield Problem(("clients", "partition"), text, (("data", "name"),))
    elif data.shared:
        for key in clients.given("partition", "min_samples"):
            text = f"{key} must not be given with shared = true in [data], where every client has all rows"
            yield Problem(("clients", key), text, (("data", "shared"),))
    if data.shared and data.client_shift_sd:
        text = "client_shift_sd must be 0 with shared = true: rows that all clients share have one truth"
        yield Problem(("data", "client_shift_sd"), text, (("data", "shared"),))


def _lengths(clients: Clients) -> Iterator[Problem]:
    for key in ("keys", "names"):
        values = getattr(clients, key)
        if values is not None and len(values) != clients.count:
            text = f"{key} has {len(values)} entries, but count = {clients.count}"
            yield Problem(("clients", key), text, (("clients", "count"),))


def _distinct_keys(clients: Clients) -> Iterator[Problem]:
    first: dict[int, int] = {}
    for index, key in enumerate(clients.keys or ()):
        if first.setdefault(key, index) != index:
            text = f"keys[{index}] = {key} is also keys[{first[key]}]; keys must be distinct"
            yield Problem(("clients", "keys", index), text)


def _quadratic_lengths(data: Table, clients: Clients) -> Iterator[Problem]:
    if not isinstance(data, Quadratic):
        return
    for key in ("curvature", "optimum", "examples_per_client"):
        value = getattr(data, key)
        if isinstance(value, tuple) and len(value) != clients.count:
            text = f"{key} has {len(value)} entries, but [clients] count = {clients.count}"
            yield Problem(("data", key), text, (("clients", "count"),))


def _regions(network: Network) -> Iterator[Problem]:
    limits = ("region_down_mbps", "region_up_mbps")
    doubts = tuple(("network", key) for key in ("region_shares", *limits))
    shares = network.region_shares
    if shares is not None and not network.given(*limits):
        text = "region_shares needs the key region_down_mbps or region_up_mbps: regions have links of their own"
        yield Problem(("network", "region_shares"), text, doubts)
    for key in network.given(*limits):
        rates = getattr(network, key)
        if rates is not None and shares is None:
            yield Problem(("network", key), f"{key} needs the key region_shares: who lives where", doubts)
        elif rates is not None and shares is not None and len(rates) != len(shares):
            text = f"{key} has {len(rates)} entries, but region_shares has {len(shares)}"
            yield Problem(("network", key), text, doubts)


def _order(clients: Clients, run: Run) -> Iterator[Problem]:
    doubts = (("run", "selection"), ("run", "order"), ("clients", "count"))
    if run.selection == "order" and run.order is None:
        yield Problem(("run", "selection"), 'selection = "order" needs the key order', doubts)
    if run.selection != "order" and run.order is not None:
        text = f'order must not be given with selection = "{run.selection}"; it belongs to "order"'
        yield Problem(("run", "order"), text, doubts)
    for index, client in enumerate(run.order or ()):
        if client >= clients.count:
            text = f"order[{index}] = {client} is no client: there are {clients.count}, numbered from 0"
            yield Problem(("run", "order", index), text, doubts)


STOPS = ("max_time_s", "max_versions", "max_updates")


def _stop_rule(run: Run) -> Iterator[Problem]:
    if all(getattr(run, key) is None for key in STOPS):
        text = f"needs a stop rule: at least one of {', '.join(STOPS)}"
        yield Problem(("run", STOPS[-1]), text, tuple(("run", key) for key in STOPS))


def _workers(executor: Executor) -> Iterator[Problem]:
    if executor.name == "inline" and executor.workers is not None and executor.workers > 1:
        text = f"workers = {executor.workers} is refused: the inline executor runs one job at a time"
        yield Problem(("executor", "workers"), text)
    if executor.name == "threads" and executor.device == "cuda":
        text = 'device = "cuda" is refused: threads train on the CPU; use name = "inline" or "pool"'
        yield Problem(("executor", "device"), text)


def _address(executor: Executor) -> Iterator[Problem]:
    if executor.name != "ray" and executor.address is not None:
        text = f'address must not be given with name = "{executor.name}"; it belongs to "ray"'
        yield Problem(("executor", "address"), text, (("executor", "name"),))


def _vmap(executor: Executor) -> Iterator[Problem]:
    if executor.near and executor.name != "auto":
        text = f'near must not be given with name = "{executor.name}"; it tells "auto" that vmap may be taken'
        yield Problem(("executor", "near"), text, (("executor", "name"),))
    if not executor.bits() and executor.given("width"):
        text = f'width must not be given with name = "{executor.name}"; it belongs to "vmap" (and to near = true)'
        yield Problem(("executor", "width"), text, (("executor", "name"),))
    if executor.bits() and executor.reuse:
        text = (
            "reuse = true is refused with vmap: which jobs are trained together, and so the last bits of each, would "
            "depend on what the cache holds"
        )
        yield Problem(("executor", "reuse"), text, (("executor", "name"),))


def _parameters(parameters: Parameters | None) -> Iterator[Problem]:
    for key in () if parameters is None else parameters.given(*type(parameters).model_fields):
        yield Problem(("parameters", key), f"{key} stands for a key that is given as well; leave one of them out")


def _args(section: str, table: Table, key: str = "args") -> Iterator[Problem]:
    for loc, value in _leaves((section, key), getattr(table, key, {})):
        if len(loc) > ARGS_DEPTH:
            yield Problem(loc[:2], f"{key} is nested deeper than {ARGS_DEPTH} levels")
            return
        fault = _fault(value)
        if fault:
            yield Problem(loc, f"{key_of(loc)} {fault}")


def _leaves(loc: Loc, value: Any) -> Iterator[tuple[Loc, Any]]:
    """Walk nested tables and lists without recursion; what is nested too deep comes out unopened."""
    stack = [(loc, value)]
    while stack:
        loc, value = stack.pop()
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if inner is None or len(loc) > ARGS_DEPTH:
            yield loc, value
        else:
            stack += reversed([((*loc, key), entry) for key, entry in inner])


def _fault(value: Any) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else "must be a finite number"
    if isinstance(value, int):
        return None if -(2**63) <= value < 2**63 else "must be a whole number of at most 64 bits"
    return None if isinstance(value, str) else "must be a number, a string, true or false, a list or a table"


RULES: tuple[tuple[Callable[..., Iterator[Problem]], tuple[str, ...]], ...] = (
    (_partition, ("data", "clients")),
    (_lengths, ("clients",)),
    (device_rules.units, ("clients",)),
    (device_rules.classes, ("clients", "network")),
    (device_rules.noise, ("clients", "network")),
    (_distinct_keys, ("clients",)),
    (_quadratic_lengths, ("data", "clients")),
    (learning_rules.model_fits_data, ("data", "model")),
    (_regions, ("network",)),
    (learning_rules.groups, ("model",)),
    (learning_rules.local_training, ("training",)),
    (learning_rules.plain_descent, ("data", "training")),
    (learning_rules.closed_form, ("data", "model", "training")),
    (learning_rules.own_task, ("model", "training")),
    (learning_rules.delay_aware, ("clients", "training")),
    (
        lambda training: learning_rules.schedule_problems(("training", "lr_schedule"), training.lr_schedule),
        ("training",),
    ),
    (learning_rules.stragglers, ("clients", "training")),
    (method_rules.staleness, ("strategy",)),
    (method_rules.server_step, ("strategy",)),
    (method_rules.adam, ("strategy",)),
    (method_rules.feature_learning, ("model", "strategy")),
    (method_rules.objections, ("strategy", "training")),
    (method_rules.partial_work, ("clients", "strategy")),
    (method_rules.cohort, ("clients", "strategy")),
    (method_rules.settled, ("strategy", "run")),
    (method_rules.unused, ("strategy",)),
    (method_rules.never_full, ("clients", "strategy", "run")),
    (method_rules.contacted, ("clients", "strategy")),
    (method_rules.listed, ("strategy", "run")),
    (_order, ("clients", "run")),
    (_stop_rule, ("run",)),
    (journey_rules.windows, ("clients", "availability")),
    (journey_rules.failures, ("failures",)),
    (journey_rules.interruptions, ("availability", "failures")),
    (journey_rules.late, ("failures", "strategy")),
    (run_rules.selections, ("run", "clients")),
    (run_rules.target, ("run", "data")),
    (run_rules.open_system, ("run", "strategy")),
    (run_rules.queues, ("run", "clients", "strategy")),
    (_parameters, ("parameters",)),
    (learning_rules.patience, ("data", "model", "training", "run")),
    (run_rules.serving, ("server", "run")),
    (_workers, ("executor",)),
    (_address, ("executor",)),
    (_vmap, ("executor",)),
    (lambda model: _args("model", model), ("model",)),
    (lambda strategy: _args("strategy", strategy), ("strategy",)),
    (lambda data: _args("data", data), ("data",)),
    (lambda training: _args("training", training, "task_args"), ("training",)),
)


def problems(tables: Mapping[str, Table | None]) -> Iterator[Problem]:
    """Yield what is wrong between the keys of these tables (``None`` = could not be read)."""
    for rule, names in RULES:
        wanted = [tables[name] for name in names]
        if all(table is not None for table in wanted) or names == ("parameters",):
            yield from rule(*wanted)
