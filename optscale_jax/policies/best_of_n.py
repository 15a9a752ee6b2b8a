"""Best-of-N: draw a fixed number, return the best score."""

from typing import NamedTuple

import jax.numpy as jnp

from optscale_jax.policies.base import Best, Policy, StopReason, check_count, no_info
from optscale_jax.typing import Array

__all__ = ["best_of_n"]


class BestOfNState(NamedTuple):
    """Scalars: completions seen, and the best of them."""

    count: Array
    best: Best


def best_of_n(n: int) -> Policy:
    """Draws n completions and returns the one with the highest score.

    Args:
      n: number of completions, >= 1.

    Returns:
      The policy.

    Raises:
      ValueError: n is not an integer >= 1.

    References:
      Cobbe et al. (2021), "Training Verifiers to Solve Math Word Problems", arXiv 2110.14168.
    """
    n = check_count("n", n)

    def init(prior=None):
        del prior
        return BestOfNState(jnp.zeros((), jnp.int32), Best.none())

    def observe(state, observation):
        return BestOfNState(state.count + 1, state.best.update(observation))

    def request(state):
        return jnp.maximum(n - state.count, 0)

    def select(state):
        return state.best.index

    def info(state):
        reason = jnp.where(state.count >= n, StopReason.FIXED_COUNT, StopReason.RUNNING)
        return no_info(jnp.asarray(n), reason)

    return Policy(init, observe, request, select, info, max_samples=n)
