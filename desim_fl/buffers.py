"""Buffers that clients brought (BatchNorm's statistics, say), until a version averages them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from desim_fl.core import Job
    from desim_fl.world import World

    Shares = tuple[tuple[int, float], ...]


class Brought(NamedTuple):
    """Buffers by job since the last publish, each with its client (``None`` = not finite); and, by client, those from before.

    The latter no version has averaged yet: a method with several rounds at once (FedAT) publishes one while it still
    collects another.
    """

    fresh: dict[int, tuple[int, Any]]
    older: dict[int, tuple[int, Any]]


class Buffers:
    """Keeps what clients brought; of versions long gone, one a client at most."""

    __slots__ = ("brought",)

    def __init__(self) -> None:
        self.brought = Brought({}, {})

    def bring(self, job: Job, buffers: Any) -> None:
        """Take in what a job brought; ``None`` stands for what is not finite."""
        self.brought.older.pop(job.client, None)
        self.brought.fresh[job.id] = job.client, buffers

    def averaged(self, world: World, base: Any, shares: Shares | None) -> Any:
        """Return the buffers of the next version, and go on to it.

        Without stated ``shares`` all updates since the last publish share alike. With them, what they do not name waits: a
        later version may.
        """
        fresh, older = self.brought
        known: dict[int, Any] = dict(older.values()) if shares is not None else {}
        known |= {job: buffers for job, (_, buffers) in fresh.items()}
        result = world.averaged(base, known, shares)
        self.brought = Brought({}, older if shares is None else _unnamed(self.brought, shares))
        return result


def _unnamed(brought: Brought, shares: Shares) -> dict[int, tuple[int, Any]]:
    """What of all that was brought no share has named, by client."""
    named = dict(shares)
    left = {client: kept for client, kept in brought.older.items() if kept[0] not in named}
    for job, (client, buffers) in brought.fresh.items():
        if buffers is not None and job not in named:
            left[client] = job, buffers
    return left
