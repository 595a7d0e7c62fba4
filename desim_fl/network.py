"""Links: how long a model takes between a client and the server, in ticks.

A leg is the client's latency (rounded half to even after its jitter) plus the transfer, which takes
``ceil(bits * 10**6 / whole bits a second)`` in integers. Every client has its links to itself here.
"""

from __future__ import annotations

from dataclasses import dataclass

from desim_fl.core import TICKS_PER_SECOND
from desim_fl.ticks import to_ticks


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
    latency_s: tuple[float, ...]
    down_mbps: tuple[float, ...] | None = None
    up_mbps: tuple[float, ...] | None = None

    def download(self, client: int, jitter: float) -> int:
        """Ticks of the download leg, the latency multiplied with ``jitter``."""
        return self._leg(client, jitter, self.down_mbps)

    def upload(self, client: int, jitter: float) -> int:
        """Ticks of the upload leg, the latency multiplied with ``jitter``."""
        return self._leg(client, jitter, self.up_mbps)

    def transfers(self, client: int) -> tuple[int, int]:
        """Ticks of the bare transfers down and up, without latency."""
        return tuple(
            transfer_ticks(self.size_bytes, None if rates is None else rates[client])
            for rates in (self.down_mbps, self.up_mbps)
        )  # pyright: ignore[reportReturnType]

    def _leg(self, client: int, jitter: float, rates: tuple[float, ...] | None) -> int:
        rate = None if rates is None else rates[client]
        return to_ticks(self.latency_s[client] * jitter) + transfer_ticks(self.size_bytes, rate)
