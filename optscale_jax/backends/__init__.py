"""Samplers and verifiers. Importing this package loads neither vLLM nor torch nor a client."""

from optscale_jax.backends.base import Completion, Sampler, Score, Verifier

__all__ = ["Completion", "Sampler", "Score", "Verifier"]
