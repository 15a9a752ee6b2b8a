"""Laws of verifier scores, as TFP distributions: one file each."""

from optscale_jax.distributions.best_of_n import BestOfN
from optscale_jax.distributions.beta import Beta
from optscale_jax.distributions.logit_normal import LogitNormal
from optscale_jax.distributions.truncated_normal import TruncatedNormal
from optscale_jax.distributions.with_atoms import WithAtoms

__all__ = ["BestOfN", "Beta", "LogitNormal", "TruncatedNormal", "WithAtoms"]
