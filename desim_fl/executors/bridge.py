"""Between a run and its workers on a Ray cluster: what the run says becomes calls of Ray's, and their answers go back.

Messages from the parent: ``(worker, messages)`` with those of :mod:`desim_fl.executors.worker`, and ``("hire",)``
before them; ``None`` to end. To the parent: ``(-1, ("connected", cpus, nodes))`` or ``(-1, ("refused", text))`` once,
``(-1, ("starved", text))``, and ``(worker, message)`` with a worker's own, besides ``("ready", where)``, ``("mixed",
where, differences)`` and, as its last, ``("ended", why, blamed)``.
"""

from __future__ import annotations

import contextlib
import queue
from dataclasses import dataclass, field
from time import monotonic  # says when to give up waiting for the cluster, and nothing that the run computes
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.executors.packing import Packed, needed, spans
from desim_fl.executors.seat import Parcel, parcel
from desim_fl.executors.shelf import Shelf, mapped

if TYPE_CHECKING:
    from concurrent.futures import Future
    from multiprocessing.connection import Connection

    from desim_fl.executors.ray import Orders


@dataclass(slots=True, eq=False)
class Place:
    """A worker on the cluster; ``tickets`` are what it was given, with their places in the shelf."""

    actor: Any
    placed: bool = False
    node: str = ""
    tickets: dict[int, int | None] = field(default_factory=dict)


@dataclass(slots=True)
class Version:
    """A model in the object store, and the workers that may still ask for it."""

    stored: Any
    holders: dict[int, None] = field(default_factory=dict)


class Bridge:
    """Passes messages between the parent and Ray's actors; one loop, fed by a reader thread and by Ray's futures."""

    def __init__(
        self, ray: Any, worker: type, connection: Connection, orders: Orders, inbox: queue.SimpleQueue[Any]
    ) -> None:
        self._ray, self._connection, self._orders, self._inbox = ray, connection, orders, inbox
        self._shelf = None if orders.shelf is None else Shelf.borrowed(orders.shelf)
        packed, lent = orders.recipe
        self._recipe = ray.put(parcel(packed, mapped(lent)))
        self._worker = ray.remote(worker)
        self._places: dict[int, Place] = {}
        self._versions: dict[Any, Version] = {}
        self._since = monotonic()  # when last a worker had a place on the cluster

    def nodes(self) -> list[dict[str, Any]]:
        """Living nodes of the cluster."""
        return [node for node in self._ray.nodes() if node["Alive"]]

    def serve(self) -> None:
        """Work until the parent says ``None``."""
        while True:
            try:
                message = self._inbox.get(timeout=1.0)
            except queue.Empty:
                self._watch()
                continue
            if message is None:
                return
            if isinstance(message, _Answer):
                self._hear(message)
            else:
                for order in message[1]:
                    self._obey(message[0], *order)
            self._watch()

    def _say(self, number: int, *message: Any) -> None:
        with contextlib.suppress(OSError):  # a parent that is gone is noticed by the reader
            self._connection.send((number, message))

    # ---- from the parent

    def _obey(self, number: int, kind: str, *rest: Any) -> None:
        """Do what the parent says to a worker; what it says to one that has ended is void."""
        if kind == "hire":
            self._hire(number)
        elif number not in self._places:
            return
        elif kind == "model":
            key, place, packed = rest
            if key not in self._versions:
                self._versions[key] = Version(self._ray.put(parcel(packed, self._room(place))))
            self._versions[key].holders[number] = None
        elif kind == "drop":
            self._forget(number, rest[0])
        else:
            self._start(number, *rest)

    def _forget(self, number: int, key: Any) -> None:
        """A worker needs a version no more; the last one's word frees it on every node."""
        version = self._versions[key]
        version.holders.pop(number, None)
        if not version.holders:
            del self._versions[key]

    def _hire(self, number: int) -> None:
        cluster = self._orders.cluster
        actor = self._worker.options(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_restarts=0).remote()
        self._places[number] = Place(actor)
        self._await(number, "where", actor.where.remote())
        self._await(number, "prepare", actor.prepare.remote(self._orders.placement, self._recipe))

    def _start(self, number: int, ticket: int, key: Any, place: int | None, subject: Any, steps: int) -> None:
        seat = self._places[number]
        seat.tickets[ticket] = place
        todo = subject if isinstance(subject, int) else parcel(subject, self._room(place))
        self._await(number, ticket, seat.actor.work.remote(self._versions[key].stored, todo, steps))

    def _await(self, number: int, what: int | str, call: Any) -> None:
        call.future().add_done_callback(lambda future: self._inbox.put(_Answer(number, what, future)))

    # ---- from Ray

    def _hear(self, answer: _Answer) -> None:
        """Pass on what a worker answers; an error of Ray's own means that it is lost."""
        number, what, future = answer
        seat = self._places.get(number)
        if seat is None:
            return
        error = future.exception()
        if error is not None:
            self._lost(number, seat, error)
        elif what == "where":
            seat.placed, (_, seat.node) = True, future.result()
        elif what == "prepare":
            address, node, kind, *rest = future.result()
            self._say(number, kind, f" at {address} (node {node[:8]})", *rest)
        else:
            place = seat.tickets.pop(int(what))
            kind, *rest = future.result()
            self._say(number, kind, int(what), *(self._returned(place, *rest) if kind == "done" else rest))

    def _returned(self, place: int | None, outcome: Parcel, seconds: float) -> tuple[Packed, float]:
        """Put an outcome on the parent's shelf, or where it does not fit, take it along."""
        head, sizes, content = outcome
        if content is None:
            return Packed(head), seconds
        room = self._room(place)
        if room is not None and needed(sizes) <= len(room):
            room[: needed(sizes)] = content.data
            return Packed(head, sizes), seconds
        return Packed(head, sizes, tuple(bytes(span) for span in spans(content.data, sizes))), seconds

    def _lost(self, number: int, seat: Place, error: BaseException) -> None:
        """Say that a worker has ended, or cannot be reached, which is made the same."""
        del self._places[number]
        for key in list(self._versions):
            self._forget(number, key)
        with contextlib.suppress(Exception):
            self._ray.kill(seat.actor)
        self._say(number, "ended", _reason(error), not self._node_is_gone(seat, error))

    def _node_is_gone(self, seat: Place, error: BaseException) -> bool:
        """Whether the worker went down with its node, so that no job is to blame."""
        if "node has died" in str(error):
            return True
        return bool(seat.node) and all(node["NodeID"] != seat.node for node in self.nodes())

    def _watch(self) -> None:
        """Tell the parent where the cluster has had no place for any worker for too long."""
        if not self._places or any(seat.placed for seat in self._places.values()):
            self._since = monotonic()
        elif monotonic() - self._since > self._orders.cluster.patience_s:
            self._since = monotonic()
            nodes = self.nodes()
            cpus = sum(int(node["Resources"].get("CPU", 0)) for node in nodes)
            self._say(-1, "starved", f"{len(nodes)} living nodes with {cpus} CPUs")

    def _room(self, place: int | None) -> memoryview | None:
        return None if place is None or self._shelf is None else self._shelf.room(place)


def _reason(error: BaseException) -> str:
    """Why a worker is lost, out of Ray's long words."""
    text = " ".join(str(error).split())
    for opening in ("The actor is dead because ", "The actor died because "):
        text = text.partition(opening)[2] or text
    return text.partition(" Some common causes")[0][:300]


class _Answer(NamedTuple):
    """A future of Ray's that is settled: of which worker, and of which ticket or question."""

    worker: int
    what: int | str
    future: Future[Any]
