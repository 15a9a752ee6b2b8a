"""Multi-round thinking: ask again with the previous answer shown, return the last answer."""

import jax.numpy as jnp

from optscale_jax.policies.base import Policy, check_count
from optscale_jax.policies.best_of_n import BestOfN
from optscale_jax.policies.seen import Observation, State, is_eligible
from optscale_jax.policies.selection import Selector
from optscale_jax.typing import Array, Count

__all__ = ["Latest", "mr_thinking"]


class Latest(Selector):
    """The last eligible completion, which saw those before it; it keeps that one's launch order."""

    uses_scores = False

    def init(self, slots: int) -> Array:
        """None yet."""
        del slots
        return jnp.asarray(-1, jnp.int32)

    def update(self, chosen: Array, observation: Observation) -> Array:
        """This one, if it is eligible."""
        return jnp.where(is_eligible(observation), observation.index, chosen).astype(jnp.int32)

    def index(self, state: State) -> Array:
        """Its launch order."""
        return state.chosen


class MrThinking(BestOfN):
    """See `mr_thinking`; rounds is `max_samples`."""

    kind = "sequential"


def mr_thinking(rounds: Count) -> Policy:
    """Answers R times in a row, each time with the previous answer shown; returns the last answer.

        max {i <= R : round i is eligible}

    A round without an answer has nothing to replace the one before it with, so that one stands.
    Reads no scores; for sequential pools only.

    Args:
      rounds: R, number of answers in a row, each with the one before shown, an integer >= 1.

    References:
      Tian et al. (2025), "Think Twice: Enhancing LLM Reasoning by Scaling Multi-round Test-time
      Thinking", arXiv 2503.19855.
    """
    return MrThinking(max_samples=check_count("rounds", rounds), selection=Latest())
