"""The console script `optscale`.

It is apart from the package, whose import is that of JAX, so that the list of commands comes at
once. A folder that it runs from is not on its path: no file there is taken for one of ours.
"""

import importlib.util
import sys
from pathlib import Path

__all__ = ["main"]


def main() -> int:
    """Runs the command that is named, or lists all; returns the exit code."""
    if sys.argv[1:2] not in ([], ["-h"], ["--help"]):
        from optscale_jax.cli.console import main as run

        return run()
    package = importlib.util.find_spec("optscale_jax")
    assert package is not None
    file = Path(*package.submodule_search_locations or (), "cli", "commands", "__init__.py")
    spec = importlib.util.spec_from_file_location("optscale_commands", file)
    assert spec is not None
    assert spec.loader is not None
    commands = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(commands)
    print(commands.listing())
    return 0


if __name__ == "__main__":
    sys.exit(main())
