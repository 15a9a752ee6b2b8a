"""Runs a process reward model on vLLM's pooling runner in this process."""

import itertools
from typing import Any

import numpy as np

from optscale_jax.backends.config import VerifierConfig
from optscale_jax.backends.families import FORMATS
from optscale_jax.backends.prm import StepPrompt
from optscale_jax.backends.text import one_line
from optscale_jax.backends.vllm_engine import start_engine
from optscale_jax.errors import BackendError

__all__ = ["VllmPooler"]


class VllmPooler:
    """A process reward model on an engine of its own.

    vLLM returns the model's outputs after its softmax, for the tokens that the pooling parameters
    name: the separator.
    """

    def __init__(self, config: VerifierConfig):
        self._model = config.model
        self._requests = itertools.count()
        self._engine = start_engine(
            config.engine,
            model=config.model,
            revision=config.revision,
            tokenizer=config.tokenizer,
            runner="pooling",
        )
        self.tokenizer: Any = self._engine.llm.get_tokenizer()
        self.max_len: int = self._engine.llm.model_config.max_model_len
        separator = FORMATS[config.family].separator
        self._separator: int = self.tokenizer.convert_tokens_to_ids(separator)

    async def pool(self, prompt: StepPrompt) -> np.ndarray:
        """The model's outputs at the prompt's positions, [steps, labels]."""
        from vllm import PoolingParams
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        params = PoolingParams(task="token_classify", step_tag_id=self._separator)
        name = f"score-{next(self._requests)}"
        rows = None
        try:
            async for output in self._engine.llm.encode(
                tokens_input(prompt.token_ids), params, name
            ):
                rows = output.outputs.data
        except EngineDeadError as error:
            raise self._engine.died() from error
        except (EngineGenerateError, ValueError) as error:
            raise BackendError(
                f"{self._model}: vLLM: {one_line(error.__cause__ or error)}"
            ) from error
        if rows is None or rows.shape[0] != len(prompt.positions):
            raise BackendError(
                f"{self._model}: vLLM gave {0 if rows is None else rows.shape[0]} step scores for "
                f"{len(prompt.positions)} steps; is it a process reward model of this family?"
            )
        return rows.float().numpy()

    async def close(self) -> None:
        """Ends the engine's processes."""
        await self._engine.close()
