"""torch's process-wide settings, as a script may have set them: workers get the parent's, or bits would differ."""

from __future__ import annotations

import sys
from typing import Any


def captured() -> dict[str, Any]:
    """Return the settings of this process; empty where torch is not loaded or nothing was set, so that none loads it."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return {}
    found = {
        "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
    }
    untouched = {
        "dtype": torch.float32,
        "precision": "highest",
        "deterministic": False,
        "warn_only": False,
        "mkldnn": True,
    }
    return {} if found == untouched else found


def applied(settings: dict[str, Any]) -> None:
    """Set them in a worker."""
    if not settings:
        return
    import torch  # noqa: PLC0415  (a task without torch needs none)

    torch.set_default_dtype(settings["dtype"])
    torch.set_float32_matmul_precision(settings["precision"])
    torch.use_deterministic_algorithms(settings["deterministic"], warn_only=settings["warn_only"])
    torch.backends.mkldnn.set_flags(settings["mkldnn"])
