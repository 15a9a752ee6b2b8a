"""The law of the best of n independent scores."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates.jax.distributions import Distribution

from optscale_jax.distributions.base import Scalar, compiled, known, parameter, parameter_properties
from optscale_jax.special import unit_quadrature
from optscale_jax.typing import Array, ArrayLike

__all__ = ["BestOfN", "log_cdf_below"]

_NODES = 64


def log_cdf_below(distribution: Distribution, x: ArrayLike) -> Array:
    """Log of P(X < x), [...]: the law's own `log_cdf_below`, where it has atoms, or `log_cdf`."""
    below = getattr(distribution, "log_cdf_below", distribution.log_cdf)
    return below(jnp.asarray(x, distribution.dtype))


@jax.tree_util.register_pytree_node_class
class BestOfN(Scalar):
    """The maximum of n independent draws from `distribution`.

    With F and f the distribution function and density of one draw,

        F_n(x) = F(x)^n,    f_n(x) = n F(x)^(n-1) f(x),    Q_n(u) = Q(u^(1/n)).

    All in logs, so that n = 10^6 keeps float32's digits. `distribution` may be any scalar TFP
    distribution with `log_cdf`; `log_survival_function`, where it has one of its own, keeps the
    digits of F next to 1, and `log_prob` is needed for `log_prob` and for gradients of quantiles.
    Quantiles come from its method `log_cdf_inverse(log_u)` if it has one (`TruncatedNormal` does),
    else from bisecting `log_cdf` to the last bit: u^(1/n) itself is 1 to rounding for large n.

    Args:
      distribution: the law of one score, of batch shape [...].
      n: shape [...], number of draws, >= 1; need not be an integer.
      **options: `validate_args`, `allow_nan_stats` and `name`, as in TFP.

    Raises:
      ValueError: if an n is below 1 (checked outside jit, where it is known).
    """

    _names = ("distribution", "n")
    _parameter_properties = classmethod(parameter_properties)

    distribution = parameter(0, "The law of one score.")
    n = parameter(1, "Number of draws, in the dtype of the scores.")

    def __init__(self, distribution: Distribution, n: ArrayLike, **options: Any):
        counts = known(n)
        if counts is not None and np.any(counts < 1):
            raise ValueError(f"BestOfN: n must be >= 1, found {counts[counts < 1].flat[0]}")
        dtype = distribution.dtype
        super().__init__(distribution, jnp.asarray(n, dtype), dtype=dtype, **options)

    def _log_cdf_of_one(self, x):
        """Log of F, from the smaller tail: log(F) has lost it to rounding where F is next to 1."""
        log_cdf = self.distribution.log_cdf(x)
        try:
            log_sf = self.distribution.log_survival_function(x)
        except NotImplementedError:
            return log_cdf
        upper = log_cdf > -math.log(2.0)
        return jnp.where(upper, jax.nn.log1mexp(-jnp.where(upper, log_sf, -1.0)), log_cdf)

    @compiled
    def _log_cdf(self, x):
        return self.n * self._log_cdf_of_one(x)

    @compiled
    def log_cdf_below(self, x: ArrayLike) -> Array:
        """Log of P(best < x) = P(one < x)^n, [...]; not `log_cdf` where the law has atoms."""
        return self.n * log_cdf_below(self.distribution, x)

    @compiled
    def _survival_function(self, x):
        return -jnp.expm1(self._log_cdf(x))

    @compiled
    def _log_survival_function(self, x):
        return jax.nn.log1mexp(-self._log_cdf(x))

    @compiled
    def _log_prob(self, x):
        n = self.n
        log_cdf = self._log_cdf_of_one(x)
        zero = jnp.isneginf(log_cdf)
        # F = 0 at the lower end: the factor F^(n - 1) is 1 for n = 1, where 0 * -inf is NaN.
        others = (n - 1) * jnp.where(zero, 0.0, log_cdf)
        others = jnp.where(zero, jnp.where(n > 1, -jnp.inf, 0.0), others)
        one = self.distribution.log_prob(x)
        density = jnp.where(jnp.isneginf(one), one, jnp.log(n) + others + one)
        if not hasattr(self.distribution, "log_cdf_below"):
            return density
        # At an atom, the mass of the best: P(one <= x)^n - P(one < x)^n.
        jump = n * (log_cdf - log_cdf_below(self.distribution, x))
        atom = jump > 0
        mass = n * jnp.where(zero, 0.0, log_cdf) + jax.nn.log1mexp(jnp.where(atom, jump, 1.0))
        return jnp.where(atom, mass, density)

    def _inverse(self, log_u):
        """The score at which log F of one draw is log_u, of the broadcast shape."""
        shape = jnp.broadcast_shapes(jnp.shape(log_u), self.batch_shape)
        log_u = jnp.broadcast_to(log_u, shape)
        inverse = getattr(self.distribution, "log_cdf_inverse", None)
        if inverse is not None:
            return inverse(log_u)
        x = jax.lax.stop_gradient(_bisect(self, log_u))
        # Zero, with the gradient of the implicit function log F(x) = log_u.
        log_cdf = self._log_cdf_of_one(x)
        try:
            log_prob = self.distribution.log_prob(x)
        except NotImplementedError:
            return x
        rate = jax.lax.stop_gradient(jnp.exp(log_cdf - log_prob))
        rate = jnp.where(jnp.isfinite(rate), rate, 0.0)
        missing = jnp.where(rate > 0, log_u - log_cdf, 0.0)
        return x + rate * (missing - jax.lax.stop_gradient(missing))

    def _support(self):
        """Ends of the support: of the law of one score if it tells, else [0, 1]."""
        largest = float(jnp.finfo(self.dtype).max)
        try:
            ends = (self.distribution.quantile(jnp.asarray(p, self.dtype)) for p in (0.0, 1.0))
            return tuple(jnp.clip(end, -largest, largest) for end in ends)
        except NotImplementedError:
            return jnp.zeros((), self.dtype), jnp.ones((), self.dtype)

    @compiled
    def _quantile(self, u):
        return self._inverse(jnp.log(jnp.asarray(u, self.dtype)) / self.n)

    @compiled
    def integration_rule(self) -> tuple[Array, Array, Array]:
        """(points, weights, upper end), [nodes, ...] and [...], of a quadrature over the scores.

        Over those where F^n is neither 0 nor 1 to within rounding: Gauss-Legendre between two
        quantiles of the best of n, so that it resolves a law of any width, with the points drawn
        towards both ends, where F may be singular. For smooth laws an integral of F^n is good to
        1e-9 of the range. The points are constants to differentiation: an integral over them has
        the derivative of its integrand, because that vanishes (or is constant) at the ends.
        """
        eps = float(jnp.finfo(self.dtype).eps)
        n = jnp.broadcast_to(self.n, self.batch_shape)
        lower = jax.lax.stop_gradient(self._inverse(math.log(eps) / n))
        upper = jax.lax.stop_gradient(self._inverse(math.log1p(-eps) / n))
        nodes, weights = _rule()
        shape = (_NODES,) + (1,) * len(self.batch_shape)
        length = upper - lower
        points = lower + jnp.asarray(nodes.reshape(shape), self.dtype) * length
        return points, jnp.asarray(weights.reshape(shape), self.dtype) * length, upper

    @compiled
    def _mean(self):
        """E = upper - integral of F^n, over the range where F^n is not 0 or 1."""
        points, weights, upper = self.integration_rule()
        return upper - jnp.sum(weights * self._cdf(points), axis=0)

    def _default_event_space_bijector(self):
        return self.distribution.experimental_default_event_space_bijector()


@functools.cache
def _rule() -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on [0, 1] after x = t^3 (10 - 15 t + 6 t^2), which is flat at both ends.

    A law such as Beta(1/2, 1) has F = x^(1/2) there, on which the plain rule keeps 6 digits; with
    the substitution, F = x^(1/10) keeps 11.
    """
    t, weights = unit_quadrature(_NODES)
    return t**3 * (10 - 15 * t + 6 * t**2), weights * 30 * (t * (1 - t)) ** 2


@compiled
def _bisect(best: BestOfN, log_u: Array) -> Array:
    """Bisection over the representable numbers of the support, in their order."""
    low, high = (_order(jnp.broadcast_to(v, log_u.shape)) for v in best._support())

    def halve(_, bracket):
        low, high = bracket
        middle = (low & high) + ((low ^ high) >> 1)
        below = best._log_cdf_of_one(_number(middle, best.dtype)) < log_u
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    _, high = jax.lax.fori_loop(0, jnp.finfo(best.dtype).bits, halve, (low, high))
    return jnp.where(log_u <= 0, _number(high, best.dtype), jnp.nan)


def _order(x: Array) -> Array:
    """Integers in the order of the floating-point numbers x (IEEE 754's total order)."""
    bits = jnp.finfo(x.dtype).bits
    i = jax.lax.bitcast_convert_type(x, jnp.int64 if bits == 64 else jnp.int32)
    return i ^ ((i >> (bits - 1)) & jnp.iinfo(i.dtype).max)


def _number(i: Array, dtype) -> Array:
    """Inverse of `_order`, which is its own inverse on the integers."""
    bits = jnp.finfo(dtype).bits
    return jax.lax.bitcast_convert_type(i ^ ((i >> (bits - 1)) & jnp.iinfo(i.dtype).max), dtype)
