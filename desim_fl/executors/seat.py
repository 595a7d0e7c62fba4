"""A worker on a Ray cluster: rebuilds the task, does one thing at a time, and says what came of it.

Nothing here imports Ray; what comes from its object store are arrays that cannot be written to.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import pickle
import sys
import types
import warnings
from typing import Any, NamedTuple

import numpy as np

from desim_fl.executors import ambient, fingerprint
from desim_fl.executors.packing import Packed, needed, packed, spans, unpacked
from desim_fl.executors.worker import performed, told

_WORTH_SHARING = 1 << 20  # bytes; less is copied, which costs less than a page fault or two
_ALIGNED = 64


class Placement(NamedTuple):
    """What a worker is told before it starts: its surroundings, and what the parent's are like."""

    settings: dict[str, Any]
    threads: int
    expected: dict[str, str]
    device: Any
    model: str | None
    main: str | None


# A packed value as it lies in the object store: pickle, sizes of its arrays, and those one after the other in one array
# of bytes. A plain tuple, which Ray can unpack where desim-fl is not found yet.
Parcel = tuple[bytes, tuple[int, ...], np.ndarray | None]


def parcel(value: Packed, room: memoryview | None) -> Parcel:
    """Join a value's arrays, wherever they are, for the object store."""
    if not value.sizes:
        return value.head, (), None
    if not value.loose and room is not None:
        return value.head, value.sizes, np.frombuffer(room[: needed(value.sizes)], np.uint8)
    content = np.empty(needed(value.sizes), np.uint8)
    for raw, span in zip(value.loose, spans(content.data, value.sizes), strict=True):
        span[:] = raw
    return value.head, value.sizes, content


def opened(value: Parcel, *, guard: bool = False) -> Any:
    """Put a value together; large arrays stay in the store's memory (``guard``: for good, and protected)."""
    head, sizes, content = value
    if content is None:
        return unpacked(Packed(head))
    large, aligned = content.nbytes >= _WORTH_SHARING, content.ctypes.data % _ALIGNED == 0
    shared = large and aligned  # else kernels might round differently
    if shared and guard:
        protect(content)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return unpacked(Packed(head, sizes), content.data, copy=not shared)


def protect(content: np.ndarray) -> None:
    """Make whole pages of a shared array read-only: every worker of the node sees what one would write into them.

    Ray's own mapping of its store can be written to, and torch does not know that it should not.
    """
    start = -(-content.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (content.ctypes.data + content.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    with contextlib.suppress(AttributeError, OSError):  # where a system has no mprotect, it is not there
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(start), ctypes.c_size_t(size), 1)  # PROT_READ


class Seat:
    """A task rebuilt from its recipe. Raises ``Mixed`` where results could differ from the parent's in last bits."""

    def __init__(self, placement: Placement, recipe: Parcel) -> None:
        sys.stdout = sys.stderr
        ambient.applied(placement.settings)
        os.environ["OMP_NUM_THREADS"] = str(placement.threads)  # for tasks that use torch and do not pin it
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(placement.threads)
        difference = fingerprint.differences(placement.expected, fingerprint.facts(placement.device, placement.model))
        if difference:
            raise fingerprint.Mixed(difference)
        if placement.main is not None:
            _import_main(placement.main)
        self.task = opened(recipe, guard=True)

    def work(self, model: Parcel, subject: Parcel | int, steps: int) -> tuple[Any, ...]:
        """Train a job or score a version: ``("done", parcel, seconds)`` or ``("failed", text, traceback)``."""
        try:
            todo = opened(subject) if isinstance(subject, tuple) else subject
            result, seconds = performed(self.task, opened(model), todo, steps)
            return "done", parcel(packed(result), None), seconds
        except BaseException as error:  # noqa: BLE001  (the parent raises it, with the job's name)
            return "failed", *told(error)


def seated(placement: bytes, recipe: Parcel) -> Seat:
    """Make a seat from what came over the wire."""
    return Seat(pickle.loads(placement), recipe)  # noqa: S301  (parent and worker hear each other only)


def _import_main(path: str) -> None:
    """Load the script that was started, as multiprocessing does, for classes that are defined in it."""
    import runpy  # noqa: PLC0415

    module = types.ModuleType("__mp_main__")
    module.__dict__.update(runpy.run_path(path, run_name="__mp_main__"))
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
