"""OptScale^t's predictor: a problem's text to a prior on the law of its scores.

A head (`head`) is trained (`training`) on frozen features of a language model (`features`), with
statistics of scores as labels (`labels`), and becomes a `Predictor`. The prior has a location and
an uncertainty of both parameters. Head, loss and optimizer are parts that one's own take the place
of (`parts`). docs/predictor.md is the guide.
"""

import importlib
from typing import Any

_NAMES = {
    "data": ("SplitConfig",),
    "features": ("FeatureConfig", "Features", "Recipe", "extract"),
    "head": ("Head", "HeadConfig", "to_prior"),
    "labels": ("Labels", "labels_of_pool", "read_labels"),
    "losses": ("LossConfig", "Targets"),
    "parts": ("OptimizerConfig",),
    "predictor": ("Prediction", "Predictor"),
    "training": ("Fitted", "TrainingConfig", "train"),
}


def __getattr__(name: str) -> Any:
    # Only when it is asked for: labels are made where no package of a model is installed.
    for module, names in _NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
