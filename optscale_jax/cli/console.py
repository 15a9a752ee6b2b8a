"""Runs a command by its name, from the console or from another command.

optscale replay --config demo                       the same as python -m eval.replay ...
python -m optscale_jax.cli replay --config demo     where the script is not on the path
"""

import importlib
import sys
from collections.abc import Sequence

from optscale_jax.cli import commands
from optscale_jax.cli.command import exit_code
from optscale_jax.errors import InputError, did_you_mean

__all__ = ["main", "run_command"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that is named, or lists all; returns its exit code."""
    name, *arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    # Of two words as well: "train calibration" is train-calibration.
    if arguments and f"{name}-{arguments[0]}" in commands.COMMANDS:
        name, *arguments = f"{name}-{arguments[0]}", *arguments[1:]
    if name in ("-h", "--help"):
        print(commands.listing())
        return 0
    return run_command(name, arguments)


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Runs a command in this process, as `optscale NAME ARGUMENTS` does; returns its exit code."""

    def work() -> int:
        module = commands.COMMANDS.get(name.replace("_", "-"))
        if module is None:
            near = did_you_mean(name, commands.COMMANDS, "the commands are")
            raise InputError(f"{name}: no such command{near}")
        return importlib.import_module(f"{commands.__name__}.{module}").main(arguments)

    return exit_code(work)
