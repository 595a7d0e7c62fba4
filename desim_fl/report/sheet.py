"""What all pages share: one HTML file with its charts, tables and scripts inside, under a strict content policy."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import altair as alt
import jinja2
import polars as pl
import vl_convert
from markupsafe import Markup

from desim_fl.report import theme

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from desim_fl.report.figures import Figure, Numbers

_HERE = Path(__file__).parent
SCRIPTS = ("page.js", "window.js", "clients.js", "tables.js")


class Table(NamedTuple):
    """A table of the page: caption, headings with whether they hold numbers, and rows of texts."""

    caption: str
    headings: list[tuple[str, bool]]
    rows: list[tuple[str, ...]]


class Shown(NamedTuple):
    """A figure as the template needs it."""

    figure: Figure
    tables: list[Table]
    picture: str | None
    elsewhere: bool = False  # its tables stand below a figure before it


def sheet(
    template: str, figures: Sequence[Figure], *, beside: Mapping[str, Any] = MappingProxyType({}), **values: Any
) -> str:
    """Return a page as text: a template of this room with these figures drawn in it, and values of its own.

    What stands ``beside`` the figures in the block that scripts read: the window, and what the timeline is made of.
    """
    scripts = [(_HERE / script).read_text("utf-8") for script in SCRIPTS]
    style = (_HERE / "style.css").read_text("utf-8")
    return _template(template).render(
        payload={**_payload(figures), **beside},
        policy=_policy([bundle(), *scripts], style),
        scripts=[_trusted(bundle()), *map(_trusted, scripts)],
        style=_trusted(style),
        **values,
    )


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    # A NaN that slipped through must stop the report here: a browser would show a page without any chart.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "sort_keys": True, "separators": (",", ":")}
    return environment.get_template(name)


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, in the version that Altair writes for."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=vega_lite())


def vega_lite() -> str:
    """Return the version of Vega-Lite that Altair writes for."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def _trusted(text: str) -> Markup:
    """Mark text of our own making, never a run's, as ready for the page."""
    assert "</script" not in text
    assert "</style" not in text
    return Markup(text)  # noqa: S704


def _policy(scripts: Sequence[str], style: str) -> str:
    """Return a content policy under which only these scripts and this style run, and nothing is ever fetched."""
    return (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _payload(figures: Iterable[Figure]) -> dict[str, Any]:
    """Everything that the script of the page reads: specifications, rows by column, and the two themes."""
    drawn = [figure for figure in figures if figure.chart is not None]
    tables = {name: numbers.frame for figure in drawn for name, numbers in figure.numbers.items()}
    return {
        "charts": [_chart(figure) for figure in drawn],
        "tables": {name: {"columns": frame.columns, "rows": frame.rows()} for name, frame in tables.items()},
        "themes": {"light": theme.config(theme.LIGHT), "dark": theme.config(theme.DARK)},
    }


def _chart(figure: Figure) -> dict[str, Any]:
    more = {} if figure.follow is None else {"follow": figure.follow.payload()}
    more |= {"material": figure.material} if figure.material else {}
    return {"id": figure.id, "spec": figure.spec(), "data": list(figure.numbers), **more}


def shown(figure: Figure, figures: Sequence[Figure], picture: str | None = None) -> Shown:
    """Return a figure with its tables; a table that two figures share stands below the first."""
    first = next(other for other in figures if set(other.numbers) & set(figure.numbers)) if figure.numbers else figure
    tables = [table(numbers) for numbers in figure.numbers.values() if numbers.headings] if first is figure else []
    tables += [table(numbers) for numbers in figure.beside]
    return Shown(figure, tables, picture, elsewhere=first is not figure)


def table(numbers: Numbers, exact: frozenset[str] = frozenset({"accuracy", "loss"})) -> Table:
    """Return a table of texts from numbers, under their headings; those of ``exact`` columns with every digit."""
    frame = numbers.frame.select(list(numbers.headings))
    kinds = [dtype.is_numeric() for dtype in frame.dtypes]
    texts = frame.select(_text(name, dtype, exact) for name, dtype in zip(frame.columns, frame.dtypes, strict=True))
    return Table(numbers.caption, list(zip(numbers.headings.values(), kinds, strict=True)), texts.rows())


def _text(name: str, dtype: pl.DataType, exact: frozenset[str]) -> pl.Expr:
    column = pl.col(name).round_sig_figs(7) if dtype.is_float() and name not in exact else pl.col(name)
    return column.cast(pl.String).fill_null("\N{EN DASH}")


def replace(path: Path, text: str) -> Path:
    """Write a page whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        Path(name).chmod(0o644)
        return Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
