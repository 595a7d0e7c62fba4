"""The dispatch desk: which places are open, and who takes them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from desim_fl.core import Send
from desim_fl.errors import LawError, RefusedError, RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from desim_fl.core import View
    from desim_fl.population import Roster
    from desim_fl.world import World


ANYBODY = Send()  # what the dispatch policy asks for most of the time


class Desk:
    """Open places of two kinds: those a strategy asked for, and those that the dispatch policy refills."""

    __slots__ = (
        "_deep",
        "_depart",
        "_foreseen",
        "_held",
        "_immediate",
        "_open",
        "_selector",
        "_selector_state",
        "_sent",
        "_view",
        "_world",
        "asked",
        "dispatched",
        "explicit",
        "roster",
    )

    def __init__(
        self, world: World, view: View, sent: Sequence[int], depart: Callable[[int, Send], None], roster: Roster
    ) -> None:
        self.roster = roster
        self.explicit = False  # whether the strategy has ever chosen its own sends
        self.dispatched = 0
        self._world, self._view, self._sent, self._depart = world, view, sent, depart
        self._deep = world.client_queue > 1
        self._selector, self._immediate = world.selector, world.dispatch == "immediate"
        self._selector_state = world.selector.start()
        self._foreseen = 0 if _can_foresee(world) else math.inf  # dispatches below this number are foretold
        self.asked: list[Send] = []
        self._open = 0
        self._held = 0  # places that wait for the next publish

    @property
    def open_places(self) -> int:
        """Places that somebody could take now."""
        return max(self._open, 0) + sum(
            len(send.clients) if send.clients is not None else send.count for send in self.asked
        )

    @property
    def held_places(self) -> int:
        """Places that the policy ``after_aggregation`` keeps until the next publish."""
        return self._held

    @property
    def takes_anybody(self) -> bool:
        """Whether a place waits that the next client to come would fill at once, rather than a cohort."""
        return self._open > 0 or any(send.wait or send.clients is not None for send in self.asked)

    @property
    def probes(self) -> Collection[int]:
        """Probes on their way, by job: they take no place."""
        return ()

    @property
    def unfilled(self) -> tuple[Send, ...]:
        """What a strategy asked for that nobody has taken yet."""
        return tuple(self.asked)

    def take_up(self, sends: Sequence[Send]) -> None:
        """Put these in the places of those unfilled."""
        self.asked = list(sends)

    def misses(self, job: int) -> bool:  # noqa: ARG002
        """Hear of a lost job; whether it was a probe, of which no strategy knows."""
        return False

    def owe(self) -> None:
        """A job will land whose place was filled meanwhile: its landing opens none."""
        self._open -= 1

    def hear(self, client: int, loss: float | None) -> None:
        """Pass a trained value on to a selector that reads outcomes; it stands in the arrival's row already."""
        hear = getattr(self._selector, "hear")  # noqa: B009  (only these selectors have it)
        self._selector_state = hear(self._selector_state, client, loss)

    def turn_over(self, *, published: bool) -> None:
        """One came, so one leaves: the usual case of :meth:`serve`, without detours."""
        if not self._immediate or self._open or self._held or self.asked or not self.roster.selectable:
            self.serve(None, 1, at_once=False, published=published)
            return
        number = self.dispatched
        if number >= self._foreseen:
            self._foresee()
        self._selector_state, chosen = self._selector.choose(
            self._selector_state, self._view, self.roster, ANYBODY, number
        )
        if len(chosen) == 1:
            self._depart(chosen[0], ANYBODY)
            self.dispatched = number + 1
        elif chosen:
            self._check_choice(chosen, 1)
        else:
            self._open = 1

    def serve(self, sends: tuple[Send, ...] | None, freed: int, *, at_once: bool, published: bool) -> None:
        """Open the places a strategy asks for, or else (``None``) those that became free; fill all that can be filled."""
        if sends is not None:
            self.explicit = self.explicit or bool(sends)
            self.asked.extend(sends)
        elif at_once or self._immediate:
            self._open += freed
        else:
            self._held += freed
        if published and self._held:
            self._open, self._held = self._open + self._held, 0
        if self.asked:
            left = [self._send(send) for send in self.asked]
            self.asked = [send for send in left if send is not None]
        if self._open > 0 and self.roster.selectable:
            send = ANYBODY if self._open == 1 else Send(self._open)
            self._open -= self._fill(send, refills=True)
            if self._deep and self._open < send.count:  # a cohort is distinct; the rest goes round once more
                self.serve((), 0, at_once=True, published=False)

    def _send(self, send: Send) -> Send | None:
        """Dispatch whom a send asks for and return what of it stays open."""
        if send.secret:
            raise RefusedError("secure groups (Send.secret) cannot be played yet")
        self._check(send)
        if send.clients is None:
            filled = self._fill_from_group(send)
            rest = send._replace(count=send.count - filled)
        else:
            taken = tuple(client for client in send.clients if self.roster.is_selectable(client))
            filled = self._send_out(taken, send)
            rest = send._replace(clients=tuple(client for client in send.clients if client not in taken))
        left = bool(rest.clients) if send.clients is not None else rest.count > 0
        return rest if left and (send.wait or not filled) else None

    def _fill(self, send: Send, *, refills: bool) -> int:  # noqa: ARG002
        """Fill places with whom the selector chooses, and return how many; ``refills`` where they are the policy's."""
        return self._send_out(self._choose(send), send)

    def _send_out(self, clients: Sequence[int], send: Send) -> int:
        """Dispatch a job to each of these clients; returns how many they are."""
        for client in clients:
            self._depart(client, send)
            self.dispatched += 1
        return len(clients)

    def _check(self, send: Send) -> None:
        named, total = send.clients or (), self._view.clients
        if len(set(named)) < len(named) or not all(0 <= client < total for client in named):
            raise RunError(
                f"the strategy sends to the clients {named}; one send names distinct client numbers from 0 to {total - 1}"
            )
        if send.start is not None and send.start.version > self._view.version:
            raise RunError(
                f"the strategy sends version {send.start.version} out, but the server is at version {self._view.version}"
            )

    def _choose(self, send: Send) -> tuple[int, ...]:
        """Have the selector choose; ``depart`` checks that a client it chose alone is selectable."""
        if self.dispatched >= self._foreseen:
            self._foresee()
        self._selector_state, chosen = self._selector.choose(
            self._selector_state, self._view, self.roster, send, self.dispatched
        )
        if len(chosen) > 1:
            self._check_choice(chosen, send.count)
        return chosen

    def _fill_from_group(self, send: Send) -> int:
        if not self.roster.selectable:
            return 0
        if send.group is not None and send.group not in self._world.groups:
            raise RefusedError(
                f'the strategy sends to the group "{send.group}", which is not one of this world\'s groups'
            )
        return self._fill(send, refills=False)

    def _foresee(self) -> None:
        """Let the trips of those who will most likely be sent out next be drawn at once: faster, and never otherwise."""
        world: Any = self._world
        clients = world.selector.likely(self._selector_state, self._view, self.roster, self.dispatched)
        self._foreseen = self.dispatched + max(1, len(clients))
        world.trips.expect(clients, [self._sent[client] for client in clients])

    def _check_choice(self, chosen: tuple[int, ...], count: int) -> None:
        distinct = len(chosen) == len(set(chosen)) <= count
        if not distinct or not all(map(self.roster.is_selectable, chosen)):
            raise LawError(f"the selector chose {chosen} for {count} places: not distinct selectable clients")


def _can_foresee(world: World) -> bool:
    """Whether the selector can foretell and the trips want to know: two options that neither protocol asks for."""
    return hasattr(world.selector, "likely") and getattr(world.trips, "foresees", False)
