"""What every command shares: its configuration, its one-line errors, its outputs, its progress."""

from optscale_jax.cli.command import command
from optscale_jax.cli.config import parse, to_yaml
from optscale_jax.cli.outputs import output_file, output_folder, show
from optscale_jax.cli.watching import progress
from optscale_jax.files import package_versions

__all__ = [
    "command",
    "output_file",
    "output_folder",
    "package_versions",
    "parse",
    "progress",
    "show",
    "to_yaml",
]
