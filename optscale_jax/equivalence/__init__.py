"""Whether two answers are the same mathematics, decided by math-verify under a hard time limit."""

from optscale_jax.equivalence.checker import EquivalenceChecker

__all__ = ["EquivalenceChecker"]
