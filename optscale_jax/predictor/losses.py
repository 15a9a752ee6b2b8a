"""What a head is trained to do: three losses of a predicted prior, each with a weight.

    squared error   of the predicted mean and standard deviation of the scores (the paper's)
    likelihood      of the scores under the law at the prior's loc and scale
    marginal        of the scores under the whole prior, law integrated out

Only the last one sees the prior's widths, and it is the one that punishes a width that is not what
the prior's errors turn out to be (`optscale_jax/empirical_bayes.py`).
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from optscale_jax.empirical_bayes import Posterior, log_marginal, predictive
from optscale_jax.estimation import Params, Prior, ScoreStats, negative_log_likelihood

__all__ = ["LossConfig", "Spread", "per_problem"]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the losses, at least 0 each; the loss is their weighted sum.

    Attributes:
        marginal: Of minus the log marginal likelihood, in nats over the pooled prior's.
        squared_error: Of the squared errors of the mean and of the sd, each in units of its
            variance over the training problems.
        likelihood: Of minus the log-likelihood at the prior's loc and scale, in nats a score.
    """

    marginal: float = 1.0
    squared_error: float = 1.0
    likelihood: float = 0.0

    def __post_init__(self) -> None:
        """Refuses weights outside their domain.

        Raises:
            ValueError: Naming the weights.
        """
        weights = dataclasses.astuple(self)
        if not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
            raise ValueError(f"loss is {weights}; weights are at least 0, and one is above 0")


class Spread(NamedTuple):
    """Standard deviations over the training problems, the units of squared errors.

    Attributes:
        mean: Of the scores' mean.
        sd: Of the scores' standard deviation.
    """

    mean: float
    sd: float


def per_problem(
    prior: Prior, stats: ScoreStats, posterior: Posterior, spread: Spread, config: LossConfig
) -> Float[Array, " problems"]:
    """The loss of each problem.

    Args:
        prior: Predicted priors [P].
        stats: Statistics of the scores [P]; `posterior` has the reference prior's evidence in it.
        posterior: Nodes [P, K], with log weights that make the reference's marginal likelihood 1.
        spread: Units of the squared errors.
        config: Weights.

    Returns:
        [P].
    """
    loss = jnp.zeros(jnp.shape(stats.mean))
    if config.marginal:
        loss -= config.marginal * log_marginal(posterior, prior)
    if config.squared_error:
        # A coarse average over the prior does for a gradient.
        mean, sd = predictive(prior, num_locs=6, num_scales=4)
        errors = ((mean - stats.mean) / spread.mean) ** 2
        errors += ((sd - jnp.sqrt(stats.m2 / stats.n)) / spread.sd) ** 2
        loss += config.squared_error * errors
    if config.likelihood:
        law = Params(prior.loc, prior.scale)
        loss += config.likelihood * negative_log_likelihood(stats, law) / stats.n
    return loss
