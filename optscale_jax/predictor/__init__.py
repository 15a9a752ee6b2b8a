"""OptScale^t's predictor: a problem's text to a prior on the law of its scores.

A head (`head`) is trained (`training`) on frozen features of a language model (`features`), with
statistics of scores as labels (`labels`), and becomes a `Predictor`. The prior has a location and
an uncertainty of both parameters. Head, loss and optimizer are parts that one's own take the place
of (`parts`). docs/predictor.md is the guide.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optscale_jax.predictor.config import TrainingConfig
    from optscale_jax.predictor.errors import PredictorError
    from optscale_jax.predictor.features import FeatureConfig, Features, Recipe, extract
    from optscale_jax.predictor.head import Head, HeadConfig, to_prior
    from optscale_jax.predictor.labels import Labels, labels_of_pool, read_labels
    from optscale_jax.predictor.losses import LossConfig, Targets
    from optscale_jax.predictor.optimizers import OptimizerConfig
    from optscale_jax.predictor.predictor import Prediction, Predictor
    from optscale_jax.predictor.training import Fitted, train

__all__ = [
    "FeatureConfig",
    "Features",
    "Fitted",
    "Head",
    "HeadConfig",
    "Labels",
    "LossConfig",
    "OptimizerConfig",
    "Prediction",
    "Predictor",
    "PredictorError",
    "Recipe",
    "Targets",
    "TrainingConfig",
    "extract",
    "labels_of_pool",
    "read_labels",
    "to_prior",
    "train",
]


_MODULES = {
    "config": ("TrainingConfig",),
    "errors": ("PredictorError",),
    "features": ("FeatureConfig", "Features", "Recipe", "extract"),
    "head": ("Head", "HeadConfig", "to_prior"),
    "labels": ("Labels", "labels_of_pool", "read_labels"),
    "losses": ("LossConfig", "Targets"),
    "optimizers": ("OptimizerConfig",),
    "predictor": ("Prediction", "Predictor"),
    "training": ("Fitted", "train"),
}


def __getattr__(name: str) -> Any:
    # Only when it is asked for: labels are made where no package of a model is installed.
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
