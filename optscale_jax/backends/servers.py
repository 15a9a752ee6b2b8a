"""Servers of one model as one: which of them is asked, again after what, and when to give up.

The client is httpx, not OpenAI's: that one is built on httpx too, and what it adds, models of the
answers and its own retries, costs time per token and would have to be switched off, because a
retry here goes to another server.
"""

import asyncio
import contextlib
import dataclasses
import email.utils
import json
import os
import random
import re
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from optscale_jax.backends.config import ServerConfig
from optscale_jax.backends.text import one_line
from optscale_jax.errors import BackendError, BadRequestError

__all__ = ["Servers"]

_LONGEST_WAIT_SECONDS = 60.0
_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
_EXCERPT = 160


class _TryAgainError(Exception):
    """One try has failed and another may not.

    Attributes:
        rests: Whether the server is best left alone for a while: it is gone, or has too much to do.
        wait: Seconds after which the server wants to be asked again; None if it does not say.
    """

    def __init__(self, message: str, *, rests: bool = False, wait: float | None = None):
        super().__init__(message)
        self.rests = rests
        self.wait = wait


@dataclasses.dataclass
class _Server:
    """One server and how it does.

    Attributes:
        url: Its base URL.
        slots: Room for requests.
        in_flight: Requests that it is working on, and that wait for room.
        failures: Rests in a row, without an answer in between.
        rests_until: Until when it is left alone, on the clock of `time.monotonic`.
        trouble: What was last wrong with it; None for nothing.
    """

    url: str
    slots: asyncio.Semaphore
    in_flight: int = 0
    failures: int = 0
    rests_until: float = 0.0
    trouble: str | None = None

    @property
    def name(self) -> str:
        """The URL without a password that may stand in it."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class Servers:
    """The servers of a configuration.

    A request goes to the least busy server that is not resting. A server that cannot be reached,
    drops a connection or answers 429 or 503 rests for the backoff, or for as long as Retry-After
    says, and its requests start again on the others at once; only when all of them rest does a
    request wait. An answer that is none (500, garbage, silence) is asked for again after the
    backoff. A request gives up after `attempts` tries per server.
    """

    def __init__(self, config: ServerConfig, *, model: str):
        if not config.base_urls:
            raise BackendError("server.base_urls is empty; name at least one server")
        if not model:
            raise BackendError("model is empty; give the name that the servers serve it by")
        self.model = model
        self._config = config
        self._servers = [
            _Server(url.rstrip("/").removesuffix("/v1"), asyncio.Semaphore(config.concurrency))
            for url in config.base_urls
        ]
        self._key = _key(config)
        self._headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._timeout = httpx.Timeout(
            config.read_timeout, connect=config.connect_timeout, pool=None
        )
        self._client: httpx.AsyncClient | None = None

    def models(self) -> dict[str, Any]:
        """What the first server that can be reached says of the model, without retrying.

        Returns:
            The model's entry in the server's list.

        Raises:
            BackendError: If no server can be reached, or one refuses the key or, being vLLM's, has
                no such model.
        """
        found = None
        with httpx.Client(headers=self._headers, timeout=self._config.connect_timeout) as client:
            for server in self._servers:
                try:
                    answer = client.get(f"{server.url}/v1/models")
                    self._check(server, answer.status_code, answer.headers, answer.text)
                    served = _parsed(server, answer.text).get("data", [])
                except _TryAgainError as error:
                    server.trouble = str(error)
                    continue
                except httpx.HTTPError as error:
                    server.trouble = _said(error)
                    continue
                named = {str(one.get("id")): one for one in served if isinstance(one, dict)}
                if self.model not in named and self._config.vllm:
                    raise BackendError(
                        f"{server.name} does not serve {self.model}; it has {', '.join(named)}"
                    )
                found = found or named.get(self.model, {})
        if found is None:
            raise self._all_gone()
        return found

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Posts a request until it is answered.

        Args:
            path: Below the base URL, such as /pooling.
            body: What to send as JSON, besides the model.

        Returns:
            The answer's JSON.

        Raises:
            BadRequestError: If a server refuses the request.
            BackendError: If no server answers it.
        """
        answers = [one async for one in self.stream(path, body, lines=False)]
        return answers[-1]

    async def stream(
        self, path: str, body: Mapping[str, Any], *, lines: bool = True
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Posts a request and reads its answer as server-sent events.

        A server may fail in the middle of its answer: then the answer begins again, which an item
        with the single key "restarted" announces.

        Args:
            path: Below the base URL, such as /v1/completions.
            body: What to send as JSON, besides the model.
            lines: Whether the answer is a stream of events; if not, it is one JSON object.

        Yields:
            The events' JSON.

        Raises:
            BadRequestError: If a server refuses the request.
            BackendError: If no server answers it.
        """
        content = json.dumps({"model": self.model, **body}).encode()
        tries = 0
        while True:
            server = self._least_busy()
            server.in_flight += 1
            begun = False
            try:
                async with server.slots:
                    read = self._events(server, path, content, lines=lines)
                    async with contextlib.aclosing(read) as events:
                        async for event in events:
                            begun = True
                            yield event
                server.failures, server.rests_until, server.trouble = 0, 0.0, None
                return
            except _TryAgainError as error:
                failure = error
            finally:
                server.in_flight -= 1
            tries += 1
            await self._after(server, failure, tries)
            if begun:
                yield {"restarted": True}

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    # One try --------------------------------------------------------------------------------------

    async def _events(
        self, server: _Server, path: str, content: bytes, *, lines: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        # Made here, because it belongs to the running loop.
        if self._client is None:
            self._client = httpx.AsyncClient(
                headers={**self._headers, "Content-Type": "application/json"},
                timeout=self._timeout,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            )
        try:
            url = server.url + path
            async with self._client.stream("POST", url, content=content) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode(errors="replace")
                    self._check(server, response.status_code, response.headers, text)
                if not lines:
                    yield _parsed(server, (await response.aread()).decode(errors="replace"))
                    return
                ended = False
                async for line in _lines(response):
                    if not line.startswith("data:"):
                        # Between events there are blank lines, and comments that keep a
                        # connection alive; anything else is not a stream of events.
                        if line and not line.startswith((":", "event:", "id:", "retry:")):
                            raise _TryAgainError(f"answers with {_excerpt(line)}")
                        continue
                    data = line[5:].strip()
                    if data == "[DONE]":
                        ended = True
                        continue
                    event = _parsed(server, data)
                    if "error" in event:
                        raise _TryAgainError(f"says {_excerpt(_reason(json.dumps(event)))}")
                    yield event
                if not ended:
                    raise _TryAgainError("ended its answer in the middle", rests=True)
        except httpx.TimeoutException as error:
            gone = isinstance(error, httpx.ConnectTimeout)
            seconds = self._config.connect_timeout if gone else self._config.read_timeout
            raise _TryAgainError(f"says nothing for {seconds:g} s", rests=gone) from error
        except httpx.RequestError as error:
            raise _TryAgainError(_said(error), rests=True) from error

    def _check(self, server: _Server, status: int, headers: Mapping[str, str], text: str) -> None:
        """Raises what a status other than 200 means."""
        if status == 200:
            return
        # A server may quote the key that it refuses.
        reason = _excerpt(self._without_key(_reason(text)))
        if status in (401, 403):
            key = self._config.api_key_env
            hint = f"the key in ${key} is refused" if key else "set server.api_key_env to a key's"
            raise BackendError(f"{server.name} answers {status}: {hint}")
        if status in _RETRIED:
            wait = _retry_after(headers.get("retry-after"))
            busy = status in (429, 503)
            raise _TryAgainError(f"answers {status}: {reason}", rests=busy, wait=wait)
        if status in (400, 413, 422):
            raise BadRequestError(f"{server.name} answers {status}: {reason}")
        raise BackendError(
            f"{server.name} answers {status}: {reason}; is server.base_urls right, and the model "
            f"{self.model}?"
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text

    # Between tries --------------------------------------------------------------------------------

    def _least_busy(self) -> _Server:
        now = time.monotonic()
        awake = [one for one in self._servers if one.rests_until <= now]
        # Of resting ones the first to wake: after a wait it is due.
        return (
            min(awake, key=lambda one: one.in_flight)
            if awake
            else min(self._servers, key=lambda one: one.rests_until)
        )

    async def _after(self, server: _Server, error: _TryAgainError, tries: int) -> None:
        """Waits as long as a failure asks for, or gives up.

        Raises:
            BackendError: If the request has been tried as often as it may be.
        """
        server.trouble = str(error)
        now = time.monotonic()
        if error.rests:
            # Hundreds of requests fail together when a server goes; it is one failure of it.
            if server.rests_until <= now:
                server.failures += 1
                rest = self._backoff(server.failures) if error.wait is None else error.wait
                server.rests_until = now + rest
            wait = min(one.rests_until for one in self._servers) - now
        elif error.wait is not None:
            wait = error.wait
        else:
            wait = self._backoff(1 + (tries - 1) // len(self._servers))
        if tries >= self._config.attempts * len(self._servers):
            if error.rests and all(one.trouble for one in self._servers):
                raise self._all_gone()
            raise BackendError(f"{server.name} {error}; given up after {tries} tries")
        if wait > 0:
            await asyncio.sleep(wait)

    def _backoff(self, attempt: int) -> float:
        most = min(self._config.backoff * 2 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
        # Drawn, so that hundreds of requests do not come back at the same moment.
        return most * random.uniform(0.5, 1.0)

    def _all_gone(self) -> BackendError:
        troubles = "; ".join(f"{one.name} {one.trouble or 'rests'}" for one in self._servers)
        return BackendError(f"no server answers: {troubles}")


async def _lines(response: httpx.Response) -> AsyncGenerator[str, None]:
    """The lines of an answer as it comes.

    Not httpx's own, which end a line at every character that Unicode counts as the end of one, such
    as U+2028: those stand unescaped in the JSON of a completion that has them.
    """
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r").decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def _key(config: ServerConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise BackendError(f"server.api_key_env: ${config.api_key_env} is not set")
    return key


def _parsed(server: _Server, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise _TryAgainError(f"answers with {_excerpt(text)}, which is not JSON") from error
    if not isinstance(value, dict):
        raise _TryAgainError(f"answers with {_excerpt(text)}, which is not a JSON object")
    return value


def _reason(text: str) -> str:
    """What a server's error says: OpenAI's form, FastAPI's, or the text itself."""
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            error = value.get("error", value)
            inner = error.get("message", error.get("detail")) if isinstance(error, dict) else error
            return str(inner if inner is not None else text)
    return text


def _excerpt(text: str) -> str:
    line = " ".join(re.sub(r"<[^>]*>", " ", text).split()) or "nothing"
    return one_line(line, _EXCERPT)


def _said(error: httpx.HTTPError) -> str:
    said = " ".join(str(error).split())
    return f"cannot be reached ({said or type(error).__name__})"


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, which is a number of them or a date."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), 10 * _LONGEST_WAIT_SECONDS)
