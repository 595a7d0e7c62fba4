"""The critical path: exact on hand-made timelines, and closed on generated ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from fake_runs import Made, make
from typer.testing import CliRunner

from desim_fl.cli import app
from desim_fl.report import Goal, critical_path, goals, path_charts, reading
from desim_fl.report.critical_path import by_leg

S = 1_000_000


def log(*rows: tuple[float, str, int, int, int]) -> pl.DataFrame:
    """Make an event log of (seconds, kind, client, job, version)."""
    columns = ("ticks", "kind", "client", "job", "version")
    whole = [dict(zip(columns, (round(row[0] * S), *row[1:]), strict=True)) for row in rows]
    full = [dict.fromkeys(reading.EVENTS) | {"seq": at} | row for at, row in enumerate(whole)]
    return pl.DataFrame(full, schema=dict(reading.EVENTS))


def path(events: pl.DataFrame, version: int | None = None, **more: Any) -> list[tuple[Any, ...]]:
    """Return the path as rows of job, client, leg, seconds from, seconds to."""
    found = critical_path.critical_path(events, version, **more)
    assert found is not None
    return [(job, client, leg, start / S, stop / S) for job, client, leg, start, stop in found.spans.iter_rows()]


ASYNC = log(
    (0, "dispatch", 4, 0, 0),
    (0, "dispatch", 5, 1, 0),
    (1, "downloaded", 4, 0, 0),
    (2, "downloaded", 5, 1, 0),
    (3, "computed", 4, 0, 0),
    (4, "arrive", 4, 0, 0),
    (4, "publish", 4, 0, 1),
    (4, "dispatch", 6, 2, 1),
    (4.5, "downloaded", 6, 2, 1),
    (5, "computed", 5, 1, 1),
    (6, "computed", 6, 2, 1),
    (9, "arrive", 5, 1, 1),
    (9, "publish", 5, 1, 2),
    (9, "dispatch", 4, 3, 2),
    (10, "arrive", 6, 2, 2),
    (10, "publish", 6, 2, 3),
)


def test_the_path_goes_back_from_arrival_to_dispatch_to_arrival() -> None:
    """By hand: version 3 at 10 s waits for job 2, which the arrival of job 0 at 4 s set out; job 1 is not on the path."""
    assert path(ASYNC) == [
        (0, 4, "download", 0, 1),
        (0, 4, "compute", 1, 3),
        (0, 4, "upload", 3, 4),
        (2, 6, "download", 4, 4.5),
        (2, 6, "compute", 4.5, 6),
        (2, 6, "upload", 6, 10),
    ]


def test_the_path_of_an_earlier_version() -> None:
    """By hand: version 2 at 9 s is one job long, with a stretch for each of its legs; version 7 was never published."""
    assert path(ASYNC, 2) == [(1, 5, "download", 0, 2), (1, 5, "compute", 2, 5), (1, 5, "upload", 5, 9)]
    assert critical_path.critical_path(ASYNC, 7) is None


def test_the_path_summed_by_leg_and_group() -> None:
    """By hand: of 10 s, 1 + 0.5 s are downloads, 2 + 1.5 s computing, 1 + 4 s uploads, 6 s of it by client 6."""
    found = critical_path.critical_path(ASYNC)
    assert found is not None
    groups = pl.DataFrame({"client": [4, 5, 6], "group": ["quick", "quick", "slow"]})
    assert by_leg(found, groups).select("group", "leg", "seconds", pl.col("share").round(12), "spans").rows() == [
        ("quick", "download", 1.0, 0.1, 1),
        ("quick", "compute", 2.0, 0.2, 1),
        ("quick", "upload", 1.0, 0.1, 1),
        ("slow", "download", 0.5, 0.05, 1),
        ("slow", "compute", 1.5, 0.15, 1),
        ("slow", "upload", 4.0, 0.4, 1),
    ]


def test_a_deadline_and_a_round_that_starts_at_a_publish() -> None:
    """By hand: the round's alarm at 8 s is a wait of the server since its last publish, at 3 s."""
    events = log(
        (0, "dispatch", 0, 0, 0),
        (1, "downloaded", 0, 0, 0),
        (1.5, "started", 0, 0, 0),
        (2, "computed", 0, 0, 0),
        (3, "arrive", 0, 0, 0),
        (3, "publish", 0, 0, 1),
        (3, "dispatch", 0, 1, 1),
        (3, "dispatch", 1, 2, 1),
        (4, "downloaded", 0, 1, 1),
        (8, "alarm", -1, -1, 1),
        (8, "publish", -1, -1, 2),
        (8, "cancel", 0, 1, 2),
    )
    assert path(events) == [
        (0, 0, "download", 0, 1),
        (0, 0, "wait", 1, 1.5),
        (0, 0, "compute", 1.5, 2),
        (0, 0, "upload", 2, 3),
        (-1, -1, "deadline", 3, 8),
    ]


def test_a_loss_frees_a_place_and_a_missing_client_is_a_wait() -> None:
    """By hand: a job lost at 2 s frees the place that job 1 takes; job 2 sets out at 9 s, when nothing happened: nobody was there."""
    events = log(
        (0.5, "dispatch", 0, 0, 0),
        (1, "downloaded", 0, 0, 0),
        (2, "lose", 0, 0, 0),
        (2, "dispatch", 1, 1, 0),
        (3, "downloaded", 1, 1, 0),
        (4, "computed", 1, 1, 0),
        (6, "arrive", 1, 1, 0),
        (9, "dispatch", 2, 2, 0),
        (9, "downloaded", 2, 2, 0),
        (10, "computed", 2, 2, 0),
        (12, "arrive", 2, 2, 0),
        (12, "publish", 2, 2, 1),
    )
    assert path(events) == [
        (-1, -1, "nobody there", 0, 0.5),
        (0, 0, "download", 0.5, 1),
        (0, 0, "compute", 1, 2),
        (1, 1, "download", 2, 3),
        (1, 1, "compute", 3, 4),
        (1, 1, "upload", 4, 6),
        (-1, -1, "nobody there", 6, 9),
        (2, 2, "compute", 9, 10),
        (2, 2, "upload", 10, 12),
    ]


def test_halts_pauses_and_late_ends_are_named() -> None:
    """By hand: a halted upload, a pause while the client is gone, and a client that is busy after its job was given up."""
    events = log(
        (0, "dispatch", 0, 0, 0),
        (1, "downloaded", 0, 0, 0),
        (2, "lose", 0, 0, 0),
        (5, "late", 0, 0, 0),
        (5, "dispatch", 0, 1, 0),
        (6, "leave", 0, 1, 0),
        (7, "come", 0, 1, 0),
        (8, "downloaded", 0, 1, 0),
        (9, "computed", 0, 1, 0),
        (9, "halt", 0, 1, 0),
        (11, "resume", 0, 1, 0),
        (12, "arrive", 0, 1, 0),
        (12, "publish", 0, 1, 1),
    )
    start = [(0, 0, "download", 0, 1), (0, 0, "compute", 1, 2), (0, 0, "late", 2, 5)]
    end = [(1, 0, "compute", 8, 9), (1, 0, "paused", 9, 11), (1, 0, "upload", 11, 12)]
    gone = [(1, 0, "download", 5, 6), (1, 0, "paused", 6, 7), (1, 0, "download", 7, 8)]
    assert path(events, pauses=True) == [*start, *gone, *end]
    working = [(1, 0, "download", 5, 6), (1, 0, "download", 6, 7), (1, 0, "download", 7, 8)]
    assert path(events) == [*start, *working, *end]


def test_a_publish_at_time_zero_has_an_empty_path() -> None:
    """A job without length gives a version at 0 s, and nothing to sum up."""
    events = log((0, "dispatch", 0, 0, 0), (0, "arrive", 0, 0, 0), (0, "publish", 0, 0, 1))
    assert path(events) == []


@pytest.mark.parametrize("made", [Made(updates=200), Made(updates=90, clients=3, concurrency=1, buffer=1, wait=False)])
def test_the_path_sums_to_the_instant_of_the_publish(tmp_path: Any, made: Made) -> None:
    """On generated timelines every path has no gap, and its legs sum to the time of its publish exactly."""
    events = reading.read(make(tmp_path / "run", made)).events
    for version, ticks in events.filter(pl.col("kind") == "publish").select("version", "ticks").iter_rows():
        found = critical_path.critical_path(events, version)
        assert found is not None
        assert (found.spans["stop"] - found.spans["start"]).sum() == ticks == found.end


def test_one_client_at_work_makes_the_path_the_whole_timeline(tmp_path: Any) -> None:
    """With one place, every job before the publish is on the path, in its order."""
    events = reading.read(make(tmp_path / "run", Made(updates=40, concurrency=1, buffer=4, lose=0.2))).events
    found = critical_path.critical_path(events)
    assert found is not None
    ended = events.filter(pl.col("kind").is_in(["arrive", "lose"]) & (pl.col("ticks") <= found.end))
    assert found.spans["job"].unique(maintain_order=True).to_list() == ended["job"].to_list()


def scores(*rows: tuple[int, float | None, float | None]) -> pl.DataFrame:
    """Make a table of test scores of (version, loss, accuracy)."""
    full = [(version * S, float(version), version, version, "test", loss, right, 10) for version, loss, right in rows]
    return pl.DataFrame(full, schema=dict(reading.METRICS), orient="row")


def classed(tmp_path: Any, metrics: pl.DataFrame) -> reading.Run:
    """Return a run with the hand-made log above, a quick client 4 and slow clients 5 and 6."""
    run = reading.read(make(tmp_path / "run", Made(clients=7, updates=5, device_classes=("quick",))))
    kinds = pl.Series("device_class", ["quick"] * 5 + ["slow"] * 2)
    return replace(run, events=ASYNC, metrics=metrics, clients=run.clients.with_columns(kinds))


def test_a_goal_is_the_first_evaluation_that_meets_it(tmp_path: Any) -> None:
    """Accuracy of at least, loss of at most; what is not finite or not test data meets nothing."""
    run = classed(tmp_path, scores((0, 2.0, 0.1), (1, float("nan"), 0.7), (2, 0.5, 0.8), (3, 0.4, 0.9)))
    found = [
        goals.reached(run, Goal(*goal)) for goal in (("accuracy", 0.8), ("loss", 0.5), ("accuracy", 0.95), ("loss", 3))
    ]
    assert found == [2, 2, None, 0]


def test_the_paragraph_says_what_the_path_tells(tmp_path: Any) -> None:
    """By hand: 4 of the 10 s are the upload of a slow device; a goal that was not reached is said so."""
    run = classed(tmp_path, scores((2, 0.5, 0.8)))
    last = path_charts.told(run, None)
    assert last is not None
    assert path_charts.sentence(last) == (
        "Of the 10 s to the last version (3), 40 % went into uploads of the class “slow” and 20 % into computing of the class "
        "“quick” (along the critical path, the chain of jobs that this version waited for)."
    )
    met = path_charts.told(run, Goal("accuracy", 0.8))
    assert met is not None
    assert path_charts.sentence(met).startswith(
        "Of the 9 s to a test accuracy of 80 % (version 2), 44.4 % went into uploads"
    )
    missed = path_charts.told(run, Goal("loss", 0.1))
    assert missed is not None
    assert path_charts.sentence(missed).startswith(
        "The run never reached a test loss of 0.1. Of the 10 s to the last version"
    )


def test_a_goal_met_from_the_start_has_no_path(tmp_path: Any) -> None:
    """Version 0 is not published: no path, and the page says so instead of drawing one."""
    run = classed(tmp_path, scores((0, 2.0, 0.9)))
    assert path_charts.told(run, Goal("accuracy", 0.5)) is None


def test_the_clients_of_the_path_are_the_longest_first() -> None:
    """By hand: client 6 holds the path up for 6 s with one job, client 4 for 4 s."""
    found = critical_path.critical_path(ASYNC)
    assert found is not None
    assert critical_path.by_client(found).with_columns(pl.col("share").round(12)).rows() == [
        (6, 1, 6.0, 0.6),
        (4, 1, 4.0, 0.4),
    ]


def test_the_command_takes_a_target(tmp_path: Any) -> None:
    """``report --target`` draws the path to the goal; a target that is none is refused."""
    folder = make(tmp_path / "run", Made(updates=60))
    done = CliRunner().invoke(app, ["report", str(folder), "--target", "accuracy=0.99"])
    assert done.exit_code == 0, done.output
    assert "The run never reached a test accuracy of 99 %" in (folder / "report.html").read_text("utf-8")
    assert CliRunner().invoke(app, ["report", str(folder), "--target", "speed=3"]).exit_code != 0
