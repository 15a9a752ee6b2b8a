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
import sys
from pathlib import Path
from typing import get_args

from optscale_jax.checks import at_least, within
from optscale_jax.cli import command, output_folder, progress, show
from optscale_jax.errors import bad_input
from optscale_jax.policies import PAPER_ALPHA, PAPER_S_MIN
from optscale_jax.predictor.predictor import Kind, Prediction, Predictor, prior_lines
from optscale_jax.problems import load_problems
from optscale_jax.report.priors import prior_columns, prior_curves, prior_table, worth_in_words
from optscale_jax.report.tables import write_csv
from optscale_jax.study.comparison import check_problems, compare, frontiers
from optscale_jax.study.config import TunedConfig
from optscale_jax.study.entries import in_words, leave_out, lowered_to, replay_comparison
from optscale_jax.study.pools import PoolSource
from optscale_jax.study.prior_value import against, prior_entries, worth_of_predictions
from optscale_jax.study.tuning import Aim

__all__ = ["ComparePriorsConfig", "main"]

PLAIN = "OptScale⁰"
LABELS: dict[Kind, str] = {
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
class ComparePriorsConfig(TunedConfig):
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
    out: str = "runs/priors"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "permutations")
        within(self, "[0, 1]", "max_loss")
        for name in ("checkpoint", "problems", "pool"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is not given; use --{name} PATH")
        if not self.n or min(self.n) < 1 or len(set(self.n)) < len(self.n):
            raise ValueError(f"n is {self.n}; it must be different numbers of at least 1")
        if min(self.min_samples, default=0) < 1 or min(self.min_samples) > min(self.n):
            raise ValueError("min_samples must be numbers of at least 1, one of them at most n")


def run(config: ComparePriorsConfig) -> None:
    """Predicts, replays, tunes, writes the files and shows the table."""
    # Matplotlib takes a second to import, which --help should not.
    from optscale_jax.report.figures import save

    assert config.pool is not None  # __post_init__
    source = PoolSource(config.pool, config.read)
    pool = source.load()
    check_problems(pool.num_problems, config.pool)
    options = config.options(Aim(max_loss=config.max_loss))
    with output_folder(Path(config.out), OUTPUTS) as folder:
        problem_ids, learned, seen = _predict(config, folder)
        places = {name: index for index, name in enumerate(problem_ids)}
        files = {PLAIN: None, **{LABELS[kind]: str(folder / f"{kind}.jsonl") for kind in LABELS}}
        depth = max(int(pool.samples_per_problem.min()), min(config.min_samples))
        caps = list(dict.fromkeys(min(n, depth) for n in config.n))
        grid = {name: getattr(config, name) for name in ("s_min", "alpha", "min_samples")}
        grid["n"] = caps
        entries = prior_entries(files, grid, known=KNOWN)
        entries, left_out = leave_out(entries, pool, config.permutations)
        with progress() as bar:
            task = bar.add_task("replaying", total=len(entries))
            outcomes = replay_comparison(
                pool,
                entries,
                source=source,
                seed=config.seed,
                num_permutations=config.permutations,
                advance=lambda: bar.advance(task),
            )
        with bad_input(config.pool):
            own = [places[str(name)] for name in pool.problem_ids]
            worth = worth_of_predictions(pool, learned.mean[own], learned.tokens[own])
            rows = compare(outcomes, caps, options)
        pairs = against(rows, PLAIN, options)
        notes = [worth_in_words(worth), *seen, *in_words(left_out)]
        notes += lowered_to(pool, [n for n in config.n if n > depth])
        table = prior_table(outcomes, rows, pairs, options, plain=PLAIN, notes=notes)
        (folder / "summary.md").write_text(table.to_markdown(), encoding="utf-8")
        write_csv(folder / "comparison.csv", prior_columns(rows, pairs))
        curves = frontiers(outcomes, options)
        labels = [*LABELS.values(), KNOWN]
        for name, figure in prior_curves(
            outcomes, rows, pairs, curves, options, plain=PLAIN, priors=labels
        ):
            save(figure, folder / name)
    show(table.to_rich())
    print(f"results: {config.out}")


def _predict(config: ComparePriorsConfig, folder: Path) -> tuple[list[str], Prediction, list[str]]:
    """Writes the priors of each kind; returns the problems' ids, what the head learned, notes."""
    assert config.checkpoint is not None  # __post_init__
    assert config.problems is not None
    predictor = Predictor.load(config.checkpoint)
    problems = load_problems(config.problems)
    ids = [problem.id for problem in problems]
    texts = [problem.text for problem in problems]
    seen = predictor.has_seen(texts)
    note = (
        f"the predictor was trained on {seen} of the {len(texts)} problems: on others its priors "
        "are worth less than they seem to be here"
    )
    found: dict[Kind, Prediction] = {}
    with progress() as bar, bad_input(config.checkpoint):
        task = bar.add_task("reading problems", total=len(LABELS) * len(problems))
        for kind in LABELS:
            found[kind] = predictor.predict(
                texts,
                kind=kind,
                model=config.model,
                cache=config.cache,
                advance=lambda count: bar.advance(task, count),
            )
    for kind, prediction in found.items():
        lines = "".join(prior_lines(ids, prediction))
        (folder / f"{kind}.jsonl").write_text(lines, encoding="utf-8")
    return ids, found["learned"], [note] if seen else []


main = command(ComparePriorsConfig, run, __name__, configs="priors")

if __name__ == "__main__":
    sys.exit(main())
