"""OptScale: draw as many completions as the fitted law of scores says are needed."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from optscale_jax.bounds import BoundStatus, bound, check_targets
from optscale_jax.distributions import TruncatedNormal
from optscale_jax.estimation import Prior, ScoreStats, fit_map, fit_mle
from optscale_jax.policies.base import Best, Info, Policy, StopReason, check_count
from optscale_jax.policies.voting import Selection, make_selector
from optscale_jax.typing import Array, ArrayLike

__all__ = ["PAPER_ALPHA", "PAPER_MIN_SAMPLES", "PAPER_S_MIN", "START", "optscale"]

START = (0.8, 0.2)
"""(loc, scale) of the law of scores before there are enough scores for a fit (the authors')."""

PAPER_S_MIN = (0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99)
"""The authors' grid of s_min."""

PAPER_ALPHA = tuple(round(1 - missed, 3) for missed in (0.01, 0.02, 0.035, 0.05, 0.075, 0.1))
"""The authors' grid of alpha."""

PAPER_MIN_SAMPLES = {8: 3, 16: 5, 32: 10, 64: 20}
"""max_samples -> how many scores the authors look at before they decide."""

_SCORES_FOR_A_FIT = 2
# By maximum likelihood: one score has no spread, and every law through it is as likely as it is
# narrow. With a prior one will do.


class OptScaleState(NamedTuple):
    """Scalars, but for the prior's, the statistics' and the selector's own fields.

    Attributes:
      count: completions seen.
      stats: statistics of their scores.
      best: the best eligible one.
      tokens: their tokens, as far as known.
      prior: the problem's prior, or None.
      loc, scale: the law of scores that `required` was read from.
      required: samples wanted in all, at most max_samples.
      status: `BoundStatus` of `required`.
      chosen: the selector's state.
    """

    count: Array
    stats: ScoreStats
    best: Best
    tokens: Array
    prior: Prior | None
    loc: Array
    scale: Array
    required: Array
    status: Array
    chosen: Any


def optscale(
    s_min: ArrayLike,
    alpha: ArrayLike,
    max_samples: int,
    min_samples: ArrayLike,
    prior: Prior | None = None,
    decide: Literal["every_sample", "once"] = "every_sample",
    *,
    stop_at_s_min: bool = False,
    selection: Selection = "best_score",
) -> Policy:
    """OptScale^0 without a prior, OptScale^t with one.

    After n >= min_samples scores, with F fitted to them (maximum likelihood, or MAP with a prior),

        N* = min {N : F(s_min)^N <= 1 - alpha},    stop as soon as n >= min(N*, max_samples),

    and return the best score. Before a fit the law is the prior's mean, or `START`; a fit needs one
    score with a prior, and two without.
    All scores enter the fit, those of answerless completions too: F is the law of what the
    verifier says. Such completions are never returned.

    Args:
      s_min: the score to reach, in [0, 1]; may be traced, so that replay runs a grid of settings
        in one compilation and fits each prefix of the scores once for all of them.
      alpha: the probability of reaching it, inside (0, 1); may be traced.
      max_samples: cap on the samples, >= 1.
      min_samples: scores to look at before the first decision, an integer in [1, max_samples]; may
        be traced, and then every prefix of the scores is fitted, `decide="once"` or not.
      prior: the default prior of every problem (scalar fields), or of each (one entry a problem);
        a prior given to `init` replaces it. None: OptScale^0.
      decide: "every_sample" refits after each score, as the paper's algorithm does; "once" fixes
        N* after min_samples scores, as the authors' code does.
      stop_at_s_min: also stop as soon as an eligible score reaches s_min. The paper does not.
      selection: which completion to return: the best score, as the paper does, or that of a vote.

    Returns:
      The policy.

    Raises:
      ValueError: an argument outside its domain (those that may be traced where their values
        are known).

    References:
      Wang et al. (2026), arXiv 2506.22376, Algorithm 1 and the lower bound on N.
    """
    check_targets(s_min, alpha)
    max_samples = check_count("max_samples", max_samples)
    if not isinstance(min_samples, Tracer):
        min_samples = check_count("min_samples", min_samples)
        if min_samples > max_samples:
            raise ValueError(
                f"min_samples must be at most max_samples, found {min_samples} > {max_samples}"
            )
    if decide not in ("every_sample", "once"):
        raise ValueError(f"decide must be 'every_sample' or 'once', found {decide!r}")
    default_prior = prior
    selector = make_selector(selection, max_samples)

    def read_bound(loc, scale):
        return bound(TruncatedNormal(loc, scale), s_min, alpha, max_samples)

    def init(prior=None):
        prior = default_prior if prior is None else prior
        dtype = jnp.result_type(float)
        if prior is not None:
            prior = jax.tree.map(lambda v: jnp.asarray(v, dtype), prior)
        loc, scale = START if prior is None else (prior.loc, prior.scale)
        loc, scale = jnp.asarray(loc, dtype), jnp.asarray(scale, dtype)
        required, status = read_bound(loc, scale)
        return OptScaleState(
            count=jnp.zeros((), jnp.int32),
            stats=ScoreStats.empty(dtype),
            best=Best.none(),
            tokens=jnp.zeros((), dtype),
            prior=prior,
            loc=loc,
            scale=scale,
            required=required,
            status=status,
            chosen=selector.init(),
        )

    def observe(state, observation):
        count = state.count + 1
        stats = state.stats.add(observation.score)
        needed = _SCORES_FOR_A_FIT if state.prior is None else 1
        looks = jnp.maximum(min_samples, needed)
        # Where one score is no fit, a decision after it is the start's, which is there already.
        fit_now = count >= looks
        if decide == "once":
            fit_now &= count == min_samples

        def fit():
            params, _ = fit_mle(stats) if state.prior is None else fit_map(stats, state.prior)
            return params.loc, params.scale

        if isinstance(min_samples, Tracer):
            # A branch that differs between settings would carry the fit to each of them.
            fitted = fit()
            loc = jnp.where(fit_now, fitted[0], state.loc)
            scale = jnp.where(fit_now, fitted[1], state.scale)
        else:
            # A real branch under replay: the count is the same for all problems there.
            loc, scale = jax.lax.cond(fit_now, fit, lambda: (state.loc, state.scale))
        required, status = read_bound(loc, scale)
        return OptScaleState(
            count=count,
            stats=stats,
            best=state.best.update(observation),
            tokens=state.tokens + jnp.maximum(observation.tokens, 0),
            prior=state.prior,
            loc=loc,
            scale=scale,
            required=required,
            status=status,
            chosen=selector.update(state.chosen, observation),
        )

    def hit(state):
        return stop_at_s_min & (state.best.score >= s_min)

    def request(state):
        # The start is a guess: nothing beyond the first look is drawn on its word.
        wanted = jnp.where(state.count < min_samples, min_samples, state.required)
        return jnp.where(hit(state), 0, jnp.maximum(wanted - state.count, 0))

    def select(state):
        return selector.index(state.chosen)

    def info(state):
        satisfied = (state.count >= state.required) & (state.status == BoundStatus.EXACT)
        reason = jnp.where(
            hit(state),
            StopReason.SCORE_REACHED,
            jnp.where(
                request(state) > 0,
                StopReason.RUNNING,
                jnp.where(satisfied, StopReason.BOUND_REACHED, StopReason.MAX_SAMPLES),
            ),
        )
        return Info(state.required, state.loc, state.scale, reason.astype(jnp.int32))

    def gain(state):
        # E[max(X - best, 0)] = P(X > best) (E[X | X > best] - best).
        best = jnp.clip(state.best.score, 0.0, 1.0 - jnp.finfo(state.loc.dtype).eps)
        above = TruncatedNormal(state.loc, state.scale).survival_function(best)
        rise = TruncatedNormal(state.loc, state.scale, low=best).mean() - best
        expected_tokens = jnp.maximum(state.tokens / jnp.maximum(state.count, 1), 1.0)
        return above * rise / expected_tokens

    return Policy(
        init,
        observe,
        request,
        select,
        info,
        max_samples=max_samples,
        gain=gain,
        prior=default_prior,
        uses_answers=selector.uses_answers,
    )
