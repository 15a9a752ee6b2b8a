"""ASC: draw until the leading answer is the majority with the probability asked for."""

import functools

import jax.numpy as jnp
import numpy as np

from optscale_jax.distributions.base import known
from optscale_jax.policies.base import Policy, Request, StopReason, until
from optscale_jax.policies.seen import State, Votes
from optscale_jax.policies.selection import Selector, make_selector
from optscale_jax.typing import Array, Count, Number

__all__ = ["AdaptiveSelfConsistency", "adaptive_self_consistency", "certain_lead", "doubt"]


@functools.lru_cache
def doubt(max_samples: int) -> np.ndarray:
    """Probability that the leading answer is not the majority, for all counts of the two leaders.

    With p ~ Beta(a + 1, b + 1), the posterior of the leader's share against the runner-up under a
    uniform prior,

        P(p <= 1/2) = 2^-(a+b+1) sum_{k <= b} C(a+b+1, k),

    the probability of at most b heads in a+b+1 tosses. This is the tail that stays exact: its
    complement rounds to 1 in float32 from a = 24, b = 0 on. The sums obey Pascal's rule, so they
    are added up in integers and divided once.

    Returns:
      float64 [max_samples + 1, max_samples + 1], indexed [a, b]; it falls along a. 1 where a < b,
      which is no lead; 0 where a + b > max_samples, which cannot be.
    """
    size = max_samples + 1
    a, b = np.indices((size, size))
    table = np.where(a + b > max_samples, 0.0, 1.0)
    above = [2**b for b in range(size)]  # a = -1: at most b heads in b tosses, which is certain
    for a in range(size):
        row = []
        for b in range(size - a):
            row.append((row[-1] if row else 0) + above[b])
            if a >= b:
                table[a, b] = row[b] / 2 ** (a + b + 1)
        above = row
    table.flags.writeable = False
    return table


def certain_lead(threshold: Number, max_samples: int) -> Array:
    """Votes that make the leader certain, for each count of the runner-up.

        a*(b) = min {a >= b : P(p > 1/2 | Beta(a + 1, b + 1)) >= threshold}

    Returns:
      int32 [max_samples + 1], indexed by b; max_samples - b + 1, out of reach, where no lead within
      that many votes is enough.
    """
    # 1 - threshold is exact from 1/2 on. Doubt falls along a, so the a that are not enough come
    # first.
    dtype = jnp.result_type(float)
    enough = jnp.asarray(doubt(max_samples), dtype) <= 1 - jnp.asarray(threshold, dtype)
    return jnp.sum(~enough, axis=0).astype(jnp.int32)


def short_of_certain(votes: Votes, threshold: Number, max_samples: int) -> Array:
    """How many more votes, all for the leader, would make it certain; <= 0 if it is."""
    leader, runner_up = votes.leaders()
    return certain_lead(threshold, max_samples)[runner_up] - leader


def check_threshold(threshold: Number) -> None:
    """A ValueError, where the threshold's value is known, if it is outside (1/2, 1)."""
    values = known(threshold)
    if values is not None and not np.all((values > 0.5) & (values < 1)):
        raise ValueError(f"threshold must be inside (1/2, 1), found {threshold}")


class AdaptiveSelfConsistency(Policy):
    """See `adaptive_self_consistency`."""

    rule_uses_scores = False
    rule_uses_answers = True

    threshold: Number

    def rule(self, state: State) -> Request:
        """The fewest completions after which it could stop."""
        short = short_of_certain(state.votes, self.threshold, self.slots)
        return until(
            short <= 0,
            StopReason.LEAD_CERTAIN,
            more=short,
            required=state.count + jnp.maximum(short, 0),
        )


def adaptive_self_consistency(
    threshold: Number, max_samples: Count, *, selection: str | Selector = "majority"
) -> Policy:
    """Draws until the leading answer's majority is certain enough.

    With a >= b the counts of the two leading answers (b = 0 while there is one),

        stop as soon as P(p > 1/2) >= threshold,    p ~ Beta(a + 1, b + 1),
        P(p > 1/2) = 2^-(a+b+1) sum_{k <= a} C(a+b+1, k),

    or at max_samples, and return the majority. An answerless completion is drawn, but does not
    vote. It asks for the fewest completions after which it could stop, so a live run wastes none by
    drawing them together.

    Args:
      threshold: probability that the leading answer is the majority, inside (1/2, 1). The authors
        use 0.95.
      max_samples: most completions to draw, >= 1.
      selection: which completion to return, a name in `SELECTORS` or a `Selector`.

    Raises:
      ValueError: threshold or max_samples outside its domain, or an unknown selection.

    References:
      Aggarwal et al. (2023), "Let's Sample Step by Step: Adaptive-Consistency for Efficient
      Reasoning and Coding with LLMs", arXiv 2305.11860, the Beta criterion.
    """
    check_threshold(threshold)
    return AdaptiveSelfConsistency(
        threshold=threshold, max_samples=max_samples, selection=make_selector(selection)
    )
