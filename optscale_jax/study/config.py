"""What replays and reports are configured with, plain dataclasses.

Their docstrings explain the fields, and a command's --help with them.
"""

import dataclasses

from optscale_jax.checks import at_least, within
from optscale_jax.errors import InputError
from optscale_jax.laws import make_law
from optscale_jax.pool_directory import AnyPool
from optscale_jax.study.comparison import Options
from optscale_jax.study.entries import (
    by_cap,
    caps_of,
    entries_of,
    in_words,
    leave_out,
    lowered_to,
    notes_on_blocks,
)
from optscale_jax.study.pools import SYNTHETIC, PoolSource, ReadConfig, SyntheticPoolConfig
from optscale_jax.study.registry import Entry, PolicyConfig, within_depth
from optscale_jax.study.tuning import Aim

__all__ = ["ReplayConfig", "ReportConfig", "ShowConfig", "TunedConfig"]


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
            serve (no verifier scores, no answers, sequential), and to say so, instead of refusing
            the pool. Where it has fewer completions than N, N is what it has, with a note.
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
        at_least(self.synthetic, 0, "seed", of="synthetic.")
        at_least(self, 0, "permutations", "seed")
        at_least(self, 1, "resamples")
        within(self, "(0, 1)", "level")

    @property
    def source(self) -> PoolSource:
        """Where the pool is; refuses to be asked if it is not given."""
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

    def served(self, pool: AnyPool) -> tuple["ReplayConfig", list[Entry], list[str]]:
        """The comparison as a pool can serve it, its policies, and notes on what it cannot.

        What would draw more than the pool has draws what there is. All else that it cannot serve is
        left out, if `leave_out` says so.
        """
        depth = int(pool.samples_per_problem.min())
        found = [within_depth(each, depth) for each in (self.policy, *self.compare)]
        (policy, *compare), lowered = (list(part) for part in zip(*found, strict=True))
        config = dataclasses.replace(self, policy=policy, compare=compare)
        varied = (getattr(each, str(self.show.over), None) for each in (policy, *compare))
        if not any(isinstance(values, list) for values in varied):
            config = dataclasses.replace(config, show=dataclasses.replace(self.show, over=None))
        notes, entries = lowered_to(pool, {n for each in lowered for n in each}), config.entries()
        if self.leave_out:
            entries, left_out = leave_out(entries, pool, self.permutations)
            notes += in_words(left_out)
            if not entries:
                raise InputError(f"{self.pool}: no policy is left: {notes[-1]}")
        notes += notes_on_blocks(pool, entries)
        known = self.baseline in [entry.label for entry in entries]
        return config if known else dataclasses.replace(config, baseline=None), entries, notes


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedConfig(ReadConfig):
    """How pools are replayed, settings tuned and means estimated.

    Attributes:
        permutations: Random orders to replay pools in, at least 1, or 0 for the stored order. A
            sequential pool has one order only. null: the comparison's own.
        folds: Folds over problems, at least 2.
        seed: Of the orders, the folds and the bootstrap, at least 0.
        level: Coverage of the confidence intervals, in (0, 1).
        resamples: Bootstrap resamples over problems and permutations, at least 1.
    """

    permutations: int | None = None
    folds: int = 5
    seed: int = 0
    level: float = 0.95
    resamples: int = 2000

    def __post_init__(self) -> None:
        at_least(self, 0, "permutations", "seed")
        at_least(self, 2, "folds")
        at_least(self, 1, "resamples")
        within(self, "(0, 1)", "level")

    def options(self, aim: Aim) -> Options:
        """How to tune for an aim, and how to estimate."""
        return Options(aim, self.folds, self.seed, self.level, self.resamples)


LAWS_COMPARED = ("truncated_normal", "beta", "logit_normal", "logit_normal_with_atoms")
"""The laws that a report compares."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig(TunedConfig):
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
        n: The table's N. null: those of 8, 16, 32 and 64 that there are, or else all there are.
        aim: What settings are chosen for.
        laws: Laws of scores to compare on scores that they have not seen; an empty list for none.
        out: Folder for the report, made if it does not exist.
    """

    runs: list[str] = dataclasses.field(default_factory=list)
    pools: list[str] = dataclasses.field(default_factory=list)
    names: list[str] | None = None
    comparison: str | None = None
    priors: str | None = None
    n: list[int] | None = None
    aim: Aim = dataclasses.field(default_factory=Aim)
    laws: list[str] = dataclasses.field(default_factory=lambda: list(LAWS_COMPARED))
    out: str = "runs/report"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runs and not self.pools:
            raise ValueError("nothing to report on; give --runs DIR... or --pools FILE...")
        given = len(self.runs) + len(self.pools)
        if self.names is not None and len(self.names) != given:
            raise ValueError(f"names are {len(self.names)}, but there are {given} runs and pools")
        for law in self.laws:
            make_law(law)
