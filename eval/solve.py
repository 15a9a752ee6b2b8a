"""Solves problems with as few samples as a policy asks for, live.

    python -m eval.solve --config configs/solve/tiny.yaml [--problems PATH] [--out DIR]

`--out` is the run's directory (`optscale_jax/live/runs.py` lists its files). A run that was cut off
goes on where it was when the same command is given again, and one that is finished is only shown.
At the end it also has

    results.csv       one row: means over problems, tokens by what they were spent on
    per_problem.csv   one row a problem, as eval.replay writes it
    pool.npz          the completions that the policy decided on, as a pool
    summary.md        the table that the terminal shows

`tokens` are those of the completions that the decision rests on, which replay would count too;
completions that had ended beyond those, and aborted ones, are in the ledger's columns.
"""

import sys

from optscale_jax.cli import command
from optscale_jax.cli.live import live
from optscale_jax.live.config import SolveConfig

__all__ = ["main"]

main = command(
    SolveConfig,
    live,
    __name__,
    configs="solve",
    interrupted="what was drawn is kept; run the same command to go on",
)

if __name__ == "__main__":
    sys.exit(main())
