"""What every command shares: its configuration, its one-line errors, its outputs, its progress."""

from optscale_jax.cli.command import command
from optscale_jax.cli.config import parse, to_yaml
from optscale_jax.cli.outputs import (
    output_file,
    output_folder,
    package_versions,
    progress,
    show,
)
from optscale_jax.errors import Terminated
from optscale_jax.shipped import shipped_config

__all__ = [
    "Terminated",
    "command",
    "output_file",
    "output_folder",
    "package_versions",
    "parse",
    "progress",
    "shipped_config",
    "show",
    "to_yaml",
]
