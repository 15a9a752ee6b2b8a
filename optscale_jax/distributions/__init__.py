"""Laws of verifier scores, as TFP distributions: one file each."""

from optscale_jax.distributions.best_of_n import BestOfN
from optscale_jax.distributions.truncated_normal import TruncatedNormal

__all__ = ["BestOfN", "TruncatedNormal"]
