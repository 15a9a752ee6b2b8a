"""What the laws of scores have in common: TFP's contract, JAX's pytrees, a law on an interval."""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from tensorflow_probability.substrates import jax as tfp
from tensorflow_probability.substrates.jax.distributions import Distribution

from optscale_jax.special import Tails, log_expm1
from optscale_jax.typing import Array, ArrayLike

__all__ = [
    "Interval",
    "Scalar",
    "compiled",
    "known",
    "parameter",
    "parameter_properties",
    "solve_falling",
]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def compiled(function: FunctionT, *, static: tuple[str, ...] = ()) -> FunctionT:
    """Compiles a function of a distribution, once per shape: 10 times as fast on the first call.

    A distribution that is a pytree is an argument of the compiled function, so its values may
    change without a new compilation. A law that is none, such as a class that only defines
    `_log_cdf`, cannot be an argument; with it the function runs as it is, op by op.

    Args:
      function: takes the distribution first.
      static: names of arguments that decide shapes or branches.
    """
    jitted = jax.jit(function, static_argnames=static)

    @functools.wraps(function)
    def call(distribution, *args, **kwargs):
        leaves = jax.tree.leaves(distribution)
        opaque = any(isinstance(leaf, Distribution) for leaf in leaves)
        return (function if opaque else jitted)(distribution, *args, **kwargs)

    return call  # pyright: ignore[reportReturnType]


def known(value: ArrayLike) -> np.ndarray | None:
    """The value as a NumPy array, or None while JAX is tracing it: checks are of known values."""
    return None if isinstance(value, Tracer) else np.asarray(value)


def parameter(index: int, doc: str) -> Any:
    """A parameter of a law, by its place among `_names`, as a documented attribute."""
    return property(lambda law: law._values[index], doc=doc)


def parameter_properties(cls, dtype, num_classes=None) -> dict[str, Any]:
    """`_parameter_properties`, which TFP asks each law itself, and not its parent."""
    del num_classes
    properties = tfp.util.ParameterProperties

    def constrain():
        return tfp.bijectors.Softplus(low=np.finfo(np.dtype(dtype)).eps)

    kinds = {name: properties() for name in cls._names}
    kinds |= {n: properties(default_constraining_bijector_fn=constrain) for n in cls._positive}
    if "distribution" in kinds:
        kinds["distribution"] = tfp.util.BatchedComponentProperties()
    return kinds


class Scalar(tfp.distributions.Distribution):
    """A law of one number, as a TFP distribution and a pytree: jit and vmap take it whole.

    A subclass names its parameters, which are the pytree's children, in their order.
    """

    _names: ClassVar[tuple[str, ...]]
    _positive: ClassVar[tuple[str, ...]] = ()
    _reparameterization: ClassVar[Any] = tfp.distributions.FULLY_REPARAMETERIZED

    def __init__(self, *params: Any, dtype: Any, **options: Any):
        defaults = dict(validate_args=False, allow_nan_stats=True, name=type(self).__name__)
        self._set(params, dtype, tuple((defaults | options).items()))

    def _set(self, params, dtype, options) -> None:
        self._values, self._options = tuple(params), options
        super().__init__(
            dtype=dtype,
            reparameterization_type=self._reparameterization,
            parameters=dict(zip(self._names, self._values, strict=True)) | dict(options),
            **dict(options),
        )

    def tree_flatten(self):
        """The parameters, and what is static."""
        return self._values, (self.dtype, self._options)

    @classmethod
    def tree_unflatten(cls, static, children):
        """Inverse of `tree_flatten`; unchecked, because children may be gradients, axes or None."""
        new = object.__new__(cls)
        new._set(children, *static)
        return new

    def _event_shape(self):
        return ()

    def _event_shape_tensor(self):
        return np.array([], np.int32)

    @compiled
    def _cdf(self, x):
        return jnp.exp(self._log_cdf(x))

    def _sample_n(self, n, seed=None):
        return self._draw(int(n), tfp.random.sanitize_seed(seed))

    @functools.partial(compiled, static=("n",))
    def _draw(self, n: int, seed):
        # Strictly inside (0, 1): an exact 0 would be the support's end, with an infinite gradient.
        tiny = float(jnp.finfo(self.dtype).eps) / 4
        shape = (n, *self.batch_shape)
        return self._quantile(jax.random.uniform(seed, shape, self.dtype, minval=tiny, maxval=1.0))


class Interval(Scalar):
    """A continuous law on [low, high], by default [0, 1], around three elementwise functions.

    A subclass defines, for low < x < high, `_log_density(x)`, `_tails(x)`, and
    `_inverse(log_odds)`, the x with log((1 - F) / F) of that value. Ends of the support, quantiles,
    samples and broadcasting are the same for all.
    """

    low: Any = 0.0
    high: Any = 1.0

    def __init__(self, *params: ArrayLike, **options: Any):
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
        super().__init__(*(jnp.asarray(a, dtype) for a in params), dtype=dtype, **options)

    def _log_density(self, x: Array) -> Array:
        raise NotImplementedError

    def _tails(self, x: Array) -> Tails:
        raise NotImplementedError

    def _inverse(self, log_odds: Array) -> Array:
        raise NotImplementedError

    def _density_at_ends(self) -> tuple[Array, Array]:
        """Log density at low and at high, as limits."""
        raise NotImplementedError

    def _midpoint(self):
        """A harmless x, for `jnp.where` differentiates the branch that is not taken too."""
        return self.low + 0.5 * (self.high - self.low)

    @compiled
    def _log_prob(self, x):
        x = jnp.asarray(x, self.dtype)
        inside = (x > self.low) & (x < self.high)
        at_low, at_high = self._density_at_ends()
        # NaN stays.
        value = self._log_density(jnp.where(inside | jnp.isnan(x), x, self._midpoint()))
        value = jnp.where(x == self.low, at_low, jnp.where(x == self.high, at_high, value))
        return jnp.where((x < self.low) | (x > self.high), -jnp.inf, value)

    def _log_tail(self, x, name: str, at_low: float, at_high: float):
        """A field of `_tails`, and its limits at and beyond the ends of the support."""
        x = jnp.asarray(x, self.dtype)
        below, above = x <= self.low, x >= self.high
        # Parameters are not broadcast against x: what depends on them alone is computed once.
        value = getattr(self._tails(jnp.where(below | above, self._midpoint(), x)), name)
        return jnp.where(below, at_low, jnp.where(above, at_high, value))

    @compiled
    def _log_cdf(self, x):
        return self._log_tail(x, "log_cdf", -jnp.inf, 0.0)

    @compiled
    def _log_survival_function(self, x):
        return self._log_tail(x, "log_sf", 0.0, -jnp.inf)

    @compiled
    def _survival_function(self, x):
        return jnp.exp(self._log_survival_function(x))

    def _at_log_odds(self, log_odds, at_low, at_high, valid):
        x = self._inverse(log_odds)
        x = jnp.where(at_low, self.low, jnp.where(at_high, self.high, x))
        shape = jnp.broadcast_shapes(x.shape, self.batch_shape)
        return jnp.broadcast_to(jnp.where(valid, x, jnp.nan), shape).astype(self.dtype)

    @compiled
    def _quantile(self, u):
        u = jnp.asarray(u, self.dtype)
        at_low, at_high = u <= 0, u >= 1
        safe = jnp.where(at_low | at_high, 0.5, u)
        log_odds = jnp.log1p(-safe) - jnp.log(safe)
        return self._at_log_odds(log_odds, at_low, at_high, (u >= 0) & (u <= 1))

    @compiled
    def log_cdf_inverse(self, log_u: ArrayLike) -> Array:
        """The x with log_cdf(x) = log_u: the quantile for u too close to 1 to be stored as u.

        The median of the best of 10^6 is the quantile of u = 1 - 7e-7, of which float32 holds one
        digit, but log u keeps all of them.

        Args:
          log_u: shape [...], <= 0.

        Returns:
          Shape [...], in [low, high]; NaN for log_u > 0.
        """
        log_u = jnp.asarray(log_u, self.dtype)
        at_low, at_high = jnp.isneginf(log_u), log_u >= 0
        safe = jnp.where(at_low | at_high, -math.log(2.0), log_u)
        return self._at_log_odds(log_expm1(-safe), at_low, at_high, log_u <= 0)

    def _default_event_space_bijector(self):
        return tfp.bijectors.Sigmoid(low=self.low, high=self.high)


def solve_falling(
    evaluate: Callable[[Array], tuple[Array, Array]],
    target: Array,
    start: Array,
    lower: Array | None = None,
    upper: Array | None = None,
) -> Array:
    """The t in [lower, upper] with evaluate(t)[0] = target: Newton's method inside a bracket.

    Args:
      evaluate: t -> (value, slope), value falling in t.
      target: shape [...].
      start: shape [...], the first t.
      lower: shape [...]; None where t is a logit, for that of the smallest number.
      upper: shape [...]; None where t is a logit, for one beyond that of any number below 1.
    """
    info = jnp.finfo(target.dtype)
    if lower is None or upper is None:
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
