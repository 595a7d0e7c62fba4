"""The charts of a study's page as files: SVG, with text as text and colours for light and dark pages, or PNG.

Each file has the chart's name: what it took to the target (``reach-...``), paired ratios (``ratio-...``), means by level, learning
curves. The same folder gives the same bytes.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import vl_convert

from desim_fl.errors import RunDirectoryError
from desim_fl.report import sheet, study_page, study_reading, theme

if TYPE_CHECKING:
    from pathlib import Path

    from desim_fl.report.figures import Figure

WIDTH = 640
_COLUMNS = 104  # letters of a line of the caption
_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"  # equal widths, and the first one is drawn with here
_PAPER = {"light": "#ffffff", "dark": "#14181c"}


def svg(folder: Path, out: Path) -> list[Path]:
    """Write every chart of a study as an SVG file. Raises RunDirectoryError where the folder holds no study."""
    return [_written(out / f"{figure.id}.svg", _svg(figure).encode()) for figure in _figures(folder)]


def png(folder: Path, out: Path) -> list[Path]:
    """Write every chart of a study as a PNG file in light colours. Raises RunDirectoryError where the folder holds no study."""
    return [_written(out / f"{figure.id}.png", _png(figure)) for figure in _figures(folder)]


def _figures(folder: Path) -> list[Figure]:
    if not (folder / "study.toml").is_file():
        raise RunDirectoryError(f"{folder} holds no study; svg and png draw the charts of a study (for a run: readme)")
    return [figure for figure in study_page.figures(study_reading.read(folder)) if figure.chart is not None]


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _svg(figure: Figure) -> str:
    return _themed(vl_convert.vegalite_to_svg(_spec(figure), vl_version=sheet.vega_lite()))


def _png(figure: Figure) -> bytes:
    return vl_convert.vegalite_to_png(_spec(figure), vl_version=sheet.vega_lite(), scale=2)


def _spec(figure: Figure) -> dict[str, Any]:
    """Return the chart with its data, title and caption, in light colours."""
    spec = _unclipped(figure.spec())
    size = {} if "facet" in spec else {"width": WIDTH}
    lines = textwrap.wrap(figure.lead, _COLUMNS)
    title = {"text": figure.heading, "subtitle": lines, "anchor": "start", "frame": "bounds", "offset": 16}
    data = {name: numbers.frame.to_dicts() for name, numbers in figure.numbers.items()}
    return spec | size | {"title": title, "datasets": data, "config": _config(), "padding": 12}


def _unclipped(spec: Any) -> Any:
    # Vega numbers its clip paths through the life of a process, so the second file would differ from the first.
    if isinstance(spec, dict):
        return {name: _unclipped(part) for name, part in spec.items() if name != "clip"}
    return [_unclipped(part) for part in spec] if isinstance(spec, list) else spec


def _config() -> dict[str, Any]:
    """Return the page's theme with upright titles, since a file has room beside its axes."""
    found = theme.config(theme.LIGHT, _FONT)
    words = {"color": theme.LIGHT["ink"], "subtitleColor": theme.LIGHT["muted"], "font": _FONT, "subtitleFont": _FONT}
    header = {
        "labelColor": theme.LIGHT["muted"],
        "titleColor": theme.LIGHT["ink"],
        "labelFont": _FONT,
        "titleFont": _FONT,
    }
    return found | {
        "background": _PAPER["light"],
        "axisY": {"domain": False, "ticks": False},
        "title": {**words, "fontSize": 14, "subtitleFontSize": 12, "subtitleLineHeight": 16, "subtitlePadding": 6},
        "header": {**header, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 500},
    }


def _themed(drawn: str) -> str:
    """Put a style into the picture that exchanges colours where the reader's page is dark."""
    pairs = {_PAPER["light"]: _PAPER["dark"]}
    for name in ("ink", "muted", "line", "grid"):
        pairs[theme.LIGHT[name]] = theme.DARK[name]
    pairs |= dict(zip(theme.LIGHT["category"], theme.DARK["category"], strict=True))
    rules = [f'[{what}="{light}"]{{{what}:{dark}}}' for light, dark in pairs.items() for what in ("fill", "stroke")
             if f'{what}="{light}"' in drawn]  # fmt: skip
    style = f"<style>@media (prefers-color-scheme: dark) {{ {' '.join(rules)} }}</style>"
    head, rest = drawn.split(">", 1)
    return f"{head}>{style}{rest}\n"
