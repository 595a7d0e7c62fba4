"""What several methods share: a buffer of parts that are summed up, and sending a client out again."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from desim_fl.core import Send

if TYPE_CHECKING:
    from desim_fl.core import Loss, Params, View

NO_SAMPLES = "no examples"  # why the engine turns the update of a client without samples away


class Buffer(NamedTuple):
    """Parts since the last version: how many arrived, how many of them are finite, and the sum of those.

    ``total`` is ``None`` while no finite part is in.
    """

    filled: int = 0
    finite: int = 0
    total: Params = None

    def plus(self, part: Params, *, finite: bool) -> Buffer:
        """Take a part in; one that is not finite keeps its place and adds nothing."""
        if not finite:
            return self._replace(filled=self.filled + 1)
        total = part if self.total is None else self.total + part
        return Buffer(self.filled + 1, self.finite + 1, total)


def learners(view: View) -> int:
    """Return how many clients have samples: the N of methods with a memory of every client."""
    return sum(1 for size in view.sizes if size)


def everybody(view: View) -> tuple[Send, ...]:
    """Send to every client that has samples."""
    return (Send(clients=tuple(client for client, size in enumerate(view.sizes) if size)),)


def back_to(client: int) -> tuple[Send, ...]:
    """Hand the model in force to this client."""
    return (Send(clients=(client,)),)


def again(view: View, loss: Loss) -> tuple[Send, ...]:
    """Hand the model in force to a client whose job does not count.

    One that has nothing to learn from gives its place up: to another client, if there is one with samples that is idle.
    """
    if loss.why != NO_SAMPLES:
        return back_to(loss.job.client)
    busy = frozenset(out.client for out in view.flying.values())
    return (Send(),) if any(size and client not in busy for client, size in enumerate(view.sizes)) else ()
