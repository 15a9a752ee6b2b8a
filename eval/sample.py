"""Draws a fixed pool: the same number of scored completions of every problem.

    python -m eval.sample --config configs/sample/tiny.yaml [--problems PATH] [--out DIR]

The directory is that of a run (`optscale_jax/runs.py`) and gets the files of eval.solve, whose
policy is best-of-n here. `pool.npz`, and the directory itself, can be replayed (eval.replay), and
labels for a predictor come from it (train.labels). Drawing goes on where it was cut off.
"""

import dataclasses
import sys

from eval.live import Decider, LiveConfig, run_live
from optscale_jax import Policy
from optscale_jax.cli import command
from optscale_jax.study.registry import PolicyConfig, expand

__all__ = ["SampleConfig", "main", "policy_of_sample"]


@dataclasses.dataclass(frozen=True)
class SampleConfig(LiveConfig):
    """How many completions, beside what to ask which models.

    Attributes:
        n: Completions of each problem, at least 1.
        out: Directory of the run. One that was cut off goes on where it was.
    """

    n: int = 64
    out: str = "runs/sample"


def run(config: SampleConfig) -> None:
    """Draws the pool.

    Args:
        config: What to run.

    Raises:
        InputError: As `run_live` and `policy_of_sample`.
    """
    run_live(config, *policy_of_sample(config))


def policy_of_sample(config: SampleConfig) -> tuple[Decider, Policy]:
    """Best-of-N, whose completions are the pool.

    Args:
        config: The configuration.

    Returns:
        What it is called, and the policy.

    Raises:
        InputError: If n is less than 1.
    """
    # Without scores nothing says which of them is best, so the most frequent answer is returned.
    selection = "best_score" if config.verify else "majority"
    (entry,) = expand(PolicyConfig("best_of_n", n=config.n, selection=selection), "n")
    return Decider(entry.name, entry.label, entry.settings[0]), entry.policies[0]


main = command(
    SampleConfig,
    run,
    __name__,
    configs="sample",
    interrupted="what was drawn is kept; run the same command to go on",
)

if __name__ == "__main__":
    sys.exit(main())
