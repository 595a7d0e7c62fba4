"""The other end of the pool: a process that trains what it is sent, and says what came of it.

Messages to a worker, in lists: ``("train", ticket, model key, place, job, steps)``, ``("score", ticket, model key, place, version,
0)``, ``("model", key, place, parcel)`` before the first use of a version, ``("drop", key)`` after its last, ``None`` to
end. Back: ``("ready", -1, None, 0.0)`` or ``("broken", -1, text, traceback)`` once, then ``("done", ticket, parcel,
seconds)`` or ``("failed", ticket, text, traceback)`` for each ticket. Places are those of the shelf, if there is one.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from time import perf_counter  # provenance only: real seconds never enter virtual time
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.core import Job, Model
from desim_fl.executors import ambient, inline
from desim_fl.executors.packing import Packed, lean, packed, unpacked
from desim_fl.executors.shelf import Lent, Shelf, rebuilt

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from desim_fl.learning.task import Task

_ORPHANED = 3  # exit code


class Orders(NamedTuple):
    """What a worker is told when it is started."""

    recipe: tuple[Packed, Lent]
    shelf: Lent | None
    settings: dict[str, Any]


def main(connection: Connection, orders: Orders) -> None:
    """Rebuild the task from its recipe; work until told to end, or until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sys.stdout = sys.stderr  # whatever a user's model prints must not mix with --json
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    try:
        ambient.applied(orders.settings)
        task = rebuilt(*orders.recipe)
    except BaseException as error:  # noqa: BLE001  (the parent raises it)
        connection.send(("broken", -1, *told(error)))
        return
    shelf = None if orders.shelf is None else Shelf.borrowed(orders.shelf)
    desk = Desk(task, shelf)
    connection.send(("ready", -1, None, 0.0))
    while (message := inbox.get()) is not None:
        answer = desk.handle(message)
        if answer is not None:
            connection.send(answer)


def _read(connection: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    """Keep the pipe empty, so that neither side ever waits for the other to read; without a parent, end at once."""
    try:
        while True:
            for message in connection.recv():
                inbox.put(message)
                if message is None:
                    return
    except (EOFError, OSError):
        os._exit(_ORPHANED)


def told(error: BaseException) -> tuple[str, str]:
    """An error in one line, and its traceback."""
    return inline.told(error), "".join(traceback.format_exception(error))


def performed(task: Task, model: tuple[Any, Any], subject: Any, steps: int) -> tuple[Any, float]:
    """Train the job ``subject``, or score the version of that number; the result and its real seconds."""
    params, buffers = model
    begin = perf_counter()
    if not isinstance(subject, Job):
        return tuple(task.evaluate(Model(subject, params, buffers))), perf_counter() - begin
    job = subject._replace(params=params, buffers=buffers)
    outcome = task.train(job, steps)
    return lean(outcome, job), perf_counter() - begin


class Desk:
    """What a worker has at hand: the task, and the versions that it was sent."""

    def __init__(self, task: Task, shelf: Shelf | None) -> None:
        self.task, self.shelf = task, shelf
        self.models: dict[Any, tuple[int | None, Packed]] = {}

    def handle(self, message: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Do what a message says; returns the answer to it, if there is one."""
        kind, *rest = message
        if kind == "model":
            key, place, parcel = rest
            self.models[key] = (place, parcel)
        elif kind == "drop":
            self.models.pop(rest[0], None)
        else:
            return self._answer(kind, *rest)
        return None

    def _answer(self, kind: str, ticket: int, key: Any, place: int | None, subject: Any, steps: int) -> tuple[Any, ...]:
        try:
            model = unpacked(self.models[key][1], self._room(self.models[key][0]), copy=False)
            subject = subject if kind == "score" else unpacked(subject, self._room(place))
            result, seconds = performed(self.task, model, subject, steps)
            return "done", ticket, packed(result, self._room(place)), seconds
        except BaseException as error:  # noqa: BLE001  (the parent raises it, with the job's name)
            return "failed", ticket, *told(error)

    def _room(self, place: int | None) -> memoryview | None:
        return None if place is None or self.shelf is None else self.shelf.room(place)
