"""The beta law of scores, exact in both tails and in its parameters' derivatives."""

from typing import Any

import jax
import jax.numpy as jnp

from optscale_jax.distributions.base import (
    Interval,
    compiled,
    parameter,
    parameter_properties,
    solve_falling,
)
from optscale_jax.special_beta import beta_tails, log_beta_density
from optscale_jax.typing import ArrayLike

__all__ = ["Beta"]


@jax.custom_jvp
@jax.jit
def _inverse_log_odds(target, a, b):
    """The x with log_odds(x) = target."""

    def evaluate(t):
        x, y = jax.nn.sigmoid(t), jax.nn.sigmoid(-t)
        tails = beta_tails(x, y, a, b)
        return tails.log_odds, -tails.steepness(log_beta_density(x, y, a, b))

    return jax.nn.sigmoid(solve_falling(evaluate, target, jnp.log(a) - jnp.log(b)))


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
    slope = tails.steepness(log_beta_density(*point))
    return x, (moved.log_odds - target_dot) / slope * inner * y


@jax.tree_util.register_pytree_node_class
class Beta(Interval):
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
      **options: `validate_args`, `allow_nan_stats` and `name`, as in TFP.

    Raises:
      ValueError: if a or b is <= 0 (checked outside jit, where they are known).
    """

    _names = ("a", "b")
    _positive = ("a", "b")
    _parameter_properties = classmethod(parameter_properties)

    a = parameter(0, "Exponent of the lower end.")
    b = parameter(1, "Exponent of the upper end.")

    def __init__(self, a: ArrayLike, b: ArrayLike, **options: Any):
        super().__init__(a, b, **options)

    def _log_density(self, x):
        # Relative to the logit's density x (1 - x) f(x).
        return log_beta_density(x, 1 - x, self.a, self.b) - jnp.log(x) - jnp.log1p(-x)

    def _tails(self, x):
        return beta_tails(x, 1 - x, self.a, self.b)

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
