"""OpenAI's forms: what a request may hold, what an answer looks like, and how errors are said."""

import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from optscale_jax.backends.asked import Reply
from optscale_jax.errors import did_you_mean

__all__ = [
    "FIELDS",
    "OPTIONS",
    "RANGES",
    "UNUSED",
    "VLLM_FIELDS",
    "ApiError",
    "Asking",
    "Choice",
    "Kind",
    "Result",
    "canonical",
    "chunks",
    "error_body",
    "parse",
    "whole",
]

Kind = Literal["chat", "text"]
_SEED = 1 << 63
# Deeper ones would end in Python's limit on recursion wherever they are written again.
_DEEPEST = 100
_LONGEST_MESSAGE = 1000

# Fields of the two interfaces that concern a completion, and so are passed on.
_BOTH = {
    "temperature": float, "top_p": float, "max_tokens": int, "stop": None, "seed": int,
    "presence_penalty": float, "frequency_penalty": float, "logit_bias": dict,
}  # fmt: skip
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "chat": _BOTH
    | {
        "messages": list, "max_completion_tokens": int, "tools": list, "tool_choice": None,
        "parallel_tool_calls": bool, "response_format": dict, "logprobs": bool,
        "top_logprobs": int, "reasoning_effort": str, "verbosity": str, "modalities": list,
        "prediction": dict, "functions": list, "function_call": None,
    },
    "text": _BOTH | {"prompt": None, "suffix": str, "logprobs": int},
}  # fmt: skip
# What vLLM's servers take beside them.
VLLM_FIELDS = (
    *("top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos"),
    *("bad_words", "skip_special_tokens", "spaces_between_special_tokens", "chat_template_kwargs"),
    *("structured_outputs", "include_stop_str_in_output", "length_penalty", "include_reasoning"),
)
# What concerns the account and not the completion is taken and not looked at.
UNUSED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention",
}  # fmt: skip
OPTIONS = {"policy": str, "budget": float, "max_samples": int, "seconds": float}
OPTIONS |= {"n_candidates": int}
# What numbers may be, beside what the model bounds.
_LONGEST = ("max_tokens", "max_completion_tokens")
RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "seed": (-_SEED, _SEED - 1),
    "logprobs": (0, 20),  # a number in text completions, and yes or no in chats
    "top_logprobs": (0, 20),
}
_WORDS = {float: "a number", int: "an integer", bool: "true or false", str: "a text"}
_WORDS |= {list: "a list", dict: "an object"}


class ApiError(Exception):
    """An error as a client gets it: a status, and a sentence that says what to do."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after


_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(error: ApiError) -> dict[str, Any]:
    """The error in OpenAI's form."""
    usual = "server_error" if error.status >= 500 else "invalid_request_error"
    kind = _TYPES.get(error.status, usual)
    # It may quote what the client has sent.
    message = str(error)[:_LONGEST_MESSAGE]
    param = error.param and error.param[:_LONGEST_MESSAGE]
    said = {"message": message, "type": kind, "param": param, "code": error.code}
    return {"error": said}


# Requests -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Asking:
    """What a request asks for.

    Attributes:
        model: The model's name, with @POLICY perhaps; "" for none.
        fields: What is passed on.
        text: The question, as a verifier reads it.
        n: How many answers.
        stream: Whether they come as a stream,
        include_usage: whose last event has the usage.
        seed: The client's; None = none.
        options: policy, budget, max_samples, seconds and n_candidates, those given.
    """

    kind: Kind
    model: str
    fields: dict[str, Any]
    text: str
    n: int
    stream: bool
    include_usage: bool
    seed: int | None
    options: dict[str, Any]

    @property
    def answers_are_json(self) -> bool:
        """Whether answers are to be compared as JSON."""
        form = (self.fields.get("response_format") or {}).get("type", "text")
        return form in ("json_object", "json_schema")


def parse(body: Any, kind: Kind, further: Sequence[str], longest: int) -> Asking:
    """Reads a request's body.

    Args:
        body: What its JSON holds.
        kind: The interface that it came to.
        further: Fields that its model takes beside OpenAI's.
        longest: The most tokens that a completion of it may have.

    Raises:
        ApiError: A field is missing, unknown, or has a value that it cannot have.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be a JSON object.")
    if _deeper(body, _DEEPEST):
        raise ApiError(400, f"The body is nested deeper than {_DEEPEST} levels.")
    known = FIELDS[kind]
    given = {name: value for name, value in body.items() if value is not None}
    own = {"model", "n", "stream", "stream_options", "optscale"}
    for name in given:
        if not (name in own or name in known or name in UNUSED or name in further):
            near = did_you_mean(name, [*known, *own, *further], "see docs/gateway.md; it takes")
            message = f"Unrecognized request argument supplied: {name}{near}"
            raise ApiError(400, message, param=name, code="unknown_parameter")
    for name, value in given.items():
        if (kind_of := known.get(name)) is not None:
            given[name] = _typed(name, value, kind_of)
    fields = {name: given[name] for name in given if name in known or name in further}
    limits = RANGES | dict.fromkeys(_LONGEST, (1, longest))
    for name, (least, most) in limits.items():
        if name in fields and not least <= fields[name] <= most:
            message = f"{name} is {fields[name]}; it must be from {least} to {most}."
            raise ApiError(400, message, param=name)
    if bounds := [fields.pop(name) for name in _LONGEST if name in fields]:
        # Servers know the older name, and some of them no other.
        fields["max_tokens"] = min(bounds)
    text = _conversation(fields) if kind == "chat" else _prompt(fields)
    n = _typed("n", given.get("n", 1), int)
    if n < 1:
        raise ApiError(400, f"n is {n}; it must be at least 1.", param="n")
    about = _typed("stream_options", given.get("stream_options", {}), dict)
    include_usage = about.get("include_usage")
    include_usage = False if include_usage is None else include_usage
    options = _typed("optscale", given.get("optscale", {}), dict)
    for name, value in options.items():
        if name not in OPTIONS:
            near = did_you_mean(name, OPTIONS, "it takes")
            raise ApiError(400, f"optscale.{name}: no such option{near}", param="optscale")
        if value is not None:
            options[name] = value = _typed(f"optscale.{name}", value, OPTIONS[name])
            if not isinstance(value, str) and value <= 0:
                raise ApiError(400, f"optscale.{name} is {value}; it must be above 0.")
    return Asking(
        kind=kind,
        model=_typed("model", given.get("model", ""), str),
        fields=fields,
        text=text,
        n=n,
        stream=_typed("stream", given.get("stream", False), bool),
        include_usage=_typed("stream_options.include_usage", include_usage, bool),
        seed=fields.pop("seed", None),
        options={name: value for name, value in options.items() if value is not None},
    )


def _deeper(value: Any, most: int) -> bool:
    """Whether lists and objects are in each other for more than so many levels."""
    level = [value]
    for _ in range(most):
        inside = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for held in inside for one in held if isinstance(one, (dict, list))]
        if not level:
            return False
    return True


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # 4.0 is an integer in JSON
    good = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if good and kind in (int, float):
        # No NaN, and no integer that is longer than any float.
        good = not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not good:
        raise ApiError(400, f"{name} must be {_WORDS[kind]}.", param=name)
    return value


def _conversation(fields: Mapping[str, Any]) -> str:
    messages = fields.get("messages")
    if not messages or not all(isinstance(one, dict) for one in messages):
        message = "messages must be a list of objects with role and content, at least one."
        raise ApiError(400, message, param="messages")
    turns = []
    for place, one in enumerate(messages):
        if not isinstance(one.get("role"), str):
            raise ApiError(400, f"messages[{place}] has no role.", param="messages")
        said = _content(one.get("content"), f"messages[{place}].content")
        turns.append((one["role"], said))
    said = [(role, text) for role, text in turns if role in ("user", "assistant", "tool") and text]
    if [role for role, _ in said] == ["user"]:
        return said[0][1]
    return "\n\n".join(f"{role.capitalize()}: {text}" for role, text in said)


def _content(content: Any, where: str) -> str:
    """The text of a message's content."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ApiError(400, f"{where} must be a text or a list of parts.", param="messages")
    for part in content:
        # A server would fetch it: no request chooses where servers connect to.
        for value in part.values():
            url = value.get("url") if isinstance(value, dict) else value
            if part.get("type") != "text" and re.match(r"(?i)\s*(?!data:)\w+://", str(url)):
                message = f"{where}: addresses are not fetched; send the data itself as data:..."
                raise ApiError(400, message, param="messages")
    texts = [part.get("text") for part in content]
    return "\n".join(text for text in texts if isinstance(text, str))


def _prompt(fields: dict[str, Any]) -> str:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = fields["prompt"] = prompt[0]
    if not isinstance(prompt, str):
        message = "prompt must be one text; send several, or tokens, as requests of their own."
        raise ApiError(400, message, param="prompt")
    return prompt


# Answers ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Choice:
    """One answer: a completion, and what is known of it."""

    completion: Any
    known: Mapping[str, Any]

    def message(self) -> dict[str, Any]:
        """The message of a chat."""
        one = self.completion
        parts = dict(one.message) if isinstance(one, Reply) else {"content": one.text}
        return {"role": "assistant", "content": None} | {
            name: value for name, value in parts.items() if value is not None or name == "content"
        }

    def text(self) -> str:
        """The text of a completion that is no chat's."""
        one = self.completion
        return (one.message.get("content") or "") if isinstance(one, Reply) else one.text

    def beside(self, index: int) -> dict[str, Any]:
        """What both interfaces have beside the text."""
        one = self.completion
        reason = one.finish_reason
        # OpenAI's own words for it; servers have others.
        if isinstance(one, Reply) and one.finish in ("tool_calls", "content_filter"):
            reason = one.finish
        logprobs = one.logprobs if isinstance(one, Reply) else None
        return {"index": index, "finish_reason": reason, "logprobs": logprobs}


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a request.

    Attributes:
        choices: The answers, the best first.
        usage: Tokens of all that was generated, with the ledger.
        id: The request's.
    """

    model: str
    choices: Sequence[Choice]
    usage: Mapping[str, Any]
    id: str
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))


_OBJECTS = {"chat": ("chatcmpl", "chat.completion"), "text": ("cmpl", "text_completion")}


def _head(result: Result, kind: Kind, suffix: str = "") -> dict[str, Any]:
    prefix, name = _OBJECTS[kind]
    head = {"id": f"{prefix}-{result.id}", "object": name + (suffix if kind == "chat" else "")}
    return head | {"created": result.created, "model": result.model}


def whole(result: Result, kind: Kind) -> dict[str, Any]:
    """The answer in one piece."""
    choices = [
        choice.beside(index)
        | ({"message": choice.message()} if kind == "chat" else {"text": choice.text()})
        | {"optscale": choice.known}
        for index, choice in enumerate(result.choices)
    ]
    return _head(result, kind) | {"choices": choices, "usage": result.usage}


_PIECE = 64


def chunks(result: Result, kind: Kind, *, include_usage: bool) -> Iterator[dict[str, Any]]:
    """The answer as a stream's events: texts in pieces, then why each ended, then the usage."""
    head = _head(result, kind, ".chunk")

    def event(**choice: Any) -> dict[str, Any]:
        usage = {"usage": None} if include_usage else {}
        return head | {"choices": [{"finish_reason": None, "logprobs": None} | choice]} | usage

    for index, choice in enumerate(result.choices):
        end = choice.beside(index)
        logprobs = end.pop("logprobs")
        if kind == "text":
            deltas = [{"text": piece} for piece in _pieces(choice.text())]
        else:
            message = choice.message()
            calls = message.pop("tool_calls", [])
            deltas = [{"role": message.pop("role"), "content": ""}]
            for name in ("reasoning_content", "content"):
                deltas += [{name: piece} for piece in _pieces(message.get(name) or "")]
            for place, call in enumerate(calls):
                deltas.append({"tool_calls": [{"index": place} | call]})
            deltas = [{"delta": delta} for delta in deltas]
        for delta in deltas:
            yield event(index=index, **delta)
        last = {"text": ""} if kind == "text" else {"delta": {}}
        yield event(**end, **last, **({"logprobs": logprobs}), optscale=choice.known)
    if include_usage:
        yield head | {"choices": [], "usage": result.usage}


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))


def canonical(text: str) -> str | None:
    """A text of JSON in the form that equal values share; None if it is none."""
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except (ValueError, RecursionError):
        return None
