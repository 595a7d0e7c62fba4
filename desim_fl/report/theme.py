"""Colours and type of the charts in light and dark: Vega-Lite configurations, Okabe-Ito palettes."""

from __future__ import annotations

from typing import Any

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"

LIGHT: dict[str, Any] = {
    "ink": "#1c2126",
    "muted": "#5a636c",
    "line": "#c9ced3",
    "grid": "#e9ebed",
    "category": ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"],
    "legs": ["#56B4E9", "#b9bfc5", "#0072B2", "#E69F00", "#CC79A7", "#D55E00", "#009E73", "#6b747c"],
    "ramp": ["#eef4f8", "#9cc7e2", "#3d92c4", "#0072B2", "#003a5c"],
}
DARK: dict[str, Any] = {
    "ink": "#e8eaed",
    "muted": "#a3abb3",
    "line": "#4a525a",
    "grid": "#2b3137",
    "category": ["#56B4E9", "#E69F00", "#2FC79B", "#F0E442", "#CC79A7", "#E8743B"],
    "legs": ["#2FC79B", "#5b646d", "#56B4E9", "#E69F00", "#CC79A7", "#E8743B", "#F0E442", "#a3abb3"],
    "ramp": ["#20262b", "#1f4d6b", "#2b7fb3", "#56B4E9", "#c9e8fa"],
}


def config(colours: dict[str, Any], font: str = _FONT) -> dict[str, Any]:
    """Return the Vega-Lite configuration of a theme; charts name styles and ranges, never colours."""
    words = {"labelColor": colours["muted"], "titleColor": colours["ink"], "titleFontWeight": 500}
    sizes = {"labelFontSize": 12, "titleFontSize": 12, "labelFont": font, "titleFont": font}
    first, second = colours["category"][:2]
    return {
        "background": None,
        "font": font,
        "axis": {
            **words, **sizes, "gridColor": colours["grid"], "domainColor": colours["line"], "tickColor": colours["line"],
            "titlePadding": 8, "labelPadding": 4, "labelLimit": 130, "labelOverlap": "greedy",
        },
        "axisX": {"grid": False},
        "axisY": {"domain": False, "ticks": False, "titleAnchor": "end", "titleAngle": 0, "titleAlign": "left",
                  "titleX": 0, "titleY": -12, "titleBaseline": "bottom"},
        "legend": {**words, **sizes, "orient": "top", "title": None, "symbolStrokeWidth": 2, "rowPadding": 2,
                   "columnPadding": 12, "labelLimit": 160, "gradientLength": 160, "gradientThickness": 10},
        "view": {"stroke": None},
        "range": {"category": colours["category"], "ordinal": colours["legs"], "ramp": colours["ramp"],
                  "heatmap": colours["ramp"]},
        "mark": {"color": first},
        "bar": {"color": first},
        "rect": {"color": first},
        "line": {"color": first, "strokeWidth": 2},
        "style": {
            "band": {"color": first, "fill": first, "opacity": 0.22, "stroke": None},
            "busy": {"color": first, "fill": first},
            "note": {"color": colours["ink"], "fill": colours["ink"], "fontSize": 12, "font": font},
            "mark-line": {"color": colours["muted"], "stroke": colours["muted"], "strokeDash": [3, 3], "strokeWidth": 1},
            "alarm-line": {"color": second, "stroke": second, "strokeWidth": 2},
            "alarm": {"color": second, "fill": second, "fontSize": 12, "fontWeight": 600, "font": font},
            "hover-line": {"color": colours["muted"], "stroke": colours["muted"], "strokeWidth": 1},
            "interval": {"color": first, "stroke": first, "strokeWidth": 2},
            "quiet-line": {"color": colours["line"], "stroke": colours["line"], "strokeWidth": 3},
            "end-mark": {"color": colours["ink"], "stroke": colours["ink"], "strokeWidth": 1.5, "fill": None},
        },
    }  # fmt: skip
