"""The oracle: draw as many completions as each problem's true law of scores says are needed."""

from optscale_jax.bounds import check_targets
from optscale_jax.estimation import Prior
from optscale_jax.policies.base import Policy
from optscale_jax.policies.optscale import Fitted, OptScale
from optscale_jax.policies.seen import Observation, State
from optscale_jax.policies.selection import Selector, make_selector
from optscale_jax.typing import Count, Number

__all__ = ["KnownLaw", "known_law"]


class KnownLaw(OptScale):
    """See `known_law`: OptScale that never fits."""

    def start(self, prior: Prior | None) -> Fitted:
        """The law that is known."""
        if prior is None:
            raise ValueError("known_law needs each problem's law of scores, as a prior")
        return super().start(prior)

    def update(self, state: State, observation: Observation) -> Fitted:
        """The same, whatever the scores."""
        del observation
        return state.own


def known_law(
    s_min: Number,
    alpha: Number,
    max_samples: Count,
    prior: Prior | None = None,
    *,
    selection: str | Selector = "best_score",
) -> Policy:
    """OptScale for someone who knows each problem's law of scores F before the first draw.

        N* = min {N : F(s_min)^N <= 1 - alpha},    draw min(N*, max_samples) at once

    and return the best score. F is the truncated normal at the prior's mean; how sure the prior is
    plays no part. What it saves is what OptScale could save at most with this s_min and alpha, with
    the best of all predictors; it is no rule that anybody could run.

    Args:
      s_min: score to reach, in [0, 1].
      alpha: probability of reaching it, inside (0, 1).
      max_samples: most completions to draw, >= 1.
      prior: the law of every problem (scalar fields), or of each (one entry a problem); one given
        to `init` replaces it.
      selection: which completion to return, a name in `SELECTORS` or a `Selector`.

    Raises:
      ValueError: an argument outside its domain, an unknown selection; from `init`, if a law is
        given neither here nor there.
    """
    check_targets(s_min, alpha)
    return KnownLaw(
        s_min=s_min,
        alpha=alpha,
        max_samples=max_samples,
        # N* is what it draws from the first completion on.
        min_samples=0,
        prior=prior,
        selection=make_selector(selection),
    )
