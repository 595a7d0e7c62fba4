"""How long each client's jobs have taken so far, from dispatch to arrival, for a rate that depends on it.

ASO-Fed's dynamic step (Chen et al., IEEE BigData 2020): a client's rate is multiplied with ``max(1, log d)``, d being the mean delay of
its earlier jobs in virtual seconds, so that whoever comes seldom goes further. Everything here follows from the timeline,
so that a run that is resumed knows it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from desim_fl import elementary
from desim_fl.core import TICKS_PER_SECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from desim_fl.core import Job, Outcome, Work

_SPARE = 64  # jobs remembered beyond those in flight before those that never arrived are forgotten


def logarithmic(mean_s: float) -> float:
    """``max(1, log d)`` of a mean delay d in seconds: 1 up to e, 2.3 at 10 s, 4.6 at 100 s."""
    return max(1.0, float(elementary.log(mean_s))) if mean_s > 1.0 else 1.0


class Delays:
    """Mean delays by client, of all jobs that arrived (those that were turned away too), and the rates that follow."""

    def __init__(self, factor: Callable[[float], float], flights: Collection[int]) -> None:
        self._factor, self._flights = factor, flights
        self._left: dict[int, int] = {}  # by job: the tick of its dispatch
        self._past: dict[int, tuple[int, int]] = {}  # by client: ticks of its delays, and how many they are

    def mean_s(self, client: int) -> float | None:
        """Mean delay of a client's jobs in seconds; ``None`` before the first has arrived."""
        ticks, count = self._past.get(client, (0, 0))
        return ticks / count / TICKS_PER_SECOND if count else None

    def paced(self, work: Work, client: int, job: int, now: int) -> Work:
        """Note a dispatch, and return its work at the client's rate."""
        if len(self._left) > 2 * len(self._flights) + _SPARE:
            self._left = {number: left for number, left in self._left.items() if number in self._flights}
        self._left[job] = now
        mean_s = self.mean_s(client)
        if mean_s is None or work.lr is None:
            return work
        return work._replace(lr=work.lr * self._factor(mean_s))

    def collecting(
        self, collect: Callable[[Job, int], Outcome], now: Callable[[], int]
    ) -> Callable[[Job, int], Outcome]:
        """Return a ``collect`` that also notes the arrival: it is called once for each, as it comes in."""

        def noted(job: Job, steps: int) -> Outcome:
            left = self._left.pop(job.id, None)
            if left is not None:  # of a job that was long given up, nobody knows any more when it left
                ticks, count = self._past.get(job.client, (0, 0))
                self._past[job.client] = ticks + now() - left, count + 1
            return collect(job, steps)

        return noted
