"""Samplers and verifiers. Importing this package loads neither vLLM nor torch nor a client."""

from optscale_jax.backends.base import Sampler, Verifier, sample_seed
from optscale_jax.errors import BackendError, ProblemError
from optscale_jax.records import Completion, Score

__all__ = [
    "BackendError",
    "Completion",
    "ProblemError",
    "Sampler",
    "Score",
    "Verifier",
    "sample_seed",
]
