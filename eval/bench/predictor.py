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
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from optscale_jax.cli import command
from optscale_jax.cli.predictors import configured
from optscale_jax.errors import InputError, bad_input
from optscale_jax.predictor.errors import PredictorError
from optscale_jax.predictor.features import FeatureConfig, extract, model_folder
from optscale_jax.predictor.training import train

from .rows import Report, finish

__all__ = ["BenchPredictorConfig", "main"]

FEATURES_RATIO = 1.1
CACHED_SECONDS = 2.0
TRAINING_SECONDS = 60.0

OUTPUTS = ("bench_predictor.json", "bench_predictor.md")


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
        """Refuses what is outside its domain.

        Raises:
            ValueError: Naming the field.
        """
        if self.predictor is None:
            raise ValueError("predictor is not given; use --predictor FILE")
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}; it must be at least 1")


def bench(config: BenchPredictorConfig) -> int:
    """Measures everything, shows and writes it; returns 1 where a figure is missed."""
    return finish(lambda: measure(config), config.out, OUTPUTS, "a predictor")


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
    with tempfile.TemporaryDirectory() as base, bad_input(errors=(PredictorError,)):
        encode = sentence_transformers(asked.features)
        seconds: dict[str, list[float]] = {"features": [], "encode": []}
        cache = Path(base)
        for turn in range(config.repeats):
            cache = Path(base) / str(turn)
            start = time.perf_counter()
            extract(texts, asked.features, pooling, cache=cache)
            middle = time.perf_counter()
            encode(texts)
            end = time.perf_counter()
            seconds["features"].append(middle - start)
            seconds["encode"].append(end - middle)
        ours, theirs = (float(np.median(seconds[name])) for name in ("features", "encode"))
        report.add(
            f"features of {len(texts):,} texts against sentence-transformers",
            f"{ours:.1f} s against {theirs:.1f} s: {ours / theirs:.2f}",
            f"<= {FEATURES_RATIO}",
            ours / theirs <= FEATURES_RATIO,
            features=ours,
            encode=theirs,
        )
        start = time.perf_counter()
        features, _ = extract(texts, asked.features, pooling, cache=cache)
        cached = time.perf_counter() - start
        if features.computed:
            raise AssertionError(f"{features.computed} texts were not in the cache")
        report.add(
            "features again, from the cache",
            f"{cached:.2f} s",
            f"< {CACHED_SECONDS:g} s",
            cached < CACHED_SECONDS,
            cached=cached,
        )
        start = time.perf_counter()
        fitted = train(features, labels, asked.training, checkpoints=Path(base) / "checkpoints")
        training = time.perf_counter() - start
    report.add(
        f"training of the head, {fitted.epochs['trained']} epochs, compilation included",
        f"{training:.1f} s",
        f"< {TRAINING_SECONDS:g} s",
        training < TRAINING_SECONDS,
        training=training,
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
