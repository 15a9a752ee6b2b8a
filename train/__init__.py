"""Training commands, thin over `optscale_jax`: `optscale NAME`, or here `python -m train.NAME`."""

import sys

# What Python says there while it looks for the module of `python -m`.
if sys.argv[:1] == ["-m"]:
    from optscale_jax.cli.command import excuse_missing_packages

    excuse_missing_packages()
