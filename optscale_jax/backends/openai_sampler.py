"""A sampler that asks OpenAI-compatible servers, such as `vllm serve`."""

import asyncio
import contextlib
import json
import math
import re
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from optscale_jax.backends.asked import Asked, Reply, calls_as_text
from optscale_jax.backends.base import lost, sample_seed, spent_on
from optscale_jax.backends.concurrency import as_they_end, cancel_when_set, cancelled
from optscale_jax.backends.config import SamplerConfig
from optscale_jax.backends.generative import Weighed
from optscale_jax.backends.prompts import neutral
from optscale_jax.backends.servers import Answer, Servers
from optscale_jax.backends.text import read_template
from optscale_jax.derived_signals import mean_logprob
from optscale_jax.errors import BackendError, BadRequestError, ProblemError
from optscale_jax.records import PASSING, Completion, Problem, finish_reason

__all__ = ["OpenAISampler"]

# A vLLM server sends its completions in pieces of so many tokens: each costs the server and this
# process some time, and an abort may miss the tokens of one piece.
_STREAM_INTERVAL = 16


# Longer is no completion of any model, but a server that does not stop.
_MOST_CHARACTERS = 1 << 24
_MOST_TOKENS = 1 << 31

# Servers that part the thinking from the answer call it by one of these names.
_THOUGHTS = ("reasoning", "reasoning_content", "thinking", "reasoning_details")


class _Draft(Answer):
    """A completion while it is read (see `servers.Answer`).

    Attributes:
        tokens: As the server counts them, or else the pieces that have come; -1 = unknown.
        finish: Why it ended, in the server's word; None = that is not said yet.
        decided: Whether what is wrong with it, if anything is, is this completion's alone.
        calls: Tool calls by their index, where a client asks (`Asked`).
        logprobs: What the server says of tokens, as it says it, where a client asks.
        likely: Log-probabilities, as `Weighed` has them; none where the server gives none, and
            unless it is to be weighed: they are many.
        logprob: Sum of the log-probabilities of the tokens drawn, and of how many.
        redrawn: Tokens of the tries before, and of what was asked because of it.
    """

    tokens = redrawn = 0

    def __init__(self, weighed: bool = False, *, asked: bool = False) -> None:
        self._asked = asked
        self.weighed = weighed
        self.restart()

    @property
    def spent(self) -> int:
        """All its tokens so far, as far as they are known."""
        return self.redrawn + max(self.tokens, 0)

    def restart(self) -> None:
        self.redrawn = self.spent
        self.thought: list[str] = []
        self.text: list[str] = []
        self.length = 0
        self.tokens = 0
        self.prompt_tokens = 0
        self.finish: str | None = None
        self.decided = False
        self.likely: list[tuple[str, dict[str, float]]] = []
        self.logprob = (0.0, 0)
        self.calls: dict[int, dict[str, Any]] = {}
        self.logprobs: dict[str, list[Any]] = {}

    @property
    def ended(self) -> bool:
        return self.finish is not None

    def add(self, event: dict[str, Any]) -> bool:
        """Takes in one event of a stream, or a whole answer, of either of the two interfaces."""
        usages, news = [event.get("usage")], False
        for choice in _list_of_dicts(event.get("choices")):
            if choice.get("index") not in (None, 0, "0"):
                continue  # one is asked for, and more are sent all the same
            usages.append(choice.get("usage"))
            # A whole message after its own pieces would be the text twice.
            first = not (self.text or self.thought)
            whole = choice.get("message") if first else None
            pieces = list(_said(choice.get("delta") or whole or {"text": choice.get("text")}))
            for thought, piece in pieces:
                (self.thought if thought else self.text).append(piece)
                self.length += len(piece)
            if self.length > _MOST_CHARACTERS:
                raise ValueError(f"sends a completion of over {_MOST_CHARACTERS} characters")
            word = _word(choice.get("finish_reason"))
            if self.weighed:
                self.likely += _likely(choice.get("logprobs"))
            drawn = _drawn(choice.get("logprobs"))
            self.logprob = (self.logprob[0] + sum(drawn), self.logprob[1] + len(drawn))
            if self._asked and isinstance(choice.get("logprobs"), dict):
                for name, values in choice["logprobs"].items():
                    self.logprobs.setdefault(name, []).extend(values or ())
            calling = self._add_calls(choice.get("delta") or whole or {})
            if pieces or calling:
                # All in one piece: how many tokens that is, only usage says.
                self.tokens = -1 if first and word else max(self.tokens, 0) + 1
            # One that says so with every piece has not ended with the first.
            if pieces or calling or word:
                self.finish, news = word, True
        for usage in usages:
            if isinstance(usage, dict):
                news = True
                self.tokens = _count(usage.get("completion_tokens")) or self.tokens
                self.prompt_tokens = _count(usage.get("prompt_tokens")) or self.prompt_tokens
        return news

    def _add_calls(self, said: Any) -> bool:
        """Takes in the pieces of tool calls, and says whether there were any."""
        known = self._asked and isinstance(said, dict)
        pieces = _list_of_dicts(said.get("tool_calls")) if known else []
        for place, piece in enumerate(pieces):
            index = piece.get("index", place)
            call = self.calls.setdefault(index, {"id": None, "type": "function"})
            function = call.setdefault("function", {"name": "", "arguments": ""})
            call |= {name: piece[name] for name in ("id", "type") if piece.get(name)}
            for name, value in (piece.get("function") or {}).items():
                if isinstance(value, str):
                    function[name] = function.get(name, "") + value
                    self.length += len(value)
        return bool(pieces)

    def message(self) -> dict[str, Any]:
        """What has come, in the parts that a chat's answer has."""
        parts = {"content": "".join(self.text), "reasoning_content": "".join(self.thought)}
        said = {name: _sound(part) or None for name, part in parts.items()}
        calls = [call for _, call in sorted(self.calls.items())]
        return said | ({"tool_calls": calls} if calls else {})

    def end(self, done: bool) -> str | None:
        self.decided = done or self.ended
        if self.finish is None:
            return "ended a completion without why" if done else "ended its answer in the middle"
        passing = self.finish in PASSING
        return f"ended a completion with the finish reason {self.finish!r}" if passing else None

    def whole(self) -> str:
        """All that has come, the thinking first."""
        text = "".join(self.text)
        if self.thought:
            text = f"<think>\n{''.join(self.thought)}\n</think>\n{text}"
        return _sound(text) + (calls_as_text(self.calls.values()) if self.calls else "")


def _sound(text: str) -> str:
    """The halves of a character that two events held come together, and others are replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _list_of_dicts(value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"answers with choices that are none: {json.dumps(value)}")
    return value


def _said(value: Any, thought: bool = False) -> Iterator[tuple[bool, str]]:
    """The texts in what a choice says, each with whether it is thinking.

    Content is a text, a list of parts or a part, and so is thinking.
    """
    if isinstance(value, str):
        if value:
            yield thought, value
    elif isinstance(value, list):
        for part in value:
            yield from _said(part, thought)
    elif isinstance(value, dict):
        # The same thinking may stand under two names.
        thoughts = next((value[name] for name in _THOUGHTS if value.get(name)), None)
        yield from _said(thoughts, True)
        thought |= str(value.get("type", "")).startswith(("reasoning", "thinking"))
        texts = ("content", "text", "value", "summary", "refusal")
        yield from _said(next((value[name] for name in texts if value.get(name)), None), thought)
    elif value:
        raise ValueError(f"answers with {json.dumps(value)} in the place of a text")


def _likely(value: Any) -> list[tuple[str, dict[str, float]]]:
    """The tokens of a choice and the likeliest in their places, as either interface gives them.

    None for what is of another form: who needs them does without.
    """
    try:
        if tokens := value.get("content"):
            places = [(one["token"], one["top_logprobs"]) for one in tokens]
            named = [(text, {o["token"]: o["logprob"] for o in others}) for text, others in places]
        else:
            named = list(zip(value["tokens"], value["top_logprobs"], strict=True))
        return [(str(text), {k: float(v) for k, v in tops.items()}) for text, tops in named]
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _drawn(value: Any) -> list[float]:
    """The log-probabilities of a choice's tokens, as either interface gives them; or none."""
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError, OverflowError):
        chat = value.get("content")
        given = [one["logprob"] for one in chat] if chat else value["token_logprobs"]
        return [float(logprob) for logprob in given]
    return []


def _count(value: Any) -> int:
    """A number of tokens; 0 where it is none that can be, which servers say for unknown."""
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        if 0 < int(value) < _MOST_TOKENS and not isinstance(value, bool):
            return int(value)
    return 0


def _word(value: Any) -> str | None:
    """A finish reason as servers say it: a word, or an object with its type; None for none."""
    if isinstance(value, dict):
        value = value.get("type")
    word = re.sub(r"^finish_?reason[._]", "", str(value or "").strip().casefold())
    return None if word in ("", "null", "none") else word


class OpenAISampler:
    """Draws completions from servers; every completion is a request with a seed of its own.

    Answers are read as streams, so that an aborted completion comes back with what it has cost: to
    abort is to close the connection, which is how a server learns of it. When a server dies, its
    requests begin again on another one, with the same seeds.
    """

    def __init__(self, config: SamplerConfig, *, seed: int):
        self._config = config
        self._seed = seed
        self._path = "chat/completions" if config.prompt.chat else "completions"
        self._request = _request(config)
        self._weighs = any(config.extra.get(name) for name in ("logprobs", "top_logprobs"))
        self._servers = Servers(config.server, model=config.model)
        self.max_len: int | None = self._servers.models().get("max_model_len")
        asked = self._request | config.extra
        self.most_tokens: int = asked.get("max_completion_tokens") or asked["max_tokens"]
        self._probing = asyncio.Lock()
        self._answered = -math.inf
        """When the latest request was sent that has been answered."""

    async def sample(
        self, problem: Problem, n: int, first_index: int, *, abort: asyncio.Event
    ) -> AsyncGenerator[Completion, None]:
        """Draws n completions; see `Sampler.sample`."""
        tasks = [
            asyncio.create_task(self._completion(problem, first_index + i, abort)) for i in range(n)
        ]
        watch = asyncio.create_task(cancel_when_set(abort, tasks))
        try:
            ended = as_they_end(tasks, unread=lambda one: lost(spent_on(one)))
            async with contextlib.aclosing(ended) as completions:
                async for completion in completions:
                    yield completion
        finally:
            await cancelled(watch)

    async def _completion(self, problem: Problem, index: int, abort: asyncio.Event) -> Completion:
        draft = _Draft(self._weighs, asked=isinstance(problem, Asked))
        error = None
        try:
            if not abort.is_set():
                error = await self._drawn(problem, index, draft)
        except (asyncio.CancelledError, BackendError) as ended:
            if isinstance(ended, BackendError) or not abort.is_set():
                lost(draft.spent)
                raise
        reason = finish_reason(draft.finish) if draft.ended else "abort"
        if reason == "error" and error is None:
            error = self._servers.quoted(f"its finish reason is {draft.finish!r}")
        text = self._servers.without_secrets(draft.whole())
        reason = "error" if error else reason
        told = index, text, draft.tokens, reason, draft.prompt_tokens, error
        known = {"mean_logprob": mean_logprob(*draft.logprob), "redrawn": draft.redrawn}
        if isinstance(problem, Asked):
            # Those that nobody but this sampler asked for stay here.
            wanted = problem.fields.get("logprobs") not in (None, False)
            logprobs = draft.logprobs if wanted and draft.logprobs else None
            finish = draft.finish or "stop"
            rest = {"message": draft.message(), "finish": finish, "logprobs": logprobs}
            return Reply(*told, **known, **rest)
        if draft.likely:
            return Weighed(*told, **known, likely=tuple(draft.likely))
        return Completion(*told, **known)

    async def _drawn(self, problem: Problem, index: int, draft: _Draft) -> str | None:
        """Has a completion drawn.

        Returns:
            Why it is of no use; None if it is.

        Raises:
            ProblemError: If it is this problem that servers refuse.
            BackendError: If they would answer no other request either.
        """
        sent = time.monotonic()
        try:
            path = self._path
            if isinstance(problem, Asked):
                path = "chat/completions" if "messages" in problem.fields else "completions"
            await self._servers.ask(path, self._body(problem, index), draft)
            self._answered = max(self._answered, sent)
            return None
        except BackendError as error:
            failed = time.monotonic()
            refused = isinstance(error, BadRequestError)
            # Whether a client's own request is odd is the client's to find out.
            if refused and isinstance(problem, Asked):
                raise ProblemError(f"problem {problem.id}: {error}") from error
            if not (refused and error.too_long) and not draft.decided:
                # One odd request ends no run; whether it is odd, another one shows.
                async with self._probing:
                    if self._answered < failed:
                        await self._probe(error, draft)
            if refused:
                told = f"problem {problem.id}: {error}"
                raise ProblemError(told, too_long=error.too_long) from error
            return str(error)

    async def _probe(self, error: BackendError, draft: _Draft) -> None:
        """Asks for something simple, as all requests ask; raises the error if that is in vain."""
        sent, answer = time.monotonic(), _Draft()
        try:
            body = self._body(Problem("probe", "What is 1 + 1?"), 0)
            await self._servers.ask(self._path, body, answer)
        except BackendError:
            raise error from None
        finally:
            draft.redrawn += answer.spent
        self._answered = sent

    def _body(self, problem: Problem, index: int) -> dict[str, Any]:
        seed = sample_seed(self._seed, problem.id, index)
        asked = problem.fields if isinstance(problem, Asked) else None
        # Other servers' seeds are of 32 bits, some of them with a sign.
        fields = {
            **self._request,
            "seed": seed if self._config.server.vllm else seed >> 22,
            **(self._prompt(problem.text) if asked is None else {}),
            **self._config.extra,
            **(asked or {}),
        }
        return {name: value for name, value in fields.items() if value is not None}

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
    if config.logprobs:
        # Of the drawn token alone; the other interface says how many others to give beside it.
        request["logprobs"] = True if prompt.chat else 0
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
    return request | beyond
