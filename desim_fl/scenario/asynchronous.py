"""Tables of the asynchronous methods: every arrival, or every few, makes a version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from desim_fl.scenario.method import StalenessTable
from desim_fl.scenario.table import Count, Positive

if TYPE_CHECKING:
    from desim_fl.scenario.method import MethodTable


class FedAsync(StalenessTable):
    """Every arrival is mixed into the model at once (Xie et al., arXiv 1903.03934)."""

    name: Literal["fedasync"] = Field(default="fedasync", description="Mix every arrival in at once.")
    alpha: Annotated[float, Field(gt=0, le=1)] = Field(default=0.6, description="Mixing rate of a fresh update.")
    mixing: Literal["model", "delta"] = Field(
        default="model", description="Mix with the client's model, or add its change to the current model."
    )


class FedBuff(StalenessTable):
    """Arrivals are collected and applied together (Nguyen et al., AISTATS 2022)."""

    name: Literal["fedbuff"] = Field(
        default="fedbuff", description="Collect buffer_size arrivals, apply them together."
    )
    buffer_size: Count = Field(default=10, description="Arrivals that make a new version.")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")
    normalize: Literal["K", "sum_w", "none"] = Field(
        default="K",
        description="Divide the weighted sum by the buffer size (as the paper), by the sum of weights, or not.",
    )
    flush_at_end: bool = Field(default=False, description="Apply what a stop leaves in the buffer.")


ASYNCHRONOUS: dict[str, type[MethodTable]] = {"fedasync": FedAsync, "fedbuff": FedBuff}
