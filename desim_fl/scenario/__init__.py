"""Scenario files: what may stand in them, and reading them.

``load`` reads a TOML file with its overrides and reports every mistake at once; a ``Scenario`` has its tables as
attributes, and writes itself out again in full; ``schema`` is the JSON Schema for editors.
"""

from desim_fl.scenario.asynchronous import FedAsync, FedBuff
from desim_fl.scenario.document import Scenario
from desim_fl.scenario.laws import (
    LAWS,
    Constant,
    Exponential,
    HalfNormal,
    LawTable,
    Lognormal,
    Lomax,
    Pareto,
    Uniform,
    Zipf,
)
from desim_fl.scenario.reading import load
from desim_fl.scenario.schema import schema
from desim_fl.scenario.server import Executor, Run
from desim_fl.scenario.strategies import CustomStrategy
from desim_fl.scenario.synchronous import FedAvg
from desim_fl.scenario.training import Cnn, CustomModel, DelayAware, Linear, Logistic, Mlp, Scalar, Training
from desim_fl.scenario.world import Blobs, Clients, FashionMnist, LeastSquares, Network, Quadratic

__all__ = [
    "LAWS",
    "Blobs",
    "Clients",
    "Cnn",
    "Constant",
    "CustomModel",
    "CustomStrategy",
    "DelayAware",
    "Executor",
    "Exponential",
    "FashionMnist",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "HalfNormal",
    "LawTable",
    "LeastSquares",
    "Linear",
    "Logistic",
    "Lognormal",
    "Lomax",
    "Mlp",
    "Network",
    "Pareto",
    "Quadratic",
    "Run",
    "Scalar",
    "Scenario",
    "Training",
    "Uniform",
    "Zipf",
    "load",
    "schema",
]
