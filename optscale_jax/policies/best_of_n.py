"""Best-of-N: draw a fixed number, return the best score."""

from optscale_jax.policies.base import Policy, Request, StopReason, check_count, until
from optscale_jax.policies.seen import State
from optscale_jax.policies.selection import Selector, make_selector
from optscale_jax.typing import Count

__all__ = ["BestOfN", "best_of_n"]


class BestOfN(Policy):
    """See `best_of_n`; n is `max_samples`."""

    cap_reason = StopReason.FIXED_COUNT
    rule_uses_scores = False

    def rule(self, state: State) -> Request:
        """All at once."""
        return until(
            state.count >= self.max_samples,
            StopReason.FIXED_COUNT,
            more=self.max_samples - state.count,
            required=self.max_samples,
        )


def best_of_n(n: Count, *, selection: str | Selector = "best_score") -> Policy:
    """Draws n completions and returns the one with the highest score.

    Args:
      n: number of completions to draw, an integer >= 1.
      selection: which completion to return, a name in `SELECTORS` or a `Selector`.

    Raises:
      ValueError: n is not an integer >= 1, or an unknown selection.

    References:
      Cobbe et al. (2021), "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168.
    """
    return BestOfN(max_samples=check_count("n", n), selection=make_selector(selection))
