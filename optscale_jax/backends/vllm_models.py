"""Models that vLLM does not know, as its own classes: imported by vLLM where one is wanted."""

from collections.abc import Iterable

import torch
from vllm.model_executor.models.adapters import as_seq_cls_model
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM

__all__ = ["Qwen2ForPrmModel"]


class Qwen2ForPrmModel(as_seq_cls_model(Qwen2ForCausalLM)):
    """Skywork-o1-Open-PRM: a Qwen2 whose label is its value head, of another name."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads a checkpoint, but for its language model's head."""
        return super().load_weights(
            (name.replace("v_head.summary.", "score."), weight)
            for name, weight in weights
            if not name.startswith("lm_head.")
        )
