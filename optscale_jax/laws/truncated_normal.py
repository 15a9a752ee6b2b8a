"""The truncated normal as a law of scores: the paper's, and the default."""

from typing import ClassVar

import jax.numpy as jnp

from optscale_jax.distributions import TruncatedNormal
from optscale_jax.estimation import FitInfo, Prior, ScoreStats, fit_map, fit_mle
from optscale_jax.laws.base import Law, Params
from optscale_jax.typing import Array, ArrayLike

__all__ = ["START", "TruncatedNormalLaw", "truncated_normal"]

START = (0.8, 0.2)
"""(loc, scale) of the law of scores before there are enough scores for a fit (the authors')."""


class TruncatedNormalLaw(Law):
    """A normal law restricted to [0, 1], fitted by maximum likelihood, or MAP with a prior.

    It remembers `ScoreStats`, which are sufficient.
    """

    parameters: ClassVar[tuple[str, ...]] = ("loc", "scale")
    takes_prior: ClassVar[bool] = True

    def start(self, prior: Prior | None, dtype) -> Params:
        """`START`, or the prior's loc and scale."""
        loc, scale = START if prior is None else (prior.loc, prior.scale)
        return {"loc": jnp.asarray(loc, dtype), "scale": jnp.asarray(scale, dtype)}

    def fit(self, memory: ScoreStats, prior: Prior | None = None) -> tuple[Params, FitInfo]:
        """`fit_mle`, or `fit_map` with a prior."""
        params, info = fit_mle(memory) if prior is None else fit_map(memory, prior)
        return params._asdict(), info

    def distribution(self, params: Params) -> TruncatedNormal:
        """`TruncatedNormal(loc, scale)`."""
        return TruncatedNormal(params["loc"], params["scale"])

    def expected_rise(self, params: Params, best: Array) -> Array:
        """P(X > best) (E[X | X > best] - best), exactly."""
        best = jnp.clip(best, 0.0, 1.0 - jnp.finfo(params["loc"].dtype).eps)
        above = self.distribution(params).survival_function(best)
        rest = TruncatedNormal(params["loc"], params["scale"], low=best)
        return above * (rest.mean() - best)

    def memory_of(self, scores: ArrayLike, mask: ArrayLike | None = None) -> ScoreStats:
        """`ScoreStats.from_scores`, in two passes over each row."""
        return ScoreStats.from_scores(scores, mask)


def truncated_normal() -> TruncatedNormalLaw:
    """The law of OptScale's paper: a normal restricted to [0, 1]; parameters loc and scale."""
    return TruncatedNormalLaw()
