"""Solves problems with as few samples as a policy asks for, live.

    python -m eval.solve --config configs/solve/tiny.yaml [--problems PATH] [--out DIR]

`--out` is the run's directory (`optscale_jax/runs.py` lists its files). A run that was cut off goes
on where it was when the same command is given again, and one that is finished is only shown. At
the end it also has

    results.csv       one row: means over problems, tokens by what they were spent on
    per_problem.csv   one row a problem, as eval.replay writes it
    pool.npz          the completions that the policy decided on, as a pool
    summary.md        the table that the terminal shows

`tokens` are those of the completions that the decision rests on, which replay would count too;
completions that had ended beyond those, and aborted ones, are in the ledger's columns.
"""

import dataclasses
import sys

from eval.live import Decider, LiveConfig, run_live
from optscale_jax import Policy
from optscale_jax.cli import command
from optscale_jax.errors import InputError
from optscale_jax.study.registry import PolicyConfig, expand

__all__ = ["SolveConfig", "main", "policy_of_solve"]


# Every field has a default, so that --help and overrides work without a file.
@dataclasses.dataclass(frozen=True)
class SolveConfig(LiveConfig):
    """Who decides, beside what to ask which models.

    Attributes:
        policy: The policy, with one value for each argument.
        priors: JSON lines file with a prior for each problem, as eval.predict writes it:
            problem_id, loc, scale, loc_sd, scale_sd and the tokens that predicting took. null: the
            policy's own prior, or none.
        out: Directory of the run. One that was cut off goes on where it was.
    """

    policy: PolicyConfig = dataclasses.field(default_factory=lambda: PolicyConfig("optscale"))
    priors: str | None = None
    out: str = "runs/solve"

    @property
    def priors_file(self) -> str | None:
        """The file of priors: that of `priors`, or else the policy's own (`policy.prior.file`)."""
        return self.priors or self.policy.prior.file


def run(config: SolveConfig) -> None:
    """Solves the problems.

    Args:
        config: What to run.

    Raises:
        InputError: As `run_live` and `policy_of_solve`.
    """
    run_live(config, *policy_of_solve(config), priors=config.priors_file)


def policy_of_solve(config: SolveConfig) -> tuple[Decider, Policy]:
    """The policy of a configuration.

    Args:
        config: The configuration.

    Returns:
        What it is called, and the policy.

    Raises:
        InputError: If it cannot be made, or has several settings.
    """
    entries = expand(config.policy, "policy")
    if len(entries) > 1 or len(entries[0].settings) > 1:
        raise InputError("policy: a list stands for several settings; a live run has one")
    (entry,) = entries
    return Decider(entry.name, entry.label, entry.settings[0]), entry.policies[0]


main = command(
    SolveConfig,
    run,
    __name__,
    configs="solve",
    interrupted="what was drawn is kept; run the same command to go on",
)

if __name__ == "__main__":
    sys.exit(main())
