"""Links: how long a model takes between a client and the server, in ticks.

A leg is the client's latency (rounded half to even after its jitter) plus the transfer, which takes
``ceil(bits * 10**6 / whole bits a second)`` in integers. A client has its links to itself, unless a direction is shared:
then a leg here is its latency alone, and the transfer takes what a :class:`desim_fl.sharing.Link` gives it.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from desim_fl import draws
from desim_fl.core import TICKS_PER_SECOND
from desim_fl.draws import ClientSlot, Purpose
from desim_fl.meter import Meter
from desim_fl.sharing import Link
from desim_fl.ticks import to_ticks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from desim_fl.durations import Law

_MOST = 2.0**62  # largest number of bits times 10^6, and of bits a second, that the array form takes
_DIGITS = 3
_EXACT = 2.0**53  # whole numbers below it are exact as floats


def transfer_ticks(size_bytes: int, mbps: float | None) -> int:
    """Ticks to move ``size_bytes`` at ``mbps`` megabits a second; 0 where the rate is unlimited (``None``)."""
    if mbps is None:
        return 0
    bits_a_second = max(1, round(mbps * 1e6))
    return -(-size_bytes * 8 * TICKS_PER_SECOND // bits_a_second)


def bits_a_second(mbps: float) -> int:
    """A rate on a shared link in whole bits a second, to three significant digits: few distinct caps cost little."""
    rate = max(1, round(mbps * 1e6))
    unit = 10 ** max(0, len(str(rate)) - _DIGITS)
    return (rate + unit // 2) // unit * unit


class Noise(NamedTuple):
    """How a client's own link gets better and worse: in each fixed window of time its rate is multiplied with a drawn factor.

    A draw belongs to the client (``keys``), the direction (``slot``) and the number of the window, ``ticks`` long: never to jobs.
    """

    seed: int
    keys: Sequence[int]
    law: Law
    ticks: int
    slot: int

    def factor(self, client: int, tick: int) -> float:
        """The factor of the window that a tick lies in."""
        return float(
            self.law.at(
                draws.uniform(
                    draws.word(self.seed, Purpose.LINK_NOISE, self.keys[client], tick // self.ticks, self.slot)
                )
            )
        )

    def until(self, tick: int) -> int:
        """The tick at which the next window begins."""
        return (tick // self.ticks + 1) * self.ticks


@dataclass(frozen=True, slots=True)
class Way:
    """One direction that transfers share: the server's link, and regional links on the way to it, in bit/s.

    ``capacity`` is the server's, ``regional`` those of the regions (``None`` = no limit); ``regions`` is each client's
    region, ``rates`` its own link in Mbit/s, as :meth:`Links.sharing` gives them (``None`` = unlimited for all). Transfers take ``scale`` times as long.
    """

    capacity: int | None
    regional: Sequence[int | None] = (None,)
    regions: Sequence[int] | NDArray[np.int16] | None = None
    rates: Sequence[float] | None = None
    scale: float = 1.0
    noise: Noise | None = None

    @property
    def common(self) -> bool:
        """Whether transfers of different clients share anything; else everybody is alone, on links that get better and worse."""
        return self.capacity is not None or any(limit is not None for limit in self.regional)

    def link(self) -> tuple[Link, Meter]:
        """Return the link itself, empty, and what watches it."""
        link = Link(self.capacity, self.regional)
        meter = Meter(link)
        link.watch = meter.watch
        return link, meter

    def region(self, client: int) -> int:
        """The client's region."""
        return 0 if self.regions is None else int(self.regions[client])

    def cap(self, client: int) -> int | None:
        """The rate of the client's own link, without noise; ``None`` = unlimited."""
        return None if self.rates is None else max(1, round(self.rates[client] * 1e6))

    def cap_at(self, client: int, tick: int) -> int | None:
        """The rate of the client's own link at a tick."""
        if self.noise is None or self.rates is None:
            return self.cap(client)
        return bits_a_second(self.rates[client] * self.noise.factor(client, tick))

    def work(self, size_bytes: int) -> int:
        """Millionths of a bit that so many bytes are, times the scale."""
        over, under = self.scale.as_integer_ratio()
        return size_bytes * 8 * TICKS_PER_SECOND * over // under

    def alone(self, client: int, size_bytes: int) -> int:
        """Ticks that a transfer takes while it is the only one."""
        limits = (self.cap(client), self.regional[self.region(client)], self.capacity)
        rate = min((limit for limit in limits if limit is not None), default=None)
        return 0 if rate is None else -(-self.work(size_bytes) // max(1, rate))


def regions(shares: Sequence[float], seed: int, keys: Sequence[int]) -> NDArray[np.int16]:
    """Draw the region of each client: a constant of its own, in proportion to the shares."""
    uniform = draws.uniforms(draws.words(seed, Purpose.CLIENT, np.asarray(keys, np.uint64), 0, ClientSlot.REGION))
    upto = np.cumsum([share / math.fsum(shares) for share in shares])[:-1]
    return np.searchsorted(upto, uniform, side="right").astype(np.int16)


@dataclass(frozen=True, slots=True)
class SharedWays:
    """The directions that transfers share; ``None`` = everybody has a link of their own there."""

    egress: Way | None = None  # from the server: downloads
    ingress: Way | None = None  # to the server: uploads


@dataclass(frozen=True, slots=True)
class Links:
    """Each client's own links, by client number: latency in s, rates in Mbit/s (``None`` = unlimited for all).

    ``size_bytes`` is the model's real size; it goes down with every job and up with every update. A leg in a direction
    that is shared (``shared_down``, ``shared_up``) is its latency alone; ``noisy`` where it is played as if it were, since
    rates change.
    """

    size_bytes: int
    latency_s: Sequence[float]
    down_mbps: Sequence[float] | None = None
    up_mbps: Sequence[float] | None = None
    shared_down: bool = False
    shared_up: bool = False
    noisy: bool = False

    def download(self, client: int, jitter: float) -> int:
        """Ticks of the download leg, the latency multiplied with ``jitter``."""
        return self._leg(client, jitter, None if self.shared_down else self.down_mbps)

    def upload(self, client: int, jitter: float) -> int:
        """Ticks of the upload leg, the latency multiplied with ``jitter``."""
        return self._leg(client, jitter, None if self.shared_up else self.up_mbps)

    def usual(self, client: int) -> int:
        """Ticks of both legs without any jitter, and without what is shared; noisy links are counted as they are drawn."""
        down, up = (None if shared and not self.noisy else rates for shared, rates in self._both)
        return self._leg(client, 1.0, down) + self._leg(client, 1.0, up)

    @property
    def _both(self) -> tuple[tuple[bool, Sequence[float] | None], tuple[bool, Sequence[float] | None]]:
        return (self.shared_down, self.down_mbps), (self.shared_up, self.up_mbps)

    def transfers(self, clients: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ticks of the bare transfers of these clients down and up, without latency and where shared; infinite beyond 2^53."""
        down, up = (None if shared else rates for shared, rates in self._both)
        return self._transfers(clients, down), self._transfers(clients, up)

    def usual_transfers(self, clients: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The same, noisy links as they are drawn: how fast a client usually is."""
        down, up = (None if shared and not self.noisy else rates for shared, rates in self._both)
        return self._transfers(clients, down), self._transfers(clients, up)

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

    def sharing(self, *, down: bool, up: bool, noisy: bool = False) -> Links:
        """The same with these directions shared, and those with rates where links are noisy; rates have three digits there."""
        roads_down = down or (noisy and self.down_mbps is not None)
        roads_up = up or (noisy and self.up_mbps is not None)
        return replace(
            self,
            shared_down=roads_down,
            shared_up=roads_up,
            noisy=noisy and not (down or up),
            down_mbps=_on_grid(self.down_mbps) if roads_down else self.down_mbps,
            up_mbps=_on_grid(self.up_mbps) if roads_up else self.up_mbps,
        )


def _on_grid(rates: Sequence[float] | None) -> Sequence[float] | None:
    return None if rates is None else array("d", (bits_a_second(rate) / 1e6 for rate in rates))
