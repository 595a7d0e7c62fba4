"""From a TOML file and overrides to a checked scenario, or to every mistake at once with its place."""

from __future__ import annotations

import copy
import os
import re
import select
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from desim_fl.errors import ScenarioError
from desim_fl.scenario import messages, rules
from desim_fl.scenario.availability import Availability
from desim_fl.scenario.data import Data
from desim_fl.scenario.document import Scenario, filled
from desim_fl.scenario.laws import LAWS
from desim_fl.scenario.models import Model
from desim_fl.scenario.overrides import apply, apply_values, leave_out
from desim_fl.scenario.parameters import override, standing
from desim_fl.scenario.places import MAX_DEPTH, Places, lines
from desim_fl.scenario.strategies import Strategy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic_core import ErrorDetails

    from desim_fl.scenario.places import Loc
    from desim_fl.scenario.rules import Problem
    from desim_fl.scenario.table import Table

_WITH_LAWS = ("clients", "network", "availability", "failures", "server")
MAX_BYTES = 1 << 20
MAX_PROBLEMS = 100
PIPE_WAIT_S = 10
# A dotted key of 64 parts. tomllib takes minutes for one of 500,000, so it is looked for first.
_LONG_KEY = re.compile(r"""(?<![\w-])(?:(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){64}""", re.ASCII)


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    *,
    unset: Sequence[str] = (),
    values: Sequence[tuple[tuple[str, ...], Any]] = (),
    place: str = "",
    parameters: Mapping[str, Any] | None = None,
) -> Scenario:
    """Read a scenario file, take the keys ``unset`` out of it, apply values that stand elsewhere (at ``place``), ``--set`` overrides and the seed; check it.

    ``parameters`` are those of the command line by their usual names (:mod:`desim_fl.scenario.parameters`).

    Raises ScenarioError with one line for each problem, ``path:LINE: [table] message``, in the order of the file;
    what an override brought in is named by the override instead of a line.
    """
    text, document = toml(path)
    settings, faults = leave_out(document, unset)
    document.setdefault("name", Path(path).stem)
    for more, wrong in (apply_values(document, values, place), apply(document, overrides)):
        settings, faults = {**settings, **more}, [*faults, *wrong]
    _seed(document, settings, seed)
    _place_trace(document, Path(path))
    settings |= override(document, parameters or {}) if parameters else {}
    places = Places(str(path), lines(text), settings)
    refuse_deep(document, places)
    for loc, source in standing(document).items():
        if source in places.lines and source not in settings:
            places = places._replace(lines={**places.lines, loc: places.lines[source]})
    return _checked(document, places, faults)


def from_tables(
    document: Mapping[str, Any], overrides: Sequence[str] = (), seed: int | None = None, *, unset: Sequence[str] = ()
) -> Scenario:
    """Check a scenario that is given as a dict of tables, with what is unset, overrides and the seed, as :func:`load` does a file.

    Raises ScenarioError with one line for each problem, ``scenario: [table] message``. The dict stays as it is.
    """
    tables = copy.deepcopy(dict(document))
    settings, faults = leave_out(tables, unset)
    more, wrong = apply(tables, overrides)
    settings, faults = {**settings, **more}, [*faults, *wrong]
    _seed(tables, settings, seed)
    places = Places("scenario", {}, settings, numbered=False)
    refuse_deep(tables, places)
    _place_trace(tables, Path("scenario"))
    return _checked(tables, places, faults)


def _seed(document: dict[str, Any], settings: dict[Loc, str], seed: int | None) -> None:
    """Put the seed of the command line into a document, and note where it came from."""
    run = document.setdefault("run", {})
    if seed is not None and isinstance(run, dict):
        run["seed"] = seed
        settings.pop(("run", "seed"), None)
        settings["run", "seed"] = f"--seed {messages.shown(seed)}"


def _checked(document: dict[str, Any], places: Places, faults: Sequence[str]) -> Scenario:
    try:
        scenario = Scenario.model_validate(document)
    except ValidationError as error:
        found = explain(error, filled(document))
        raise ScenarioError("\n".join(_report(found, places, faults))) from None
    if faults:
        raise ScenarioError("\n".join(faults))
    return scenario


def toml(path: str | Path) -> tuple[str, dict[str, Any]]:
    """Read a TOML file: its text, and what stands in it. Raises ScenarioError naming file and line."""
    text = _read(path)
    return text, _parse(str(path), text)


def read_data(name: str, settings: Mapping[str, str]) -> Table:
    """Return the table ``[data]`` of this name, with keys as ``--set`` gives them; ``ScenarioError`` names what is wrong."""
    document: dict[str, Any] = {"data": {"name": name}, "clients": {"count": 1}, "run": {"max_updates": 1}}
    places, faults = apply(document, [f"data.{key}={value}" for key, value in settings.items()])
    try:
        found = Scenario.model_validate(document)
    except ValidationError as error:
        where = Places(f"data set {messages.shown(name)}", {}, places)
        raise ScenarioError("\n".join(_report(explain(error, filled(document)), where, faults))) from None
    if faults:
        raise ScenarioError("\n".join(faults))
    return found.data


def _place_trace(document: dict[str, Any], path: Path) -> None:
    """Make the path of a trace absolute, so that the scenario means the same wherever it is kept."""
    table = document.get("availability")
    trace = table.get("path") if isinstance(table, dict) else None
    if isinstance(table, dict) and isinstance(trace, str) and trace:
        table["path"] = str(path.absolute().parent / trace)


def _read(path: str | Path) -> str:
    """Return the file's text. Raises ScenarioError where there is none that could be a scenario."""
    try:
        raw = _content(Path(path))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ScenarioError(f"{path}: cannot be read: {why}") from error
    if len(raw) > MAX_BYTES:
        raise ScenarioError(f"{path}: is larger than 1 MiB; a scenario file is not")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise ScenarioError(f"{path}:1: starts with a byte order mark; save it as UTF-8 without one")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ScenarioError(f"{path}:{line}: is not UTF-8 text (byte 0x{raw[error.start]:02x})") from error


def _content(path: Path) -> bytes:
    """Return the file's bytes, one more than the limit at most; a pipe is not waited for without end."""
    if not path.is_fifo():
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    found = b""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", 0) as pipe:  # noqa: PTH123  (a descriptor)
        while len(found) <= MAX_BYTES:
            if not select.select([pipe], [], [], PIPE_WAIT_S)[0]:
                raise ValueError(f"it is a pipe into which nobody has written for {PIPE_WAIT_S} s")
            part = pipe.read(MAX_BYTES + 1 - len(found))
            if not part:
                break
            found += part
    return found


def _parse(path: str, text: str) -> dict[str, Any]:
    endless = _LONG_KEY.search(text)
    if endless:
        raise ScenarioError(f"{path}:{text.count(chr(10), 0, endless.start()) + 1}: a dotted key is nested too deep")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ScenarioError(f"{path}:1: is nested too deep to be read") from error
    except ValueError as error:  # also numbers of more than 4300 digits, which come without a place
        place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", str(error))
        digits = re.search(r"\d[\d_]{4299,}", text)
        line = place.group(1) if place else str(text.count("\n", 0, digits.start()) + 1) if digits else "1"
        line = line or str(len(text.splitlines()) or 1)
        column = f" (column {place.group(2)})" if place and place.group(2) else ""
        reason = str(error)[: place.start()] if place else "a number is too long"
        raise ScenarioError(f"{path}:{line}: is not TOML: {reason}{column}") from error


def refuse_deep(document: dict[str, Any], places: Places) -> None:
    """Refuse what is nested deeper than any scenario, before anything walks it by recursion."""
    stack: list[tuple[str, Any, int]] = [(key, value, 1) for key, value in document.items()]
    while stack:
        top, value, depth = stack.pop()
        if depth > MAX_DEPTH:
            place = places.of((top,))[1]
            raise ScenarioError(f"{place}: {rules.bare(top)} is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, (dict, list)):
            inner = value.values() if isinstance(value, dict) else value
            stack += [(top, entry, depth + 1) for entry in inner if isinstance(entry, (dict, list))]


def explain(error: ValidationError, document: dict[str, Any]) -> list[Problem]:
    """Return what is wrong with a document: pydantic's findings and, as far as tables can be read, the rules'."""
    details = error.errors(include_url=False, include_input=False)[: MAX_PROBLEMS + 1]
    if details[0]["type"] == "rules":
        return list(details[0].get("ctx", {})["problems"])
    found = [_problem(document, detail) for detail in details]
    shaky = {problem.loc[:2] for problem in found} | {doubt[:2] for problem in found for doubt in problem.doubts}
    tables = _readable(document, found)
    more = [problem for problem in rules.problems(tables) if not _stems_from(problem, shaky)]
    hints = {doubt for problem in found for doubt in problem.doubts}
    return [problem for problem in found if problem.loc not in hints] + more


def _problem(document: dict[str, Any], detail: ErrorDetails) -> Problem:
    context = detail.get("ctx", {})
    loc = _untagged(detail["loc"])
    if detail["type"] == "rule":
        loc = (*loc, context["key"])
    text = detail["msg"]
    while len(loc) > 1 and not isinstance(messages.value_at(document, loc[:-1]), (dict, list)):
        text = rules.key_of(loc[:-1]) + text.removeprefix(str(loc[-1]))
        loc = loc[:-1]  # a bare number was read as a law: the mistake is the number's
    return messages.problem(document, detail["type"], loc, context, text)


def _untagged(loc: Loc) -> Loc:
    """Remove the names of union members that pydantic puts into a place."""
    section = loc[0]
    if section in messages.VARIANTS:
        loc = (*loc[:1], *loc[2:])
    tags: Iterable[str] = ("one", "each") if section == "data" else LAWS if section in _WITH_LAWS else ()
    at = 4 if loc[:2] == messages.CLASSES else 2  # a law of a class, or of all
    return (*loc[:at], *loc[at + 1 :]) if len(loc) > at and loc[at] in tags else loc


def _readable(document: dict[str, Any], found: Sequence[Problem]) -> dict[str, Table | None]:
    """Return the tables as they are without the keys that are wrong; ``None`` where that is not enough."""
    bad = {problem.loc[:2] for problem in found}
    kept: dict[str, Any] = {"clients": {}}
    for section in messages.SECTIONS:
        table = document.get(section, {})
        if isinstance(table, dict):
            kept[section] = {key: value for key, value in table.items() if (section, key) not in bad}
    kept["clients"].setdefault("count", 1)  # required, and if absent reported: rules that ask for it are left out
    return {section: _read_table(section, kept.get(section)) for section in messages.SECTIONS}


def _read_table(section: str, table: Mapping[str, Any] | None) -> Table | None:
    kind: Any = {"data": Data, "availability": Availability, "model": Model, "strategy": Strategy}.get(
        section
    ) or messages.PLAIN[section]
    try:
        return TypeAdapter(kind).validate_python(table)
    except ValidationError:
        return None


def _stems_from(problem: Problem, shaky: Iterable[Loc]) -> bool:
    """Tell whether a rule looked at something that is itself reported."""
    looked_at = (problem.loc, *problem.doubts)
    return any(loc[: len(place)] == place for place in shaky for loc in looked_at)


def _report(found: Sequence[Problem], places: Places, faults: Sequence[str]) -> list[str]:
    """Return one line for each problem, in the order of the file, then of the overrides."""
    rows = [(*places.of(problem.loc), messages.heading(problem.loc) + problem.text) for problem in found]
    rows.sort(key=lambda row: row[0])
    said = [f"{place}: {text}" for _, place, text in rows] + list(faults)
    if len(said) <= MAX_PROBLEMS:
        return said
    return [*said[:MAX_PROBLEMS], f"{places.path}: there are more problems; these are the first {MAX_PROBLEMS}"]
