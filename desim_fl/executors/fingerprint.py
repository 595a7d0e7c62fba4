"""What decides the last bits of a result where a task runs, so that a cluster of unlike machines is noticed.

The facts of :func:`desim_fl.learning.identity.machine`, and what is taken for granted on one machine: Python, the
environment variables that choose kernels, and the source of what trains.
"""

from __future__ import annotations

import hashlib
import platform
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from desim_fl import __version__
from desim_fl.learning.facts import kernel_settings, source_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PACKAGE = Path(__file__).resolve().parent.parent
_CODE = ("learning/*.py", "executors/*.py", "draws.py", "algebra.py", "core.py")


class Mixed(Exception):  # noqa: N818  (a finding, told in a message of its own)
    """A worker's fingerprint is not the one that was expected."""


def facts(device: Any, model: str | None = None) -> dict[str, str]:
    """Facts by name, of this process; those of torch only where there is a ``device``, those of a model if named."""
    found = {
        "desim-fl": f"{__version__} {_source_digest()}",
        "python": platform.python_version(),
        "machine": platform.machine(),
        "kernels": kernel_settings(),
    }
    if model is not None:
        found["model source"] = _digest_of(source_file(model))
    if device is not None:
        from desim_fl.learning.identity import machine  # noqa: PLC0415  (needs torch)

        found |= machine(device)
    return found


def named_model(task: Any) -> str | None:
    """The module of a user's model factory, if a task's model is one (``"module:factory"``)."""
    model = getattr(task, "model", None)
    name = model.args[0] if isinstance(model, partial) and model.args else None
    return name.partition(":")[0] if isinstance(name, str) and ":" in name else None


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    """What is not the same, in one line; empty where everything is."""
    names = [name for name in expected if found.get(name) != expected[name]]
    return "; ".join(f"{name} is {found.get(name)!r} there, {expected[name]!r} here" for name in names)


def _source_digest() -> str:
    return _digest_of_all(_CODE)


@cache
def package() -> str:
    """Digest of desim-fl's whole source, for workers that do more than train."""
    return _digest_of_all(("**/*.py",))


def _digest_of_all(patterns: Iterable[str]) -> str:
    files = sorted(path for pattern in patterns for path in _PACKAGE.glob(pattern))
    return hashlib.sha256("".join(_digest_of(path) for path in files).encode()).hexdigest()[:12]


def _digest_of(path: str | Path | None) -> str:
    if path is None or not Path(path).is_file():  # built in, or a folder without code of its own
        return "absent"
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
