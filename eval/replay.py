"""Replays policies over a pool of recorded completions and compares them.

    python -m eval.replay --config configs/replay/demo.yaml [--pool PATH] [--out DIR]
        [--permutations K]

All policies see the same random orders of the same completions, so that their differences are
paired. The output folder gets

    results.csv            one row per policy, setting and permutation: means over problems
    summary.csv            one row per policy and setting: means, intervals, differences
    summary.md             the table that the terminal shows
    per_problem.csv        one row per policy, setting, permutation and problem
    outcomes.npz           the same for eval.report, a hundredth of the size
    accuracy_vs_tokens     .png and .pdf, one curve a policy
    config.yaml            the configuration as it ran, for --config
    versions.json          packages, device, and the pool's size and checksum

An empty cell is a value that is not known. Permutations count from 1; 0 is the stored order. A
policy's name and its setting tell every row of a policy from all others.
"""

import dataclasses
import importlib.metadata
import itertools
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from optscale_jax import Pool, synthetic_pool
from optscale_jax.cli import command, output_folder, progress, show, to_yaml
from optscale_jax.cli.pools import ReadConfig, checksum, load_pool
from optscale_jax.errors import InputError, bad_input
from optscale_jax.policies import StopReason
from optscale_jax.report.tables import Table, cells, write_csv, write_rows
from optscale_jax.study.metrics import Comparison, Interval, bootstrap, compare, summarise
from optscale_jax.study.outcomes import Replayed, caps_of, leave_out, replay_entries, write_outcomes
from optscale_jax.study.registry import Entry, PolicyConfig, PriorConfig, describe, expand
from optscale_jax.synthetic import SyntheticConfig

__all__ = [
    "ReplayConfig",
    "ShowConfig",
    "SyntheticPoolConfig",
    "entries_of",
    "load",
    "main",
]

SYNTHETIC = "synthetic"
OUTPUTS = (
    "results.csv",
    "summary.csv",
    "summary.md",
    "per_problem.csv",
    "outcomes.npz",
    "accuracy_vs_tokens.png",
    "accuracy_vs_tokens.pdf",
    "config.yaml",
    "versions.json",
)
# Arguments that a curve runs over, the first that a policy varies.
CURVES = ("n", "rounds", "max_samples", "s_min", "threshold", "window", "alpha")
METRICS = ("accuracy", "samples", "tokens", "score")


@dataclasses.dataclass(frozen=True)
class SyntheticPoolConfig(SyntheticConfig):
    """The synthetic pool; optscale_jax/synthetic.py has the model's equations.

    Attributes:
        num_problems: Problems in the pool, at least 1.
        num_samples: Completions of each, at least 1.
        seed: Of the pool, at least 0.
    """

    num_problems: int = 500
    num_samples: int = 64
    seed: int = 0


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
    synthetic: SyntheticPoolConfig = SyntheticPoolConfig()
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
        for name, least in (("permutations", 0), ("seed", 0), ("resamples", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.synthetic.seed < 0:
            raise ValueError(f"synthetic.seed is {self.synthetic.seed}; it must be at least 0")
        if not 0 < self.level < 1:
            raise ValueError(f"level is {self.level}; it must be in (0, 1)")


class Summarised(NamedTuple):
    """One entry's means and intervals, arrays [S].

    Attributes:
        of: What is summarised.
        metrics: Metric to its interval and that of its difference; the difference is None without
            a baseline.
        baseline: [S] index of the baseline's setting that each is compared with, or None.
        shown: Indices of the settings that the terminal and the curve show.
        over: The argument that varies among those; None if there is one setting.
        fixed: The other arguments that vary, with the value that is shown.
    """

    of: Replayed
    metrics: dict[str, tuple[Interval, Interval | None]]
    baseline: np.ndarray | None
    shown: np.ndarray
    over: str | None
    fixed: dict[str, Any]


def run(config: ReplayConfig) -> None:
    """Replays, compares, writes the files and shows the table.

    Args:
        config: What to run.

    Raises:
        InputError: If the configuration or the pool cannot be used.
    """
    entries = entries_of(config)
    pool = load(config)
    out = Path(config.out)
    if config.pool != SYNTHETIC:
        config = dataclasses.replace(config, synthetic=SyntheticPoolConfig())
    notes: list[str] = []
    if config.leave_out:
        entries, notes = leave_out(entries, pool, config.permutations)
        if not entries:
            raise InputError(f"{config.pool}: no policy is left: {notes[0]}")
        if config.baseline not in [entry.label for entry in entries]:
            config = dataclasses.replace(config, baseline=None)
    with output_folder(out, OUTPUTS) as folder, progress() as bar:
        steps = 2 * len(entries) + 1
        task = bar.add_task("", total=steps)
        bar.update(task, description="replaying")
        replayed = replay_entries(
            pool,
            entries,
            source=str(config.pool),
            seed=config.seed,
            num_permutations=config.permutations,
            advance=lambda: bar.advance(task),
        )
        summaries = []
        for each in replayed:
            bar.update(task, description=f"intervals of {each.entry.label}")
            summaries.append(_summarise(each, replayed, config))
            bar.advance(task)
        bar.update(task, description="writing")
        table = _table(summaries, pool, config, notes)
        _write(folder, summaries, table, pool, config)
        bar.advance(task)
    show(table.to_rich())
    print(f"results: {out}")


# What to replay -----------------------------------------------------------------------------------


def entries_of(config: ReplayConfig) -> list[Entry]:
    """The policies of a configuration with their grids, checked against each other.

    Raises:
        InputError: If a policy cannot be made, or two cannot be told apart.
    """
    configured = [("policy", config.policy)]
    configured += [(f"compare[{index}]", policy) for index, policy in enumerate(config.compare)]
    entries = [entry for where, policy in configured for entry in expand(policy, where)]
    labels: dict[str, str] = {}
    seen: dict[tuple[str, str], str] = {}
    for entry in entries:
        if entry.label in labels:
            raise InputError(
                f"{entry.where}.label: {entry.label!r} is also {labels[entry.label]}; give each "
                "its own"
            )
        labels[entry.label] = entry.where
        for setting in entry.settings:
            key = (entry.name, describe(setting, entry.name))
            if key in seen:
                raise InputError(f"{entry.where}: {' '.join(key)} is also in {seen[key]}")
            seen[key] = entry.where
    if config.baseline is not None:
        if config.baseline not in labels:
            raise InputError(
                f"baseline is {config.baseline!r}; the policies' labels are {', '.join(labels)}"
            )
        _by_cap(next(entry for entry in entries if entry.label == config.baseline))
    if config.show.over is not None and not any(config.show.over in e.varying for e in entries):
        raise InputError(f"show.over is {config.show.over!r}, which no policy varies")
    return entries


def _by_cap(entry: Entry) -> dict[int, int]:
    """The index of an entry's setting for each cap."""
    found: dict[int, int] = {}
    for index, cap in enumerate(caps_of(entry)):
        if cap in found:
            raise InputError(
                f"baseline: {entry.label} has several settings that draw up to {cap}; name a "
                "policy that has one for each cap"
            )
        found[int(cap)] = index
    return found


def load(config: ReplayConfig) -> Pool:
    """The pool of a configuration, read or made.

    Raises:
        InputError: If there is none, or it cannot be read.
    """
    if config.pool is None:
        raise InputError("pool is not given; use --pool PATH, or --pool synthetic to make one")
    if config.pool != SYNTHETIC:
        return load_pool(config.pool, config)
    with bad_input():
        model = config.synthetic
        return synthetic_pool(
            jax.random.key(model.seed),
            num_problems=model.num_problems,
            num_samples=model.num_samples,
            config=model,
        )


# What came out ------------------------------------------------------------------------------------


def _summarise(each: Replayed, replayed: list[Replayed], config: ReplayConfig) -> Summarised:
    base = next((r for r in replayed if r.entry.label == config.baseline), None)
    against = None
    if base is not None:
        by_cap = _by_cap(base.entry)
        deepest = by_cap[max(by_cap)]
        own = each.entry.label == config.baseline
        against = np.array([deepest if own else by_cap.get(int(c), deepest) for c in each.caps])
    over, fixed, shown = _selection(each, config.show)
    return Summarised(
        of=each,
        metrics={
            metric: _interval(
                each.outcomes[metric],
                None if base is None else base.outcomes[metric],
                against,
                config,
            )
            for metric in METRICS
        },
        baseline=against,
        shown=shown,
        over=over,
        fixed=fixed,
    )


def _interval(
    values: np.ndarray, base: np.ndarray | None, against: np.ndarray | None, config: ReplayConfig
) -> tuple[Interval, Interval | None]:
    options: dict[str, Any] = {
        # Apart from the orders' key; the same for all, so that intervals are paired.
        "key": jax.random.key(config.seed + 1),
        "num_resamples": config.resamples,
        "level": config.level,
    }
    if base is None or against is None:
        return bootstrap(values, **options), None
    empty = Interval(*np.full((3, len(values)), np.nan))
    whole = Comparison(empty, Interval(*np.full((3, len(values)), np.nan)))
    for index in np.unique(against):
        part = against == index
        found = compare(
            {"policy": values[part], "baseline": base[index]}, baseline="baseline", **options
        )["policy"]
        for target, source in zip(whole, found, strict=True):
            for into, value in zip(target, source, strict=True):
                into[part] = value
    return whole.value, whole.difference


def _selection(each: Replayed, show: ShowConfig) -> tuple[str | None, dict[str, Any], np.ndarray]:
    """The argument that the curve runs over, the others' values on it, and its settings."""
    varying = each.entry.varying
    order = ([show.over] if show.over else []) + [*CURVES, *varying]
    over = next((name for name in order if name in varying), None)
    fixed = {}
    for name in varying:
        if name == over:
            continue
        values = sorted({setting[name] for setting in each.settings})
        wanted = getattr(show, name, None)
        fixed[name] = values[-1] if wanted is None else min(values, key=lambda v: abs(v - wanted))
    shown = [
        index
        for index, setting in enumerate(each.settings)
        if all(setting[name] == value for name, value in fixed.items())
    ]
    return over, fixed, np.array(shown)


# Tables -------------------------------------------------------------------------------------------


def _known(summaries: list[Summarised]) -> list[str]:
    """The metrics that are known for every setting."""
    return [
        metric
        for metric in METRICS
        if all(not np.isnan(s.metrics[metric][0].mean).any() for s in summaries)
    ]


def _table(
    summaries: list[Summarised], pool: Pool, config: ReplayConfig, left_out: list[str]
) -> Table:
    known = _known(summaries)
    cost = "tokens" if "tokens" in known else "samples"
    value = "accuracy" if "accuracy" in known else "score"
    in_words = _percent if value == "accuracy" else _number
    against = config.baseline is not None

    def interval(metric: str, which: int, sign: str) -> Callable[[Summarised, int], str]:
        def cell(s: Summarised, index: int) -> str:
            found = s.metrics[metric][which]
            assert found is not None  # differences are asked for only where there is a baseline
            return in_words(found.mean[index], found.low[index], found.high[index], sign)

        return cell

    def mean(metric: str, form: str) -> Callable[[Summarised, int], str]:
        return lambda s, i: format(s.metrics[metric][0].mean[i], form)

    columns: dict[str, Callable[[Summarised, int], str]] = {}
    if value in known:
        columns[value if value == "score" else "accuracy, %"] = interval(value, 0, "")
        if against:
            columns["difference"] = interval(value, 1, "+")
    columns["samples"] = mean("samples", ".1f")
    if cost == "tokens":
        columns["tokens"] = mean("tokens", ",.0f")
    if against:
        columns["saved, %"] = lambda s, i: _saved(*s.metrics[cost], i)
    if value == "accuracy" and "score" in known:
        columns["score"] = mean("score", ".3f")

    notes = [*left_out, *(note for s in summaries for note in _notes(s))]
    notes.append(f"±: half the width of the {config.level:.0%} interval; its ends: summary.csv")
    if against:
        notes.append(
            f"difference, and {cost} saved: against {config.baseline} with the same cap on samples "
            "if there is one, else with its largest"
        )
    orders = "stored order" if config.permutations == 0 else f"{config.permutations} permutations"
    return Table(
        title=f"{Path(str(config.pool)).stem}: {pool.num_problems} problems x "
        f"{pool.num_samples} completions, {orders}",
        columns=["policy", "setting", *columns],
        rows=[
            [
                s.of.entry.label,
                _shown_setting(s, s.of.settings[index]),
                *(cell(s, index) for cell in columns.values()),
            ]
            for s in summaries
            for index in s.shown.tolist()
        ],
        notes=notes,
    )


def _percent(mean: float, low: float, high: float, sign: str) -> str:
    # Adding 0 makes a rounded -0.0 positive.
    return f"{round(100 * mean, 1) + 0.0:{sign}.1f} ±{50 * (high - low):.1f}"


def _number(mean: float, low: float, high: float, sign: str) -> str:
    return f"{round(mean, 3) + 0.0:{sign}.3f} ±{(high - low) / 2:.3f}"


def _saved(spent: Interval, difference: Interval | None, index: int) -> str:
    """The share of the baseline's cost that a setting does without."""
    assert difference is not None
    baseline = spent.mean[index] - difference.mean[index]
    # Adding 0 makes a rounded -0.0 positive.
    share = round(-100 * difference.mean[index] / baseline) + 0 if baseline > 0 else ""
    return str(share)


def _shown_setting(s: Summarised, setting: dict[str, Any]) -> str:
    if s.over is None:
        return describe(setting, s.of.entry.name)
    return f"{s.over}={setting[s.over]}"


def _notes(s: Summarised) -> list[str]:
    """What the rows of a policy have in common, and how many of its settings they leave out."""
    if s.over is None:
        return []
    first = s.of.settings[s.shown[0]]
    # min_samples follows max_samples where it is the paper's.
    words = [
        word
        for word in describe(first, s.of.entry.name).split()
        if word.split("=")[0] not in (s.over, *(["min_samples"] if s.over == "max_samples" else []))
    ]
    left_out = len(s.of.settings) - len(s.shown)
    more = f"; {left_out} more settings in summary.csv" if left_out else ""
    return [f"{s.of.entry.label}: {' '.join(words)}{more}"] if words or more else []


# Files --------------------------------------------------------------------------------------------


def _write(
    folder: Path, summaries: list[Summarised], table: Table, pool: Pool, config: ReplayConfig
) -> None:
    write_csv(folder / "results.csv", _results(summaries, config))
    write_csv(folder / "summary.csv", _summary(summaries, config))
    (folder / "summary.md").write_text(table.to_markdown(), encoding="utf-8")
    if config.per_problem:
        _write_per_problem(folder / "per_problem.csv", summaries, pool, config)
    if config.outcomes:
        write_outcomes(folder / "outcomes.npz", [s.of for s in summaries], pool)
    _draw(folder, summaries, config)
    header = "# The configuration as it ran: python -m eval.replay --config THIS_FILE\n"
    (folder / "config.yaml").write_text(header + to_yaml(config), encoding="utf-8")
    (folder / "versions.json").write_text(json.dumps(_versions(pool, config), indent=1) + "\n")


def _arguments(summaries: list[Summarised]) -> list[str]:
    """All arguments that a policy of the comparison has, in the configuration's order."""
    present = {name for s in summaries for setting in s.of.settings for name in setting}
    order = [field.name for field in dataclasses.fields(PolicyConfig)]
    return [name for name in order if name in present and name != "prior"]


def _argument_columns(summaries: list[Summarised], repeats: int) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"policy": [], "label": [], "setting": []}
    names = _arguments(summaries)
    columns |= {name: [] for name in names}
    priors = [f.name for f in dataclasses.fields(PriorConfig)]
    with_prior = any(s["prior"] for r in summaries for s in r.of.settings if "prior" in s)
    if with_prior:
        columns |= {f"prior_{name}": [] for name in priors}
    for s in summaries:
        for setting in s.of.settings:
            row: dict[str, Any] = {name: setting.get(name) for name in names}
            if with_prior:
                prior = setting.get("prior")
                row |= {f"prior_{n}": getattr(prior, n, None) for n in priors}
            row["policy"], row["label"] = s.of.entry.name, s.of.entry.label
            row["setting"] = describe(setting, s.of.entry.name)
            for name, values in columns.items():
                cell = int(row[name]) if isinstance(row[name], bool) else row[name]
                values += ["" if cell is None else cell] * repeats
    return columns


def _permutation_numbers(config: ReplayConfig) -> np.ndarray:
    return np.arange(1, config.permutations + 1) if config.permutations else np.zeros(1, int)


def _results(summaries: list[Summarised], config: ReplayConfig) -> dict[str, list[Any]]:
    numbers = _permutation_numbers(config)
    columns = _argument_columns(summaries, len(numbers))
    means = []
    for s in summaries:
        result = s.of.result
        means.append(
            summarise(
                num_samples=result.num_samples,
                correct=result.correct,
                tokens=result.tokens,
                score=result.score,
                per_permutation=True,
            )
        )
    columns["permutation"] = numbers.tolist() * sum(len(s.of.settings) for s in summaries)
    for column, field in (
        ("accuracy", "accuracy"),
        ("mean_samples", "num_samples"),
        ("mean_tokens", "tokens"),
        ("mean_score", "score"),
    ):
        columns[column] = cells(np.concatenate([getattr(mean, field) for mean in means]))
    return columns


def _summary(summaries: list[Summarised], config: ReplayConfig) -> dict[str, list[Any]]:
    columns = _argument_columns(summaries, 1)
    for metric in METRICS:
        mean = metric if metric == "accuracy" else f"mean_{metric}"
        for which, name in enumerate((mean, f"{metric}_difference")):
            for part, suffix in zip(Interval._fields, ("", "_low", "_high"), strict=True):
                if which and config.baseline is None:
                    continue
                columns[name + suffix] = cells(
                    np.concatenate([getattr(s.metrics[metric][which], part) for s in summaries])
                )
    if config.baseline is not None:
        base = next(s.of for s in summaries if s.of.entry.label == config.baseline)
        columns["baseline_setting"] = [
            describe(base.settings[index], base.entry.name)
            for s in summaries
            if s.baseline is not None
            for index in s.baseline
        ]
    return columns


def _write_per_problem(
    path: Path, summaries: list[Summarised], pool: Pool, config: ReplayConfig
) -> None:
    numbers = _permutation_numbers(config)
    permutation = np.repeat(numbers, pool.num_problems).tolist()
    problems = pool.problem_ids.tolist() * len(numbers)
    reasons = np.array([reason.name.lower() for reason in sorted(StopReason)], object)
    with open(path, "w", encoding="utf-8", newline="") as file:
        heading = (
            "policy setting permutation problem_id n_samples tokens selected_index correct "
            "stop_reason"
        )
        write_rows(file, [[name] for name in heading.split()])
        for s in summaries:
            result = s.of.result
            for index, setting in enumerate(s.of.settings):
                selected, tokens = result.selected_index[index], result.tokens[index]
                correct = result.correct
                write_rows(
                    file,
                    [
                        itertools.repeat(s.of.entry.name, len(problems)),
                        itertools.repeat(describe(setting, s.of.entry.name), len(problems)),
                        permutation,
                        problems,
                        cells(result.num_samples[index]),
                        cells(tokens, unknown=tokens < 0),
                        cells(selected, unknown=selected < 0),
                        itertools.repeat("", len(problems))
                        if correct is None
                        else cells(correct[index]),
                        reasons[result.stop_reason[index]].ravel().tolist(),
                    ],
                )


def _draw(folder: Path, summaries: list[Summarised], config: ReplayConfig) -> None:
    # Matplotlib takes a second to import, which --help should not.
    from optscale_jax.report.figures import Curve, accuracy_against_tokens, save

    known = _known(summaries)
    value = "accuracy" if "accuracy" in known else "score"
    cost = "tokens" if "tokens" in known else "samples"
    if value not in known:
        return
    curves = []
    for s in summaries:
        y, x = s.metrics[value][0], s.metrics[cost][0].mean
        others = np.setdiff1d(np.arange(len(x)), s.shown)
        at = "".join(f", {name} = {shown}" for name, shown in s.fixed.items())
        curves.append(
            Curve(
                label=s.of.entry.label + at,
                x=x[s.shown],
                y=y.mean[s.shown],
                low=y.low[s.shown],
                high=y.high[s.shown],
                others_x=x[others] if len(others) else None,
                others_y=y.mean[others] if len(others) else None,
            )
        )
    figure = accuracy_against_tokens(curves, x=cost, y=value, level=config.level)
    save(figure, folder / "accuracy_vs_tokens")


def _versions(pool: Pool, config: ReplayConfig) -> dict[str, Any]:
    packages = {}
    for name in ("optscale-jax", "jax", "jaxlib", "tfp-nightly", "numpy", "matplotlib"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    digest = None
    if config.pool is not None and config.pool != SYNTHETIC:
        digest = checksum(config.pool)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(jax.devices()[0]),
        "packages": packages,
        "pool": {
            "path": config.pool,
            "sha256": digest,
            "problems": pool.num_problems,
            "completions": pool.num_samples,
        },
    }


main = command(ReplayConfig, run, __name__, configs="replay")

if __name__ == "__main__":
    sys.exit(main())
