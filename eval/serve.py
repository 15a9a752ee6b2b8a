"""Serves models behind an OpenAI-compatible address, where a policy decides how many are drawn.

    python -m eval.serve --config configs/serve/tiny.yaml [--port 8100]

SIGTERM lets requests at work end; SIGHUP, or a change of the configuration's file, has it read
again without losing any. docs/gateway.md has what requests may say and what answers hold.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from optscale_jax.cli import command, parse
from optscale_jax.gateway.config import ServeConfig
from optscale_jax.gateway.server import serve
from optscale_jax.shipped import shipped_config

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    names = [value for option, value in itertools.pairwise(given) if option == "--config"]
    names += [each.removeprefix("--config=") for each in given if each.startswith("--config=")]

    def run(config: ServeConfig) -> None:
        files = [Path(n) if Path(n).is_file() else shipped_config(n, "serve") for n in names]
        serve(config, lambda: parse(ServeConfig, given, configs="serve"), files)

    made = command(ServeConfig, run, __name__, configs="serve", interrupted="nothing is served")
    return made(given)


if __name__ == "__main__":
    sys.exit(main())
