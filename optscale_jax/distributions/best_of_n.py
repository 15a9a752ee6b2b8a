"""The law of the best of n independent scores."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates import jax as tfp
from tensorflow_probability.substrates.jax.distributions import Distribution

from optscale_jax.distributions.checks import known
from optscale_jax.distributions.compiled import compiled
from optscale_jax.special import log1mexp, unit_quadrature
from optscale_jax.typing import Array, ArrayLike

__all__ = ["BestOfN", "log_cdf_below"]

_NODES = 64


def log_cdf_below(distribution: Distribution, x: ArrayLike) -> Array:
    """Log of P(X < x): the law's own `log_cdf_below`, where it has atoms, else its `log_cdf`.

    Args:
      distribution: any scalar TFP distribution with `log_cdf`.
      x: shape [...].

    Returns:
      Shape [...], <= 0.
    """
    below = getattr(distribution, "log_cdf_below", distribution.log_cdf)
    return below(jnp.asarray(x, distribution.dtype))


@jax.tree_util.register_pytree_node_class
class BestOfN(tfp.distributions.Distribution):
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
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.

    Raises:
      ValueError: if an n is below 1 (checked outside jit, where it is known).

    References:
      Wang et al. (2026), arXiv 2506.22376: the law of the best of N.
    """

    def __init__(
        self,
        distribution: Distribution,
        n: ArrayLike,
        *,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "BestOfN",
    ):
        counts = known(n)
        if counts is not None and np.any(counts < 1):
            raise ValueError(f"BestOfN: n must be >= 1, found {counts[counts < 1].flat[0]}")
        self._set(
            (distribution, jnp.asarray(n, distribution.dtype)),
            (validate_args, allow_nan_stats, name),
        )

    def _set(self, children, options) -> None:
        self._distribution, self._n = children
        validate_args, allow_nan_stats, name = options
        super().__init__(
            dtype=getattr(self._distribution, "dtype", None),
            reparameterization_type=tfp.distributions.FULLY_REPARAMETERIZED,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            parameters=dict(
                distribution=self._distribution,
                n=self._n,
                validate_args=validate_args,
                allow_nan_stats=allow_nan_stats,
                name=name,
            ),
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype, num_classes=None):
        return dict(
            distribution=tfp.util.BatchedComponentProperties(),
            n=tfp.util.ParameterProperties(),
        )

    @property
    def distribution(self) -> Distribution:
        """The law of one score."""
        return self._distribution

    @property
    def n(self) -> Array:
        """Number of draws, in the dtype of the scores."""
        return self._n

    def tree_flatten(self):
        """The law of one score and n are the children: jit and vmap take the distribution whole."""
        options = (self.validate_args, self.allow_nan_stats, self.name)
        return (self._distribution, self._n), options

    @classmethod
    def tree_unflatten(cls, options, children):
        """Inverse of `tree_flatten`; unchecked, because children may be gradients, axes or None."""
        new = object.__new__(cls)
        new._set(children, options)
        return new

    def _event_shape(self):
        return ()

    def _event_shape_tensor(self):
        return np.array([], np.int32)

    def _log_cdf_of_one(self, x):
        """Log of F, from the smaller tail: log(F) has lost it to rounding where F is next to 1."""
        log_cdf = self.distribution.log_cdf(x)
        try:
            log_sf = self.distribution.log_survival_function(x)
        except NotImplementedError:
            return log_cdf
        upper = log_cdf > -math.log(2.0)
        return jnp.where(upper, log1mexp(-jnp.where(upper, log_sf, -1.0)), log_cdf)

    @compiled
    def _log_cdf(self, x):
        return self.n * self._log_cdf_of_one(x)

    @compiled
    def log_cdf_below(self, x: ArrayLike) -> Array:
        """Log of P(best < x) = P(one < x)^n; differs from `log_cdf` where the law has atoms.

        Args:
          x: shape [...].

        Returns:
          Shape [...], <= 0.
        """
        return self.n * log_cdf_below(self.distribution, x)

    @compiled
    def _cdf(self, x):
        return jnp.exp(self._log_cdf(x))

    @compiled
    def _survival_function(self, x):
        return -jnp.expm1(self._log_cdf(x))

    @compiled
    def _log_survival_function(self, x):
        return log1mexp(-self._log_cdf(x))

    @compiled
    def _log_prob(self, x):
        n = self.n
        log_cdf = self._log_cdf_of_one(x)
        zero = jnp.isneginf(log_cdf)
        # F = 0 at the lower end: the factor F^(n - 1) is 1 for n = 1, where 0 * -inf is NaN.
        others = jnp.where(
            zero,
            jnp.where(n > 1, -jnp.inf, 0.0),
            (n - 1) * jnp.where(zero, 0.0, log_cdf),
        )
        one = self.distribution.log_prob(x)
        density = jnp.where(jnp.isneginf(one), one, jnp.log(n) + others + one)
        if not hasattr(self.distribution, "log_cdf_below"):
            return density
        # At an atom, the mass of the best: P(one <= x)^n - P(one < x)^n.
        jump = n * (log_cdf - log_cdf_below(self.distribution, x))
        atom = jump > 0
        mass = n * jnp.where(zero, 0.0, log_cdf) + log1mexp(jnp.where(atom, jump, 1.0))
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

    def _sample_n(self, n, seed=None):
        return self._draw(int(n), tfp.random.sanitize_seed(seed))

    @functools.partial(compiled, static=("n",))
    def _draw(self, n: int, seed):
        # Never an exact 0, whose quantile is the support's end for every n.
        tiny = float(jnp.finfo(self.dtype).eps) / 4
        shape = (n, *self.batch_shape)
        return self._quantile(jax.random.uniform(seed, shape, self.dtype, minval=tiny, maxval=1.0))

    @compiled
    def integration_rule(self) -> tuple[Array, Array, Array, Array]:
        """Quadrature over the scores where F^n is neither 0 nor 1 to within rounding.

        The points are constants to differentiation: an integral over them has the derivative of
        its integrand, because that integrand vanishes (or is constant) at the ends.

        Returns:
          (points, weights, lower, upper): points and weights of shape [nodes, ...], the ends of
          shape [...]. Gauss-Legendre between two quantiles of the best of n, so that it resolves a
          law of any width, with the points drawn towards both ends, where F may be singular. For
          smooth laws an integral of F^n is good to 1e-9 of the range.
        """
        eps = float(jnp.finfo(self.dtype).eps)
        n = jnp.broadcast_to(self.n, self.batch_shape)
        lower = jax.lax.stop_gradient(self._inverse(math.log(eps) / n))
        upper = jax.lax.stop_gradient(self._inverse(math.log1p(-eps) / n))
        nodes, weights = _rule()
        shape = (_NODES,) + (1,) * len(self.batch_shape)
        length = upper - lower
        points = lower + jnp.asarray(nodes.reshape(shape), self.dtype) * length
        return points, jnp.asarray(weights.reshape(shape), self.dtype) * length, lower, upper

    @compiled
    def _mean(self):
        """E = upper - integral of F^n, over the range where F^n is not 0 or 1."""
        points, weights, _, upper = self.integration_rule()
        return upper - jnp.sum(weights * self._cdf(points), axis=0)

    def _default_event_space_bijector(self):
        return self.distribution.experimental_default_event_space_bijector()


@functools.cache
def _rule() -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre on [0, 1] after x = t^3 (10 - 15 t + 6 t^2), which is flat at both ends.

    A law such as Beta(1/2, 1) has F = x^(1/2) there, on which the plain rule keeps 6 digits; with
    the substitution, F = x^(1/10) keeps 11.
    """
    t, weights = (np.asarray(v) for v in zip(*unit_quadrature(_NODES), strict=True))
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
