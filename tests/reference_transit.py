"""The naive player with everything at once: links that transfers share, and whatever may come between dispatch and arrival.

A transfer over a shared link is a latency in ticks, and then bits in a brute-force fluid (:mod:`fluid`, exact fractions, all
rates worked out anew at each event). Whoever stands still, crashes or ends is taken out of the fluid with the bits it has
left, and put in again with them. A crash lies where its fuse has burnt down: a tick of latency burns one tick of it, and a
bit as much as it would take alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

from fluid import Flow, per_tick
from reference import ARRIVAL, LEG, Entry, Shared, Trip
from reference_journeys import BETWEEN, TRANSFERS, Journeys

BITS = Fraction(2520 * 8)


@dataclass
class Bits:
    """What a job has left of a transfer's bits, and of its fuse (``None`` = it does not crash); ``entered`` on the road."""

    left: Fraction = Fraction(0)
    fuse: Fraction | None = None
    entered: Fraction | None = None


@dataclass
class Transit(Journeys):
    """Plays a setting with roads in its weather."""

    bits: dict[int, Bits] = field(default_factory=dict)

    def play(self) -> Transit:
        """Make the roads, then play."""
        both = {"downloaded": self.setting.down, "uploaded": self.setting.up}
        self.roads = {what: shared.fluid() for what, shared in both.items() if shared is not None}
        super().play()
        return self

    def step(self) -> None:
        """See what the roads bring before anything else is looked at."""
        self.watch_the_roads()
        super().step()

    def shared(self, trip: Trip) -> Shared | None:
        """The shared direction that the leg in hand goes over."""
        return {0: self.setting.down, 3: self.setting.up}.get(self.walks[trip.id].leg)

    def what(self, trip: Trip) -> str:
        """The road of the leg in hand."""
        return "downloaded" if self.walks[trip.id].leg == 0 else "uploaded"

    def limited(self, trip: Trip) -> bool:
        """Whether anything limits a transfer there."""
        shared = self.shared(trip)
        return (
            shared is not None
            and (shared.caps[trip.client], shared.capacity, shared.regional[shared.regions[trip.client]]) != (None,) * 3
        )

    def alone(self, trip: Trip) -> int:
        """Ticks that the bits would take alone."""
        shared = self.shared(trip)
        limits = (shared.caps[trip.client], shared.capacity, shared.regional[shared.regions[trip.client]])
        return math.ceil(BITS / min(per_tick(limit) for limit in limits if limit is not None))

    def light(self, trip: Trip) -> None:
        """A leg begins: its bits lie before it, and perhaps a crash."""
        super().light(trip)
        walk, mine = self.walks[trip.id], self.bits.setdefault(trip.id, Bits())
        mine.fuse, walk.fuse = (None if walk.fuse is None else Fraction(walk.fuse)), None
        mine.left = BITS if self.shared(trip) is not None else Fraction(0)

    def to_do(self, trip: Trip) -> bool:
        """Whether anything of the leg is left."""
        return self.walks[trip.id].left > 0 or self.bits[trip.id].left > 0

    def go(self, trip: Trip) -> None:
        """Move, if anything is left to do and nothing stands in the way."""
        walk, mine = self.walks[trip.id], self.bits[trip.id]
        if walk.resting or walk.since is not None or walk.halted or self.crashes(trip):
            return
        if self.to_do(trip) and trip.client in self.away:
            return
        if self.to_do(trip) and walk.leg in TRANSFERS and self.down():
            walk.halted = True
            self.met.add("halt")
            self.entries.append(Entry(self.now, BETWEEN, trip.id, "halt", trip))
            return
        walk.since = self.now
        last = mine.left == 0
        if walk.left or last:
            if mine.fuse is not None and (mine.fuse < walk.left or (mine.fuse == walk.left and not last)):
                self.entries.append(Entry(self.now + math.ceil(mine.fuse), ARRIVAL, trip.id, "crash", trip))
            elif not last:
                self.entries.append(Entry(self.now + walk.left, LEG, trip.id, "latency_ends", trip))
            else:
                order = ARRIVAL if walk.leg == 3 else LEG
                self.entries.append(Entry(self.now + walk.left, order, trip.id, "leg_ends", trip))
        else:
            self.enter(trip)

    def crashes(self, trip: Trip) -> bool:
        """Whether it is about to crash in this instant."""
        return any(entry.what == "crash" and entry.subject is trip for entry in self.entries)

    def enter(self, trip: Trip) -> None:
        """Enter the road, with what is to be carried up to the end or the crash."""
        mine, shared = self.bits[trip.id], self.shared(trip)
        if not self.limited(trip):  # nothing limits it: through at once
            mine.left = Fraction(0)
            self.entries.append(Entry(self.now, LEG, trip.id, self.what(trip), trip))
            return
        mine.entered = mine.left
        if mine.fuse is not None:
            mine.entered = min(mine.left, mine.fuse * BITS / self.alone(trip))
        if mine.entered == 0:
            self.entries.append(Entry(self.now, ARRIVAL, trip.id, "crash", trip))
            return
        road = self.roads[self.what(trip)]
        road.advance(self.now)
        road.flows[trip.id] = Flow(
            mine.entered, per_tick(shared.caps[trip.client]), shared.regions[trip.client], self.now
        )
        self.met.add("shared road")
        self.met |= {"crowded road"} if len(road.flows) > 1 else set()

    def latency_ends(self, trip: Trip) -> None:
        """Now the bits move."""
        walk, mine = self.walks[trip.id], self.bits[trip.id]
        mine.fuse = None if mine.fuse is None else mine.fuse - walk.left
        walk.left, walk.since = 0, None
        self.go(trip)

    def downloaded(self, trip: Trip) -> None:
        """The last bit is there, or the one at which it crashes."""
        mine = self.bits[trip.id]
        if mine.entered is not None:
            mine.left -= mine.entered
            mine.entered = None
        if mine.left:
            self.walks[trip.id].since, mine.fuse = None, Fraction(0)
            self.met.add("crash on a shared road")
            self.entries.append(Entry(self.now, ARRIVAL, trip.id, "crash", trip))
        elif self.walks[trip.id].leg == 3:
            self.walks[trip.id].since = None
            self.entries.append(Entry(self.now, ARRIVAL, trip.id, "leg_ends", trip))
        else:
            self.leg_ends(trip)

    uploaded = downloaded

    def stand(self, trip: Trip) -> None:
        """Stop moving; the road has room for others at once."""
        walk, mine = self.walks[trip.id], self.bits[trip.id]
        if walk.since is None:
            return
        ticks, walk.since = self.now - walk.since, None
        if mine.entered is not None:
            road = self.roads[self.what(trip)]
            road.advance(self.now)
            done = mine.entered - road.flows.pop(trip.id).left
            self.met.add("transfer broken off")
            mine.left, mine.entered = mine.left - done, None
            mine.fuse = None if mine.fuse is None else mine.fuse - done * self.alone(trip) / BITS
        else:
            walk.left -= ticks
            mine.fuse = None if mine.fuse is None else mine.fuse - ticks
        self.entries = [
            entry
            for entry in self.entries
            if entry.subject is not trip or entry.what not in {"leg_ends", "latency_ends", "crash"}
        ]
        if self.weather.restarts and walk.leg in TRANSFERS:
            walk.left = self.length(trip)
            mine.left = BITS if self.shared(trip) is not None else Fraction(0)

    def crash(self, trip: Trip) -> None:
        """An attempt fails: what is through stays through, but a shared transfer pays its latency again."""
        walk, mine, shared = self.walks[trip.id], self.bits[trip.id], self.shared(trip)
        if shared is None:
            walk.fuse = None
            super().crash(trip)
            return
        self.stand(trip)
        left = mine.left
        if walk.retry >= self.weather.max_retries or walk.stray:
            self.end(trip, "crash")
            return
        self.met.add("retry")
        self.row("retry", trip)
        walk.retry, walk.resting, walk.halted = walk.retry + 1, True, False
        walk.left = self.length(trip)
        self.light(trip)
        mine.left = BITS if self.weather.restarts else self.whole_bytes(left)
        self.entries.append(Entry(self.now + self.weather.backoff, BETWEEN, trip.id, "resume", trip))

    def whole_bytes(self, left: Fraction) -> Fraction:
        """Only whole bytes need not be carried again."""
        return 8 * Fraction(math.ceil(left / 8))

    def end(self, trip: Trip, why: str | None) -> None:
        """A job is at its end: its transfer makes room."""
        self.off(trip)
        super().end(trip, why)

    def land(self, trip: Trip) -> None:
        """Also where it is cancelled."""
        if not self.walks[trip.id].stray:
            self.off(trip)
        super().land(trip)

    def off(self, trip: Trip) -> None:
        """Leave the road."""
        for road in self.roads.values():
            if trip.id in road.flows:
                road.advance(self.now)
                road.flows.pop(trip.id)
                self.met.add("transfer broken off")
