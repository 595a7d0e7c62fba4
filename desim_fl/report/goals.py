"""What a run was to reach, and at which version it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from desim_fl.report.formats import number, percent

if TYPE_CHECKING:
    from desim_fl.report.reading import Run


class Goal(NamedTuple):
    """A test accuracy of at least, or a test loss of at most, ``value``."""

    metric: str
    value: float

    @property
    def words(self) -> str:
        """The goal in words."""
        shown = percent(self.value) if self.metric == "accuracy" else number(self.value)
        return f"a test {self.metric} of {shown}"


def reached(run: Run, goal: Goal) -> int | None:
    """Return the first evaluated version that reached a goal; ``None`` where none did."""
    score = pl.col(goal.metric)
    met = score >= goal.value if goal.metric == "accuracy" else score <= goal.value
    test = run.metrics.filter(pl.col("split") == "test", score.is_finite(), met)
    return None if test.is_empty() else int(test.sort("ticks", "version")["version"][0])
