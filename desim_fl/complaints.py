"""Errors of runs that can never end, or end otherwise than planned: what is the matter, and the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desim_fl.errors import DesimError, JobError, RefusedError, RunError, StalledError

if TYPE_CHECKING:
    from desim_fl.core import Job, Outcome
    from desim_fl.dispatch import Desk


def rejected_for_ever(count: int, reason: str, ticks: int) -> StalledError:
    """Nothing is let in, and only a number of versions would stop the run."""
    return StalledError(
        f"{count} updates in a row were rejected (the last one as {reason}) up to t = {ticks / 1e6} s, so that the stop rule "
        "run.max_versions is never reached; set run.max_time_s or run.max_updates"
    )


def lost_for_ever(count: int, reason: str, ticks: int) -> StalledError:
    """Every job is lost, and no stop rule ends this."""
    return StalledError(
        f"{count} jobs in a row were lost (the last one: {reason}) up to t = {ticks / 1e6} s, and nothing arrived in between; set "
        "run.max_time_s, or look at failures.timeout_s, the chances in [failures] and the windows of [availability]"
    )


def abandoned_for_ever(count: int, ticks: int) -> StalledError:
    """No round is ever committed, and nothing else would stop the run."""
    return StalledError(
        f"{count} rounds in a row were abandoned up to t = {ticks / 1e6} s, and no stop rule ends this; set run.max_time_s, "
        "or a longer strategy.deadline_s"
    )


def ringing_for_ever(alarm: str, ticks: int) -> StalledError:
    """An alarm is set anew without delay, again and again."""
    return StalledError(
        f'virtual time is not advancing: the alarm "{alarm}" rings again and again at t = {ticks / 1e6} s; '
        "set it at least a microsecond ahead"
    )


def not_advancing(client: int, count: int, ticks: int, *, lost: bool) -> StalledError:
    """Jobs take no time, and no stop rule ends this."""
    fate = "arrived or was lost" if lost else "arrived"
    return StalledError(
        f"virtual time is not advancing: client {client} {fate} {count} times at t = {ticks / 1e6} s; "
        "give jobs a duration (clients.seconds_per_step, network.latency_s) or set run.max_updates"
    )


def nobody_comes(count: int, ticks: int) -> StalledError:
    """Clients come and leave, but none that the open places wait for."""
    return StalledError(
        f"{count} clients came in a row up to t = {ticks / 1e6} s, and none could take an open place, with nobody on the way; "
        "set run.max_time_s, or look at [availability] and at whom the strategy and run.order ask for"
    )


def non_finite(job: Job, bad: str | None) -> RunError:
    """An update is not finite, and the scenario wants to know."""
    return RunError(
        f"job {job.id} (client {job.client}, from version {job.version}) gave a non-finite update in "
        f'"{bad or "params"}"; run.non_finite = "skip" would give it weight 0 and go on'
    )


def unlike_the_plan(job: Job, outcome: Outcome, steps: int, examples: int, executor: str) -> DesimError:
    """Training did something else than the timeline took for granted."""
    if outcome.stopped:
        return RefusedError("early stopping of local training (Outcome.stopped) cannot be played yet")
    if outcome.steps != steps:
        why = f"the trainer reports {outcome.steps} optimiser steps, but {steps} were asked for and timed"
    else:
        why = f"the trainer reports {outcome.examples} examples, but the client has {examples}"
    return JobError(job.id, job.client, job.version, executor, why)


def nothing_left(ticks: int, version: int, desk: Desk, buffered: int) -> StalledError:
    """No event is left, and the stop rule is not reached."""
    return StalledError(
        f"nothing is left to happen at t = {ticks / 1e6} s, version {version}, and the stop rule is not "
        f"reached: {desk.open_places} open places, {desk.held_places} held until the next publish, "
        f"{buffered} updates buffered, {desk.roster.selectable} clients selectable; look at "
        "strategy.buffer_size, run.concurrency and run.dispatch, or set run.max_time_s"
    )
