"""A whole scenario: its tables, its one written form, and its JSON Schema."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from desim_fl.scenario.asynchronous import FedBuff
from desim_fl.scenario.availability import Always, Availability
from desim_fl.scenario.data import Data, FashionMnist, LeastSquares, Quadratic, data_name
from desim_fl.scenario.devices import with_profile
from desim_fl.scenario.failures import FailuresTable
from desim_fl.scenario.models import BY_DATA, Mlp, Model
from desim_fl.scenario.parameters import Parameters, expanded
from desim_fl.scenario.rules import problems
from desim_fl.scenario.server import Checkpoint, Executor, Run
from desim_fl.scenario.serving import ServerTable
from desim_fl.scenario.strategies import Strategy
from desim_fl.scenario.table import Table
from desim_fl.scenario.training import Training
from desim_fl.scenario.world import Clients, Network


class Scenario(Table):
    """Everything that decides a run, checked. Equal scenarios have equal written forms, and so equal hashes."""

    name: str = Field(
        default="scenario", min_length=1, max_length=255, description="Name; absent = the file's, without .toml."
    )
    description: str = Field(default="", max_length=100_000, description="What it shows.")
    data: Data = Field(default=FashionMnist(), description="What is learned; chosen by name.")
    clients: Clients = Field(description="Who takes part.")
    network: Network = Field(default=Network(), description="How clients reach the server.")
    availability: Availability = Field(default=Always(), description="When clients are online; chosen by name.")
    failures: FailuresTable = Field(
        default=FailuresTable(), description="What goes wrong between dispatch and arrival."
    )
    model: Model = Field(
        default=Mlp(),
        description="What is trained; chosen by name. Absent = mlp, scalar for quadratic data, or linear "
        "for least_squares.",
    )
    training: Training = Field(default=Training(), description="What a client does in one job.")
    strategy: Strategy = Field(default=FedBuff(), description="What the server does; chosen by name.")
    server: ServerTable = Field(default=ServerTable(), description="How long the server takes.")
    run: Run = Field(default=Run(), description="How the run goes and when it ends.")
    executor: Executor = Field(default=Executor(), description="Where training takes place.")
    parameters: Parameters | None = Field(
        default=None, description="Usual parameters by their usual names; each stands for keys of the other tables."
    )
    checkpoint: Checkpoint = Field(default=Checkpoint(), description="How a crash is provided for.")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, document: Any) -> Any:
        return filled(document)

    @model_validator(mode="after")
    def _rules(self) -> Scenario:
        found = list(problems({key: getattr(self, key) for key in type(self).model_fields}))
        if found:
            text = "; ".join(problem.text for problem in found)
            raise PydanticCustomError("rules", "{text}", {"text": text, "problems": found})
        return self

    def resolved(self) -> dict[str, Any]:
        """Return every key that has an effect, defaults included, as plain TOML values in a fixed order."""
        document = self.entries()
        for table in ("availability", "failures", "server", "checkpoint"):
            if not document[table]:
                del document[table]
        for key in self.strategy.settles():
            document["run"].pop(key, None)
        if isinstance(self.data, Quadratic) or (isinstance(self.data, LeastSquares) and self.data.shared):
            del document["clients"]["partition"], document["clients"]["min_samples"]
        for key in ("latency_s",):  # which has a default
            if self.clients.every_class_says(key):
                del document["network"][key]
        return document

    def to_toml(self) -> str:
        """Return the resolved scenario as TOML; loaded again, it gives an equal scenario."""
        import tomli_w  # noqa: PLC0415  (reading a scenario does not need it)

        return tomli_w.dumps(self.resolved())

    def sha256(self) -> str:
        """Return the hash of the resolved form: sorted keys, no blanks, UTF-8 JSON."""
        text = json.dumps(self.resolved(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def filled(document: Any) -> Any:
    """Return the document with what a profile stands for, and with the model's name, where absent, chosen by the data."""
    if not isinstance(document, dict):
        return document
    document = with_profile(expanded(document))
    name, model = BY_DATA.get(data_name(document.get("data", {})) or ""), document.get("model", {})
    return {**document, "model": {"name": name, **model}} if name and isinstance(model, dict) else document
