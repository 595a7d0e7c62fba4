"""How much memory a scenario needs at least, so that one that cannot fit is refused by name instead of killed.

All counts are lower bounds, measured on CPython 3.11 (a plan of 4,000,000 clients takes 160 bytes a client): what is
refused could not have been played; what passes may still meet the limit of the machine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from desim_fl.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from desim_fl.scenario import Scenario

CLIENT, EXAMPLE, CLASS, NUMBER = 128, 40, 64, 8  # bytes
FEATURE = 12  # of made data: drawn in double, kept in single precision
COPIES = 2  # of a model: the server's, and the one in training
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Part(NamedTuple):
    """Something that needs memory: bytes, and the key to lower."""

    size: int
    key: str
    value: Any


def memory() -> int | None:
    """Bytes of memory that this machine, or the container, has; ``None`` where the system does not say."""
    try:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, OSError, ValueError):
        return None
    for name in _LIMITS:
        try:
            found.append(int(Path(name).read_text()))
        except (OSError, ValueError):  # no such limit here, or "max"
            continue
    return min(found)


def require(scenario: Scenario, *, timing_only: bool) -> None:
    """Raise ``RefusedError``, naming the key that counts most, where clients and data cannot fit into memory."""
    _fit([*_population(scenario), *([] if timing_only else _data(scenario))])


def require_model(size_bytes: int, scenario: Scenario) -> None:
    """Raise ``RefusedError`` where a model of that size cannot be trained here."""
    key = {"mlp": "hidden", "cnn": "channels"}.get(scenario.model.name, "name")
    _fit([Part(COPIES * size_bytes, f"[model] {key}", _shown(getattr(scenario.model, key, None)))])


def _population(scenario: Scenario) -> Iterator[Part]:
    clients, data = scenario.clients, _plain(scenario)
    yield Part(clients.count * CLIENT, "[clients] count", clients.count)
    if data.name == "quadratic":
        return
    if data.name == "least_squares":
        yield Part(data.examples * NUMBER, "[data] examples", data.examples)
        return
    yield Part((_examples(data) + (getattr(data, "test_examples", 0) or 0)) * EXAMPLE, "[data] examples", data.examples)
    cells = NUMBER * (4 if clients.partition == "dirichlet" else 1)
    classes = getattr(data, "classes", 10)
    present = min(classes, _examples(data)) if clients.partition == "dirichlet" else classes
    yield Part(classes * CLASS + min(classes, present) * clients.count * cells, "[data] classes", classes)


def _data(scenario: Scenario) -> Iterator[Part]:
    data = _plain(scenario)
    if data.name == "blobs":
        rows = data.examples + data.test_examples
        yield Part((rows * FEATURE + data.classes * NUMBER) * data.features, "[data] features", data.features)
    if data.name == "least_squares":
        yield Part(data.examples * NUMBER * data.features, "[data] features", data.features)


def _plain(scenario: Scenario) -> Any:
    return scenario.data


def _examples(data: Any) -> int:
    return data.examples or 0


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _fit(parts: list[Part]) -> None:
    limit, need = memory(), sum(part.size for part in parts)
    if limit is None or need <= limit:
        return
    most = max(parts)
    key = most.key.split()[1]
    raise RefusedError(
        f"{most.key} = {most.value}: at least {_gigabytes(need)} of memory would be needed, this machine has "
        f"{_gigabytes(limit)}; {'choose a smaller model' if key == 'name' else 'lower ' + key}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
