"""A continuous law of scores with point masses at 0 and 1: for verifiers that saturate."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates import jax as tfp
from tensorflow_probability.substrates.jax.distributions import Distribution

from optscale_jax.distributions.base import Scalar, compiled, known, parameter, parameter_properties
from optscale_jax.distributions.best_of_n import BestOfN
from optscale_jax.typing import Array, ArrayLike

__all__ = ["WithAtoms"]


def _log(p):
    """Log of a mass, -inf at 0, where the gradient of jnp.log is infinite and then NaN."""
    some = p > 0
    return jnp.where(some, jnp.log(jnp.where(some, p, 1.0)), -jnp.inf)


def _log_add(first, second):
    """log(e^first + e^second), whose gradient is finite where both are -inf."""
    larger = jnp.maximum(first, second)
    some = larger > -jnp.inf
    larger = jax.lax.stop_gradient(jnp.where(some, larger, 0.0))
    total = jnp.exp(first - larger) + jnp.exp(second - larger)
    return jnp.where(some, jnp.log(jnp.where(some, total, 1.0)) + larger, -jnp.inf)


@jax.tree_util.register_pytree_node_class
class WithAtoms(Scalar):
    """A mixture: 0 with probability at_zero, 1 with at_one, else a draw from `distribution`.

    With F the distribution function of the continuous part and w = 1 - at_zero - at_one,

        P(X <= x) = at_zero + w F(x) for 0 <= x < 1,    P(X < x) = at_zero + w F(x) for 0 < x <= 1.

    The two differ at the ends: a score of at least 1 has probability at_one, which is what the
    bound asks for. `log_cdf` is the log of the first, `log_cdf_below` of the second.
    `log_prob` is the log mass at 0 and at 1, and the log density in between: the density with
    respect to the sum of Lebesgue's measure and one at each end.

    Args:
      distribution: the continuous part, a law on [0, 1] of batch shape [...], with `log_cdf` and
        `log_survival_function`.
      at_zero: shape [...], >= 0, probability of an exact 0.
      at_one: shape [...], >= 0, probability of an exact 1; at_zero + at_one <= 1.
      **options: `validate_args`, `allow_nan_stats` and `name`, as in TFP.

    Raises:
      ValueError: if the masses are no probabilities (checked outside jit, where they are known).
    """

    _names = ("distribution", "at_zero", "at_one")
    _reparameterization = tfp.distributions.NOT_REPARAMETERIZED
    _parameter_properties = classmethod(parameter_properties)

    distribution = parameter(0, "The continuous part.")
    at_zero = parameter(1, "Probability of an exact 0.")
    at_one = parameter(2, "Probability of an exact 1.")

    def __init__(
        self, distribution: Distribution, at_zero: ArrayLike, at_one: ArrayLike, **options: Any
    ):
        dtype = distribution.dtype
        low, high = known(at_zero), known(at_one)
        if low is not None and high is not None:
            # A sum that is 1 in exact arithmetic may round to a little more.
            slack = 4 * float(jnp.finfo(dtype).eps)
            bad = (low < 0) | (high < 0) | (low + high > 1 + slack)
            if np.any(bad):
                low, high = (v[bad].flat[0] for v in np.broadcast_arrays(low, high))
                raise ValueError(
                    "WithAtoms: at_zero and at_one must be >= 0, with a sum of at most 1, found "
                    f"{low} and {high}"
                )
        masses = (jnp.asarray(mass, dtype) for mass in (at_zero, at_one))
        super().__init__(distribution, *masses, dtype=dtype, **options)

    @property
    def _weight(self):
        return jnp.maximum(1 - self.at_zero - self.at_one, 0.0)

    def _inside(self, x):
        """(log P(X <= x), log P(X > x)) by the formula for 0 < x < 1, for x in [0, 1]."""
        weight = _log(self._weight)
        below = _log_add(_log(self.at_zero), weight + self.distribution.log_cdf(x))
        above = _log_add(_log(self.at_one), weight + self.distribution.log_survival_function(x))
        # Each from the other where that is the smaller: the sum has lost it to rounding.
        half = -math.log(2.0)
        upper = above < half
        from_above = jnp.log1p(-jnp.exp(jnp.where(upper, above, half)))
        lower = below < half
        from_below = jnp.log1p(-jnp.exp(jnp.where(lower, below, half)))
        return jnp.where(upper, from_above, below), jnp.where(lower, from_below, above)

    def _clipped(self, x):
        x = jnp.asarray(x, self.dtype)
        return x, jnp.clip(x, 0.0, 1.0)

    @compiled
    def _log_cdf(self, x):
        x, inner = self._clipped(x)
        value = self._inside(inner)[0]
        return jnp.where(x < 0, -jnp.inf, jnp.where(x >= 1, 0.0, value))

    @compiled
    def log_cdf_below(self, x: ArrayLike) -> Array:
        """Log of P(X < x), [...], which an atom at x does not count towards."""
        x, inner = self._clipped(x)
        value = self._inside(inner)[0]
        return jnp.where(x <= 0, -jnp.inf, jnp.where(x > 1, 0.0, value))

    @compiled
    def _log_survival_function(self, x):
        x, inner = self._clipped(x)
        value = self._inside(inner)[1]
        return jnp.where(x < 0, 0.0, jnp.where(x >= 1, -jnp.inf, value))

    @compiled
    def _survival_function(self, x):
        return jnp.exp(self._log_survival_function(x))

    @compiled
    def _log_prob(self, x):
        x = jnp.asarray(x, self.dtype)
        atom = (x == 0) | (x == 1)
        density = _log(self._weight) + self.distribution.log_prob(jnp.where(atom, 0.5, x))
        mass = jnp.where(x == 0, _log(self.at_zero), _log(self.at_one))
        return jnp.where(atom, mass, density)

    @compiled
    def _quantile(self, u):
        u = jnp.asarray(u, self.dtype)
        return self._invert(u, 1 - u, (u >= 0) & (u <= 1))

    @compiled
    def log_cdf_inverse(self, log_u: ArrayLike) -> Array:
        """The least x with log_cdf(x) >= log_u, [...], as of a law on an interval."""
        log_u = jnp.asarray(log_u, self.dtype)
        return self._invert(jnp.exp(log_u), -jnp.expm1(log_u), log_u <= 0)

    def _invert(self, u, rest, valid):
        """The quantile of u = 1 - rest."""
        zero, one = u <= self.at_zero, rest <= self.at_one
        # u = 0 and u = 1 are the ends of the support, as of any law: here those of the interval.
        inside = ~(zero | one)
        weight = jnp.where(inside, self._weight, 1.0)
        below = jnp.where(inside, u - self.at_zero, 0.5) / weight
        above = jnp.where(inside, rest - self.at_one, 0.5) / weight
        log_below = jnp.where(above < 0.5, jnp.log1p(-jnp.minimum(above, 0.5)), jnp.log(below))
        x = BestOfN(self.distribution, 1.0)._inverse(log_below)
        return jnp.where(valid, jnp.where(zero, 0.0, jnp.where(one, 1.0, x)), jnp.nan)

    @compiled
    def _mean(self):
        return self.at_one + self._weight * self.distribution.mean()

    @compiled
    def _variance(self):
        mean, inner = self._mean(), self.distribution.mean()
        return (
            self._weight * (self.distribution.variance() + (inner - mean) ** 2)
            + self.at_zero * mean**2
            + self.at_one * (1 - mean) ** 2
        )
