"""Hit or gain: stop at a score that is good enough, or when no better one is to be expected."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optscale_jax.distributions.base import known
from optscale_jax.estimation import ScoreStats
from optscale_jax.normal_inverse_gamma import NormalInverseGamma
from optscale_jax.policies.base import Policy, Request, StopReason, until
from optscale_jax.policies.seen import Observation, State
from optscale_jax.policies.selection import Selector, make_selector
from optscale_jax.typing import Array, Count, Number

__all__ = ["WEAK_PRIOR", "HitOrGain", "hit_or_gain"]

WEAK_PRIOR = NormalInverseGamma(loc=0.5, strength=0.1, shape=1.0, rate=0.01)
"""Worth a tenth of a score at 1/2, and two scores with a standard deviation of .1."""


class Believed(NamedTuple):
    """What the rule remembers of a problem."""

    prior: NormalInverseGamma
    stats: ScoreStats


class HitOrGain(Policy):
    """See `hit_or_gain`, whose gain is `least_gain` here."""

    s_hi: Number
    least_gain: Number

    def start(self, prior: NormalInverseGamma | None) -> Believed:
        """The prior, and no scores."""
        dtype = jnp.result_type(float)
        numbers = jax.tree.map(lambda v: jnp.asarray(v, dtype), prior or WEAK_PRIOR)
        return Believed(numbers, ScoreStats.empty(dtype))

    def update(self, state: State, observation: Observation) -> Believed:
        """With one more score."""
        return state.own._replace(stats=state.own.stats.add(observation.score))

    def expected_improvement(self, state: State) -> Array:
        """Expected rise of the best score by one more completion; inf while there is none."""
        return state.own.prior.given(state.own.stats).expected_improvement(state.best.score)

    def rule(self, state: State) -> Request:
        """One more, until a score is high enough or its expected rise too small."""
        hit = state.best.score >= self.s_hi
        # In exact arithmetic the expected rise is above 0, where floating point's may be 0.
        small = (self.least_gain > 0) & (self.expected_improvement(state) <= self.least_gain)
        return until(hit | small, jnp.where(hit, StopReason.SCORE_REACHED, StopReason.GAIN_SMALL))

    def params(self, state: State) -> dict[str, Array]:
        """The Student t that the next score is expected to follow."""
        return state.own.prior.given(state.own.stats).predictive()._asdict()

    def gain(self, state: State) -> Array:
        """Expected rise of the best score by one more completion, for each token that it takes."""
        per_completion = state.tokens / jnp.maximum(state.count, 1)
        return self.expected_improvement(state) / jnp.maximum(per_completion, 1.0)


def hit_or_gain(
    s_hi: Number | None,
    gain: Number,
    max_samples: Count,
    prior: NormalInverseGamma | None = None,
    *,
    selection: str | Selector = "best_score",
) -> Policy:
    """Draws until a score reaches s_hi, or until the next is not expected to raise the best enough.

    A problem's scores are taken for normal ones whose mean and variance have a normal-inverse-gamma
    prior. After n of them the next one is a Student t of nu degrees of freedom about m, of scale
    sigma (`NormalInverseGamma.predictive`), and

        stop as soon as max_i s_i >= s_hi, or EI <= gain > 0, or at max_samples,
        EI = E[max(X - max_i s_i, 0)] = sigma [(nu + z^2)/(nu - 1) t_nu(z) - z (1 - T_nu(z))],
        z = (max_i s_i - m) / sigma.

    All scores are learnt from, those of answerless completions too, which are never returned and
    are no best: while there is no other, EI is infinite. With gain = 0 it is first hit. With s_hi =
    1 or None it weighs the expected gain against the cost of one completion, as BEACON does, with
    the exact t; it looks one completion ahead, where BEACON's index looks to the last.

    Args:
      s_hi: the score to reach, in [0, 1]; None: none is high enough.
      gain: the expected rise of the best score that one more completion is worth, >= 0; in units
        of score.
      max_samples: most completions to draw, >= 1.
      prior: what other problems say about this one's scores (`NormalInverseGamma.pooled`): for all
        problems, or one entry for each; one given to `init` replaces it. None: it is learnt on the
        other problems of the pool, where policies are compared; elsewhere `WEAK_PRIOR`.
      selection: which completion to return, a name in `SELECTORS` or a `Selector`.

    Raises:
      ValueError: an argument outside its domain, or an unknown selection.

    References:
      Wan et al. (2025), "BEACON: Bayesian Optimal Stopping for Efficient LLM Sampling", arXiv
      2510.15945. Jones, Schonlau & Welch (1998), "Efficient global optimization of expensive
      black-box functions", for the expected improvement.
    """
    if s_hi is None:
        s_hi = np.inf
    elif (values := known(s_hi)) is not None and not np.all((values >= 0) & (values <= 1)):
        raise ValueError(f"s_hi must be in [0, 1], found {s_hi}")
    if (values := known(gain)) is not None and not np.all((values >= 0) & (values < np.inf)):
        raise ValueError(f"gain must be at least 0, found {gain}")
    return HitOrGain(
        s_hi=s_hi,
        least_gain=gain,
        max_samples=max_samples,
        prior=prior,
        selection=make_selector(selection),
    )
