"""Speed of a predictor's features, as a ratio within one run, and of its training.

    python -m eval.bench.predictor --predictor configs/predictor/minilm.yaml --labels labels.jsonl

The features of all problems are held to sentence-transformers, which encodes the same texts with
the same model, as much of each and in its own batches; the two take turns. Then the features are
read again from the cache, and the head is trained on them. The exit code is 1 where a figure
demanded is missed.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from optscale_jax.checks import at_least
from optscale_jax.cli import command
from optscale_jax.cli.predictors import configured
from optscale_jax.errors import InputError
from optscale_jax.predictor.features import FeatureConfig, extract, model_folder
from optscale_jax.predictor.training import train

from .rows import Limit, Report, finish, timed

__all__ = ["BenchPredictorConfig", "main"]


@dataclasses.dataclass(frozen=True)
class BenchPredictorConfig:
    """What to measure.

    Attributes:
        predictor: Configuration of train.predictor, with mean-pooled features. Needed.
        labels: Labels, if the configuration does not name them.
        repeats: Turns that features and sentence-transformers take, at least 1; the medians are
            compared.
        out: Folder for bench_predictor.json and bench_predictor.md. null: none.
    """

    predictor: str | None = None
    labels: str | None = None
    repeats: int = 3
    out: str | None = None

    def __post_init__(self) -> None:
        """Refuses what is outside its domain."""
        if self.predictor is None:
            raise InputError("predictor is not given; use --predictor FILE")
        at_least(self, 1, "repeats")


def bench(config: BenchPredictorConfig) -> int:
    """Measures everything, shows and writes it; returns 1 where a figure is missed."""
    return finish(lambda: measure(config), config.out, "bench_predictor", "a predictor")


def measure(config: BenchPredictorConfig) -> Report:
    """All measurements.

    Raises:
        InputError: If the labels or the model cannot be used.
    """
    assert config.predictor is not None  # __post_init__
    asked, labels = configured(config.predictor, config.labels)
    texts = [text for text in labels.texts if text is not None]
    pooling = asked.training.head.features
    report = Report()
    ours, theirs, rest = list[float](), list[float](), list[float]()
    encode = sentence_transformers(asked.features)
    with tempfile.TemporaryDirectory() as base:
        cache = Path(base)
        for turn in range(config.repeats):
            cache = Path(base) / str(turn)
            with timed(ours):
                extract(texts, asked.features, pooling, cache=cache)
            with timed(theirs):
                encode(texts)
        with timed(rest):
            features, _ = extract(texts, asked.features, pooling, cache=cache)
        if features.computed:
            raise AssertionError(f"{features.computed} texts were not in the cache")
        with timed(rest):
            fitted = train(features, labels, asked.training, checkpoints=Path(base) / "checkpoints")
    one, other = float(np.median(ours)), float(np.median(theirs))
    cached, training = rest
    report.add(
        f"features of {len(texts):,} texts against sentence-transformers",
        f"{one:.1f} s against {other:.1f} s: {one / other:.2f}",
        ratio=Limit(one / other, "<=", 1.1),
        features=one,
        encode=other,
    )
    report.add(
        "features again, from the cache", f"{cached:.2f} s", cached=Limit(cached, "<", 2, " s")
    )
    report.add(
        f"training of the head, {fitted.epochs['trained']} epochs, compilation included",
        f"{training:.1f} s",
        training=Limit(training, "<", 60, " s"),
    )
    return report


def sentence_transformers(config: FeatureConfig) -> Callable[[list[str]], object]:
    """The encoder of a checkpoint in sentence-transformers, with its own defaults.

    Raises:
        InputError: If sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(
            "sentence-transformers is what is compared with: pip install sentence-transformers"
        ) from error
    folder = str(model_folder(config.model, config.revision))
    model = SentenceTransformer(folder)
    model.max_seq_length = config.max_tokens

    def encode(texts: list[str]) -> object:
        return model.encode(texts, show_progress_bar=False)

    return encode


main = command(BenchPredictorConfig, bench, __name__)

if __name__ == "__main__":
    sys.exit(main())
