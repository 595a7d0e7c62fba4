"""Every error that desim-fl raises on purpose, in one tree.

    DesimError
    ├── ScenarioError      what the user wrote cannot be played (exit code 2, before anything runs)
    │   ├── DataError      a data set, map or trace is missing or malformed
    │   └── RefusedError   a feature that is named but cannot be run in this combination
    ├── RunError           a run that had started cannot go on (exit code 1)
    │   ├── JobError       local training failed; names job, client, version and executor
    │   ├── StalledError   virtual time does not advance, or nothing is left to happen
    │   └── LawError       an invariant does not hold: a fault in desim-fl or in a strategy
    │       └── PromiseError   a strategy breaks one of the promises that desim_fl.testing checks
    └── RunDirectoryError  a run directory is missing, occupied, incomplete or contradicts itself (exit code 2)
        └── CheckpointError  a checkpoint cannot be written or read, or belongs to another run
    BudgetSpent (a KeyboardInterrupt): the wall-time budget is used up: the run is interrupted, and can be resumed

Each message carries the value, the place and the way out.
"""

from __future__ import annotations


class DesimError(Exception):
    """Root of the tree; ``exit_code`` is what the command line returns."""

    exit_code = 1


class ScenarioError(DesimError):
    """The scenario, or something it names, cannot be played. Message lines are one problem each."""

    exit_code = 2


class DataError(ScenarioError):
    """A data set, a map file or a trace is missing or malformed."""


class RefusedError(ScenarioError):
    """A feature that is understood but cannot be run as asked; the message names it."""


class RunError(DesimError):
    """A run that had started cannot go on."""


class JobError(RunError):
    """Local training of one job failed.

    Raised ``from`` the original exception, with job, client, version and executor in the message.
    """

    def __init__(self, job: int, client: int, version: int, executor: str, why: str) -> None:
        super().__init__(f"job {job} (client {client}, from version {version}, executor {executor}): {why}")
        self.job = job
        self.client = client
        self.version = version


class StalledError(RunError):
    """Virtual time does not advance, or nothing is left that could happen before the stop rule."""


class LawError(RunError):
    """An invariant of the simulation does not hold."""


class PromiseError(LawError):
    """A strategy breaks a promise; ``promise`` names it, ``call`` is the call that broke it."""

    def __init__(self, strategy: str, promise: str, call: str, why: str) -> None:
        super().__init__(f'{strategy} breaks the promise "{promise}" in {call}: {why}')
        self.promise, self.call = promise, call


class RunDirectoryError(DesimError):
    """A run directory is missing, occupied, incomplete or contradicts itself."""

    exit_code = 2


class CheckpointError(RunDirectoryError):
    """A checkpoint cannot hold a value, is damaged, or does not belong to the run at hand."""


class BudgetSpent(KeyboardInterrupt):
    """The run's real seconds are used up: an interruption like Ctrl-C, no error; the timeline is a prefix."""
