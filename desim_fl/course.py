"""The course of one attempt at a job, worked out when it begins: what moves when, what stands still, how it ends.

An attempt does the legs of its job one after another (0 download, 1 wait, 2 compute, 3 upload). It stands still while its
client is away (where a leave means a pause), a transfer also while the server is down. It ends with the arrival, with
the client's leave (where that means a drop), or with an accident. All of that is a function of the windows and of what
was drawn, so no event is needed before the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from desim_fl.availability import NEVER, Window
from desim_fl.errors import StalledError
from desim_fl.flight import ARRIVAL, COME, LEAVE, LEG_END
from desim_fl.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

DOWNLOAD, WAIT, COMPUTE, UPLOAD = range(4)
CRASHES = ("crash in download", "crash in compute", "crash in compute", "crash in upload")
LEFT, LEFT_FOR_GOOD, OUTAGE, UPLOAD_LOST = "client left", "client left for good", "server outage", "upload lost"
_MOST_PIECES = 100_000
_ALWAYS = Window(0, NEVER, 0)


class Rules(NamedTuple):
    """What interruptions mean. ``restarts``: an interrupted transfer begins anew; else it goes on where it was."""

    on_leave: str = "drop"  # or pause, finish
    on_outage: str = "wait"  # or fail
    restarts: bool = False
    horizon: int = NEVER  # the run ends at this tick at the latest


class Attempt(NamedTuple):
    """What is to be done from tick ``left`` on: in a retry after ``backoff`` ticks; the legs from ``leg`` on.

    ``legs`` are the ticks of all four, ``sizes`` the bytes that go down and up; ``moved`` bytes of the first leg have
    got through before. ``fuses`` are, by leg, the ticks at work in that leg after which it crashes (``None`` = it does
    not), ``hazard`` likewise over all legs. ``unheard``: nothing arrives in the end. ``reason`` is what to call a crash (``None`` = by its leg). ``window`` is the client's at
    ``left``, or its next.
    """

    left: int
    legs: tuple[int, int, int, int]
    sizes: tuple[int, int]
    window: Window = _ALWAYS
    leg: int = DOWNLOAD
    retry: int = 0
    backoff: int = 0
    moved: int = 0
    fuses: tuple[int | None, int | None, int | None, int | None] = (None, None, None, None)
    hazard: int | None = None
    unheard: bool = False
    reason: str | None = None
    present: bool = True
    hold: tuple[int, int] = (-1, 0)


class Piece(NamedTuple):
    """From ``start`` to ``stop`` an attempt is in one leg, and ``moves`` or stands still."""

    leg: int
    start: int
    stop: int
    moves: bool


class Station(NamedTuple):
    """A row on the way: when, in which class of the instant, what."""

    tick: int
    order: int
    kind: Kind
    reason: str | None = None


class Course(NamedTuple):
    """How an attempt goes.

    ``reached`` are the ends of its legs, ``(leg, tick)``. It ends at tick ``ends`` in class ``order`` of that instant;
    ``why`` says how it is lost (``None`` = it arrives), in leg ``leg``. ``down`` and ``up`` are the bytes that it moves, ``moved``
    those of the last leg that need not be moved again. ``window`` is the client's at the end,
    ``present`` whether it has come.
    """

    pieces: tuple[Piece, ...]
    stations: tuple[Station, ...]
    reached: tuple[tuple[int, int], ...]
    ends: int
    order: int
    why: str | None
    leg: int
    down: int
    up: int
    moved: int
    window: Window
    present: bool

    def spent(self, now: int) -> tuple[int, int, int, int, int]:
        """Ticks at work up to ``now`` by leg, and those at a standstill."""
        ticks = [0, 0, 0, 0, 0]
        for leg, start, stop, moves in self.pieces:
            ticks[leg if moves else 4] += max(0, min(stop, now) - start)
        return (*ticks,)  # pyright: ignore[reportReturnType]

    def at_work(self, leg: int, ticks: int) -> int:
        """The first tick at which so many ticks have been spent at work in a leg."""
        for piece in self.pieces:
            if piece.leg == leg and piece.moves:
                if piece.stop - piece.start >= ticks:
                    return piece.start + ticks
                ticks -= piece.stop - piece.start
        return self.ends


def course(
    attempt: Attempt, rules: Rules, after: Callable[[Window], Window], outage: Callable[[int], tuple[int, int]]
) -> Course:
    """Work an attempt out.

    ``after`` gives the client's window after one of its windows; ``outage`` the first time, as (start, end), at which
    the server is down and that ends after a tick. Raises ``StalledError`` where a job would never get through.
    """
    return _Walk(attempt, rules, after, outage).walk()


def never_through(left: int, times: int) -> StalledError:
    """A job is interrupted again and again, and nothing would ever end that."""
    return StalledError(
        f"a job that began at t = {left / 1e6} s is interrupted {times} times without ending; "
        'choose longer windows in [availability] or shorter legs, failures.interrupted_transfers = "resume", '
        "or set run.max_time_s"
    )


def _place(came: set[int], station: Station) -> tuple[int, int]:
    """Where a row stands among those of its job: a halt in the instant of a come follows it, as its cause."""
    behind = station.kind == Kind.HALT and station.tick in came
    return station.tick, COME + 1 if behind else station.order


@dataclass(slots=True)
class _Walk:
    """An attempt on its way: where it is, and what has become of it so far."""

    attempt: Attempt
    rules: Rules
    after: Callable[[Window], Window]
    outage: Callable[[int], tuple[int, int]]
    tick: int = 0
    window: Window = _ALWAYS  # of the client: that of ``tick``, or the next
    here: bool = True  # whether the client has come in it
    hazard: int = NEVER
    leg: int = DOWNLOAD
    pieces: list[Piece] = field(default_factory=list)
    halts: list[Station] = field(default_factory=list)
    reached: list[tuple[int, int]] = field(default_factory=list)
    went: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  # bytes by leg
    kept: int = 0
    lost: tuple[int, str] | None = None  # class of the instant, and reason

    def walk(self) -> Course:
        """Do everything."""
        attempt = self.attempt
        self.tick, self.window, self.leg = attempt.left, attempt.window, attempt.leg
        self.hazard = NEVER if attempt.hazard is None else attempt.hazard
        self.here = attempt.present or self.rules.on_leave == "finish"
        if attempt.retry:
            self._stand(attempt.left + attempt.backoff, Kind.RESUME)
        while self.lost is None and self.leg <= UPLOAD:
            self._do(attempt.moved if self.leg == attempt.leg else 0)
            if self.lost is None:
                if self.leg == attempt.hold[0] and self.leg in {WAIT, COMPUTE}:
                    self._piece(attempt.hold[1], moves=False)
                self.reached.append((self.leg, self.tick))
                self.leg += 1
        if self.lost is None and attempt.unheard:
            self.lost = (ARRIVAL, UPLOAD_LOST)
        return self._course()

    def _course(self) -> Course:
        order, why = self.lost or (ARRIVAL, None)
        window = self.attempt.window
        stations = list(self.halts)
        if not self.attempt.present:  # the attempt before failed while its client was away
            stations.append(Station(window.start, COME, Kind.COME))
        while window.end < self.tick:
            following = self.after(window)
            stations += [Station(window.end, LEAVE, Kind.LEAVE), Station(following.start, COME, Kind.COME)]
            window = following
        end = (self.tick, order)
        waited = self.rules.on_leave == "pause"
        came = {station.tick for station in stations if waited and station.kind == Kind.COME}
        stations = sorted((station for station in stations if station[:2] < end), key=partial(_place, came))
        came_back = any(station.kind == Kind.COME and station.tick == window.start for station in stations)
        present = came_back or (self.attempt.present and window == self.attempt.window)
        return Course(
            tuple(self.pieces), tuple(stations), tuple(self.reached), self.tick, order, why, min(self.leg, UPLOAD),
            self.went[DOWNLOAD], self.went[UPLOAD], self.kept, window, present,
        )  # fmt: skip

    # ---- a leg

    def _do(self, moved: int) -> None:
        """Do a leg, or as much of it as fate allows; ``moved`` bytes of it are through already."""
        leg, size = self.leg, self._size()
        fuse = self.attempt.fuses[leg]
        fuse = NEVER if fuse is None else fuse
        whole = need = self._need(moved)
        while need:
            self._wait(burnt=not fuse or not self.hazard)
            if self.lost is not None:
                break
            run = min(need, fuse, self.hazard, max(0, self._interruption() - self.tick))
            self._piece(self.tick + run, moves=True)
            need, fuse, self.hazard = need - run, fuse - run, self.hazard - run
            if not need:
                break
            if not fuse or not self.hazard:
                self.lost = (ARRIVAL, self.attempt.reason or CRASHES[leg])
            elif size and self._fails():
                self.lost = (ARRIVAL, OUTAGE)
            elif size and self.rules.restarts:
                self.went[leg] += (size - moved) * (whole - need) // whole
                moved, whole = 0, self._need(0)
                need = whole
        through = (size - moved) * (whole - need) // whole if whole else size - moved
        self.went[leg] += through
        self.kept = 0 if self.rules.restarts else moved + through

    def _size(self) -> int:
        """Bytes that the leg moves; 0 where it moves none."""
        return {DOWNLOAD: self.attempt.sizes[0], UPLOAD: self.attempt.sizes[1]}.get(self.leg, 0)

    def _need(self, moved: int) -> int:
        """Ticks that the leg needs where so many of its bytes are through."""
        whole, size = self.attempt.legs[self.leg], self._size()
        return -(-whole * (size - moved) // size) if moved and size else whole

    @property
    def _transfers(self) -> bool:
        return self.leg in {DOWNLOAD, UPLOAD}

    def _fails(self) -> bool:
        """Whether the interruption in hand is an outage that transfers under way do not survive."""
        return self.rules.on_outage == "fail" and self.outage(self.tick)[0] == self.tick

    def _interruption(self) -> int:
        """Tick at which the leg would be interrupted."""
        leave = NEVER if self.rules.on_leave == "finish" else self.window.end
        return min(leave, self.outage(self.tick)[0]) if self._transfers else leave

    # ---- standing still

    def _wait(self, *, burnt: bool) -> None:
        """Stand still until the leg can go on, or crash (``burnt``).

        Who leaves in this very instant is still there, who comes in it is not yet: halts and crashes are played before.
        """
        while self.lost is None:
            start, end = self.outage(self.tick) if self._transfers else (NEVER, NEVER)
            here = self.rules.on_leave == "finish" or (self.here and self.tick <= self.window.end)
            if start <= self.tick and here:
                self.halts.append(Station(self.tick, LEG_END, Kind.HALT, OUTAGE))
                self._stand(end, Kind.RESUME)
                continue
            if burnt and here:
                return
            self._look()
            if self.lost is None and not self.here:
                self._piece(self.window.start, moves=False)
                self.here = True
            elif start > self.tick:
                return

    def _look(self) -> None:
        """See whether the client is still there, or will be."""
        if self.rules.on_leave == "finish" or (self.here and self.tick < self.window.end):
            return
        if self.rules.on_leave == "drop":
            self.lost = (LEAVE, LEFT)
            return
        while self.window.end <= self.tick:
            self.window, self.here = self.after(self.window), False
        if self.window.start >= NEVER:
            self.lost = (LEAVE, LEFT_FOR_GOOD)

    def _stand(self, until: int, kind: Kind) -> None:
        """Stand still until a tick, unless the client leaves for good before."""
        while self.window.end < until and self.rules.on_leave != "finish":
            following = self.after(self.window)
            if self.rules.on_leave == "drop" or following.start >= NEVER:
                self._piece(max(self.tick, self.window.end), moves=False)
                self.lost = (LEAVE, LEFT if self.rules.on_leave == "drop" else LEFT_FOR_GOOD)
                return
            self.window, self.here = following, False
        self.here = self.here or self.window.start < until
        self._piece(until, moves=False)
        self.halts.append(Station(until, LEG_END, kind))

    def _piece(self, stop: int, *, moves: bool) -> None:
        if stop > self.tick:
            self.pieces.append(Piece(self.leg, self.tick, stop, moves))
            self.tick = stop
        if self.tick > self.rules.horizon:
            self.lost = (ARRIVAL, "beyond the end")
        elif len(self.pieces) > _MOST_PIECES:
            raise never_through(self.attempt.left, _MOST_PIECES)
