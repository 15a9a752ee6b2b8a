"""Runs a reward model on vLLM's pooling runner in this process."""

import itertools
from typing import Any

import numpy as np

from optscale_jax.backends.config import VerifierConfig
from optscale_jax.backends.families import FORMATS
from optscale_jax.backends.prm import StepPrompt
from optscale_jax.backends.text import one_line
from optscale_jax.backends.vllm_engine import engine_environment, start_engine
from optscale_jax.errors import BackendError

__all__ = ["VllmPooler"]


class VllmPooler:
    """A reward model on an engine of its own.

    vLLM returns the model's outputs at every token: where the model scores is known from how the
    prompt was written, and a token that stands there may stand elsewhere too.
    """

    def __init__(self, config: VerifierConfig):
        self._model = config.model
        self._requests = itertools.count()
        with engine_environment(config.engine, model=config.model, tokenizer=config.tokenizer):
            from vllm import PoolingParams
            from vllm.config import PoolerConfig

            family = FORMATS[config.family]
            arguments = dict(family.engine)
            if family.adds_model:
                from optscale_jax.backends.vllm_models import known

                arguments["hf_overrides"] = known
        self._params = PoolingParams(task="token_classify", use_activation=family.activation)
        self._engine = start_engine(
            config.engine,
            model=config.model,
            revision=config.revision,
            tokenizer=config.tokenizer,
            runner="pooling",
            pooler_config=PoolerConfig(tok_pooling_type="ALL"),
            **arguments,
        )
        self.tokenizer: Any = self._engine.llm.get_tokenizer()
        self.max_len: int = self._engine.llm.model_config.max_model_len

    async def pool(self, prompt: StepPrompt) -> np.ndarray:
        """The model's outputs at the prompt's positions, [steps, outputs]."""
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        name = f"score-{next(self._requests)}"
        rows = None
        try:
            async for output in self._engine.llm.encode(
                tokens_input(prompt.token_ids), self._params, name
            ):
                rows = output.outputs.data
        except EngineDeadError as error:
            raise self._engine.died() from error
        except (EngineGenerateError, ValueError) as error:
            raise BackendError(
                f"{self._model}: vLLM: {one_line(error.__cause__ or error)}"
            ) from error
        if rows is None or len(rows) != len(prompt.token_ids):
            raise BackendError(f"{self._model}: vLLM ended a request without its outputs")
        return rows.float().numpy()[prompt.positions]

    async def close(self) -> None:
        """Ends the engine's processes."""
        await self._engine.close()
