"""Which loss trains the best head, and whether any is better than what needs no head.

    python -m eval.compare_losses --predictor configs/predictor/minilm.yaml --labels labels.jsonl
        --out runs/losses

trains a head with each loss on several splits of the problems, and measures it on the problems that
the split kept from it, beside three floors:

    constant       the training problems' average
    ridge          linear regression of mean and sd on the mean-pooled features, with the penalty
                   that generalised cross-validation finds
    pooled prior   one prior for all problems

Only a prior has an interval and a likelihood. The output folder gets `summary.md` and
`comparison.csv`, a line for each split and row.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from optscale_jax.checks import at_least, within
from optscale_jax.cli import command, output_folder, progress, show
from optscale_jax.cli.predictors import configured, read_features
from optscale_jax.errors import InputError
from optscale_jax.predictor.calibration import Quality, rank_correlation
from optscale_jax.predictor.data import Splits, split
from optscale_jax.predictor.features import Features
from optscale_jax.predictor.labels import Labels
from optscale_jax.predictor.losses import LossConfig
from optscale_jax.predictor.training import TrainingConfig, train
from optscale_jax.report.priors import quality_table
from optscale_jax.report.tables import Table, write_csv

__all__ = ["LOSSES", "CompareLossesConfig", "main", "ridge"]

LOSSES = {
    "squared error": LossConfig(marginal=0.0, squared_error=1.0),
    "likelihood": LossConfig(marginal=0.0, squared_error=0.0, likelihood=1.0),
    "marginal": LossConfig(marginal=1.0, squared_error=0.0),
    "marginal and squared error": LossConfig(marginal=1.0, squared_error=1.0),
}
OUTPUTS = ("summary.md", "comparison.csv")
PENALTIES = np.logspace(0, 6, 25)


@dataclasses.dataclass(frozen=True)
class CompareLossesConfig:
    """What to compare on.

    Attributes:
        predictor: Configuration of train.predictor; its loss and test share are not read. Needed.
        labels: Labels, if the configuration does not name them.
        losses: Which of the losses; "squared error", "likelihood", "marginal", "marginal and
            squared error".
        splits: How many splits, at least 1; the seeds are 0, 1, ...
        test: Share of the problems that each split keeps from training, in (0, 1).
        out: Folder for the files, made if it does not exist.
    """

    predictor: str | None = None
    labels: str | None = None
    losses: list[str] = dataclasses.field(default_factory=lambda: list(LOSSES))
    splits: int = 5
    test: float = 0.2
    out: str = "runs/losses"

    def __post_init__(self) -> None:
        if self.predictor is None:
            raise InputError("predictor is not given; use --predictor FILE")
        for name in self.losses:
            if name not in LOSSES:
                raise InputError(f"losses: {name!r} is none of {', '.join(LOSSES)}")
        at_least(self, 1, "splits")
        within(self, "(0, 1)", "test")


class Found(NamedTuple):
    """A row of one split: what made the predictions, how good on the problems kept from it."""

    seed: int
    name: str
    quality: Quality


def run(config: CompareLossesConfig) -> None:
    """Trains, measures, writes the files and shows the table."""
    assert config.predictor is not None  # __post_init__
    asked, labels = configured(config.predictor, config.labels)
    with output_folder(Path(config.out), OUTPUTS) as folder:
        with progress() as bar:
            features, _ = read_features(asked, labels, bar)
            task = bar.add_task("training", total=config.splits * len(config.losses))
            found: list[Found] = []
            for seed in range(config.splits):
                setting = dataclasses.replace(
                    asked.training,
                    seed=seed,
                    split=dataclasses.replace(asked.training.split, test=config.test),
                )
                found += _floors(features, labels, setting)
                for place, name in enumerate(config.losses):
                    chosen = dataclasses.replace(setting, loss=LOSSES[name])
                    quality = train(features, labels, chosen).quality["test"]
                    if place == 0:
                        found.append(Found(seed, "pooled prior", quality["pooled"]))
                    found.append(Found(seed, name, quality["head"]))
                    bar.advance(task)
        table = _table(found, config)
        (folder / "summary.md").write_text(table.to_markdown(), encoding="utf-8")
        columns = {"split": [one.seed for one in found], "row": [one.name for one in found]}
        for field in Quality._fields:
            values = [getattr(one.quality, field) for one in found]
            columns[field] = ["" if np.isnan(value) else value for value in values]
        write_csv(folder / "comparison.csv", columns)
    show(table.to_rich())
    print(f"results: {config.out}")


# The floors ---------------------------------------------------------------------------------------


def _floors(features: Features, labels: Labels, config: TrainingConfig) -> list[Found]:
    splits = split(labels, config.split, config.seed)
    rows = np.stack([np.mean(each, axis=0, dtype=np.float64) for each in features.rows])
    targets = np.stack([labels.stats.mean, labels.sd], axis=-1)
    constant = np.broadcast_to(targets[splits.train].mean(axis=0), (len(splits.test), 2))
    fitted = ridge(rows[splits.train], targets[splits.train], rows[splits.test])
    return [
        Found(config.seed, "constant", _quality(constant, targets, splits)),
        Found(config.seed, "ridge", _quality(fitted, targets, splits)),
    ]


def ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Predictions [Q, T] by linear regression of y [P, T] on x [P, D], which is standardised.

    For the features [Q, D] of what is to be predicted (`new`), with the penalty that generalised
    cross-validation finds.

    References:
        Golub, Heath and Wahba (1979), Generalized cross-validation as a method for choosing a good
            ridge parameter, Technometrics 21(2).
    """
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    left, singular, right = np.linalg.svd((x - centre) / scale, full_matrices=False)
    average = y.mean(axis=0)
    along = left.T @ (y - average)
    predictions = []
    for target in range(y.shape[1]):
        best = np.inf, 0.0
        for penalty in PENALTIES:
            shrunk = singular**2 / (singular**2 + penalty)
            residual = y[:, target] - average[target] - left @ (shrunk * along[:, target])
            # One degree of freedom more for the average.
            free = 1 - (shrunk.sum() + 1) / len(x)
            best = min(best, (float(np.mean(residual**2)) / free**2, penalty))
        slopes = right.T @ (singular / (singular**2 + best[1]) * along[:, target])
        predictions.append(average[target] + (new - centre) / scale @ slopes)
    return np.stack(predictions, axis=-1)


def _quality(predicted: np.ndarray, targets: np.ndarray, splits: Splits) -> Quality:
    truth = targets[splits.test]
    errors = np.mean((predicted - truth) ** 2, axis=0)
    ranks = [rank_correlation(predicted[:, i], truth[:, i]) for i in range(2)]
    return Quality(
        problems=len(truth),
        mean_error=float(errors[0]),
        mean_rank=ranks[0],
        sd_error=float(errors[1]),
        sd_rank=ranks[1],
    )


# What is found ------------------------------------------------------------------------------------


def _table(found: Sequence[Found], config: CompareLossesConfig) -> Table:
    rows = []
    for name in dict.fromkeys(one.name for one in found):
        splits = [one.quality for one in found if one.name == name]
        rows.append(([name], Quality(*np.mean(splits, axis=0).tolist())))
    notes = [
        f"averages of {config.splits} splits that keep {config.test:.0%} of the problems from "
        "training"
    ]
    return quality_table("Losses, on problems kept from training", [""], rows, notes)


main = command(CompareLossesConfig, run, __name__)

if __name__ == "__main__":
    sys.exit(main())
