"""Where a key stands: a scanner that maps the keys of a TOML text to line numbers.

The text must already have been accepted by ``tomllib``; so the scanner may be simple, and never reports errors.
Comments, strings of all four kinds, dotted and quoted keys, inline tables and arrays of tables are understood.
Arrays are passed over: what is wrong with an entry is shown at the array's key.
"""

from __future__ import annotations

import re
import tomllib
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Loc = tuple[str | int, ...]
MAX_DEPTH = 32  # below it nothing is looked up

_TOKEN = re.compile(
    r"(?P<skip>[ \t]+|\#[^\n]*)"
    r"|(?P<end>\r?\n)"
    r'|(?P<long>"""(?:[^"\\]|\\[\s\S]|"{1,2}(?!"))*+"{3,5}|\'\'\'(?:[^\']|\'{1,2}(?!\'))*+\'{3,5})'
    r'|(?P<string>"(?:[^"\\\n]|\\.)*+"|\'[^\'\n]*\')'
    r"|(?P<mark>[\[\]{}=,.])"
    r'|(?P<bare>[^\s\#"\'\[\]{}=,.]+)'
)


class Token(NamedTuple):
    """A piece of TOML: its text, what it is, and its line from 1."""

    kind: str
    text: str
    line: int


def tokens(text: str) -> Iterator[Token]:
    """Yield the pieces that matter; a line end is one."""
    line = 1
    for match in _TOKEN.finditer(text):
        kind, piece = match.lastgroup or "", match.group()
        if kind != "skip":
            yield Token(kind, piece, line)
        line += piece.count("\n")


def _part(token: Token) -> str:
    """Return a piece of a key without its quotes."""
    return token.text if token.kind == "bare" else tomllib.loads(f"k={token.text}")["k"]


class _Scan:
    """State while walking through the text: which tables are open, and the key being read."""

    def __init__(self) -> None:
        self.lines: dict[Loc, int] = {}
        self.rows: dict[Loc, int] = {}  # arrays of tables: the last index
        self.open: list[Loc] = [()]  # the current table, then inline tables
        self.key: list[str] = []
        self.arrays = 0  # depth inside an array value
        self.in_value = False
        self.header = 0  # brackets of a table header so far

    def note(self, base: Loc, line: int) -> Loc:
        """Record the key just read, and the tables that a dotted key opens."""
        loc = base
        for left, part in zip(range(len(self.key) - 1, -1, -1), self.key, strict=True):
            if len(loc) > MAX_DEPTH:
                break
            loc = (*loc, part)
            self.lines.setdefault(loc, line)
            if loc in self.rows and (self.header != 2 or left):  # noqa: PLR2004  ([[ )
                loc = (*loc, self.rows[loc])
        self.key = []
        return loc

    def step(self, token: Token) -> None:
        """Take in the next token."""
        if self.arrays:
            self.arrays += (token.text in ("[", "{")) - (token.text in ("]", "}")) if token.kind == "mark" else 0
        elif self.header:
            self._in_header(token)
        elif self.in_value:
            self._in_value(token)
        else:
            self._in_key(token)

    def _in_key(self, token: Token) -> None:
        if token.kind in ("bare", "string"):
            self.key.append(_part(token))
        elif token.text == "[":
            self.header = 1
        elif token.text == "=":
            self.open.append(self.note(self.open[-1], token.line))  # the value's own place, until it ends
            self.in_value = True
        elif token.text == "}":
            self._close()

    def _close(self) -> None:
        """Leave an inline table; the rest of its value's line follows."""
        self.open.pop()
        self.in_value = True

    def _in_value(self, token: Token) -> None:
        if token.text == "{" and token.kind == "mark":
            self.in_value = False
            self.open.append(self.open[-1])
        elif token.text == "[" and token.kind == "mark":
            self.arrays = 1
        elif token.kind == "end" or (token.kind == "mark" and token.text in (",", "}")):
            self.open.pop()
            self.in_value = False
            if token.text == "}":
                self._close()

    def _in_header(self, token: Token) -> None:
        if token.kind in ("bare", "string"):
            self.key.append(_part(token))
        elif token.text == "[":
            self.header = 2
        elif token.kind == "end":
            self.header = 0
        elif token.text == "]" and self.key:
            loc = self.note((), token.line)
            if self.header == 2:  # noqa: PLR2004
                self.rows[loc] = self.rows.get(loc, -1) + 1
                loc = (*loc, self.rows[loc])
            self.lines[loc] = token.line
            self.open = [loc]


@lru_cache(maxsize=4)
def lines(text: str) -> Mapping[Loc, int]:
    """Map every table and key of a valid TOML text to its line, from 1; tables to that of their header."""
    scan = _Scan()
    for token in tokens(text):
        scan.step(token)
    return MappingProxyType(scan.lines)


class Places(NamedTuple):
    """Where the values of a scenario came from: lines of a file, and overrides on the command line.

    Tables that stand in no file are not ``numbered``: ``path`` alone is their place.
    """

    path: str
    lines: Mapping[Loc, int]
    overrides: Mapping[Loc, str]
    numbered: bool = True

    def of(self, loc: Loc) -> tuple[int, str]:
        """Return where a key was set, as (a number to sort by, "path:LINE" or the override's text).

        What was not set is placed at the innermost table around it, at last at line 1.
        """
        over = list(self.overrides)
        for index in reversed(range(len(over))):
            if loc[: len(over[index])] == over[index]:
                return self._override(over[index], index)
        if loc not in self.lines:
            for index, setting in enumerate(over):
                if setting[: len(loc)] == loc:
                    return self._override(setting, index)
        outer = next((loc[:n] for n in range(len(loc), 0, -1) if loc[:n] in self.lines), ())
        line = self.lines.get(outer, 1)
        return line, f"{self.path}:{line}" if self.numbered else self.path

    def _override(self, setting: Loc, index: int) -> tuple[int, str]:
        return 10**9 + index, self.overrides[setting]
