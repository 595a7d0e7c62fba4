"""Nothing grows with the length of a run, one run does not see another, and the progress bar is right."""

from __future__ import annotations

import contextlib
import itertools

import long_run
import pytest

from desim_fl import eventlog, progress, report, rundir
from desim_fl.eventlog import EventLog
from scenarios import QUADRATIC, played

SEGMENT = 2000


@pytest.fixture(scope="module")
def small():
    """A small version of the long run: 6,000 updates in segments of 2,000 rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eventlog, "_BATCH_ROWS", 500)
        patch.setattr(EventLog.__init__, "__defaults__", (None, SEGMENT))
        patch.setattr(rundir, "WALL_ROWS", 500)
        yield


def test_a_long_run_stays_small(small, tmp_path):
    """Memory, segments and page of 6,000 updates are bounded, and a second run in this process is a fresh one; CASES RS-01, RP-01."""
    found = long_run.long(tmp_path / "long", 6000, looks=25)
    assert long_run.faults(found, SEGMENT) == []
    assert len(found.segments) > 10
    assert found.shares == [0.2, 0.4, 0.6, 0.8, 1.0]
    second = long_run.long(tmp_path / "second", 300, looks=5)
    assert second.hashes == long_run.fresh(tmp_path, 300, "scalar")


def test_what_grows_is_told():
    """The judge of long runs sees memory, segments, pages and bars that are not right."""
    level = [90.0] * 40 + [100.0, 130.0] * 10 + [104.0, 140.0] * 20
    sound = long_run.Long(level, [1000] * 100, [0.5, 1.0], [SEGMENT, 7], 1000, 0, {})
    assert long_run.faults(sound, SEGMENT) == []
    for change, said in (
        ({"megabytes": level[:-20] + [106.0] * 20}, "memory grew from 100.0 to 106.0 MiB"),
        ({"blocks": [1000] * 80 + [1051] * 20}, "memory grew from 1000 to 1051 blocks"),
        ({"segments": [SEGMENT - 1, 7]}, "segments"),
        ({"segments": [SEGMENT, SEGMENT + 1]}, "segments"),
        ({"page_bytes": 5_000_001}, "page"),
        ({"shares": [0.5, 0.99]}, "shares"),
        ({"shares": [0.6, 0.5, 1.0]}, "shares"),
    ):
        assert [said in told for told in long_run.faults(sound._replace(**change), SEGMENT)] == [True]


class Bar(progress.Progress):
    """A bar that remembers what it showed."""

    shown: list[float]

    def update(self, task_id, **fields):
        """Remember and show."""
        self.shown.append(fields["completed"])
        super().update(task_id, **fields)


@pytest.mark.parametrize(
    ("stops", "first"),
    [
        (("run.max_updates=40", "run.max_versions=1000"), 1 / 40),
        (("run.max_updates=1000", "run.max_versions=20"), 1 / 1000),
        (("run.max_updates=1000", "run.max_time_s=30"), None),
        (("run.max_updates=1000", "run.max_time_s=0.001"), None),
        (("run.max_updates=31", "run.max_versions=15", "strategy.flush_at_end=true"), 1 / 31),
    ],
)
def test_the_bar_tells_the_share_done_by_the_nearest_stop_rule(monkeypatch, tmp_path, stops, first):
    """From its first arrival on it never goes back nor beyond the whole, and ends there, whichever rule stops the run."""
    monkeypatch.setattr(report, "write", lambda folder: folder)
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "Progress", Bar)
    monkeypatch.setattr(Bar, "shown", [], raising=False)
    with progress.progress_bar("run", quiet=False) as watch:
        played(tmp_path, QUADRATIC, *stops, watch=watch)
    assert Bar.shown[-1] == 1.0
    assert all(0.0 <= one <= other <= 1.0 for one, other in itertools.pairwise(Bar.shown))
    if first is not None:
        assert Bar.shown[0] == first
    assert (len(Bar.shown) > 10) == ("run.max_time_s=0.001" not in stops)


def test_the_bar_of_an_interrupted_run_stays_where_it_was(monkeypatch, tmp_path):
    """What is not done is not shown as done."""
    monkeypatch.setattr(report, "write", lambda folder: folder)
    monkeypatch.setattr(progress, "_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "Progress", Bar)
    monkeypatch.setattr(Bar, "shown", [], raising=False)
    with contextlib.suppress(KeyboardInterrupt), progress.progress_bar("run", quiet=False) as watch:

        def stop(session):
            watch(session)
            if session.engine.ledger.arrived == 30:
                raise KeyboardInterrupt

        played(tmp_path, QUADRATIC, watch=stop)
    assert Bar.shown[-1] == 0.5
