"""Predicts a prior for each problem, from its text: OptScale^t's first half.

    python -m eval.predict --checkpoint runs/predictor --problems problems.jsonl --out priors.jsonl

The output has one JSON object a line, which eval.replay (policy.prior.file) and eval.solve (priors)
read:

    problem_id, loc, scale, loc_sd, scale_sd    the prior on the truncated normal of its scores
    tokens                                      what the predictor read, for the token ledger
    mean, sd                                    the scores' mean and standard deviation to expect
    mean_low, mean_high                         central 80% interval for their mean

loc is a parameter of the law and not its mean: near an end of [0, 1] it lies outside, and `mean` is
the prediction to compare with scores.
"""

import dataclasses
import sys
from pathlib import Path

from optscale_jax.cli import command, output_file, progress
from optscale_jax.errors import InputError, PredictorError, bad_input
from optscale_jax.predictor.predictor import Kind, Prediction, Predictor, prior_lines
from optscale_jax.problems import load_problems

__all__ = ["PredictConfig", "main", "write_priors"]


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Which problems, and by which predictor.

    Attributes:
        checkpoint: Folder of a predictor that train.predictor made. Needed.
        problems: JSON lines file with the problems' ids and texts, or a benchmark's name. Needed.
        kind: learned: what the head reads off the text. pooled: the prior of all training problems
            for each, which reads no text. paper: as in the authors' code, the predicted mean and sd
            in the place of loc and scale, with widths of 0.1.
        model: Where the model of the features is, if not where it was in training.
        cache: Folder of the features' cache. null: features are not kept.
        limit: How many problems to take from the beginning. null: all.
        out: The file to write.
    """

    checkpoint: str | None = None
    problems: str | None = None
    kind: Kind = "learned"
    model: str | None = None
    cache: str | None = "runs/features"
    limit: int | None = None
    out: str = "priors.jsonl"


def run(config: PredictConfig) -> None:
    """Predicts, writes the file and says so."""
    found = write_priors(config)
    tokens = int(found.tokens.sum())
    print(f"{config.out}: {len(found.tokens)} priors, {tokens} tokens read")


def write_priors(config: PredictConfig) -> Prediction:
    """Predicts and writes the file; returns what was predicted, in the problems' order.

    Raises:
        InputError: If the predictor, its model or the problems cannot be used.
    """
    if config.checkpoint is None:
        raise InputError("checkpoint is not given; use --checkpoint DIR")
    if config.problems is None:
        raise InputError("problems is not given; use --problems FILE.jsonl")
    predictor = Predictor.load(config.checkpoint)
    problems = load_problems(config.problems, limit=config.limit)
    with (
        output_file(Path(config.out)) as file,
        progress() as bar,
        bad_input(config.checkpoint, (PredictorError,)),
    ):
        task = bar.add_task("reading problems", total=len(problems))
        found = predictor.predict(
            [problem.text for problem in problems],
            kind=config.kind,
            model=config.model,
            cache=config.cache,
            advance=lambda count: bar.advance(task, count),
        )
        file.writelines(prior_lines([problem.id for problem in problems], found))
    return found


main = command(PredictConfig, run, __name__)

if __name__ == "__main__":
    sys.exit(main())
