"""Normal scores of unknown mean and variance: the conjugate prior, its posterior, and its learning.

sigma^2 ~ InverseGamma(shape, rate),    mu | sigma^2 ~ N(loc, sigma^2 / strength),
X_i | mu, sigma^2 ~ N(mu, sigma^2)  i.i.d.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from optscale_jax.distributions.base import known
from optscale_jax.estimation import ScoreStats
from optscale_jax.special_beta import student_t_excess
from optscale_jax.typing import Array, ArrayLike, Number
from optscale_jax.values import Value

__all__ = ["NormalInverseGamma", "StudentT"]

_MOST = 1000  # scores that a belief is worth where problems are all alike


class StudentT(NamedTuple):
    """A Student t: `tfd.StudentT(*law)`, each of shape [...]."""

    df: Number
    loc: Number
    scale: Number


class NormalInverseGamma(Value):
    """What is believed of the mean and the variance of a problem's scores.

    Attributes:
      loc: shape [...], the mean's, in units of score.
      strength: shape [...], how many scores the belief about the mean is worth, > 0.
      shape: shape [...], half of how many scores the belief about the variance is worth, > 1/2:
        with less the predictive law has no mean.
      rate: shape [...], shape times the variance that is believed, > 0.

    Raises:
      ValueError: a number outside its domain.

    References:
      Murphy (2007), "Conjugate Bayesian analysis of the Gaussian distribution", section 3.
    """

    loc: Number
    strength: Number
    shape: Number
    rate: Number

    def __post_init__(self):
        """Checks the numbers whose values are known."""
        for name, least in (("loc", -np.inf), ("strength", 0), ("shape", 0.5), ("rate", 0)):
            values = known(getattr(self, name))
            if values is not None and not np.all((values > least) & (values < np.inf)):
                domain = f"above {least:g}" if least > -np.inf else "finite"
                raise ValueError(f"prior: {name} must be {domain}, found {values}")

    def given(self, stats: ScoreStats) -> "NormalInverseGamma":
        """The posterior given scores, of the broadcast shape.

        strength' = strength + n,    loc' = (strength loc + n mean) / strength',
        shape' = shape + n / 2,
        rate' = rate + (m2 + strength n (mean - loc)^2 / strength') / 2
        """
        strength = self.strength + stats.n
        gap = stats.mean - self.loc
        share = stats.n / strength
        return NormalInverseGamma(
            loc=self.loc + share * gap,
            strength=strength,
            shape=self.shape + stats.n / 2,
            rate=self.rate + (stats.m2 + self.strength * share * gap**2) / 2,
        )

    def predictive(self) -> StudentT:
        """The law of the next score.

        A Student t with 2 shape degrees of freedom about loc, of
        scale^2 = rate (1 + 1 / strength) / shape.
        """
        scale = jnp.sqrt(self.rate * (1 + 1 / self.strength) / self.shape)
        return StudentT(2 * self.shape, self.loc, scale)

    def expected_improvement(self, best: ArrayLike) -> Array:
        """How much the next score raises the best in expectation: E[max(X - best, 0)] > 0.

        With z = (best - loc) / sigma, sigma the predictive's scale and nu its degrees of freedom,

            sigma [ (nu + z^2) / (nu - 1) t_nu(z) - z (1 - T_nu(z)) ];    inf for a best of -inf.
        """
        law = self.predictive()
        best = jnp.asarray(best)
        there = best > -jnp.inf
        z = (jnp.where(there, best, law.loc) - law.loc) / law.scale
        return jnp.where(there, law.scale * student_t_excess(z, jnp.asarray(law.df)), jnp.inf)

    @classmethod
    def pooled(cls, scores: ArrayLike, mask: ArrayLike | None = None) -> "NormalInverseGamma":
        """One prior for all problems, by the moments of their means and variances.

            E sigma^2 = rate / (shape - 1),    Var sigma^2 = (E sigma^2)^2 / (shape - 2),
            E mu = loc,    Var mu = E sigma^2 / strength,

        each less what n scores are off by: of their variance v the mean square is
        E sigma^4 (n + 1) / (n - 1), of their mean the variance is Var mu + E sigma^2 / n. The
        marginal likelihood has no maximum where a problem's scores are all equal.

        Args:
          scores: shape [P, N], in [0, 1].
          mask: True where there is a score, broadcastable against the scores, or None for all.

        Returns:
          The prior, scalar fields; strength at most 1,000, and shape 1,002, of problems all alike.

        Raises:
          ValueError: fewer than two problems with two scores or more, or none with any spread.
        """
        stats = ScoreStats.from_scores(scores, mask)
        n, mean, m2 = (np.asarray(v, np.float64) for v in (stats.n, stats.mean, stats.m2))
        use = n >= 2
        if use.sum() < 2 or not m2[use].any():
            raise ValueError(
                "a pooled prior needs two problems or more with two scores or more, and one whose "
                f"scores differ; found {use.sum()} of {use.size} problems"
            )
        n, mean, variance = n[use], mean[use], m2[use] / (n[use] - 1)
        within = variance.mean()
        spread = np.mean(variance**2 * (n - 1) / (n + 1)) - within**2
        between = mean.var(ddof=1) - np.mean(variance / n)
        shape = 2 + within**2 / max(spread, within**2 / _MOST)
        return cls(
            loc=float(mean.mean()),
            strength=float(within / max(between, within / _MOST)),
            shape=float(shape),
            rate=float(within * (shape - 1)),
        )
