"""Scenario files: what may stand in them, and reading them.

``load`` reads a TOML file with its overrides and reports every mistake at once; a ``Scenario`` has its tables as
attributes, and writes itself out again in full; ``schema`` is the JSON Schema for editors.
"""

from desim_fl.scenario.asynchronous import FedAsync, FedBuff
from desim_fl.scenario.data import (
    ArrayFile,
    Blobs,
    CustomData,
    FashionMnist,
    ImageFolder,
    LeastSquares,
    Quadratic,
    Vision,
)
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
from desim_fl.scenario.models import (
    Cnn,
    CnnGap,
    CustomModel,
    LeNet5,
    Linear,
    Logistic,
    Mlp,
    ResNet20,
    Scalar,
    VisionModel,
)
from desim_fl.scenario.reading import from_tables, load
from desim_fl.scenario.schema import schema
from desim_fl.scenario.server import Executor, Run
from desim_fl.scenario.strategies import CustomStrategy
from desim_fl.scenario.synchronous import FedAvg
from desim_fl.scenario.training import DelayAware, Training
from desim_fl.scenario.world import Clients, Network

__all__ = [
    "LAWS",
    "ArrayFile",
    "Blobs",
    "Clients",
    "Cnn",
    "CnnGap",
    "Constant",
    "CustomData",
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
    "ImageFolder",
    "LawTable",
    "LeNet5",
    "LeastSquares",
    "Linear",
    "Logistic",
    "Lognormal",
    "Lomax",
    "Mlp",
    "Network",
    "Pareto",
    "Quadratic",
    "ResNet20",
    "Run",
    "Scalar",
    "Scenario",
    "Training",
    "Uniform",
    "Vision",
    "VisionModel",
    "Zipf",
    "from_tables",
    "load",
    "schema",
]
