"""First hit: stop at the first score that is good enough."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from optscale_jax.bounds import check_targets
from optscale_jax.policies.base import Best, Policy, StopReason, check_count, no_info
from optscale_jax.policies.voting import Selection, make_selector
from optscale_jax.typing import Array, ArrayLike

__all__ = ["first_hit"]


class FirstHitState(NamedTuple):
    """Completions seen and the best of them (scalars), and the selector's state."""

    count: Array
    best: Best
    chosen: Any


def first_hit(s_min: ArrayLike, max_samples: int, *, selection: Selection = "best_score") -> Policy:
    """Draws until an eligible completion scores at least s_min, at most max_samples.

    The rule that needs no model of the scores: with a perfect estimate of nothing, it spends the
    geometric number of samples that a hit takes. What OptScale saves or loses against it is what
    knowing the law of scores is worth.

    Args:
      s_min: the score to reach, in [0, 1]; may be traced.
      max_samples: cap, >= 1.
      selection: which completion to return: the best score so far, or that of a vote.

    Returns:
      The policy.

    Raises:
      ValueError: s_min (where its value is known) or max_samples outside its domain, or an unknown
        selection.
    """
    check_targets(s_min, None)
    max_samples = check_count("max_samples", max_samples)
    selector = make_selector(selection, max_samples)

    def init(prior=None):
        del prior
        return FirstHitState(jnp.zeros((), jnp.int32), Best.none(), selector.init())

    def observe(state, observation):
        return FirstHitState(
            state.count + 1,
            state.best.update(observation),
            selector.update(state.chosen, observation),
        )

    def hit(state):
        return state.best.score >= s_min

    def request(state):
        more = (state.count < max_samples) & ~hit(state)
        return more.astype(jnp.int32)

    def select(state):
        return selector.index(state.chosen)

    def info(state):
        reason = jnp.where(
            hit(state),
            StopReason.SCORE_REACHED,
            jnp.where(state.count >= max_samples, StopReason.MAX_SAMPLES, StopReason.RUNNING),
        )
        return no_info(jnp.asarray(-1), reason)

    return Policy(
        init,
        observe,
        request,
        select,
        info,
        max_samples=max_samples,
        uses_answers=selector.uses_answers,
    )
