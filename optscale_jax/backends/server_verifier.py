"""Runs a process reward model on servers: the pooling interface of `vllm serve`."""

from typing import Any

import numpy as np

from optscale_jax.backends.config import VerifierConfig
from optscale_jax.backends.families import FORMATS
from optscale_jax.backends.prm import StepPrompt
from optscale_jax.backends.servers import Servers
from optscale_jax.backends.text import one_line
from optscale_jax.errors import BackendError

__all__ = ["ServerPooler"]


class ServerPooler:
    """A process reward model behind servers.

    Prompts are written and cut here, with the model's tokenizer, and sent as tokens, so that a
    server and an engine in this process read the same. A server returns the model's outputs at the
    separators or, where it has not been told which token that is, at every token; both are taken.
    """

    def __init__(self, config: VerifierConfig):
        self._activation = FORMATS[config.family].activation
        self._servers = Servers(config.server, model=config.model)
        served = self._servers.models()
        length = served.get("max_model_len")
        if not isinstance(length, int):
            raise BackendError(
                f"{config.server.base_urls[0]} does not say how long {config.model}'s context is, "
                "so it is not vLLM's; a process reward model needs vLLM's pooling interface"
            )
        self.max_len = length
        self.tokenizer = _tokenizer(config)

    async def pool(self, prompt: StepPrompt) -> np.ndarray:
        """The model's outputs at the prompt's positions, [steps, outputs]."""
        body = {"input": prompt.token_ids, "use_activation": self._activation}
        answer = await self._servers.post("/pooling", body)
        try:
            rows = np.asarray(answer["data"][0]["data"], dtype=np.float64)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BackendError(
                f"the server of {self._servers.model} gives no outputs for tokens "
                f"({one_line(error)}); is it vLLM's, started with --runner pooling?"
            ) from error
        return rows[prompt.positions] if len(rows) == len(prompt.token_ids) else rows

    async def close(self) -> None:
        """Closes the connections."""
        await self._servers.close()


def _tokenizer(config: VerifierConfig) -> Any:
    from transformers import AutoTokenizer

    name = config.tokenizer or config.model
    try:
        return AutoTokenizer.from_pretrained(name, revision=config.revision)
    except (OSError, ValueError) as error:
        raise BackendError(
            f"{name}: no tokenizer there; give its folder or hub name as verifier.tokenizer "
            f"({one_line(error)})"
        ) from error
