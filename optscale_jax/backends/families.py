"""What families of process reward models expect; another family is another class like these.

`optscale_jax/backends/prm.py` puts them to use, `verifier.family` of a configuration chooses one.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

__all__ = ["FORMATS", "QwenMathPrm", "StepFormat"]


@runtime_checkable
class StepFormat(Protocol):
    """What a family of process reward models expects. Another family is another such class."""

    separator: str
    """Token at which the model scores the step before it."""

    def messages(self, problem: str, steps: Sequence[str]) -> list[dict[str, str]]:
        """The chat that the model reads; it holds the separator once for each step."""
        ...

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Step scores in [0, 1] from the model's outputs at the separators, [steps, labels]."""
        ...


class QwenMathPrm:
    """Qwen2.5-Math-PRM-7B and -72B, and others of the class Qwen2ForProcessRewardModel.

    Steps are joined by `<extra_0>`, with one more after the last, as the assistant's message; the
    probability of the second of two labels at each of these tokens is the step's score. The model
    reads 4,096 tokens.

    References:
        Its model card, https://huggingface.co/Qwen/Qwen2.5-Math-PRM-7B; Zhang et al., The Lessons
        of Developing Process Reward Models in Mathematical Reasoning, arXiv 2501.07301.
    """

    separator = "<extra_0>"
    system = "Please reason step by step, and put your final answer within \\boxed{}."

    def messages(self, problem: str, steps: Sequence[str]) -> list[dict[str, str]]:
        """The chat that the model reads."""
        answer = "".join(step + self.separator for step in steps)
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": problem},
            {"role": "assistant", "content": answer},
        ]

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Column 1: vLLM has already taken the softmax over the labels (bad, good)."""
        return rows[:, 1]


FORMATS: dict[str, StepFormat] = {"qwen2.5-math-prm": QwenMathPrm()}
