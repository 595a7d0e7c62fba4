"""The naive player with everything that may come between dispatch and arrival: windows, outages, crashes, timeouts.

Where the engine works a job's course out when it begins, here each client's leave and come, each beginning and end of
an outage is an entry of its own that interrupts whoever is under way, and what is left of a leg is counted down.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from reference import ARRIVAL, LEG, Entry, Reference, Trip

if TYPE_CHECKING:
    from collections.abc import Mapping

BETWEEN, LEAVE, COME = 0.5, 2, 3  # halts and resumes follow the ends of legs
TRANSFERS = (0, 3)
HORIZON = 400


class Weather(NamedTuple):
    """What may happen. Windows are listed by client, outages once; ``fuses[client, nth, retry]`` = ticks at work before a crash, and in which leg."""

    windows: tuple[tuple[tuple[int, int], ...], ...] | None = None
    on_leave: str = "drop"
    outages: tuple[tuple[int, int], ...] = ()
    on_outage: str = "wait"
    restarts: bool = False
    fuses: Mapping[tuple[int, int, int], tuple[int, int]] = MappingProxyType({})
    max_retries: int = 0
    backoff: int = 0
    timeout: int | None = None
    late: str = "ignore"
    unheard: frozenset[tuple[int, int]] = frozenset()
    copies: Mapping[tuple[int, int], int] = MappingProxyType({})


@dataclass
class Walk:
    """Where a job under way is."""

    leg: int = 0
    left: int = 0  # ticks still to do of this leg
    since: int | None = None  # moving since then; ``None`` = at a standstill
    fuse: int | None = None
    retry: int = 0
    resting: bool = False  # in a back-off
    halted: bool = False
    stray: bool = False
    overdue: bool = False
    share: tuple[int, int] = (0, 1)  # of the leg that is done and stays done


@dataclass
class Journeys(Reference):
    """Plays a setting in its weather; the setting's own losses are not looked at."""

    weather: Weather = Weather()  # noqa: RUF009
    walks: dict[int, Walk] = field(default_factory=dict)
    present: set[int] = field(default_factory=set)
    away: set[int] = field(default_factory=set)
    strays: dict[int, Trip] = field(default_factory=dict)

    # ---- who is there

    def play(self) -> Journeys:
        """Let windows and outages be entries, then play."""
        clients, weather = range(len(self.setting.sizes)), self.weather
        windows = weather.windows or tuple(((0, HORIZON),) for _ in clients)
        self.present = {client for client in clients if any(start == 0 for start, _ in windows[client])}
        for client in clients:
            for start, end in windows[client]:
                if start:
                    self.entries.append(Entry(start, COME, client, "come", client))
                if end < HORIZON:
                    self.entries.append(Entry(end, LEAVE, client, "leave", client))
        for start, end in weather.outages:
            self.entries.append(Entry(start, BETWEEN, -1, "goes_down", None))
            self.entries.append(Entry(end, BETWEEN, -1, "is_back", None))
        self.idle = [client for client in clients if client in self.present]
        if self.setting.method.name == "fedavg":
            self.begin_round()
        else:
            self.open = self.setting.concurrency
        self.fill()
        while not self.stopped:
            self.step()
        return self

    def step(self) -> None:
        """Before anything of an instant is played, those who leave in it are no longer selectable."""
        following = min((entry.tick for entry in self.entries), default=0)
        self.idle = [client for client in self.idle if not self.leaves(client, following)]
        super().step()

    def leaves(self, client: int, tick: int) -> bool:
        """Whether a client leaves at a tick, or has left."""
        ends = [end for start, end in (self.weather.windows or [((0, HORIZON),)] * 99)[client] if start < tick]
        return client not in self.present or tick in ends

    def down(self) -> bool:
        """Whether the server is down."""
        return any(start <= self.now < end for start, end in self.weather.outages)

    def of(self, client: int) -> Trip | None:
        """The client's job under way, the server's or given up."""
        return next((trip for trip in self.under_way.values() if trip.client == client), None)

    @property
    def under_way(self) -> dict[int, Trip]:
        """All jobs that somebody works at, strays included."""
        return self.flying | self.strays

    def leave(self, client: int) -> None:
        """A window ends."""
        self.present.discard(client)
        self.idle = [other for other in self.idle if other != client]
        trip = self.of(client)
        if trip is None:
            return
        self.say("leave", trip)
        if self.weather.on_leave == "drop":
            self.end(trip, "client left")
        elif self.weather.on_leave == "pause":
            self.met.add("pause")
            self.away.add(client)
            self.stand(trip)
            if not any(entry.what == "come" and entry.subject == client for entry in self.entries):
                self.met.add("left for good")
                self.end(trip, "for good")

    def come(self, client: int) -> None:
        """A window begins."""
        self.present.add(client)
        trip = self.of(client)
        if trip is not None:
            self.say("come", trip)
            self.away.discard(client)
            self.go(trip)
        else:
            self.idle.append(client)
        self.idle = [other for other in self.idle if other in self.present]
        waits = self.setting.method.name == "fedavg"  # a cohort gathers all who come in the instant
        if not waits or not any(entry.what == "come" and entry.tick == self.now for entry in self.entries):
            self.fill()

    def say(self, kind: str, trip: Trip) -> None:
        """A row on the way; given-up jobs have none."""
        if not self.walks[trip.id].stray:
            self.row(kind, trip)

    def fill(self) -> None:
        """Send somebody out for every place, unless places are owed."""
        if self.open >= 0 or self.setting.method.name == "fedavg":
            super().fill()

    # ---- on the way

    def send_out(self, client: int) -> None:
        """Dispatch a job: its first leg begins."""
        nth = self.sent.get(client, 0)
        trip = Trip(self.dispatched, client, nth, self.version, self.params, self.round, self.setting.legs(client, nth))
        self.sent[client] = nth + 1
        self.dispatched += 1
        self.flying[trip.id] = trip
        self.idle.remove(client)
        self.row("dispatch", trip)
        self.walks[trip.id] = Walk(left=trip.legs.download)
        self.light(trip)
        if self.weather.timeout is not None:
            self.entries.append(Entry(self.now + self.weather.timeout, ARRIVAL, trip.id, "timeout", trip))
        self.go(trip)

    def light(self, trip: Trip) -> None:
        """See whether a crash waits in the leg that begins."""
        walk = self.walks[trip.id]
        leg, ticks = self.weather.fuses.get((trip.client, trip.nth, walk.retry), (-1, 0))
        walk.fuse = ticks if leg == walk.leg else None

    def go(self, trip: Trip) -> None:
        """Move, if anything is left to do and nothing stands in the way."""
        walk = self.walks[trip.id]
        if walk.resting or walk.since is not None or walk.halted:
            return
        if walk.left and trip.client in self.away:
            return
        if walk.left and walk.leg in TRANSFERS and self.down():
            walk.halted = True
            self.met.add("halt")
            self.entries.append(Entry(self.now, BETWEEN, trip.id, "halt", trip))
            return
        walk.since = self.now
        if walk.fuse is not None and walk.fuse < walk.left:
            self.entries.append(Entry(self.now + walk.fuse, ARRIVAL, trip.id, "crash", trip))
        else:
            order = ARRIVAL if walk.leg == 3 else LEG
            self.entries.append(Entry(self.now + walk.left, order, trip.id, "leg_ends", trip))

    def stand(self, trip: Trip) -> None:
        """Stop moving; an interrupted transfer begins anew, where it must."""
        walk = self.walks[trip.id]
        if walk.since is None:
            return
        done = self.now - walk.since
        walk.left, walk.since = walk.left - done, None
        walk.fuse = None if walk.fuse is None else walk.fuse - done
        self.entries = [
            entry for entry in self.entries if entry.subject is not trip or entry.what not in {"leg_ends", "crash"}
        ]
        if self.weather.restarts and walk.leg in TRANSFERS:
            walk.left = self.length(trip)

    def length(self, trip: Trip) -> int:
        """Ticks of the leg it is in."""
        return (trip.legs.download, trip.legs.wait or 0, trip.legs.compute, trip.legs.upload)[self.walks[trip.id].leg]

    def halt(self, trip: Trip) -> None:
        """The row of a standstill."""
        if trip.id in self.under_way:
            self.say("halt", trip)

    def goes_down(self, _: None) -> None:
        """An outage begins: transfers under way stand still or fail."""
        for trip in sorted(self.under_way.values(), key=lambda trip: trip.id):
            walk = self.walks[trip.id]
            if walk.leg not in TRANSFERS or walk.since is None:
                continue
            ends = [
                entry.tick for entry in self.entries if entry.subject is trip and entry.what in {"leg_ends", "crash"}
            ]
            if self.now in ends:
                continue
            if self.weather.on_outage == "fail":
                self.entries.append(Entry(self.now, ARRIVAL, trip.id, "crash", trip))
            else:
                self.stand(trip)
                walk.halted = True
                self.met.add("halt")
                self.entries.append(Entry(self.now, BETWEEN, trip.id, "halt", trip))

    def is_back(self, _: None) -> None:
        """An outage ends."""
        for trip in list(self.under_way.values()):
            if self.walks[trip.id].halted:
                self.entries.append(Entry(self.now, BETWEEN, trip.id, "resume", trip))

    def resume(self, trip: Trip) -> None:
        """Go on after an outage or a back-off."""
        if trip.id not in self.under_way:
            return
        walk = self.walks[trip.id]
        walk.halted = walk.resting = False
        self.say("resume", trip)
        self.go(trip)

    def leg_ends(self, trip: Trip) -> None:
        """The next leg begins, or the job arrives."""
        walk = self.walks[trip.id]
        walk.since = None
        if walk.leg == 3:
            self.end(trip, "upload lost" if (trip.client, trip.nth) in self.weather.unheard else None)
            return
        if walk.leg != 1 or trip.legs.wait is not None:
            self.say(("downloaded", "started", "computed")[walk.leg], trip)
        walk.leg += 1
        walk.left = self.length(trip)
        self.light(trip)
        self.go(trip)

    def crash(self, trip: Trip) -> None:
        """An attempt fails: it is tried again after the back-off, or the job is lost."""
        walk = self.walks[trip.id]
        gone = (
            () if self.weather.restarts or walk.leg not in TRANSFERS else (walk.left - (self.now - (walk.since or 0)),)
        )
        self.stand(trip)
        if walk.retry >= self.weather.max_retries or walk.stray:
            self.end(trip, "crash")
            return
        self.met.add("retry")
        self.row("retry", trip)
        walk.retry, walk.resting, walk.halted = walk.retry + 1, True, False
        walk.left = gone[0] if gone else self.length(trip)
        self.light(trip)
        self.entries.append(Entry(self.now + self.weather.backoff, BETWEEN, trip.id, "resume", trip))

    # ---- ends

    def end(self, trip: Trip, why: str | None) -> None:
        """A job is at its end, for whoever still waits for it."""
        walk = self.walks[trip.id]
        self.entries = [entry for entry in self.entries if entry.subject is not trip]
        self.away.discard(trip.client)
        if walk.stray:
            self.met.add("late")
            del self.strays[trip.id]
            self.freed_client(trip.client)
            self.row("late", trip)
            self.fill()
        elif why is None:
            self.arrive(trip)
            again = self.weather.copies.get((trip.client, trip.nth))
            if again is not None and not self.stopped:
                self.met.add("duplicate")
                self.entries.append(Entry(self.now + again, ARRIVAL, trip.id, "copy", trip))
        else:
            self.lose(trip)

    def copy(self, trip: Trip) -> None:
        """An update comes once more."""
        self.row("duplicate", trip)

    def land(self, trip: Trip) -> None:
        """Free the client, and the place unless it is filled already."""
        del self.flying[trip.id]
        self.away.discard(trip.client)
        if not self.walks[trip.id].stray:
            self.freed_client(trip.client)
        if self.walks[trip.id].overdue:
            self.open -= 1
        self.entries = [entry for entry in self.entries if entry.subject is not trip]

    def freed_client(self, client: int) -> None:
        """Let a client be idle, if it is there."""
        if client in self.present and not self.leaves(client, self.now):
            self.idle.append(client)

    def timeout(self, trip: Trip) -> None:
        """The server no longer waits, unless the attempt ends in this very instant."""
        ends = [entry for entry in self.entries if entry.subject is trip and entry.tick == self.now]
        if any(entry.what == "crash" or (entry.what == "leg_ends" and entry.order == ARRIVAL) for entry in ends):
            if self.walks[trip.id].retry < self.weather.max_retries and any(entry.what == "crash" for entry in ends):
                self.entries.append(Entry(self.now, ARRIVAL, trip.id, "timeout", trip))  # of the retry that follows
            return
        leaving = self.leaves(trip.client, self.now) and trip.client in self.present
        for_good = not any(entry.what == "come" and entry.subject == trip.client for entry in self.entries)
        if leaving and (self.weather.on_leave == "drop" or (self.weather.on_leave == "pause" and for_good)):
            return
        walk = self.walks[trip.id]
        if self.weather.late == "accept":
            self.met.add("overdue")
            walk.overdue = True
            self.row("overdue", trip)
            self.open += 1
            self.fill()
            return
        self.met.add("timeout")
        walk.stray = True
        self.strays[trip.id] = trip
        del self.flying[trip.id]
        self.row("lose", trip, staleness=self.version - trip.base)
        self.without(trip)
