"""Whether two answers are the same mathematics, decided under a hard time limit."""

from optscale_jax.equivalence.checker import EquivalenceChecker, cache_folder, comparison

__all__ = ["EquivalenceChecker", "cache_folder", "comparison"]
