"""What is fitted to problems that a head was not trained on, and added to what it says.

`Offsets` are added to a head's outputs, whatever the head; `Points` makes point predictions of the
priors. Neither knows the head's weights.
"""

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

__all__ = ["COVERAGE", "Offsets", "Points"]

COVERAGE = 0.8
"""Coverage of the interval whose honesty is reported."""

_RIDGE = 1.0
# Of the regressions of point predictions, whose columns may be nearly the same: as much as one
# problem weighs.
_FITTING_STEPS = 8
_HALVINGS = 12
_REACH = 1.5
# Largest change of the outputs of the widths for the coverage's sake.


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
            interval = predictive_interval(_with_widths(prior, outputs, added), COVERAGE, stats.n)
            low, high = np.moveaxis(np.asarray(interval), -1, 0)
            if np.mean((low <= stats.mean) & (stats.mean <= high)) >= COVERAGE:
                most = middle
            else:
                least = middle
        return cls(0.0, 0.0, *map(float, widths + np.float32((least + most) / 2)))

    def __call__(self, outputs: ArrayLike) -> Float[Array, "... outputs"]:
        """The outputs [..., 4] with the offsets added."""
        return jnp.asarray(outputs) + jnp.asarray(self, jnp.float32)


_with_widths = jax.jit(with_widths)


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
        """Least squares over problems.

        Args:
            prior: Fields [P], of problems that these priors were not trained on.
            stats: Statistics of their scores [P].
        """
        own_sd = np.sqrt(np.asarray(stats.m2) / np.asarray(stats.n))
        columns = _columns(prior)
        return cls(_regression(columns[:, :1], stats.mean), _regression(columns, own_sd))

    def __call__(self, prior: Prior) -> tuple[np.ndarray, np.ndarray]:
        """The point predictions of mean and sd [P], in [0, 1] and [0, 1/2]."""
        columns = _columns(prior)

        def line(slopes, most):
            value = slopes[0] + columns[:, : len(slopes) - 1] @ np.asarray(slopes[1:])
            return np.clip(value, 0, most).astype(np.float32)

        return line(self.mean, 1.0), line(self.sd, 0.5)


def _columns(prior: Prior) -> np.ndarray:
    return np.stack([*predictive(prior), *predictive_spread(prior)], axis=-1).astype(np.float64)


def _regression(x: np.ndarray, y: ArrayLike) -> tuple[float, ...]:
    """Intercept and slopes of least squares, the slopes with a ridge."""
    y = np.asarray(y, np.float64)
    centre, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    z = (x - centre) / scale
    gram = z.T @ z + _RIDGE * np.eye(x.shape[1])
    slopes = np.linalg.solve(gram, z.T @ (y - y.mean())) / scale
    return float(y.mean() - slopes @ centre), *map(float, slopes)
