"""The pool's processes: started, listened to, replaced and ended here; what they work at is the pool's business.

``Crew`` is that of one machine; :mod:`desim_fl.executors.cluster` has another, whose workers are on a Ray cluster.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import selectors
import signal
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from desim_fl.errors import RunError
from desim_fl.executors import ambient, worker
from desim_fl.executors.shelf import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from desim_fl.executors.shelf import Shelf
    from desim_fl.learning.task import Task

_PATIENCE_S = 3.0
_FALSE_STARTS = 3  # in a row: one or two may be killed from outside while they start


@dataclass(slots=True, eq=False)
class Hand:
    """A worker as the parent sees it; ``tickets`` are what it has to do, in order, ``models`` the versions it knows."""

    number: int
    process: Any
    pipe: Any
    where: str = ""  # the node it is on, where there are several
    ready: bool = False
    tickets: dict[int, Any] = field(default_factory=dict)
    models: set[Any] = field(default_factory=set)
    unsent: list[Any] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What errors call it."""
        return f"worker {self.number}{self.where}"

    def tell(self, *messages: Any) -> None:
        """Send messages, and before them those put off until now: each time wakes the worker, which costs most."""
        bundle, self.unsent = [*self.unsent, *messages], []
        with contextlib.suppress(OSError):  # that it is gone is noticed, and mended, where its answers are taken in
            self.pipe.send(bundle)


class Heard(NamedTuple):
    """What a worker said, and whether it has ended."""

    hand: Hand
    messages: list[Any]
    ended: bool


class Fate(NamedTuple):
    """What became of a worker; ``blamed``: whether that may be the fault of the job that it was at."""

    why: str
    blamed: bool = True


class Workers(Protocol):
    """Who does what the pool hands out: processes of this machine, or of a cluster."""

    hands: list[Hand]

    def wait(self, timeout: float | None) -> list[Heard]:
        """Listen to all; wait for the first word if ``timeout`` is ``None``."""
        ...

    def started(self, hand: Hand) -> None:
        """Take note that a worker is ready."""
        ...

    def replace(self, hand: Hand) -> Fate:
        """Get another worker for one that ended."""
        ...

    def close(self, *, at_once: bool = False) -> None:
        """End all workers."""
        ...


class Crew:
    """``count`` spawned processes that serve one task. They end with this process, however it ends."""

    def __init__(self, task: Task, count: int, shelf: Shelf | None) -> None:
        self._recipe, self._shelf = Recipe(task), shelf
        self._context = multiprocessing.get_context("spawn")
        self._selector = selectors.DefaultSelector()
        self._false_starts = 0
        self.hands: list[Hand] = []
        self._numbers = itertools.count()
        try:
            for _ in range(count):
                self.hands.append(self._hired(next(self._numbers)))
        except BaseException:
            self.close(at_once=True)
            raise

    def _hired(self, number: int) -> Hand:
        mine, theirs = self._context.Pipe()
        orders = worker.Orders(
            self._recipe.lend(), None if self._shelf is None else self._shelf.lend(), ambient.captured()
        )
        process = self._context.Process(
            target=worker.main, args=(theirs, orders), name=f"desim-fl worker {number}", daemon=True
        )
        with undisturbed():
            process.start()
        theirs.close()
        hand = Hand(number, process, mine)
        self._selector.register(mine, selectors.EVENT_READ, hand)
        self._selector.register(process.sentinel, selectors.EVENT_READ, hand)
        return hand

    def wait(self, timeout: float | None) -> list[Heard]:
        """Return who has something to say or has ended, waiting for the first if ``timeout`` is ``None``."""
        speaking: dict[int, tuple[Hand, bool]] = {}
        for key, _ in self._selector.select(timeout):
            hand: Hand = key.data
            ended = key.fd == hand.process.sentinel
            speaking[hand.number] = (hand, ended or speaking.get(hand.number, (hand, False))[1])
        return [self._said(hand, ended=ended) for hand, ended in speaking.values()]

    def _said(self, hand: Hand, *, ended: bool) -> Heard:
        """Read a worker's next message, or all up to the last word of one that ended."""
        messages = []
        try:
            messages.append(hand.pipe.recv())
            while ended and hand.pipe.poll():
                messages.append(hand.pipe.recv())
        except (EOFError, OSError):
            ended = True
        return Heard(hand, messages, ended)

    def started(self, hand: Hand) -> None:
        """Take note that a worker is ready."""
        hand.ready, self._false_starts = True, 0

    def replace(self, hand: Hand) -> Fate:
        """Hire another worker for one that ended; returns what became of it.

        Raises ``RunError`` where workers end before they are ready, again and again.
        """
        place = self.hands.index(hand)
        del self.hands[place]  # first, so that closing has to do with living ones only
        fate = self._buried(hand)
        if not hand.ready:
            self._false_starts += 1
            if self._false_starts >= _FALSE_STARTS:
                raise RunError(
                    f"workers of the pool end while starting ({fate}); a script that starts runs must do so under "
                    'if __name__ == "__main__":, or executor.name = "inline" would do without workers'
                )
        self.hands.insert(place, self._hired(next(self._numbers)))
        return Fate(fate)

    def _buried(self, hand: Hand) -> str:
        """Forget a worker that ended, or that closed its pipe and is made to end."""
        self._selector.unregister(hand.pipe)
        self._selector.unregister(hand.process.sentinel)
        hand.process.join(_PATIENCE_S)
        if hand.process.is_alive():
            hand.process.kill()
            hand.process.join()
        code = hand.process.exitcode
        hand.pipe.close()
        hand.process.close()
        if code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"

    def close(self, *, at_once: bool = False) -> None:
        """End all workers, those that are busy (with ``at_once`` all) in the middle of what they do."""
        for hand in self.hands:
            if at_once or hand.tickets or not hand.ready:
                hand.process.kill()
            else:
                hand.tell(None)
        for hand in self.hands:
            self._buried(hand)
        self.hands = []
        self._selector.close()
        self._recipe.close()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep Ctrl-C from a process that is being started until it can ignore it; this one hears it a little later."""
    resource_tracker.ensure_running()  # multiprocessing's own helper; on its way up it would unblock the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
