"""Any method that publishes a delta, with an optimiser of the server in place of its plain addition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.core import Reply, Strategy
from desim_fl.strategies.schedules import Constant, Schedule

if TYPE_CHECKING:
    from desim_fl.core import Loss, Update, View
    from desim_fl.strategies.optimizers import Moments, ServerOptimizer


class Stepped(NamedTuple):
    """The method's own state, and the optimiser's moments."""

    inner: Any
    moments: Moments


@dataclass(frozen=True, slots=True)
class Optimized:
    """Lets ``inner`` work out each version, and moves there its own way.

    What ``inner`` would publish minus the version in force is the pseudo-gradient Delta of
    :mod:`desim_fl.strategies.optimizers`; ``optimizer`` makes the step of it, with its rate times ``schedule`` of the
    version in force. A version without members (``Reply.shares == ()``: an empty round, none finite) is published
    unchanged and is no step: moments and step count stay, although Adam would move on along m for a Delta of 0.
    """

    inner: Strategy
    optimizer: ServerOptimizer
    schedule: Schedule = Constant()  # noqa: RUF009  (immutable)

    @property
    def reads_outcomes(self) -> bool:
        """Whether the method's decisions depend on trained values."""
        return self.inner.reads_outcomes

    @property
    def max_staleness(self) -> int | None:
        """The method's own bound."""
        return self.inner.max_staleness

    def start(self, view: View) -> tuple[Stepped, Reply]:
        """Begin as the method does."""
        return self._stepped(self.inner.start(view), self.optimizer.start(), view)

    def arrive(self, state: Stepped, view: View, update: Update) -> tuple[Stepped, Reply]:
        """Let the method have the update."""
        return self._stepped(self.inner.arrive(state.inner, view, update), state.moments, view)

    def lose(self, state: Stepped, view: View, loss: Loss) -> tuple[Stepped, Reply]:
        """Let the method know."""
        return self._stepped(self.inner.lose(state.inner, view, loss), state.moments, view)

    def alarm(self, state: Stepped, view: View, name: str) -> tuple[Stepped, Reply]:
        """Let the method hear."""
        return self._stepped(self.inner.alarm(state.inner, view, name), state.moments, view)

    def finish(self, state: Stepped, view: View) -> Reply:
        """Ask the method, if it has an answer, what to publish at the stop."""
        method: Any = self.inner
        if not hasattr(method, "finish"):
            return Reply()
        return self._stepped((state.inner, method.finish(state.inner, view)), state.moments, view)[1]

    def _stepped(self, answer: tuple[Any, Reply], moments: Moments, view: View) -> tuple[Stepped, Reply]:
        inner, reply = answer
        if reply.params is None or reply.shares == ():
            return Stepped(inner, moments), reply
        delta, factor = reply.params - view.params, self.schedule(view.version)
        moments, params = self.optimizer.step(moments, view.params, delta, factor=factor)
        return Stepped(inner, moments), reply._replace(params=params)
