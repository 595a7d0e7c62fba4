"""Checks of a strategy's options, so that one built by hand is as strict as one from a scenario file."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from desim_fl.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Iterable


def require(holds: bool, name: str, value: object, rule: str) -> None:  # noqa: FBT001  (the condition itself)
    """Raise ScenarioError with value, place and way out unless the rule holds."""
    if not holds:
        raise ScenarioError(f"strategy: {name} = {value!r} cannot be; {name} {rule}")


def one_of(name: str, value: object, known: Iterable[str]) -> None:
    """Raise ScenarioError, with the nearest valid name, unless the value is a known one."""
    names = list(known)
    if value not in names:
        near = get_close_matches(str(value), names, 1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise ScenarioError(f"strategy: {name} = {value!r} is not one of {', '.join(names)}{hint}")
