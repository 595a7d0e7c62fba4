"""Tables about learning: how a client trains a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from desim_fl.scenario.schedules import LrSchedule
from desim_fl.scenario.table import Args, Count, CustomName, Positive, Share, Table


class DelayAware(Table):
    """The delay-aware rate gamma_0 / (sqrt(e + 1) * (1 + alpha_lr * delay)) (Forootani & Iervolino, arXiv 2508.01675)."""

    meaning: Literal["drawn", "staleness", "maximum"] = Field(
        default="drawn",
        description="What the delay is: the job's drawn wait in seconds, the staleness (at the server), or, as the published "
        "scripts have it, always the largest wait that the law allows.",
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
    optimizer_reset: Literal["epoch"] | None = Field(
        default=None,
        description="epoch = the local optimiser begins anew every epoch, as in some published scripts; absent = every job.",
    )
    start: Literal["own"] | None = Field(
        default=None,
        description="own = a job starts from the client's own last model, as in some published scripts, and never learns of the "
        "others; absent = from the server's.",
    )
    lr: Positive = Field(default=0.05, description="Learning rate; not beside delay_aware.")
    momentum: Annotated[Share, Field(lt=1)] = Field(default=0.0, description="Momentum of sgd.")
    weight_decay: Annotated[float, Field(ge=0, le=1e9)] = Field(default=0.0, description="L2 weight decay.")
    proximal_mu: Annotated[float, Field(ge=0, le=1e9)] | None = Field(
        default=None,
        description="Weight mu of a proximal term mu / 2 ||x - x_b||^2 in every client's loss, x_b being the model that a "
        "job starts from; absent = none.",
    )
    gradient_decay: Annotated[Share, Field(lt=1)] | None = Field(
        default=None,
        description="Beta of ASO-Fed's local rule: each step is g - g_pre + h, with gradients that a client keeps from job to "
        "job; absent = plain gradients.",
    )
    delay_step: Literal["logarithmic"] | None = Field(
        default=None,
        description="Experimental: logarithmic = ASO-Fed's dynamic step, a client's rate times max(1, log d), d being the mean of its "
        "earlier times from dispatch to arrival in seconds; absent = no such factor.",
    )
    buffers: Literal["average", "local"] = Field(
        default="average",
        description="Float statistics such as BatchNorm's: averaged at the server, or kept by each client.",
    )
    lr_schedule: LrSchedule | None = Field(
        default=None, description="How the rate changes with the version that a job starts from; absent = it does not."
    )
    patience: Count | None = Field(
        default=None,
        description="Stop a job at the end of an epoch, when its mean loss was not below its best for so many epochs on end; "
        "absent = never. As many as there are epochs, or one less, cannot make a difference.",
    )
    task: CustomName | None = Field(
        default=None,
        description='Your own loss and metric: "package.module:Task", a class made as desim_fl\'s ClassificationTask.',
    )
    task_args: Args = Field(default={}, description="More keyword arguments of task: TOML values, no dates.")
    delay_aware: DelayAware | None = Field(default=None, description="The delay-aware learning rate, instead of lr.")

    def idle(self) -> frozenset[str]:
        """Return ``epochs`` beside ``steps``, ``lr`` beside ``delay_aware``, ``momentum`` beside Adam."""
        facts = {
            "epochs": self.steps is not None,
            "lr": self.delay_aware is not None,
            "momentum": self.optimizer != "sgd",
            "task_args": self.task is None,
        }
        return frozenset(key for key, idle in facts.items() if idle)
