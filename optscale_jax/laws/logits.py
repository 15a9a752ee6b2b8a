"""What a law of log-odds remembers of scores: statistics that no narrow spread cancels."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates.jax.distributions import Distribution

from optscale_jax.distributions.base import known
from optscale_jax.estimation import MIN_SCALE, Boundary, Prior
from optscale_jax.laws.base import Law, Params
from optscale_jax.special_beta import softplus_divergence
from optscale_jax.typing import Array, ArrayLike

__all__ = ["MARGIN", "LogitInfo", "LogitLaw", "LogitStats", "spread_floor"]

MARGIN = 1e-6
"""Some sixteen of the steps by which float32 holds numbers below 1."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogitStats:
    """Count, mean and spread of the scores' log-odds t.

    Sufficient for the beta law (n, mean, divergence) and for the logit-normal (n, mean, m2). The
    beta law's own statistics, the means of log x and log(1 - x), are no use: what they tell of the
    spread is in the last digits of their sum. Every field of shape [...].
    """

    n: Any  # number of scores
    mean: Any  # mean log-odds; 0 where n = 0
    m2: Any  # sum of squared deviations from the mean
    # Sum of `softplus_divergence` from the mean: -sum(log x + log(1 - x)) / 2, less its value for
    # as many scores at the mean.
    divergence: Any
    moved: Any  # number of scores that were moved to the margin

    @classmethod
    def single(cls, score: ArrayLike, margin: ArrayLike, dtype) -> "LogitStats":
        """Statistics of one score each, shape [...]."""
        score, margin = jnp.asarray(score, dtype), jnp.asarray(margin, dtype)
        # In log-odds, for 1 - margin may round to 1.
        end = jnp.log1p(-margin) - jnp.log(margin)
        inside = (score > 0) & (score < 1)
        safe = jnp.where(inside, score, 0.5)
        logit = jnp.where(inside, jnp.log(safe) - jnp.log1p(-safe), jnp.sign(score - 0.5) * 1e9)
        zero = jnp.zeros_like(score)
        moved = (jnp.abs(logit) > end).astype(dtype)
        return cls(zero + 1, jnp.clip(logit, -end, end), zero, zero, moved)

    def merge(self, other: "LogitStats") -> "LogitStats":
        """Statistics of both sets of scores together.

        The divergence from the mean is a Bregman information, which adds up as a variance does
        (Chan's formula), with softplus in the place of half the square.

        References:
          Banerjee et al. (2005), "Clustering with Bregman divergences", JMLR 6, theorem 1.
        """
        n = self.n + other.n
        share = other.n / jnp.maximum(n, 1)
        delta = other.mean - self.mean
        mean = self.mean + delta * share
        p, q = jax.nn.sigmoid(mean), jax.nn.sigmoid(-mean)
        between = self.n * softplus_divergence(-delta * share, p, q) + other.n * (
            softplus_divergence(delta * (1 - share), p, q)
        )
        return LogitStats(
            n=n,
            mean=mean,
            m2=self.m2 + other.m2 + delta * delta * self.n * share,
            divergence=self.divergence + other.divergence + between,
            moved=self.moved + other.moved,
        )

    @property
    def log_slope(self) -> Array:
        """Mean of log(x (1 - x)), which turns the density of log-odds into that of scores."""
        at_mean = jax.nn.log_sigmoid(self.mean) + jax.nn.log_sigmoid(-self.mean)
        return at_mean - 2 * self.divergence / jnp.maximum(self.n, 1)


class LogitInfo(NamedTuple):
    """How a fit to log-odds ended, every field of shape [...]."""

    # An `estimation.Boundary`, as int32: NO_SCORES, SCALE_FLOOR (one score, or equal ones: the law
    # is as narrow as `MIN_SCALE`), or NONE.
    boundary: Array
    objective: Array  # the negative log-likelihood of the scores, those at the margin as moved
    gradient: Array  # as `estimation.FitInfo`; 0 where the fit is in closed form
    # Number of scores at 0 or 1, or nearer than the margin, that were moved inward to it.
    moved: Array


def spread_floor(mean: Array) -> Array:
    """Least standard deviation of the log-odds: that of scores `MIN_SCALE` apart at the mean."""
    return MIN_SCALE / (jax.nn.sigmoid(mean) * jax.nn.sigmoid(-mean))


class LogitLaw(Law):
    """A law of log-odds, fitted by maximum likelihood from `LogitStats`.

    A subclass gives its distributions' class, its parameters before a fit, and a `fit` that ends in
    `fitted`.

    Attributes:
      margin: scores nearer than this to 0 or 1 are read as this far from it, in (0, 1/2), a
        ValueError otherwise: a density of log-odds gives an exact 0 or 1 no likelihood, or an
        infinite one. `with_atoms` does without.
    """

    family: ClassVar[type[Distribution]]
    first: ClassVar[tuple[float, float]]

    margin: Any = MARGIN

    def __post_init__(self):
        margin = known(self.margin)
        if margin is not None and not np.all((margin > 0) & (margin < 0.5)):
            raise ValueError(f"margin must be inside (0, 1/2), found {self.margin}")

    def start(self, prior: Prior | None, dtype) -> Params:
        """`first`."""
        self.refuse_prior(prior)
        values = (jnp.asarray(value, dtype) for value in self.first)
        return dict(zip(self.parameters, values, strict=True))

    def fitted(
        self, memory: LogitStats, params: tuple[Array, Array], value, size, spread_out
    ) -> tuple[Params, LogitInfo]:
        """What `fit` returns: NaN parameters without scores.

        Args:
          memory: what was fitted to.
          params: the parameters, in order.
          value: negative log-likelihood of the log-odds, a score.
          size: `FitInfo.gradient`.
          spread_out: whether the scores are wider than the floor, which narrows the law, not them.
        """
        some = memory.n > 0
        boundary = jnp.where(spread_out, Boundary.NONE, Boundary.SCALE_FLOOR)
        boundary = jnp.where(some, boundary, Boundary.NO_SCORES).astype(jnp.int32)
        found = (jnp.where(some, each, jnp.nan) for each in params)
        objective = memory.n * (value + memory.log_slope)
        info = LogitInfo(boundary, objective, jnp.where(some, size, 0.0), memory.moved)
        return dict(zip(self.parameters, found, strict=True)), info

    def distribution(self, params: Params) -> Distribution:
        """Of the family."""
        return self.family(*(params[name] for name in self.parameters))

    def init(self, max_samples: int, dtype) -> LogitStats:
        """`LogitStats` of no scores."""
        del max_samples
        zero = jnp.zeros((), dtype)
        return LogitStats(zero, zero, zero, zero, zero)

    def add(self, memory: LogitStats, score: ArrayLike) -> LogitStats:
        """`LogitStats` with one more score."""
        return memory.merge(LogitStats.single(score, self.margin, memory.mean.dtype))

    def memory_of(self, scores: ArrayLike, mask: ArrayLike | None = None) -> LogitStats:
        """`LogitStats` of each row, in two passes."""
        scores = jnp.asarray(scores)
        dtype = jnp.result_type(scores.dtype, jnp.float32)
        present = jnp.asarray(True if mask is None else mask, bool)
        scores, present = jnp.broadcast_arrays(scores, present)
        each = LogitStats.single(jnp.where(present, scores, 0.5), self.margin, dtype)

        def total(values):
            return jnp.sum(jnp.where(present, values, 0.0), axis=-1)

        n = total(each.n)
        mean = total(each.mean) / jnp.maximum(n, 1)
        # The mean of the rest is the rounding of the mean, which is then taken back.
        mean = mean + total(each.mean - mean[..., None]) / jnp.maximum(n, 1)
        delta = each.mean - mean[..., None]
        p, q = (jax.nn.sigmoid(sign * mean)[..., None] for sign in (1, -1))
        return LogitStats(
            n=n,
            mean=mean,
            m2=total(delta * delta),
            divergence=total(softplus_divergence(delta, p, q)),
            moved=total(each.moved),
        )
