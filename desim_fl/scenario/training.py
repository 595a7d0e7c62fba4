"""Tables about learning: the model, and how a client trains it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from desim_fl.scenario.schedules import LrSchedule
from desim_fl.scenario.table import Amount, Count, CustomName, Number, Positive, Share, Table

DEFAULT_MODEL = "mlp"
CUSTOM = ":"  # the tag of "pkg.mod:attr" names; no built-in name holds a colon

Width = Annotated[int, Field(ge=1, le=65_536)]
Args = dict[str, Any]


class Mlp(Table):
    """Fully connected layers with ReLU between them."""

    name: Literal["mlp"] = Field(default=DEFAULT_MODEL, description="Fully connected layers with ReLU between them.")
    hidden: Annotated[tuple[Width, ...], Field(strict=False, max_length=64)] = Field(
        default=(64,), description="Widths of the hidden layers; [] = a linear model."
    )


class Cnn(Table):
    """A small convolutional network for images."""

    name: Literal["cnn"] = Field(default="cnn", description="A small convolutional network for images.")
    channels: Annotated[tuple[Width, ...], Field(strict=False, min_length=1, max_length=64)] = Field(
        default=(8, 16), description="Output channels of each convolution."
    )


class Scalar(Table):
    """A single number, for quadratic data."""

    name: Literal["scalar"] = Field(default="scalar", description="A single number; goes with quadratic data.")
    start: Number = Field(default=0.0, description="Its value in version 0.")


class Linear(Table):
    """One number a feature, in double precision, for least-squares data."""

    name: Literal["linear"] = Field(
        default="linear", description="One number a feature, in double precision; goes with least_squares data."
    )
    start: Number = Field(default=0.0, description="Value of every entry in version 0.")


class Logistic(Table):
    """Multinomial logistic regression in double precision, with its gradient in closed form: no torch, start at 0."""

    name: Literal["logistic"] = Field(
        default="logistic", description="Multinomial logistic regression in double precision, without torch."
    )
    l2: Amount = Field(default=0.0, description="Weight of the penalty l2 / 2 ||x||^2, biases included.")


class CustomModel(Table):
    """Anyone's own ``torch.nn.Module``; the factory is imported when the run is built, not here."""

    name: CustomName = Field(description='Where the factory stands: "package.module:factory".')
    args: Args = Field(default={}, description="Keyword arguments of the factory: TOML values, no dates.")


Model = Annotated[
    Annotated[Mlp, Tag("mlp")]
    | Annotated[Cnn, Tag("cnn")]
    | Annotated[Scalar, Tag("scalar")]
    | Annotated[Linear, Tag("linear")]
    | Annotated[Logistic, Tag("logistic")]
    | Annotated[CustomModel, Tag(CUSTOM)],
    Discriminator(lambda value: tag_of(value, DEFAULT_MODEL)),
]
MODELS: dict[str, type[Table]] = {
    "mlp": Mlp,
    "cnn": Cnn,
    "scalar": Scalar,
    "linear": Linear,
    "logistic": Logistic,
    CUSTOM: CustomModel,
}
BY_DATA = {"quadratic": "scalar", "least_squares": "linear"}  # models that belong to one kind of data, and stand for it


def tag_of(value: Any, default: str) -> str | None:
    """Return the name of a variant, ``CUSTOM`` for a "pkg.mod:attr" name, ``None`` where there is no proper name."""
    name = value.get("name", default) if isinstance(value, dict) else getattr(value, "name", None)
    if not isinstance(name, str):
        return None
    return CUSTOM if ":" in name else name


class DelayAware(Table):
    """The delay-aware rate gamma_0 / (sqrt(e + 1) * (1 + alpha_lr * delay)) (Forootani & Iervolino, arXiv 2508.01675)."""

    meaning: Literal["drawn", "staleness"] = Field(
        default="drawn",
        description="What the delay is: the job's drawn wait in seconds, or the staleness (at the server).",
    )
    gamma_0: Positive = Field(description="Rate of the first epoch at delay 0.")
    alpha_lr: Annotated[float, Field(ge=0, le=1e9)] = Field(description="How strongly the delay slows learning.")
    combine: bool = Field(
        default=False,
        description="With staleness: multiply with the strategy's own staleness weight instead of replacing it.",
    )


class Training(Table):
    """What a client does with a model in one job."""

    epochs: Count = Field(default=1, description="Passes over the client's data in one job.")
    steps: Count | None = Field(default=None, description="Optimiser steps in one job, instead of epochs.")
    batch_size: Count = Field(default=32, description="Examples in a batch.")
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="Local optimiser; a new one every job.")
    lr: Positive = Field(default=0.05, description="Learning rate; not beside delay_aware.")
    momentum: Annotated[Share, Field(lt=1)] = Field(default=0.0, description="Momentum of sgd.")
    weight_decay: Annotated[float, Field(ge=0, le=1e9)] = Field(default=0.0, description="L2 weight decay.")
    proximal_mu: Annotated[float, Field(ge=0, le=1e9)] | None = Field(
        default=None,
        description="Weight mu of a proximal term mu / 2 ||x - x_b||^2 in every client's loss, x_b being the model that a "
        "job starts from; absent = none.",
    )
    buffers: Literal["average", "local"] = Field(
        default="average",
        description="Float statistics such as BatchNorm's: averaged at the server, or kept by each client.",
    )
    lr_schedule: LrSchedule | None = Field(
        default=None, description="How the rate changes with the version that a job starts from; absent = it does not."
    )
    delay_aware: DelayAware | None = Field(default=None, description="The delay-aware learning rate, instead of lr.")

    def idle(self) -> frozenset[str]:
        """Return ``epochs`` beside ``steps``, ``lr`` beside ``delay_aware``, ``momentum`` beside Adam."""
        facts = {
            "epochs": self.steps is not None,
            "lr": self.delay_aware is not None,
            "momentum": self.optimizer != "sgd",
        }
        return frozenset(key for key, idle in facts.items() if idle)
