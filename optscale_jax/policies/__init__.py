"""Stopping rules: the contract and one file a rule."""

from optscale_jax.policies.adaptive_self_consistency import adaptive_self_consistency
from optscale_jax.policies.base import (
    Info,
    Observation,
    Outcome,
    Policy,
    PolicyKind,
    StopReason,
    is_eligible,
    run,
)
from optscale_jax.policies.best_of_n import best_of_n
from optscale_jax.policies.difficulty_adaptive_self_consistency import (
    Allotment,
    difficulty_adaptive_self_consistency,
)
from optscale_jax.policies.early_stopping_self_consistency import early_stopping_self_consistency
from optscale_jax.policies.first_hit import first_hit
from optscale_jax.policies.known_law import known_law
from optscale_jax.policies.mr_thinking import mr_thinking
from optscale_jax.policies.optscale import (
    PAPER_ALPHA,
    PAPER_MIN_SAMPLES,
    PAPER_S_MIN,
    optscale,
)
from optscale_jax.policies.self_consistency import self_consistency, weighted_self_consistency
from optscale_jax.policies.voting import (
    Selection,
    Selector,
    Votes,
    best_score,
    majority,
    make_selector,
    weighted_vote,
)

__all__ = [
    "PAPER_ALPHA",
    "PAPER_MIN_SAMPLES",
    "PAPER_S_MIN",
    "Allotment",
    "Info",
    "Observation",
    "Outcome",
    "Policy",
    "PolicyKind",
    "Selection",
    "Selector",
    "StopReason",
    "Votes",
    "adaptive_self_consistency",
    "best_of_n",
    "best_score",
    "difficulty_adaptive_self_consistency",
    "early_stopping_self_consistency",
    "first_hit",
    "is_eligible",
    "known_law",
    "majority",
    "make_selector",
    "mr_thinking",
    "optscale",
    "run",
    "self_consistency",
    "weighted_self_consistency",
    "weighted_vote",
]
