"""What a figure of the page is: a heading, a sentence, a Vega-Lite specification and the numbers behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import altair as alt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars as pl

    from desim_fl.report.window import Follow


class Numbers(NamedTuple):
    """One table behind a chart: its caption, its rows, and the heading (with unit) of each column that it shows."""

    caption: str
    frame: pl.DataFrame
    headings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure: ``heading`` says what to see, ``lead`` how to read it.

    ``chart`` reads its data by the names in ``numbers``; it is ``None`` where there is nothing to show, and ``lead``
    then says why. A ``wide`` figure takes the whole width of the page. ``follow`` says how it follows the time window,
    ``material`` is what the page's script draws it from besides, and ``beside`` are tables that stand below it alone.
    """

    id: str
    heading: str
    lead: str
    chart: alt.TopLevelMixin | None = None
    numbers: Mapping[str, Numbers] = field(default_factory=dict)
    wide: bool = False
    follow: Follow | None = None
    material: Mapping[str, Any] = field(default_factory=dict)
    beside: Sequence[Numbers] = ()

    def spec(self, *, validate: bool = False) -> dict[str, Any]:
        """Return the specification, without its data.

        ``validate`` compares it with the schema of Vega-Lite first: a second for a page, in which nothing of a run can be found, only
        a mistake of ours. So tests ask for it.
        """
        assert self.chart is not None
        spec = self.chart.to_dict(validate=validate)
        spec.pop("config", None)
        return {**spec, "description": f"{self.heading}. {self.lead}"}


def named(name: str) -> alt.NamedData:
    """Return data that the page hands to the chart under this name."""
    return alt.NamedData(name=name)


def text_height(rows: int) -> int:
    """Height in pixels of a chart with one row a client."""
    return max(60, 16 * rows)
