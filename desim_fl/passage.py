"""A job that is played leg by leg: where it is, what is left of the leg in hand, what it has spent and moved so far."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from desim_fl.core import Trip
from desim_fl.course import COMPUTE, DOWNLOAD, UPLOAD, WAIT
from desim_fl.flight import Flying, Pace
from desim_fl.records import Kind
from desim_fl.ticks import MOST_TICKS

if TYPE_CHECKING:
    from desim_fl.core import Job
    from desim_fl.flight import Due
    from desim_fl.roads import Road

ENDS = {DOWNLOAD: Kind.DOWNLOADED, WAIT: Kind.STARTED, COMPUTE: Kind.COMPUTED}
_SLACK = 20  # a road's divisions are off by a few units of work, which must not cost a byte
STANDING = 4  # beside the four legs, in accounts of time


class Haul:
    """A leg in hand: ``ticks`` to go of what takes a known time, then ``work`` to go on a shared road (2^-64 millionths of a bit).

    ``size`` bytes move in it, ``moved`` more of the same transfer were through before. ``fuse`` says when the leg crashes:
    each tick burns ``per_tick`` of it and each unit of work ``per_work``, so that it burns down at the drawn share of the leg as
    if that were alone on the road, however long it really takes (``None`` = it does not crash).
    """

    __slots__ = ("fuse", "moved", "per_tick", "per_work", "shared", "size", "ticks", "whole", "work")

    def __init__(self, ticks: int, work: int = 0, size: int = 0, moved: int = 0) -> None:
        self.ticks, self.work, self.size, self.moved = ticks, work, size, moved
        self.shared, self.whole = work > 0, work or ticks
        self.fuse: int | None = None
        self.per_tick, self.per_work = 1, 0

    def light(self, ticks: int | None, alone: int, work: int) -> None:
        """Let it crash after so many ticks at work; on a road ``alone`` ticks are ``work``."""
        if alone:
            self.per_tick, self.per_work = work, alone
        self.fuse = None if ticks is None else ticks * self.per_tick

    @property
    def left(self) -> bool:
        """Whether anything is to be done."""
        return self.ticks > 0 or self.work > 0

    def do(self, ticks: int, work: int = 0) -> None:
        """Get on with it."""
        self.ticks -= ticks
        self.work -= work
        if self.fuse is not None:
            self.fuse = max(0, self.fuse - ticks * self.per_tick - work * self.per_work)

    def ticks_to_crash(self) -> int | None:
        """Ticks at work before it crashes, if it does in what takes a known time."""
        return None if self.fuse is None else -(-self.fuse // self.per_tick)

    def work_to_crash(self) -> int:
        """Work on the road before it crashes; all there is, where it does not."""
        if self.fuse is None or not self.per_work:
            return self.work
        return min(self.work, -(-self.fuse // self.per_work))

    def through(self, work: int | None = None) -> int:
        """Bytes that are through, rounded down; ``work`` is what is left on the road, where it is under way there."""
        if not self.whole:
            return self.size
        if not self.shared:
            return self.size * (self.whole - self.ticks) // self.whole
        left = self.work if work is None else work
        return min(self.size, (self.size * (self.whole - left) + (self.size << _SLACK)) // self.whole)


class Passage(Flying):
    """A job on its way leg by leg.

    ``plan`` are the legs of the attempt in hand as drawn (``retry`` counts attempts), ``fuses`` and ``hazard`` its accidents (see
    :class:`desim_fl.course.Attempt`). ``since`` is when it began to move (``None`` = it stands still: its client is ``away``, the
    server is down (``halted``), or it is ``resting`` before a retry). ``due`` is the one event that it waits for, at tick
    ``when``. A ``stray`` was given up by the server. ``ends`` is when it would arrive if it were alone, until it ends.
    """

    __slots__ = (
        "asked", "asks", "away", "client", "due", "entered", "fuses", "halted", "haul", "hazard", "leg", "marks", "plan", "player",
        "reason", "resting", "retry", "road", "seen", "sent", "since", "stood", "stops", "stray", "time", "unheard", "when",
    )  # fmt: skip

    def __init__(self, player: Any, job: Job, plan: Trip, now: int, ends: int) -> None:
        self.callbacks = []
        self.job, self.trip, self.plan, self.left, self.ends = job, plan, plan, now, ends
        self.steps, self.lost, self.player, self.client = job.work.steps or 0, None, player, job.client
        self.leg, self.retry, self.haul = DOWNLOAD, 0, Haul(0)
        self.fuses: tuple[int | None, ...] = (None,) * 4
        self.hazard: int | None = None
        self.reason: str | None = None
        self.unheard = self.away = self.halted = self.resting = self.stray = False
        self.since: int | None = None
        self.due: Due | None = None
        self.asks: Due | None = None  # at the end of an epoch, whether it stops there
        self.when = self.stood = -1
        self.road: Road | None = None
        self.entered = self.asked = self.stops = 0
        self.sent = 0  # bytes of uploads that are over
        self.seen, self.time = now, [0, 0, 0, 0, 0]  # ticks by leg, and standing still, up to ``seen``
        self.marks: dict[Kind, int] = {}  # ends of legs

    # ---- time and bytes

    def account(self, now: int) -> None:
        """Count the time since the last look for the leg in hand, or as a standstill."""
        self.time[STANDING if self.since is None else self.leg] += now - self.seen
        self.seen = now

    def spent(self, now: int) -> tuple[int, int, int, int, int]:
        """Ticks spent in each leg, over all attempts, and those in which it stood still."""
        time = list(self.time)
        if self.leg <= UPLOAD:
            time[STANDING if self.since is None else self.leg] += max(0, now - self.seen)
        return (*time,)  # pyright: ignore[reportReturnType]

    def done(self, now: int) -> int:
        """Ticks at work in the leg in hand, of this attempt and, of a transfer, this try."""
        return 0 if self.since is None else now - self.since

    def computed(self, now: int) -> int:
        """Ticks of computing that this attempt has done."""
        if self.leg != COMPUTE:
            return 0 if self.leg < COMPUTE else self.plan.compute
        return self.plan.compute - self.haul.ticks + self.done(now)

    def through(self, now: int) -> int:
        """Bytes of the transfer in hand that are through; none where it has not begun."""
        if self.leg not in {DOWNLOAD, UPLOAD}:
            return 0
        haul = self.haul
        if self.road is not None:
            return haul.through(haul.work - self.entered + self.road.left(self.job.id))
        if self.since is None or haul.shared:
            return haul.through()
        return haul.size * (haul.whole - haul.ticks + now - self.since) // haul.whole if haul.whole else haul.size

    def sent_up(self, now: int) -> int:
        """Bytes that have gone up so far; ``now`` is the instant in hand."""
        return self.sent + (self.through(now) if self.leg == UPLOAD else 0)

    def taken(self) -> Trip:
        """The trip as it has become."""
        download, wait, compute, upload, _ = self.time
        waited = None if self.plan.wait is None else wait
        return Trip(download, waited, compute, upload, self.plan.bytes_down, self.sent)

    # ---- what others look at

    @property
    def reached(self) -> int:
        """Tick at which it is with the client."""
        return self.marks.get(Kind.DOWNLOADED, MOST_TICKS)

    @property
    def started(self) -> int:
        """Tick at which computing starts."""
        return self.marks.get(Kind.STARTED, self.reached)

    def legs(self) -> tuple[tuple[Kind, int], ...]:
        """Ends of its legs so far."""
        return tuple(self.marks.items())

    def forget(self) -> None:
        """End here: its transfer makes room for the others at once."""
        self.player.remove(self)
        self.job = None  # pyright: ignore[reportAttributeAccessIssue]

    def boundary(self, now: int, how: str, pace: Pace) -> tuple[int, Trip]:
        """Steps done at the next ``epoch`` or ``step`` boundary at or after ``now``, and what the attempt then consists of."""
        by_step, planned = how == "step", self.job.work.steps or 0
        stride, done = 1 if by_step else pace.epoch, self.computed(now)
        passed = done > 0 and self.since is None and self.stood < now  # what stands still has left its boundary behind
        for steps in range(stride, self.steps if self.leg <= COMPUTE else 0, stride):
            end = pace.end(steps, planned, rested=not by_step)
            if end >= done + passed:
                return steps, self.plan._replace(compute=end)
        return self.steps, self.plan

    def shortened(self, now: int, pace: Pace) -> tuple[int, Trip]:
        """Whole steps done by ``now``, and what the attempt then consists of."""
        planned, done = self.job.work.steps or 0, self.computed(now)
        if self.leg > COMPUTE or not planned:
            return self.steps, self.plan
        if self.leg < COMPUTE:
            waited = self.plan.wait
            if waited is not None:
                waited = waited - self.haul.ticks + self.done(now) if self.leg == WAIT else 0
            return 0, self.plan._replace(wait=waited, compute=0)
        ends = range(1, self.steps + 1)
        steps = bisect_right(ends, done, key=lambda steps: pace.end(steps, planned, rested=False))
        return steps, self.plan._replace(compute=done)
