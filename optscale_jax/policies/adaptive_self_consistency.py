"""ASC: draw until the leading answer is the majority with the probability asked for."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optscale_jax.policies.base import Best, Policy, StopReason, check_count, no_info
from optscale_jax.policies.voting import Selection, Votes, make_selector
from optscale_jax.typing import Array, ArrayLike

__all__ = ["adaptive_self_consistency", "certain_lead", "doubt"]


@functools.lru_cache
def doubt(max_samples: int) -> np.ndarray:
    """Probability that the leading answer is not the majority, for all counts of the two leaders.

    With p ~ Beta(a + 1, b + 1), the posterior of the leader's share against the runner-up under a
    uniform prior,

        P(p <= 1/2) = 2^-(a+b+1) sum_{k <= b} C(a+b+1, k),

    the probability of at most b heads in a+b+1 tosses. This is the tail that stays exact: its
    complement rounds to 1 in float32 from a = 24, b = 0 on. The sums obey Pascal's rule, so they
    are added up in integers and divided once.

    Args:
      max_samples: the most votes that there can be, >= 1.

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


def certain_lead(threshold: ArrayLike, max_samples: int) -> Array:
    """Votes that make the leader certain, for each count of the runner-up.

        a*(b) = min {a >= b : P(p > 1/2 | Beta(a + 1, b + 1)) >= threshold}

    Args:
      threshold: inside (1/2, 1); may be traced.
      max_samples: the most votes that there can be, >= 1.

    Returns:
      int32 [max_samples + 1], indexed by b; max_samples - b + 1, out of reach, where no lead within
      that many votes is enough.

    Raises:
      ValueError: threshold (where its value is known) outside its domain.
    """
    table = doubt(max_samples)
    if isinstance(threshold, Tracer):
        # 1 - threshold is exact from 1/2 on.
        dtype = jnp.result_type(float)
        enough = jnp.asarray(table, dtype) <= 1 - jnp.asarray(threshold, dtype)
    else:
        value = np.asarray(threshold, np.float64)
        if value.shape or not 0.5 < value < 1:
            raise ValueError(f"threshold must be inside (1/2, 1), found {threshold}")
        # In float64, because thresholds as 0.95 are no float32 numbers.
        enough = jnp.asarray(table <= 1 - value)
    # Doubt falls along a, so the a that are not enough come first.
    return jnp.sum(~enough, axis=0).astype(jnp.int32)


class AdaptiveState(NamedTuple):
    """Completions seen (a scalar), the votes, and the best score."""

    count: Array
    votes: Votes
    best: Best


def adaptive_self_consistency(
    threshold: ArrayLike, max_samples: int, *, selection: Selection = "majority"
) -> Policy:
    """Draws until the leading answer's majority is certain enough.

    With a >= b the counts of the two leading answers (b = 0 while there is one),

        stop as soon as P(p > 1/2) >= threshold,    p ~ Beta(a + 1, b + 1),
        P(p > 1/2) = 2^-(a+b+1) sum_{k <= a} C(a+b+1, k),

    or at max_samples, and return the majority. An answerless completion is drawn, but does not
    vote.

    Args:
      threshold: inside (1/2, 1); may be traced, so that replay runs a grid of them at once. The
        authors use 0.95.
      max_samples: cap, >= 1.
      selection: which completion to return.

    Returns:
      The policy; it selects the first completion with the winning answer. `request` is the fewest
      completions after which it could stop, so a live run wastes none by drawing them together.

    Raises:
      ValueError: threshold (where its value is known) or max_samples outside its domain, or an
        unknown selection.

    References:
      Aggarwal et al. (2023), "Let's Sample Step by Step: Adaptive-Consistency for Efficient
      Reasoning and Coding with LLMs", arXiv 2305.11860, the Beta criterion.
    """
    max_samples = check_count("max_samples", max_samples)
    selector = make_selector(selection, max_samples)
    needed = certain_lead(threshold, max_samples)

    def init(prior=None):
        del prior
        return AdaptiveState(jnp.zeros((), jnp.int32), Votes.none(max_samples), Best.none())

    def observe(state, observation):
        return AdaptiveState(
            state.count + 1,
            state.votes.add(observation),
            state.best.update(observation),
        )

    def short_of_certain(state):
        leader, runner_up = state.votes.leaders()
        return needed[runner_up] - leader

    def request(state):
        return jnp.clip(short_of_certain(state), 0, jnp.maximum(max_samples - state.count, 0))

    def select(state):
        # The state of either vote is the votes that the rule has already.
        return selector.index(state.votes if selector.uses_answers else state.best)

    def info(state):
        reason = jnp.where(
            short_of_certain(state) <= 0,
            StopReason.LEAD_CERTAIN,
            jnp.where(state.count >= max_samples, StopReason.MAX_SAMPLES, StopReason.RUNNING),
        )
        return no_info(state.count + request(state), reason)

    return Policy(
        init,
        observe,
        request,
        select,
        info,
        max_samples=max_samples,
        uses_scores=selector.uses_scores,
        uses_answers=True,
    )
