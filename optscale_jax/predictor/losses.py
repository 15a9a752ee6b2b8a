"""What a head is trained to do: three losses of a predicted prior, each with a weight.

    squared error   of the predicted mean and standard deviation of the scores (the paper's)
    likelihood      of the scores under the law at the prior's loc and scale
    marginal        of the scores under the whole prior, law integrated out

Only the last one sees the prior's widths, and it is the one that punishes a width that is not what
the prior's errors turn out to be (`optscale_jax/empirical_bayes.py`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from optscale_jax.empirical_bayes import Posterior, log_marginal, predictive
from optscale_jax.errors import InputError
from optscale_jax.estimation import Params, Prior, ScoreStats, negative_log_likelihood

__all__ = [
    "LOSSES",
    "Loss",
    "LossConfig",
    "Spread",
    "Targets",
    "likelihood",
    "marginal",
    "squared_error",
    "weighted",
]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Which loss, and the weights of the three, at least 0 each.

    Attributes:
        name: weighted, the weighted sum of the three; one of them, marginal, squared_error or
            likelihood; or the name of one's own, module:name or ./file.py:name: a function of
            (prior, targets), and of those of the fields below that its signature names, to a loss
            for each problem.
        marginal: Of minus the log marginal likelihood, in nats over the pooled prior's.
        squared_error: Of the squared errors of the mean and of the sd, each in units of its
            variance over the training problems.
        likelihood: Of minus the log-likelihood at the prior's loc and scale, in nats a score.
    """

    name: str = "weighted"
    marginal: float = 1.0
    squared_error: float = 1.0
    likelihood: float = 0.0

    def __post_init__(self) -> None:
        """Refuses weights outside their domain."""
        weights = self.marginal, self.squared_error, self.likelihood
        if not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
            raise InputError(f"loss is {weights}; weights are at least 0, and one is above 0")


class Spread(NamedTuple):
    """Standard deviations over the training problems of the scores' mean and of their sd."""

    mean: float
    sd: float


class Targets(NamedTuple):
    """What came of P problems, for a loss to hold priors to.

    Attributes:
        stats: Statistics of their scores [P].
        posterior: Nodes [P, K], with log weights that make the reference's marginal likelihood 1.
        spread: Units of squared errors, the same for all problems.
    """

    stats: ScoreStats
    posterior: Posterior
    spread: Spread


Losses = Float[Array, " problems"]
Loss = Callable[[Prior, Targets], Losses]
"""A loss: predicted priors [P] and what came of the problems, to one number each."""


def marginal(prior: Prior, targets: Targets) -> Losses:
    """Minus the log marginal likelihood, in nats over the reference prior's."""
    return -log_marginal(targets.posterior, prior)


def squared_error(prior: Prior, targets: Targets) -> Losses:
    """Squared errors of the expected mean and sd of the scores, each in units of its variance."""
    # A coarse average over the prior does for a gradient.
    mean, sd = predictive(prior, num_locs=6, num_scales=4)
    stats, spread = targets.stats, targets.spread
    errors = ((mean - stats.mean) / spread.mean) ** 2
    return errors + ((sd - jnp.sqrt(stats.m2 / stats.n)) / spread.sd) ** 2


def likelihood(prior: Prior, targets: Targets) -> Losses:
    """Minus the log-likelihood of the scores at the prior's loc and scale, in nats a score."""
    law = Params(prior.loc, prior.scale)
    return negative_log_likelihood(targets.stats, law) / targets.stats.n


_TERMS: dict[str, Loss] = {
    "marginal": marginal,
    "squared_error": squared_error,
    "likelihood": likelihood,
}


def weighted(
    prior: Prior, targets: Targets, *, marginal: float, squared_error: float, likelihood: float
) -> Losses:
    """The sum of the three losses by their weights; those of weight 0 are not computed."""
    weights = {"marginal": marginal, "squared_error": squared_error, "likelihood": likelihood}
    total = jnp.zeros(jnp.shape(targets.stats.mean))
    for name, weight in weights.items():
        if weight:
            total += weight * _TERMS[name](prior, targets)
    return total


LOSSES: dict[str, Callable[..., Any]] = {"weighted": weighted, **_TERMS}
"""The losses that are shipped, by name."""
