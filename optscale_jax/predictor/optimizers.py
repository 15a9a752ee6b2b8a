"""How a loss is minimised: AdamW, or any gradient transformation of Optax."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import optax

__all__ = ["OPTIMIZERS", "OptimizerConfig", "adamw", "warmup_cosine"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a cosine decay to 0, or another optimizer.

    Attributes:
        name: adamw, or the name of one's own, module:name or ./file.py:name: an
            optax.GradientTransformation, or a function that makes one, called with the number of
            steps and those of the fields below that its signature names.
        learning_rate: At the end of the warm-up, above 0.
        weight_decay: Decay of matrices, at least 0.
        clip: Largest norm of a gradient, above 0.
        warmup: Share of all steps that the warm-up takes, in [0, 1).
    """

    name: str = "adamw"
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: float = 0.1

    def __post_init__(self) -> None:
        """Refuses numbers outside their domain.

        Raises:
            ValueError: Naming the field.
        """
        for name, inside, domain in (
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0"),
            ("clip", self.clip > 0, "above 0"),
            ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
        ):
            if not inside:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}; it must be {domain}")


def warmup_cosine(steps: int, *, learning_rate: float, warmup: float) -> optax.Schedule:
    """The learning rate at each of so many steps.

    Args:
        steps: Number of steps.
        learning_rate: At the end of the warm-up.
        warmup: Share of the steps that it takes.

    Returns:
        Learning rate of a step's index.
    """
    return optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, round(warmup * steps), max(steps, 1)
    )


@functools.lru_cache(maxsize=16)  # the same object again: steps with it share a compilation
def adamw(
    steps: int, *, learning_rate: float, weight_decay: float, clip: float, warmup: float
) -> optax.GradientTransformation:
    """AdamW for so many steps; `OptimizerConfig` says what the numbers are.

    Args:
        steps: Number of steps.
        learning_rate: At the end of the warm-up.
        weight_decay: Of matrices.
        clip: Largest norm of a gradient.
        warmup: Share of the steps that the warm-up takes.

    Returns:
        The transformation.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(
            warmup_cosine(steps, learning_rate=learning_rate, warmup=warmup),
            weight_decay=weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


OPTIMIZERS: dict[str, Callable[..., Any]] = {"adamw": adamw}
"""The optimizers that are shipped, by name."""
