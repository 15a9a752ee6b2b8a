"""Flax transformers that read and write Hugging Face checkpoints, on any device that JAX has."""

from optscale_jax.models.qwen2 import Qwen2, Qwen2Config

__all__ = ["Qwen2", "Qwen2Config"]
