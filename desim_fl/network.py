"""Links: how long a model takes between a client and the server, in ticks.

A leg is the client's latency (rounded half to even after its jitter) plus the transfer, which takes
``ceil(bits * 10**6 / whole bits a second)`` in integers. Every client has its links to itself here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from desim_fl.core import TICKS_PER_SECOND
from desim_fl.ticks import to_ticks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_MOST = 2.0**62  # largest number of bits times 10^6, and of bits a second, that the array form takes
_EXACT = 2.0**53  # whole numbers below it are exact as floats


def transfer_ticks(size_bytes: int, mbps: float | None) -> int:
    """Ticks to move ``size_bytes`` at ``mbps`` megabits a second; 0 where the rate is unlimited (``None``)."""
    if mbps is None:
        return 0
    bits_a_second = max(1, round(mbps * 1e6))
    return -(-size_bytes * 8 * TICKS_PER_SECOND // bits_a_second)


@dataclass(frozen=True, slots=True)
class Links:
    """Each client's own links, by client number: latency in s, rates in Mbit/s (``None`` = unlimited for all).

    ``size_bytes`` is the model's real size; it goes down with every job and up with every update.
    """

    size_bytes: int
    latency_s: Sequence[float]
    down_mbps: Sequence[float] | None = None
    up_mbps: Sequence[float] | None = None

    def download(self, client: int, jitter: float) -> int:
        """Ticks of the download leg, the latency multiplied with ``jitter``."""
        return self._leg(client, jitter, self.down_mbps)

    def upload(self, client: int, jitter: float) -> int:
        """Ticks of the upload leg, the latency multiplied with ``jitter``."""
        return self._leg(client, jitter, self.up_mbps)

    def transfers(self, clients: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ticks of the bare transfers of these clients down and up, without latency; infinite beyond 2^53."""
        return self._transfers(clients, self.down_mbps), self._transfers(clients, self.up_mbps)

    def _transfers(self, clients: NDArray[np.int64], rates: Sequence[float] | None) -> NDArray[np.float64]:
        """Array form of :func:`transfer_ticks`, exact."""
        work = self.size_bytes * 8 * TICKS_PER_SECOND
        if rates is None:
            return np.zeros(len(clients))
        if work >= _MOST:
            return np.full(len(clients), np.inf)
        bits = np.rint(np.asarray(rates)[clients] * 1e6)
        sound = np.isfinite(bits)
        ticks = -(-work // np.clip(np.where(sound, bits, 1.0), 1.0, _MOST).astype(np.int64))
        return np.where(sound & (ticks < _EXACT), ticks, np.inf)

    def _leg(self, client: int, jitter: float, rates: Sequence[float] | None) -> int:
        rate = None if rates is None else rates[client]
        return to_ticks(self.latency_s[client] * jitter) + transfer_ticks(self.size_bytes, rate)
