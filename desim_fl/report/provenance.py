"""Where a run came from: hashes, versions and how to run it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from desim_fl.report.reading import Run

_PLAIN = (
    ("seed", "Seed", False),
    ("timeline_sha256", "Timeline", True),
    ("model_sha256", "Model", True),
    ("partition_sha256", "Partition", True),
    ("scenario_sha256", "Scenario", True),
)


class Row(NamedTuple):
    """A line of provenance; ``real`` marks wall time and host, which differ between equal runs."""

    label: str
    text: str
    code: bool = False
    real: bool = False


def rows(run: Run) -> list[Row]:
    """Hashes first, then data, versions and the host."""
    return list(_rows(run.manifest))


def _rows(manifest: Mapping[str, object]) -> Iterator[Row]:
    for key, label, digest in _PLAIN:
        if key in manifest:
            value = manifest[key]
            name = f"{label} (SHA-256)" if digest else label
            yield Row(name, "none: nothing was trained" if value is None else str(value), value is not None)
    yield from _nested(manifest, "data", "Data")
    yield Row("desim-fl", str(manifest.get("desim_fl", "unknown")))
    versions = manifest.get("versions")
    if isinstance(versions, dict):
        yield Row("Versions", ", ".join(f"{name} {version}" for name, version in sorted(versions.items())))
    for key, label in (("executor", "Executor"), ("device", "Device"), ("threads_per_job", "Threads a job")):
        if key in manifest:
            yield Row(label, str(manifest[key]))
    yield from _nested(manifest, "host", "Host", real=True)
    if "created" in manifest:
        yield Row("Created", str(manifest["created"]), real=True)


def _nested(manifest: Mapping[str, object], key: str, label: str, *, real: bool = False) -> Iterator[Row]:
    value = manifest.get(key)
    if isinstance(value, dict):
        yield Row(label, ", ".join(f"{name} {text}" for name, text in value.items()), real=real)
    elif value is not None:
        yield Row(label, str(value), real=real)
