"""OptScale: draw as many completions as the fitted law of scores says are needed."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from optscale_jax import laws
from optscale_jax.bounds import BoundStatus, bound, check_targets
from optscale_jax.estimation import Prior
from optscale_jax.laws import Law, make_law
from optscale_jax.policies.base import (
    Policy,
    Request,
    StopReason,
    check_count,
    check_not_above,
    until,
)
from optscale_jax.policies.seen import Observation, State
from optscale_jax.policies.selection import Selector, make_selector
from optscale_jax.policies.stacking import any_setting
from optscale_jax.typing import Array, Count, Number
from optscale_jax.values import static

__all__ = ["PAPER_ALPHA", "PAPER_S_MIN", "OptScale", "min_samples_for", "optscale"]

PAPER_S_MIN = (0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99)
"""The authors' grid of s_min."""

PAPER_ALPHA = tuple(round(1 - missed, 3) for missed in (0.01, 0.02, 0.035, 0.05, 0.075, 0.1))
"""The authors' grid of alpha."""


def min_samples_for(max_samples: Count) -> int:
    """Scores to look at before the first decision: 5 in 16 of the cap, rounded up.

    The authors' choice for the caps that they give one for: 3 of 8, 5 of 16, 10 of 32, 20 of 64.
    """
    return -(-5 * max_samples // 16)


class Fitted(NamedTuple):
    """What OptScale remembers of a problem."""

    memory: Any  # what the law remembers of the scores
    prior: Prior | None
    params: dict[str, Array]  # of the law that `required` was read from, scalars by name
    required: Array  # int32, samples wanted in all, at most the state's slots
    status: Array  # `BoundStatus` of `required`


class OptScale(Policy):
    """See `optscale`."""

    s_min: Number
    alpha: Number
    min_samples: Count
    decide: str = static(default="every_sample")
    stop_at_s_min: bool = static(default=False)
    law: Law = laws.truncated_normal()

    def _fitted(self, memory: Any, prior: Prior | None, params: dict[str, Array]) -> Fitted:
        """With the bound that the parameters give."""
        distribution = self.law.distribution(params)
        return Fitted(
            memory, prior, params, *bound(distribution, self.s_min, self.alpha, self.slots)
        )

    def start(self, prior: Prior | None) -> Fitted:
        """The law before any score, which is the prior's mean or a guess."""
        dtype = jnp.result_type(float)
        if prior is not None:
            prior = jax.tree.map(lambda v: jnp.asarray(v, dtype), prior)
        return self._fitted(self.law.init(self.slots, dtype), prior, self.law.start(prior, dtype))

    def update(self, state: State, observation: Observation) -> Fitted:
        """The law fitted to the scores so far, if it is time to decide."""
        own = state.own
        memory = self.law.add(own.memory, observation.score)
        # Where too few scores are no fit, a decision after them is the start's, which is there.
        fit_now = state.count >= jnp.maximum(self.min_samples, self.law.scores_for_a_fit(own.prior))
        if self.decide == "once":
            fit_now &= state.count == self.min_samples
        # A real branch under replay, where the count is the same for all problems, and one fit for
        # all settings.
        fitted = jax.lax.cond(
            any_setting(fit_now),
            lambda: self.law.fit(memory, own.prior)[0],
            lambda: jax.tree.map(jnp.zeros_like, own.params),
        )
        params = jax.tree.map(lambda new, old: jnp.where(fit_now, new, old), fitted, own.params)
        return self._fitted(memory, own.prior, params)

    def rule(self, state: State) -> Request:
        """As many as the bound requires."""
        own = state.own
        # The start is a guess: nothing beyond the first look is drawn on its word.
        wanted = jnp.where(state.count < self.min_samples, self.min_samples, own.required)
        hit = self.stop_at_s_min & (state.best.score >= self.s_min)
        met = jnp.where(
            own.status == BoundStatus.EXACT, StopReason.BOUND_REACHED, StopReason.MAX_SAMPLES
        )
        return until(
            hit | (state.count >= wanted),
            jnp.where(hit, StopReason.SCORE_REACHED, met),
            more=wanted - state.count,
            required=own.required,
        )

    def params(self, state: State) -> dict[str, Array]:
        """The law's parameters."""
        return state.own.params

    def gain(self, state: State) -> Array:
        """Expected rise of the best score by one more completion, for each token that it takes.

        E[max(X - best, 0)] / E[tokens], a floating scalar; infinite before min_samples scores.
        """
        best = jnp.clip(state.best.score, 0.0, 1.0)
        rise = self.law.expected_rise(state.own.params, best)
        gain = rise / jnp.maximum(state.tokens / jnp.maximum(state.count, 1), 1.0)
        return jnp.where(state.count < self.min_samples, jnp.inf, gain)


def optscale(
    s_min: Number,
    alpha: Number,
    max_samples: Count,
    min_samples: Count | None = None,
    prior: Prior | None = None,
    decide: Literal["every_sample", "once"] = "every_sample",
    *,
    stop_at_s_min: bool = False,
    selection: str | Selector = "best_score",
    law: str | Law = "truncated_normal",
) -> Policy:
    """OptScale^0 without a prior, OptScale^t with one.

    After n >= min_samples scores, with F fitted to them (maximum likelihood, or MAP with a prior),

        N* = min {N : F(s_min)^N <= 1 - alpha},    stop as soon as n >= min(N*, max_samples),

    and return the best score. Before a fit the law is the prior's mean, or the law's own start; a
    fit needs one score with a prior, and two without.
    All scores enter the fit, those of answerless completions too: F is the law of what the
    verifier says. Such completions are never returned. Every number may be an array [S], or traced,
    for a stack of settings.

    Args:
      s_min: score to reach, in [0, 1].
      alpha: probability of reaching it, inside (0, 1).
      max_samples: most completions to draw, >= 1.
      min_samples: scores to look at before the first decision, an integer in [1, max_samples].
        None: 5 in 16 of max_samples, rounded up, which is the paper's choice for 8, 16, 32 and 64.
      prior: prior on the law of scores: of every problem (scalar fields), or of each (one entry a
        problem); a prior given to `init` replaces it. None: OptScale^0.
      decide: when to fit the law of scores: after every_sample, as the paper's algorithm does, or
        once after min_samples, as the authors' code does.
      stop_at_s_min: whether to stop as soon as an eligible score reaches s_min too. The paper does
        not.
      selection: which completion to return: best_score, as the paper does, another name in
        `SELECTORS`, or a `Selector`.
      law: law of scores: truncated_normal, as the paper's, or another of `laws`, or a `Law`.

    Raises:
      ValueError: an argument outside its domain, an unknown selection or law, a prior for a law
        that takes none.

    References:
      Wang et al. (2026), arXiv 2506.22376, Algorithm 1 and the lower bound on N.
    """
    check_targets(s_min, alpha)
    max_samples = check_count("max_samples", max_samples)
    if min_samples is None:
        min_samples = min_samples_for(max_samples)
    min_samples = check_count("min_samples", min_samples)
    check_not_above("min_samples", min_samples, "max_samples", max_samples)
    if decide not in ("every_sample", "once"):
        raise ValueError(f"decide must be 'every_sample' or 'once', found {decide!r}")
    law = make_law(law)
    if prior is not None and not law.takes_prior:
        raise ValueError(f"law: {type(law).__name__} takes no prior; leave the prior out")
    return OptScale(
        s_min=s_min,
        alpha=alpha,
        max_samples=max_samples,
        min_samples=min_samples,
        prior=prior,
        decide=decide,
        stop_at_s_min=stop_at_s_min,
        selection=make_selector(selection),
        law=law,
    )
