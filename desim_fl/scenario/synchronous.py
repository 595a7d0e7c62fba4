"""Tables of the synchronous and semi-synchronous methods: rounds, cohorts, tiers."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from desim_fl.scenario.method import MethodTable
from desim_fl.scenario.table import CLIENT_MAX, Positive, Share

if TYPE_CHECKING:
    from collections.abc import Mapping

Cohort = Annotated[int, Field(ge=1, le=CLIENT_MAX)]


class FedAvg(MethodTable):
    """Rounds: a cohort trains from one version, its sample-weighted mean is the next (McMahan et al., AISTATS 2017)."""

    name: Literal["fedavg"] = Field(default="fedavg", description="Synchronous rounds.")
    clients_per_round: Cohort = Field(default=10, description="Updates that make a round.")
    server_lr: Positive = Field(default=1.0, description="Server learning rate.")
    over_selection: Annotated[float, Field(ge=1, le=1e6)] = Field(
        default=1.0, description="Send out so many times as many clients as the round needs."
    )
    deadline_s: Positive | None = Field(
        default=None, description="End a round so many seconds after its start; absent = never."
    )
    min_fraction: Share = Field(
        default=0.0, description="A round that ends with fewer than this share of updates is abandoned."
    )
    cancel_stragglers: bool = Field(default=False, description="Cancel what still runs at a round's end.")

    @property
    def cohort(self) -> int:
        """How many clients a round sends out: ceil(over_selection * clients_per_round), of the numbers as written."""
        return math.ceil(Decimal(repr(self.over_selection)) * self.clients_per_round)

    def settles(self) -> Mapping[str, str]:
        """Return that the cohort is what flies."""
        return {"concurrency": "it follows from clients_per_round"}

    def places(self, clients: int, asked: int) -> None:
        """Return no bound: stragglers of closed rounds fly beside the cohort."""


SYNCHRONOUS: dict[str, type[MethodTable]] = {"fedavg": FedAvg}
