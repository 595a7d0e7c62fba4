"""Puts the page together: figures, words and provenance into one HTML file with a strict content policy."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import vl_convert

from desim_fl.report import facts, path_charts, provenance, rooms, sheet, story, theme, window
from desim_fl.report.reading import read
from desim_fl.report.trips import trips

if TYPE_CHECKING:
    from pathlib import Path

    from desim_fl.report.figures import Figure
    from desim_fl.report.goals import Goal

_MAIN = "learning-time"  # the chart that readers without scripts see as a picture


def write(run_dir: Path, goal: Goal | None = None) -> Path:
    """Write ``RUN/report.html`` from the tables of the run directory and return its path.

    The critical path leads to the first evaluation that reached ``goal``, or to the last version. The same directory gives the same bytes. The file appears at once or not at all. Raises RunDirectoryError where
    the directory lacks its manifest or scenario, or holds a table that cannot be read.
    """
    return sheet.replace(run_dir / "report.html", render(run_dir, goal))


def render(run_dir: Path, goal: Goal | None = None) -> str:
    """Return the page as text."""
    run = read(run_dir)
    jobs = trips(run.events)
    known = facts.facts(run, jobs)
    told = path_charts.told(run, goal, pauses=facts.pauses(run))
    sections = rooms.rooms(run, jobs, known, told)
    figures = [figure for room in sections for figure in room.figures]
    return sheet.sheet(
        "report.html",
        figures,
        beside={"window": window.payload(window.span(known.end))},
        facts=known,
        notices=story.notices(known),
        paragraph=story.paragraph(known, told),
        cards=story.cards(known),
        rooms=[(room, [_shown(figure, figures) for figure in room.figures]) for room in sections],
        provenance=provenance.rows(run),
        scenario=run.scenario,
        description=str(facts.scenario(run).get("description", "")),
    )


def _shown(figure: Figure, figures: list[Figure]) -> sheet.Shown:
    pictured = figure.id == _MAIN and figure.chart is not None
    return sheet.shown(figure, figures, _picture(figure) if pictured else None)


def _picture(figure: Figure) -> str:
    """Return the figure in light colours as an SVG in a data address, which needs no permission of the content policy."""
    spec = figure.spec() | {
        "datasets": {name: numbers.frame.to_dicts() for name, numbers in figure.numbers.items()},
        "config": theme.config(theme.LIGHT) | {"background": "white"},
        "padding": 12,
    }
    svg = vl_convert.vegalite_to_svg(_still(spec), vl_version=sheet.vega_lite())
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _still(spec: dict[str, Any]) -> dict[str, Any]:
    """Lines alone, without what only answers to a pointer, at a fixed width."""
    panels = [
        panel | {"width": 560, "layer": [_unclipped(layer) for layer in panel["layer"] if _stays(layer)]}
        for panel in spec["vconcat"]
    ]
    ends = [parameter for parameter in spec.get("params", ()) if "select" not in parameter]
    return spec | {"params": ends, "vconcat": panels}


def _stays(layer: dict[str, Any]) -> bool:
    return "name" not in layer and layer["mark"].get("style") != "hover-line"


def _unclipped(layer: dict[str, Any]) -> dict[str, Any]:
    # Vega numbers its clip paths through the life of a process, so a second report would differ from the first.
    return layer | {"mark": {key: value for key, value in layer["mark"].items() if key != "clip"}}
