"""The table about a server that takes time."""

from __future__ import annotations

from pydantic import Field

from desim_fl.scenario.laws import Duration
from desim_fl.scenario.table import Amount, Count, Table


class ServerTable(Table):
    """How long the server is busy with updates and evaluations; nothing said = not at all."""

    aggregation_s: Duration | None = Field(
        default=None, description="Law drawn for every service: seconds to take an update, or a batch of them, in."
    )
    queue: Count | None = Field(
        default=None, description="Updates that may wait for the server; one that meets more is rejected. Absent = any."
    )
    batch: Count | None = Field(default=None, description="Updates taken in together, in one service; absent = 1.")
    evaluation_s: Amount | None = Field(
        default=None,
        description="Seconds of an evaluation, off the critical path: only a target_accuracy waits for it.",
    )
    blocking: bool = Field(default=False, description="The server is busy with an evaluation, so that updates wait.")

    def idle(self) -> frozenset[str]:
        """Return ``blocking`` where evaluations take no time."""
        return frozenset() if self.evaluation_s is not None else frozenset({"blocking"})
