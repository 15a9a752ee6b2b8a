"""A sampler that asks OpenAI-compatible servers, such as `vllm serve`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from optscale_jax.backends.base import sample_seed
from optscale_jax.backends.concurrency import as_they_end, cancelled
from optscale_jax.backends.config import SamplerConfig
from optscale_jax.backends.prompts import neutral
from optscale_jax.backends.servers import Servers
from optscale_jax.backends.text import read_template
from optscale_jax.errors import BackendError, BadRequestError, ProblemError
from optscale_jax.records import Completion, FinishReason, Problem

__all__ = ["OpenAISampler"]

# A vLLM server sends its completions in pieces of so many tokens: each costs the server and this
# process some time, and an abort may miss the tokens of one piece.
_STREAM_INTERVAL = 16


class _Draft:
    """A completion while it is read."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.thought: list[str] = []
        self.text: list[str] = []
        self.tokens = 0
        self.prompt_tokens = 0
        self.finish_reason: FinishReason | None = None

    def add(self, event: dict[str, Any]) -> None:
        """Takes in one event of a stream, or a whole answer, of either of the two interfaces."""
        for choice in event.get("choices") or []:
            said = choice.get("delta") or choice.get("message") or choice
            # Servers that part the thinking from the answer call it by one of two names.
            thought = said.get("reasoning") or said.get("reasoning_content")
            text = said.get("content") or said.get("text")
            if thought:
                self.thought.append(thought)
            if text:
                self.text.append(text)
            if thought or text:
                self.tokens += 1
            if choice.get("finish_reason"):
                self.finish_reason = "length" if choice["finish_reason"] == "length" else "stop"
        if usage := event.get("usage"):
            self.tokens = int(usage.get("completion_tokens") or 0)
            self.prompt_tokens = int(usage.get("prompt_tokens") or 0)

    def completion(self, index: int, reason: FinishReason) -> Completion:
        text = "".join(self.text)
        if self.thought:
            text = f"<think>\n{''.join(self.thought)}\n</think>\n{text}"
        return Completion(index, text, self.tokens, reason, self.prompt_tokens)


class OpenAISampler:
    """Draws completions from servers; every completion is a request with a seed of its own.

    Answers are read as streams, so that an aborted completion comes back with what it has cost: to
    abort is to close the connection, which is how a server learns of it. When a server dies, its
    requests begin again on another one, with the same seeds.
    """

    def __init__(self, config: SamplerConfig, *, seed: int):
        self._config = config
        self._seed = seed
        self._path = "/v1/chat/completions" if config.prompt.chat else "/v1/completions"
        self._request = _request(config)
        self._servers = Servers(config.server, model=config.model)
        self._servers.models()

    async def sample(
        self, problem: Problem, n: int, first_index: int, *, abort: asyncio.Event
    ) -> AsyncGenerator[Completion, None]:
        """Draws n completions; see `Sampler.sample`."""
        tasks = [
            asyncio.create_task(self._completion(problem, first_index + i, abort)) for i in range(n)
        ]
        watch = asyncio.create_task(_cancel_when_set(abort, tasks))
        try:
            async with contextlib.aclosing(as_they_end(tasks)) as completions:
                async for completion in completions:
                    yield completion
        finally:
            await cancelled(watch)

    async def _completion(self, problem: Problem, index: int, abort: asyncio.Event) -> Completion:
        draft = _Draft()
        if abort.is_set():
            return draft.completion(index, "abort")
        body = {
            **self._request,
            **self._prompt(problem.text),
            "seed": sample_seed(self._seed, problem.id, index),
        }
        try:
            events = self._servers.stream(self._path, body)
            async with contextlib.aclosing(events):
                async for event in events:
                    # What has come already is read without a pause: let the others have their turn,
                    # so that those that end early are seen early where this process is behind.
                    await asyncio.sleep(0)
                    if "restarted" in event:
                        draft.restart()
                    else:
                        draft.add(event)
        except asyncio.CancelledError:
            if not abort.is_set():
                raise
            return draft.completion(index, draft.finish_reason or "abort")
        except BadRequestError as error:
            if "context" in str(error) or "too long" in str(error):
                raise ProblemError(f"problem {problem.id}: {error}") from error
            raise
        if draft.finish_reason is None:
            raise BackendError(f"a server of {self._config.model} ended a completion without why")
        return draft.completion(index, draft.finish_reason)

    def _prompt(self, text: str) -> dict[str, Any]:
        prompt, text = self._config.prompt, neutral(text)
        if not prompt.chat:
            return {"prompt": prompt.template.replace("{problem}", text) + prompt.prefix}
        messages = prompt.messages(text)
        if prompt.prefix:
            messages.append({"role": "assistant", "content": prompt.prefix})
        return {"messages": messages}

    async def close(self) -> None:
        """Closes the connections."""
        await self._servers.close()


async def _cancel_when_set(abort: asyncio.Event, tasks: "list[asyncio.Task[Completion]]") -> None:
    # The tasks were created before this one, so they have begun and answer for themselves.
    await abort.wait()
    for task in tasks:
        task.cancel()


def _request(config: SamplerConfig) -> dict[str, Any]:
    """What all requests have in common."""
    prompt, server = config.prompt, config.server
    request: dict[str, Any] = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        "n": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if config.stop:
        request["stop"] = list(config.stop)
    beyond: dict[str, Any] = {}
    if config.top_k:
        beyond["top_k"] = config.top_k
    if prompt.chat_template is not None:
        beyond["chat_template"] = read_template(prompt.chat_template)
    if prompt.chat_template_args:
        beyond["chat_template_kwargs"] = dict(prompt.chat_template_args)
    if prompt.chat and prompt.prefix:
        beyond |= {"continue_final_message": True, "add_generation_prompt": False}
    if not server.vllm and beyond:
        raise BackendError(
            f"OpenAI's interface has no {', '.join(beyond)}; leave out what needs it (top_k, "
            "prompt.chat_template, prompt.chat_template_args, prompt.prefix), or set server.vllm"
        )
    if server.vllm:
        request["stream_options"]["continuous_usage_stats"] = True
        request["stream_interval"] = _STREAM_INTERVAL
        # Without it, a server adds what the checkpoint's generation_config.json says.
        beyond.setdefault("top_k", -1)
        beyond["repetition_penalty"] = 1.0
        beyond["min_p"] = 0.0
    return request | beyond | config.extra
