"""Anybody's own class, named ``"package.module:Class"`` in a scenario: found, made, and refused with the way out."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from desim_fl.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Mapping


def imported(what: str, name: str) -> Any:
    """What ``"package.module:Class"`` names; raises ``ScenarioError`` beginning with ``what`` and the name."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        raise ScenarioError(
            f"{what} {name}: cannot import {module_name!r} ({error}); install it, or run where Python can find it "
            f"(for example with PYTHONPATH=.)"
        ) from error
    if not hasattr(module, attribute):
        near = [word for word in vars(module) if not word.startswith("_")]
        raise ScenarioError(f"{what} {name}: {module_name} has no {attribute!r}; it has {', '.join(near)}")
    return getattr(module, attribute)


def made(what: str, name: str, factory: Any, options: Mapping[str, Any], wanted: tuple[str, ...]) -> Any:
    """Call a factory with options; raises ``ScenarioError`` for options that it does not take, or a result without the ``wanted`` attributes."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError) as error:
        raise ScenarioError(f"{what} {name}: {factory!r} is not something that makes a {what}") from error
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ScenarioError(f"{what} {name}: {error}; its options are {', '.join(signature.parameters)}") from error
    try:
        result = factory(**options)
    except (TypeError, ValueError) as error:
        raise ScenarioError(f"{what} {name}: {error} (options given: {dict(options)!r})") from error
    lacking = [word for word in wanted if not hasattr(result, word)]
    if lacking:
        raise ScenarioError(f"{what} {name} makes a {type(result).__name__} that lacks {', '.join(lacking)}")
    return result
