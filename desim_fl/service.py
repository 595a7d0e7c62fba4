"""Laws of the server's side: when an open system sends jobs out, and how long the server is busy with what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from desim_fl import draws, elementary
from desim_fl.draws import Purpose
from desim_fl.ticks import scaled, to_ticks

if TYPE_CHECKING:
    from desim_fl.durations import Law


class OpenLaw(NamedTuple):
    """Jobs leave at ``rate`` a second: ``constant`` = one every 1 / rate seconds, or as a ``poisson`` process."""

    kind: str
    rate: float
    seed: int
    delay_scale: float = 1.0

    def gap(self, number: int) -> int:
        """Ticks between arrival ``number`` and the one before, or the start of the run; equal steps do not drift."""
        if self.kind == "constant":
            ticks = to_ticks((number + 1) / self.rate) - to_ticks(number / self.rate)
        else:
            u = draws.uniform(draws.word(self.seed, Purpose.OPEN_ARRIVAL, 0, number, 0))
            ticks = to_ticks(-elementary.log(1.0 - u) / self.rate)
        return scaled(ticks, self.delay_scale)


class ServiceLaw(NamedTuple):
    """How the server takes updates in.

    It is busy for ``aggregation_s`` with up to ``batch`` updates at a time; others wait, at most ``queue`` of them (``None``
    = any number). ``evaluation_ticks`` are those of an evaluation, which ``blocks`` the server or not.
    """

    aggregation_s: Law | None = None
    queue: int | None = None
    batch: int = 1
    evaluation_ticks: int = 0
    blocks: bool = False
    seed: int = 0
    delay_scale: float = 1.0

    def ticks(self, number: int) -> int:
        """Ticks of the server's service with this number."""
        if self.aggregation_s is None:
            return 0
        u = draws.uniform(draws.word(self.seed, Purpose.SERVER, 0, number, 0))
        return scaled(to_ticks(self.aggregation_s.at(u)), self.delay_scale)
