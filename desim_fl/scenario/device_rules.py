"""Rules between the keys that describe devices; each looks at finished tables and yields what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.scenario.devices import PRICES, UNITS, WATTS
from desim_fl.scenario.table import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from desim_fl.scenario.devices import DeviceClass
    from desim_fl.scenario.table import Loc
    from desim_fl.scenario.world import Clients, Network

OF_CLIENTS = ("device_factor", "jitter_factor", "wait_s", "epoch_idle_s", *WATTS, *PRICES)
OF_NETWORK = ("down_mbps", "up_mbps", "latency_s")
FOR_EVERYBODY = ("wait_s", "down_mbps", "up_mbps")  # where one has it, all need it


def units(clients: Clients) -> Iterator[Problem]:
    """Work is measured in one way: by step, by sample, by job, or in FLOPs."""
    yield from _one_unit(clients, ("clients",))
    for index, kind in enumerate(clients.classes or ()):
        yield from _one_unit(kind, ("clients", "classes", index))
    measured = [kind.unit or clients.unit for kind in clients.classes or ()] or [clients.unit]
    doubts = (("clients", "classes"), ("clients", "device_flops"), ("clients", "flops_per_sample"))
    if "device_flops" in measured and clients.flops_per_sample is None:
        place = ("clients", "device_flops") if clients.device_flops is not None else ("clients", "classes")
        text = "device_flops needs the key flops_per_sample in [clients], the work that is divided by it"
        yield Problem(place, text, doubts)
    if "device_flops" not in measured and clients.flops_per_sample is not None:
        text = "flops_per_sample needs the key device_flops, which says how fast devices are"
        yield Problem(("clients", "flops_per_sample"), text, doubts)


def _one_unit(table: Any, place: Loc) -> Iterator[Problem]:
    found = [key for key in table.given(*UNITS) if getattr(table, key) is not None]
    for key in found[1:]:
        text = f"{key} and {found[0]} must not both be given: work is measured in one way"
        yield Problem((*place, key), text, ((*place, found[0]),))


def classes(clients: Clients, network: Network) -> Iterator[Problem]:
    """Classes have distinct names; what all of them say otherwise must not be said for all."""
    doubts = (("clients", "classes"),)
    if clients.classes is None:
        if clients.given("class_shares"):
            text = "class_shares must not be given without [[clients.classes]]"
            yield Problem(("clients", "class_shares"), text, doubts)
        return
    names = [kind.name for kind in clients.classes]
    for index, name in enumerate(names):
        if names.index(name) < index:
            text = f'name = "{name}" is also the name of the class before; names of classes must be distinct'
            yield Problem(("clients", "classes", index, "name"), text)
    yield from _shadowed("clients", clients, OF_CLIENTS, clients.classes)
    yield from _shadowed("network", network, OF_NETWORK, clients.classes)
    if clients.every_class_says("unit"):
        for key in clients.given(*UNITS):
            yield Problem(("clients", key), f"{key} has no effect: every class says how long work takes", doubts)


def noise(clients: Clients, network: Network) -> Iterator[Problem]:
    """Noise is on bandwidths, and needs some."""
    if network.noise_factor is None:
        for key in network.given("noise_window_s"):
            yield Problem(("network", key), f"{key} has no effect without noise_factor", (("network", "noise_factor"),))
        return
    said = [getattr(table, key) for table in (network, *(clients.classes or ())) for key in ("down_mbps", "up_mbps")]
    if all(rates is None for rates in said):
        text = "noise_factor has no effect: nobody has down_mbps or up_mbps that it could be multiplied with"
        yield Problem(("network", "noise_factor"), text, (("network", "down_mbps"), ("network", "up_mbps")))


def _shadowed(section: str, table: Any, keys: tuple[str, ...], kinds: tuple[DeviceClass, ...]) -> Iterator[Problem]:
    """Yield keys that no client reads, and keys that some clients would lack."""
    for key in keys:
        said = [getattr(kind, key) is not None for kind in kinds]
        doubts = (("clients", "classes"), (section, key))
        if all(said) and table.given(key):
            yield Problem((section, key), f"{key} has no effect: every class has its own", doubts)
        if key in FOR_EVERYBODY and any(said) and not all(said) and getattr(table, key) is None:
            text = f"{key} must be given for every class, or in [{section}] for those that have none"
            yield Problem(("clients", "classes", said.index(True), key), text, doubts)
