"""What is fitted to problems that a head was not trained on, and how good its priors are on them.

`Offsets` are added to a head's outputs, whatever the head; `Points` makes point predictions of the
priors; `quality` holds both against what came of the problems. None knows the head's weights.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from optscale_jax.empirical_bayes import (
    Posterior,
    log_marginal,
    predictive,
    predictive_interval,
    predictive_spread,
)
from optscale_jax.estimation import Prior, ScoreStats
from optscale_jax.predictor.head import with_widths

__all__ = [
    "COVERAGE",
    "Offsets",
    "Points",
    "Quality",
    "central_interval",
    "quality",
    "rank_correlation",
]

COVERAGE = 0.8
"""Coverage of the interval whose honesty is reported."""

_RIDGE = 1.0
# Of the regressions of point predictions, whose columns may be nearly the same: as much as one
# problem weighs.
_FITTING_STEPS = 8
_HALVINGS = 12
_REACH = 1.5
# Largest change of the outputs of the widths for the coverage's sake.
_with_widths = jax.jit(with_widths)


def central_interval(prior: Prior, n: ArrayLike = np.inf) -> np.ndarray:
    """Ends [2, P] of the central interval of `COVERAGE` for the mean of n scores of a problem."""
    return np.moveaxis(np.asarray(predictive_interval(prior, COVERAGE, n)), -1, 0)


class Offsets(NamedTuple):
    """What is added to a head's outputs, so that its priors are honest.

    Attributes:
        mean: To the output for the law's mean.
        scale: To that for its scale.
        mean_width: To that for how sure the head is of the mean.
        scale_width: To that for how sure it is of the scale.
    """

    mean: float = 0.0
    scale: float = 0.0
    mean_width: float = 0.0
    scale_width: float = 0.0

    @classmethod
    def fit(
        cls,
        prior: Prior,
        outputs: Float[np.ndarray, "problems outputs"],
        stats: ScoreStats,
        relative: Posterior,
    ) -> "Offsets":
        """Offsets of the widths; those of mean and scale are 0.

        A head is surer on problems that it was trained on than it should be on others. How the
        widths compare with each other is fitted to the validation likelihood; how wide they are, to
        the coverage of the central interval, which the likelihood alone leaves too wide, because a
        problem's law is no truncated normal exactly.

        Args:
            prior: Fields [P], of problems that the head was not trained on.
            outputs: What they were read from.
            stats: Statistics of those problems' scores [P].
            relative: Their nodes [P, K].
        """
        widths = np.asarray(_likeliest(prior, outputs, relative))
        least, most = -_REACH, _REACH
        for _ in range(_HALVINGS):
            middle = np.float32((least + most) / 2)
            added = np.array([0, 0, *(widths + middle)], np.float32)
            if _covered(_with_widths(prior, outputs, added), stats) >= COVERAGE:
                most = middle
            else:
                least = middle
        return cls(0.0, 0.0, *map(float, widths + np.float32((least + most) / 2)))

    def __call__(self, outputs: ArrayLike) -> Float[Array, "... outputs"]:
        """The outputs [..., 4] with the offsets added."""
        return jnp.asarray(outputs) + jnp.asarray(self, jnp.float32)


@jax.jit
def _likeliest(prior: Prior, outputs: Array, relative: Posterior) -> Array:
    """What added to the outputs of the widths makes the problems likeliest, by Newton's method."""

    def loss(widths):
        added = jnp.concatenate([jnp.zeros(2), widths])
        return -jnp.mean(log_marginal(relative, with_widths(prior, outputs, added)))

    def newton(_, widths):
        gradient, hessian = jax.grad(loss)(widths), jax.hessian(loss)(widths)
        values, vectors = jnp.linalg.eigh(hessian)
        values = jnp.maximum(jnp.abs(values), 1e-3)
        step = jnp.clip(-vectors @ ((vectors.T @ gradient) / values), -0.5, 0.5)
        return jnp.where(loss(widths + step) < loss(widths), widths + step, widths + step / 8)

    return jax.lax.fori_loop(0, _FITTING_STEPS, newton, jnp.zeros(2))


def _covered(prior: Prior, stats: ScoreStats) -> float:
    """Share of the problems whose mean is inside its central interval."""
    low, high = central_interval(prior, stats.n)
    mean = np.asarray(stats.mean)
    return float(np.mean((low <= mean) & (mean <= high)))


class Points(NamedTuple):
    """Linear regressions from what a prior expects, and how sure it is, to point predictions.

    Scores are no truncated normal exactly. A law that is likely has, on average, a smaller standard
    deviation than the scores, and one with theirs would be less likely; so the prior stays as it
    is, and its point predictions are put right by least squares.

    Attributes:
        mean: Intercept, and slope of the expected mean.
        sd: Intercept, and slopes of the expected mean and sd (`predictive`) and of their sds over
            the prior (`predictive_spread`).
    """

    mean: tuple[float, ...] = (0.0, 1.0)
    sd: tuple[float, ...] = (0.0, 0.0, 1.0, 0.0, 0.0)

    @classmethod
    def fit(cls, prior: Prior, stats: ScoreStats) -> "Points":
        """Least squares over problems that these priors [P] were not trained on."""
        columns = _columns(prior)
        return cls(_regression(columns[:, :1], stats.mean), _regression(columns, _sd(stats)))

    def __call__(self, prior: Prior) -> tuple[np.ndarray, np.ndarray]:
        """The point predictions of mean and sd [P], in [0, 1] and [0, 1/2]."""
        columns = _columns(prior)

        def line(slopes, most):
            value = slopes[0] + columns[:, : len(slopes) - 1] @ np.asarray(slopes[1:])
            return np.clip(value, 0, most).astype(np.float32)

        return line(self.mean, 1.0), line(self.sd, 0.5)


_AS_EXPECTED = Points()


def _columns(prior: Prior) -> np.ndarray:
    return np.stack([*predictive(prior), *predictive_spread(prior)], axis=-1).astype(np.float64)


def _sd(stats: ScoreStats) -> np.ndarray:
    return np.sqrt(np.asarray(stats.m2) / np.asarray(stats.n))


def _regression(x: np.ndarray, y: ArrayLike) -> tuple[float, ...]:
    """Intercept and slopes of least squares, the slopes with a ridge."""
    y = np.asarray(y, np.float64)
    centre, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    z = (x - centre) / scale
    gram = z.T @ z + _RIDGE * np.eye(x.shape[1])
    slopes = np.linalg.solve(gram, z.T @ (y - y.mean())) / scale
    return float(y.mean() - slopes @ centre), *map(float, slopes)


class Quality(NamedTuple):
    """How good priors, or point predictions alone, are on problems; NaN: not known.

    Attributes:
        problems: How many problems.
        mean_error: Mean squared error of the predicted mean of the scores (`Points`).
        mean_rank: Its rank correlation with the truth (Spearman); NaN for a constant.
        sd_error: The same of the predicted standard deviation.
        sd_rank: Likewise.
        coverage: Share of means inside the central interval of `COVERAGE`.
        nll: Minus the mean log marginal likelihood of a problem's scores, in nats a problem.
    """

    problems: int
    mean_error: float
    mean_rank: float
    sd_error: float
    sd_rank: float
    coverage: float = np.nan
    nll: float = np.nan


def quality(
    prior: Prior, stats: ScoreStats, posterior: Posterior, points: Points = _AS_EXPECTED
) -> Quality:
    """Measures priors against what came of the problems.

    Args:
        prior: Fields [P], or scalar for one prior for all.
        stats: Statistics of the scores [P].
        posterior: Nodes of the same problems.
        points: What makes point predictions of the priors.
    """
    prior = jax.tree.map(lambda v: jnp.broadcast_to(jnp.asarray(v), stats.mean.shape), prior)
    mean, sd = points(prior)
    own_mean, own_sd = np.asarray(stats.mean), _sd(stats)
    return Quality(
        problems=len(own_mean),
        mean_error=float(np.mean((mean - own_mean) ** 2)),
        mean_rank=rank_correlation(mean, own_mean),
        sd_error=float(np.mean((sd - own_sd) ** 2)),
        sd_rank=rank_correlation(sd, own_sd),
        coverage=_covered(prior, stats),
        nll=-float(np.mean(log_marginal(posterior, prior))),
    )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, ties sharing their ranks; NaN if one of the two is constant."""
    from scipy import stats  # a second to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(stats.spearmanr(a, b)[0])  # pyright: ignore[reportArgumentType]
