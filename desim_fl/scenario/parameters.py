"""The table ``[parameters]``: the usual parameters of asynchronous federated learning under their usual names.

They are those of the published scripts of Forootani & Iervolino (arXiv 2508.01675), and the options of ``run`` and ``plan`` of
the same names. Each stands for keys of the other tables, which then must not be given as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

from desim_fl.scenario.strategies import DEFAULT_STRATEGY, STRATEGIES
from desim_fl.scenario.table import CLIENT_MAX, Amount, Count, Positive, Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from desim_fl.scenario.table import Loc

_CONCURRENCY = 10  # where nothing says otherwise, as in [run]
Some = Annotated[int, Field(ge=1, le=CLIENT_MAX)]


class Parameters(Table):
    """Usual parameters by their usual names; each stands for keys of the other tables."""

    num_clients: Some | None = Field(default=None, description="Stands for clients.count.")
    num_rounds: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        description="Stands for run.max_versions in a barrier run; else for run.max_updates: so many times the jobs in flight, "
        "so that the work is the same.",
    )
    local_epochs: Count | None = Field(default=None, description="Stands for training.epochs.")
    clients_per_round: Some | None = Field(
        default=None,
        description="Stands for strategy.clients_per_round in a barrier run; else for run.concurrency, the jobs in flight.",
    )
    batch_size: Count | None = Field(default=None, description="Stands for training.batch_size.")
    alpha: Annotated[float, Field(gt=0, le=1e9)] | None = Field(
        default=None, description="Stands for clients.alpha, with a Dirichlet partition."
    )
    gamma_0: Positive | None = Field(default=None, description="Stands for training.delay_aware.gamma_0.")
    alpha_lr: Annotated[float, Field(ge=0, le=1e9)] | None = Field(
        default=None, description="Stands for training.delay_aware.alpha_lr."
    )
    delay_t: Amount | None = Field(
        default=None, description="Stands for clients.wait_s: evenly spread from 0 to so many seconds."
    )
    early_stopping: Count | None = Field(default=None, description="Stands for training.patience, in epochs.")


def barrier(document: Mapping[str, Any]) -> bool:
    """Tell whether the document's strategy goes by rounds of so many clients."""
    strategy = document.get("strategy", {})
    name = strategy.get("name", DEFAULT_STRATEGY) if isinstance(strategy, dict) else DEFAULT_STRATEGY
    kind = STRATEGIES.get(name) if isinstance(name, str) else None
    return kind is not None and "clients_per_round" in kind.model_fields


def targets(document: Mapping[str, Any]) -> dict[str, Loc]:
    """Where each parameter goes."""
    rounds = barrier(document)
    return {
        "num_clients": ("clients", "count"),
        "num_rounds": ("run", "max_versions" if rounds else "max_updates"),
        "local_epochs": ("training", "epochs"),
        "clients_per_round": ("strategy", "clients_per_round") if rounds else ("run", "concurrency"),
        "batch_size": ("training", "batch_size"),
        "alpha": ("clients", "alpha"),
        "gamma_0": ("training", "delay_aware", "gamma_0"),
        "alpha_lr": ("training", "delay_aware", "alpha_lr"),
        "delay_t": ("clients", "wait_s"),
        "early_stopping": ("training", "patience"),
    }


def sound(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a document that can be put in place; what cannot is reported where it stands."""
    table = document.get("parameters")
    found: dict[str, Any] = {}
    for key, value in (table if isinstance(table, dict) else {}).items():
        try:
            Parameters.model_validate({key: value})
        except ValidationError:
            continue
        place = targets(document).get(key)
        if place is not None and _open(document, place):
            found[key] = value
    return found


def _open(document: Mapping[str, Any], place: Loc) -> bool:
    """Tell whether nothing stands at a place, and something could."""
    table: Any = document
    for part in place[:-1]:
        table = table.get(part, {})
        if not isinstance(table, dict):
            return False
    return place[-1] not in table


def expanded(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document with its parameters in their places; what stands there twice stays in ``[parameters]``."""
    found = sound(document)
    if not found:
        return document
    left = {key: value for key, value in document["parameters"].items() if key not in found}
    made = {key: value for key, value in document.items() if key != "parameters"} | (
        {"parameters": left} if left else {}
    )
    places = targets(document)
    for key, value in found.items():
        made = _put(made, places[key], _stands_for(key, value, document, found))
    if "alpha" in found and made["clients"].get("partition", "iid") == "iid":
        made = _put(made, ("clients", "partition"), "dirichlet")
    return made


def _stands_for(key: str, value: Any, document: Mapping[str, Any], found: Mapping[str, Any]) -> Any:
    if key == "delay_t":
        return {"law": "uniform", "low": 0.0, "high": value}
    if key == "num_rounds" and not barrier(document):
        run = document.get("run", {})
        flying = found.get("clients_per_round", run.get("concurrency", _CONCURRENCY) if isinstance(run, dict) else 1)
        return value * flying if isinstance(flying, int) else value
    return value


def _put(document: dict[str, Any], place: Loc, value: Any) -> dict[str, Any]:
    """Return a copy with a value at a place."""
    first, *rest = place
    inner = _put(document.get(str(first), {}), tuple(rest), value) if rest else value
    return {**document, str(first): inner}


def override(document: dict[str, Any], given: Mapping[str, Any]) -> dict[Loc, str]:
    """Put parameters of the command line into a document, in place of what it says there; return their names by place."""
    settings: dict[Loc, str] = {}
    table = document.setdefault("parameters", {})
    places = targets(document)
    for key, value in given.items():
        if isinstance(table, dict):
            table[key] = value
        _remove(document, places[key])
        if key == "gamma_0":
            _remove(document, ("training", "lr"))
        label = f"--{key.replace('_', '-')} {value}"
        settings["parameters", key] = settings[places[key]] = label
    if (
        "alpha" in given
        and isinstance(document.get("clients"), dict)
        and document["clients"].get("partition") != "dirichlet_sizes"
    ):
        for key in ("partition", "classes_per_client", "map"):
            _remove(document, ("clients", key))
    return settings


def _remove(document: dict[str, Any], place: Loc) -> None:
    table: Any = document
    for part in place[:-1]:
        table = table.get(part) if isinstance(table, dict) else None
    if isinstance(table, dict):
        table.pop(place[-1], None)


def standing(document: Mapping[str, Any]) -> dict[Loc, Loc]:
    """Where keys really stand that were put in place: by their own place, that in ``[parameters]``."""
    places = targets(document)
    return {places[key]: ("parameters", key) for key in sound(document)}
