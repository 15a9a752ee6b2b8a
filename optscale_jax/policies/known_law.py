"""The oracle: draw as many completions as each problem's true law of scores says are needed."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from optscale_jax.bounds import BoundStatus, bound, check_targets
from optscale_jax.distributions import TruncatedNormal
from optscale_jax.estimation import Prior
from optscale_jax.policies.base import Info, Policy, StopReason, check_count
from optscale_jax.policies.voting import Selection, make_selector
from optscale_jax.typing import Array, ArrayLike

__all__ = ["known_law"]


class KnownLawState(NamedTuple):
    """Scalars, but for the selector's state.

    Attributes:
      count: completions seen.
      loc, scale: the law of scores.
      required: samples wanted in all, at most max_samples.
      status: `BoundStatus` of `required`.
      chosen: the selector's state.
    """

    count: Array
    loc: Array
    scale: Array
    required: Array
    status: Array
    chosen: Any


def known_law(
    s_min: ArrayLike,
    alpha: ArrayLike,
    max_samples: int,
    prior: Prior | None = None,
    *,
    selection: Selection = "best_score",
) -> Policy:
    """OptScale for someone who knows each problem's law of scores F before the first draw.

        N* = min {N : F(s_min)^N <= 1 - alpha},    draw min(N*, max_samples) at once

    and return the best score. F is the truncated normal at the prior's mean; how sure the prior is
    plays no part. What it saves is what OptScale could save at most with this s_min and alpha, with
    the best of all predictors; it is no rule that anybody could run.

    Args:
      s_min: the score to reach, in [0, 1]; may be traced.
      alpha: the probability of reaching it, inside (0, 1); may be traced.
      max_samples: cap on the samples, >= 1.
      prior: the law of every problem (scalar fields), or of each (one entry a problem); one given
        to `init` replaces it.
      selection: which completion to return.

    Returns:
      The policy. Its `init` needs a law, from here or as its argument.

    Raises:
      ValueError: an argument outside its domain (s_min and alpha where their values are known), an
        unknown selection; from `init`, if no law is given.
    """
    check_targets(s_min, alpha)
    max_samples = check_count("max_samples", max_samples)
    default_law = prior
    selector = make_selector(selection, max_samples)

    def init(prior=None):
        law = default_law if prior is None else prior
        if law is None:
            raise ValueError("known_law needs each problem's law of scores, as a prior")
        dtype = jnp.result_type(float)
        loc, scale = (jnp.asarray(v, dtype) for v in (law.loc, law.scale))
        required, status = bound(TruncatedNormal(loc, scale), s_min, alpha, max_samples)
        return KnownLawState(
            jnp.zeros((), jnp.int32), loc, scale, required, status, selector.init()
        )

    def observe(state, observation):
        return state._replace(
            count=state.count + 1, chosen=selector.update(state.chosen, observation)
        )

    def request(state):
        return jnp.maximum(state.required - state.count, 0)

    def select(state):
        return selector.index(state.chosen)

    def info(state):
        stopped = jnp.where(
            state.status == BoundStatus.EXACT, StopReason.BOUND_REACHED, StopReason.MAX_SAMPLES
        )
        reason = jnp.where(request(state) > 0, StopReason.RUNNING, stopped)
        return Info(state.required, state.loc, state.scale, reason.astype(jnp.int32))

    return Policy(
        init,
        observe,
        request,
        select,
        info,
        max_samples=max_samples,
        prior=default_law,
        uses_scores=True,
        uses_answers=selector.uses_answers,
    )
