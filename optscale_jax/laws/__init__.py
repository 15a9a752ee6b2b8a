"""Laws of scores as a policy uses them: what it remembers, its fit, its distribution.

One file a law; `Law` is what one of your own has to be. Builds on `optscale_jax.distributions` and
`optscale_jax.estimation`.
"""

from optscale_jax.laws.base import Law, fit_rows
from optscale_jax.laws.beta import BetaLaw, beta
from optscale_jax.laws.logit_normal import LogitNormalLaw, logit_normal
from optscale_jax.laws.named import LAWS, make_law
from optscale_jax.laws.truncated_normal import TruncatedNormalLaw, truncated_normal
from optscale_jax.laws.with_atoms import WithAtomsLaw, with_atoms

__all__ = [
    "LAWS",
    "BetaLaw",
    "Law",
    "LogitNormalLaw",
    "TruncatedNormalLaw",
    "WithAtomsLaw",
    "beta",
    "fit_rows",
    "logit_normal",
    "make_law",
    "truncated_normal",
    "with_atoms",
]
