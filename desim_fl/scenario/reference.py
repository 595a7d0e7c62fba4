"""The scenario reference, a page in Markdown written from the JSON Schema: every table, key, unit, default and meaning."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from desim_fl.scenario.laws import LAWS
from desim_fl.scenario.schema import schema
from desim_fl.scenario.table import LARGEST, WHOLE_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

SHARED_BY = 4  # variants of a table that have the same key: from so many on it is described once, before them
_HEAD = """# Scenario reference

Written from the schema by `desim-fl schema --markdown`; `desim-fl schema` prints the JSON Schema itself, with which editors complete
and check scenario files. A key that has no effect beside the others is refused, and so is an unknown one; `desim-fl run FILE
--print-config` shows every key that has an effect, defaults included. `--set table.key=value` says otherwise than
the file, and `--unset table.key` leaves a key (or a table) of the file out, before that; both can stand there several times. Seconds (`_s`) are virtual seconds; Mbit/s is 10^6 bits a second.
In the column of defaults, "-" is a key that must be given, and "absent" one that may be left out and then does nothing.
"""
_LAW_INTRO = """Keys that say "number or law" take a plain number, or a table that names a law by which it is drawn:
`wait_s = { law = "uniform", low = 0.0, high = 2.0 }`. Every draw follows from seed, client and job number.
"""
_BOUNDS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "above"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "below"),
)
_UNLIMITED = {LARGEST, -LARGEST, WHOLE_MAX}  # bounds that only keep sums within 64 bits
_KINDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "object": "table",
}


def reference() -> str:
    """Return the page: a section a table in the order of the schema, then the tables within them, then the laws."""
    whole = schema()
    page = _Page(whole["$defs"])
    sections = [_HEAD, page.keys("At the top", _plain(whole["properties"]), "")]
    sections += [
        page.section(name, node)
        for name, node in whole["properties"].items()
        if name not in _plain(whole["properties"])
    ]
    while page.owed:  # tables within tables, each once, in the order in which they were met
        sections.append(page.inner(page.owed.pop(0)))
    sections.append(page.laws())
    return "\n".join(sections)


def _plain(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {name: node for name, node in properties.items() if node.get("type") == "string"}


class _Page:
    """Definitions of the schema, and which tables within tables are still to be described."""

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self.definitions = definitions
        self.owed: list[str] = []
        self._met: set[str] = set()
        self._laws = {kind.__name__ for kind in LAWS.values()}

    def section(self, name: str, node: Mapping[str, Any]) -> str:
        """Describe a table of the top level, and its variants where it has some."""
        choices = [_name(choice) for choice in node.get("oneOf", node.get("anyOf", ()))]
        if not choices:
            known = self.definitions[_name(node)]
            must = frozenset(known.get("required", ()))
            return self.keys(f"[{name}]", known["properties"], node["description"], must)
        shared = self._shared(choices)
        parts = [f"## [{name}]\n\n{node['description']}\n"]
        if shared:
            parts.append(f"Keys that several variants have:\n\n{self._table(shared, frozenset())}")
        for choice in choices:
            known = self.definitions[choice]
            own = {key: value for key, value in known["properties"].items() if shared.get(key) != value}
            also = [key for key in known["properties"] if key not in own]
            named = own.pop("name")
            title = f'name = "{named["const"]}"' if "const" in named else "name = " + self._values(named)
            parts.append(f"### {name}: {title}\n\n{_sentence(named.get('description', ''))}\n")
            parts += [self._table(own, frozenset(known.get("required", ())))] if own else []
            parts += [f"Also, as above: {', '.join(f'`{key}`' for key in also)}.\n"] if also else []
        return "\n".join(parts)

    def inner(self, name: str) -> str:
        """Describe a table that stands within another one."""
        known = self.definitions[name]
        return self.keys(
            f"Table {name}", known["properties"], known.get("description", ""), frozenset(known.get("required", ()))
        )

    def laws(self) -> str:
        """Describe the laws by which numbers are drawn."""
        parts = [f"## Laws\n\n{_LAW_INTRO}"]
        for law, kind in LAWS.items():
            known = self.definitions[kind.__name__]
            own = {key: value for key, value in known["properties"].items() if key not in ("law", "cap")}
            parts.append(f'### law = "{law}"\n\n{_sentence(known["properties"]["law"]["description"])}\n')
            parts += [self._table(own, frozenset(known.get("required", ())))] if own else []
        capped = [f"`{law}`" for law, kind in LAWS.items() if "cap" in self.definitions[kind.__name__]["properties"]]
        return "\n".join(
            [
                *parts,
                f"`cap`, with {', '.join(capped)}: the largest value that is drawn; larger ones become this one.\n",
            ]
        )

    def keys(self, title: str, properties: Mapping[str, Any], said: str, required: frozenset[str] = frozenset()) -> str:
        """Describe the keys of one table under a heading."""
        return f"## {title}\n\n" + (f"{_sentence(said)}\n\n" if said else "") + self._table(properties, required)

    def _shared(self, choices: list[str]) -> dict[str, Any]:
        seen = Counter(
            (key, json.dumps(node, sort_keys=True))
            for choice in choices
            for key, node in self.definitions[choice]["properties"].items()
            if key != "name"
        )
        return {key: json.loads(text) for (key, text), times in seen.items() if times >= SHARED_BY}

    def _table(self, properties: Mapping[str, Any], required: frozenset[str]) -> str:
        lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
        for key, node in properties.items():
            default = _default(node, must=key in required)
            cells = (f"`{key}`", self._values(node), default, _sentence(node.get("description", "")))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        return "\n".join(lines) + "\n"

    def _values(self, node: Mapping[str, Any]) -> str:
        if "$ref" in node:
            return self._reference(_name(node))
        if "const" in node:
            return f"`{json.dumps(node['const'])}`"
        if "enum" in node:
            return ", ".join(f"`{json.dumps(value)}`" for value in node["enum"])
        choices = node.get("anyOf", node.get("oneOf"))
        if choices is not None:
            return " or ".join(dict.fromkeys(self._values(choice) for choice in choices))
        if node.get("type") == "array":
            return f"list: {self._values(node['items'])}" if "items" in node else "list"
        return _KINDS.get(node.get("type", ""), "any value") + _bounds(node)

    def _reference(self, name: str) -> str:
        if name in self._laws:
            return "[law](#laws)"
        if name not in self._met:
            self._met.add(name)
            self.owed.append(name)
        return f"[table](#table-{name.lower()})"


def _name(node: Mapping[str, Any]) -> str:
    return str(node["$ref"]).rpartition("/")[2]


def _bounds(node: Mapping[str, Any]) -> str:
    told = [f"{word} {_number(node[key])}" for key, word in _BOUNDS if key in node and node[key] not in _UNLIMITED]
    return f", {' and '.join(told)}" if told else ""


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else repr(value)


def _default(node: Mapping[str, Any], *, must: bool) -> str:
    if must:
        return "-"
    if "default" in node:
        return f"`{json.dumps(node['default'])}`"
    return "absent"


def _sentence(text: str) -> str:
    return " ".join(text.split())
