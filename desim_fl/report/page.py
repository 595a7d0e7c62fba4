"""Puts the page together: figures, words and provenance into one HTML file with a strict content policy."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import altair as alt
import jinja2
import polars as pl
import vl_convert
from markupsafe import Markup

from desim_fl.report import facts, provenance, rooms, story, theme
from desim_fl.report.reading import read
from desim_fl.report.trips import trips

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from desim_fl.report.figures import Figure, Numbers

_HERE = Path(__file__).parent
_MAIN = "learning-time"  # the chart that readers without scripts see as a picture


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


def write(run_dir: Path) -> Path:
    """Write ``RUN/report.html`` from the tables of the run directory and return its path.

    The same directory gives the same bytes. The file appears at once or not at all. Raises RunDirectoryError where
    the directory lacks its manifest or scenario, or holds a table that cannot be read.
    """
    return _replace(run_dir / "report.html", render(run_dir))


def render(run_dir: Path) -> str:
    """Return the page as text."""
    run = read(run_dir)
    jobs = trips(run.events)
    known = facts.facts(run, jobs)
    sections = rooms.rooms(run, jobs, known)
    figures = [figure for room in sections for figure in room.figures]
    script, style = (_HERE / "page.js").read_text("utf-8"), (_HERE / "style.css").read_text("utf-8")
    return _template().render(
        facts=known,
        notices=story.notices(known),
        paragraph=story.paragraph(known),
        cards=story.cards(known),
        rooms=[(room, [_shown(figure, figures) for figure in room.figures]) for room in sections],
        provenance=provenance.rows(run),
        scenario=run.scenario,
        description=str(facts.scenario(run).get("description", "")),
        payload=_payload(figures),
        policy=_policy([bundle(), script], style),
        bundle=_trusted(bundle()),
        script=_trusted(script),
        style=_trusted(style),
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    # A NaN that slipped through must stop the report here: a browser would show a page without any chart.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "sort_keys": True, "separators": (",", ":")}
    return environment.get_template("template.html")


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, in the version that Altair writes for."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_vega_lite())


def _vega_lite() -> str:
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
        "charts": [{"id": figure.id, "spec": figure.spec(), "data": list(figure.numbers)} for figure in drawn],
        "tables": {name: {"columns": frame.columns, "rows": frame.rows()} for name, frame in tables.items()},
        "themes": {"light": theme.config(theme.LIGHT), "dark": theme.config(theme.DARK)},
    }


def _shown(figure: Figure, figures: Sequence[Figure]) -> Shown:
    """Return a figure with its tables; a table that two figures share stands below the first."""
    first = next(other for other in figures if set(other.numbers) & set(figure.numbers)) if figure.numbers else figure
    tables = [_table(numbers) for numbers in figure.numbers.values() if numbers.headings] if first is figure else []
    picture = _picture(figure) if figure.id == _MAIN and figure.chart is not None else None
    return Shown(figure, tables, picture)


def _table(numbers: Numbers) -> Table:
    frame = numbers.frame.select(list(numbers.headings))
    kinds = [dtype.is_numeric() for dtype in frame.dtypes]
    texts = frame.select(_text(name, dtype) for name, dtype in zip(frame.columns, frame.dtypes, strict=True))
    return Table(numbers.caption, list(zip(numbers.headings.values(), kinds, strict=True)), texts.rows())


def _text(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name).round_sig_figs(7) if dtype.is_float() and name not in {"accuracy", "loss"} else pl.col(name)
    return column.cast(pl.String).fill_null("\N{EN DASH}")


def _picture(figure: Figure) -> str:
    """Return the figure in light colours as an SVG in a data address, which needs no permission of the content policy."""
    spec = figure.spec() | {
        "datasets": {name: numbers.frame.to_dicts() for name, numbers in figure.numbers.items()},
        "config": theme.config(theme.LIGHT) | {"background": "white"},
        "padding": 12,
    }
    svg = vl_convert.vegalite_to_svg(_still(spec), vl_version=_vega_lite())
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _still(spec: dict[str, Any]) -> dict[str, Any]:
    """Lines alone, without what only answers to a pointer, at a fixed width."""
    panels = [
        panel | {"width": 560, "layer": [_unclipped(layer) for layer in panel["layer"] if _stays(layer)]}
        for panel in spec["vconcat"]
    ]
    return {key: value for key, value in spec.items() if key != "params"} | {"vconcat": panels}


def _stays(layer: dict[str, Any]) -> bool:
    return "name" not in layer and layer["mark"].get("style") != "hover-line"


def _unclipped(layer: dict[str, Any]) -> dict[str, Any]:
    # Vega numbers its clip paths through the life of a process, so a second report would differ from the first.
    return layer | {"mark": {key: value for key, value in layer["mark"].items() if key != "clip"}}


def _replace(path: Path, text: str) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        Path(name).chmod(0o644)
        return Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
