"""OptScale^t's predictor: a problem's text to a prior on the law of its scores.

A head (`head`) is trained (`training`) on frozen features of a language model (`features`), with
statistics of scores as labels (`labels`), and becomes a `Predictor`. The prior has a location and
an uncertainty of both parameters. docs/predictor.md is the guide.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optscale_jax.predictor.errors import PredictorError
    from optscale_jax.predictor.features import FeatureConfig, Features, Recipe, extract
    from optscale_jax.predictor.head import Head, HeadConfig, to_prior
    from optscale_jax.predictor.labels import Labels, labels_of_pool, read_labels
    from optscale_jax.predictor.losses import LossConfig
    from optscale_jax.predictor.predictor import Prediction, Predictor
    from optscale_jax.predictor.training import TrainingConfig, train

__all__ = [
    "FeatureConfig",
    "Features",
    "Head",
    "HeadConfig",
    "Labels",
    "LossConfig",
    "Prediction",
    "Predictor",
    "PredictorError",
    "Recipe",
    "TrainingConfig",
    "extract",
    "labels_of_pool",
    "read_labels",
    "to_prior",
    "train",
]


def __getattr__(name: str) -> Any:
    # Only when it is asked for: labels are made where no package of a model is installed.
    if name in __all__:
        for module in ("errors", "features", "labels", "losses", "head", "training", "predictor"):
            found = importlib.import_module(f"{__name__}.{module}")
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
