"""The gateway's HTTP side: routes, keys, streams, and clients that hang up."""

import asyncio
import collections
import contextlib
import functools
import hashlib
import hmac
import json
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)

from optscale_jax.errors import InputError
from optscale_jax.gateway.config import KeyConfig
from optscale_jax.gateway.description import answers, body, described
from optscale_jax.gateway.feedback import read_feedback
from optscale_jax.gateway.page import details, page
from optscale_jax.gateway.protocol import ApiError, Asking, Kind, Result, chunks, error_body, whole
from optscale_jax.gateway.service import Service

__all__ = ["Keys", "make_app"]

log = logging.getLogger("optscale.serve")


class Keys:
    """Who may ask, and how often.

    Raises:
        InputError: A key cannot be read, or is none.
    """

    def __init__(self, configs: list[KeyConfig]):
        self._known = [(_digest(_key(one)), one) for one in configs]
        self._at_work: collections.Counter[str] = collections.Counter()
        self._lately: dict[str, collections.deque[float]] = collections.defaultdict(
            collections.deque
        )

    def _of(self, request: Request) -> KeyConfig | None:
        given = request.headers.get("authorization", "")
        scheme, _, key = given.partition(" ")
        digest, found = _digest(key.strip() if scheme.lower() == "bearer" else ""), None
        # All of them, in a time that does not depend on which it is.
        for known, config in self._known:
            if hmac.compare_digest(known, digest):
                found = config
        if self._known and found is None:
            message = "The API key is missing or unknown; send it as Authorization: Bearer KEY."
            raise ApiError(401, message, code="invalid_api_key")
        return found

    def check(self, request: Request) -> str:
        """The name of whose key it is, "" without keys; an `ApiError` if it is none."""
        config = self._of(request)
        return "" if config is None else config.name

    @contextlib.contextmanager
    def admitted(self, request: Request) -> Iterator[str]:
        """The name of who asks, as long as its request is at work."""
        config = self._of(request)
        if config is None:
            yield ""
            return
        name, now, lately = config.name, time.monotonic(), self._lately[config.name]
        while lately and lately[0] < now - 60:
            lately.popleft()
        most = config.max_concurrent
        if most is not None and self._at_work[name] >= most:
            message = f"This key may have {most} requests at work; wait for one to end."
            raise ApiError(429, message, code="concurrency_limit", retry_after=1.0)
        most = config.requests_per_minute
        if most is not None and len(lately) >= most:
            message = f"This key may send {most} requests a minute; wait."
            raise ApiError(429, message, code="rate_limit", retry_after=60 - (now - lately[0]))
        if most is not None:
            lately.append(now)
        self._at_work[name] += 1
        try:
            yield name
        finally:
            self._at_work[name] -= 1


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _key(config: KeyConfig) -> str:
    where = f"keys: {config.name}"
    if config.env is not None:
        key, place = os.environ.get(config.env, ""), f"${config.env}"
    else:
        try:
            key, place = Path(str(config.file)).read_text(encoding="utf-8"), str(config.file)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{where}: {config.file} cannot be read: {error}") from error
    if len(key.strip().split()) != 1:
        raise InputError(f"{where}: {place} must hold one key and nothing else")
    return key.strip()


def make_app(service: Service, keys: Keys | None = None) -> FastAPI:
    """The application.

    Args:
        service: What answers.
        keys: Who may ask; None = the configuration's, read now.

    Raises:
        InputError: A key cannot be read.
    """
    # The pages that FastAPI adds load scripts from elsewhere.
    app = FastAPI(title="OptScale gateway", docs_url=None, redoc_url=None)
    app.state.keys = keys or Keys(service.config.keys)

    @app.exception_handler(ApiError)
    async def _refuse(request: Request, error: ApiError) -> Response:
        return _refusal(error)

    @app.exception_handler(404)
    async def _unknown(request: Request, error: Any) -> Response:
        path = f"There is no {request.method} {request.url.path}; see /openapi.json."
        return _refusal(ApiError(404, path))

    @app.exception_handler(405)
    async def _method(request: Request, error: Any) -> Response:
        message = f"{request.url.path} does not take {request.method}."
        return _refusal(ApiError(405, message), error.headers)

    @app.exception_handler(Exception)
    async def _failed(request: Request, error: Exception) -> Response:
        # Its traceback is the server's to log; the client gets none.
        return _refusal(ApiError(500, "The server has failed; it is logged there."))

    @app.get("/healthz", responses=answers("Health"))
    async def _health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", responses=answers("Readiness") | {503: answers("Readiness")[200]})
    async def _ready() -> JSONResponse:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def _metrics() -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return PlainTextResponse(service.metrics.text(), media_type=kind)

    html, headers = page()

    @app.get("/", include_in_schema=False)
    async def _page() -> Response:
        return HTMLResponse(html, headers=headers)

    @app.get("/live", responses=answers("Numbers", 401))
    async def _live(request: Request) -> Response:
        app.state.keys.check(request)
        return _Json(service.metrics.numbers(), headers={"Cache-Control": "no-store"})

    @app.get("/live/{request_id}", responses=answers("Details", 401, 404))
    async def _details(request: Request, request_id: str) -> Response:
        app.state.keys.check(request)
        for one in service.metrics.recent:
            if one.id == request_id:
                return _Json(await asyncio.to_thread(details, one))
        raise ApiError(404, "That request is not among the last ones any more.")

    @app.get("/v1/models", responses=answers("Models", 401))
    async def _models(request: Request) -> dict[str, Any]:
        app.state.keys.check(request)
        return {"object": "list", "data": [_model(one) for one in service.names()]}

    @app.get("/v1/models/{name:path}", responses=answers("Model", 401, 404))
    async def _named(request: Request, name: str) -> dict[str, Any]:
        app.state.keys.check(request)
        service.model_named(name)
        return _model(name)

    @app.post("/v1/chat/completions", openapi_extra=body("chat"), responses=answers("ChatAnswer"))
    async def _chat(request: Request) -> Response:
        return await answered(request, "chat")

    @app.post("/v1/completions", openapi_extra=body("text"), responses=answers("TextAnswer"))
    async def _text(request: Request) -> Response:
        return await answered(request, "text")

    told = answers("Feedback", 400, 401, 404, 409, 413, 503)

    @app.post("/v1/feedback", openapi_extra=body("feedback"), responses=told)
    async def _feedback(request: Request) -> Response:
        who = app.state.keys.check(request)
        given = read_feedback(await _read(request, service.config.max_body_bytes))
        return _Json(await service.feedback.give(*given, who))

    app.openapi = functools.partial(described, app, service)

    async def answered(request: Request, kind: Kind) -> Response:
        with contextlib.ExitStack() as held:
            who = held.enter_context(app.state.keys.admitted(request))
            if not service.ready:
                message = "The server is being stopped; ask another, or again."
                raise ApiError(503, message, code="shutdown", retry_after=1.0)
            said = await _read(request, service.config.max_body_bytes)
            asking, model, policy = service.read(said, kind)
            task = asyncio.create_task(service.answer(asking, model, policy, who, request.headers))
            gone = asyncio.create_task(_cancel_when_gone(request, task))
            task.add_done_callback(lambda _: gone.cancel())
            release = held.pop_all().close
            task.add_done_callback(lambda _: release())
        # The status of what fails at once is its own; later a stream has begun.
        wait = service.config.heartbeat_seconds if asking.stream else None
        try:
            await asyncio.wait([task], timeout=wait)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done():
            if task.cancelled():
                return Response(status_code=499)  # nobody reads it
            task.result()
        if not asking.stream:
            return _Json(whole(task.result(), kind))
        events = _events(task, asking, service.config.heartbeat_seconds)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    return app


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "optscale"}


class _Json(JSONResponse):
    """JSON that is ASCII: halves of characters, which a client may send, have no bytes in UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


def _refusal(error: ApiError, also: Mapping[str, str] | None = None) -> JSONResponse:
    headers = dict(also or {})
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return _Json(error_body(error), error.status, headers)


async def _read(request: Request, most: int) -> Any:
    """The body's JSON.

    Raises:
        ApiError: It is too long, or no JSON.
    """
    raw = b""
    async for piece in request.stream():
        raw += piece
        if len(raw) > most:
            raise ApiError(413, f"The body is longer than {most} bytes; send less.")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is no JSON; send an object.") from None


async def _cancel_when_gone(request: Request, task: "asyncio.Task[Any]") -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()


async def _events(
    task: "asyncio.Task[Result]", asking: Asking, heartbeat: float
) -> AsyncIterator[bytes]:
    """A stream's bytes: comments while completions are drawn, then the chosen one, or an error."""
    try:
        while not task.done():
            yield b": drawing\n\n"
            await asyncio.wait([task], timeout=heartbeat)
        try:
            result = task.result()
        except ApiError as error:
            yield _event(error_body(error))
            return
        except asyncio.CancelledError:
            return
        except Exception:
            log.exception("a request has failed")
            yield _event(error_body(ApiError(500, "The server has failed; it is logged there.")))
            return
        for one in chunks(result, asking.kind, include_usage=asking.include_usage):
            yield _event(one)
        yield b"data: [DONE]\n\n"
    finally:
        task.cancel()


def _event(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
