"""``--set table.key=value`` and ``--unset table.key``: what the command line says instead of the file."""

from __future__ import annotations

import copy
import re
import tomllib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from desim_fl.errors import ScenarioError
from desim_fl.scenario import messages
from desim_fl.scenario.places import MAX_DEPTH
from desim_fl.scenario.rules import bare, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

_SETTING = re.compile(r"""((?:"(?:[^"\\]|\\.)*+"|'[^']*'|[^"'=])+)=(.*)""", re.DOTALL)
_SHAPE = 'an override has the form table.key=value, for example strategy.buffer_size=5 or "run.max_time_s=3600"'
_ALONE = "what is left out is named without a value, for example run.concurrency"
_SHOWN = 20  # keys that a message names


def apply(document: dict[str, Any], settings: Sequence[str]) -> tuple[dict[tuple[str | int, ...], str], list[str]]:
    """Set values in the document, in order; return where each went with its name for messages, and what failed."""
    places: dict[tuple[str | int, ...], str] = {}
    faults: list[str] = []
    for setting in settings:
        label = f"--set {_one_line(setting)}"
        try:
            path, value = parse(setting)
            put(document, path, value)
        except ScenarioError as error:
            faults.append(f"{label}: {error}")
        else:
            places.pop(path, None)
            places[path] = label
    return places, faults


def apply_values(
    document: dict[str, Any], values: Sequence[tuple[tuple[str, ...], Any]], place: str
) -> tuple[dict[tuple[str | int, ...], str], list[str]]:
    """Set values that stand elsewhere, at ``place`` (``None`` = leave the key out); return the same as :func:`apply`."""
    places: dict[tuple[str | int, ...], str] = {}
    faults: list[str] = []
    for path, value in values:
        try:
            put(document, path, copy.deepcopy(value))
            if value is None:
                take_out(document, path)
        except ScenarioError as error:
            faults.append(f"{place}: {error}")
        else:
            places.pop(path, None)
            places[path] = place
    return places, faults


def leave_out(document: dict[str, Any], keys: Sequence[str]) -> tuple[dict[tuple[str | int, ...], str], list[str]]:
    """Take keys out of the document, in order; return where each stood with its name for messages, and what failed."""
    places: dict[tuple[str | int, ...], str] = {}
    faults: list[str] = []
    for key in keys:
        label = f"--unset {_one_line(key)}"
        try:
            path = _plain(key)
            _find(document, path)
            take_out(document, path)
        except ScenarioError as error:
            faults.append(f"{label}: {error}")
        else:
            places[path] = label
    return places, faults


def _plain(key: str) -> tuple[str, ...]:
    try:
        return path_of(key)
    except ScenarioError:
        raise ScenarioError(f"{quoted(key.strip())} is not a key; {_ALONE}") from None


def _find(document: dict[str, Any], path: tuple[str, ...]) -> None:
    """Raise ScenarioError where a key does not stand in the document, with the one that was meant or those that do."""
    table: Any = document
    for depth, key in enumerate(path):
        outer = ".".join(path[:depth])
        if not isinstance(table, dict):
            kind = "a list" if isinstance(table, list) else "a single value"
            raise ScenarioError(f"{quoted(outer)} is {kind}, not a table; leave it out as a whole")
        if key not in table:
            raise ScenarioError(_absent(outer, key, list(map(str, table))))
        table = table[key]


def _absent(outer: str, key: str, there: list[str]) -> str:
    guess = messages.near(key, there)
    dot = f"{outer}." if outer else ""
    if guess:
        hint = f"did you mean {quoted(dot + guess)}?"
    else:
        names = ", ".join(map(bare, there[:_SHOWN])) or "nothing"
        hint = f"set {f'in [{outer}]' if outer else 'at the top'} is {names}"
    return f"{quoted(dot + key)} is not set here, so that there is nothing to leave out; {hint}"


def _one_line(setting: str) -> str:
    return setting if setting.isprintable() and len(setting) <= 200 else quoted(setting)  # noqa: PLR2004


def parse(setting: str) -> tuple[tuple[str, ...], Any]:
    """Split an override into the path of its key and its value. Raises ScenarioError."""
    match = _SETTING.fullmatch(setting)
    if match is None:
        raise ScenarioError(_SHAPE)
    path = path_of(match.group(1))
    return path, _value(match.group(2).strip())


@lru_cache(maxsize=1024)
def path_of(text: str) -> tuple[str, ...]:
    """Read a dotted TOML key. Raises ScenarioError for what is none."""
    path: list[str] = []
    try:
        inner: Any = {} if "\n" in text or text.count(".") > MAX_DEPTH else tomllib.loads(f"{text.strip()} = 0")
    except (ValueError, RecursionError):
        inner = {}
    while isinstance(inner, dict) and len(inner) == 1:
        key, inner = next(iter(inner.items()))
        path.append(key)
    if not path or inner != 0:
        raise ScenarioError(f"{quoted(text.strip())} is not a key; {_SHAPE}")
    return tuple(path)


def _value(text: str) -> Any:
    """Read a TOML value; a bare word is a string."""
    if not text:
        raise ScenarioError('has no value; write "" for an empty text')
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError) as error:
        if text[0] not in "\"'[{" and text.isprintable():
            return text
        raise ScenarioError(f"{quoted(text)} is not a TOML value: {_reason(error)}") from error
    if set(parsed) != {"value"}:
        raise ScenarioError(f"{quoted(text)} is more than one TOML value")
    return parsed["value"]


def _reason(error: Exception) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else re.sub(r" \(at .*\)$", "", str(error))


def put(document: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set a value, making the tables around it. Raises ScenarioError where something else than a table is there."""
    table: Any = document
    for depth, key in enumerate(path[:-1], 1):
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            kind = "a list" if isinstance(table, list) else "a single value"
            raise ScenarioError(f"{quoted('.'.join(path[:depth]))} is {kind}, not a table; set it as a whole")
    table[path[-1]] = value


def take_out(document: dict[str, Any], path: tuple[str, ...]) -> None:
    """Leave a key out that is there."""
    table: Any = document
    for key in path[:-1]:
        table = table[key]
    del table[path[-1]]
