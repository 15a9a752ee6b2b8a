"""The logit-normal as a law of scores: a normal law of their log-odds, fitted in closed form."""

import math
from typing import ClassVar

import jax.numpy as jnp

from optscale_jax.distributions import LogitNormal
from optscale_jax.estimation import Boundary, Prior
from optscale_jax.laws.base import Params
from optscale_jax.laws.logits import MARGIN, LogitInfo, LogitLaw, LogitStats, spread_floor
from optscale_jax.typing import ArrayLike

__all__ = ["START", "LogitNormalLaw", "logit_normal"]

START = (1.2, 1.0)
"""(loc, scale) before there are enough scores: about the quartiles of the truncated normal's."""


class LogitNormalLaw(LogitLaw):
    """A normal law of the scores' log-odds: mean and standard deviation are the fit.

    It remembers `LogitStats`. `START` before a fit.
    """

    parameters: ClassVar[tuple[str, ...]] = ("loc", "scale")

    def start(self, prior: Prior | None, dtype) -> Params:
        """`START`."""
        self.refuse_prior(prior)
        loc, scale = START
        return {"loc": jnp.asarray(loc, dtype), "scale": jnp.asarray(scale, dtype)}

    def fit(self, memory: LogitStats, prior: Prior | None = None) -> tuple[Params, LogitInfo]:
        """Mean and (maximum-likelihood) standard deviation of the log-odds."""
        self.refuse_prior(prior)
        n = jnp.maximum(memory.n, 1)
        floor = spread_floor(memory.mean)
        spread = jnp.sqrt(memory.m2 / n)
        scale = jnp.maximum(spread, floor)
        some = memory.n > 0
        square = 0.5 * memory.m2 / n / scale / scale
        objective = jnp.log(scale) + 0.5 * math.log(2 * math.pi) + square + memory.log_slope
        boundary = jnp.where(spread > floor, Boundary.NONE, Boundary.SCALE_FLOOR)
        boundary = jnp.where(some, boundary, Boundary.NO_SCORES).astype(jnp.int32)
        params = {
            "loc": jnp.where(some, memory.mean, jnp.nan),
            "scale": jnp.where(some, scale, jnp.nan),
        }
        zero = jnp.zeros_like(scale)
        return params, LogitInfo(boundary, memory.n * objective, zero, memory.moved)

    def distribution(self, params: Params) -> LogitNormal:
        """`LogitNormal(loc, scale)`."""
        return LogitNormal(params["loc"], params["scale"])


def logit_normal(margin: ArrayLike = MARGIN) -> LogitNormalLaw:
    """A normal law of the scores' log-odds; parameters loc and scale, in log-odds.

    Args:
      margin: scores nearer than this to 0 or 1 are read as this far from it, in (0, 1/2).

    Returns:
      The law.

    Raises:
      ValueError: the margin is outside its domain.
    """
    return LogitNormalLaw(margin=margin)
