"""What replays and reports are configured with, plain dataclasses.

Their docstrings explain the fields, and a command's --help with them.
"""

import dataclasses
from typing import Any

from optscale_jax.errors import InputError
from optscale_jax.laws import make_law
from optscale_jax.study.comparison import Options
from optscale_jax.study.entries import by_cap, caps_of, entries_of
from optscale_jax.study.pools import SYNTHETIC, PoolSource, ReadConfig, SyntheticPoolConfig
from optscale_jax.study.registry import Entry, PolicyConfig
from optscale_jax.study.tuning import Aim

__all__ = ["AimConfig", "ReplayConfig", "ReportConfig", "ShowConfig", "check_numbers"]


def check_numbers(config: Any, **least: int) -> None:
    """Refuses fields below their least value, and a level outside (0, 1).

    Args:
        config: A configuration with a field `level`.
        **least: Field to its least value.

    Raises:
        ValueError: Naming the first such field.
    """
    for name, smallest in least.items():
        if getattr(config, name) < smallest:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least {smallest}")
    if not 0 < config.level < 1:
        raise ValueError(f"level is {config.level}; it must be in (0, 1)")


@dataclasses.dataclass(frozen=True)
class ShowConfig:
    """What the terminal and the curves show of a large grid; the files hold all of it.

    Attributes:
        over: Argument that the curves run over, for policies that vary it. null: the first varied
            of n, rounds, max_samples, s_min, threshold, window and alpha.
        s_min: Setting to show where the curve runs over another argument; the nearest there is.
        alpha: Likewise. Of other arguments the largest is shown.
    """

    over: str | None = None
    s_min: float = 0.95
    alpha: float = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig(ReadConfig):
    """Which policies to replay, over which pool.

    Attributes:
        policy: The policy in question.
        pool: Path of the pool, a file of any format of docs/formats.md or a folder with a
            samples.jsonl, or "synthetic" for one made on the spot. Needed.
        synthetic: The pool to make if pool is "synthetic".
        compare: Policies to compare with, each with the same fields as policy.
        baseline: Label of the policy that differences are taken against. A setting is compared with
            the baseline's setting of the same cap on samples if there is one, else with the
            baseline's deepest; its own settings with its deepest. null: no differences.
        permutations: Random orders of the completions to replay, at least 1, or 0 for the stored
            order, once.
        seed: Of the orders and of the bootstrap, at least 0.
        level: Coverage of the confidence intervals, in (0, 1).
        resamples: Bootstrap resamples over problems and permutations, at least 1.
        leave_out: Whether to leave out policies and numbers of completions that the pool cannot
            serve (no verifier scores, no answers, too few completions, sequential), and to say so,
            instead of refusing the pool.
        show: What of a large grid to show.
        per_problem: Whether to write per_problem.csv, about 80 bytes per setting, permutation and
            problem.
        outcomes: Whether to write outcomes.npz, which eval.report reads; 1 or 2 bytes for the same.
        out: Folder for the results, made if it does not exist.
    """

    policy: PolicyConfig
    pool: str | None = None
    synthetic: SyntheticPoolConfig = dataclasses.field(default_factory=SyntheticPoolConfig)
    compare: list[PolicyConfig] = dataclasses.field(default_factory=list)
    baseline: str | None = None
    permutations: int = 20
    seed: int = 0
    level: float = 0.95
    resamples: int = 2000
    leave_out: bool = False
    show: ShowConfig = ShowConfig()
    per_problem: bool = True
    outcomes: bool = True
    out: str = "runs/replay"

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the first such field.
        """
        if self.synthetic.seed < 0:
            raise ValueError(f"synthetic.seed is {self.synthetic.seed}; it must be at least 0")
        check_numbers(self, permutations=0, seed=0, resamples=1)

    @property
    def source(self) -> PoolSource:
        """Where the pool is.

        Raises:
            InputError: If it is not given.
        """
        if self.pool is None:
            raise InputError("pool is not given; use --pool PATH, or --pool synthetic to make one")
        if self.pool == SYNTHETIC:
            return PoolSource(self.pool, synthetic=self.synthetic)
        return PoolSource(self.pool, self.read)

    def entries(self) -> list[Entry]:
        """The policies with their grids, checked against each other.

        Raises:
            InputError: If a policy cannot be made, two cannot be told apart, or the baseline or
                what to show is none of them.
        """
        where = ["policy", *(f"compare[{index}]" for index in range(len(self.compare)))]
        entries = entries_of([self.policy, *self.compare], where)
        if self.baseline is not None:
            labels = {entry.label: entry for entry in entries}
            if self.baseline not in labels:
                raise InputError(
                    f"baseline is {self.baseline!r}; the policies' labels are {', '.join(labels)}"
                )
            by_cap(self.baseline, caps_of(labels[self.baseline]))
        if self.show.over is not None and not any(self.show.over in e.varying for e in entries):
            raise InputError(f"show.over is {self.show.over!r}, which no policy varies")
        return entries


@dataclasses.dataclass(frozen=True)
class AimConfig:
    """What settings are chosen for, on other problems than those that they are scored on.

    Attributes:
        max_loss: Fewest tokens among the settings that lose at most this share of the problems
            against best-of-N with the same N, in [0, 1]; 0.01 is one point. Give this or
            max_tokens; null and null: 0.01.
        max_tokens: Highest accuracy among the settings that spend at most this many tokens a
            problem (completions, where tokens are not known).
    """

    max_loss: float | None = None
    max_tokens: float | None = None

    def build(self) -> Aim:
        """The library's aim.

        Raises:
            ValueError: If both are given, or one is outside its domain.
        """
        if self.max_loss is None and self.max_tokens is None:
            return Aim(max_loss=0.01)
        return Aim(max_tokens=self.max_tokens, max_loss=self.max_loss)


LAWS_COMPARED = ("truncated_normal", "beta", "logit_normal", "logit_normal_with_atoms")
"""The laws that a report compares."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig(ReadConfig):
    """What to report on.

    Attributes:
        runs: Folders that eval.replay wrote.
        pools: Files of completions, of any format of docs/formats.md, to replay the comparison
            over. The options of their format are above.
        names: Headings of the runs and then the pools, as many as there are. Those of one name
            share their columns in the table. null: the pools' names.
        comparison: Configuration of eval.replay, whose policies are replayed over the pools. null:
            configs/replay/paper_table.yaml, every method of the paper.
        priors: File of priors of the pools' problems (eval.predict writes it); OptScale^t, with
            these and otherwise as OptScale^0, joins the comparison. null: it does not.
        permutations: Random orders to replay pools in, at least 1, or 0 for the stored order. A
            sequential pool has one order only.
        n: The table's N. null: those of 8, 16, 32 and 64 that there are, or else all there are.
        aim: What settings are chosen for.
        folds: Folds over problems, at least 2.
        seed: Of the orders, the folds and the bootstrap, at least 0.
        level: Coverage of the confidence intervals, in (0, 1).
        resamples: Bootstrap resamples over problems and permutations, at least 1.
        laws: Laws of scores to compare on scores that they have not seen; an empty list for none.
        out: Folder for the report, made if it does not exist.
    """

    runs: list[str] = dataclasses.field(default_factory=list)
    pools: list[str] = dataclasses.field(default_factory=list)
    names: list[str] | None = None
    comparison: str | None = None
    priors: str | None = None
    permutations: int = 20
    n: list[int] | None = None
    aim: AimConfig = AimConfig()
    folds: int = 5
    seed: int = 0
    level: float = 0.95
    resamples: int = 2000
    laws: list[str] = dataclasses.field(default_factory=lambda: list(LAWS_COMPARED))
    out: str = "runs/report"

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the first such field.
        """
        check_numbers(self, permutations=0, folds=2, seed=0, resamples=1)
        if not self.runs and not self.pools:
            raise ValueError("nothing to report on; give --runs DIR... or --pools FILE...")
        given = len(self.runs) + len(self.pools)
        if self.names is not None and len(self.names) != given:
            raise ValueError(f"names are {len(self.names)}, but there are {given} runs and pools")
        self.aim.build()
        for law in self.laws:
            make_law(law)

    @property
    def options(self) -> Options:
        """How to tune and how to estimate."""
        return Options(self.aim.build(), self.folds, self.seed, self.level, self.resamples)
