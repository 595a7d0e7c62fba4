"""desim-fl: a discrete-event simulator for asynchronous federated learning in virtual time.

``desim_fl.run``, ``desim_fl.plan`` and ``desim_fl.load_run`` are what there is from Python (:mod:`desim_fl.api`); nothing is imported
before one of them is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "load_run", "plan", "run"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import what is asked for; ``run`` is the module of that name, which can be called."""
    if name == "run":
        return import_module("desim_fl.run")
    if name in __all__:
        return getattr(import_module("desim_fl.api"), name)
    raise AttributeError(f"module 'desim_fl' has no attribute {name!r}")
