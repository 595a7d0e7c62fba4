"""The tables of a study's folder as they were stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from desim_fl import tables
from desim_fl.errors import RunDirectoryError
from desim_fl.report.reading import manifest_of, text_of

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("runs", "variants", "effects", "reach", "survival", "curves", "tuning")


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """Everything that the page of a study reads."""

    manifest: dict[str, Any]
    study: str
    scenario: str
    runs: pl.DataFrame
    variants: pl.DataFrame
    effects: pl.DataFrame
    reach: pl.DataFrame
    survival: pl.DataFrame
    curves: pl.DataFrame
    tuning: pl.DataFrame

    @property
    def labels(self) -> list[str]:
        """All variants, the baseline first."""
        return self.runs["variant"].unique(maintain_order=True).to_list()

    @property
    def factors(self) -> list[str]:
        """What varies."""
        return [name.removeprefix("level: ") for name in self.runs.columns if name.startswith("level: ")]

    def metrics(self) -> list[str]:
        """Metrics of which at least one variant has a mean, in the order of the table."""
        return self.variants["metric"].unique(maintain_order=True).to_list()


def read(folder: Path) -> StudyFolder:
    """Read a study's folder. Raises RunDirectoryError where it is none, or a table cannot be read."""
    found = {name: _table(folder / f"{name}.parquet") for name in NAMES}
    return StudyFolder(
        manifest=manifest_of(folder / "manifest.json"),
        study=text_of(folder / "study.toml"),
        scenario=text_of(folder / "base.toml"),
        **found,
    )


def _table(path: Path) -> pl.DataFrame:
    try:
        return tables.collected(pl.scan_parquet(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RunDirectoryError(f"{path} cannot be read as Parquet, so {path.parent} is no study: {error}") from error
