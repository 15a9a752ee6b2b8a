"""The logit-normal as a law of scores: a normal law of their log-odds, fitted in closed form."""

import math
from typing import ClassVar

import jax.numpy as jnp
from tensorflow_probability.substrates.jax.distributions import Distribution

from optscale_jax.distributions import LogitNormal
from optscale_jax.estimation import Prior
from optscale_jax.laws.base import Params
from optscale_jax.laws.logits import MARGIN, LogitInfo, LogitLaw, LogitStats, spread_floor
from optscale_jax.typing import ArrayLike

__all__ = ["LogitNormalLaw", "logit_normal"]


class LogitNormalLaw(LogitLaw):
    """A normal law of the scores' log-odds: mean and standard deviation are the fit."""

    parameters: ClassVar[tuple[str, ...]] = ("loc", "scale")
    family: ClassVar[type[Distribution]] = LogitNormal
    # About the quartiles of the truncated normal's start.
    first: ClassVar[tuple[float, float]] = (1.2, 1.0)

    def fit(self, memory: LogitStats, prior: Prior | None = None) -> tuple[Params, LogitInfo]:
        """Mean and (maximum-likelihood) standard deviation of the log-odds."""
        self.refuse_prior(prior)
        n = jnp.maximum(memory.n, 1)
        floor = spread_floor(memory.mean)
        spread = jnp.sqrt(memory.m2 / n)
        scale = jnp.maximum(spread, floor)
        square = 0.5 * memory.m2 / n / scale / scale
        objective = jnp.log(scale) + 0.5 * math.log(2 * math.pi) + square
        params = memory.mean, scale
        return self.fitted(memory, params, objective, jnp.zeros_like(scale), spread > floor)


def logit_normal(margin: ArrayLike = MARGIN) -> LogitNormalLaw:
    """A normal law of the scores' log-odds; parameters loc and scale, in them; see `LogitLaw`."""
    return LogitNormalLaw(margin=margin)
