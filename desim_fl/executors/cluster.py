"""Workers on a Ray cluster: the pool, with other workers.

What waits, goes out and comes back is the pool's business; Ray places the workers, moves data sets and versions to
their nodes (once each) and notices when one is lost. The process that talks to Ray is :mod:`desim_fl.executors.ray`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import multiprocessing
import os
import pickle
import sys
import sysconfig
import tempfile
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from desim_fl.errors import RefusedError, RunError
from desim_fl.executors import ambient, fingerprint, ray
from desim_fl.executors.choice import cores
from desim_fl.executors.crew import Fate, Hand, Heard, undisturbed
from desim_fl.executors.pool import PoolExecutor
from desim_fl.executors.seat import Placement
from desim_fl.executors.shelf import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from desim_fl.core import Model
    from desim_fl.executors.crew import Workers
    from desim_fl.executors.shelf import Shelf
    from desim_fl.learning.task import Task

_JOIN_S, _START_S = 30.0, 120.0  # to join a cluster, to start an instance
_PATIENCE_S = 60.0  # for the cluster to give a place to some worker
_GOODBYE_S = 15.0
_FALSE_STARTS = 3


class RayExecutor(PoolExecutor):
    """Trains in ``workers`` workers (``None``: as many as the cluster has CPUs for, up to ``most``) on a Ray cluster.

    ``address`` is "auto", "host:port" or "ray://host:port"; without it an instance of this machine's own is started,
    and ended with ``close``. ``threads`` is how many CPUs a worker takes. Raises ``RefusedError`` where Ray is not
    installed, the address cannot be reached, or a worker's machine would give other bits.
    """

    name = "ray"

    def __init__(
        self,
        task: Task,
        workers: int | None = None,
        address: str | None = None,
        *,
        threads: int = 1,
        most: int | None = None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise RefusedError('[executor] name = "ray" needs Ray, an optional part: pip install "desim-fl[ray]"')
        if workers is None and address is None:
            workers = max(1, min(cores() // threads, most or cores()))
        super().__init__(task, workers or 0)
        self.address, self.threads, self.most, self.patience_s = address, threads, most, patience_s
        self.nodes = 0

    def start(self, model: Model) -> None:
        """Connect now, and not at the first job; ``model`` is one of the size that versions will have."""
        if self._crew is None:
            self._crew = self._assembled(model.params, model.buffers)

    @property
    def pids(self) -> Sequence[int]:
        """The process that talks to Ray."""
        return [self._crew.pid] if isinstance(self._crew, RayCrew) else []

    def _new_crew(self, shelf: Shelf | None) -> Workers:
        crew = RayCrew(self, shelf)
        self.workers, self.nodes = len(crew.hands), crew.nodes
        return crew


class Line:
    """A worker's share of the connection."""

    def __init__(self, connection: Any, number: int) -> None:
        self._connection, self._number = connection, number

    def send(self, messages: list[Any]) -> None:
        """Send messages to this worker."""
        self._connection.send((self._number, messages))


class RayCrew:
    """The workers, as the pool sees them, and the process that passes messages on."""

    def __init__(self, plan: RayExecutor, shelf: Shelf | None) -> None:
        self.hands: list[Hand] = []
        self._numbers, self._false_starts = itertools.count(), 0
        self._fates: dict[int, Fate] = {}
        self._address, self._recipe = plan.address, Recipe(plan.task)
        self._folder = _new_folder() if plan.address is None else None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close)
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        orders = self._orders(plan, shelf)
        self._process: Any = context.Process(target=ray.main, args=(theirs, orders), name="desim-fl ray", daemon=True)
        try:
            with undisturbed():
                self._process.start()
            theirs.close()
            cpus, self.nodes = self._connected()
            for _ in range(plan.workers or max(1, min(cpus // plan.threads, plan.most or cpus))):
                self.hands.append(self._hired())
        except BaseException:
            self.close(at_once=True)
            raise

    @property
    def pid(self) -> int:
        """Of the process that talks to Ray."""
        return self._process.pid

    def _orders(self, plan: RayExecutor, shelf: Shelf | None) -> ray.Orders:
        device, model = getattr(plan.task, "device", None), fingerprint.named_model(plan.task)
        gpus = int(device is not None and device.type == "cuda")
        cluster = ray.Cluster(plan.address, plan.workers or 1, plan.threads, gpus, self._folder, plan.patience_s)
        recipe, torch = self._recipe.lend(), sys.modules.get("torch")
        placement = Placement(
            settings=ambient.captured(),
            threads=cores() if torch is None else torch.get_num_threads(),
            expected=fingerprint.facts(device, model),
            device=device,
            model=model,
            main=_main_file() if b"__main__" in recipe[0].head else None,
        )
        lent = None if shelf is None else shelf.lend()
        return ray.Orders(cluster, recipe, lent, _paths(), pickle.dumps(placement), DupFd(self._output.fileno()))

    def _connected(self) -> tuple[int, int]:
        """Wait for the connection; returns the cluster's CPUs and nodes."""
        where = "an instance of this machine" if self._address is None else f'the cluster at "{self._address}"'
        limit = _START_S if self._address is None else _JOIN_S
        why = f"no answer within {limit:.0f} s"
        with contextlib.suppress(EOFError, OSError):
            if self._connection.poll(limit):
                _, (kind, *rest) = self._connection.recv()
                if kind == "connected":
                    return rest[0], rest[1]
                why = rest[0]
        raise RefusedError(
            f"[executor] Ray: {where} cannot be used: {' '.join(why.split())[:500]}; look at [executor] address and at "
            '"ray status" there, or use executor.name = "pool" on this machine'
        )

    def _hired(self) -> Hand:
        number = next(self._numbers)
        hand = Hand(number, None, Line(self._connection, number))
        hand.tell(("hire",))
        return hand

    def wait(self, timeout: float | None) -> list[Heard]:
        """Return what workers say; raises ``RunError`` where the cluster is gone, or has no place for any worker."""
        heard = []
        try:
            while self._connection.poll(timeout):
                number, message = self._connection.recv()
                heard += self._understood(number, message)
                timeout = 0.0 if heard else timeout
        except (EOFError, OSError):
            raise RunError(self._gone()) from None
        return heard

    def _understood(self, number: int, message: tuple[Any, ...]) -> list[Heard]:
        kind, *rest = message
        if kind == "starved":
            raise RunError(
                f"the Ray cluster has had no place for any worker for too long: {rest[0]}; start nodes, end what takes "
                'their CPUs, lower executor.workers or executor.threads_per_job, or use executor.name = "pool"'
            )
        hand = next((hand for hand in self.hands if hand.number == number), None)
        if hand is None:
            return []
        if kind == "ready":
            hand.where = rest[0]
            return [Heard(hand, [("ready", -1, None, 0.0)], ended=False)]
        if kind == "mixed":
            raise RefusedError(
                f"[executor] Ray: {hand.title}{rest[0]} would not give the bits of this machine: {rest[1]}; use nodes of "
                "one kind with the same software, and start the run on one of them"
            )
        if kind == "broken":
            return [Heard(hand, [("broken", -1, f"{rest[1]} ({hand.title}{rest[0]})", rest[2])], ended=False)]
        if kind == "ended":
            self._fates[number] = Fate(*rest)
            return [Heard(hand, [], ended=True)]
        return [Heard(hand, [message], ended=False)]

    def _gone(self) -> str:
        """The message for a connection that is no more, with the last that Ray had to say."""
        self._process.join(_GOODBYE_S)
        self._output.seek(0)
        lines = [line for line in self._output.read().decode(errors="replace").splitlines() if line.strip()]
        last = f" Ray's last words: {lines[-1].strip()[:300]}" if lines else ""
        return (
            f"the connection to the Ray cluster is lost (exit code {self._process.exitcode}): its head node, or Ray on this "
            f"machine, ended. With executor.reuse = true another run takes what was trained.{last}"
        )

    def started(self, hand: Hand) -> None:
        """Take note that a worker is ready."""
        hand.ready, self._false_starts = True, 0

    def replace(self, hand: Hand) -> Fate:
        """Ask for another worker; raises ``RunError`` where they end before they are ready, again and again."""
        fate = self._fates.pop(hand.number)
        if not hand.ready and fate.blamed:
            self._false_starts += 1
            if self._false_starts >= _FALSE_STARTS:
                raise RunError(f"workers on the Ray cluster end while starting: {fate.why}")
        self.hands[self.hands.index(hand)] = self._hired()
        return fate

    def close(self, *, at_once: bool = False) -> None:
        """End the connection, and with it the workers and an instance that was started for them."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._connection.close()
        if self._process.pid is not None:
            if at_once:
                self._process.terminate()
            self._process.join(_GOODBYE_S if self._folder is not None or not at_once else 1.0)
            if self._process.is_alive():
                self._process.kill()
            self._process.join()
        self.hands = []
        self._recipe.close()
        self._output.close()
        if self._folder is not None:
            ray.forget(self._folder)


def _new_folder() -> str:
    """Make a folder for an instance; at the root, since paths of sockets may have about 100 characters only."""
    root = "/tmp" if Path("/tmp").is_dir() else None  # noqa: S108
    return tempfile.mkdtemp(prefix=f"desim-fl-ray-{os.getpid()}-", dir=root)


def _paths() -> list[str]:
    """Folders that this process imports from and another machine's Python need not know: the current one, the user's."""
    installed = tuple(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib"))
    found = [os.path.abspath(path) for path in ("", *sys.path)]  # noqa: PTH100  (sys.path holds strings)
    return [path for path in dict.fromkeys(found) if Path(path).is_dir() and not path.startswith(installed)]


def _main_file() -> str | None:
    """The script that was started, if one was."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return None if file is None else str(Path(file).resolve())
