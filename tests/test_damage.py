"""What is said when results cannot be shown: what is wrong with them, and nothing of the kind where nothing is."""

from __future__ import annotations

import json
import shutil

import pytest

import scenarios
from desim_fl import damage
from desim_fl.errors import RunDirectoryError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run, with its page."""
    return scenarios.played(tmp_path_factory.mktemp("damage"), scenarios.QUADRATIC, "run.max_updates=5")[0]


def fail(error, *folders):
    """Fail in the middle of showing these folders."""
    with damage.named(folders):
        raise error


def test_failures_are_blamed_on_damage_only_where_there_is_some(run, tmp_path):
    """Of two folders the one that is damaged is named, with what verify finds; over sound ones the failure goes on as it is."""
    with pytest.raises(ZeroDivisionError, match="ours"):
        fail(ZeroDivisionError("ours"), run, run)
    bad = tmp_path / "bad"
    shutil.copytree(run, bad)
    manifest = json.loads((bad / "manifest.json").read_text())
    (bad / "manifest.json").write_text(json.dumps({**manifest, "summary": 3.5}))
    with pytest.raises(RunDirectoryError, match=r"bad is damaged: the manifest has no summary; desim-fl verify tells"):
        fail(ZeroDivisionError("theirs"), run, bad)
    with pytest.raises(BrokenPipeError):
        fail(BrokenPipeError(), bad)
    shown = scenarios.commanded("report", bad)
    assert shown.returncode == 2
    assert "is damaged: the manifest has no summary" in shown.stderr


def test_a_study_that_cannot_be_shown_is_made_anew_from_its_journal(tmp_path):
    """Its folder has nobody to check it, so the way out is said at once, with what went wrong."""
    (tmp_path / "study.toml").write_text("")
    with pytest.raises(RunDirectoryError, match=r"cannot be shown \(KeyError: 'x'\).*once more into this folder"):
        fail(KeyError("x"), tmp_path)
