"""ESC: draw windows of completions until one of them is unanimous."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from optscale_jax.policies.base import (
    Policy,
    Request,
    StopReason,
    check_count,
    check_not_above,
    until,
)
from optscale_jax.policies.seen import Observation, State, is_eligible
from optscale_jax.policies.selection import Selector, make_selector
from optscale_jax.typing import Array, Count

__all__ = ["EarlyStoppingSelfConsistency", "early_stopping_self_consistency"]


class Window(NamedTuple):
    """The current window, every field a scalar."""

    answer: Array  # int32, answer of its first completion; -1 = none
    agree: Array  # whether all of it so far gave that answer
    unanimous: Array  # whether a whole window, this one or an earlier one, was unanimous


class EarlyStoppingSelfConsistency(Policy):
    """See `early_stopping_self_consistency`."""

    rule_uses_scores = False
    rule_uses_answers = True

    window: Count

    def start(self, prior: Any) -> Window:
        """No window yet."""
        del prior
        no = jnp.zeros((), bool)
        return Window(jnp.asarray(-1, jnp.int32), no, no)

    def update(self, state: State, observation: Observation) -> Window:
        """The window with one more completion, or a new one."""
        answer = jnp.where(is_eligible(observation), observation.answer, -1).astype(jnp.int32)
        starts = (state.count - 1) % self.window == 0
        of_window = jnp.where(starts, answer, state.own.answer)
        agree = (starts | state.own.agree) & (answer == of_window) & (answer != -1)
        complete = state.count % self.window == 0
        return Window(of_window, agree, state.own.unanimous | (agree & complete))

    def rule(self, state: State) -> Request:
        """The rest of the window."""
        rest = self.window - state.count % self.window
        unanimous = state.own.unanimous
        return until(
            unanimous,
            StopReason.WINDOW_UNANIMOUS,
            more=rest,
            required=state.count + jnp.where(unanimous, 0, rest),
        )


def early_stopping_self_consistency(
    window: Count, max_samples: Count, *, selection: str | Selector = "majority"
) -> Policy:
    """Draws consecutive windows of w completions and stops at the first unanimous one.

        stop at n = w j as soon as a_{w (j - 1) + 1} = ... = a_{w j},    or at max_samples

    and return the majority over everything drawn, not over the last window alone. A window with an
    answerless completion is not unanimous. The last window is cut off at the cap.

    Args:
      window: w, completions that must agree, an integer in [1, max_samples].
      max_samples: most completions to draw, >= 1.
      selection: which completion to return, a name in `SELECTORS` or a `Selector`.

    Raises:
      ValueError: window or max_samples outside its domain, or an unknown selection.

    References:
      Li et al. (2024), "Escape Sky-high Cost: Early-stopping Self-Consistency for Multi-step
      Reasoning", arXiv 2401.10480, algorithm 1.
    """
    max_samples = check_count("max_samples", max_samples)
    window = check_count("window", window)
    check_not_above("window", window, "max_samples", max_samples)
    return EarlyStoppingSelfConsistency(
        window=window, max_samples=max_samples, selection=make_selector(selection)
    )
