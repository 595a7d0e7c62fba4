"""What the tables of server methods have in common."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from desim_fl.scenario.table import Amount, Table, Whole

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTHING: Mapping[str, str] = MappingProxyType({})


class MethodTable(Table):
    """A server method by name; its keys are the options of the class in :data:`desim_fl.strategies.TABLE`."""

    draws: ClassVar[bool] = False  # whether the method draws numbers, and so takes the run's seed

    def settles(self) -> Mapping[str, str]:
        """Return the keys of [run] that this method itself settles, each with the reason: they must not be given."""
        return NOTHING

    def unused(self) -> Mapping[str, str]:
        """Return the keys of this table that have no effect beside its others, each with the reason: they must not be given."""
        return NOTHING

    def idle(self) -> frozenset[str]:
        """Return the keys without effect."""
        return frozenset(self.unused())

    def places(self, clients: int, asked: int) -> int | None:  # noqa: ARG002
        """Return the jobs in flight, at most: run.concurrency, unless the method settles it; ``None`` = no bound."""
        return asked


class StalenessTable(MethodTable):
    """What the asynchronous strategies share: how much an update weighs that started from an old version."""

    staleness: Literal["polynomial", "constant", "hinge"] = Field(
        default="polynomial",
        description="Weight of staleness s: (1+s)^-power, 1, or 1 up to b and 1/(a(s-b)+1) beyond.",
    )
    staleness_power: Annotated[float, Field(ge=0, le=30)] = Field(default=0.5, description="Power of polynomial.")
    hinge_a: Amount = Field(default=10.0, description="Slope a of hinge.")
    hinge_b: Amount = Field(default=4.0, description="Bend b of hinge: no loss of weight up to here.")
    staleness_offset: Annotated[int, Field(ge=0, le=1)] = Field(
        default=0, description="Added to the staleness before it is weighed: 0, or 1 as some papers count."
    )
    max_staleness: Whole | None = Field(default=None, description="Turn older updates away; absent = no bound.")

    def idle(self) -> frozenset[str]:
        """Return the parameters of the staleness functions that are not chosen."""
        return frozenset(key for key, owner in STALENESS_KEYS.items() if owner != self.staleness)


STALENESS_KEYS = {"staleness_power": "polynomial", "hinge_a": "hinge", "hinge_b": "hinge"}
