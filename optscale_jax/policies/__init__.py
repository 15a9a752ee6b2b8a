"""Stopping rules: the contract and one file a rule."""

from optscale_jax.policies.base import (
    Info,
    Observation,
    Outcome,
    Policy,
    StopReason,
    is_eligible,
    run,
)
from optscale_jax.policies.best_of_n import best_of_n
from optscale_jax.policies.first_hit import first_hit
from optscale_jax.policies.optscale import (
    PAPER_ALPHA,
    PAPER_MIN_SAMPLES,
    PAPER_S_MIN,
    optscale,
)

__all__ = [
    "PAPER_ALPHA",
    "PAPER_MIN_SAMPLES",
    "PAPER_S_MIN",
    "Info",
    "Observation",
    "Outcome",
    "Policy",
    "StopReason",
    "best_of_n",
    "first_hit",
    "is_eligible",
    "optscale",
    "run",
]
