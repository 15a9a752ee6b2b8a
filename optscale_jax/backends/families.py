"""What families of reward models expect; another family is another class like these.

`optscale_jax/backends/prm.py` puts them to use, `verifier.family` of a configuration chooses one.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

__all__ = [
    "FORMATS",
    "MathShepherd",
    "QwenMathPrm",
    "RewardModel",
    "RlhfFlow",
    "SkyworkPrm",
    "StepFormat",
]

_PARAGRAPHS = r"\n[ \t\r]*\n\s*"
_LINES = r"\r?\n\s*"


class StepFormat:
    """What a family of reward models expects; defaults are those of Qwen2.5-Math-PRM.

    Attributes:
        separator: What follows a step, at whose last token the model scores it; "" for a model that
            scores the prompt at its end.
        before: How many tokens before that one the score is read.
        apart: Whether the separator is tokenised apart from the text around it.
        reserved: Whether its token, one of the vocabulary's own, is kept out of problem and steps.
        steps: Regular expression at which a completion is split into steps, "" for nowhere.
        outputs: How many numbers the model gives for a token.
        activation: Whether vLLM makes probabilities of them: softmax of several, sigmoid of one.
        engine: Arguments of vLLM's engine.
        adds_model: Whether its model is one of `vllm_models`.
    """

    separator: str = ""
    before: int = 0
    apart: bool = False
    reserved: bool = False
    steps: str = _PARAGRAPHS
    outputs: int = 2
    activation: bool = True
    engine: ClassVar[dict[str, Any]] = {}
    adds_model: bool = False

    def messages(self, problem: str, steps: Sequence[str]) -> list[dict[str, str]] | str:
        """The chat that the model reads, or a text; it holds the separator after each step."""
        raise NotImplementedError

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Step scores in [0, 1] from the model's outputs where it scores, [steps, outputs]."""
        return rows[:, -1]


class QwenMathPrm(StepFormat):
    """Qwen2.5-Math-PRM-7B and -72B, Qwen2.5-Math-7B-PRM800K: Qwen2ForProcessRewardModel.

    Steps are joined by `<extra_0>`, with one more after the last, as the assistant's message; the
    probability of the second of two labels (bad, good) at each of these tokens is the step's score.
    The models read 4,096 tokens.

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


class _Plus(StepFormat):
    """A language model whose score is the probability of "+" against "-" as the next token."""

    outputs = 1

    def __init_subclass__(cls, plus: str, minus: str) -> None:
        # One output a token, the difference of the two tokens' logits, of which vLLM takes the
        # sigmoid: the softmax over the two.
        overrides = {"classifier_from_token": [minus, plus], "method": "from_2_way_softmax"}
        cls.engine = {"convert": "classify", "hf_overrides": {**overrides, "num_labels": 1}}


class MathShepherd(_Plus, plus="▁+", minus="▁-"):
    """math-shepherd-mistral-7b-prm: each step is a line that ends with `ки`.

    References:
        Wang et al., Math-Shepherd, ACL 2024, arXiv 2312.08935, and its model card.
    """

    separator = " ки"
    reserved = True
    steps = _LINES

    def messages(self, problem: str, steps: Sequence[str]) -> str:
        """The text that the model reads."""
        return problem + " " + "\n".join(step + self.separator for step in steps)


class RlhfFlow(_Plus, plus="+", minus="-"):
    """Llama3.1-8B-PRM-Mistral-Data and -Deepseek-Data: each step is a user's message.

    The assistant answers each with `+`, whose probability before it is written is the score.

    References:
        Xiong et al., An Implementation of Generative PRM, https://github.com/RLHFlow.
    """

    separator = "+"
    before = 1

    def messages(self, problem: str, steps: Sequence[str]) -> list[dict[str, str]]:
        """The chat that the model reads."""
        asked = [f"{problem} {steps[0]}", *steps[1:]]
        return [
            {"role": role, "content": text}
            for one in asked
            for role, text in (("user", one), ("assistant", self.separator))
        ]


class SkyworkPrm(StepFormat):
    """Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B: a value head, read at the end of each line.

    References:
        https://github.com/SkyworkAI/skywork-o1-prm-inference.
    """

    separator = "\n"
    apart = True
    adds_model = True
    steps = _LINES
    outputs = 1
    activation = False

    def messages(self, problem: str, steps: Sequence[str]) -> str:
        """The text that the model reads."""
        return problem + "\n" + "".join(step + self.separator for step in steps)

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """The sigmoid of the value."""
        return _sigmoid(rows[:, 0])


class RewardModel(StepFormat):
    """Any model of one label for a whole chat, such as LlamaForSequenceClassification.

    The score is the sigmoid of the reward at the chat's last token: right for a model of Bradley
    and Terry's, and for others a scale that a calibration makes probabilities of.
    """

    steps = ""
    outputs = 1
    activation = False

    def messages(self, problem: str, steps: Sequence[str]) -> list[dict[str, str]]:
        """The chat that the model reads."""
        (answer,) = steps
        return [
            {"role": "user", "content": problem},
            {"role": "assistant", "content": answer},
        ]

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """The sigmoid of the reward."""
        return _sigmoid(rows[:, 0])


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -logits))


FORMATS: dict[str, StepFormat] = {
    "qwen2.5-math-prm": QwenMathPrm(),
    "qwen2.5-math-prm800k": QwenMathPrm(),
    "math-shepherd": MathShepherd(),
    "rlhflow": RlhfFlow(),
    "skywork-o1-prm": SkyworkPrm(),
    "reward": RewardModel(),
}
