"""What the laws on [0, 1] have in common: TFP's contract around three elementwise functions."""

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates import jax as tfp

from optscale_jax.distributions.checks import known
from optscale_jax.distributions.compiled import compiled
from optscale_jax.special import log_expm1
from optscale_jax.typing import Array, ArrayLike

__all__ = ["UnitInterval", "invert_log_odds", "parameter_properties"]


class UnitInterval(tfp.distributions.Distribution):
    """A continuous law on [0, 1] with named parameters, as a TFP distribution and a pytree.

    A subclass names its parameters and defines, for 0 < x < 1, `_log_density(x)`, `_tails(x)`,
    which are (log F, log(1 - F)), and `_inverse(log_odds)`, the x with log((1 - F) / F) of that
    value. Ends of the support, quantiles, samples and broadcasting are the same for all.
    """

    _names: ClassVar[tuple[str, ...]]
    _positive: ClassVar[tuple[str, ...]]

    def __init__(self, *params: ArrayLike, validate_args: bool, allow_nan_stats: bool, name: str):
        for label, value in zip(self._names, params, strict=True):
            values = known(value) if label in self._positive else None
            if values is not None and np.any(values <= 0):
                bad = values[values <= 0].flat[0]
                raise ValueError(f"{type(self).__name__}: {label} must be > 0, found {bad}")
        arrays = [a for a in params if hasattr(a, "dtype")]
        dtype = jnp.result_type(*arrays) if arrays else jnp.result_type(float)
        if not jnp.issubdtype(dtype, jnp.floating):
            dtype = jnp.result_type(float)
        dtype = jnp.promote_types(dtype, jnp.float32)
        params = tuple(jnp.asarray(a, dtype) for a in params)
        self._set(params, dtype, (validate_args, allow_nan_stats, name))

    def _set(self, params, dtype, options) -> None:
        self._values = tuple(params)
        validate_args, allow_nan_stats, name = options
        options = dict(validate_args=validate_args, allow_nan_stats=allow_nan_stats, name=name)
        super().__init__(
            dtype=dtype,
            reparameterization_type=tfp.distributions.FULLY_REPARAMETERIZED,
            parameters=dict(zip(self._names, self._values, strict=True)) | options,
            **options,
        )

    def tree_flatten(self):
        """The parameters are a pytree's leaves: jit and vmap take the distribution whole."""
        options = (self.validate_args, self.allow_nan_stats, self.name)
        return self._values, (self.dtype, options)

    @classmethod
    def tree_unflatten(cls, static, leaves):
        """Inverse of `tree_flatten`; unchecked, because leaves may be gradients, axes or None."""
        new = object.__new__(cls)
        new._set(leaves, *static)
        return new

    def _event_shape(self):
        return ()

    def _event_shape_tensor(self):
        return np.array([], np.int32)

    def _log_density(self, x: Array) -> Array:
        raise NotImplementedError

    def _tails(self, x: Array) -> tuple[Array, Array]:
        raise NotImplementedError

    def _inverse(self, log_odds: Array) -> Array:
        raise NotImplementedError

    def _density_at_ends(self) -> tuple[Array, Array]:
        """Log density at 0 and at 1, as limits."""
        raise NotImplementedError

    @compiled
    def _log_prob(self, x):
        x = jnp.asarray(x, self.dtype)
        inside = (x > 0) & (x < 1)
        at_low, at_high = self._density_at_ends()
        # A harmless x elsewhere, for `jnp.where` differentiates both branches. NaN stays.
        value = self._log_density(jnp.where(inside | jnp.isnan(x), x, 0.5))
        value = jnp.where(x == 0, at_low, jnp.where(x == 1, at_high, value))
        return jnp.where((x < 0) | (x > 1), -jnp.inf, value)

    def _log_tail(self, x, index: int, at_low: float, at_high: float):
        x = jnp.asarray(x, self.dtype)
        below, above = x <= 0, x >= 1
        value = self._tails(jnp.where(below | above, 0.5, x))[index]
        return jnp.where(below, at_low, jnp.where(above, at_high, value))

    @compiled
    def _log_cdf(self, x):
        return self._log_tail(x, 0, -jnp.inf, 0.0)

    @compiled
    def _log_survival_function(self, x):
        return self._log_tail(x, 1, 0.0, -jnp.inf)

    @compiled
    def _cdf(self, x):
        return jnp.exp(self._log_cdf(x))

    @compiled
    def _survival_function(self, x):
        return jnp.exp(self._log_survival_function(x))

    def _where_inside(self, inverse, shape, at_low, at_high, valid):
        ends = jnp.where(at_low, 0.0, jnp.where(at_high, 1.0, inverse))
        return jnp.broadcast_to(jnp.where(valid, ends, jnp.nan), shape).astype(self.dtype)

    @compiled
    def _quantile(self, u):
        u = jnp.asarray(u, self.dtype)
        shape = jnp.broadcast_shapes(u.shape, self.batch_shape)
        at_low, at_high = u <= 0, u >= 1
        safe = jnp.where(at_low | at_high, 0.5, u)
        x = self._inverse(jnp.log1p(-safe) - jnp.log(safe))
        return self._where_inside(x, shape, at_low, at_high, (u >= 0) & (u <= 1))

    @compiled
    def log_cdf_inverse(self, log_u: ArrayLike) -> Array:
        """The x with log_cdf(x) = log_u: the quantile for u too close to 1 to be stored as u.

        Args:
          log_u: shape [...], <= 0.

        Returns:
          Shape [...], in [0, 1]; NaN for log_u > 0.
        """
        log_u = jnp.asarray(log_u, self.dtype)
        shape = jnp.broadcast_shapes(log_u.shape, self.batch_shape)
        at_low, at_high = jnp.isneginf(log_u), log_u >= 0
        x = self._inverse(log_expm1(-jnp.where(at_low | at_high, -math.log(2.0), log_u)))
        return self._where_inside(x, shape, at_low, at_high, log_u <= 0)

    def _sample_n(self, n, seed=None):
        return self._draw(int(n), tfp.random.sanitize_seed(seed))

    @functools.partial(compiled, static=("n",))
    def _draw(self, n: int, seed):
        # Strictly inside (0, 1): an exact 0 would be the support's end, with an infinite gradient.
        tiny = float(jnp.finfo(self.dtype).eps) / 4
        shape = (n, *self.batch_shape)
        return self._quantile(jax.random.uniform(seed, shape, self.dtype, minval=tiny, maxval=1.0))

    def _default_event_space_bijector(self):
        return tfp.bijectors.Sigmoid()


def parameter_properties(dtype, names: tuple[str, ...], positive: tuple[str, ...]) -> dict:
    """What TFP asks a subclass itself, and not its parent, of its parameters."""
    properties = tfp.util.ParameterProperties

    def constrain():
        return tfp.bijectors.Softplus(low=np.finfo(np.dtype(dtype)).eps)

    constrained = properties(default_constraining_bijector_fn=constrain)
    return {name: constrained if name in positive else properties() for name in names}


def invert_log_odds(
    evaluate: Callable[[Array], tuple[Array, Array]], target: Array, start: Array
) -> Array:
    """The t with evaluate(t)[0] = target, for a falling function: Newton inside a bracket.

    Args:
      evaluate: t -> (value, slope), value falling in t, which is the logit of a score.
      target: shape [...].
      start: shape [...], the first t.

    Returns:
      Shape [...], between the logits of the smallest and largest numbers of the precision.
    """
    dtype = target.dtype
    info = jnp.finfo(dtype)
    lower = jnp.full_like(target, math.log(float(info.tiny)))
    upper = jnp.full_like(target, -2 * math.log(float(info.eps)))

    def unfinished(carry):
        step, *_, moving = carry
        return (step < 4 * info.bits) & jnp.any(moving)

    def body(carry):
        step, t, lower, upper, _ = carry
        value, slope = evaluate(t)
        excess = value - target
        lower = jnp.where(excess > 0, t, lower)
        upper = jnp.where(excess > 0, upper, t)
        newton = t - excess / slope
        inside = (newton > lower) & (newton < upper)
        new = jnp.where(inside, newton, lower + 0.5 * (upper - lower))
        moving = jnp.abs(new - t) > 0.5 * float(info.eps) * jnp.abs(t)
        return step + 1, jnp.where(moving, new, t), lower, upper, moving

    start = jnp.clip(start, lower, upper)
    moving = jnp.ones(target.shape, bool)
    return jax.lax.while_loop(unfinished, body, (0, start, lower, upper, moving))[1]
