"""Models that vLLM does not know, as its own classes; importing this makes them known to it."""

from collections.abc import Iterable

import torch
from transformers import PretrainedConfig
from vllm import ModelRegistry
from vllm.model_executor.models.adapters import as_seq_cls_model
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM

__all__ = ["Qwen2ForPrmModel", "known"]


class Qwen2ForPrmModel(as_seq_cls_model(Qwen2ForCausalLM)):
    """Skywork-o1-Open-PRM: a Qwen2 whose label is its value head, of another name."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads a checkpoint, but for its language model's head."""
        return super().load_weights(
            (name.replace("v_head.summary.", "score."), weight)
            for name, weight in weights
            if not name.startswith("lm_head.")
        )


ModelRegistry.register_model("Qwen2ForPrmModel", Qwen2ForPrmModel)


def known(config: PretrainedConfig) -> PretrainedConfig:
    """Changes nothing: as an engine's `hf_overrides`, it has its processes import this file."""
    return config
