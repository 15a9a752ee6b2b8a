"""Evaluation commands, thin over `optscale_jax` (`python -m eval.NAME`)."""
