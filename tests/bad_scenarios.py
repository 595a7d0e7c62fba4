"""Scenario files and command lines that were not written to be read, made from a seed.

``mistaken`` follows the grammar: a sound document, then wrong values, keys and tables as the JSON Schema gives them.
``garbled`` works on bytes. ``odd_places`` are scenario files, overrides and folders of strange names and kinds.
"""

from __future__ import annotations

import os
import re
import tomllib
from typing import TYPE_CHECKING, Any, NamedTuple

import tomli_w

import scenarios
from desim_fl.scenario import schema

if TYPE_CHECKING:
    import random
    from pathlib import Path

SCHEMA = schema()
SECTIONS = ["data", "clients", "network", "model", "training", "strategy", "run", "executor"]
SOUND = [tomllib.loads(text) for text in (scenarios.QUADRATIC, scenarios.BLOBS)]
SOUND += [{**SOUND[0], "strategy": {"name": "fedavg", "clients_per_round": 2}, "run": {"seed": 1, "max_versions": 5}}]
SOUND += [{"clients": {"count": 4}, "run": {"max_updates": 5, "concurrency": 2}}]
HOSTILE = [
    "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "../../x", "/etc/passwd", "..", "C:\\x", "$(touch x)",
    "`touch x`", "; touch x", "\x1b[2J\x1b]0;owned\x07", "a\r\nb", "\u202egnp.exe", "\u2028", "\x7f", "n" * 70_000, '"""',
    "'''", 'a"b', "{{ 7*7 }}", "%s%n", "\N{PILE OF POO}" * 99, " ", "", "nul", "con", "bomb:explode", "os:getcwd", "a:b:c", ":", "a:", "nowhere.at:all",
]  # fmt: skip
STRANGE = [
    True, False, 0, 1, -1, 0.0, -0.0, 0.5, 1e300, -1e300, 5e-324, float("nan"), float("inf"), float("-inf"), 2**31, 2**32, 2**53, 2**53 + 1,
    2**63, 2**64, -(2**63), 10**40, 10**400, [], [[]], [{}], {}, {"law": "nothing"}, {"law": 3}, {"name": "x"}, [1, "a", None], [1, 2, 3, 4], [0.5] * 4,
    {"a": {"b": {"c": {}}}}, {"law": "constant", "value": -1}, {"law": "uniform", "low": 2, "high": 1}, {"law": "pareto", "alpha": 0.5, "scale": 1},
    {"law": "zipf", "exponent": 1.01, "cap": 1_000_000}, {"law": "lognormal", "median": 1e12, "sigma": 50}, {"law": "exponential", "mean": 1e12},
]  # fmt: skip


class Asked(NamedTuple):
    """Arguments of the command line; ``refused`` = whatever happens, the answer must be exit code 2."""

    arguments: list[str]
    refused: bool = False


def definitions() -> dict[str, list[dict[str, Any]]]:
    """The kinds of each table as the JSON Schema gives them."""
    found = {}
    for section in SECTIONS:
        entry = SCHEMA["properties"][section]
        kinds = entry.get("oneOf") or entry.get("anyOf") or [entry]
        found[section] = [SCHEMA["$defs"][kind["$ref"].rpartition("/")[2]] for kind in kinds]
    return found


KINDS = definitions()
KEYS = sorted({(section, key) for section, kinds in KINDS.items() for kind in kinds for key in kind["properties"]})


def _plain(value: Any) -> Any:
    """What TOML can hold."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value if entry is not None]
    return {key: _plain(entry) for key, entry in value.items()} if isinstance(value, dict) else value


def edge(chance: random.Random, definition: dict[str, Any]) -> Any:
    """A value at, just beyond or far beyond a bound that the schema states for a key, or of its kind."""
    if "$ref" in definition:
        definition = SCHEMA["$defs"][definition["$ref"].rpartition("/")[2]]
    for several in ("anyOf", "oneOf"):
        if several in definition:
            return edge(chance, chance.choice(definition[several]))
    if "properties" in definition:
        return {key: edge(chance, inner) for key, inner in definition["properties"].items() if chance.random() < 0.7}
    if "enum" in definition or "const" in definition:
        known = str(chance.choice(definition.get("enum") or [definition["const"]]))
        return chance.choice([known, known.upper(), known + "x", known[1:], known.title(), f" {known}"])
    if definition.get("type") == "array":
        return [edge(chance, definition.get("items", {})) for _ in range(chance.choice([0, 1, 3, 4, 6, 70]))]
    if definition.get("type") in {"integer", "number"}:
        return _number(chance, definition)
    return chance.choice(HOSTILE) if definition.get("type") == "string" else chance.choice(STRANGE)


def _number(chance: random.Random, definition: dict[str, Any]) -> Any:
    bounds = [
        definition[key] for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum") if key in definition
    ]
    bound = chance.choice([*bounds, 4])
    step = 1 if definition["type"] == "integer" else chance.choice([1, 0.5, 1e-9, 5e-324])
    return chance.choice([bound, bound - step, bound + step, -bound, bound * 1000, str(bound), [bound], float(bound)])


def within(chance: random.Random, definition: dict[str, Any]) -> Any:
    """A value that the schema allows, often at its bound: the program must play it, or say why it cannot."""
    if "$ref" in definition:
        definition = SCHEMA["$defs"][definition["$ref"].rpartition("/")[2]]
    for several in ("anyOf", "oneOf"):
        if several in definition:
            return within(chance, chance.choice(definition[several]))
    if "properties" in definition:
        wanted = definition.get("required", ())
        return {
            key: within(chance, inner)
            for key, inner in definition["properties"].items()
            if key in wanted or chance.random() < 0.4
        }
    if "enum" in definition or "const" in definition:
        return chance.choice(definition.get("enum") or [definition["const"]])
    if definition.get("type") == "array":
        return [
            within(chance, definition["items"])
            for _ in range(chance.choice([max(1, definition.get("minItems", 0)), 4]))
        ]
    if definition.get("type") in {"integer", "number"}:
        low, high = (
            definition.get("minimum", definition.get("exclusiveMinimum", 0)),
            definition.get("maximum", definition.get("exclusiveMaximum", 1e300)),
        )
        whole = definition["type"] == "integer"
        value = chance.choice([low, high, low + 1, min(high, 10.0 ** chance.randint(0, 16)), high / 2, min(high, 4)])
        return int(value) if whole else chance.choice([float(value), 5e-324, 1e-9, 0.5])
    return chance.choice([True, False]) if definition.get("type") == "boolean" else chance.choice(HOSTILE)


def edgy(chance: random.Random) -> bytes:
    """A file whose values lie at the bounds of what may be said."""
    made = tomllib.loads(
        tomli_w.dumps(chance.choice([SOUND[1], SOUND[3], {**SOUND[3], "data": {"name": "quadratic"}}]))
    )
    for _ in range(chance.choice([1, 2, 3, 5])):
        section, key = chance.choice(KEYS)
        kinds = [kind for kind in KINDS[section] if key in kind["properties"]]
        own = [
            kind
            for kind in kinds
            if made.get(section, {}).get("name") == kind["properties"].get("name", {}).get("const")
        ]
        made.setdefault(section, {})[key] = within(chance, chance.choice(own or kinds)["properties"][key])
    if chance.random() < 0.3:
        made["name"], made["description"] = chance.choice(HOSTILE)[:250] or "x", chance.choice(HOSTILE)
    return tomli_w.dumps(_plain(made)).encode("utf-8", "surrogatepass")


def word(chance: random.Random, known: str) -> str:
    """A misspelling of a word, or another word."""
    at = chance.randrange(len(known) + 1)
    return chance.choice(
        [
            known[:at] + known[at + 1 :], known[:at] + chance.choice("aezx_-.Z") + known[at:], known.upper(), known.replace("_", "-"),
            known * 2, "x" + known[::-1], chance.choice(KEYS)[1], chance.choice(HOSTILE)[:300],
        ]
    )  # fmt: skip


def _table(chance: random.Random, document: dict[str, Any]) -> dict[str, Any]:
    held = document.setdefault(chance.choice(SECTIONS), {})
    return held if isinstance(held, dict) else document


def mistake(chance: random.Random, document: dict[str, Any]) -> None:
    """Do one thing to a document that a person, or an adversary, might do."""
    section, key = chance.choice(KEYS)
    definition = next(kind["properties"][key] for kind in KINDS[section] if key in kind["properties"])
    target = document.setdefault(section, {})
    target = target if isinstance(target, dict) else document
    doing = chance.randrange(9)
    if doing < 3:
        target[key] = edge(chance, definition)
    elif doing == 3:
        target[key] = chance.choice([*STRANGE, *HOSTILE])
    elif doing == 4:
        target[word(chance, key)] = chance.choice([1, 0.5, "x", True])
    elif doing == 5:
        document[word(chance, section)] = document.pop(section)
    elif doing == 6 and len(document) > 1:
        document.pop(section)
    elif doing == 7:
        document[section] = chance.choice([*STRANGE, *HOSTILE, [target]])
    else:
        nested: Any = 1
        for _ in range(chance.choice([3, 20, 40, 200])):
            nested = chance.choice([{key: nested}, [nested]])
        _table(chance, document)[key] = nested


def document(chance: random.Random) -> dict[str, Any]:
    """A sound document with one to four mistakes."""
    made = tomllib.loads(tomli_w.dumps(chance.choice(SOUND)))
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        mistake(chance, made)
    for key in ("name", "description"):
        if chance.random() < 0.1:
            made[key] = chance.choice([*HOSTILE, *STRANGE])
    return _plain(made)


def mistaken(chance: random.Random) -> bytes:
    """A TOML file with mistakes; sometimes its lines are changed, too."""
    text = tomli_w.dumps(document(chance))
    if chance.random() < 0.3:
        lines = text.splitlines(keepends=True)
        at = chance.randrange(len(lines))
        spoilt = {
            "twice": lambda: lines.insert(at, lines[at]),
            "gone": lambda: lines.pop(at),
            "moved": lambda: lines.insert(chance.randrange(len(lines)), lines.pop(at)),
            "case": lambda: lines.insert(at, lines[at].upper()),
            "raw": lambda: lines.insert(at, chance.choice(HOSTILE)[:500] + "\n"),
            "deep": lambda: lines.insert(at, "x" + chance.choice([".a", ".'b'"]) * chance.choice([5, 70]) + " = 1\n"),
            "date": lambda: lines.insert(at, f"{chance.choice(KEYS)[1]} = 1979-05-27T07:32:00Z\n"),
        }
        spoilt[chance.choice(list(spoilt))]()
        text = "".join(lines)
    return text.encode("utf-8", "surrogatepass")


def spoil(chance: random.Random, raw: bytes) -> bytes:
    """Change bytes: flips, cuts, swaps, insertions, other encodings."""
    content = bytearray(raw)
    for _ in range(chance.choice([1, 1, 2, 8, 40])):
        at = chance.randrange(len(content) + 1) if content else 0
        doing = chance.randrange(6)
        if doing == 0 and at < len(content):
            content[at] ^= 1 << chance.randrange(8)
        elif doing == 1 and at < len(content):
            content[at] = chance.randrange(256)
        elif doing == 2:
            del content[at : at + chance.choice([1, 2, 30])]
        elif doing == 3:
            content[at:at] = chance.choice(
                [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\x1b[2J", b'"', b"[", b"=", b"\xed\xa0\x80", b"9" * 5000]
            )
        elif doing == 4 and at + 1 < len(content):
            content[at], content[at + 1] = content[at + 1], content[at]
        elif doing == 5:
            del content[at:]
    return bytes(content)


def garbled(chance: random.Random) -> bytes:
    """A file that began as TOML."""
    text = tomli_w.dumps(chance.choice(SOUND))
    whole = {
        "empty": lambda: b"",
        "bom": lambda: b"\xef\xbb\xbf" + text.encode(),
        "crlf": lambda: spoil(chance, text.replace("\n", "\r\n").encode()),
        "cr": lambda: text.replace("\n", "\r").encode(),
        "utf-16": lambda: text.encode("utf-16"),
        "latin": lambda: (text + "# caf\xe9").encode("latin-1"),
        "noise": lambda: chance.randbytes(chance.choice([1, 50, 3000])),
        "json": lambda: b'{"clients": {"count": 4}}',
        "elf": lambda: b"\x7fELF\x02\x01\x01" + bytes(60),
        "brackets": lambda: (
            text.encode()
            + chance.choice([b"x = " + b"[" * 9000, b"x = " + b"{a=" * 3000, b"[" + b"a." * 30_000 + b"a]"])
        ),
    }
    return whole[chance.choice(list(whole))]() if chance.random() < 0.25 else spoil(chance, text.encode())


VALUES = [
    "1", "-1", "0", "1e400", "nan", "inf", "true", "x", "", " ", "[", "[1,", "{", "{a=1}", "{law='x'}", '"', '"""', "'", "0x", "1_", "9" * 5000,
    "1979-05-27", "1\nseed = 2", "a\x1b[2J", "\0", "[" * 5000, "<b>x</b>", "../../x", "a:b", "=", "#", "1 # x", "1,2", "\u2028", "\ud800",
]  # fmt: skip


def overrides(chance: random.Random) -> list[str]:
    """``--set`` and ``--unset`` of every shape."""
    found = []
    for _ in range(chance.choice([1, 1, 2, 5])):
        section, key = chance.choice(KEYS)
        name = chance.choice(
            [
                f"{section}.{key}",
                f"{section}.{key}",
                f"{section}.{word(chance, key)}",
                section,
                key,
                "",
                ".",
                "a..b",
                f"{section}.{key}.x",
                "." * 99,
                f'"{section}',
            ]
        )
        value = chance.choice([*VALUES, *HOSTILE[:20]])
        found += ["--set", chance.choice([f"{name}={value}", f"{name}={value}", f"{name} = {value}", name, value])]
        if chance.random() < 0.2:
            found += ["--unset", chance.choice([name, name, f"{section}.{key}", value])]
    return found


def flags(chance: random.Random) -> list[str]:
    """Other options, with values that they may not have."""
    name = chance.choice(
        ["--seed", "--workers", "--executor", "--device", "--nothing", "--out", "--json", "--set", "--unset"]
    )
    if name == "--out":
        return [name, "bomb.py"]  # a file that lies there
    return [name, chance.choice(VALUES)] if name != "--json" else [name]


def odd_places(chance: random.Random, folder: Path) -> Asked:
    """Scenario files and run directories that are something else; every one must be refused."""
    sound = folder / "sound.toml"
    sound.write_text(scenarios.QUADRATIC)
    places = {
        "missing": lambda: str(folder / "none.toml"),
        "folder": lambda: str(folder),
        "null": lambda: "/dev/null",
        "zero": lambda: "/dev/zero",
        "dangling": lambda: _link(folder / "link.toml", folder / "nowhere"),
        "loop": lambda: _link(folder / "loop.toml", folder / "loop.toml"),
        "long": lambda: str(folder / ("x" * 300)),
        "nul": lambda: "a\0b",
        "control": lambda: str(folder / "a\x1b[2J\nb.toml"),
        "surrogate": lambda: str(folder / "\udcff.toml"),
        "below": lambda: str(sound / "x.toml"),
        "dash": lambda: "-",
        "pipe": lambda: _pipe(folder / "pipe.toml"),
        "empty": lambda: "",
    }
    outs = {
        "file": lambda: str(sound),
        "below": lambda: str(sound / "x" / "y"),
        "full": lambda: str(folder),
        "dangling": lambda: _link(folder / "out", folder / "nowhere"),
        "loop": lambda: _link(folder / "out", folder / "out"),
        "long": lambda: str(folder / ("x" * 300)),
        "nul": lambda: "a\0b",
        "null": lambda: "/dev/null",
        "proc": lambda: "/proc/none/x",
        "control": lambda: str(sound / "a\x1b[2J\nb"),
    }
    kind = chance.randrange(3)
    if kind == 0:
        return Asked(
            [chance.choice(["plan", "run"]), str(sound), "--out", outs[chance.choice(list(outs))]()], refused=True
        )
    place = places[chance.choice(list(places))]()
    return Asked([chance.choice(["plan", "run"] if kind == 1 else ["verify", "report"]), place], refused=True)


def _pipe(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


def _link(path: Path, target: Path) -> str:
    path.symlink_to(target)
    return str(path)


def file_name(chance: random.Random) -> str:
    """How the scenario file is called; usually soberly."""
    strange = [
        "a b.toml",
        "\x1b[2J.toml",
        "\x1b]0;owned\x07.toml",
        "<b>.toml",
        "a\nb.toml",
        "\u202e.toml",
        "x.TOML",
        ".toml",
        "--.toml",
        "\N{SNOWMAN}.toml",
        os.fsdecode(b"\xff.toml"),
    ]
    return chance.choice(strange) if chance.random() < 0.05 else "bad.toml"


def asked(chance: random.Random, folder: Path, family: str) -> Asked:
    """Write a scenario of this family and say how it is asked for."""
    path = folder / file_name(chance)
    command = chance.choice(["plan", "plan", "plan", "run"])
    if family == "options":
        path.write_text(chance.choice([scenarios.QUADRATIC, scenarios.BLOBS]))
        extra = overrides(chance) if chance.random() < 0.8 else flags(chance)
        extra = extra if chance.random() < 0.8 else [*extra, *flags(chance)]
    else:
        path.write_bytes({"mistaken": mistaken, "garbled": garbled, "edges": edgy}[family](chance))
        extra = []
    tail = ["--print-config"] if command == "run" else chance.choice([[], ["--json"], ["--print-config"]])
    return Asked([command, str(path), *extra, *tail])


def names_code(raw: bytes) -> bool:
    """Whether a file names anyone's own code; only then may any be imported."""
    return re.search(rb"bomb", raw) is not None
