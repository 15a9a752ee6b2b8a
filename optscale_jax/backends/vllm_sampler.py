"""A sampler that runs vLLM in this process."""

import asyncio
import contextlib
import copy
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple

from optscale_jax.backends.asked import Asked, Reply
from optscale_jax.backends.base import lost, sample_seed, spent_on
from optscale_jax.backends.concurrency import as_they_end, cancelled
from optscale_jax.backends.config import PromptConfig, SamplerConfig
from optscale_jax.backends.generative import Weighed
from optscale_jax.backends.prompts import place, tokens_of
from optscale_jax.backends.text import one_line, read_template
from optscale_jax.backends.vllm_engine import engine_environment, start_engine
from optscale_jax.derived_signals import mean_logprob
from optscale_jax.errors import BackendError, ProblemError
from optscale_jax.records import Completion, Problem, finish_reason

__all__ = ["VllmSampler", "prompt_token_ids"]

# How often an abort is repeated while requests are still on their way into the engine.
_ABORT_AGAIN_SECONDS = 0.02
# How long an engine may take to say how far requests have come that nobody waits for.
_ABORT_SECONDS = 5.0
_NO_PARAMETERS = ("messages", "prompt", "response_format", "top_logprobs")


class _Request(NamedTuple):
    """What the completions of a problem share.

    Attributes:
        prompt: Token ids.
        params: vLLM's `SamplingParams`, but for the seed.
        own: Those that a client has asked for.
        read_at_end: Whether vLLM hands out token ids alone, whose text is read once they are all
            there. Token by token it takes its process as long as all else that it does for a
            request. A text to stop at, and log-probabilities, which name their tokens, need it.
    """

    prompt: list[int]
    params: Any
    own: Mapping[str, Any]
    read_at_end: bool


class VllmSampler:
    """Draws completions by an engine of its own.

    Every completion is a request with a seed of its own, so that it returns as soon as it ends; the
    prompt that they share is computed once, by vLLM's prefix cache. Outputs are asked for only when
    they are final: an abort through the engine, unlike one by cancelling the request's coroutine,
    makes vLLM hand out what there is, so the count of an aborted completion's tokens costs nothing
    on the way.
    """

    def __init__(self, config: SamplerConfig, *, seed: int):
        model, tokenizer = config.model, config.tokenizer
        with engine_environment(config.engine, model=model, tokenizer=tokenizer):
            from vllm.sampling_params import RequestOutputKind, SamplingParams

        self._config = config
        self._seed = seed
        self._requests = itertools.count()
        try:
            # The last two win, because the rest of this class relies on them.
            self._params = {
                "temperature": config.temperature,
                "top_p": config.top_p,
                "top_k": config.top_k,
                "max_tokens": config.max_tokens,
                "stop": list(config.stop),
                # Of the drawn token alone; flat, as an object a token would fill the memory.
                "logprobs": 0 if config.logprobs else None,
                "flat_logprobs": config.logprobs,
                **config.extra,
                "n": 1,
                "output_kind": RequestOutputKind.FINAL_ONLY,
            }
            SamplingParams(**self._params)
        except (TypeError, ValueError) as error:
            raise BackendError(f"the sampler's parameters: {one_line(error)}") from error
        self._engine = start_engine(
            config.engine,
            model=model,
            revision=config.revision,
            tokenizer=tokenizer,
            seeded=True,
            enable_prefix_caching=True,
        )
        try:
            self._tokenizer = self._engine.llm.get_tokenizer()
            self.max_len: int = self._engine.llm.model_config.max_model_len
            self.most_tokens: int = self._params["max_tokens"]
            # Now, so that a chat template that cannot be used is known before any problem is.
            prompt_token_ids(self._tokenizer, config.prompt, "1 + 1")
        except BaseException:
            self._engine.shutdown()
            raise

    async def sample(
        self, problem: Problem, n: int, first_index: int, *, abort: asyncio.Event
    ) -> AsyncGenerator[Completion, None]:
        """Draws n completions; see `Sampler.sample`."""
        prompt = self._prompt(problem)
        if len(prompt) >= self.max_len:
            raise ProblemError(
                f"problem {problem.id}: its prompt has {len(prompt)} tokens, and the sampler's "
                f"context of {self.max_len} leaves none for a completion; raise "
                "engine.max_model_len or leave the problem out",
                too_long=True,
            )
        request = self._request(problem, prompt)
        names = [f"{problem.id}/{next(self._requests)}" for _ in range(n)]
        tasks = [
            asyncio.create_task(self._completion(problem, request, first_index + i, name, abort))
            for i, name in enumerate(names)
        ]
        watch = asyncio.create_task(self._abort_when_set(abort, names, tasks))

        async def stop(*_: object) -> None:
            # As an abort, which says how far each has come; a cancelled request does not.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_ABORT_SECONDS):
                    await self._abort(names, tasks)
            await cancelled(*tasks)

        try:
            ended = as_they_end(tasks, unread=lambda one: lost(spent_on(one)), stop=stop)
            async with contextlib.aclosing(ended) as completions:
                async for completion in completions:
                    yield completion
        finally:
            await cancelled(watch)

    async def _completion(
        self, problem: Problem, request: _Request, index: int, name: str, abort: asyncio.Event
    ) -> Completion:
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if abort.is_set():
            return Completion(index, "", 0, "abort", 0)
        prompt, params = request.prompt, copy.copy(request.params)
        params.seed = sample_seed(self._seed, problem.id, index)
        try:
            async for output in self._engine.llm.generate(tokens_input(prompt), params, name):
                if output.finished:
                    only = output.outputs[0]
                    text, word = only.text, only.finish_reason
                    if request.read_at_end:
                        text = _text_of(self._tokenizer, prompt, params, only)
                    reason = "abort" if abort.is_set() and word == "abort" else finish_reason(word)
                    error = f"vLLM's finish reason is {word!r}" if reason == "error" else None
                    count = len(only.token_ids)
                    mean = mean_logprob(only.cumulative_logprob, count)
                    told = index, text, count, reason, len(prompt), error, mean
                    if isinstance(problem, Asked):
                        most, told_of = request.own.get("logprobs"), None
                        if most is not None and only.logprobs is not None:
                            places = list(zip(only.token_ids, only.logprobs, strict=True))
                            told_of = _logprobs(places, most, chat="messages" in problem.fields)
                        message, finish = {"content": text}, word or "stop"
                        return Reply(*told, message=message, finish=finish, logprobs=told_of)
                    if only.logprobs is None or not self._params["logprobs"]:
                        return Completion(*told)
                    likely = [
                        (
                            each[token].decoded_token or "",
                            {other.decoded_token or "": other.logprob for other in each.values()},
                        )
                        for token, each in zip(only.token_ids, only.logprobs, strict=True)
                        if each is not None
                    ]
                    return Weighed(*told, likely=tuple(likely))
        except EngineDeadError as error:
            raise self._engine.died() from error
        except (EngineGenerateError, ValueError) as error:
            cause = error.__cause__ or error
            raise ProblemError(f"problem {problem.id}: vLLM: {one_line(cause)}") from error
        raise BackendError(f"{self._config.model}: vLLM ended a request without an output")

    def _request(self, problem: Problem, prompt: list[int]) -> _Request:
        from vllm.sampling_params import SamplingParams

        try:
            own = _own_parameters(problem.fields if isinstance(problem, Asked) else {})
            params = SamplingParams(skip_clone=True, **{**self._params, **own})
        except (TypeError, ValueError) as error:
            raise ProblemError(f"problem {problem.id}: {one_line(error)}") from error
        tokens_named = params.logprobs is not None or params.prompt_logprobs is not None
        read_at_end = params.detokenize and not (params.stop or tokens_named)
        if read_at_end:
            params.detokenize = False
        return _Request(prompt, params, own, read_at_end)

    def _prompt(self, problem: Problem) -> list[int]:
        config = self._config.prompt
        if not isinstance(problem, Asked):
            return prompt_token_ids(self._tokenizer, config, problem.text)
        try:
            if "prompt" in problem.fields:
                plain = PromptConfig(chat=False)
                return prompt_token_ids(self._tokenizer, plain, problem.text)
            given = problem.fields["messages"]
            texts = [_text(one.get("content")) for one in given]
            placed = [{**one, "content": place(index)} for index, one in enumerate(given)]
            return _chat_token_ids(self._tokenizer, config, placed, texts)
        except BackendError as error:
            raise ProblemError(f"problem {problem.id}: {error}") from error

    async def _abort_when_set(
        self, abort: asyncio.Event, names: list[str], tasks: list[asyncio.Task[Completion]]
    ) -> None:
        await abort.wait()
        await self._abort(names, tasks)

    async def _abort(self, names: list[str], tasks: list[asyncio.Task[Completion]]) -> None:
        # Again and again, because a request that is still being added is not known to vLLM yet.
        while any(not task.done() for task in tasks):
            await self._engine.llm.abort(
                [name for name, task in zip(names, tasks, strict=True) if not task.done()]
            )
            await asyncio.wait(tasks, timeout=_ABORT_AGAIN_SECONDS)

    async def close(self) -> None:
        """Ends the engine's processes."""
        await self._engine.close()


def prompt_token_ids(tokenizer: Any, config: PromptConfig, text: str) -> list[int]:
    """The prompt for a problem's text.

    Args:
        tokenizer: The model's, of transformers.
        config: How to write it.
        text: The problem's text.

    Returns:
        Token ids.

    Raises:
        BackendError: If the tokenizer has no chat template, or the template cannot be used.
    """
    tokens = tokens_of(tokenizer)
    if not config.chat:
        plain = config.template.replace("{problem}", place(0)) + config.prefix
        return tokens(plain, [text], begin=tokenizer.encode("")).ids
    return _chat_token_ids(tokenizer, config, config.messages(place(0)), [text])


def _chat_token_ids(
    tokenizer: Any,
    config: PromptConfig,
    messages: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
) -> list[int]:
    """The prompt of a chat with a place for each text, in which nothing is a control token."""
    tokens = tokens_of(tokenizer)
    if config.chat_template is None and not tokenizer.chat_template:
        raise BackendError(
            "the sampler's tokenizer has no chat template; give one as prompt.chat_template, or "
            "set prompt.chat to false"
        )
    template = None if config.chat_template is None else read_template(config.chat_template)
    try:
        chat = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            **config.chat_template_args,
        )
    # Jinja's errors, and the templates' own ("system role not supported").
    except Exception as error:
        raise BackendError(f"the sampler's chat template: {one_line(error)}") from error
    # The template writes a model's first token itself.
    return tokens(chat + config.prefix, texts).ids


def _text_of(tokenizer: Any, prompt: list[int], params: Any, ended: Any) -> str:
    """The text of a completion that has ended, by what vLLM reads one token by token with.

    That goes on from the prompt, so that a space at the beginning is kept, and leaves half a
    character at the end out.
    """
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer, IncrementalDetokenizer

    given = EngineCoreRequest("", prompt, None, params, None, 0.0, None, None, None)
    reader: Any = IncrementalDetokenizer.from_new_request(tokenizer, given)
    ids = list(ended.token_ids)
    if ended.finish_reason == "stop" and not params.include_stop_str_in_output:
        ids = ids[:-1]  # the token that it stopped at
    if isinstance(reader, FastIncrementalDetokenizer) and reader.spaces_between_special_tokens:
        # All in one step, in a third to a seventh of the time. Bytes that are no character, which
        # read differently together and one by one, are left to the way below.
        with contextlib.suppress(Exception):
            text = reader.stream.step(reader.tokenizer, ids)
            if text is not None and "\ufffd" not in text:
                return text
        reader = IncrementalDetokenizer.from_new_request(tokenizer, given)
    parts = []
    for token in ids:
        reader.token_ids.append(token)
        parts.append(reader.decode_next(token))
    return "".join(parts)


def _own_parameters(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a client's fields are to the engine.

    Raises:
        ValueError: A field cannot be used.
    """
    from vllm.sampling_params import StructuredOutputsParams

    own = {name: value for name, value in fields.items() if name not in _NO_PARAMETERS}
    # A number of others beside each token, in one interface; in the other a flag and a number.
    if "messages" in fields and "logprobs" in own:
        own["logprobs"] = fields.get("top_logprobs", 0) if own["logprobs"] else None
    form = fields.get("response_format") or {}
    if (kind := form.get("type", "text")) == "json_object":
        own["structured_outputs"] = StructuredOutputsParams(json_object=True)
    elif kind == "json_schema":
        schema = (form.get("json_schema") or {}).get("schema")
        if not isinstance(schema, dict):
            raise ValueError("response_format.json_schema.schema must be an object")
        own["structured_outputs"] = StructuredOutputsParams(json=schema)
    elif kind != "text":
        raise ValueError("response_format.type must be text, json_object or json_schema")
    return own


def _logprobs(places: Sequence[tuple[int, Any]], most: int, *, chat: bool) -> dict[str, Any]:
    """Log-probabilities of tokens drawn and of the likeliest, in the form of either interface."""
    drawn = [_likelihood(each[token]) for token, each in places]
    likeliest = [
        [_likelihood(one) for one in sorted(each.values(), key=_rank) if _rank(one) <= most]
        for _, each in places
    ]
    if chat:
        both = zip(drawn, likeliest, strict=True)
        return {"content": [one | {"top_logprobs": others} for one, others in both]}
    texts = [one["token"] for one in drawn]
    return {
        "tokens": texts,
        "token_logprobs": [one["logprob"] for one in drawn],
        "top_logprobs": [{one["token"]: one["logprob"] for one in each} for each in likeliest],
        "text_offset": [0, *itertools.accumulate(map(len, texts))][:-1],
    }


def _rank(one: Any) -> int:
    return one.rank


def _likelihood(one: Any) -> dict[str, Any]:
    text = one.decoded_token or ""
    return {"token": text, "logprob": one.logprob, "bytes": list(text.encode())}


def _text(content: Any) -> str:
    """A message's content, which is a text or a list of parts."""
    if not isinstance(content, list):
        return str(content or "")
    if any(part.get("type") != "text" for part in content):
        raise BackendError("the model takes no parts of messages but texts")
    return "".join(str(part.get("text", "")) for part in content)
