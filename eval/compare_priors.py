"""What a prior is worth: OptScale with each kind of prior, and without, over one pool.

    python -m eval.compare_priors --checkpoint runs/predictor --problems problems.jsonl
        --pool pool.npz --out runs/priors

compares, at every N, rules that differ in the prior alone:

    OptScale^0         none; the law is (0.8, 0.2) until two scores are in
    pooled prior       one prior for all problems, fitted to the predictor's training labels
    authors' widths    the predicted mean and sd as loc and scale, with widths of 0.1
    OptScale^t         what the head reads off each problem, as sure as it is
    law known          the law that fits all of the problem's scores, and no doubt: what the best
                       of all predictors would make of the bound

Each chooses s_min, alpha and min_samples on other problems than those that it is scored on: fewest
tokens among the settings that lose at most `max_loss` against best-of-N (`study.tuning`).
Differences are paired, problem by problem and order by order. The predictor's tokens count. A note
says how many completions the prediction is worth: as many as explain as much of the variance of
problems' mean scores.

The output folder gets `summary.md`, `comparison.csv`, the figures `saving` and `accuracy_vs_tokens`
as .png and .pdf, and the priors as `learned.jsonl`, `pooled.jsonl` and `paper.jsonl`. Use problems
that the predictor was not trained on.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from eval import predict
from eval.report import run_of_replayed
from optscale_jax import Pool
from optscale_jax.cli import command, output_folder, progress, show
from optscale_jax.cli.pools import ReadConfig, load_pool
from optscale_jax.errors import bad_input
from optscale_jax.policies import PAPER_ALPHA, PAPER_S_MIN
from optscale_jax.predictor.errors import PredictorError
from optscale_jax.predictor.labels import labels_of_pool
from optscale_jax.predictor.predictor import Kind
from optscale_jax.report.tables import Table, write_csv
from optscale_jax.study.comparison import Options, Row, Run, compare_methods, frontiers
from optscale_jax.study.metrics import Interval
from optscale_jax.study.outcomes import ORACLE, leave_out, replay_entries
from optscale_jax.study.registry import Entry, PolicyConfig, PriorConfig, describe, expand
from optscale_jax.study.tuning import Aim

__all__ = ["ComparePriorsConfig", "main"]

LABELS: dict[Kind | None, str] = {
    None: "OptScale⁰",
    "pooled": "pooled prior",
    "paper": "authors' widths",
    "learned": "OptScaleᵗ",
}
KNOWN = "law known"
FIGURES = ("saving", "accuracy_vs_tokens")
OUTPUTS = (
    "summary.md",
    "comparison.csv",
    *(f"{kind}.jsonl" for kind in get_args(Kind)),
    *(f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "pdf")),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparePriorsConfig(ReadConfig):
    """What to compare on.

    Attributes:
        checkpoint: Folder of a predictor that train.predictor made. Needed.
        problems: JSON lines file with the ids and texts of the pool's problems, or what else
            eval.predict reads. Needed.
        pool: File of scored completions of these problems. Needed. The options of its format are
            above.
        model: Where the model of the features is, if not where it was in training.
        cache: Folder of the features' cache. null: features are not kept.
        n: The caps N.
        s_min: Grid of scores to reach, in [0, 1].
        alpha: Grid of probabilities of reaching them, inside (0, 1).
        min_samples: Grid of the scores to look at before the first decision, at least 1; those
            above an N are left out there.
        max_loss: Share of the problems that a setting may lose against best-of-N, in [0, 1].
        permutations: Random orders, at least 1.
        folds: Folds over problems, at least 2.
        seed: Of the orders, the folds and the bootstrap, at least 0.
        level: Coverage of the intervals, in (0, 1).
        resamples: Bootstrap resamples, at least 1.
        out: Folder for the files, made if it does not exist.
    """

    checkpoint: str | None = None
    problems: str | None = None
    pool: str | None = None
    model: str | None = None
    cache: str | None = "runs/features"
    n: list[int] = dataclasses.field(default_factory=lambda: [8, 16, 32, 64])
    s_min: list[float] = dataclasses.field(default_factory=lambda: list(PAPER_S_MIN))
    alpha: list[float] = dataclasses.field(default_factory=lambda: list(PAPER_ALPHA))
    min_samples: list[int] = dataclasses.field(default_factory=lambda: [1, 2, 3, 5, 10, 20])
    max_loss: float = 0.01
    permutations: int = 10
    folds: int = 5
    seed: int = 0
    level: float = 0.95
    resamples: int = 2000
    out: str = "runs/priors"

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the first such field.
        """
        for name in ("checkpoint", "problems", "pool"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is not given; use --{name} PATH")
        for name, least in (("permutations", 1), ("folds", 2), ("seed", 0), ("resamples", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.level < 1:
            raise ValueError(f"level is {self.level}; it must be in (0, 1)")
        if not self.n or min(self.n) < 1 or len(set(self.n)) < len(self.n):
            raise ValueError(f"n is {self.n}; it must be different numbers of at least 1")
        if min(self.min_samples, default=0) < 1 or min(self.min_samples) > min(self.n):
            raise ValueError("min_samples must be numbers of at least 1, one of them at most n")
        Aim(max_loss=self.max_loss)


def run(config: ComparePriorsConfig) -> None:
    """Predicts, replays, tunes, writes the files and shows the table.

    Args:
        config: What to compare on.

    Raises:
        InputError: If the predictor, the problems or the pool cannot be used.
    """
    assert config.pool is not None  # __post_init__
    pool = load_pool(config.pool, config)
    with output_folder(Path(config.out), OUTPUTS) as folder:
        for kind in get_args(Kind):
            predict.write_priors(
                predict.PredictConfig(
                    checkpoint=config.checkpoint,
                    problems=config.problems,
                    kind=kind,
                    model=config.model,
                    cache=config.cache,
                    out=str(folder / f"{kind}.jsonl"),
                )
            )
        entries = [_entry(config, kind, folder) for kind in LABELS]
        known = PolicyConfig(
            ORACLE,
            label=KNOWN,
            s_min=list(config.s_min),
            alpha=list(config.alpha),
            max_samples=list(config.n),
        )
        entries += expand(known, KNOWN)
        entries += expand(PolicyConfig("best_of_n", label="best-of-N", n=list(config.n)), "n")
        entries, notes = leave_out(entries, pool, config.permutations)
        with bad_input(config.pool, (PredictorError,)):
            notes = [_worth(pool, folder / "learned.jsonl"), *notes]
        with progress() as bar:
            task = bar.add_task("replaying", total=len(entries))
            replayed = replay_entries(
                pool,
                entries,
                source=config.pool,
                seed=config.seed,
                num_permutations=config.permutations,
                advance=lambda: bar.advance(task),
            )
        options = Options(
            Aim(max_loss=config.max_loss),
            config.folds,
            config.seed,
            config.level,
            config.resamples,
        )
        found = run_of_replayed(Path(config.pool).stem, replayed)
        with bad_input(config.pool, (ValueError,)):
            rows = compare_methods(found, config.n, options)
        pairs = _against(rows, options)
        table = _table(found, rows, pairs, config, notes)
        (folder / "summary.md").write_text(table.to_markdown(), encoding="utf-8")
        _write_csv(folder / "comparison.csv", rows, pairs)
        _draw(folder, found, rows, pairs, options)
    show(table.to_rich())
    print(f"results: {config.out}")


def _entry(config: ComparePriorsConfig, kind: Kind | None, folder: Path) -> Entry:
    """OptScale with one kind of prior and the whole grid."""
    prior = PriorConfig(file=None if kind is None else str(folder / f"{kind}.jsonl"))
    parts = []
    for cap in config.n:
        policy = PolicyConfig(
            "optscale",
            label=LABELS[kind],
            s_min=list(config.s_min),
            alpha=list(config.alpha),
            max_samples=cap,
            min_samples=[count for count in config.min_samples if count <= cap],
            prior=prior,
        )
        parts += expand(policy, LABELS[kind])
    return dataclasses.replace(
        parts[0],
        settings=[setting for part in parts for setting in part.settings],
        policies=[policy for part in parts for policy in part.policies],
    )


# What is found ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pair:
    """A row beside OptScale^0's of the same N.

    Attributes:
        tokens: Share of OptScale^0's tokens (or completions) spent more, with its interval.
        value: Accuracy (or score) above OptScale^0's, with its interval.
    """

    tokens: Interval
    value: Interval


def _against(rows: Sequence[Row], options: Options) -> list[Pair | None]:
    bases = {row.cap: row.fit for row in rows if row.method.label == LABELS[None]}
    found: list[Pair | None] = []
    for row in rows:
        base = bases.get(row.cap)
        if base is None or base is row.fit:
            found.append(None)
            continue
        more = (row.fit.tokens - base.tokens) / base.tokens.mean()
        both = options.interval(np.stack([more, row.fit.correct - base.correct]))
        found.append(Pair(*(Interval(*(part[i] for part in both)) for i in range(2))))
    return found


def _table(
    found: Run,
    rows: Sequence[Row],
    pairs: Sequence[Pair | None],
    config: ComparePriorsConfig,
    notes: Sequence[str],
) -> Table:
    accuracy = found.value == "accuracy"
    scale, digits = (100, 1) if accuracy else (1, 3)
    columns = ["N", "prior", "accuracy, %" if accuracy else "score", "against best-of-N"]
    columns += [found.cost, "saved, %", f"{found.cost} against OptScale⁰, %"]
    columns += ["accuracy against OptScale⁰" if accuracy else "score against OptScale⁰"]
    cells = []
    for row, pair in zip(rows, pairs, strict=True):
        line = [f"N = {row.cap}", row.method.label, f"{scale * float(row.value.mean):.{digits}f}"]
        line += [_words(row.difference, scale, digits)]
        line += [f"{float(row.cost.mean):,.{0 if found.cost == 'tokens' else 1}f}"]
        line += [f"{100 * row.saved:.1f}"]
        if pair is None:
            line += ["", ""]
        else:
            line += [_words(pair.tokens, 100, 1), _words(pair.value, scale, digits)]
        cells.append(line)
    unit = "points" if accuracy else "score"
    return Table(
        title=f"{found.name}: what a prior is worth",
        columns=columns,
        rows=cells,
        notes=[
            f"Settings chosen on the other folds of the problems ({config.folds}-fold "
            f"cross-fitting): fewest {found.cost} of those that lose at most {config.max_loss:.2%} "
            "against best-of-N.",
            f"Differences ({unit}, or % of {found.cost}) with their paired {config.level:.0%} "
            "intervals over problems and orders. The predictor's own tokens count.",
            *notes,
        ],
    )


def _worth(pool: Pool, predicted: Path) -> str:
    """What a prediction says of a problem's mean score, beside what one score says."""
    with open(predicted, encoding="utf-8") as file:
        records = {record["problem_id"]: record for record in map(json.loads, file)}
    labels = labels_of_pool(pool, "")
    known = [records[name] for name in labels.problem_ids]
    n, mean, m2 = labels.stats.n, labels.stats.mean, labels.stats.m2
    within = float(np.sum(m2) / max(np.sum(n - 1), 1))
    # Means of n scores differ by more than the laws' means do, and from predictions likewise.
    noise = within * float(np.mean(1 / n))
    between = float(np.var(mean)) - noise
    error = float(np.mean((np.array([record["mean"] for record in known]) - mean) ** 2)) - noise
    if not (within > 0 and between > 0 and 0 < error < between):
        return "The prediction of a problem's mean score explains nothing of it, or all."
    explained, one = 1 - error / between, between / (between + within)
    worth = explained / (1 - explained) * within / between
    cost = ""
    if pool.has_tokens:
        length = max(float(np.mean(pool.tokens[pool.mask])), 1e-9)
        cost = f", and costs {np.mean([record['tokens'] for record in known]) / length:.2f}"
    return (
        f"Of the variance of problems' mean scores the prediction explains {explained:.0%} and one "
        f"score {one:.0%}: it is worth {worth:.2f} completions{cost}."
    )


def _words(interval: Interval, scale: float, digits: int) -> str:
    mean, low, high = (scale * float(part) for part in interval)
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _write_csv(path: Path, rows: Sequence[Row], pairs: Sequence[Pair | None]) -> None:
    columns: dict[str, list[Any]] = {}

    def add(name: str, value: Any) -> None:
        number = isinstance(value, float | np.floating)
        columns.setdefault(name, []).append("" if number and np.isnan(value) else value)

    def add_interval(name: str, interval: Interval | None) -> None:
        for part in ("mean", "low", "high"):
            key = name if part == "mean" else f"{name}_{part}"
            add(key, np.nan if interval is None else float(getattr(interval, part)))

    for row, pair in zip(rows, pairs, strict=True):
        add("N", row.cap)
        add("prior", row.method.label)
        for name, interval in (
            ("value", row.value),
            ("cost", row.cost),
            ("samples", row.samples),
            ("difference", row.difference),
            ("cost_against_optscale0", None if pair is None else pair.tokens),
            ("value_against_optscale0", None if pair is None else pair.value),
        ):
            add_interval(name, interval)
        add("saved", row.saved)
        chosen = dict.fromkeys(row.fit.chosen.tolist())
        settings = (row.method.settings[int(row.indices[index])] for index in chosen)
        plain = ({k: v for k, v in s.items() if k != "prior"} for s in settings)
        add("settings", " / ".join(describe(s, row.method.policy) for s in plain))
    write_csv(path, columns)


def _draw(
    folder: Path,
    found: Run,
    rows: Sequence[Row],
    pairs: Sequence[Pair | None],
    options: Options,
) -> None:
    # Matplotlib takes a second to import, which --help should not.
    from optscale_jax.report.figures import (
        Curve,
        accuracy_against_tokens,
        differences_against_n,
        save,
    )

    shown = [
        Curve(label, *(np.array(column, float) for column in zip(*points, strict=True)))
        for label in [*LABELS.values(), KNOWN]
        if (
            points := [
                (row.cap, *(float(part) for part in pair.tokens))
                for row, pair in zip(rows, pairs, strict=True)
                if pair is not None and row.method.label == label
            ]
        )
    ]
    save(
        differences_against_n(shown, baseline=LABELS[None], cost=found.cost, level=options.level),
        folder / "saving",
    )
    curves = [Curve(f.label, f.cost, f.value) for f in frontiers(found, options)]
    save(
        accuracy_against_tokens(curves, x=found.cost, y=found.value, level=options.level),
        folder / "accuracy_vs_tokens",
    )


main = command(ComparePriorsConfig, run, __name__, configs="priors")

if __name__ == "__main__":
    sys.exit(main())
