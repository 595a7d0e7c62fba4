"""What-if studies: a base scenario, what varies, seeds as replications, and what can be said about the differences.

A study file names a scenario, factors with their levels, and seeds. Every variant plays with every seed; since random
streams are keyed by seed, client and job count, variants with the same seed share their draws (common random
numbers), and differences are taken pair by pair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from desim_fl.study.conductor import conduct
    from desim_fl.study.reading import load

__all__ = ["conduct", "load"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: the processes that play runs need neither, nor the statistics and charts behind them."""
    if name == "conduct":
        from desim_fl.study.conductor import conduct  # noqa: PLC0415

        return conduct
    if name == "load":
        from desim_fl.study.reading import load  # noqa: PLC0415

        return load
    raise AttributeError(f"module 'desim_fl.study' has no attribute {name!r}")
