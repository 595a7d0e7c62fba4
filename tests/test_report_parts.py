"""What the linked charts, the timeline, fairness and tolls of the report are made of, by hand and by identities."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from fake_runs import Made, make
from test_report import Page, hand_log, payload

from desim_fl import report
from desim_fl.report import band_charts, curves, fairness, reading, roster, toll_charts, trips, window
from desim_fl.report.formats import TimeUnit
from desim_fl.report.study_reading import StudyFolder

if TYPE_CHECKING:
    from pathlib import Path

    from desim_fl.report.figures import Figure

END = 5_000_000
WHOLE = window.Span(END, TimeUnit("s", 1.0))
PEOPLE = pl.DataFrame(
    {
        "client": [2, 4], "label": ["two", "four"], "device_class": [None, "slow"], "dispatches": [1, 1], "arrivals": [0, 1],
        "examples": [30, 10], "energy_j": [1.0, 3.0],
    }
)  # fmt: skip


@pytest.mark.parametrize(("steps", "two"), [(5, "99900"), (10, "9999990000"), (4, "9940")])
def test_busy_is_the_share_of_a_step_with_a_job(monkeypatch: pytest.MonkeyPatch, steps: int, two: str) -> None:
    """By hand: a job from 0 to 3 s of 5 s fills steps whole, or by the part that it lasts, in ninths; one to the end fills all."""
    monkeypatch.setattr(roster, "STEPS", steps)
    monkeypatch.setattr(roster, "JOBS", 1)
    found = roster.roster(trips.trips(hand_log()), PEOPLE, WHOLE)
    assert found.busy == [two, "9" * steps]
    assert found.jobs.height == 1
    assert found.limit == 0  # the second job, which is not told, left at once


def test_a_roster_tells_jobs_in_offsets() -> None:
    """By hand: a job's instants stand as offsets from its dispatch in grains, a lost job's later ones are missing; first seen, speed."""
    found = roster.roster(trips.trips(hand_log()), PEOPLE, WHOLE)
    assert found.grain == 1
    assert found.jobs.rows() == [
        (1, 0, 0, 0, 1_000_000, None, 4_500_000, 5_000_000, trips.FATES.index("accepted")),
        (0, 1, 0, 0, 2_000_000, None, None, 3_000_000, trips.FATES.index("lost")),
    ]
    assert found.clients.rows() == [(2, "two", None, 0, None, 0.0), (4, "four", "slow", 1, 5.0, 0.0)]
    assert (found.busy, found.classed, found.waiting) == ([], True, False)
    told = roster.printed(found, WHOLE).row(1, named=True)
    assert (told["label"], told["downloaded"], told["computed"], told["ended"], told["fate"]) == (
        "two",
        2.0,
        None,
        3.0,
        "lost",
    )


def test_updates_are_counted_by_step() -> None:
    """By hand: of 120 steps of 5 s, arrivals at 0, 2.5 and 5 s lie in the first, the 61st and the last; equal ones share a cell."""
    rows = pl.DataFrame(
        {"ended": [0, 2_500_000, 2_500_000, END], "bar": [1, 0, 0, 1], "fate": ["lost", *["accepted"] * 3]}
    )
    found = window.counted(rows, WHOLE, [(0, 1), (1, 2)], None, trips.FATES)
    assert found.cells == [0, 1, 3, 1, 60, 0, 0, 2, 119, 1, 0, 1]


def test_re_02_counts_by_step_sum_to_the_bars(tmp_path: Path) -> None:
    """Over all steps the counts of both charts of staleness are those of their bars, bar by bar and fate by fate."""
    run = reading.read(make(tmp_path / "run", Made(updates=300, concurrency=25, max_staleness=2)))
    back = trips.returned(trips.trips(run.events))
    whole = window.span(int(run.events["ticks"].max()))  # type: ignore[arg-type]
    stale = curves.staleness_counts(back, whole)
    assert stale.labels is not None
    assert stale.fates is not None
    sums: dict[Any, int] = {}
    for at in range(0, len(stale.cells), 4):
        _, bar, fate, number = stale.cells[at : at + 4]
        key = (stale.labels[bar][0], stale.fates[fate])
        sums[key] = sums.get(key, 0) + number
    assert sums == {
        (first, fate): n for first, fate, n in curves.staleness_versions(back).select("from", "fate", "updates").rows()
    }
    bars, _ = curves.away(back, whole.unit)
    away = curves.away_counts(back, bars, whole.unit, whole)
    heights = [
        sum(away.cells[at + 3] for at in range(0, len(away.cells), 4) if away.cells[at + 1] == bar)
        for bar in range(bars.height)
    ]
    assert heights == bars["count"].to_list()


@pytest.mark.parametrize(
    ("counts", "gini", "jain", "busiest"),
    [([4, 0, 0, 0], 0.75, 0.25, 1.0), ([2, 2, 2], 0.0, 1.0, 1 / 3), ([1, 3], 0.25, 0.8, 0.75)],
)
def test_evenness_by_hand(counts: list[int], gini: float, jain: float, busiest: float) -> None:
    """One alone has a Gini coefficient of 1 - 1/n and Jain's index 1/n, equals 0 and 1; a common factor changes neither."""
    for factor in (1, 7):
        found = fairness.evenness(pl.Series(counts) * factor)
        assert found == pytest.approx((gini, jain, busiest))
    assert fairness.evenness(pl.Series([0, 0])) is None


def test_the_lorenz_curve_is_the_gini_coefficient() -> None:
    """The curve runs from 0 to 1, never above equal turns, and twice the area between both is the Gini coefficient."""
    counts = pl.Series([5, 1, 0, 9, 9, 2, 30])
    curve = fairness.lorenz(counts)
    points = curve.select("clients", "updates").rows()
    assert (points[0], points[-1]) == ((0.0, 0.0), (1.0, 1.0))
    assert all(updates <= clients for clients, updates in points)
    below = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))
    found = fairness.evenness(counts)
    assert found is not None
    assert 1 - 2 * below == pytest.approx(found.gini)
    assert len(fairness.lorenz(pl.Series(range(5000)))) == fairness.POINTS + 1


def test_shares_of_classes_by_hand() -> None:
    """A class has its share of clients, samples, updates and energy; with fewer than two classes there is nothing to share."""
    two = PEOPLE.with_columns(device_class=pl.Series(["fast", "slow"]))
    found = {(group, what): share for group, what, _, share in fairness.shares(two).rows()}
    assert found == {
        ("fast", "clients"): 0.5, ("slow", "clients"): 0.5, ("fast", "training samples"): 0.75, ("slow", "training samples"): 0.25,
        ("fast", "updates"): 0.0, ("slow", "updates"): 1.0, ("fast", "energy"): 0.25, ("slow", "energy"): 0.75,
    }  # fmt: skip
    assert fairness.shares(PEOPLE).is_empty()


def test_full_links_are_told_by_hand() -> None:
    """A server's link at capacity for 1 s of 4 s was full 25 % of the time; a region's, or one never full, is not told."""
    row = {"from_s": 0.0, "to_s": 4.0, "capacity_mbps": 8.0, "bytes": 1_000_000, "busy_s": 2.0}
    rows = [("egress", -1, 1.0), ("ingress", -1, 0.0), ("ingress", 0, 4.0)]
    table = pl.DataFrame([{"link": link, "region": region, **row, "full_s": full} for link, region, full in rows])
    assert toll_charts.full_links(table, 4.0) == ["The server's link down to clients was full 25 % of the time"]
    spans = toll_charts._spans(table, WHOLE)
    assert spans["name"].to_list() == ["server egress", "server ingress", "region 0 ingress"]
    assert spans["mbps"].to_list() == [2.0] * 3
    assert spans["share"].to_list() == [0.25] * 3


def test_what_a_run_has_no_data_for_is_absent(tmp_path: Path) -> None:
    """A plain run has no room of links, losses or energy and no held-out part; a run with all of them has each."""
    plain = Page(report.write(make(tmp_path / "plain", Made(updates=60))).read_text(encoding="utf-8"))
    text = report.write(
        make(
            tmp_path / "rich",
            Made(
                updates=60,
                links=True,
                balance=True,
                held_out=True,
                device_classes=("a", "b"),
                lose=0.3,
                names=("<b>", "</script>"),
            ),
        )
    ).read_text(encoding="utf-8")
    ids = {"links", "losses", "figure-links", "figure-losses", "figure-energy", "figure-held-out", "figure-shares"}
    found = [{attributes.get("id") for _, attributes in page.tags} & ids for page in (plain, Page(text))]
    assert found == [set(), ids]
    held = payload(text)["tables"]["held_out"]
    assert len(held["rows"]) == 29  # one of the 30 accuracies is not a number
    assert "The mean over clients is" in Page(text).text


def told(scores: dict[str, list[list[float]]], times: list[float]) -> StudyFolder:
    """A study of one factor: by level, one list of scores a seed, made after 0, 10, 20 ... updates at these times."""
    empty = pl.DataFrame()
    runs = [(level, seed, level) for level, series in scores.items() for seed in range(len(series))]
    curves = [
        (level, seed, times[at] * (seed + 1), at, 10 * at, "test", score, None)
        for level, series in scores.items()
        for seed, ones in enumerate(series)
        for at, score in enumerate(ones)
    ]
    columns = ["variant", "seed", "time_s", "version", "updates", "split", "loss", "accuracy"]
    return StudyFolder(
        {}, "", "", pl.DataFrame(runs, ["variant", "seed", "level: rate"], orient="row"), empty, empty, empty, empty,
        pl.DataFrame(curves, columns, orient="row"), empty,
    )  # fmt: skip


def encoding(figure: Figure) -> dict[str, Any]:
    """How the lines of a figure with bands are encoded."""
    assert figure.chart is not None
    return figure.chart.to_dict()["spec"]["layer"][1]["encoding"]


def test_bands_of_losses_have_powers_of_ten_and_end_where_runs_diverge() -> None:
    """Means stand at the mean time of equal counts; a loss ten times the first leaves the picture; marks are powers of ten."""
    study = told(
        {"low": [[1.0, 0.1, 0.01], [3.0, 0.3, 0.01]], "high": [[1.0, 5.0, 1e9], [3.0, 7.0, 1e90]]}, [0, 2, 400]
    )
    drawn = {axis: band_charts.bands(study, "loss", against=axis) for axis in band_charts.AXES}
    assert [figure.id for figure in drawn.values()] == ["bands-loss", "bands-loss-time"]
    rows = drawn["time_s"].numbers["bands_loss_time"].frame
    assert rows.filter(pl.col("variant") == "low").select("time_s", "mean").rows() == [(3.0, 0.2), (600.0, 0.01)]
    assert rows.filter(pl.col("variant") == "high").select("time_s", "mean").rows() == [(3.0, 6.0), (600.0, 30.0)]
    assert drawn["updates"].numbers["bands_loss"].frame["updates"].to_list() == [0, 10, 20] * 2
    assert all(figure.lead.endswith("What is beyond 30 is not drawn.") for figure in drawn.values())
    encoded = encoding(drawn["time_s"])
    assert encoded["x"]["scale"]["type"] == encoded["y"]["scale"]["type"] == "log"
    assert (encoded["x"]["axis"]["values"], encoded["y"]["axis"]["values"]) == (
        [5, 10, 20, 50, 100, 200, 500],
        [0.01, 0.1, 1, 10],
    )
    calm = band_charts.bands(told({"low": [[1.0, 0.5], [1.0, 0.4]]}, [0, 2]), "loss")
    assert "not drawn" not in calm.lead
    assert "type" not in encoding(calm)["y"]["scale"]
