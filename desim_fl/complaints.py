"""Errors of runs that can never end: what is the matter, and the way out."""

from __future__ import annotations

from desim_fl.errors import StalledError


def rejected_for_ever(count: int, reason: str, ticks: int) -> StalledError:
    """Nothing is let in, and only a number of versions would stop the run."""
    return StalledError(
        f"{count} updates in a row were rejected (the last one as {reason}) up to t = {ticks / 1e6} s, so that the stop rule "
        "run.max_versions is never reached; set run.max_time_s or run.max_updates"
    )


def abandoned_for_ever(count: int, ticks: int) -> StalledError:
    """No round is ever committed, and nothing else would stop the run."""
    return StalledError(
        f"{count} rounds in a row were abandoned up to t = {ticks / 1e6} s, and no stop rule ends this; set run.max_time_s, "
        "or a longer strategy.deadline_s"
    )
