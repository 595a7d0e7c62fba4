"""From the tables about clients and network to their devices, links and trips."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from desim_fl import durations
from desim_fl.devices import JOB, SAMPLE, STEP, Devices, Samples, assigned
from desim_fl.draws import ClientSlot
from desim_fl.energy import POWERS, PRICES, Tariff
from desim_fl.network import Links, Noise, SharedWays, Way, bits_a_second, regions
from desim_fl.service import OpenLaw, ServiceLaw
from desim_fl.ticks import scaled, to_ticks
from desim_fl.timing import DrawnTrips, JobDraws, JobLaws, per_class, per_client

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from desim_fl.assignment import Assignment
    from desim_fl.population import Population
    from desim_fl.scenario import Scenario

_PER = {"seconds_per_step": STEP, "seconds_per_sample": SAMPLE, "seconds_per_job": JOB, "device_flops": SAMPLE}


def law(table: Any) -> durations.Law:
    """Return the law that a table describes."""
    return durations.build(**table.parameters())


def trips(scenario: Scenario, people: Population, size_bytes: int, assignment: Assignment) -> DrawnTrips:
    """Return what draws the trips of a scenario's clients."""
    clients, seed = scenario.clients, scenario.run.seed
    shares = [kind.share for kind in clients.classes or ()]
    classes = assigned(shares, seed, people.keys, exact=clients.class_shares == "exact") if shares else None
    constants = partial(_constants, scenario, people, classes)
    job_laws, network = _job_laws(scenario), scenario.network
    return DrawnTrips(
        links=Links(
            size_bytes=size_bytes,
            latency_s=constants("network", "latency_s", ClientSlot.LATENCY),
            down_mbps=constants("network", "down_mbps", ClientSlot.DOWN_MBPS),
            up_mbps=constants("network", "up_mbps", ClientSlot.UP_MBPS),
        ).sharing(down=network.shares_down, up=network.shares_up, noisy=network.noise_factor is not None),
        devices=_devices(scenario, people, assignment, classes, constants),
        job_draws=JobDraws(seed, people.keys, job_laws[0], classes, () if classes is None else tuple(job_laws[1:])),
        delay_scale=scenario.run.delay_scale,
        usual_steps=[work.steps or 0 for work in assignment.usual],
        epoch_steps=assignment.steps_per_epoch,
        probe_share=scenario.run.poc_probe_share,
        usual_jobs=_jobs_each(scenario),
    )


def _jobs_each(scenario: Scenario) -> int:
    """Jobs that a client will have, were all alike: a quarter more than those that a stop rule says, at most; 0 where none does."""
    stops = [stop for stop in (scenario.run.max_updates, scenario.run.max_versions) if stop is not None]
    return 5 * min(stops, default=0) // (4 * scenario.clients.count)


def typical_s(trips: DrawnTrips, steps: Sequence[int]) -> NDArray[np.float64]:
    """Seconds from dispatch to arrival of each client's job of so many steps, every drawn quantity at its median."""
    draws, clients, amount = trips.job_draws, np.arange(len(steps)), np.asarray(steps, np.int64)
    mine = np.zeros(len(steps), np.int64) if draws.classes is None else draws.classes.astype(np.int64)
    kinds = (draws.laws,) if draws.classes is None else draws.by_class

    def median(name: str, otherwise: float) -> NDArray[np.float64]:
        laws = [getattr(laws, name) for laws in kinds]
        return np.array([otherwise if each is None else each.at(0.5) for each in laws])[mine]

    epochs = -(-amount // np.maximum(np.asarray(trips.epoch_steps, np.int64), 1))
    down, up = trips.links.usual_transfers(clients)
    latency = 2.0 * np.asarray(trips.links.latency_s) * median("latency_jitter_factor", 1.0)
    compute = trips.devices.computes_s(clients, amount) * median("jitter_factor", 1.0)
    return compute + epochs * median("epoch_idle_s", 0.0) + median("wait_s", 0.0) + latency + (down + up) / 1e6


def server_side(scenario: Scenario) -> dict[str, Any]:
    """Return how jobs leave and are taken in, by the names of :class:`~desim_fl.world.World`."""
    queue = scenario.run.client_queue or 1
    return {"arrivals": _arrivals(scenario), "client_queue": queue, "server": _service(scenario)}


def _arrivals(scenario: Scenario) -> OpenLaw | None:
    """Return when jobs leave in an open system; ``None`` = the system is closed."""
    run = scenario.run
    if run.arrivals is None or run.arrival_rate is None:
        return None
    return OpenLaw(run.arrivals, run.arrival_rate, run.seed, run.delay_scale)


def _service(scenario: Scenario) -> ServiceLaw | None:
    """Return how the server takes updates in; ``None`` = at once."""
    table, run = scenario.server, scenario.run
    if table.aggregation_s is None and table.evaluation_s is None:
        return None
    return ServiceLaw(
        None if table.aggregation_s is None else law(table.aggregation_s),
        table.queue,
        table.batch or 1,
        scaled(to_ticks(table.evaluation_s or 0.0), run.delay_scale),
        table.blocking,
        run.seed,
        run.delay_scale,
    )


def tariff(scenario: Scenario, devices: Devices) -> Tariff:
    """Return what power and money the scenario states, by class of devices."""
    rates: dict[str, Sequence[float] | None] = {}
    for key in (*POWERS, *PRICES):
        values = said(scenario, "clients", key)
        values = values if devices.classes is None else values[1:]
        stated = any(value is not None for value in values)
        rates[key] = [value or 0.0 for value in values] if stated else None
    return Tariff(rates, devices.classes)


def shared(scenario: Scenario, people: Population, links: Links) -> SharedWays | None:
    """Return the links that transfers share, or that get better and worse; ``None`` where everybody has links of their own."""
    network, run = scenario.network, scenario.run
    if not (links.shared_down or links.shared_up):
        return None
    noise = (
        None if network.noise_factor is None else (law(network.noise_factor), max(1, to_ticks(network.noise_window_s)))
    )
    homes = None if network.region_shares is None else regions(network.region_shares, run.seed, people.keys)

    def way(server: float | None, each: Sequence[float] | None, own: Sequence[float] | None, slot: int) -> Way | None:
        if server is None and each is None and (noise is None or own is None):
            return None
        mine = None if noise is None or own is None else Noise(run.seed, people.keys, *noise, slot)
        regional = (None,) * len(network.region_shares or (1,)) if each is None else [bits_a_second(r) for r in each]
        return Way(None if server is None else bits_a_second(server), regional, homes, own, run.delay_scale, mine)

    return SharedWays(
        egress=way(network.server_egress_mbps, network.region_down_mbps, links.down_mbps, 0),
        ingress=way(network.server_ingress_mbps, network.region_up_mbps, links.up_mbps, 1),
    )


def said(scenario: Scenario, section: str, key: str) -> list[Any]:
    """Return what holds for all, and what for each class of devices: its own, or else that."""
    common = getattr(getattr(scenario, section), key)
    each = [getattr(kind, key) for kind in scenario.clients.classes or ()]
    return [common, *(common if value is None else value for value in each)]


def _constants(
    scenario: Scenario, people: Population, classes: NDArray[np.int16] | None, section: str, key: str, slot: ClientSlot
) -> Any:
    """Draw a constant of every client, each from the law of its class; ``None`` where there is no law."""
    laws = [None if table is None else law(table) for table in said(scenario, section, key)]
    if classes is None:
        return None if laws[0] is None else per_client(laws[0], scenario.run.seed, people.keys, slot)
    if all(each is None for each in laws[1:]):
        return None
    return per_class(laws[1:], classes, scenario.run.seed, people.keys, slot)


def _job_laws(scenario: Scenario) -> list[JobLaws]:
    """Return the laws of what is drawn for every job: for all, then for each class."""
    jitter, wait, idle = (said(scenario, "clients", key) for key in ("jitter_factor", "wait_s", "epoch_idle_s"))
    latency = _factor(scenario.network.latency_jitter_factor)
    return [
        JobLaws(
            _factor(jitter[at]),
            None if wait[at] is None else law(wait[at]),
            latency,
            None if idle[at] is None else law(idle[at]),
        )
        for at in range(len(jitter))
    ]


def _factor(table: Any) -> durations.Law | None:
    """Return a factor's law, or ``None`` where it is always 1 and need not be drawn."""
    found = law(table)
    return None if found == durations.Constant(1.0) else found


def _devices(
    scenario: Scenario,
    people: Population,
    assignment: Assignment,
    classes: NDArray[np.int16] | None,
    constants: Callable[..., Any],
) -> Devices:
    clients = scenario.clients
    kinds: Sequence[Any] = [clients] if classes is None else clients.classes or ()
    units = [kind.unit or clients.unit for kind in kinds]
    samples = None
    if any(_PER[unit] == SAMPLE for unit in units):
        samples = Samples(people.sizes, assignment.steps_per_epoch, scenario.training.batch_size)
    return Devices(
        factor=constants("clients", "device_factor", ClientSlot.DEVICE_FACTOR),
        unit_s=_unit_s(scenario, units, kinds, classes, constants),
        per=_PER[units[0]] if classes is None else np.array([_PER[unit] for unit in units], np.int8)[classes],
        samples=samples,
        classes=classes,
        class_names=tuple(kind.name for kind in clients.classes or ()),
    )


def _unit_s(
    scenario: Scenario,
    units: Sequence[str],
    kinds: Sequence[Any],
    classes: NDArray[np.int16] | None,
    constants: Callable[..., Any],
) -> float | NDArray[np.float64]:
    """Return seconds of a unit of work at factor 1: one number where it is the same for all, or one a client."""
    clients = scenario.clients
    flops = None
    if "device_flops" in units:
        flops = np.asarray(constants("clients", "device_flops", ClientSlot.DEVICE_FLOPS))
    if classes is None:
        return getattr(clients, units[0]) if flops is None else clients.flops_per_sample / flops
    seconds = np.empty(len(classes))
    for number, (unit, kind) in enumerate(zip(units, kinds, strict=True)):
        those = classes == number
        if unit == "device_flops" and flops is not None:
            seconds[those] = clients.flops_per_sample / flops[those]
        else:
            seconds[those] = getattr(clients if kind.unit is None else kind, unit)
    return seconds
