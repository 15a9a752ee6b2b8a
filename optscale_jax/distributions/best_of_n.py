"""The law of the best of n independent scores."""

import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates import jax as tfp

from optscale_jax.special import log1mexp, unit_quadrature
from optscale_jax.typing import Array, ArrayLike

__all__ = ["BestOfN"]

_NODES = 64


@jax.tree_util.register_pytree_node_class
class BestOfN(tfp.distributions.Distribution):
    """The maximum of n independent draws from `distribution`.

    With F and f the distribution function and density of one draw,

        F_n(x) = F(x)^n,    f_n(x) = n F(x)^(n-1) f(x),    Q_n(u) = Q(u^(1/n)).

    All in logs, so that n = 10^6 keeps float32's digits. `distribution` may be any scalar TFP
    distribution with `log_cdf` and `log_survival_function`; `log_prob`, `quantile`, `sample` and
    `mean` need its `log_prob` and `quantile`. A method `log_cdf_inverse(log_u)`, where it has one
    (`TruncatedNormal` does), gives quantiles of large n their full precision.

    Args:
      distribution: the law of one score, of batch shape [...].
      n: shape [...], number of draws, >= 1; need not be an integer.
      validate_args: as in TFP.
      allow_nan_stats: as in TFP.
      name: as in TFP.

    Raises:
      ValueError: if a concrete `n` is below 1.

    References:
      Wang et al. (2026), arXiv 2506.22376: the law of the best of N.
    """

    def __init__(
        self,
        distribution: tfp.distributions.Distribution,
        n: ArrayLike,
        *,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "BestOfN",
    ):
        parameters = dict(locals())
        if isinstance(n, int | float | np.ndarray | np.generic) and not np.all(np.asarray(n) >= 1):
            raise ValueError(f"BestOfN: n must be >= 1, found {np.min(n)}")
        self._distribution = distribution
        self._n = n
        super().__init__(
            dtype=distribution.dtype,
            reparameterization_type=distribution.reparameterization_type,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype, num_classes=None):
        return dict(
            distribution=tfp.util.BatchedComponentProperties(),
            n=tfp.util.ParameterProperties(),
        )

    @property
    def distribution(self) -> tfp.distributions.Distribution:
        """The law of one score."""
        return self._distribution

    @property
    def n(self) -> Array:
        """Number of draws."""
        return jnp.asarray(self._n, self.dtype)

    def tree_flatten(self):
        """The law of one score and n are the children; jit and vmap take the distribution whole."""
        options = (self.validate_args, self.allow_nan_stats, self.name)
        return (self._distribution, self._n), options

    @classmethod
    def tree_unflatten(cls, options, children):
        """Inverse of `tree_flatten`."""
        new = object.__new__(cls)
        validate_args, allow_nan_stats, name = options
        if isinstance(children[0], tfp.distributions.Distribution):
            cls.__init__(
                new,
                *children,
                validate_args=validate_args,
                allow_nan_stats=allow_nan_stats,
                name=name,
            )
        return new

    def _event_shape(self):
        return ()

    def _event_shape_tensor(self):
        return np.array([], np.int32)

    def _log_cdf(self, x):
        return self.n * self.distribution.log_cdf(x)

    def _cdf(self, x):
        return jnp.exp(self._log_cdf(x))

    def _survival_function(self, x):
        return -jnp.expm1(self._log_cdf(x))

    def _log_survival_function(self, x):
        return log1mexp(-self._log_cdf(x))

    def _log_prob(self, x):
        n = self.n
        one = self.distribution.log_prob(x)
        # F = 0 at the lower end: (n - 1) * -inf is -inf for n > 1, and must be 0, not NaN, at n = 1.
        log_cdf = self.distribution.log_cdf(x)
        rest = jnp.where(n > 1, (n - 1) * jnp.where(n > 1, log_cdf, 0.0), 0.0)
        return jnp.where(jnp.isneginf(one), one, jnp.log(n) + rest + one)

    def _quantile(self, u):
        log_u = jnp.log(jnp.asarray(u, self.dtype)) / self.n
        if hasattr(self.distribution, "log_cdf_inverse"):
            return self.distribution.log_cdf_inverse(log_u)
        return self.distribution.quantile(jnp.exp(log_u))

    def _sample_n(self, n, seed=None):
        shape = (n, *self.batch_shape)
        tiny = float(jnp.finfo(self.dtype).eps) / 4
        u = tfp.distributions.Uniform(
            jnp.asarray(tiny, self.dtype), jnp.asarray(1.0, self.dtype)
        ).sample(shape, seed=seed)
        return self._quantile(u)

    def integration_rule(self) -> tuple[Array, Array, Array, Array]:
        """Quadrature over the scores where F^n is neither 0 nor 1 to within rounding.

        Returns:
          (points, weights, lower, upper): points and weights of shape [nodes, ...], the ends of
          shape [...]. Gauss-Legendre between two quantiles of the best of n, so that it resolves a
          law of any width.
        """
        eps = float(jnp.finfo(self.dtype).eps)
        ones = jnp.ones(self.batch_shape, self.dtype)
        lower = self._quantile(eps * ones)
        log_upper = jnp.log1p(-eps * ones) / self.n
        if hasattr(self.distribution, "log_cdf_inverse"):
            upper = self.distribution.log_cdf_inverse(log_upper)
        else:
            upper = self.distribution.quantile(jnp.exp(log_upper))
        nodes, weights = (np.asarray(v) for v in zip(*unit_quadrature(_NODES), strict=True))
        shape = (_NODES,) + (1,) * len(self.batch_shape)
        nodes = jnp.asarray(nodes.reshape(shape), self.dtype)
        weights = jnp.asarray(weights.reshape(shape), self.dtype)
        length = upper - lower
        return lower + nodes * length, weights * length, lower, upper

    def _mean(self):
        """E = upper - integral of F^n, over the range where F^n is not 0 or 1."""
        points, weights, _, upper = self.integration_rule()
        return upper - jnp.sum(weights * self._cdf(points), axis=0)
