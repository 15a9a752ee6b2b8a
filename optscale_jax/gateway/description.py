"""The OpenAPI description: what requests may hold, what answers have, and what errors look like."""

from collections.abc import Iterable
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from optscale_jax.gateway.protocol import FIELDS, OPTIONS, RANGES, UNUSED, Kind
from optscale_jax.gateway.service import Service

__all__ = ["answers", "body", "described"]

_KINDS = "number", "integer", "string", "boolean", "object", "array"
_NUMBER, _INTEGER, _TEXT, _FLAG, _OBJECT, _LIST = ({"type": kind} for kind in _KINDS)
_TYPES: dict[type, dict[str, Any]] = {
    float: _NUMBER,
    int: _INTEGER,
    str: _TEXT,
    bool: _FLAG,
    dict: _OBJECT,
    list: _LIST,
}
_NONE = {"type": "null"}
_COUNT = {"type": "integer", "minimum": 0}

_ERRORS = {
    400: "A field is missing, unknown or out of its range, or the model cannot take the request.",
    401: "The key is missing or unknown.",
    404: "There is no such model.",
    409: "Other feedback was given before.",
    413: "The body is too long.",
    429: "Too many requests; Retry-After says when to come back.",
    503: "The model gave nothing, or the server is being stopped.",
    504: "Nothing was ready at the request's limit.",
}


def _object(required: str = "", /, **properties: Any) -> dict[str, Any]:
    needed = {"required": required.split()} if required else {}
    return {"type": "object", "properties": properties, **needed}


def _list(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def _or_none(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, _NONE]}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def body(kind: Kind | Literal["feedback"]) -> dict[str, Any]:
    """What a route says of its request's body, which is read by hand."""
    schema = _ref(f"{kind.capitalize()}Request")
    return {"requestBody": {"required": True, "content": _json(schema)}}


def answers(name: str, *errors: int) -> dict[int | str, dict[str, Any]]:
    """What a route answers with: an object that `described` has, and errors."""
    content = _json(_ref(name))
    if name.endswith("Answer"):
        content |= {"text/event-stream": {}}  # which OpenAPI has no words for
        errors = tuple(one for one in _ERRORS if one != 409)
    found: dict[int | str, dict[str, Any]] = {200: {"description": "OK", "content": content}}
    for status in errors:
        found[status] = {"description": _ERRORS[status], "content": _json(_ref("Error"))}
    return found


def described(app: FastAPI, service: Service) -> dict[str, Any]:
    """The description, with the models that are served now."""
    told = get_openapi(title=app.title, version=app.version, routes=app.routes)
    parts = told.setdefault("components", {})
    parts["schemas"] = parts.get("schemas", {}) | _schemas(service)
    if service.config.keys:
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for one in (one for methods in told["paths"].values() for one in methods.values()):
            if "401" in one["responses"]:
                one["security"] = [{"key": []}]
    return told


def _schemas(service: Service) -> dict[str, Any]:
    usage = _object(
        "prompt_tokens completion_tokens total_tokens",
        prompt_tokens=_COUNT,
        completion_tokens=_COUNT,
        total_tokens=_COUNT,
        optscale=_object(
            "candidates",
            candidates=_COUNT,
            **dict.fromkeys(("completed", "aborted", "verifier"), _or_none(_COUNT)),
            money=_or_none(_NUMBER),
        ),
    )
    known = _object(
        "confidence samples stop_reason scores selected_index",
        confidence=_or_none({"type": "number", "minimum": 0, "maximum": 1}),
        samples=_COUNT,
        stop_reason=_TEXT,
        scores=_list(_or_none(_NUMBER)),
        selected_index=_COUNT,
        budget_share=_NUMBER,
    )

    def answer(form: str, **said: Any) -> dict[str, Any]:
        choice = _object(
            f"index finish_reason logprobs optscale {next(iter(said))}",
            index=_COUNT,
            finish_reason=_TEXT,
            logprobs=_or_none(_OBJECT),
            optscale=known,
            **said,
        )
        return _object(
            "id object created model choices usage",
            id=_TEXT,
            object={"const": form},
            created=_INTEGER,
            model=_TEXT,
            choices=_list(choice, minItems=1),
            usage=usage,
        )

    message = _object("role content", role={"const": "assistant"}, content=_or_none(_TEXT))
    error = _object(
        "message type param code",
        message=_TEXT,
        type=_TEXT,
        param=_or_none(_TEXT),
        code=_or_none(_TEXT),
    )
    return {
        "ChatRequest": _request("chat", service),
        "TextRequest": _request("text", service),
        "ChatAnswer": answer("chat.completion", message=message),
        "TextAnswer": answer("text_completion", text=_TEXT),
        "Models": _object("object data", object={"const": "list"}, data=_list(_ref("Model"))),
        "Model": _object("id object", id=_TEXT, object={"const": "model"}),
        "FeedbackRequest": _object("request_id correct", request_id=_TEXT, correct=_FLAG)
        | {"additionalProperties": False},
        "Feedback": _object(
            "object request_id correct completions",
            object={"const": "feedback"},
            request_id=_TEXT,
            correct=_FLAG,
            completions=_COUNT,
        ),
        "Numbers": _OBJECT,
        "Details": _OBJECT,
        "Health": _object("status", status={"const": "ok"}),
        "Readiness": _object("ready", ready=_FLAG),
        "Error": _object("error", error=error),
    }


def _request(kind: Kind, service: Service) -> dict[str, Any]:
    models = service.models.values()
    given = {name: _TYPES.get(of, {}) for name, of in FIELDS[kind].items()}
    for name, (least, most) in RANGES.items():
        if FIELDS[kind].get(name) in (int, float):
            given[name] = given[name] | {"minimum": least, "maximum": most}
    longest = {"minimum": 1, "maximum": max(one.config.sampler.max_tokens for one in models)}
    for name in given.keys() & {"max_tokens", "max_completion_tokens"}:
        given[name] = _INTEGER | longest
    options = {name: _TYPES[of] | {"exclusiveMinimum": 0} for name, of in OPTIONS.items()}
    options["policy"] = _enum(policy for one in models for policy in one.policies)
    own = {
        "model": _enum(service.names()),
        "n": _INTEGER | {"minimum": 1, "maximum": max(one.config.max_n for one in models)},
        "stream": _FLAG,
        "stream_options": _object(include_usage=_or_none(_FLAG)),
        "optscale": _object(**_nullable(options)) | {"additionalProperties": False},
    }
    if kind == "text":
        needed = {"prompt": {"anyOf": [_TEXT, _list(_TEXT, minItems=1, maxItems=1)]}}
    else:
        content = {"anyOf": [_TEXT, _list(_OBJECT), _NONE]}
        needed = {"messages": _list(_object("role", role=_TEXT, content=content), minItems=1)}
    unread = {name: {} for name in (*UNUSED, *(name for one in models for name in one.fields))}
    properties = _nullable({**unread, **given, **own}) | needed
    return _object(*needed, **properties) | {"additionalProperties": False}


def _enum(values: Iterable[str]) -> dict[str, Any]:
    return {"enum": list(dict.fromkeys(values))}


def _nullable(properties: dict[str, Any]) -> dict[str, Any]:
    """Null is as good as nothing."""
    return {name: _or_none(schema) if schema else {} for name, schema in properties.items()}
