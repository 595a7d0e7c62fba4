"""Random numbers without state: every draw is a pure function of what it is for.

``words`` is Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the
key is the seed as two 32-bit words, the counter is ``(client, nth, purpose, slot // 4)``, and word ``slot % 4`` of
the block is the draw. Two variants of a scenario that ask the same question get the same number (common random
numbers), in any order and on any machine. The scalar form and the array form give the same bits.

``stream`` hands out a NumPy generator where one job needs many numbers (a batch order, say).
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers of the published Philox4x32
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # key increments: golden ratio, sqrt(3) - 1
_ROUNDS = 10
LIMIT = 1 << 32  # client keys and job counts are 32-bit counter words


class Purpose(IntEnum):
    """What a draw is for. Never renumbered; new ones are appended."""

    CLIENT = 0  # a client's constants, nth 0
    JOB = 1  # a job's durations, slots in JobSlot
    SELECTION = 2  # client 0, nth = dispatch number, slot = try
    PARTITION = 3
    MODEL_INIT = 4
    BATCH_ORDER = 5
    TRAINING = 6  # torch's generators around a job (Dropout, augmentation)
    DATA = 7  # made data
    VALIDATION = 8  # which training samples form the validation part
    EVALUATION = 9  # torch's generators around an evaluation
    AVAILABILITY = 10  # nth = renewal or fixed window, slots in AvailabilitySlot
    FAILURE = 11  # a job's accidents, slots in FailureSlot
    OUTAGE = 12  # the server's, client 0, nth = renewal, slots in AvailabilitySlot
    WORK = 13  # how much of its work a job manages, slots in WorkSlot
    TIER = 14  # which tier a round is for: client 0, nth = round, slot 0
    EPOCH_IDLE = 15  # a client's job, slot = epoch: how long the device pauses after it
    SERVER = 16  # client 0, nth = service, slot 0: how long the server is busy with it
    OPEN_ARRIVAL = 17  # client 0, nth = arrival, slot 0: the gap before it
    SAMPLED_STALENESS = 18  # FedAsync's, client 0, nth = number of the send
    CONTACT = 19  # whom a polling server asks: client 0, nth = number of the contact, slot = place among those asked
    HELD_OUT = 20  # which of its samples a client keeps back, nth 0
    LINK_NOISE = 21  # a client's own links: nth = fixed window of time, slot 0 = down, 1 = up


class ClientSlot(IntEnum):
    """Slots of ``Purpose.CLIENT``. Never renumbered."""

    DEVICE_FACTOR = 0
    DOWN_MBPS = 1
    UP_MBPS = 2
    LATENCY = 3
    CLASS = 4
    DEVICE_FLOPS = 5
    REGION = 6


class JobSlot(IntEnum):
    """Slots of ``Purpose.JOB`` below 16; retry r adds 16 r. Never renumbered."""

    COMPUTE_JITTER = 0
    WAIT = 1
    DOWN_LATENCY_JITTER = 2
    UP_LATENCY_JITTER = 3


class AvailabilitySlot(IntEnum):
    """Slots of ``Purpose.AVAILABILITY`` and ``Purpose.OUTAGE``; those from 4 on only at nth 0. Never renumbered."""

    ON = 0  # a renewal's time online, or the draw of a fixed window
    OFF = 1
    START_STATE = 4
    START_LENGTH = 5
    START_SHARE = 6
    TIME_ZONE = 7
    PHASE = 8


class FailureSlot(IntEnum):
    """Slots of ``Purpose.FAILURE`` below 16; retry r adds 16 r. Never renumbered."""

    CRASH_DOWNLOAD = 0
    CRASH_COMPUTE = 1
    CRASH_UPLOAD = 2
    CRASH_POINT = 3
    HAZARD = 4
    UPLOAD_LOSS = 5
    DUPLICATE = 6
    DUPLICATE_DELAY = 7
    BACKOFF = 8


class WorkSlot(IntEnum):
    """Slots of ``Purpose.WORK``. Never renumbered."""

    STRAGGLES = 0
    AMOUNT = 1


def block(seed: int, purpose: int, client: int, nth: int, group: int) -> tuple[int, int, int, int]:
    """Four 32-bit words: slots ``4 * group`` to ``4 * group + 3``, in plain Python."""
    c0, c1, c2, c3 = client & _MASK, nth & _MASK, purpose, group
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def word(seed: int, purpose: int, client: int, nth: int, slot: int) -> int:
    """One 32-bit word (scalar form)."""
    return block(seed, purpose, client, nth, slot // 4)[slot % 4]


def blocks(seed: int, purpose: int, client: ArrayLike, nth: ArrayLike, group: int) -> NDArray[np.uint32]:
    """Array form of :func:`block`: ``client`` and ``nth`` broadcast; shape ``(..., 4)``."""
    low, shift = np.uint64(_MASK), np.uint64(32)
    clients, nths = np.broadcast_arrays(np.asarray(client, np.uint64), np.asarray(nth, np.uint64))
    c0, c1 = np.atleast_1d(clients & low), np.atleast_1d(nths & low)
    c2, c3 = np.full(c0.shape, purpose, np.uint64), np.full(c0.shape, group, np.uint64)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    p0, p1 = np.empty_like(c0), np.empty_like(c0)
    for _ in range(_ROUNDS):  # in place: new arrays for every step would cost more than the steps
        np.multiply(c0, np.uint64(_M0), out=p0)
        np.multiply(c2, np.uint64(_M1), out=p1)
        for high, old, key, product, kept in ((c0, c1, k0, p1, c1), (c2, c3, k1, p0, c3)):
            np.right_shift(product, shift, out=high)
            np.bitwise_xor(high, old, out=high)
            np.bitwise_xor(high, np.uint64(key), out=high)
            np.bitwise_and(product, low, out=kept)
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    found = np.empty((*clients.shape, 4), np.uint32)
    for place, column in enumerate((c0, c1, c2, c3)):
        found[..., place] = column.reshape(clients.shape)
    return found


def words(seed: int, purpose: int, client: ArrayLike, nth: ArrayLike, slot: int) -> NDArray[np.uint32]:
    """Array form of :func:`word`."""
    return blocks(seed, purpose, client, nth, slot // 4)[..., slot % 4]


def uniform(word_value: int) -> float:
    """A word as a number strictly between 0 and 1: ``(word + 0.5) / 2**32``, exact in double precision."""
    return (word_value + 0.5) / 4294967296.0


def uniforms(word_values: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Array form of :func:`uniform`."""
    return (word_values.astype(np.float64) + 0.5) / 4294967296.0


def stream(seed: int, purpose: int, client: int, nth: int) -> np.random.Generator:
    """A NumPy generator of its own for (purpose, client, nth), for uses that need many numbers."""
    key = np.array(
        [seed & 0xFFFFFFFFFFFFFFFF, purpose], np.uint64
    )  # a list would pass seeds from 2**63 on through floats
    philox = np.random.Philox(key=key, counter=[0, 0, client, nth])
    return np.random.Generator(philox)
