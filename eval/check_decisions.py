"""Checks that a live run decided as replay does on what it recorded.

    python -m eval.check_decisions RUN...

For each directory of eval.solve or eval.sample: reads the completions that its decisions rest on,
replays its policy over them in launch order, and compares how many were drawn and which one was
returned, for every problem; of a run with a budget for all of them, which one was returned after as
many. Exit code 1 if one differs.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from optscale_jax import Policy, Pool, Prior, replay
from optscale_jax.cli import command
from optscale_jax.cli.live import config_of
from optscale_jax.errors import InputError, bad_input
from optscale_jax.live.engine import FAILED
from optscale_jax.live.runs import DECISIONS, PROBLEMS
from optscale_jax.problems import read_problems
from optscale_jax.readers import read_pool
from optscale_jax.replay import in_launch_order
from optscale_jax.study.allocation import paths
from optscale_jax.study.priors import priors_of

__all__ = ["CheckDecisionsConfig", "main"]


@dataclasses.dataclass(frozen=True)
class CheckDecisionsConfig:
    """What to check.

    Attributes:
        runs: Directories of runs; their names may stand alone. Needed.
    """

    runs: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("runs are not given; name some directories")


def run(config: CheckDecisionsConfig) -> int:
    """Checks the runs; returns 1 where one decided otherwise."""
    return int(not all([_check(Path(directory)) for directory in config.runs]))


def _check(directory: Path) -> bool:
    with bad_input(errors=(OSError,)):
        pool = read_pool(directory, format="live")
        problems = read_problems(directory / PROBLEMS)
        with open(directory / DECISIONS, encoding="utf-8") as file:
            decisions = {line["problem_id"]: line for line in map(json.loads, file)}
    decided = {name for name, line in decisions.items() if line["stop_reason"] != FAILED}
    names = [problem.id for problem in problems if problem.id in decided]
    if not names:
        raise InputError(f"{directory}: no problem is decided yet")
    config = config_of(directory)
    configured = config.configured_policy()
    policy = configured.policy
    priors, _ = priors_of(config.priors_file, configured.name, names)
    prior = None
    if priors:
        parts = ("loc", "scale", "loc_sd", "scale_sd")
        prior = Prior(*(np.array([getattr(priors[n], part) for n in names]) for part in parts))
    deep = _deep(pool.subset(names), policy)
    if config.shared_budget is None:
        result = replay(deep, policy, prior=prior)
        counts, returned = result.num_samples[0], result.selected_index[0]
    else:
        # How many of one problem depends on all others; which one is returned does not.
        counts = np.array([decisions[name]["num_samples"] for name in names])
        path = paths(*in_launch_order(deep, policy, None, 0, prior)[:3])
        returned = np.asarray(path.selected)[0, np.arange(len(names)), counts - 1]
    replayed = zip(counts.tolist(), returned.tolist(), strict=True)
    different = [
        f"  {name}: live drew {live['num_samples']} and returned {live['selected_index']}, replay "
        f"{count} and {selected}"
        for name, (count, selected) in zip(names, replayed, strict=True)
        if (count, selected) != ((live := decisions[name])["num_samples"], live["selected_index"])
    ]
    same = f"{directory}: {len(names) - len(different)} of {len(names)}"
    print(*different[:20], same, sep="\n")
    return not different


def _deep(pool: Pool, policy: Policy) -> Pool:
    """The pool with room for all that the policy may draw, which it does not on its own record.

    What stands there was never drawn: were the policy to look at it, it would draw more than it did
    live, and the difference would show.
    """
    depth = max(policy.max_samples, pool.num_samples)

    def filled(array: Any, value: Any) -> Any:
        if array is None:
            return None
        return np.pad(array, ((0, 0), (0, depth - array.shape[1])), constant_values=value)

    return Pool.from_arrays(
        scores=filled(pool.scores, 0.0),
        tokens=filled(pool.tokens, 1),
        answers=filled(pool.answers, 0),
        gold=pool.gold,
        problem_ids=pool.problem_ids,
        kind=pool.kind,
        signals={name: filled(signal, np.nan) for name, signal in pool.signals.items()},
        # That these are the scores that it was learnt for, the run itself has seen to.
        origin=getattr(policy, "origin", None) or pool.origin,
    )


main = command(CheckDecisionsConfig, run, __name__, positional="runs")

if __name__ == "__main__":
    sys.exit(main())
