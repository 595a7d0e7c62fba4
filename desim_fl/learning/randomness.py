"""The one place that may touch process-wide generators and thread counts, and puts them back exactly.

Layers such as Dropout draw from torch's own generators. ``keyed`` sets those from a stream named by (purpose, client,
nth) and restores them, so that a job's masks depend on nothing but the job. torch's CPU generator keeps 32 bits of a
seed, so one pair of jobs in four thousand million shares its masks. Entering and leaving costs about 2 microseconds
on the CPU, which is why it surrounds every job, drawing or not.

The generators belong to the process: one thread at a time may key them (a lock sees to that), and a thread of the thread
executor only makes sure that nothing it does touches them.
"""

from __future__ import annotations

import random
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from desim_fl.draws import block
from desim_fl.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROCESS = threading.RLock()  # held while the process's generators, or its number of threads, are not as they were


def generators(device: torch.device) -> tuple[torch.Generator, ...]:
    """Return torch's default generators that a computation on ``device`` may draw from."""
    if device.type != "cuda":
        return (torch.default_generator,)
    torch.cuda.init()  # creates the default generators
    return (torch.default_generator, *torch.cuda.default_generators)


@contextmanager
def keyed(seed: int, purpose: int, client: int, nth: int, device: torch.device) -> Iterator[None]:
    """Run the body with torch's generators set from the keyed draw, and restore their exact states."""
    low, high, _, _ = block(seed, purpose, client, nth, 0)
    touched = generators(device)
    with _PROCESS:
        before = [generator.get_state() for generator in touched]
        try:
            for generator in touched:
                generator.manual_seed(high << 32 | low)
            yield
        finally:
            for generator, state in zip(touched, before, strict=True):
                generator.set_state(state)


@contextmanager
def untouched(what: str) -> Iterator[None]:
    """Run the body beside other threads without keys; raises ``RefusedError`` naming ``what`` if torch's CPU generator moved.

    States are looked at while no thread has keyed the generator, so only a real draw is noticed: by the body, which is
    an error, or by foreign code in another thread, which spoils nothing here and yet cannot be told apart.
    """
    with _PROCESS:
        before = torch.default_generator.get_state()
    yield
    with _PROCESS:
        same = torch.equal(before, torch.default_generator.get_state())
    if not same:
        raise RefusedError(f"torch's generator was drawn from: {what}")


def states(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return the states of these generators."""
    return tuple(generator.get_state() for generator in generators(device))


def put_back(device: torch.device, kept: tuple[torch.Tensor, ...]) -> None:
    """Set these generators to states that they had."""
    for generator, state in zip(generators(device), kept, strict=True):
        generator.set_state(state)


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Run the body with ``threads`` intra-op threads (their number changes last bits), and restore the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def settled(threads: int) -> None:
    """Give the calling thread ``threads`` intra-op threads for good; all others, and those to come, keep theirs."""
    with _PROCESS:
        before = torch.get_num_threads()  # asked first: a thread takes the process's number over when it first asks
        torch.set_num_threads(threads)
        # That also changed the number that threads to come take over; one that ends at once can put it back.
        other = threading.Thread(target=torch.set_num_threads, args=(before,))
        other.start()
        other.join()


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Run the body with deterministic cuDNN kernels and without TF32 on a CUDA device; nothing to do elsewhere."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def _numpy_state() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  (looks at the global generator, to guard it)
    return (kind, np.asarray(keys).tobytes(), *rest)


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Refuse a body that draws from Python's or NumPy's global generator, after putting both back.

    Nothing keys those, so two runs would differ silently. Raises ``RefusedError`` naming ``what``.
    """
    python, legacy, numpy = random.getstate(), np.random.get_state(), _numpy_state()  # noqa: NPY002
    yield
    if random.getstate() == python and _numpy_state() == numpy:
        return
    random.setstate(python)
    np.random.set_state(legacy)  # noqa: NPY002
    raise RefusedError(f"{what} draws from the global generator of Python or NumPy; draw with torch instead")
