"""tests/CASES.md and the tests agree: every test that is listed exists and names its case, and none is missing."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
TEXT = (HERE / "CASES.md").read_text(encoding="utf-8")
KINDS = "EV AS AG LT PT SA RP CK RS CF RE".split()  # noqa: SIM905
ID = re.compile(rf"\b({'|'.join(KINDS)})-(\d\d)")
IN_NAME = re.compile(rf"(?:^|_)({'|'.join(KINDS).lower()})_(\d\d)(?=[a-z]?_|[a-z]?$)")
LISTED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


class Case(NamedTuple):
    """One section: what must hold, the tests that are listed, and what is said to be open or impossible."""

    must: str
    tests: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]


@cache
def functions() -> dict[tuple[str, str], str]:
    """Every test function by file and name, with its name and docstring as text."""
    found = {}
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[path.name, node.name] = f"{node.name}\n{ast.get_docstring(node) or ''}"
    return found


def named(text: str) -> set[str]:
    """Ids that the name or the docstring of a test mentions."""
    name, _, words = text.partition("\n")
    pairs = [*IN_NAME.findall(name), *ID.findall(words)]
    return {f"{kind.upper()}-{number}" for kind, number in pairs}


def sections(text: str) -> dict[str, Case]:
    """The cases by id."""
    found = {}
    for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        body = part.split("\n## ")[0].splitlines()
        must = next((line for line in body if line.startswith("Must: ")), "")
        remarks = tuple(line for line in body if re.match(r"- (Open|Cannot occur)\b.{20,}", line))
        found[body[0].split(" ")[0]] = Case(must, tuple(LISTED.findall(part.split("\n## ")[0])), remarks)
    return found


CASES = sections(TEXT)


def test_every_case_is_there():
    """44 cases, each once, in eleven kinds."""
    headings = re.findall(r"^### (\S+) · \S", TEXT, flags=re.MULTILINE)
    assert len(headings) == len(set(headings)) == len(CASES) == 44
    assert [kind for kind in KINDS if not any(name.startswith(kind) for name in headings)] == []
    assert all(ID.fullmatch(name) for name in headings)


@pytest.mark.parametrize("name", CASES)
def test_a_case_says_what_must_hold_and_has_a_test_or_a_reason(name):
    """A case without any test says why: it is open, or it cannot occur."""
    case = CASES[name]
    assert len(case.must) > 40
    assert case.tests or case.remarks


@pytest.mark.parametrize("name", CASES)
def test_listed_tests_exist_and_name_their_case(name):
    """What stands under an id is a test function whose name or docstring has that id."""
    for place in CASES[name].tests:
        assert place in functions(), f"{name}: there is no {place[0]}::{place[1]}"
        assert name in named(functions()[place]), f"{place[0]}::{place[1]} does not name {name}"


def test_no_test_that_names_a_case_is_missing():
    """Whoever writes a test for a case lists it."""
    missing = [
        f"{name}: {file}::{test}"
        for (file, test), text in functions().items()
        if file != Path(__file__).name
        for name in sorted(named(text))
        if name not in CASES or (file, test) not in CASES[name].tests
    ]
    assert missing == []


def test_every_test_that_is_mentioned_anywhere_exists():
    """The smaller cases at the end name tests, too."""
    assert [place for place in LISTED.findall(TEXT) if place not in functions()] == []


def test_the_reader_of_the_list_sees_what_is_wrong():
    """An id without a sentence, an invented test and a bare "Open" are told apart from sound entries."""
    made = sections("### EV-01 · x\nMust: hold\n- here: `test_x.py::test_y`\n- Open\n\n## next\n`test_z.py::test_z`\n")
    assert made == {"EV-01": Case("Must: hold", (("test_x.py", "test_y"),), ())}
    assert named("test_ev_02a_zero\nAlso EV-09d and AG-07; not XX-11.") == {"EV-02", "EV-09", "AG-07"}
    assert named("test_lt_04\nwords") == {"LT-04"}
    assert named("test_at_10_s\n") == set()
