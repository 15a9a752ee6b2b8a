"""Laws of scores as a policy uses them: what it remembers, its fit, its distribution.

One file a law; `Law` is what one of your own has to be. Builds on `optscale_jax.distributions` and
`optscale_jax.estimation`.
"""

from optscale_jax.laws.base import Law
from optscale_jax.laws.truncated_normal import TruncatedNormalLaw, truncated_normal

__all__ = ["Law", "TruncatedNormalLaw", "truncated_normal"]
