"""Which device a run computes on."""

from __future__ import annotations

import torch

from desim_fl.errors import RefusedError

NAMES = ("cpu", "cuda", "auto")


def resolve(name: str) -> torch.device:
    """Return the device that "cpu", "cuda" or "auto" (CUDA where there is one) means on this machine.

    Raises ``RefusedError`` for another name, or for "cuda" where torch finds no CUDA device.
    """
    if name not in NAMES:
        raise RefusedError(f"[executor] device = {name!r}: known are {', '.join(NAMES)}")
    available = name != "cpu" and torch.cuda.is_available()
    if name == "cuda" and not available:
        raise RefusedError('[executor] device = "cuda": torch finds no CUDA device here; use "cpu" or "auto"')
    return torch.device("cuda", 0) if available else torch.device("cpu")
