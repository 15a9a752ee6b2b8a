"""How many samples are enough: the bound of OptScale, for any law of scores.

A new law of scores is one TFP distribution with `log_cdf` (and `quantile`, for the expectations).
"""

import functools
from enum import IntEnum
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from optscale_jax.distributions import BestOfN
from optscale_jax.distributions.base import compiled, known
from optscale_jax.distributions.best_of_n import log_cdf_below
from optscale_jax.special import split
from optscale_jax.typing import Array, ArrayLike

__all__ = [
    "UNREACHABLE",
    "Bound",
    "BoundStatus",
    "bound",
    "check_targets",
    "expected_best",
    "marginal_gain",
    "required_samples",
    "success_probability",
]

UNREACHABLE = np.iinfo(np.int32).max
"""What `required_samples` returns, without `max_samples`, where no int32 number is enough."""

_DIGIT_BITS = 11  # base of the long division: a digit times half of a float32 is exact


class BoundStatus(IntEnum):
    """Why the bound is what it is."""

    EXACT = 0  # the least N that meets the target
    CAPPED = 1  # the least N is larger than `max_samples` (or than int32 holds)
    UNREACHABLE = 2  # F(s_min) = 1: no number of samples reaches s_min


class Bound(NamedTuple):
    """The bound and the reason for it, each int32 of the broadcast shape."""

    num_samples: Array
    status: Array  # a `BoundStatus`


def check_targets(s_min: ArrayLike | None, alpha: ArrayLike | None) -> None:
    """Refuses targets outside their domain, where their values are known (not traced)."""
    alphas = None if alpha is None else known(alpha)
    if alphas is not None and (bad := ~((alphas > 0) & (alphas < 1))).any():
        raise ValueError(f"alpha must be inside (0, 1), found {alphas[bad].flat[0]}")
    scores = None if s_min is None else known(s_min)
    if scores is not None and (bad := ~((scores >= 0) & (scores <= 1))).any():
        raise ValueError(f"s_min must be in [0, 1], found {scores[bad].flat[0]}")


def _least_count(target: Array, step: Array, largest: int) -> Array:
    """Least integer N >= 1 with N * step >= target, both > 0 and finite; exact up to `largest`.

    Long division in base 2048. A digit times either half of `step` is exact, and so is the
    remainder that is left of it, so the comparison that decides between N - 1 and N is exact: the
    float quotient, which is off by whole samples once it is large, only guesses the digits.
    Results above `largest` are largest + 1 (`largest` itself where that is int32's maximum).
    """
    high, low = split(step)
    inverse = 1.0 / step
    digits = max(1, -(-int(largest).bit_length() // _DIGIT_BITS))

    def remainder(rest, digit, shift):
        return (rest - digit * (high * shift)) - digit * (low * shift)

    # A quotient beyond `largest` is replaced by one just beyond it, so that no digit overflows.
    beyond = target * inverse > 1.5 * largest
    rest = jnp.where(beyond, step, target)
    count = jnp.zeros(jnp.shape(rest), jnp.int32)
    for place in range(digits - 1, 0, -1):
        shift = float(1 << (_DIGIT_BITS * place))
        digit = jnp.floor(rest * (inverse / shift))
        left = remainder(rest, digit, shift)
        # The guess is at most one off, in either direction.
        digit = jnp.where(left < 0, digit - 1, jnp.where(left >= step * shift, digit + 1, digit))
        # A leading digit that `largest` does not have would overflow an int32.
        beyond = beyond | (digit > (largest >> (_DIGIT_BITS * place)))
        digit = jnp.where(beyond, 0, digit)
        rest = remainder(rest, digit, shift)
        count = count + (digit.astype(jnp.int32) << (_DIGIT_BITS * place))
    digit = jnp.ceil(rest * inverse)
    digit = jnp.where(remainder(rest, digit - 1, 1.0) <= 0, digit - 1, digit)
    digit = jnp.where(remainder(rest, digit, 1.0) > 0, digit + 1, digit)
    beyond = beyond | (count > largest - digit.astype(jnp.int32))
    count = count + digit.astype(jnp.int32)
    past_the_end = min(largest + 1, int(UNREACHABLE))
    return jnp.where(beyond, past_the_end, jnp.maximum(count, 1))


@functools.partial(compiled, static=("largest",))
def _bound(distribution, s_min, alpha, largest: int) -> Bound:
    dtype = distribution.dtype
    step = -log_cdf_below(distribution, s_min)
    target = -jnp.log1p(-jnp.asarray(alpha, dtype))
    target, step = jnp.broadcast_arrays(target, step)
    never, at_once = step <= 0, jnp.isposinf(step)
    ordinary = jnp.where(never | at_once, 1.0, step)
    count = jnp.where(at_once, 1, _least_count(target, ordinary, largest))
    unusable = never | jnp.isnan(step)
    capped = (count > largest) | (count >= UNREACHABLE)
    status = jnp.where(capped, BoundStatus.CAPPED, BoundStatus.EXACT)
    status = jnp.where(unusable, BoundStatus.UNREACHABLE, status)
    count = jnp.where(unusable | capped, largest, count)
    return Bound(count.astype(jnp.int32), status.astype(jnp.int32))


def bound(
    distribution, s_min: ArrayLike, alpha: ArrayLike, max_samples: int | None = None
) -> Bound:
    """`required_samples` with the reason for it, and with its arguments and errors."""
    check_targets(s_min, alpha)
    if max_samples is not None and not 1 <= max_samples <= UNREACHABLE:
        raise ValueError(f"max_samples must be in [1, {UNREACHABLE}], found {max_samples}")
    largest = int(UNREACHABLE) if max_samples is None else int(max_samples)
    return _bound(distribution, s_min, alpha, largest)


def required_samples(
    distribution, s_min: ArrayLike, alpha: ArrayLike, max_samples: int | None = None
) -> Array:
    """The fewest samples of which the best reaches `s_min` with probability at least `alpha`.

        N* = min {N >= 1 : F(s_min)^N <= 1 - alpha} = ceil(log(1 - alpha) / log F(s_min))

    Exact: N log F <= log(1 - alpha) holds for N and not for N - 1, compared without rounding on
    the logs in the distribution's dtype, float32 included, for every N that int32 holds. The
    ceiling of the rounded quotient, by contrast, is off by one at exact ratios and by more from
    N = 2^24 on.

    Args:
      distribution: the law F of one score, any TFP distribution with `log_cdf`, of batch shape
        [...]. Continuous, or with a method `log_cdf_below(x)`, the log of P(X < x), which then
        takes F's place: a score of exactly s_min reaches it.
      s_min: the score to reach, in [0, 1], broadcastable against [...].
      alpha: the probability of reaching it, inside (0, 1), broadcastable against [...].
      max_samples: cap on the result, a Python int >= 1, or None.

    Returns:
      int32 of the broadcast shape. 1 where F(s_min) = 0. Where F(s_min) = 1 no number is enough:
      `max_samples`, or `UNREACHABLE` if that is None. `bound` tells such a cap from an answer.

    Raises:
      ValueError: alpha or s_min outside its domain (checked where their values are known, that is
        outside jit), or max_samples < 1.

    References:
      Wang et al. (2026), arXiv 2506.22376, the lower bound on N.
    """
    return bound(distribution, s_min, alpha, max_samples).num_samples


def success_probability(distribution, s_min: ArrayLike, n: ArrayLike) -> Array:
    """P(best of n >= s_min) = 1 - F(s_min)^n, [...]; relative precision is kept where it is small.

    Args:
      distribution: the law F of one score, of batch shape [...].
      s_min: the score to reach, in [0, 1], broadcastable against [...]; a ValueError if it is
        known and outside.
      n: number of samples, >= 0, broadcastable against [...].
    """
    check_targets(s_min, None)
    return _success_probability(distribution, s_min, n)


@compiled
def _success_probability(distribution, s_min, n):
    dtype = distribution.dtype
    n = jnp.asarray(n, dtype)
    log_miss = log_cdf_below(distribution, s_min)
    # 0 samples reach nothing, also where F(s_min) = 0 (0 * -inf is not a number).
    return -jnp.expm1(jnp.where(n > 0, n * jnp.where(n > 0, log_miss, 0.0), 0.0))


def expected_best(distribution, n: ArrayLike) -> Array:
    """E[max of n scores] = integral of s dF(s)^n, [...], in units of the score.

    Args:
      distribution: the law F of one score, with `log_cdf` and `quantile`, of batch shape [...].
      n: number of samples, >= 1 (a ValueError if it is known and below), broadcastable to [...].
    """
    return BestOfN(distribution, n).mean()


def marginal_gain(distribution, n: ArrayLike) -> Array:
    """What one more sample adds: E[best of n + 1] - E[best of n] = integral of F^n (1 - F), >= 0.

    The integral has no cancellation, unlike the difference of the two expectations.

    Args:
      distribution: as in `expected_best`, with `log_survival_function` too.
      n: number of samples so far, as in `expected_best`.
    """
    return _marginal_gain(BestOfN(distribution, n))


@compiled
def _marginal_gain(best):
    points, weights, _ = best.integration_rule()
    log_tail = best.distribution.log_survival_function(points)
    return jnp.sum(weights * jnp.exp(best.log_cdf(points) + log_tail), axis=0)
