"""What the pool has promised to do, and the versions that takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from desim_fl.core import Job
    from desim_fl.executors.packing import Packed


class WorkerError(Exception):
    """What went wrong in a worker, with the traceback as it was printed there."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One thing to be done: a job's training, or (``job`` is ``None``) a version's evaluation."""

    number: int
    due: int
    shipment: Shipment
    steps: int
    job: Job | None = None
    version: int = 0
    wanted: bool = True
    settled: bool = False  # its result, or its failure, is known
    result: Any = None
    failure: WorkerError | None = None
    deaths: int = 0  # of workers, while they were at it
    worker: str | None = None  # who has it now, or had it last
    waiting: bool = True  # for a worker
    place: int | None = None  # in the shelf: the job on its way out, the outcome on its way back


@dataclass(slots=True, eq=False)
class Shipment:
    """A version's content while anything still needs it."""

    key: tuple[int, int]  # ids of parameters and buffers, which this keeps alive
    params: Any
    buffers: Any
    number: int  # what workers call it, since ids come again, perhaps before all have heard that a version has ended
    users: int = 0
    parcel: Packed | None = None
    place: int | None = None
