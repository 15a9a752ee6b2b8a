"""Multi-round thinking: ask again with the previous answer shown, return the last answer."""

from typing import NamedTuple

import jax.numpy as jnp

from optscale_jax.policies.base import Policy, StopReason, check_count, is_eligible, no_info
from optscale_jax.typing import Array

__all__ = ["mr_thinking"]


class RoundsState(NamedTuple):
    """Scalars: rounds seen, and the launch order of the last eligible one (-1 = none)."""

    count: Array
    last: Array


def mr_thinking(rounds: int) -> Policy:
    """Answers R times in a row, each time with the previous answer shown; returns the last answer.

        max {i <= R : round i is eligible}

    A round without an answer has nothing to replace the one before it with, so that one stands.
    Reads no scores.

    Args:
      rounds: R, >= 1.

    Returns:
      The policy, for sequential pools only.

    Raises:
      ValueError: rounds is not an integer >= 1.

    References:
      Tian et al. (2025), "Think Twice: Enhancing LLM Reasoning by Scaling Multi-round Test-time
      Thinking", arXiv 2503.19855.
    """
    rounds = check_count("rounds", rounds)

    def init(prior=None):
        del prior
        return RoundsState(jnp.zeros((), jnp.int32), jnp.asarray(-1, jnp.int32))

    def observe(state, observation):
        last = jnp.where(is_eligible(observation), observation.index, state.last)
        return RoundsState(state.count + 1, last.astype(jnp.int32))

    def request(state):
        return jnp.maximum(rounds - state.count, 0)

    def select(state):
        return state.last

    def info(state):
        reason = jnp.where(state.count >= rounds, StopReason.FIXED_COUNT, StopReason.RUNNING)
        return no_info(jnp.asarray(rounds), reason)

    return Policy(
        init,
        observe,
        request,
        select,
        info,
        max_samples=rounds,
        uses_scores=False,
        kind="sequential",
    )
