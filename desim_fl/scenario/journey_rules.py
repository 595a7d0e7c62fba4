"""Rules between the keys of [availability] and [failures]; each looks at finished tables and yields what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from desim_fl.scenario.availability import WindowsTable
from desim_fl.scenario.failures import BACKOFF, FailuresTable
from desim_fl.scenario.synchronous import RoundTable
from desim_fl.scenario.table import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from desim_fl.scenario.table import Table
    from desim_fl.scenario.world import Clients


def windows(clients: Clients, availability: Table) -> Iterator[Problem]:
    """Every client has a list of windows."""
    if isinstance(availability, WindowsTable) and len(availability.windows_s) != clients.count:
        text = f"windows_s has {len(availability.windows_s)} entries, but [clients] count = {clients.count}"
        yield Problem(("availability", "windows_s"), text, (("clients", "count"),))


def failures(failures: FailuresTable) -> Iterator[Problem]:
    """Keys that say how, where nothing says that."""
    needs = (
        (("duplicate_delay_s",), failures.duplicate > 0, "duplicate above 0"),
        (("max_retries",), failures.retried or not failures.max_retries, 'a chance of a crash, or on_outage = "fail"'),
        (BACKOFF, failures.max_retries > 0, "max_retries above 0"),
        (("late",), failures.timeout_s is not None, "the key timeout_s"),
        (("on_outage",), failures.goes_down, "outages_s, or outage_every_s"),
        (("outage_for_s",), failures.outage_every_s is not None, "the key outage_every_s"),
    )
    for keys, there, what in needs:
        for key in failures.given(*keys):
            if not there:
                yield Problem(("failures", key), f"{key} has no effect without {what}")
    if failures.outage_every_s is not None and failures.outage_for_s is None:
        yield Problem(("failures", "outage_every_s"), "outage_every_s needs the key outage_for_s")
    if failures.outage_every_s is not None and failures.outages_s is not None:
        yield Problem(("failures", "outages_s"), "outages_s and outage_every_s must not both be given")


def interruptions(availability: Table, failures: FailuresTable) -> Iterator[Problem]:
    """What an interrupted transfer does matters only where one is interrupted."""
    pauses = getattr(availability, "pauses", False)
    if failures.given("interrupted_transfers") and not (pauses or failures.interrupts()):
        text = (
            "interrupted_transfers has no effect: nothing here interrupts a transfer that goes on (a client's pause, an "
            "outage that is waited for, a retry)"
        )
        yield Problem(
            ("failures", "interrupted_transfers"), text, (("availability", "on_leave"), ("availability", "name"))
        )


def late(failures: FailuresTable, strategy: Table) -> Iterator[Problem]:
    """A round knows its own cohort: nobody is sent out beside it."""
    if failures.late == "accept" and isinstance(strategy, RoundTable):
        name = getattr(strategy, "name", "")
        text = f'late = "accept" does not go with strategy {name}, whose rounds end by deadline_s'
        yield Problem(("failures", "late"), text, (("strategy", "name"),))
