"""The other end of the pool: a process that trains what it is sent, and says what came of it.

Messages to a worker: ``("train", ticket, model key, job, steps)``, ``("score", ticket, model key, version)``,
``("model", key, params, buffers)`` before the first use of a version, ``("drop", key)`` after its last, ``None`` to
end. Back: ``("ready", None, None, 0.0)`` or ``("broken", None, text, traceback)`` once, then ``("done", ticket, result,
seconds)`` or ``("failed", ticket, text, traceback)`` for each ticket.
"""

from __future__ import annotations

import pickle
import queue
import signal
import sys
import threading
import traceback
from time import perf_counter  # provenance only: real seconds never enter virtual time
from typing import TYPE_CHECKING, Any

from desim_fl.core import Model
from desim_fl.executors.parcels import packed, unpacked

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from desim_fl.learning.task import Task


def main(connection: Connection, recipe: bytes) -> None:
    """Rebuild the task from its pickled recipe; work until told to end, or until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    sys.stdout = sys.stderr  # whatever a user's model prints must not mix with --json
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    models: dict[tuple[int, int], tuple[Any, Any]] = {}
    try:
        task = _rebuilt(connection, recipe)
        if task is None:
            return
        connection.send(("ready", None, None, 0.0))
        while (message := inbox.get()) is not None:
            _handle(message, task, models, connection)
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody is listening any more


def _rebuilt(connection: Connection, recipe: bytes) -> Task | None:
    """Unpickle the task; where that fails the parent is told why, and there is none."""
    try:
        return pickle.loads(recipe)  # noqa: S301  (it comes from the parent, through a pipe of its own)
    except BaseException as error:  # noqa: BLE001  (the parent raises it)
        connection.send(("broken", None, f"{type(error).__name__}: {error}", traceback.format_exc()))
        return None


def _read(connection: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    """Keep the pipe empty, so that neither side ever waits for the other to read."""
    try:
        while True:
            inbox.put(unpacked(connection.recv()))
    except (EOFError, OSError):
        inbox.put(None)


def _handle(message: Any, task: Task, models: dict[tuple[int, int], tuple[Any, Any]], connection: Connection) -> None:
    kind, key = message[0], message[1]
    if kind == "model":
        models[key] = (message[2], message[3])
    elif kind == "drop":
        models.pop(key, None)
    else:
        _, ticket, key, subject, steps = message
        begin = perf_counter()
        try:
            result = _result(kind, task, models[key], subject, steps)
        except BaseException as error:  # noqa: BLE001  (the parent raises it with the job's name)
            text = f"{type(error).__name__}: {error}"
            connection.send(("failed", ticket, text, traceback.format_exc()))
        else:
            connection.send(("done", ticket, packed(result), perf_counter() - begin))


def _result(kind: str, task: Task, model: tuple[Any, Any], subject: Any, steps: int) -> Any:
    params, buffers = model
    if kind == "train":
        return task.train(subject._replace(params=params, buffers=buffers), steps)
    return tuple(task.evaluate(Model(subject, params, buffers)))
