"""Score statistics of each problem of a pool: the labels that a predictor is trained on.

    python -m train.labels --pool runs/solve --problems problems.jsonl --out labels.jsonl

Reads whatever `optscale_jax.readers.read_pool` does, one record at a time: a pool's file, a live
run's directory, or another project's log. Also reads JSON lines that hold statistics already, with
`score_mean`, `score_std` and n. The output is described in `optscale_jax/predictor/labels.py`.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from optscale_jax.cli import command, output_file
from optscale_jax.empirical_bayes import fit_pooled_prior
from optscale_jax.errors import InputError
from optscale_jax.predictor.labels import Labels, labels_of_pool, lines, read_labels
from optscale_jax.problems import load_problems
from optscale_jax.readers.records import read_records
from optscale_jax.study.pools import PoolSource, ReadConfig

__all__ = ["LabelsConfig", "main"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelsConfig(ReadConfig):
    """Where the scores are, and where their statistics go.

    Attributes:
        pool: A pool's file or a live run's directory, or JSON lines with score_mean, score_std and
            n. Needed.
        problems: JSON lines file with the problems' texts, or a benchmark's name; the ids are the
            pool's. null: the labels get no texts but those of the file.
        num_samples: n of JSON lines with score_mean and score_std but without n.
        out: The file to write.
    """

    pool: str | None = None
    problems: str | None = None
    num_samples: int | None = None
    out: str = "labels.jsonl"


def run(config: LabelsConfig) -> None:
    """Reads the pool and writes the labels.

    Raises:
        InputError: If the pool or the problems cannot be used.
    """
    if config.pool is None:
        raise InputError("pool is not given; use --pool PATH")
    labels = _labels(config, config.pool)
    if config.problems is not None:
        texts = {problem.id: problem.text for problem in load_problems(config.problems)}
        labels = labels.with_texts(texts, config.problems)
    with output_file(Path(config.out)) as file:
        file.writelines(lines(labels))
    spread = (labels.stats.n >= 2) & (labels.stats.m2 > 0)
    n = labels.stats.n
    print(
        f"{config.out}: {len(labels)} problems, {int(n.min())} to {int(n.max())} scores each; mean "
        f"{np.mean(labels.stats.mean):.4f} (sd over problems {np.std(labels.stats.mean):.4f}), sd "
        f"{np.mean(labels.sd):.4f} ({np.std(labels.sd):.4f})"
    )
    if not spread.all():
        print(f"{int((~spread).sum())} problems have one score, or equal ones: no spread to learn")
    if spread.sum() >= 2:
        prior = fit_pooled_prior(labels.take(spread).rounded())
        print(
            f"pooled prior: loc {prior.loc:.4g}, scale {prior.scale:.4g}, loc_sd "
            f"{prior.loc_sd:.4g}, scale_sd {prior.scale_sd:.4g}"
        )
        if prior.scale < prior.scale_sd:
            print(
                "it is degenerate, half a normal at scale 0: the scores of some problems spread a "
                "lot, of others hardly at all, and no scale is typical; it says little of a law, "
                "so compare it on a pool before you put it into policy.prior"
            )


def _labels(config: LabelsConfig, pool: str) -> Labels:
    path = Path(pool)
    if path.suffix in (".jsonl", ".json") and _has_statistics(path):
        return read_labels(path, num_samples=config.num_samples)
    return labels_of_pool(PoolSource(pool, config.read).load(), pool)


def _has_statistics(path: Path) -> bool:
    """Whether the first record of a file has statistics, not scores."""
    first = next(read_records(path), None)
    return first is not None and bool({"score_mean", "mean"} & first.value.keys())


main = command(LabelsConfig, run, __name__)

if __name__ == "__main__":
    sys.exit(main())
