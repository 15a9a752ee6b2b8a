"""The beta law of scores, exact in both tails and in its parameters' derivatives."""

import jax
import jax.numpy as jnp

from optscale_jax.distributions.compiled import compiled
from optscale_jax.distributions.unit_interval import (
    UnitInterval,
    invert_log_odds,
    parameter_properties,
)
from optscale_jax.special_beta import beta_tails, log_beta_density
from optscale_jax.typing import Array, ArrayLike

__all__ = ["Beta"]


@jax.custom_jvp
@jax.jit
def _inverse_log_odds(target, a, b):
    """The x with log_odds(x) = target."""

    def evaluate(t):
        x, y = jax.nn.sigmoid(t), jax.nn.sigmoid(-t)
        tails = beta_tails(x, y, a, b)
        log_density = log_beta_density(x, y, a, b)
        slope = jnp.exp(log_density - tails.log_cdf) + jnp.exp(log_density - tails.log_sf)
        return tails.log_odds, -slope

    return jax.nn.sigmoid(invert_log_odds(evaluate, target, jnp.log(a) - jnp.log(b)))


@_inverse_log_odds.defjvp
def _(primals, tangents):
    target, a, b = primals
    target_dot, a_dot, b_dot = tangents
    x = _inverse_log_odds(target, a, b)
    # log_odds(x, a, b) = target, differentiated implicitly.
    y = jnp.maximum(1 - x, float(jnp.finfo(x.dtype).tiny))
    inner = jnp.maximum(x, float(jnp.finfo(x.dtype).tiny))
    zero = jnp.zeros_like(x)
    point = (inner, y, a, b)
    tails, moved = jax.jvp(beta_tails, point, (zero, zero, a_dot, b_dot))
    log_density = log_beta_density(*point)
    slope = jnp.exp(log_density - tails.log_cdf) + jnp.exp(log_density - tails.log_sf)
    return x, (moved.log_odds - target_dot) / slope * inner * y


@jax.tree_util.register_pytree_node_class
class Beta(UnitInterval):
    """The beta law on [0, 1].

        f(x) = x^(a - 1) (1 - x)^(b - 1) / B(a, b),    0 <= x <= 1.

    A rising or falling density for a or b up to 1, U-shaped for both below 1. As
    `tfp.distributions.Beta`, and right where that is not: tails below the smallest number, a and b
    of 1e6 in float32, derivatives of the distribution function in a and b. Exact to the last few
    digits in float32 and float64 for a and b in [0.01, 1e6], and finite far beyond. Samples are
    reparameterised (implicitly, through the quantile).

    Args:
      a: shape [...], > 0, exponent of the lower end, `concentration1` of TFP.
      b: shape [...], > 0, exponent of the upper end, `concentration0` of TFP.
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.

    Raises:
      ValueError: if a or b is <= 0 (checked outside jit, where they are known).
    """

    _names = ("a", "b")
    _positive = ("a", "b")

    def __init__(
        self,
        a: ArrayLike,
        b: ArrayLike,
        *,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "Beta",
    ):
        super().__init__(
            a, b, validate_args=validate_args, allow_nan_stats=allow_nan_stats, name=name
        )

    @classmethod
    def _parameter_properties(cls, dtype, num_classes=None):
        return parameter_properties(dtype, cls._names, cls._positive)

    @property
    def a(self) -> Array:
        """Exponent of the lower end."""
        return self._values[0]

    @property
    def b(self) -> Array:
        """Exponent of the upper end."""
        return self._values[1]

    def _log_density(self, x):
        # Relative to the logit's density x (1 - x) f(x).
        return log_beta_density(x, 1 - x, self.a, self.b) - jnp.log(x) - jnp.log1p(-x)

    def _tails(self, x):
        tails = beta_tails(x, 1 - x, self.a, self.b)
        return tails.log_cdf, tails.log_sf

    def _inverse(self, log_odds):
        return _inverse_log_odds(*jnp.broadcast_arrays(log_odds, self.a, self.b))

    def _density_at_ends(self):
        def at_end(own, other):
            falling = jnp.where(own < 1, jnp.inf, -jnp.inf)
            return jnp.where(own == 1, jnp.log(other), falling)

        return at_end(self.a, self.b), at_end(self.b, self.a)

    @compiled
    def _mean(self):
        return self.a / (self.a + self.b)

    @compiled
    def _variance(self):
        total = self.a + self.b
        return (self.a / total) * (self.b / total) / (total + 1)
