"""Draws a fixed pool: the same number of scored completions of every problem.

    python -m eval.sample --config configs/sample/tiny.yaml [--problems PATH] [--out DIR]

The directory is that of a run (`optscale_jax/live/runs.py`) and gets the files of eval.solve, whose
policy is best-of-n here. `pool.npz`, and the directory itself, can be replayed (eval.replay), and
labels for a predictor come from it (train.labels). Drawing goes on where it was cut off.
"""

import sys

from optscale_jax.cli import command
from optscale_jax.cli.live import live
from optscale_jax.live.config import SampleConfig

__all__ = ["main"]

main = command(
    SampleConfig,
    live,
    __name__,
    configs="sample",
    interrupted="what was drawn is kept; run the same command to go on",
)

if __name__ == "__main__":
    sys.exit(main())
