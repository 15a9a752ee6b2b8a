"""Evaluation commands, thin over `optscale_jax`: `optscale NAME`, or here `python -m eval.NAME`."""

from optscale_jax.cli.command import excuse_missing_packages

excuse_missing_packages()
