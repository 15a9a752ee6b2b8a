"""Best-of-N: draw a fixed number, return the best score."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from optscale_jax.policies.base import Policy, StopReason, check_count, no_info
from optscale_jax.policies.voting import Selection, make_selector
from optscale_jax.typing import Array

__all__ = ["best_of_n"]


class BestOfNState(NamedTuple):
    """Completions seen (a scalar), and the selector's state."""

    count: Array
    chosen: Any


def best_of_n(n: int, *, selection: Selection = "best_score") -> Policy:
    """Draws n completions and returns the one with the highest score.

    Args:
      n: number of completions, >= 1.
      selection: which completion to return instead: "majority" or "weighted_vote".

    Returns:
      The policy.

    Raises:
      ValueError: n is not an integer >= 1, or an unknown selection.

    References:
      Cobbe et al. (2021), "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168.
    """
    n = check_count("n", n)
    selector = make_selector(selection, n)

    def init(prior=None):
        del prior
        return BestOfNState(jnp.zeros((), jnp.int32), selector.init())

    def observe(state, observation):
        return BestOfNState(state.count + 1, selector.update(state.chosen, observation))

    def request(state):
        return jnp.maximum(n - state.count, 0)

    def select(state):
        return selector.index(state.chosen)

    def info(state):
        reason = jnp.where(state.count >= n, StopReason.FIXED_COUNT, StopReason.RUNNING)
        return no_info(jnp.asarray(n), reason)

    return Policy(
        init,
        observe,
        request,
        select,
        info,
        max_samples=n,
        uses_scores=selector.uses_scores,
        uses_answers=selector.uses_answers,
    )
