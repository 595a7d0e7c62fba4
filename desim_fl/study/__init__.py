"""What-if studies: a base scenario, what varies, seeds as replications, and what can be said about the differences.

A study file names a scenario, factors with their levels, and seeds. Every variant plays with every seed; since random
streams are keyed by seed, client and job count, variants with the same seed share their draws (common random
numbers), and differences are taken pair by pair.
"""

from desim_fl.study.conduct import conduct
from desim_fl.study.reading import load

__all__ = ["conduct", "load"]
