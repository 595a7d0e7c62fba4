"""The page of a study: the answer in words, charts by level, paired differences, and every number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from desim_fl.report import band_charts, reach_charts, sheet, study_charts, study_words
from desim_fl.report.figures import Figure, Numbers
from desim_fl.report.measures import TIME, TITLES, UPDATES
from desim_fl.report.rooms import Room
from desim_fl.report.study_reading import StudyFolder, read

if TYPE_CHECKING:
    from pathlib import Path

_MOST_ROWS = 2000  # of one table in the page; all rows are in the Parquet files


def write(folder: Path) -> Path:
    """Write ``report.html`` of a study's folder and return its path; the same folder gives the same bytes.

    Raises RunDirectoryError where the folder lacks a table.
    """
    return sheet.replace(folder / "report.html", render(read(folder)))


def render(study: StudyFolder) -> str:
    """Return the page as text."""
    rooms = _rooms(study)
    drawn = [figure for room in rooms for figure in room.figures]
    manifest = study.manifest
    return sheet.sheet(
        "study.html",
        drawn,
        name=manifest["name"],
        description=manifest["description"],
        status=manifest["status"],
        notices=study_words.notices(study),
        paragraph=study_words.paragraph(study),
        cards=study_words.cards(study),
        rooms=[(room, [sheet.shown(figure, drawn) for figure in room.figures]) for room in rooms],
        tables=[sheet.table(numbers, frozenset()) for numbers in _tables(study)],
        method=_method(study),
        study=study.study,
        scenario=study.scenario,
        versions="Played with " + ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
    )


def figures(study: StudyFolder) -> list[Figure]:
    """Return every figure of the page in its order, and curves with bands, which are for files: panels that keep their width."""
    learned = _learned(study)[-1:] if len(study.manifest["seeds"]) > 1 else []
    bands = [band_charts.bands(study, name, against=axis) for name in learned for axis in band_charts.AXES]
    return [*(figure for room in _rooms(study) for figure in room.figures), *bands]


def _method(study: StudyFolder) -> str:
    return (
        f"Intervals cover {study.manifest['confidence']:.0%}: Student's for means and differences, BCa bootstrap beside "
        "them, ratios from paired logarithms. They are not adjusted for the number of comparisons."
    )


def _learned(study: StudyFolder) -> list[str]:
    known = study.metrics()
    return [name for name in ("best_accuracy", "accuracy", "loss") if name in known][:2]


def _rooms(study: StudyFolder) -> list[Room]:
    known = study.metrics()
    learned = _learned(study)
    physical = [name for name in ("virtual_time_s", "updates_a_second", "staleness_mean", "staleness_p99", "utilisation",
                                  "fairness", "bytes", "energy_j") if name in known and _varies(study, name)]  # fmt: skip
    head = study_words.headline(study)
    against = [name for name in dict.fromkeys([head, *learned, "virtual_time_s"]) if name in (TIME, *known)]
    target, shares = _target(study) if study.manifest["target"] is not None else ([], [])
    learning = [figure for name in learned for figure in study_charts.by_level(study, name)]
    curves = [study_charts.curves(study, "accuracy" if "accuracy" in known else "loss", against=axis)
              for axis in ("time", "updates")] if learned else []  # fmt: skip
    rooms = [
        Room("learning", "What was learned", [*target, *learning, *curves]),
        Room("differences", "Differences", [*(study_charts.differences(study, name) for name in against), *shares]),
        Room("time", "Time, staleness, traffic", [f for name in physical for f in study_charts.by_level(study, name)]),
    ]
    return [Room(room.id, room.title, _spread(room.figures)) for room in rooms if room.figures]


def _target(study: StudyFolder) -> tuple[list[Figure], list[Figure]]:
    """Return the figures about the target: who got there when, and the paired ratios of the times."""
    took = [reach_charts.reached(study, name) for name in (TIME, UPDATES)]
    return [study_charts.survival(study), *took], [reach_charts.ratios(study, factor) for factor in study.factors]


def _spread(figures: list[Figure]) -> list[Figure]:
    """Let a figure that would stand alone in its row take the whole width."""
    narrow = [figure for figure in figures if not figure.wide]
    if len(narrow) % 2 == 0:
        return figures
    last = narrow[-1]
    return [Figure(f.id, f.heading, f.lead, f.chart, f.numbers, wide=True) if f is last else f for f in figures]


def _varies(study: StudyFolder, metric: str) -> bool:
    return study.variants.filter(pl.col("metric") == metric)["mean"].n_unique() > 1


def _tables(study: StudyFolder) -> list[Numbers]:
    found = [_means(study), _effects(study), _reach(study), _tuning(study), _runs(study)]
    return [_cut(numbers) for numbers in found if not numbers.frame.is_empty()]


def _cut(numbers: Numbers) -> Numbers:
    if numbers.frame.height <= _MOST_ROWS:
        return numbers
    caption = f"{numbers.caption} (the first {_MOST_ROWS:,} of {numbers.frame.height:,} rows)"
    return Numbers(caption, numbers.frame.head(_MOST_ROWS), numbers.headings)


def _means(study: StudyFolder) -> Numbers:
    """One row a variant, one column a metric."""
    known = [name for name in study.metrics() if _varies(study, name) or name in ("accuracy", "loss", "virtual_time_s")]
    wide = pl.DataFrame({"variant": study.labels})
    headings: dict[str, str] = {"variant": "Variant"}
    for name in known:
        rows = study.variants.filter(pl.col("metric") == name)
        half = ((pl.col("high") - pl.col("low")) / 2).alias(f"{name}_half")
        wide = wide.join(
            rows.select("variant", pl.col("mean").alias(name), half), on="variant", how="left", maintain_order="left"
        )
        headings[name] = TITLES[name].title
        if rows["low"].count() and rows["sd"].max():
            headings[f"{name}_half"] = "\N{PLUS-MINUS SIGN}"
    return Numbers("Means by variant, with the half-width of their intervals", wide, _unique(headings))


def _unique(headings: dict[str, str]) -> dict[str, str]:
    """Tell the columns of half-widths apart: "±", "± " ... would read alike in a copied table."""
    found, last = {}, ""
    for name, heading in headings.items():
        last = last if name.endswith("_half") else heading
        found[name] = f"{heading} {last}" if name.endswith("_half") else heading
    return found


def _effects(study: StudyFolder) -> Numbers:
    titles = {name: metric.title for name, metric in TITLES.items()}
    rows = study.effects.filter((pl.col("difference") != 0) | pl.col("p").is_not_null())
    rows = rows.with_columns(pl.col("metric").replace_strict(titles, return_dtype=pl.String))
    headings = {
        "metric": "Metric", "factor": "Factor", "variant": "Variant", "against": "Compared with", "n": "Pairs",
        "difference": "Difference", "low": "Student from", "high": "to", "bootstrap_low": "Bootstrap from",
        "bootstrap_high": "to (bootstrap)", "ratio": "Ratio", "ratio_low": "Ratio from", "ratio_high": "Ratio to",
        "pairing_gain": "Variance without pairing, times", "p": "p",
    }  # fmt: skip
    return Numbers("Paired differences", rows, headings)


def _reach(study: StudyFolder) -> Numbers:
    titles = {name: metric.title for name, metric in TITLES.items()}
    rows = study.reach.with_columns(pl.col("measure").replace_strict(titles, return_dtype=pl.String))
    headings = {
        "variant": "Variant", "measure": "Measure", "n": "Runs", "reached": "Reached it", "median": "Median (Kaplan-Meier)",
        "low": "from", "high": "to", "restricted_mean": "Mean up to the horizon", "horizon": "Horizon",
    }  # fmt: skip
    return Numbers("Time and updates to the target", rows, headings)


def _tuning(study: StudyFolder) -> Numbers:
    key = (study.manifest["tuned"] or {}).get("key", "")
    headings = {"for": "For", "value": key, "n": "Runs", "mean": "Mean", "chosen": "Chosen"}
    return Numbers(f"Tuning of {key}", study.tuning, headings)


def _runs(study: StudyFolder) -> Numbers:
    skipped = {"error", "timeline_sha256", "model_sha256", "scenario_key"}
    headings: dict[str, Any] = {name: _run_heading(name) for name in study.runs.columns if name not in skipped}
    return Numbers("Runs", study.runs, headings)


def _run_heading(name: str) -> str:
    if name in TITLES:
        return TITLES[name].title
    return {"wall_s": "Real time (s)", "reached": "Reached the target"}.get(
        name, name.removeprefix("level: ").capitalize()
    )
