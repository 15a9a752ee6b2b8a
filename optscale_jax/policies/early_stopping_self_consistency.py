"""ESC: draw windows of completions until one of them is unanimous."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.core import Tracer

from optscale_jax.policies.base import Policy, StopReason, check_count, is_eligible, no_info
from optscale_jax.policies.voting import Selection, make_selector
from optscale_jax.typing import Array, ArrayLike

__all__ = ["early_stopping_self_consistency"]


class EarlyStoppingState(NamedTuple):
    """Scalars, but for the selector's state.

    Attributes:
      count: completions seen.
      window_answer: answer of the first completion of the current window; -1 = none.
      agree: whether all of the current window so far gave that answer.
      unanimous: whether a whole window was unanimous.
      chosen: the selector's state.
    """

    count: Array
    window_answer: Array
    agree: Array
    unanimous: Array
    chosen: Any


def early_stopping_self_consistency(
    window: ArrayLike, max_samples: int, *, selection: Selection = "majority"
) -> Policy:
    """Draws consecutive windows of w completions and stops at the first unanimous one.

        stop at n = w j as soon as a_{w (j - 1) + 1} = ... = a_{w j},    or at max_samples

    and return the majority over everything drawn, not over the last window alone. A window with an
    answerless completion is not unanimous. The last window is cut off at the cap.

    Args:
      window: w, an integer in [1, max_samples]; may be traced, so that replay runs several at once.
      max_samples: cap, >= 1.
      selection: which completion to return.

    Returns:
      The policy; it selects the first completion with the winning answer.

    Raises:
      ValueError: window (where its value is known) or max_samples outside its domain, or an unknown
        selection.

    References:
      Li et al. (2024), "Escape Sky-high Cost: Early-stopping Self-Consistency for Multi-step
      Reasoning", arXiv 2401.10480, algorithm 1.
    """
    max_samples = check_count("max_samples", max_samples)
    if not isinstance(window, Tracer):
        window = check_count("window", window)
        if window > max_samples:
            raise ValueError(f"window must be at most max_samples, found {window} > {max_samples}")
    selector = make_selector(selection, max_samples)

    def init(prior=None):
        del prior
        return EarlyStoppingState(
            count=jnp.zeros((), jnp.int32),
            window_answer=jnp.asarray(-1, jnp.int32),
            agree=jnp.zeros((), bool),
            unanimous=jnp.zeros((), bool),
            chosen=selector.init(),
        )

    def observe(state, observation):
        answer = jnp.where(is_eligible(observation), observation.answer, -1).astype(jnp.int32)
        count = state.count + 1
        starts = state.count % window == 0
        window_answer = jnp.where(starts, answer, state.window_answer)
        agree = (starts | state.agree) & (answer == window_answer) & (answer != -1)
        return EarlyStoppingState(
            count=count,
            window_answer=window_answer,
            agree=agree,
            unanimous=state.unanimous | (agree & (count % window == 0)),
            chosen=selector.update(state.chosen, observation),
        )

    def request(state):
        rest = window - state.count % window
        more = jnp.minimum(rest, max_samples - state.count)
        return jnp.where(state.unanimous, 0, jnp.maximum(more, 0))

    def select(state):
        return selector.index(state.chosen)

    def info(state):
        reason = jnp.where(
            state.unanimous,
            StopReason.WINDOW_UNANIMOUS,
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
