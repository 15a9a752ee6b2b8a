"""The beta law of scores, fitted by maximum likelihood."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from tensorflow_probability.substrates.jax.distributions import Distribution

from optscale_jax.distributions import Beta
from optscale_jax.estimation import Prior, descend
from optscale_jax.laws.base import Params
from optscale_jax.laws.logits import MARGIN, LogitInfo, LogitLaw, LogitStats, spread_floor
from optscale_jax.special_beta import digamma_gap, log_beta_peak, softplus_divergence
from optscale_jax.typing import Array, ArrayLike

__all__ = ["BetaLaw", "beta"]

_STEPS = 12
_SLACK = 32  # units of rounding in the log-likelihood, most of it in Stirling's remainders


def _remainder(x: Array) -> Array:
    """X (log x - digamma(x)), which falls from 1 at x = 0 to 1/2."""
    return x * digamma_gap(x)


class BetaLaw(LogitLaw):
    """The beta law, fitted by maximum likelihood."""

    parameters: ClassVar[tuple[str, ...]] = ("a", "b")
    family: ClassVar[type[Distribution]] = Beta
    # About the mean and deviation of the truncated normal's start.
    first: ClassVar[tuple[float, float]] = (4.9, 1.7)

    def fit(self, memory: LogitStats, prior: Prior | None = None) -> tuple[Params, LogitInfo]:
        """Maximum likelihood, by Newton's method on the mean's log-odds and log(a + b).

        With m and D the mean log-odds and the mean divergence, p = a / (a + b) and s = a + b, the
        negative log-likelihood of the log-odds is, a score,

            s (KL(p || sigmoid(m)) + D) + log B(a, b) - a log p - b log(1 - p),

        every term of which is computed without cancellation.
        """
        self.refuse_prior(prior)
        n = jnp.maximum(memory.n, 1)
        centre = memory.mean
        share = jax.nn.sigmoid(centre) * jax.nn.sigmoid(-centre)
        floor = 0.5 * share * spread_floor(centre) ** 2
        spread = jnp.maximum(memory.divergence / n, floor)

        def exponents(point):
            shift, log_total = point
            p, q = jax.nn.sigmoid(centre + shift), jax.nn.sigmoid(-(centre + shift))
            return p, q, jnp.exp(log_total)

        def evaluate(point):
            shift, _ = point
            p, q, total = exponents(point)
            a, b = total * p, total * q
            energy = total * (softplus_divergence(-shift, p, q) + spread)
            value = energy - log_beta_peak(a, b)

            def slope(x):
                return jax.jvp(_remainder, (x,), (x,))

            (r, r_slope), (r_a, a_slope), (r_b, b_slope) = (slope(x) for x in (total, a, b))
            pull = total * p * q * shift
            g1 = pull - q * r_a + p * r_b
            g2 = energy + r - r_a - r_b
            h11 = total * p * q * (1 + (q - p) * shift) + p * q * (r_a + r_b)
            h11 = jnp.maximum(h11 - q * q * a_slope - p * p * b_slope, 0.1 * total * p * q)
            h12 = pull - q * a_slope + p * b_slope
            h22 = energy + r_slope - a_slope - b_slope
            curvature = jnp.abs(h22 - h12 * h12 / h11)
            downhill = -(g2 - h12 * g1 / h11)
            # A factor of e^2 is as far as a quadratic model is worth following.
            step = jnp.clip(downhill / jnp.maximum(curvature, 1e-3), -2.0, 2.0)
            return value, (jnp.clip(-(g1 + h12 * step) / h11, -2.0, 2.0), step)

        # s D tends to 1/2 for narrow laws and to 1 for wide ones.
        start = (jnp.zeros_like(centre), jnp.log(0.5 / spread + 0.25))
        point, value, step = descend(evaluate, start, -jnp.inf, jnp.inf, _STEPS, slack=_SLACK)
        p, q, total = exponents(point)
        size = jnp.hypot(step[0] * jnp.sqrt(total * p * q), step[1])
        return self.fitted(memory, (total * p, total * q), value, size, spread > floor)


def beta(margin: ArrayLike = MARGIN) -> BetaLaw:
    """The beta law of scores; parameters a and b, the exponents at 0 and at 1; see `LogitLaw`."""
    return BetaLaw(margin=margin)
