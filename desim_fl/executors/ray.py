"""The process that talks to Ray, between a run and its workers on a cluster. Ray is imported here, and nowhere else.

A process of its own, because a Ray driver changes the one it lives in (signal handlers, hooks, environment, what it
prints) and is ended by Ray when the cluster goes away; and so that two runs in one process have a connection each.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.executors.bridge import Bridge
from desim_fl.executors.worker import told

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from desim_fl.executors.packing import Packed
    from desim_fl.executors.shelf import Lent

# Before Ray is imported: no statistics are sent, and workers see the devices that they would see anyway.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_KNOCK_S = 5.0


class Cluster(NamedTuple):
    """Where the workers are: ``address`` of a cluster, or ``None`` for an instance of this machine's own.

    That one has ``workers`` workers and keeps its files in ``folder``. A worker takes ``cpus`` and ``gpus``;
    ``patience_s`` bounds how long the cluster may give a place to none.
    """

    address: str | None
    workers: int
    cpus: int
    gpus: int
    folder: str | None
    patience_s: float


class Orders(NamedTuple):
    """What the process is told when it is started; ``paths`` and ``placement`` are the workers'."""

    cluster: Cluster
    recipe: tuple[Packed, Lent]
    shelf: Lent | None
    paths: list[str]
    placement: bytes  # a pickled ``Placement``: what it holds may need torch, which is not needed here
    output: Any  # a file, for whatever Ray prints


def main(connection: Connection, orders: Orders) -> None:
    """Connect, and serve the parent until told to end, or until it is gone."""
    os.setsid()  # Ctrl-C at the terminal is the parent's, and not Ray's
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    output = orders.output.detach()
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(_ENVIRONMENT)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    try:
        bridge = _connected(connection, orders, inbox)
        if bridge is not None:
            bridge.serve()
    finally:
        with contextlib.suppress(Exception):
            _ray().shutdown()
        if orders.cluster.folder is not None:
            forget(orders.cluster.folder)


def forget(folder: str) -> None:
    """Remove the files of an instance that has ended."""
    shutil.rmtree(folder, ignore_errors=True)


def _read(connection: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    """Keep the pipe empty, so that neither side ever waits for the other to read; a parent that is gone says ``None``."""
    message: Any = ()
    while message is not None:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            message = None
        inbox.put(message)


def _ray() -> Any:
    import ray  # noqa: PLC0415  (the top-level package: this module is desim_fl.executors.ray)

    return ray


def _connected(connection: Connection, orders: Orders, inbox: queue.SimpleQueue[Any]) -> Bridge | None:
    """Join the cluster or start an instance; tells the parent which, or why not."""
    try:
        _join(_ray(), orders.cluster)
        bridge = Bridge(_ray(), _worker_class(orders.paths), connection, orders, inbox)
        nodes = bridge.nodes()
    except BaseException as error:  # noqa: BLE001  (the parent raises it)
        connection.send((-1, ("refused", told(error)[0])))
        return None
    connection.send((-1, ("connected", sum(int(node["Resources"].get("CPU", 0)) for node in nodes), len(nodes))))
    return bridge


def _join(ray: Any, cluster: Cluster) -> None:
    if cluster.address is not None:
        _knock(cluster.address)
        ray.init(address=cluster.address, log_to_driver=False)
        return
    ray.init(
        address="local",
        num_cpus=cluster.workers * cluster.cpus,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=cluster.folder,
    )


def _knock(address: str) -> None:
    """Raise ``OSError`` at once where nobody listens; Ray would try for long, and end this process."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if port:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def _worker_class(paths: list[str]) -> type:
    """Make the actor's class. Ray sends a class of a function by value, so it starts where desim-fl is not found yet."""

    class Worker:
        """A seat, once it is told to be one."""

        def where(self) -> tuple[str, str]:
            """The node's address and id."""
            import ray  # noqa: PLC0415

            context = ray.get_runtime_context()
            return ray.util.get_node_ip_address(), context.get_node_id()

        def prepare(self, placement: Any, recipe: Any) -> tuple[Any, ...]:
            """Rebuild the task: where, and ``"ready"``, ``"mixed", differences`` or ``"broken", text, traceback``."""
            import traceback  # noqa: PLC0415

            place = self.where()
            try:
                import os  # noqa: PLC0415
                import sys  # noqa: PLC0415

                there = [path for path in paths if os.path.isdir(path)]  # noqa: PTH112
                sys.path[:] = [*there, *(path for path in sys.path if path not in there)]
                from desim_fl.executors.fingerprint import Mixed  # noqa: PLC0415
                from desim_fl.executors.seat import seated  # noqa: PLC0415

                try:
                    self._seat = seated(placement, recipe)
                except Mixed as error:
                    return *place, "mixed", str(error)
            except BaseException as error:  # noqa: BLE001  (the parent raises it)
                return *place, "broken", f"{type(error).__name__}: {error}", traceback.format_exc()
            return *place, "ready"

        def work(self, model: Any, subject: Any, steps: int) -> tuple[Any, ...]:
            """See ``Seat.work``."""
            return self._seat.work(model, subject, steps)

    return Worker
