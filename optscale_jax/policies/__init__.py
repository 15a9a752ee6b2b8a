"""Stopping rules: the contract and one file a rule."""

from collections.abc import Callable

from optscale_jax.policies.adaptive_self_consistency import adaptive_self_consistency
from optscale_jax.policies.base import (
    Info,
    Outcome,
    Policy,
    PolicyKind,
    Request,
    StopReason,
    run,
    until,
)
from optscale_jax.policies.best_of_n import best_of_n
from optscale_jax.policies.calibrated_vote import calibrated_vote
from optscale_jax.policies.difficulty_adaptive_self_consistency import (
    Allotment,
    difficulty_adaptive_self_consistency,
)
from optscale_jax.policies.early_stopping_self_consistency import early_stopping_self_consistency
from optscale_jax.policies.first_hit import first_hit
from optscale_jax.policies.hit_or_gain import hit_or_gain
from optscale_jax.policies.known_law import known_law
from optscale_jax.policies.mr_thinking import mr_thinking
from optscale_jax.policies.optscale import PAPER_ALPHA, PAPER_S_MIN, min_samples_for, optscale
from optscale_jax.policies.seen import Best, Observation, State, Votes, is_eligible
from optscale_jax.policies.selection import (
    SELECTORS,
    MajorityOfTheBests,
    Selector,
    make_selector,
)
from optscale_jax.policies.self_consistency import self_consistency, weighted_self_consistency
from optscale_jax.policies.stacking import any_setting, capped, num_settings, stack, unstack
from optscale_jax.values import static

__all__ = [
    "PAPER_ALPHA",
    "PAPER_S_MIN",
    "RULES",
    "SELECTORS",
    "Allotment",
    "Best",
    "Info",
    "MajorityOfTheBests",
    "Observation",
    "Outcome",
    "Policy",
    "PolicyKind",
    "Request",
    "Selector",
    "State",
    "StopReason",
    "Votes",
    "adaptive_self_consistency",
    "any_setting",
    "best_of_n",
    "calibrated_vote",
    "capped",
    "difficulty_adaptive_self_consistency",
    "early_stopping_self_consistency",
    "first_hit",
    "hit_or_gain",
    "is_eligible",
    "known_law",
    "make_selector",
    "min_samples_for",
    "mr_thinking",
    "num_settings",
    "optscale",
    "run",
    "self_consistency",
    "stack",
    "static",
    "unstack",
    "until",
    "weighted_self_consistency",
]

RULES: dict[str, Callable[..., Policy]] = {
    rule.__name__: rule
    for rule in (
        optscale,
        best_of_n,
        first_hit,
        hit_or_gain,
        calibrated_vote,
        self_consistency,
        weighted_self_consistency,
        adaptive_self_consistency,
        early_stopping_self_consistency,
        difficulty_adaptive_self_consistency,
        known_law,
        mr_thinking,
    )
}
"""The shipped rules' factories by name."""
