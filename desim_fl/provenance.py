"""What a result was made with: versions of Python and of the packages that results depend on."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

_RECORDED = ("numpy", "simpy", "polars", "torch", "torchvision", "altair", "safetensors", "pydantic")


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on; imports none of them."""
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # running from a tree without metadata
            continue
    return found
