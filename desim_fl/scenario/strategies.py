"""The one table of server methods that a scenario may name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Field, Tag

from desim_fl.scenario.asynchronous import ASYNCHRONOUS
from desim_fl.scenario.method import MethodTable
from desim_fl.scenario.synchronous import SYNCHRONOUS
from desim_fl.scenario.table import CUSTOM, Args, CustomName, tag_of

DEFAULT_STRATEGY = "fedbuff"


class CustomStrategy(MethodTable):
    """Anyone's own strategy class; it is imported when the run is built, not here."""

    name: CustomName = Field(description='Where the class stands: "package.module:Strategy".')
    args: Args = Field(default={}, description="Keyword arguments of the class: TOML values, no dates.")

    def places(self, clients: int, asked: int) -> None:
        """Return no bound: it may send out whom it likes."""


STRATEGIES: dict[str, type[MethodTable]] = {**ASYNCHRONOUS, **SYNCHRONOUS, CUSTOM: CustomStrategy}


def _strategy_tag(value: Any) -> str | None:
    return tag_of(value, DEFAULT_STRATEGY)


if TYPE_CHECKING:
    Strategy = Any  # any of STRATEGIES
else:
    _KINDS = tuple(Annotated[kind, Tag(name)] for name, kind in STRATEGIES.items())
    Strategy = Annotated[Union[_KINDS], Discriminator(_strategy_tag)]  # noqa: UP007  (made from a table)
