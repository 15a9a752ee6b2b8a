"""Which law fits a pool's scores? Held-out log-likelihood per score, problem by problem.

Each problem's completions are dealt to folds; a law is fitted to all folds but one and judged on
that one. A recorded score is a measurement with a resolution h: it stands for the cell

    [x - h/2, x + h/2] within [0, 1],

and a law is judged by the probability of the cell. That makes point masses and densities
comparable, which as numbers they are not: a density may be as high as it likes on a narrow peak, a
mass is at most 1. At an end the cell is half as wide and holds the atom there, if the law has one.

A fit to few or equal scores can rule out what then happens, and one such score would decide the
mean of all. Each fitted law is therefore judged together with one score that nobody has seen, which
may be anything: with n scores in the fit, as n / (n + 1) of the law and 1 / (n + 1) of the uniform.
The same for every law; what a law loses by a score that it rules out is log((n + 1) / h).
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optscale_jax.distributions.best_of_n import log_cdf_below
from optscale_jax.laws.base import Law, fit_rows
from optscale_jax.pool import Pool, PoolError
from optscale_jax.study.metrics import Comparison, paired_intervals
from optscale_jax.typing import Array, ArrayLike

__all__ = ["LawComparison", "compare_laws", "log_cell"]

RESOLUTION = 1e-3
"""Default width of a score's cell: finer than what anybody asks of a verifier's score."""

FEWEST_SCORES = 4
"""Problems with fewer scores are left out."""


class LawComparison(NamedTuple):
    """Held-out log probabilities of the scores' cells under several laws, in nats."""

    per_problem: dict[str, np.ndarray]  # by law [P], means over scores; NaN: too few scores
    laws: dict[str, Comparison]  # means over problems, and those minus the best law's, all paired
    best: str  # the law with the largest mean
    tied: tuple[str, ...]  # others whose difference from the best has an interval that holds 0
    resolution: float  # width of a score's cell
    num_problems: int  # judged
    num_scores: int  # theirs
    sentence: str  # what it says, in words


def log_cell(distribution, scores: ArrayLike, resolution: ArrayLike) -> Array:
    """Log probability of each score's cell [x - h/2, x + h/2] within [0, 1].

    From the smaller of the two tails, so that a cell of 1e-40 keeps its digits. The distribution,
    of batch shape [...], has `log_cdf` and `log_survival_function`; scores broadcast against it,
    and h > 0.
    """
    scores = jnp.asarray(scores, distribution.dtype)
    half = 0.5 * jnp.asarray(resolution, distribution.dtype)
    low, high = scores - half, scores + half
    # The cell's ends are counted as belonging to it: an atom at 0 or 1 is inside.
    below = log_cdf_below(distribution, jnp.maximum(low, 0.0))
    below = jnp.where(low <= 0, -jnp.inf, below)
    up_to = jnp.where(high >= 1, 0.0, distribution.log_cdf(jnp.minimum(high, 1.0)))
    above = jnp.where(high >= 1, -jnp.inf, distribution.log_survival_function(high))
    from_low = jnp.where(low <= 0, 0.0, distribution.log_survival_function(jnp.maximum(low, 0.0)))
    lower = up_to < math.log(0.5)

    def difference(large, small):
        gap = jnp.where(jnp.isneginf(small), jnp.inf, large - small)
        gap = jnp.maximum(gap, 0.0)
        finite = jnp.isfinite(gap)
        return large + jnp.where(finite, jax.nn.log1mexp(jnp.where(finite, gap, 1.0)), 0.0)

    return jnp.where(lower, difference(up_to, below), difference(from_low, above))


def compare_laws(
    pool: Pool,
    laws: Mapping[str, Law],
    *,
    key: Array,
    num_folds: int = 4,
    resolution: float = RESOLUTION,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> LawComparison:
    """Held-out log-likelihood per score of each law, by cross-validation within each problem.

    Args:
      pool: P problems with scores.
      laws: the laws by name.
      key: JAX random key, for the folds and the bootstrap.
      num_folds: folds that each problem's completions are dealt to, >= 2.
      resolution: width h of a score's cell, in (0, 1); the laws' order rarely depends on it unless
        it is as wide as their differences.
      num_resamples: of the bootstrap over problems.
      level: coverage of the intervals, inside (0, 1).

    Raises:
      PoolError: the pool has no scores, or no problem with `FEWEST_SCORES` of them.
      ValueError: no law, or an option outside its domain.
    """
    if pool.scores is None:
        raise PoolError("pool: it has no verifier scores, so there is no law of scores to compare")
    if not laws:
        raise ValueError("laws is empty; name at least one")
    if num_folds < 2:
        raise ValueError(f"num_folds must be >= 2, found {num_folds}")
    if not 0 < resolution < 1:
        raise ValueError(f"resolution must be inside (0, 1), found {resolution}")
    mask = np.asarray(pool.mask)
    enough = mask.sum(1) >= FEWEST_SCORES
    if not enough.any():
        raise PoolError(f"pool: no problem has {FEWEST_SCORES} scores, so no law can be judged")
    dealing, resampling = jax.random.split(key)
    order = np.where(mask, np.asarray(jax.random.uniform(dealing, mask.shape)), np.inf)
    folds = np.argsort(np.argsort(order, axis=1), axis=1) % num_folds
    scores = np.where(mask, pool.scores, 0.5)
    per_problem = {
        name: np.where(enough, _held_out(law, scores, mask, folds, num_folds, resolution), np.nan)
        for name, law in laws.items()
    }
    best = max(per_problem, key=lambda name: np.nanmean(per_problem[name]))
    intervals = paired_intervals(
        {name: values[None] for name, values in per_problem.items()},
        baseline=best,
        key=resampling,
        num_resamples=num_resamples,
        level=level,
    )
    tied = tuple(
        name for name, one in intervals.items() if name != best and one.difference.high >= 0
    )
    return LawComparison(
        per_problem=per_problem,
        laws=intervals,
        best=best,
        tied=tied,
        resolution=resolution,
        num_problems=int(enough.sum()),
        num_scores=int(mask[enough].sum()),
        sentence=_sentence(intervals, best, tied, level),
    )


def _sentence(intervals: Mapping[str, Comparison], best: str, tied, level: float) -> str:
    value = float(intervals[best].value.mean)
    if len(intervals) == 1:
        return f"The {best} gives a held-out score's cell {value:.3f} nats."
    if tied:
        *first, last = (f"the {name}" for name in tied)
        others = f"{', '.join(first)} and {last}" if first else last
        return (
            f"The {best} fits best ({value:.3f} nats per held-out score), but the scores do not "
            f"tell it from {others}: the {level:.0%} interval of the difference holds 0."
        )
    others = {name: one.difference for name, one in intervals.items() if name != best}
    second = max(others, key=lambda name: float(others[name].mean))
    gap = others[second]
    return (
        f"The {best} fits best: {value:.3f} nats per held-out score, {-float(gap.mean):.3f} more "
        f"than the next, the {second} ({level:.0%} interval {-float(gap.high):.3f} to "
        f"{-float(gap.low):.3f})."
    )


def _held_out(law: Law, scores, mask, folds, num_folds: int, resolution: float) -> np.ndarray:
    total = np.zeros(scores.shape[0])
    for fold in range(num_folds):
        held = mask & (folds == fold)
        seen = mask & ~held
        params, _ = fit_rows(law, scores, seen)
        start = law.start(None, jnp.result_type(float))
        enough = seen.sum(1) >= law.scores_for_a_fit(None)
        params = {name: jnp.where(enough, v, start[name]) for name, v in params.items()}
        each = np.asarray(_log_cells(law, params, scores, resolution), np.float64)
        width = np.minimum(scores + resolution / 2, 1) - np.maximum(scores - resolution / 2, 0)
        n = seen.sum(1)[:, None]
        each = np.logaddexp(each + np.log(n), np.log(width)) - np.log(n + 1)
        total += np.where(held, each, 0.0).sum(1)
    return total / np.maximum(mask.sum(1), 1)


@jax.jit
def _log_cells(law, params, scores, resolution):
    def one(params, scores):
        return log_cell(law.distribution(params), scores, resolution)

    return jax.vmap(one)(params, scores)
