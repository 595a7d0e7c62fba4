"""What the timeline reads of training: the one way by which trained values come to bear on virtual time.

Whoever lets a trained value decide who is sent out, when a job ends or when a run stops (a selector that reads
outcomes, early stopping, ...) passes it through ``Readings.read`` and acts on what that returns. A strategy that
``reads_outcomes`` sees whole updates; there it is the strategy's replies that pass, through ``Decisions``. Both keep
what passes, so that a run that goes on from a checkpoint can play its timeline again without training anything: what
was kept is told again, in the same order, until it is used up.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

from desim_fl.algebra import Null
from desim_fl.consultation import Consultation
from desim_fl.core import Model, Reply
from desim_fl.errors import CheckpointError

if TYPE_CHECKING:
    from desim_fl.core import Loss, Send, Strategy, Update, View


OTHER_RUN = "the checkpoint belongs to another run, or to another version of what plays it"


class Replay:
    """Where a record that is told again is at."""

    __slots__ = ("_next", "_to_tell")

    def __init__(self, to_tell: int | None = None) -> None:
        self._next, self._to_tell = 0, to_tell

    def place(self) -> int | None:
        """Number of the entry to tell now; ``None`` = nothing is told again. Raises ``CheckpointError`` beyond the last."""
        if self._to_tell is None:
            return None
        if self._next >= self._to_tell:
            raise CheckpointError(f"the timeline reads more of training than is kept; {OTHER_RUN}")
        self._next += 1
        return self._next - 1

    def end(self) -> None:
        """Go on with new entries; raises ``CheckpointError`` if some were not told again."""
        if self._to_tell not in {None, self._next}:
            raise CheckpointError(f"the timeline reads less of training than is kept; {OTHER_RUN}")
        self._to_tell = None


class Read(NamedTuple):
    """Values in the order in which they were read: eight bytes each, and one that says whether there was a value."""

    values: bytes = b""
    known: bytes = b""


class Readings:
    """Keeps each value that the timeline reads; those that were kept before are told again first."""

    __slots__ = ("_known", "_values", "replay")

    def __init__(self) -> None:
        self._values, self._known, self.replay = array("d"), bytearray(), Replay()

    def read(self, value: float | None) -> float | None:
        """Keep a value and return it; while a timeline is played again, return what was read here before."""
        place = self.replay.place()
        if place is not None:
            return self._values[place] if self._known[place] else None
        self._values.append(0.0 if value is None else value)
        self._known.append(value is not None)
        return value

    def kept(self) -> Read:
        """Return all values so far."""
        return Read(self._values.tobytes(), bytes(self._known))

    def tell_again(self, read: Read) -> None:
        """Begin anew with these values, until ``replay.end``."""
        self._values, self._known = array("d", read.values), bytearray(read.known)
        self.replay = Replay(len(self._known))


class Decided(NamedTuple):
    """Replies without trained values: the distinct ones, and which came when (four bytes each)."""

    kinds: tuple[Reply, ...] = ()
    order: bytes = b""


class Decisions(Consultation):
    """A consultation that keeps what the strategy asked for, and tells it again without asking the strategy."""

    __slots__ = ("_kinds", "_numbers", "_order", "replay")

    def __init__(self, strategy: Strategy, view: View) -> None:
        super().__init__(strategy, view)
        self._kinds: list[Reply] = []
        self._numbers: dict[Reply, int] = {}
        self._order, self.replay = array("I"), Replay()

    def start(self) -> Reply:
        """Ask for the first state, and whom to send out."""
        return self._told() or self._kept(super().start())

    def arrive(self, update: Update) -> Reply:
        """Hand an update over."""
        return self._told() or self._kept(super().arrive(update))

    def lose(self, loss: Loss) -> Reply:
        """Tell of a job that will not count."""
        return self._told() or self._kept(super().lose(loss))

    def alarm(self, name: str) -> Reply:
        """Tell of an alarm that rings."""
        return self._told() or self._kept(super().alarm(name))

    def _told(self) -> Reply | None:
        """Return the reply that was kept at this event, if the timeline is played again; ``None`` = ask."""
        place = self.replay.place()
        if place is None:
            return None
        self.usual = False
        return self._kinds[self._order[place]]

    def _kept(self, reply: Reply) -> Reply:
        kind = untrained(reply)
        number = self._numbers.setdefault(kind, len(self._kinds))
        if number == len(self._kinds):
            self._kinds.append(kind)
        self._order.append(number)
        return reply

    def kept(self) -> Decided:
        """Return all replies so far."""
        return Decided(tuple(self._kinds), self._order.tobytes())

    def tell_again(self, decided: Decided) -> None:
        """Begin anew with these replies, until ``replay.end``."""
        self._kinds = list(decided.kinds)
        self._numbers = {reply: number for number, reply in enumerate(decided.kinds)}
        self._order = array("I", decided.order)
        self.replay = Replay(len(self._order))


def untrained(reply: Reply) -> Reply:
    """What of a reply the timeline follows; ``Null`` stands for trained values, and for what is held elsewhere."""
    return Reply(
        params=None if reply.params is None else Null,
        sends=None if reply.sends is None else tuple(map(_untrained_send, reply.sends)),
        stops=reply.stops,
        alarms=reply.alarms,
        reject=reply.reject,
        abandon=reply.abandon,
    )


def _untrained_send(send: Send) -> Send:
    start = None if send.start is None else Model(send.start.version, Null)
    return send._replace(extra=None if send.extra is None else Null, start=start)
