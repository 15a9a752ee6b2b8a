"""First hit: stop at the first score that is good enough."""

from optscale_jax.bounds import check_targets
from optscale_jax.policies.base import Policy, Request, StopReason, until
from optscale_jax.policies.seen import State
from optscale_jax.policies.selection import Selector, make_selector
from optscale_jax.typing import Count, Number

__all__ = ["FirstHit", "first_hit"]


class FirstHit(Policy):
    """See `first_hit`."""

    s_min: Number

    def rule(self, state: State) -> Request:
        """One more, until a score is high enough."""
        return until(state.best.score >= self.s_min, StopReason.SCORE_REACHED)


def first_hit(
    s_min: Number, max_samples: Count, *, selection: str | Selector = "best_score"
) -> Policy:
    """Draws until an eligible completion scores at least s_min, at most max_samples.

    The rule that needs no model of the scores: it spends the geometric number of samples that a hit
    takes. What OptScale saves or loses against it is what knowing the law of scores is worth.

    Args:
      s_min: the score to reach, in [0, 1].
      max_samples: most completions to draw, >= 1.
      selection: which completion to return, a name in `SELECTORS` or a `Selector`.

    Raises:
      ValueError: s_min or max_samples outside its domain, or an unknown selection.
    """
    check_targets(s_min, None)
    return FirstHit(s_min=s_min, max_samples=max_samples, selection=make_selector(selection))
