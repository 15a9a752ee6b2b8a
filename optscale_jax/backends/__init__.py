"""Samplers and verifiers. Importing this package loads neither vLLM nor torch nor a client."""

from optscale_jax.backends.base import (
    BackendError,
    Completion,
    ProblemError,
    Sampler,
    Score,
    Verifier,
    sample_seed,
)

__all__ = [
    "BackendError",
    "Completion",
    "ProblemError",
    "Sampler",
    "Score",
    "Verifier",
    "sample_seed",
]
