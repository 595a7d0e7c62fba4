"""A table about learning rates that change with the server's version; clients and server optimisers have one each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from desim_fl.scenario.table import Count, Share, Table

SCHEDULE_KEYS = {
    "every_versions": ("step",),
    "factor": ("step",),
    "over_versions": ("cosine", "inverse_sqrt"),
    "floor": ("cosine",),
}


class LrSchedule(Table):
    """By what a learning rate is multiplied at version v."""

    name: Literal["step", "cosine", "inverse_sqrt"] = Field(
        description="factor ^ floor(v / every_versions); half a cosine from 1 to floor over over_versions; or 1 / sqrt(1 + v / "
        "over_versions).",
    )
    every_versions: Count = Field(default=100, description="Versions from one step to the next. Only with step.")
    factor: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1, description="What the rate is multiplied with at each step. Only with step."
    )
    over_versions: Count = Field(
        default=100, description="Versions until the cosine's floor, or the inverse square root's unit."
    )
    floor: Share = Field(default=0.0, description="The cosine's last value. Only with cosine.")

    def idle(self) -> frozenset[str]:
        """Return the parameters of the schedules that are not chosen."""
        return frozenset(key for key, owners in SCHEDULE_KEYS.items() if self.name not in owners)

    def parameters(self) -> dict[str, Any]:
        """Return the arguments of the schedule's class."""
        return {key: getattr(self, key) for key, owners in SCHEDULE_KEYS.items() if self.name in owners}
