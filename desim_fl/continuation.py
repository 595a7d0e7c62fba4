"""What a run must remember besides its timeline, to go on from an instant as if it had never stopped.

Everything that virtual time decides (who is in flight, versions, queues, alarms, accounts) comes back by playing the
timeline again on ``Null`` parameters, at the speed of ``plan``. What training made does not; it is held here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from desim_fl.core import Job, Model, Send
    from desim_fl.eventlog import Tail


class Carried(NamedTuple):
    """What a job in flight took with it."""

    params: Any
    buffers: Any
    extra: Any
    memory: Any


class Held(NamedTuple):
    """The trained values of a run at the end of instant ``tick``.

    ``state`` is the strategy's, ``asked`` the sends that wait for a client (they may start from older versions),
    ``jobs`` the jobs in flight by id; ``caches`` and ``memories`` by client, ``buffers`` by job those of the updates
    since the last publish; ``ahead`` what the executor trained before it was needed, ``tail`` the rows of the log that are in no segment yet.
    """

    tick: int
    model: Model
    state: Any
    asked: tuple[Send, ...]
    jobs: dict[int, Carried]
    caches: dict[int, Any]
    memories: dict[int, Any]
    buffers: dict[int, Any]
    ahead: Any
    tail: Tail


def carried(jobs: Iterable[Job]) -> dict[int, Carried]:
    """What these jobs took with them, by id."""
    return {job.id: Carried(job.params, job.buffers, job.extra, job.memory) for job in jobs}


def loaded(job: Job, carries: Carried) -> Job:
    """The job with what it took with it."""
    return job._replace(**carries._asdict())
