"""Comparing policies over pools: outcomes, tuning, intervals, comparison, summaries.

Builds on `replay`, which makes the outcomes; `report` draws what comes out, and the commands of
`eval/` are thin over both.

    outcomes = replay_comparison(pool, entries_of([...]), seed=0, num_permutations=20)
    rows = compare(outcomes, options=Options(Aim(max_loss=.01)))
"""

from optscale_jax.study.allocation import Allocation, Budget, allocate
from optscale_jax.study.comparison import Options, Row, compare, frontiers, sensitivity
from optscale_jax.study.entries import entries_of, leave_out, replay_comparison
from optscale_jax.study.findings import Findings, find
from optscale_jax.study.outcomes import Method, Outcomes
from optscale_jax.study.registry import PolicyConfig, PriorConfig
from optscale_jax.study.summary import summarise_methods
from optscale_jax.study.tuning import Aim

__all__ = [
    "Aim",
    "Allocation",
    "Budget",
    "Findings",
    "Method",
    "Options",
    "Outcomes",
    "PolicyConfig",
    "PriorConfig",
    "Row",
    "allocate",
    "compare",
    "entries_of",
    "find",
    "frontiers",
    "leave_out",
    "replay_comparison",
    "sensitivity",
    "summarise_methods",
]
