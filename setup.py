"""Where the packages of a wheel are in the repository; all else is in pyproject.toml.

`eval`, `train` and `configs` are folders of the repository, and in a wheel parts of `optscale_jax`:
names as common as these are not for a package to take from all of Python. The console script's
module is apart from `optscale_jax`, whose import is that of JAX.
"""

from setuptools import find_packages, setup

MOVED = {
    "optscale_jax.cli.commands.eval": "eval",
    "optscale_jax.cli.commands.train": "train",
    "optscale_jax.configs": "configs",
    "optscale_cli": "optscale_jax/cli/script",
}

packages = find_packages(include=["optscale_jax", "optscale_jax.*"])
for name, folder in MOVED.items():
    packages += [name, *(f"{name}.{inside}" for inside in find_packages(folder))]

setup(packages=packages, package_dir=MOVED)
