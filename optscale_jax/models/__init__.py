"""Flax transformers that read and write Hugging Face checkpoints, on any device that JAX has."""

from optscale_jax.models.qwen2 import CheckpointError, Qwen2, Qwen2Config

__all__ = ["CheckpointError", "Qwen2", "Qwen2Config"]
