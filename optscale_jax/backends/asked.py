"""What an OpenAI client asks and is answered, which texts alone would lose.

A sampler that knows these puts the request's fields in the place of its configuration's; to one
that does not, an `Asked` is a problem like any other.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from optscale_jax.records import Completion, Problem

__all__ = ["TOOL_CALLS", "Asked", "Reply", "calls_as_text"]


@dataclasses.dataclass(frozen=True)
class Asked(Problem):
    """A request.

    Attributes:
        fields: What goes to the model as it is, and wins over the configuration: messages or
            prompt, tools, temperature and the like.
    """

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Reply(Completion):
    """A completion of an `Asked`.

    Attributes:
        message: Content, reasoning and tool calls, as a chat's answer has them.
        finish: Why it ended, in the server's word.
        logprobs: As the request's interface has them; None = it did not ask.
    """

    message: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finish: str = "stop"
    logprobs: Mapping[str, Any] | None = None


TOOL_CALLS = "\n<tool_calls>"


def calls_as_text(calls: Any) -> str:
    """Tool calls as a completion's text has them at its end: equal for calls of equal meaning."""

    def said(call: Any) -> Any:
        function = dict(call.get("function") or {})
        with contextlib.suppress(ValueError, RecursionError):
            function["arguments"] = json.loads(function.get("arguments") or "{}")
        return function

    return TOOL_CALLS + json.dumps([said(call) for call in calls], sort_keys=True)
