"""Tables and figures of a comparison, tuned without looking at the answers that it is scored on.

    python -m eval.report --runs DIR... --out DIR
    python -m eval.report --pools FILE... --out DIR

takes folders that eval.replay wrote, or replays the paper's comparison over pools itself. The
output folder gets

    index.html       everything below on one page that needs no other file
    table.csv        the paper's main table: accuracy and tokens of each method for N = 8, 16, 32,
        .md .tex     64; the best in bold
    comparison.csv   the same with intervals, differences, savings, the settings chosen, what the
                     search on the test set would have claimed, and its optimism
    curves.csv       area under each method's curve, and tokens to reach best-of-N's accuracy
    NAME/            for each pool: its figures as .png and .pdf, and with --pools its outcomes.npz
                     and config.yaml, which make it a folder for --runs

Settings (s_min, alpha, windows, thresholds) are chosen on some folds of the problems and scored on
the others. Methods that no pool can serve are left out, and the page says why.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from rich.console import Console
from rich.table import Table as RichTable

from eval import replay
from optscale_jax import Pool
from optscale_jax.cli import command, output_folder, parse, progress, to_yaml
from optscale_jax.cli.pools import ReadConfig, checksum, load_pool
from optscale_jax.errors import InputError, bad_input
from optscale_jax.estimation import Params
from optscale_jax.report.paper_table import PaperTable, paper_table
from optscale_jax.report.tables import write_csv
from optscale_jax.shipped import located
from optscale_jax.study.comparison import (
    ORACLE,
    Frontier,
    Method,
    Options,
    Row,
    Run,
    compare_methods,
    frontiers,
    sensitivity,
)
from optscale_jax.study.goodness_of_fit import calibrate, realised_alpha, verdict
from optscale_jax.study.outcomes import (
    Replayed,
    leave_out,
    read_outcomes,
    replay_entries,
    write_outcomes,
)
from optscale_jax.study.registry import PriorConfig, describe
from optscale_jax.study.statistics import best_at_k, majority_at_k, pass_at_k
from optscale_jax.study.tuning import Aim

__all__ = ["AimConfig", "ReportConfig", "main", "run_of", "run_of_replayed"]

COMPARISON = "paper_table"
PAPER_N = (8, 16, 32, 64)
BENCHMARKS_ACROSS = 3  # of the table in the terminal
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
# Where the calibration is looked at, as quantiles of all scores.
S_MIN_QUANTILES = (0.5, 0.75, 0.9)
FIGURES = (
    "accuracy_vs_tokens",
    "tokens_vs_n",
    "sensitivity_s_min",
    "sensitivity_alpha",
    "scores",
    "calibration",
)
FILES = ("index.html", "table.csv", "table.md", "table.tex", "comparison.csv", "curves.csv")
OUTPUTS = (
    *FILES,
    *(f"*/{name}.{suffix}" for name in FIGURES for suffix in ("png", "pdf")),
)


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
    out: str = "runs/report"

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the first such field.
        """
        least = {"permutations": 0, "folds": 2, "seed": 0, "resamples": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {smallest}")
        if not 0 < self.level < 1:
            raise ValueError(f"level is {self.level}; it must be in (0, 1)")
        if not self.runs and not self.pools:
            raise ValueError("nothing to report on; give --runs DIR... or --pools FILE...")
        given = len(self.runs) + len(self.pools)
        if self.names is not None and len(self.names) != given:
            raise ValueError(f"names are {len(self.names)}, but there are {given} runs and pools")
        self.aim.build()


class Source(NamedTuple):
    """What is reported on under one heading of a section.

    Attributes:
        run: The outcomes.
        pool: The pool, for what concerns its scores; None if it is no longer there.
        folder: The name of its folder in the report.
        about: A sentence: how many problems, completions and orders.
        notes: What is left out, and why.
        files: Name to text, or a function that writes the file, for the folder.
    """

    run: Run
    pool: Pool | None
    folder: str
    about: str
    notes: list[str]
    files: dict[str, Any]


class Section(NamedTuple):
    """One source's findings."""

    source: Source
    rows: list[Row]
    frontiers: list[Frontier]
    figures: list[tuple[str, Any, str, str]]  # (file name, figure, heading, caption)
    findings: list[str]
    trusted: bool | None


def run(config: ReportConfig) -> None:
    """Collects, tunes, draws, writes the files and shows the table.

    Args:
        config: What to report on.

    Raises:
        InputError: If the configuration, a run or a pool cannot be used.
    """
    out = Path(config.out)
    sources = [_read_run(Path(path)) for path in config.runs]
    # All are read before the first is replayed: a bad one should not cost the others' time.
    pools = [(path, load_pool(path, config)) for path in config.pools]
    comparison = _comparison(config) if pools else None
    with output_folder(out, OUTPUTS) as folder, progress() as bar:
        task = bar.add_task("", total=2 * len(pools) + len(sources) + 1)
        for path, pool in pools:
            assert comparison is not None
            bar.update(task, description=f"replaying {Path(path).stem}")
            sources.append(_replay(path, pool, comparison, config))
            bar.advance(task)
        sources = _named(sources, config)
        options = Options(
            config.aim.build(), config.folds, config.seed, config.level, config.resamples
        )
        sections = []
        for source in sources:
            bar.update(task, description=f"tuning on {source.run.name}")
            sections.append(_section(source, options, config))
            bar.advance(task)
        bar.update(task, description="writing")
        table = _paper_table(sections, config)
        _write(folder, sections, table, config)
        bar.advance(task)
    _show(table)
    print(f"report: {out / 'index.html'}")


# What is reported on ------------------------------------------------------------------------------


def _comparison(config: ReportConfig) -> replay.ReplayConfig:
    file = config.comparison or COMPARISON
    comparison = parse(replay.ReplayConfig, ["--config", file], configs="replay")
    if config.priors is None:
        return comparison
    plain = comparison.policy
    if plain.name != "optscale" or plain.prior != PriorConfig():
        raise InputError(f"{file}: policy must be optscale without a prior for priors to join it")
    learned = dataclasses.replace(plain, label="OptScaleᵗ", prior=PriorConfig(file=config.priors))
    return dataclasses.replace(comparison, compare=[learned, *comparison.compare])


def _replay(path: str, pool: Pool, comparison: replay.ReplayConfig, config: ReportConfig) -> Source:
    permutations = 0 if pool.kind == "sequential" else config.permutations
    read = {field.name: getattr(config, field.name) for field in dataclasses.fields(ReadConfig)}
    ran = dataclasses.replace(
        comparison, pool=path, permutations=permutations, seed=config.seed, **read
    )
    entries, notes = leave_out(replay.entries_of(ran), pool, permutations)
    if not entries:
        raise InputError(f"{path}: no method is left: {notes[0]}")
    if ran.baseline not in [entry.label for entry in entries]:
        ran = dataclasses.replace(ran, baseline=None)
    replayed = replay_entries(
        pool, entries, source=path, seed=config.seed, num_permutations=permutations
    )
    name = _name_of(path)
    return Source(
        run=run_of_replayed(name, replayed),
        pool=pool,
        folder=name,
        about=_about(pool.num_problems, pool.num_samples, max(permutations, 1), permutations == 0),
        notes=notes,
        files={
            "outcomes.npz": lambda file: write_outcomes(file, replayed, pool),
            "config.yaml": to_yaml(ran),
        },
    )


def _read_run(folder: Path) -> Source:
    methods, outcomes, _ = read_outcomes(folder)
    given: dict[str, Any] = {}
    config_file = folder / "config.yaml"
    if config_file.is_file():
        try:
            given = yaml.safe_load(config_file.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{config_file}: not valid YAML") from error
    notes: list[str] = []
    pool = None
    path = given.get("pool")
    if path:
        pool, missing = _pool_of_run(folder, given)
        notes += [missing] if missing else []
    name = _name_of(path) if path and path != replay.SYNTHETIC else folder.resolve().name
    shape = outcomes["num_samples"].shape
    deepest = max(max(method["caps"]) for method in methods)
    depth = deepest if pool is None else pool.num_samples
    return Source(
        run=run_of(name, methods, outcomes),
        pool=pool,
        folder=name,
        about=_about(shape[2], depth, shape[1], given.get("permutations") == 0),
        notes=notes,
        files={},
    )


def _pool_of_run(folder: Path, given: dict[str, Any]) -> tuple[Pool | None, str]:
    """The pool that a run replayed, or None and why."""
    path = str(given["pool"])
    config = parse(
        replay.ReplayConfig,
        ["--config", str(folder / "config.yaml")],
        prog="python -m eval.replay",
        description="",
    )
    if path == replay.SYNTHETIC:
        return replay.load(config), ""
    if not Path(located(path)).exists():
        return None, f"its pool, {path}, is no longer there: no figures of scores"
    versions = folder / "versions.json"
    if versions.is_file():
        try:
            known = json.loads(versions.read_text(encoding="utf-8"))["pool"]["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{versions}: not what eval.replay writes; run it again") from error
        if known is not None and known != checksum(path):
            return None, f"its pool, {path}, is another one now: no figures of scores"
    return load_pool(path, config), ""


def _name_of(path: str) -> str:
    file = Path(path)
    return file.stem if file.suffix else file.resolve().name


def _about(problems: int, completions: int, orders: int, stored: bool) -> str:
    order = "in their stored order" if stored else f"in {orders} random orders"
    return f"{problems} problems x {completions} completions, {order}"


def run_of_replayed(name: str, replayed: Sequence[Replayed]) -> Run:
    """A run from what `replay_entries` gives."""
    outcomes = {
        field: np.concatenate([getattr(each.result, field) for each in replayed])
        for field in ("num_samples", "tokens", "score")
    }
    correct = [each.result.correct for each in replayed if each.result.correct is not None]
    if correct:
        outcomes["correct"] = np.concatenate(correct)
    methods = [
        {
            "policy": each.entry.name,
            "label": each.entry.label,
            "caps": each.caps.tolist(),
            "settings": each.settings,
        }
        for each in replayed
    ]
    return run_of(name, methods, outcomes)


def run_of(name: str, methods: list[dict[str, Any]], outcomes: dict[str, np.ndarray]) -> Run:
    """A run from what `read_outcomes` gives: correctness and tokens, or what stands for them."""
    correct = outcomes.get("correct")
    value = np.nan_to_num(outcomes["score"]) if correct is None else correct
    known = bool((outcomes["tokens"] >= 0).all())
    cost = outcomes["tokens"] if known else outcomes["num_samples"]
    found, start = [], 0
    for method in methods:
        part = slice(start, start + len(method["caps"]))
        start = part.stop
        found.append(
            Method(
                policy=method["policy"],
                label=method["label"],
                settings=method["settings"],
                caps=np.array(method["caps"]),
                value=value[part].astype(float),
                cost=cost[part].astype(float),
                samples=outcomes["num_samples"][part].astype(float),
            )
        )
    return Run(
        name, found, "score" if correct is None else "accuracy", "tokens" if known else "samples"
    )


def _named(sources: list[Source], config: ReportConfig) -> list[Source]:
    """The sources under their headings, each with a folder of its own."""
    names = config.names or [source.run.name for source in sources]
    seen: dict[tuple[str, str], str] = {}
    folders: dict[str, int] = {}
    found = []
    for name, source in zip(names, sources, strict=True):
        for method in source.run.methods:
            if (name, method.label) in seen:
                raise InputError(
                    f"{name}: {method.label} is there twice; give each of runs and pools a name "
                    "of its own with --names"
                )
            seen[name, method.label] = source.folder
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".") or "pool"
        folders[safe] = folders.get(safe, 0) + 1
        folder = safe if folders[safe] == 1 else f"{safe}.{folders[safe]}"
        run_named = dataclasses.replace(source.run, name=name)
        found.append(source._replace(run=run_named, folder=folder))
    return found


# What is found ------------------------------------------------------------------------------------


def _caps(run: Run, config: ReportConfig) -> list[int]:
    there = sorted({int(cap) for method in run.methods for cap in method.caps})
    if config.n is not None:
        return [cap for cap in config.n if cap in there]
    return [cap for cap in PAPER_N if cap in there] or there


def _section(source: Source, options: Options, config: ReportConfig) -> Section:
    run_ = source.run
    with bad_input(run_.name, (ValueError,)):
        rows = compare_methods(run_, _caps(run_, config), options)
        if not rows:
            raise InputError(f"{run_.name}: no method has an N of {config.n}")
        found = frontiers(run_, options)
    figures, findings = [], []
    figures += _policy_figures(run_, rows, found, options)
    trusted = None
    if source.pool is not None and source.pool.has_scores:
        model_figures, sentence = _model(source.pool, config)
        figures += model_figures
        trusted = sentence.startswith("The truncated normal fits")
        findings.append(sentence)
    findings += _findings(run_, rows)
    if source.pool is not None:
        findings += _of_pool(source.pool)
    return Section(source, rows, found, figures, findings, trusted)


def _policy_figures(
    run_: Run, rows: list[Row], found: list[Frontier], options: Options
) -> list[tuple[str, Any, str, str]]:
    # Matplotlib takes a second to import, which --help should not.
    from optscale_jax.report.figures import (
        Curve,
        accuracy_against_tokens,
        sensitivity_panels,
        tokens_against_n,
    )

    many = {f.label: len(m.settings) > 8 for f, m in zip(found, run_.methods, strict=True)}
    curves = [
        Curve(
            f.label,
            f.cost,
            f.value,
            # The problems' own spread is common to all curves; more than one band would hide them.
            f.low if index == 0 else None,
            f.high if index == 0 else None,
            f.every_cost if many[f.label] else None,
            f.every_value if many[f.label] else None,
        )
        for index, f in enumerate(found)
    ]
    figures = [
        (
            "accuracy_vs_tokens",
            accuracy_against_tokens(curves, x=run_.cost, y=run_.value, level=options.level),
            f"{run_.value.capitalize()} against {run_.cost}",
            "Each point: the setting that is best within a budget on the other folds of the "
            "problems. Dots: every setting, as the search on the test set sees them. Band: "
            f"{options.level:.0%} interval of {found[0].label}, over problems and orders; the "
            "differences in the table below, which are paired, are known far better.",
        )
    ]
    labels = list(dict.fromkeys(row.method.label for row in rows))
    by_n = []
    for label in labels:
        mine = [row for row in rows if row.method.label == label]
        by_n.append(
            Curve(
                label,
                np.array([float(row.cap) for row in mine]),
                np.array([float(row.cost.mean) for row in mine]),
            )
        )
    figures.append(
        (
            "tokens_vs_n",
            tokens_against_n(by_n, cost=run_.cost),
            f"{run_.cost.capitalize()} against N",
            "Settings chosen by cross-fitting, as in the table, which has the intervals. Rules "
            "that always draw N coincide.",
        )
    )
    for argument, other in (("s_min", {"alpha": 0.95}), ("alpha", {"s_min": 0.95})):
        parts = sensitivity(run_, argument, other, options)
        groups: dict[str, list[Any]] = {}
        for part in parts:
            held = ", ".join(f"{name} = {value:g}" for name, value in part.fixed.items())
            title = f"{part.label}, {held}" if held else part.label
            deepest = part.cap == max(p.cap for p in parts if p.label == part.label)
            curve = Curve(
                f"N = {part.cap}",
                part.x,
                part.value,
                part.low if deepest else None,
                part.high if deepest else None,
            )
            groups.setdefault(title, []).append((curve, part.cost))
        if groups:
            figures.append(
                (
                    f"sensitivity_{argument}",
                    sensitivity_panels(
                        list(groups.items()),
                        argument=argument,
                        y=run_.value,
                        cost=run_.cost,
                        level=options.level,
                    ),
                    f"Sensitivity to {argument}",
                    f"{run_.value.capitalize()} (left) and {run_.cost} (right) as {argument} "
                    f"changes and nothing else does. Band: {options.level:.0%} interval at the "
                    "largest N.",
                )
            )
    return figures


def _model(pool: Pool, config: ReportConfig) -> tuple[list[tuple[str, Any, str, str]], str]:
    from optscale_jax.report.model_figures import calibration_panels, score_histograms

    assert pool.scores is not None
    found = calibrate(pool, key=jax.random.key(config.seed + 2))
    params = Params(jnp.asarray(found.loc), jnp.asarray(found.scale))
    targets = np.unique(np.quantile(pool.scores[pool.mask], S_MIN_QUANTILES).round(3))
    realised = [
        (float(s), [realised_alpha(pool, float(s), alpha, params=params) for alpha in ALPHAS])
        for s in targets
        if 0 < s < 1
    ]
    figures = [
        (
            "scores",
            score_histograms(pool, found),
            "Scores, and the law fitted to them",
            "All problems together, and problems spread evenly over the ranks of their mean score.",
        ),
        (
            "calibration",
            calibration_panels(found, realised),
            "Does the law fit?",
            f"Mean Kolmogorov-Smirnov distance {found.ks.mean():.3f} a problem, against "
            f"{found.ks_expected:.3f} for as many scores of the law itself. Realised: the share of "
            "problems whose best of N* scores reaches s_min, over those with enough completions; "
            "s_min at the median and the 75th and 90th percentile of all scores.",
        ),
    ]
    return figures, verdict(found)


def _findings(run_: Run, rows: list[Row]) -> list[str]:
    """Sentences on the deepest N: what is saved, what peeking would have claimed."""
    deepest = max(row.cap for row in rows)
    found = []
    for row in rows:
        if row.cap != deepest or len(row.indices) < 2:
            continue
        words = f"{row.method.label} at N = {deepest}: {_value(run_, row.value.mean)}"
        words += f" for {row.cost.mean:,.0f} {run_.cost} a problem"
        if row.baseline is not None:
            low, high = (_difference(run_, v) for v in (row.difference.low, row.difference.high))
            words += (
                f", {_difference(run_, row.difference.mean)} ({low} to {high}) against "
                f"{row.baseline} and {row.saved:.0%} fewer {run_.cost}"
            )
        claimed = float(row.fit.oracle_correct.mean())
        words += (
            f". Tuned on the test set it would claim {_value(run_, claimed)} for "
            f"{row.fit.oracle_tokens.mean():,.0f}: an optimism of "
            f"{_difference(run_, row.fit.optimism_accuracy)} and "
            f"{row.fit.optimism_tokens:+,.0f} {run_.cost}."
        )
        found.append(words)
    return found


def _of_pool(pool: Pool) -> list[str]:
    """pass@k, best-of-k and maj@k, which no stopping rule enters."""
    if pool.correct is None or pool.kind == "sequential":
        return []
    k = int(min(pool.samples_per_problem.min(), 64))
    words = [f"pass@1 {pass_at_k(pool, 1).mean():.1%}, pass@{k} {pass_at_k(pool, k).mean():.1%}"]
    if pool.has_scores:
        words.append(f"best@{k} {best_at_k(pool, k).mean():.1%}")
    if pool.has_answers and pool.gold is not None:
        words.append(f"maj@{k} {majority_at_k(pool, k).mean():.1%}")
    return [", ".join(words) + " (unbiased, over all subsets of the completions)."]


def _value(run_: Run, value: Any) -> str:
    return f"{float(value):.1%}" if run_.value == "accuracy" else f"score {float(value):.3f}"


def _difference(run_: Run, value: Any) -> str:
    percent = run_.value == "accuracy"
    return f"{100 * float(value):+.1f} points" if percent else f"{float(value):+.3f}"


# Files --------------------------------------------------------------------------------------------


def _paper_table(sections: list[Section], config: ReportConfig) -> PaperTable:
    rows: dict[str, list[Row]] = {}
    headings: dict[str, tuple[str, str]] = {}
    for section in sections:
        run_ = section.source.run
        value = "accuracy, %" if run_.value == "accuracy" else "score"
        if headings.setdefault(run_.name, (value, run_.cost)) != (value, run_.cost):
            raise InputError(
                f"{run_.name}: its runs count different things ({', '.join(headings[run_.name])} "
                f"and {value}, {run_.cost}); give them different names with --names"
            )
        rows.setdefault(run_.name, []).extend(section.rows)
    aim = config.aim.build()
    bases = dict.fromkeys(row.baseline for rs in rows.values() for row in rs if row.baseline)
    chosen = (
        f"fewest tokens of those that lose at most {100 * aim.max_loss:g}% of the problems against "
        f"{' or '.join(bases) or 'best-of-N'} with the same N"
        if aim.max_loss is not None
        else f"most accurate of those that spend at most {aim.max_tokens:g}"
    )
    notes = [
        f"Settings are chosen on the other folds of the problems ({config.folds}-fold "
        f"cross-fitting): {chosen}.",
        f"±: half the width of the {config.level:.0%} bootstrap interval over problems and "
        "permutations. Bold: the best of each N.",
    ]
    policies = {row.method.policy for section in sections for row in section.rows}
    if "mr_thinking" not in policies:
        notes.append(
            "MR-Thinking is left out: it needs a sequential pool (--pools FILE --kind sequential)."
        )
    if ORACLE in policies:
        notes.append(
            "The oracle knows each problem's law of scores beforehand; it shows what OptScale "
            "could save, and does not compete for bold."
        )
    return paper_table("Accuracy and tokens per problem", rows, headings, notes=notes)


def _write(folder: Path, sections: list[Section], table: PaperTable, config: ReportConfig) -> None:
    from optscale_jax.report.figures import save

    (folder / "table.csv").write_text(table.to_csv(), encoding="utf-8")
    (folder / "table.md").write_text(table.to_markdown(), encoding="utf-8")
    (folder / "table.tex").write_text(table.to_latex(), encoding="utf-8")
    write_csv(folder / "comparison.csv", _columns(_comparison_rows(sections)))
    write_csv(folder / "curves.csv", _columns(_curve_rows(sections)))
    for section in sections:
        own = folder / section.source.folder
        own.mkdir()
        for name, figure, _, _ in section.figures:
            save(figure, own / name)
        for name, content in section.source.files.items():
            if isinstance(content, str):
                (own / name).write_text(content, encoding="utf-8")
            else:
                content(own / name)
    (folder / "index.html").write_text(_page(sections, table), encoding="utf-8")


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    def cell(value: Any) -> Any:
        if isinstance(value, float | np.floating):
            return "" if np.isnan(value) else float(value)
        return value

    return {name: [cell(row[name]) for row in rows] for name in rows[0]}


def _comparison_rows(sections: list[Section]) -> list[dict[str, Any]]:
    found = []
    for section in sections:
        run_ = section.source.run
        for row in section.rows:
            words: dict[str, Any] = {
                "pool": run_.name,
                "N": row.cap,
                "policy": row.method.policy,
                "method": row.method.label,
            }
            for name, interval in (
                (run_.value if run_.value == "accuracy" else "score", row.value),
                ("tokens", row.cost if run_.cost == "tokens" else None),
                ("samples", row.samples),
                ("difference", row.difference),
            ):
                for part in ("mean", "low", "high"):
                    key = name if part == "mean" else f"{name}_{part}"
                    words[key] = np.nan if interval is None else getattr(interval, part)
            fit = row.fit
            words |= {
                "baseline": row.baseline or "",
                "saved": row.saved,
                "share_of_oracle_saving": row.share_of_saving,
                "settings": " / ".join(
                    _describe(row, index) for index in dict.fromkeys(fit.chosen.tolist())
                ),
                "on_test_set_setting": _describe(row, fit.oracle),
                "on_test_set_value": fit.oracle_correct.mean(),
                "on_test_set_cost": fit.oracle_tokens.mean(),
                "optimism_value": fit.optimism_accuracy,
                "optimism_cost": fit.optimism_tokens,
            }
            # Pools with and without correctness share the file.
            words.setdefault("accuracy", np.nan)
            for suffix in ("_low", "_high"):
                words.setdefault(f"accuracy{suffix}", np.nan)
            for suffix in ("", "_low", "_high"):
                words.setdefault(f"score{suffix}", np.nan)
            found.append(words)
    order = list(found[0])
    return [{name: row[name] for name in order} for row in found]


def _describe(row: Row, index: int) -> str:
    return describe(row.method.settings[row.indices[index]], row.method.policy)


def _curve_rows(sections: list[Section]) -> list[dict[str, Any]]:
    return [
        {
            "pool": section.source.run.name,
            "method": f.label,
            "value": section.source.run.value,
            "cost": section.source.run.cost,
            "area_under_curve": f.area,
            "area_under_curve_on_test_set": f.area_peeking,
            "cost_to_reach_baseline": f.reach_cost,
            "difference_then": f.reach_difference,
            "cost_to_reach_baseline_on_test_set": f.reach_peeking,
        }
        for section in sections
        for f in section.frontiers
    ]


def _page(sections: list[Section], table: PaperTable) -> str:
    from optscale_jax.report.page import document, section

    parts = [section("Every method, every N", "table", [table.to_html()])]
    links = [("table", "Table")]
    for each in sections:
        links.append((each.source.folder, each.source.run.name))
        parts.append(section(each.source.run.name, each.source.folder, _section_parts(each)))
    return document("Adaptive best-of-N: every method compared", parts, links)


def _section_parts(each: Section) -> list[str]:
    from optscale_jax.report.page import figure_html, list_html, paragraph, table_html

    run_ = each.source.run
    parts = [paragraph(each.source.about + ".")]
    sentences = list(each.findings)
    if each.trusted is not None:
        parts.append(paragraph(sentences.pop(0), "" if each.trusted else "warning"))
    parts.append(list_html(sentences))
    if each.source.notes:
        parts += ["<h3>Left out</h3>", list_html(each.source.notes)]
    unit = "points" if run_.value == "accuracy" else "score"
    scale = 100 if run_.value == "accuracy" else 1
    heads = ["N", "method", "settings chosen", f"difference, {unit}", f"{run_.cost} saved, %"]
    heads += ["share of the oracle's saving, %", f"optimism, {unit}", f"optimism, {run_.cost}"]
    digits = 1 if scale == 100 else 3
    rows = []
    for row in each.rows:
        tuned = len(row.indices) > 1
        chosen = dict.fromkeys(row.fit.chosen.tolist())
        rows.append(
            [
                str(row.cap),
                row.method.label,
                " / ".join(_short(row, index) for index in chosen) if tuned else "",
                _or_dash(
                    scale * float(row.difference.mean),
                    f"+.{digits}f",
                    scale * float(row.difference.high - row.difference.low) / 2,
                ),
                _or_dash(100 * row.saved, ".0f"),
                _or_dash(100 * row.share_of_saving, ".0f"),
                _or_dash(scale * row.fit.optimism_accuracy, f"+.{digits}f") if tuned else "",
                _or_dash(row.fit.optimism_tokens, "+,.0f") if tuned else "",
            ]
        )
    parts += [
        "<h3>Cross-fitted, and the optimism of tuning on the test set</h3>",
        table_html(heads, rows, num_labels=3),
        paragraph(
            "Difference: from best-of-N (or else self-consistency) with the same N. Optimism: what "
            "the same search on the test set claims above the cross-fitted result. A share of the "
            "oracle's saving above 100 is possible: rules that look at what was drawn can stop "
            "earlier than a number fixed beforehand.",
            "note",
        ),
        "<h3>All settings and N together</h3>",
        table_html(
            [
                "method",
                "area under the curve" + (", %" if scale == 100 else ""),
                "tuned on the test set",
                f"{run_.cost} to reach the deepest baseline",
                f"difference then, {unit}",
                "tuned on the test set",
            ],
            [
                [
                    f.label,
                    _or_dash(scale * f.area, f".{digits}f"),
                    _or_dash(scale * f.area_peeking, f".{digits}f"),
                    _or_dash(f.reach_cost, ",.0f"),
                    _or_dash(scale * f.reach_difference, f"+.{digits}f"),
                    _or_dash(f.reach_peeking, ",.0f"),
                ]
                for f in each.frontiers
            ],
        ),
        paragraph(
            f"Area: mean {run_.value} over budgets between one completion and the baseline's "
            "largest, evenly in their logarithm; a budget below a method's cheapest setting counts "
            "as 0.",
            "note",
        ),
    ]
    parts += [figure_html(figure, head, caption) for _, figure, head, caption in each.figures]
    return parts


def _short(row: Row, index: int) -> str:
    words = _describe(row, index).split()
    return " ".join(
        word for word in words if word.split("=")[0] not in ("max_samples", "min_samples", "decide")
    )


def _or_dash(value: float, form: str, half: float | None = None) -> str:
    if np.isnan(value):
        return "–"
    text = format(value, form)
    return text if half is None else f"{text} ±{format(half, form.lstrip('+'))}"


def _show(table: PaperTable) -> None:
    console = Console()
    if not console.is_terminal:  # in a log, lines need not break
        console = Console(width=120)
    # A terminal is not wide enough for many benchmarks; the files are.
    for first in range(0, len(table.benchmarks), BENCHMARKS_ACROSS):
        part = slice(first, first + BENCHMARKS_ACROSS)
        shown = RichTable(title=table.title, title_justify="left")
        for index, name in enumerate(["N", "method"]):
            shown.add_column(name, justify="left" if index else "right")
        for name, pair in zip(table.benchmarks[part], table.headings[part], strict=True):
            for heading in pair:
                shown.add_column(f"{name}\n{heading}", justify="right", overflow="fold")
        for cap, rows in table.blocks.items():
            for index, (label, pairs) in enumerate(rows):
                cells = [cell for pair in pairs[part] for cell in (pair or (None, None))]
                texts = (
                    "" if c is None else f"[bold]{c.text}[/]" if c.best else c.text for c in cells
                )
                shown.add_row(
                    str(cap) if index == 0 else "",
                    label,
                    *texts,
                    end_section=index == len(rows) - 1,
                )
        console.print(shown)
    for note in table.notes:
        console.print(note, style="dim")


main = command(ReportConfig, run, __name__)

if __name__ == "__main__":
    sys.exit(main())
