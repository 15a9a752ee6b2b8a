"""What a replay or a live run cost and what it won: means, and paired intervals.

Works on NumPy arrays of outcomes, [..., permutations, problems], where leading axes are settings of
a policy. Values that are not known are NaN throughout, never a negative number.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Float64, Num, PRNGKeyArray, Shaped, UInt32

__all__ = [
    "Comparison",
    "Interval",
    "bootstrap",
    "interval_of",
    "known_mean",
    "known_tokens",
    "paired_intervals",
    "resampled_means",
    "retuned_means",
]

Values = Shaped[np.ndarray | Array, "*settings permutations problems"]
Key = PRNGKeyArray | UInt32[Array, "2"]
_WEIGHTS_AT_ONCE = 2**22  # of 24 bytes each while they are drawn


class Interval(NamedTuple):
    """A mean and its confidence interval, of the settings' shape."""

    mean: Float64[np.ndarray, "*settings"]
    low: Float64[np.ndarray, "*settings"]
    high: Float64[np.ndarray, "*settings"]

    def at(self, index: Any) -> "Interval":
        """The intervals of some of the settings."""
        return Interval(*(part[index] for part in self))


class Comparison(NamedTuple):
    """A policy's interval, and that of its difference from the baseline."""

    value: Interval
    difference: Interval


def known_tokens(
    tokens: Num[np.ndarray | Array, "*settings permutations problems"],
) -> Float64[np.ndarray, "*settings permutations problems"]:
    """Token counts (negative: unknown) in float64, all NaN in a setting that has an unknown one.

    A mean over the problems whose tokens happen to be known would compare policies on different
    problems.
    """
    counts = np.asarray(tokens, np.float64)
    return np.where(np.any(~(counts >= 0), axis=(-2, -1), keepdims=True), np.nan, counts)


def known_mean(values: np.ndarray, axes: tuple[int, ...] = (-1,)) -> np.ndarray:
    """The mean of what is known along some axes, problems if none is given; NaN if nothing is."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis=axes), known.sum(axis=axes)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def bootstrap(
    values: Values, *, key: Key, num_resamples: int = 2000, level: float = 0.95
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
    widen the interval of a small difference, by sqrt(3) at most.

    Args:
        values: [..., K, P] outcomes (booleans or numbers); NaN = not known, left out.
        key: JAX random key; give the same one wherever intervals are compared.
        num_resamples: R, at least 1.
        level: Coverage, in (0, 1).

    Returns:
        Mean, low and high, of shape [...]; NaN where nothing is known.

    Raises:
        ValueError: If `values` has fewer than two axes or is empty, or an option is outside its
            domain.

    References:
        Owen (2007), The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 386-411.
    """
    outcomes = _outcomes(values)
    means = resampled_means(outcomes, key=key, num_resamples=num_resamples)
    return interval_of(known_mean(outcomes, (-2, -1)), means, level)


def paired_intervals(
    values: Mapping[str, Values],
    *,
    baseline: str,
    key: Key,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, Comparison]:
    """Intervals of several policies and of their differences from one of them, all paired.

    Args:
        values: Policy name to outcomes [..., K, P]. A policy's leading axes must broadcast with the
            baseline's; K and P are the same for all, and so are the problems and permutations that
            they stand for.
        baseline: The policy to subtract.
        key: As for `bootstrap`, like the rest.
        num_resamples: R.
        level: Coverage.

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
        return resampled_means(value, key=key, num_resamples=num_resamples)

    means = {name: resampled(value) for name, value in outcomes.items()}
    complete = not any(np.isnan(value).any() for value in outcomes.values())
    found = {}
    for name, value in outcomes.items():
        more = value - reference
        # Where all is known the mean is linear, and the difference needs no products of its own;
        # else it counts only what both know.
        difference = means[name] - means[baseline] if complete else resampled(more)
        found[name] = Comparison(
            interval_of(known_mean(value, (-2, -1)), means[name], level),
            interval_of(known_mean(more, (-2, -1)), difference, level),
        )
    return found


def resampled_means(values: Values, *, key: Key, num_resamples: int) -> np.ndarray:
    """[..., R] the mean of each of `bootstrap`'s resamples; NaN in one that hits nothing known."""
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}; it must be at least 1")
    outcomes = np.asarray(values, np.float64)
    known = ~np.isnan(outcomes)
    *_, num_permutations, num_problems = outcomes.shape
    # Where all is known the denominator is K P in every resample.
    complete = bool(known.all())
    parts = [np.where(known, outcomes, 0.0)]
    if not complete:
        parts.append(known.astype(np.float64))
    # A matrix product over problems, by far the longer axis, then a weighted sum. Flattened,
    # because NumPy would multiply once for each setting, five times as slow.
    flat = [part.reshape(-1, num_problems) for part in parts]
    generator = np.random.default_rng(np.ravel(jax.random.key_data(key)))
    sums = [np.empty((len(rows), num_resamples)) for rows in flat]
    done = 0
    for weights in _weights(generator, num_resamples, num_problems):
        for rows, total in zip(flat, sums, strict=True):
            total[:, done : done + len(weights)] = rows @ weights.T
        done += len(weights)
    weights = np.concatenate(list(_weights(generator, num_resamples, num_permutations)))
    total, *counts = (
        np.einsum("...kr,rk->...r", part.reshape(*outcomes.shape[:-1], num_resamples), weights)
        for part in sums
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / (np.float64(num_permutations * num_problems) if complete else counts[0])


def retuned_means(
    values: np.ndarray,
    choose: Callable[[np.ndarray], np.ndarray],
    fold: np.ndarray,
    *,
    key: Key,
    num_resamples: int,
) -> np.ndarray:
    """Means of `bootstrap`'s resamples, in each of which the settings are chosen again.

    Where the choice never changes, these are the means that `resampled_means` has of the outcomes
    chosen: the resamples are the same. Orders enter what is scored and not what is chosen, which
    rests on means over all of them.

    Args:
        values: [V, S, K, P] V outcomes of each setting, all known.
        choose: [R, P] how often each resample has each problem, to the A choices that it makes for
            each fold, int [A, R, F].
        fold: [P] fold of each problem.
        key: As for `bootstrap`.
        num_resamples: R.

    Returns:
        [V, A, R].
    """
    *_, num_permutations, num_problems = values.shape
    generator = np.random.default_rng(np.ravel(jax.random.key_data(key)))
    blocks = []
    drawings = _weights(generator, num_resamples, num_problems)
    # The choice holds a number for each resample and setting.
    pieces = -(-num_resamples * values.shape[1] // _WEIGHTS_AT_ONCE)
    for weights in (piece for block in drawings for piece in np.array_split(block, pieces)):
        chosen = choose(weights)
        total = np.zeros((len(values), num_permutations, *chosen.shape[:2]))
        for f in range(chosen.shape[-1]):
            own, drawn = values[..., fold == f], weights[:, fold == f]
            for setting in np.unique(chosen[..., f]):
                # A resample for which several aims choose the setting is multiplied once for each.
                aim, resample = np.nonzero(chosen[..., f] == setting)
                total[:, :, aim, resample] += own[:, setting] @ drawn[resample].T
        blocks.append(total)
    weights = np.concatenate(list(_weights(generator, num_resamples, num_permutations)))
    total = np.concatenate(blocks, axis=-1)
    return np.einsum("vkar,rk->var", total, weights) / (num_permutations * num_problems)


def interval_of(mean: np.ndarray, means: np.ndarray, level: float) -> Interval:
    """The percentile interval of a mean [...], from its resamples' means [..., R]."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be in (0, 1)")
    tail = (1 - level) / 2
    # A resample may hit nothing but unknown values when few are known.
    empty = np.all(np.isnan(means), axis=-1)
    filled = np.where(empty[..., None], 0.0, means)
    # Without NaN the plain quantile is several times as fast.
    quantile = np.nanquantile if np.isnan(filled).any() else np.quantile
    low, high = np.where(empty, np.nan, quantile(filled, [tail, 1 - tail], axis=-1))
    return Interval(mean, low, high)


def _outcomes(values: Any) -> Float[np.ndarray, "*settings permutations problems"]:
    array = np.asarray(values, np.float64)
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            f"outcomes have shape {array.shape}; they must be [..., permutations, problems], with "
            "at least one of each"
        )
    return array


def _weights(generator: np.random.Generator, num_resamples: int, size: int) -> Iterator[np.ndarray]:
    """[R, size] how often each of `size` things is drawn in `size` draws, some resamples at once.

    Few enough that memory does not grow with R, and a multiple of 16, so that the matrix product
    adds up in the same order as it does for all at once.
    """
    step = max(_WEIGHTS_AT_ONCE // size // 16, 1) * 16
    for first in range(0, num_resamples, step):
        count = min(step, num_resamples - first)
        draws = generator.integers(size, size=(count, size))
        draws += size * np.arange(count)[:, None]
        counts = np.bincount(draws.ravel(), minlength=count * size)
        yield counts.reshape(count, size).astype(np.float64)
