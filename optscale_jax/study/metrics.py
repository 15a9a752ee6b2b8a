"""What a replay or a live run cost and what it won: token ledger, means and paired intervals.

Works on NumPy arrays of outcomes, [..., permutations, problems], where leading axes are settings of
a policy. Values that are not known are NaN throughout, never a negative number.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float64, Num, PRNGKeyArray, Shaped, UInt32

__all__ = [
    "Comparison",
    "Interval",
    "bootstrap",
    "known_mean",
    "known_tokens",
    "paired_intervals",
]

Values = Shaped[np.ndarray | Array, "*settings permutations problems"]
Key = PRNGKeyArray | UInt32[Array, "2"]


class Interval(NamedTuple):
    """A mean and its confidence interval, of the settings' shape."""

    mean: Float64[np.ndarray, "*settings"]
    low: Float64[np.ndarray, "*settings"]
    high: Float64[np.ndarray, "*settings"]


class Comparison(NamedTuple):
    """A policy's interval, and that of its difference from the baseline."""

    value: Interval
    difference: Interval


def known_tokens(
    tokens: Num[np.ndarray | Array, "*settings permutations problems"],
) -> Float64[np.ndarray, "*settings permutations problems"]:
    """Makes token counts safe to average: all NaN if any is unknown.

    A mean over the problems whose tokens happen to be known would compare policies on different
    problems.

    Args:
        tokens: [..., K, P] tokens per problem; negative = unknown.

    Returns:
        [..., K, P] the same in float64, or NaN in each setting that has an unknown count.
    """
    counts = np.asarray(tokens, np.float64)
    unknown = np.any(~(counts >= 0), axis=(-2, -1), keepdims=True)
    return np.where(unknown, np.nan, counts)


def known_mean(values: np.ndarray, axes: tuple[int, ...] = (-1,)) -> np.ndarray:
    """The mean of what is known along some axes, problems if none is given; NaN if nothing is."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis=axes), known.sum(axis=axes)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def bootstrap(
    values: Values,
    *,
    key: Key,
    num_resamples: int = 2000,
    level: float = 0.95,
    resample_permutations: bool = True,
) -> Interval:
    r"""Percentile bootstrap interval of a mean over problems and permutations.

    Resample r draws P problems and, independently, K permutations, both with replacement; with
    w_rp and u_rk the numbers of times that each was drawn, its mean is

        m_r = sum_kp u_rk w_rp v_kp / sum_kp u_rk w_rp [v_kp is known],

    and the interval is between the (1 - level)/2 and (1 + level)/2 quantiles of m_r. Since the
    weights depend only on the key, the number of resamples, K and P, all settings, and all calls
    with the same key, share their resamples: intervals are paired. The mean is linear, so the
    interval of a difference is the interval of `values_a - values_b`.

    Problems are the sample of interest; permutations are noise of the replay. Resampling both
    ("pigeonhole") never understates the variance of either and counts the noise of a single
    permutation on a single problem up to three times, which is negligible for an accuracy but can
    widen the interval of a small difference, by sqrt(3) at most. `resample_permutations=False`
    averages over permutations first, which is exact when permutations are independent between
    problems.

    Args:
        values: [..., K, P] outcomes (booleans or numbers); NaN = not known, left out.
        key: JAX random key; give the same one wherever intervals are compared.
        num_resamples: R, at least 1.
        level: Coverage, in (0, 1).
        resample_permutations: Resample permutations as well as problems.

    Returns:
        Mean, low and high, of shape [...]; NaN where nothing is known.

    Raises:
        ValueError: If `values` has fewer than two axes or is empty, or an option is outside its
            domain.

    References:
        Owen (2007), The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 386-411.
    """
    outcomes = _outcomes(values)
    means = _resampled_means(outcomes, key, num_resamples, level, resample_permutations)
    return _interval(outcomes, means, level)


def paired_intervals(
    values: Mapping[str, Values],
    *,
    baseline: str,
    key: Key,
    num_resamples: int = 2000,
    level: float = 0.95,
    resample_permutations: bool = True,
) -> dict[str, Comparison]:
    """Intervals of several policies and of their differences from one of them, all paired.

    Args:
        values: Policy name to outcomes [..., K, P]. A policy's leading axes must broadcast with the
            baseline's; K and P are the same for all, and so are the problems and permutations that
            they stand for.
        baseline: The policy to subtract.
        key: JAX random key.
        num_resamples: R, at least 1.
        level: Coverage, in (0, 1).
        resample_permutations: As for `bootstrap`.

    Returns:
        Policy name to its interval and that of policy minus baseline. A problem and permutation
        counts towards a difference only if both are known.

    Raises:
        ValueError: If `baseline` is not among the policies, or K or P differ.
    """
    if baseline not in values:
        raise ValueError(f"baseline {baseline!r} is not among the policies: {', '.join(values)}")
    outcomes = {name: _outcomes(value) for name, value in values.items()}
    reference = outcomes[baseline]
    for name, value in outcomes.items():
        if value.shape[-2:] != reference.shape[-2:]:
            raise ValueError(
                f"{name} has {value.shape[-2:]} permutations and problems but {baseline} has "
                f"{reference.shape[-2:]}; replay both on the same pool and permutations"
            )

    def resampled(value: np.ndarray) -> np.ndarray:
        return _resampled_means(value, key, num_resamples, level, resample_permutations)

    means = {name: resampled(value) for name, value in outcomes.items()}
    complete = not any(np.isnan(value).any() for value in outcomes.values())
    return {
        name: Comparison(
            value=_interval(value, means[name], level),
            difference=_interval(
                value - reference,
                # Where all is known the mean is linear, and the difference needs no products of
                # its own; else it counts only what both know.
                means[name] - means[baseline] if complete else resampled(value - reference),
                level,
            ),
        )
        for name, value in outcomes.items()
    }


def _resampled_means(
    outcomes: np.ndarray,
    key: Key,
    num_resamples: int,
    level: float,
    resample_permutations: bool,
) -> np.ndarray:
    """[..., R] the mean of each resample; NaN in one that hits nothing known."""
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}; it must be at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be in (0, 1)")
    known = ~np.isnan(outcomes)
    filled = np.where(known, outcomes, 0.0)
    if not resample_permutations:
        filled, known = (part.sum(axis=-2, keepdims=True) for part in (filled, known))
    num_permutations, num_problems = filled.shape[-2:]

    generator = np.random.default_rng(np.ravel(jax.random.key_data(key)))
    problem_weights = _weights(generator, num_resamples, num_problems)
    permutation_weights = _weights(generator, num_resamples, num_permutations)

    def resampled_sum(part: np.ndarray) -> np.ndarray:
        # One matrix product over problems, by far the longer axis, then a weighted sum. Flattened,
        # because NumPy would multiply once for each setting, five times as slow.
        rows = part.astype(np.float64).reshape(-1, part.shape[-1])
        by_permutation = (rows @ problem_weights.T).reshape(*part.shape[:-1], num_resamples)
        return np.einsum("...kr,rk->...r", by_permutation, permutation_weights)

    # Where all is known the denominator is K P in every resample.
    complete = np.all(known == known.flat[0])
    denominator = (
        np.float64(known.sum(axis=(-2, -1))[..., None]) if complete else resampled_sum(known)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return resampled_sum(filled) / denominator


def _interval(outcomes: np.ndarray, means: np.ndarray, level: float) -> Interval:
    tail = (1 - level) / 2
    # A resample may hit nothing but unknown values when few are known.
    empty = np.all(np.isnan(means), axis=-1)
    filled = np.where(empty[..., None], 0.0, means)
    # Without NaN the plain quantile is several times as fast.
    quantile = np.nanquantile if np.isnan(filled).any() else np.quantile
    low, high = quantile(filled, [tail, 1 - tail], axis=-1)
    return Interval(
        mean=known_mean(outcomes, (-2, -1)),
        low=np.where(empty, np.nan, low),
        high=np.where(empty, np.nan, high),
    )


def _outcomes(values: Any) -> Float[np.ndarray, "*settings permutations problems"]:
    array = np.asarray(values, np.float64)
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            f"outcomes have shape {array.shape}; they must be [..., permutations, problems], with "
            "at least one of each"
        )
    return array


def _weights(generator: np.random.Generator, num_resamples: int, size: int) -> np.ndarray:
    """[num_resamples, size] how often each of `size` things is drawn in `size` draws."""
    draws = generator.integers(size, size=(num_resamples, size))
    draws += size * np.arange(num_resamples)[:, None]
    counts = np.bincount(draws.ravel(), minlength=num_resamples * size)
    return counts.reshape(num_resamples, size).astype(np.float64)
