"""How a head is trained, as a configuration says it."""

import dataclasses

from optscale_jax.predictor.head import HeadConfig
from optscale_jax.predictor.losses import LossConfig
from optscale_jax.predictor.optimizers import OptimizerConfig

__all__ = ["SplitConfig", "TrainingConfig"]


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """How problems are kept from training, at random; those with the same text stay together.

    Attributes:
        folds: Parts of equal size, at least 2. Member m of the ensemble is not trained on part m,
            which serves its early stopping and the calibration of the widths.
        test: Share that only the report at the end sees, in [0, 1).
    """

    folds: int = 5
    test: float = 0.1

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the field.
        """
        if self.folds < 2:
            raise ValueError(f"split.folds is {self.folds}; it must be at least 2")
        if not 0 <= self.test < 1:
            raise ValueError(f"split.test is {self.test}; it must be in [0, 1)")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a head is trained.

    Attributes:
        head: Which head, and its shape.
        loss: What is minimised.
        optimizer: How.
        split: What is kept from training.
        members: Heads whose outputs are averaged, each trained without a fold of its own; from 1
            to split.folds.
        epochs: Most passes over the training problems, at least 1.
        patience: Epochs without a better validation likelihood before stopping, at least 1.
        batch_size: Problems in a step, at least 1.
        calibrate: Whether to fit two offsets of the outputs, and the regressions of the point
            predictions, to the validation problems at the end.
        seed: Of the split, the weights, the order and the dropout, at least 0.
    """

    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    members: int = 5
    epochs: int = 12
    patience: int = 6
    batch_size: int = 128
    calibrate: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the field.
        """
        for name, least in (("epochs", 1), ("patience", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 1 <= self.members <= self.split.folds:
            raise ValueError(
                f"members is {self.members}; it must be from 1 to split.folds, {self.split.folds}"
            )
