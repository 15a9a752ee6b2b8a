"""The logit-normal law of scores: a normal law of their log-odds."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optscale_jax.distributions.base import (
    Interval,
    compiled,
    parameter,
    parameter_properties,
    solve_falling,
)
from optscale_jax.special import Tails, mills_ratio
from optscale_jax.typing import ArrayLike

__all__ = ["LogitNormal"]

_DIRECT_BEYOND = 20.0  # in logits: farther apart than this, a difference of logits is exact enough


def _standard(x, y, loc, scale):
    """(logit(x) - loc) / scale, given y = 1 - x.

    The logit itself is rounded to a millionth at x = 1 - 1e-6 in float32, which a narrow scale
    magnifies; the log of the quotient of x's odds and loc's is not, where they are near.
    """
    plain = jnp.log(x) - jnp.log(y) - loc
    near = jnp.abs(plain) < _DIRECT_BEYOND
    odds = jnp.where(near, x, 0.5) / jnp.where(near, y, 0.5)
    # Half of the exponent at a time: e^-loc alone may overflow.
    half = jnp.exp(-0.5 * jnp.where(near, loc, 0.0))
    return jnp.where(near, jnp.log(odds * half * half), plain) / scale


def _log_phi(z):
    return -0.5 * z * z - 0.5 * math.log(2 * math.pi)


def _normal_tails(z) -> Tails:
    """Tails of the standard normal: the smaller from the Mills ratio, the larger from it."""
    far = jnp.abs(z)
    smaller = _log_phi(far) + jnp.log(mills_ratio(far))
    larger = jnp.log1p(-jnp.exp(smaller))
    below, above = jnp.where(z < 0, smaller, larger), jnp.where(z < 0, larger, smaller)
    return Tails(below, above, above - below)


@jax.custom_jvp
@jax.jit
def _normal_inverse(log_odds):
    """The z with log(Phi(-z) / Phi(z)) = log_odds."""

    def evaluate(z):
        tails = _normal_tails(z)
        return tails.log_odds, -tails.steepness(_log_phi(z))

    size = jnp.abs(log_odds)
    # log_odds is about z^2 / 2 far out and 1.6 z about 0.
    start = -jnp.sign(log_odds) * jnp.minimum(size / 1.6, jnp.sqrt(2 * size))
    return solve_falling(evaluate, log_odds, start)


@_normal_inverse.defjvp
def _(primals, tangents):
    z = _normal_inverse(*primals)
    return z, -tangents[0] / _normal_tails(z).steepness(_log_phi(z))


@jax.tree_util.register_pytree_node_class
class LogitNormal(Interval):
    """The law of sigmoid(Y), Y normal: a normal law of the scores' log-odds.

        f(x) = phi((logit(x) - loc) / scale) / (scale x (1 - x)),    0 < x < 1.

    The density is 0 at both ends, however slowly; for a scale above 1.5 or so it has two modes.
    As `tfp.distributions.LogitNormal`, with exact tails. Exact to the last few digits in float32
    and float64 for loc in [-12, 12] and scale in [0.03, 100]; where the scale is narrower, float32
    does not hold logit(x) - loc itself. Samples are reparameterised.

    Args:
      loc: shape [...], mean of the log-odds.
      scale: shape [...], > 0, their standard deviation.
      **options: `validate_args`, `allow_nan_stats` and `name`, as in TFP.

    Raises:
      ValueError: if a scale is <= 0 (checked outside jit, where it is known).
    """

    _names = ("loc", "scale")
    _positive = ("scale",)
    _parameter_properties = classmethod(parameter_properties)

    loc = parameter(0, "Mean of the log-odds; its sigmoid is the median of the scores.")
    scale = parameter(1, "Standard deviation of the log-odds.")

    def __init__(self, loc: ArrayLike, scale: ArrayLike, **options: Any):
        super().__init__(loc, scale, **options)

    def _log_density(self, x):
        y = 1 - x
        z = _standard(x, y, self.loc, self.scale)
        of_logit = -0.5 * z * z - jnp.log(self.scale) - 0.5 * math.log(2 * math.pi)
        return of_logit - jnp.log(x) - jnp.log(y)

    def _tails(self, x):
        return _normal_tails(_standard(x, 1 - x, self.loc, self.scale))

    def _inverse(self, log_odds):
        log_odds, loc, scale = jnp.broadcast_arrays(log_odds, self.loc, self.scale)
        return jax.nn.sigmoid(loc + scale * _normal_inverse(log_odds))

    def _density_at_ends(self):
        zero = jnp.full(self.batch_shape, -jnp.inf, self.dtype)
        return zero, zero

    def _expectation(self, loc, function, slope):
        """E[function(x)] with another loc, given its derivative in the logit.

        The trapezoidal rule converges exponentially on analytic functions: over the normal where
        the sigmoid is smooth in its units, over the logistic law where the normal is.
        """
        loc, scale = jnp.broadcast_arrays(loc, self.scale)
        narrow = scale < 2.0
        z = jnp.asarray(np.linspace(-9.0, 9.0, 73), self.dtype)
        z = z.reshape((-1,) + (1,) * loc.ndim)
        weight = 0.25 * jnp.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        by_normal = jnp.sum(
            weight * function(jax.nn.sigmoid(loc + jnp.where(narrow, scale, 1.0) * z)), axis=0
        )
        t = jnp.asarray(np.linspace(-40.0, 40.0, 161), self.dtype)
        t = t.reshape((-1,) + (1,) * loc.ndim)
        log_above = _normal_tails((t - loc) / jnp.where(narrow, 2.0, scale)).log_sf
        zero = function(jnp.zeros_like(loc))
        by_logistic = zero + jnp.sum(0.5 * slope(t) * jnp.exp(log_above), axis=0)
        return jnp.where(narrow, by_normal, by_logistic)

    def _mean_at(self, loc):
        return self._expectation(loc, lambda x: x, lambda t: jax.nn.sigmoid(t) * jax.nn.sigmoid(-t))

    @compiled
    def _mean(self):
        return self._mean_at(self.loc)

    @compiled
    def _variance(self):
        # That of 1 - x is the same, and next to 0 deviations keep their digits.
        loc = -jnp.abs(self.loc)
        mean = self._mean_at(loc)

        def slope(t):
            x = jax.nn.sigmoid(t)
            return 2 * (x - mean) * x * jax.nn.sigmoid(-t)

        return self._expectation(loc, lambda x: (x - mean) ** 2, slope)
