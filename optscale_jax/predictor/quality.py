"""How good priors are, held against what came of the problems."""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optscale_jax.empirical_bayes import Posterior, log_marginal, predictive_interval
from optscale_jax.estimation import Prior, ScoreStats
from optscale_jax.predictor.calibration import COVERAGE, Points

__all__ = ["Quality", "quality", "rank_correlation"]

_AS_EXPECTED = Points()


class Quality(NamedTuple):
    """How good priors are on problems.

    Attributes:
        problems: How many problems.
        mean_error: Mean squared error of the predicted mean of the scores (`Points`).
        mean_rank: Its rank correlation with the truth (Spearman); NaN for a constant.
        sd_error: The same of the predicted standard deviation.
        sd_rank: Likewise.
        coverage: Share of means inside the central 80% interval.
        nll: Minus the mean log marginal likelihood of a problem's scores, in nats a problem.
    """

    problems: int
    mean_error: float
    mean_rank: float
    sd_error: float
    sd_rank: float
    coverage: float
    nll: float


def quality(
    prior: Prior, stats: ScoreStats, posterior: Posterior, points: Points = _AS_EXPECTED
) -> Quality:
    """Measures priors against what came of the problems.

    Args:
        prior: Fields [P], or scalar for one prior for all.
        stats: Statistics of the scores [P].
        posterior: Nodes of the same problems.
        points: What makes point predictions of the priors.

    Returns:
        The figures.
    """
    prior = jax.tree.map(lambda v: jnp.broadcast_to(jnp.asarray(v), stats.mean.shape), prior)
    mean, sd = points(prior)
    low, high = np.moveaxis(np.asarray(predictive_interval(prior, COVERAGE, stats.n)), -1, 0)
    own_mean = np.asarray(stats.mean)
    own_sd = np.sqrt(np.asarray(stats.m2) / np.asarray(stats.n))
    return Quality(
        problems=len(own_mean),
        mean_error=float(np.mean((mean - own_mean) ** 2)),
        mean_rank=rank_correlation(mean, own_mean),
        sd_error=float(np.mean((sd - own_sd) ** 2)),
        sd_rank=rank_correlation(sd, own_sd),
        coverage=float(np.mean((low <= own_mean) & (own_mean <= high))),
        nll=-float(np.mean(log_marginal(posterior, prior))),
    )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation.

    Args:
        a: [P] any real numbers.
        b: [P] likewise.

    Returns:
        The correlation of the ranks, ties sharing theirs; NaN if one of the two is constant.
    """
    from scipy import stats  # a second to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(stats.spearmanr(a, b)[0])  # pyright: ignore[reportArgumentType]
