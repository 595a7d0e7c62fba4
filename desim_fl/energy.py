"""What the clients' time costs: energy by what a device does, and money by time and traffic.

A device receives in the download leg, computes in the compute leg, sends in the upload leg, and is idle at all other times
of the run, the wait before computing included. Energy is power times these times, client by client; nothing is estimated.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

POWERS = ("watts_receive", "watts_compute", "watts_send", "watts_idle")
PRICES = ("price_per_hour", "price_per_gb")
USES = ("receive", "compute", "send", "idle")
_HOUR, _GB = 3600.0, 1e9


class Bill(NamedTuple):
    """Joules by use and money by kind, one number a client each; empty where nothing was stated."""

    energy_j: dict[str, NDArray[np.float64]]
    cost: dict[str, NDArray[np.float64]]

    @property
    def columns(self) -> dict[str, Any]:
        """Return totals by client; ``None`` where nothing was stated."""
        parts = {"energy_j": self.energy_j, "cost": self.cost}
        return {name: sum(each.values()) if each else None for name, each in parts.items()}

    def summary(self) -> dict[str, dict[str, float] | None]:
        """Return totals over all clients; ``None`` where nothing was stated."""
        return {name: _totals(each) for name, each in (("energy_j", self.energy_j), ("cost", self.cost))}


def _totals(parts: Mapping[str, NDArray[np.float64]]) -> dict[str, float] | None:
    if not parts:
        return None
    totals = {name: math.fsum(values.tolist()) for name, values in parts.items()}
    return {**totals, "total": math.fsum(totals.values())}


class Tariff(NamedTuple):
    """Watts and prices by class of devices (one entry where there are none); ``None`` = nobody states it."""

    rates: Mapping[str, Sequence[float] | None]
    classes: NDArray[np.int16] | None = None

    def of(self, totals: Mapping[str, NDArray[np.int64]], ticks: int) -> Bill:
        """Charge all clients for what :class:`~desim_fl.usage.Usage` has counted of a run that lasted ``ticks``."""
        return self.bill(totals, totals["bytes_down"] + totals["bytes_up"], ticks)

    def bill(self, legs: Mapping[str, NDArray[np.int64]], bytes_moved: NDArray[np.int64], ticks: int) -> Bill:
        """Charge the ticks that each client spent in each leg of a run that lasted ``ticks``, and the bytes it moved."""
        busy = legs["download"] + legs["wait"] + legs["compute"] + legs["upload"]
        idle = ticks - busy + legs["wait"]
        times = dict(zip(POWERS, (legs["download"], legs["compute"], legs["upload"], idle), strict=True))
        energy = {use: self._each(key) * times[key] / 1e6 for use, key in zip(USES, POWERS, strict=True)}
        hours, gigabytes = busy / 1e6 / _HOUR, bytes_moved / _GB
        cost = {"time": self._each("price_per_hour") * hours, "traffic": self._each("price_per_gb") * gigabytes}
        return Bill(energy if self._states(POWERS) else {}, cost if self._states(PRICES) else {})

    def _states(self, keys: Sequence[str]) -> bool:
        return any(self.rates[key] is not None for key in keys)

    def _each(self, key: str) -> Any:
        """Rate of each client; 0 where nobody states it."""
        rates = self.rates[key]
        if rates is None:
            return 0.0
        return rates[0] if self.classes is None else np.array(rates)[self.classes]


NOTHING = Tariff(dict.fromkeys((*POWERS, *PRICES)))
