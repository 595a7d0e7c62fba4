"""From what pydantic found to sentences: value, place, and the way out."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from desim_fl.scenario.availability import AVAILABILITIES, DEFAULT_AVAILABILITY, availability_tag
from desim_fl.scenario.data import DATA, DEFAULT_DATA, data_tag
from desim_fl.scenario.devices import DeviceClass
from desim_fl.scenario.failures import FailuresTable
from desim_fl.scenario.laws import LAWS
from desim_fl.scenario.method import ServerOptimizer
from desim_fl.scenario.models import DEFAULT_MODEL, MODELS, VISION, VISION_MODELS, model_tag
from desim_fl.scenario.parameters import Parameters
from desim_fl.scenario.rules import Loc, Problem, bare, key_of, quoted
from desim_fl.scenario.schedules import LrSchedule
from desim_fl.scenario.server import Checkpoint, Executor, Run
from desim_fl.scenario.serving import ServerTable
from desim_fl.scenario.strategies import DEFAULT_STRATEGY, STRATEGIES
from desim_fl.scenario.table import CUSTOM, tag_of
from desim_fl.scenario.training import DelayAware, Training
from desim_fl.scenario.world import Clients, Network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from desim_fl.scenario.table import Table

CLASSES = ("clients", "classes")
TOP = ("name", "description")
PLAIN: dict[str, type[Table]] = {
    "clients": Clients,
    "network": Network,
    "failures": FailuresTable,
    "training": Training,
    "server": ServerTable,
    "run": Run,
    "executor": Executor,
    "checkpoint": Checkpoint,
    "parameters": Parameters,
}
VARIANTS: dict[str, tuple[Mapping[str, type[Table]], str, Callable[[Any], str | None]]] = {
    "data": (DATA, DEFAULT_DATA, data_tag),
    "availability": (AVAILABILITIES, DEFAULT_AVAILABILITY, availability_tag),
    "model": (MODELS, DEFAULT_MODEL, model_tag),
    "strategy": (STRATEGIES, DEFAULT_STRATEGY, lambda value: tag_of(value, DEFAULT_STRATEGY)),
}
_SPOKEN = {
    ("", CUSTOM): '"package.module:attribute"',
    ("data", VISION): 'a class of torchvision.datasets ("MNIST", say)',
    ("model", VISION): 'a name of torchvision.models ("mobilenet_v2", say)',
}
NESTED: dict[Loc, type[Table]] = {
    ("training", "delay_aware"): DelayAware,
    ("training", "lr_schedule"): LrSchedule,
    ("strategy", "server_lr_schedule"): LrSchedule,
    ("strategy", "server_optimizer"): ServerOptimizer,
}
SECTIONS = (
    "data", "clients", "network", "availability", "failures", "model", "training", "strategy", "server", "run",
    "executor", "checkpoint", "parameters",
)  # fmt: skip


def shown(value: Any) -> str:
    """Return a TOML value as a message shows it."""
    if isinstance(value, (str, bool)):
        return quoted(value) if isinstance(value, str) else str(value).lower()
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 128 else f"a whole number of {value.bit_length()} bits"  # noqa: PLR2004
    kinds = {float: repr, dict: lambda _: "a table", list: lambda _: "a list"}
    return kinds.get(type(value), lambda value: f"{value} (a date or time)")(value)


def listed(names: Iterable[str], section: str = "") -> str:
    """Return names in quotes with commas; kinds that stand for many names are described."""
    return ", ".join(_SPOKEN.get(("" if name == CUSTOM else section, name)) or quoted(name) for name in names)


def heading(loc: Loc) -> str:
    """Return the name of the table that a place lies in, in brackets, with a blank; empty at the top."""
    if not loc or loc[0] not in SECTIONS:
        return ""
    if loc[:2] == CLASSES and len(loc) > 3:  # noqa: PLR2004  (a key of one class)
        loc = (*CLASSES, *loc[3:])
    names = loc[: next((i for i, part in enumerate(loc) if isinstance(part, int)), len(loc))]
    table = names[:-1] if len(names) > 1 else names
    return "[" + ".".join(bare(str(part)) for part in table) + "] "


def value_at(document: Any, loc: Loc) -> Any:
    """Return the value at a place, ``None`` where there is none."""
    for part in loc:
        inside = isinstance(document, dict) or (isinstance(document, list) and isinstance(part, int))
        if not inside or (isinstance(document, dict) and part not in document):
            return None
        document = cast("Any", document)[part]
    return document


class Choice(NamedTuple):
    """Which keys may stand in a table: those of ``kinds[chosen]``, chosen by the key ``by`` ("" = no choice)."""

    kinds: Mapping[str, type[Table]]
    chosen: str
    by: str = ""

    @property
    def keys(self) -> list[str]:
        """The keys that are valid here."""
        return list(self.kinds[self.chosen].model_fields)

    def owners(self, key: str) -> list[str]:
        """Return the variants that have a key."""
        return [name for name, kind in self.kinds.items() if key in kind.model_fields]


def choice_at(document: Mapping[str, Any], table: Loc) -> Choice:
    """Return which keys may stand in the table at a place."""
    section = str(table[0])
    if table in NESTED:
        return Choice({"": NESTED[table]}, "")
    if table[:2] == CLASSES and len(table) == 3:  # noqa: PLR2004
        return Choice({"": DeviceClass}, "")
    if len(table) > 1:
        return Choice(LAWS, value_at(document, table)["law"], "law")
    if section in PLAIN:
        return Choice({"": PLAIN[section]}, "")
    kinds, default, tag = VARIANTS[section]
    return Choice(kinds, tag(document[section]) or default, "name")


def _every_key() -> Iterator[tuple[str, str]]:
    """Yield (key, section) over all sections and variants."""
    for section in SECTIONS:
        kinds = [PLAIN[section]] if section in PLAIN else VARIANTS[section][0].values()
        for kind in kinds:
            yield from ((key, section) for key in kind.model_fields)


def near(name: str, names: Iterable[str]) -> str | None:
    """Return the valid name that a misspelt one is closest to, if any is close."""
    found = get_close_matches(name.lower().replace("-", "_"), list(names), 1)
    return found[0] if found else None


def unknown_at_top(key: str, *, is_table: bool) -> Problem:
    """Explain a table or key that no scenario has."""
    what = f"there is no table [{bare(key)}]" if is_table else f"there is no key {quoted(key)} outside the tables"
    homes = list(dict.fromkeys(section for name, section in _every_key() if name == key != "name"))
    if homes:
        return Problem((key,), f"{what}; it belongs to [{'], ['.join(homes)}]")
    guess = near(key, (*SECTIONS, *TOP))
    if guess is None:
        return Problem((key,), what + (_elsewhere(key) or f"; tables are {', '.join(SECTIONS)}"))
    hint = f"[{guess}]" if guess in SECTIONS else quoted(guess)
    return Problem((key,), f"{what}; did you mean {hint}?", ((guess,),))


def unknown(document: Mapping[str, Any], loc: Loc) -> Problem:
    """Explain a key that its table does not have: it belongs elsewhere, or is misspelt."""
    key, table = str(loc[-1]), loc[:-1]
    if not table:
        return unknown_at_top(key, is_table=isinstance(document[key], dict))
    choice = choice_at(document, table)
    chosen = "package.module:attribute" if choice.chosen == CUSTOM else choice.chosen
    owners = choice.owners(key)
    what = f"has no key {quoted(key)}"
    if owners:
        return Problem(
            loc, f'{what} with {choice.by} = "{chosen}"; it belongs to {choice.by} = {listed(owners, str(table[0]))}'
        )
    homes = list(
        dict.fromkeys(section for name, section in _every_key() if name == key != "name" and section != table[0])
    )
    if homes:
        return Problem(loc, f"{what}; it belongs to [{'], ['.join(homes)}]")
    return _misspelt(loc, what, choice)


def _misspelt(loc: Loc, what: str, choice: Choice) -> Problem:
    key = str(loc[-1])
    guess = near(key, choice.keys)
    if guess:
        return Problem(loc, f"{what}; did you mean {quoted(guess)}?", ((*loc[:-1], guess),))
    guess = near(key, (name for kind in choice.kinds.values() for name in kind.model_fields))
    if guess:
        hint = (
            f"did you mean {quoted(guess)}, which belongs to {choice.by} = {listed(choice.owners(guess), str(loc[0]))}?"
        )
        return Problem(loc, f"{what}; {hint}", ((*loc[:-1], guess),))
    return Problem(loc, what + (_elsewhere(key) or f"; its keys are {', '.join(choice.keys)}"))


def _elsewhere(key: str) -> str:
    """Suggest the nearest key of any table."""
    keys = dict(_every_key())
    guess = near(key, keys)
    return f"; did you mean {quoted(guess)} of [{keys[guess]}]?" if guess else ""


KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a string",
    "string_unicode": "Unicode text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "finite_number": "a finite number",
    "string_pattern_mismatch": 'of the form "package.module:attribute"',
}
BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "greater than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}
LENGTHS = {
    "too_short": ("min_length", "at least"),
    "string_too_short": ("min_length", "at least"),
    "too_long": ("max_length", "at most"),
    "string_too_long": ("max_length", "at most"),
}


def _one_of(loc: Loc, names: list[str], value: Any) -> Problem:
    section = str(loc[0])
    known = [*(VISION_MODELS if section == "model" else ()), *(name for name in names if name not in {CUSTOM, VISION})]
    guess = near(value, known) if isinstance(value, str) else None
    hint = f"; did you mean {quoted(guess)}?" if guess else ""
    return Problem(loc, f"{key_of(loc)} must be one of {listed(names, section)}, not {shown(value)}{hint}")


def _tag(loc: Loc, value: Any) -> Problem:
    """Explain a table whose ``name`` or ``law`` does not say what it is."""
    by = "name" if loc[0] in VARIANTS else "law"
    names = list(VARIANTS[str(loc[0])][0]) if loc[0] in VARIANTS else list(LAWS)
    if not isinstance(value, dict):
        kind = "a table" if by == "name" else "a number or a table with the key law"
        return Problem(loc, f"{'' if len(loc) == 1 else key_of(loc) + ' '}must be {kind}, not {shown(value)}")
    if by not in value:
        return Problem((*loc, by), f"needs the key {quoted(by)}, one of {listed(names, str(loc[0]))}")
    return _one_of((*loc, by), names, value[by])


def _limit(kind: str, key: str, value: Any, limits: Mapping[str, Any]) -> str:
    """Say which bound a number or a length breaks."""
    if kind in BOUNDS:
        name, words = BOUNDS[kind]
        limit = limits[name]
        bound = str(int(limit)) if limit == int(limit) else str(limit)
        return f"{key} must be {words} {bound}, not {shown(value)}"
    name, words = LENGTHS[kind]
    unit = "characters" if kind.startswith("string") else "entries"
    return f"{key} must have {words} {limits[name]} {unit}, not {len(value)}"


def _missing(loc: Loc) -> Problem:
    return Problem(
        loc, f"needs the key {quoted(str(loc[-1]))}" if len(loc) > 1 else 'is missing; it needs the key "count"'
    )


def _wrong_type(kind: str, loc: Loc, value: Any) -> Problem:
    if kind == "float_type" and type(value) is int:
        return Problem(loc, f"{key_of(loc)} is too large: {shown(value)}")
    name = "" if len(loc) == 1 and loc[0] in SECTIONS else key_of(loc) + " "
    return Problem(loc, f"{name}must be {KINDS[kind]}, not {shown(value)}")


def problem(document: Mapping[str, Any], kind: str, loc: Loc, limits: Mapping[str, Any], message: str) -> Problem:
    """Explain one finding of pydantic, of this kind, at this place (without union tags)."""
    value = value_at(document, loc)
    if kind in KINDS:
        return _wrong_type(kind, loc, value)
    if kind in BOUNDS or kind in LENGTHS:
        return Problem(loc, _limit(kind, key_of(loc), value, limits))
    explain = {
        "missing": lambda: _missing(loc),
        "extra_forbidden": lambda: unknown(document, loc),
        "union_tag_invalid": lambda: _tag(loc, value),
        "union_tag_not_found": lambda: _tag(loc, value),
        "literal_error": lambda: _one_of(loc, re.findall(r"'([^']*)'", limits["expected"]), value),
    }
    return explain.get(kind, lambda: Problem(loc, message))()
