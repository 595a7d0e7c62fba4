"""From the tables [availability] and [failures] to the parts of a world that they describe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from desim_fl import draws, durations, traces
from desim_fl.availability import DAY, Diurnal, Renewal, listed
from desim_fl.course import Rules
from desim_fl.draws import AvailabilitySlot, Purpose
from desim_fl.failures import Failures, Outages, Perils
from desim_fl.ticks import to_ticks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from desim_fl.availability import Availability, Listed
    from desim_fl.population import Population
    from desim_fl.scenario import Scenario
    from desim_fl.traces import Trace

_HOUR = DAY // 24


def availability(scenario: Scenario, people: Population) -> tuple[Availability | None, Trace | None]:
    """Make what says when clients are online (``None`` = always); the trace beside it where there is one.

    Raises ``ScenarioError`` for a trace that cannot be read.
    """
    table: Any = scenario.availability
    if table.name == "always":
        return None, None
    if table.name == "trace":
        columns = (table.client_column, table.start_column, table.end_column)
        trace = traces.read(Path(table.path), columns, table.origin_s, table.period_s)
        return trace.windows, trace
    if table.name == "windows":
        return _listed(table.windows_s, table.period_s), None
    if table.name == "renewal":
        seed, keys = scenario.run.seed, people.keys
        return Renewal(seed, keys, _law(table.on_s), _law(table.off_s), table.start), None
    return _diurnal(scenario, people), None


def _law(table: Any) -> durations.Law:
    return durations.build(**table.parameters())


def _listed(by_client: Sequence[Iterable[Sequence[float]]], period_s: float | None) -> Listed:
    found = [
        (client, to_ticks(start), to_ticks(end)) for client, windows in enumerate(by_client) for start, end in windows
    ]
    device, start, end = np.array(found, np.int64).reshape(-1, 3).T
    period = None if period_s is None else max(1, to_ticks(period_s))
    return listed(device, start, end, len(by_client), period)


def _diurnal(scenario: Scenario, people: Population) -> Diurnal:
    """Fixed windows of each client, whose edges lie at a phase of its own so that not everybody changes at once."""
    table: Any = scenario.availability
    seed, keys, width = scenario.run.seed, np.asarray(people.keys, np.int64), to_ticks(table.window_s)
    zone, phase = (
        draws.uniforms(draws.words(seed, Purpose.AVAILABILITY, keys, 0, slot))
        for slot in (AvailabilitySlot.TIME_ZONE, AvailabilitySlot.PHASE)
    )
    hours = np.minimum(np.asarray(_law(table.time_zone_h).at(zone)), 1e6)
    zones = np.rint(hours * _HOUR).astype(np.int64) % DAY
    phases = np.floor(phase * width).astype(np.int64)
    peak = round(table.peak_h * _HOUR)
    return Diurnal(seed, keys, zones, phases, width, table.mean, table.amplitude, peak)  # pyright: ignore[reportArgumentType]


def perils(scenario: Scenario, people: Population) -> Perils | None:
    """Make what may befall jobs; ``None`` where nothing does."""
    table, presence = scenario.failures, scenario.availability
    if table == type(table)() and presence.name == "always":
        return None
    rules = Rules(
        getattr(presence, "on_leave", "drop"), table.on_outage, restarts=table.interrupted_transfers == "restart"
    )
    return Perils(rules, _outages(scenario), _failures(scenario, people))


def _outages(scenario: Scenario) -> Outages | None:
    table = scenario.failures
    if table.outages_s is not None:
        return Outages(_listed([table.outages_s], None))
    if table.outage_every_s is None or table.outage_for_s is None:
        return None
    on, off = _law(table.outage_for_s), _law(table.outage_every_s)
    return Outages(Renewal(scenario.run.seed, range(1), on, off, "off", Purpose.OUTAGE))


def _failures(scenario: Scenario, people: Population) -> Failures | None:
    table, scale = scenario.failures, scenario.run.delay_scale
    if not table.entries().keys() - {
        "outages_s",
        "outage_every_s",
        "outage_for_s",
        "on_outage",
        "interrupted_transfers",
    }:
        return None
    return Failures(
        seed=scenario.run.seed,
        keys=people.keys,
        crash_download=table.crash_download,
        crash_compute=table.crash_compute,
        crash_upload=table.crash_upload,
        crash_hazard_per_s=table.crash_hazard_per_s,
        upload_loss=table.upload_loss,
        duplicate=table.duplicate,
        duplicate_delay_s=_law(table.duplicate_delay_s) if table.duplicate else None,
        max_retries=table.max_retries,
        backoff_s=_law(table.backoff_s),
        backoff_factor=table.backoff_factor,
        timeout=None if table.timeout_s is None else max(1, to_ticks(table.timeout_s)),
        late=table.late,
        scale=int(scale) if scale == int(scale) else 1,
    )
