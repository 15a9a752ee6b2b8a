"""Servers of one model as one: which of them is asked, again after what, and when to give up.

The client is httpx, not OpenAI's: that one is built on httpx too, and what it adds, models of the
answers and its own retries, costs time per token and would have to be switched off, because a
retry here goes to another server.
"""

import asyncio
import collections
import contextlib
import dataclasses
import email.utils
import functools
import json
import math
import os
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol, runtime_checkable
from urllib.parse import SplitResult, quote, urlsplit

import anyio
import httpx

from optscale_jax.backends.config import ServerConfig
from optscale_jax.backends.events import Events
from optscale_jax.backends.pacing import Pace
from optscale_jax.backends.text import one_line
from optscale_jax.errors import BackendError, BadRequestError, did_you_mean

__all__ = ["Answer", "Servers"]

_LONGEST_WAIT_SECONDS = 60.0
# What passes by itself: time-outs, conflicts, and all that is wrong with a server (5xx, among them
# Cloudflare's 520 to 530 and the 529 of too much to do) but what it cannot do at all (501).
_RETRIED = {408, 409, 425, 429, *range(500, 600)} - {501}
_BUSY = {429, 503, 529}
_TOO_FAST = {429, 529}
# A status that says something of the one request, and may say nothing of others.
_OF_THE_REQUEST = {400, 403, 406, 413, 415, 422, 451}
_EXCERPT = 160
_MOST_BYTES, _MOST_BYTES_OF_AN_ERROR = 1 << 24, 1 << 16
# Once an answer has said why it ended there is little to wait for, and after [DONE] only the end of
# the connection, which can then be used again.
_LAST_SECONDS, _CLOSING_SECONDS = 1.0, 0.1
# Connections that nobody has used for so long are closed, as httpx does itself.
_IDLE_SECONDS = 5.0
# The shortest that is looked for in texts: "EMPTY" or "x" is no secret.
_SHORTEST_SECRET = 6

_EXCESS = r"exceed|overflow|longer|larger|greater|too (?:long|large|many)"
_TOO_LONG = re.compile(
    r"(?:context|prompt|inputs?\b|messages?|sequence|request(?! rate)|session)[^.!]{0,80}?"
    rf"(?:{_EXCESS})"
    rf"|(?:{_EXCESS})[^.!]{{0,80}}?(?:context|prompt|inputs?\b|sequence|session|model.{{0,8}}length)"
    r"|maximum (?:context|prompt|input|sequence|model)\w* ?length"
    r"|inputs?\W* (?:tokens? \+|must have less)"
    r"|(?:range of|maximum|max\.?) input|reduce the length|context_length|context_size|n_ctx"
    r"|max_model_len|session_len|超长|过长|超过.{0,12}(?:长度|上下文)",
    re.IGNORECASE,
)
# A 429 that no waiting mends: the request alone is beyond the limit, or the account is empty.
_NEVER_FITS = re.compile(r"request too large|tokens must be reduced", re.IGNORECASE)
_NO_CREDIT = re.compile(
    r"insufficient[ _](?:quota|balance|credit|fund)|arrears|余额", re.IGNORECASE
)


@runtime_checkable
class Answer(Protocol):
    """What becomes of a request, while its answer is read."""

    ended: bool
    """Whether nothing is missing any more, so that a broken connection does no harm."""

    def restart(self) -> None:
        """Forgets what has come: the answer begins, again perhaps."""
        ...

    def add(self, event: dict[str, Any]) -> bool:
        """Takes in an object, and says whether it has anything of the answer.

        Raises:
            ValueError: If it has what cannot be read: what the server did.
        """
        ...

    def end(self, done: bool) -> str | None:
        """What is wrong with the answer now that no more comes; None for nothing."""
        ...


class _Whole(Answer):
    """The answer that is one JSON object."""

    def restart(self) -> None:
        self.value: dict[str, Any] | None = None
        self.ended = False

    def add(self, event: dict[str, Any]) -> bool:
        self.value, self.ended = event, True
        return True

    def end(self, done: bool) -> str | None:
        return None if self.ended else "answers with nothing"


class _TryAgainError(Exception):
    """One try has failed and another may not.

    Attributes:
        status: The status that the server answered with; 0 for none.
        rests: Whether the server is best left alone for a while: it is gone, or has too much to do.
        wait: Seconds after which the server wants to be asked again; None if it does not say.
    """

    def __init__(
        self, message: str, *, status: int = 0, rests: bool = False, wait: float | None = None
    ):
        super().__init__(message)
        self.status = status
        self.rests = rests or status in _BUSY
        self.wait = wait


@dataclasses.dataclass
class _Server:
    """One server and how it does.

    Attributes:
        base: Its base URL.
        slots: Room for requests.
        pace: When it may be asked.
        in_flight: Requests that it is working on, and that wait for room.
        trouble: What was last wrong with it; None for nothing.
        idle: Clients at rest and since when, the one that was used last at the end.
    """

    base: SplitResult
    slots: asyncio.Semaphore
    pace: Pace = dataclasses.field(default_factory=Pace)
    in_flight: int = 0
    trouble: str | None = None
    idle: collections.deque[tuple[float, httpx.AsyncClient]] = dataclasses.field(
        default_factory=collections.deque
    )

    @property
    def name(self) -> str:
        """The URL without what may be secret in it."""
        return self.base._replace(path=self.base.path.removesuffix("/v1"), query="").geturl()

    def url(self, path: str) -> str:
        """The URL of a path below the base URL or, if it begins with a slash, beside /v1."""
        base = self.base.path
        whole = base.removesuffix("/v1") + path if path[0] == "/" else f"{base}/{path}"
        return self.base._replace(path=whole).geturl()


class Servers:
    """The servers of a configuration.

    A request goes to the least busy server that is not resting. A server that cannot be reached or
    answers 429, 503 or 529 rests for the backoff, or for as long as Retry-After says, and its
    requests start again on the others at once; only when all of them rest does a request wait. One
    that says 429 or 529 is from then on asked more slowly; where that is rare, only the request
    that was refused waits (`Pace`). An answer that is none (500, garbage, silence) is asked for
    again after the backoff. A request gives up after `attempts` tries per server; 429 is not
    counted as one, as long as anything gets through.
    """

    def __init__(self, config: ServerConfig, *, model: str):
        if not config.base_urls:
            raise BackendError("server.base_urls is empty; name at least one server")
        if not model:
            raise BackendError("model is empty; give the name that the servers serve it by")
        self.model = model
        self._config = config
        self._servers = [
            _Server(_base(url), asyncio.Semaphore(config.concurrency)) for url in config.base_urls
        ]
        key = _key(config)
        bearer = "Bearer " * (config.auth_header.casefold() == "authorization")
        self._headers = {config.auth_header: bearer + key} if key else {}
        self._secret = _spellings(key) if key and len(key) >= _SHORTEST_SECRET else None

    def models(self) -> dict[str, Any]:
        """What the first server that can be reached says of the model.

        A server that is busy is asked again; one that keeps no list, or another's, is not asked.

        Returns:
            The model's entry in the server's list; {} if it has none.

        Raises:
            BackendError: If no server can be reached, or one refuses the key or, being vLLM's, has
                no such model.
        """
        entries, asked, tries = [], self._servers, 0
        with httpx.Client(
            headers=self._headers, timeout=self._config.connect_timeout, verify=_certificates()
        ) as client:
            while True:
                tries += 1
                busy, wait = [], self._backoff(tries)
                for server in asked:
                    try:
                        entries.append(self._entry(client, server))
                    except _TryAgainError as error:
                        server.trouble = str(error)
                        if error.status:
                            busy.append(server)
                            wait = wait if error.wait is None else error.wait
                if entries:
                    return entries[0]
                if not busy or tries == self._config.attempts:
                    raise self._all_gone(tries)
                asked = busy
                time.sleep(wait)

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Posts a request until it is answered.

        Args:
            path: Beside /v1, such as /pooling.
            body: What to send as JSON, besides the model.

        Returns:
            The answer's JSON.

        Raises:
            BadRequestError: If a server refuses the request.
            BackendError: If no server answers it.
        """
        whole = _Whole()
        await self.ask(path, body, whole)
        assert whole.value is not None
        return whole.value

    async def ask(self, path: str, body: Mapping[str, Any], answer: Answer) -> None:
        """Posts a request until it is answered, and reads the answer as it comes.

        Args:
            path: Below the base URL, such as chat/completions.
            body: What to send as JSON, besides the model.
            answer: Takes what is read. A server may fail in the middle, and the answer then begins
                again. After an error it holds what came last.

        Raises:
            BadRequestError: If a server refuses the request.
            BackendError: If no server answers it.
        """
        content = json.dumps({"model": self.model, **body}).encode()
        tries = refused = 0
        while True:
            server = self._least_busy()
            server.in_flight += 1
            sent = 0.0
            try:
                async with server.slots:
                    sent = await server.pace.turn()
                    answer.restart()
                    await self._try(server, path, content, answer)
                server.pace.answered()
                server.trouble = None
                return
            except _TryAgainError as error:
                failure = error
            finally:
                server.in_flight -= 1
            server.trouble = str(failure)
            failures, too_fast = server.pace.failures, failure.status in _TOO_FAST
            stray = too_fast and server.pace.refused()
            if failure.rests and not stray:
                rest = self._backoff(failures + 1) if failure.wait is None else failure.wait
                # Longer by chance, so that not all who were told the same come back together.
                rest *= random.uniform(1.0, 1.1)
                server.pace.rest(sent, rest, slower=too_fast)
            refused += failure.status == 429
            if failure.status == 429 and max(failures, refused / 10) < self._config.attempts:
                if stray:
                    again = self._backoff(refused)
                    await asyncio.sleep(again if failure.wait is None else failure.wait)
                continue
            tries += 1
            if tries >= self._config.attempts * len(self._servers):
                if failure.rests and all(one.trouble for one in self._servers):
                    raise self._all_gone(tries)
                raise BackendError(f"{server.name} {failure}; given up after {tries} tries")
            if not failure.rests or stray:
                again = self._backoff(1 + (tries - 1) // len(self._servers))
                await asyncio.sleep(again if failure.wait is None else failure.wait)

    def without_secrets(self, text: str) -> str:
        """A text in which the key does not stand, in whatever way a server may have spelt it."""
        return self._secret.sub("…", text) if self._secret else text

    def quoted(self, text: str) -> str:
        """The beginning of what a server said, in one line; all that it says is shown by this."""
        text = re.sub(r"<[^<>]*>", " ", self.without_secrets(text))
        return one_line(" ".join(text.split()) or "nothing", _EXCERPT)

    async def close(self) -> None:
        """Closes the connections."""
        for server in self._servers:
            while server.idle:
                await server.idle.pop()[1].aclose()

    # One try --------------------------------------------------------------------------------------

    async def _try(self, server: _Server, path: str, content: bytes, answer: Answer) -> None:
        config = self._config
        events, begun, url, failure = Events(), False, server.url(path), None
        try:
            # anyio's, because httpx shields from it the closing of a connection, which asyncio's
            # would break off and leave open.
            with anyio.fail_after(config.total_timeout) as limit:
                deadline = limit.deadline
                async with (
                    self._client(server) as client,
                    client.stream("POST", url, content=content) as response,
                ):
                    begun = True
                    if not response.is_success:
                        text = await _start(response)
                        raise self._failure(server, response.status_code, response.headers, text)
                    server.pace.accepted()
                    async for piece in response.aiter_bytes():
                        if events.done:
                            continue  # to the end of the connection, which can be used again then
                        if self._take(server, events, events.feed(piece), answer):
                            last = min(anyio.current_time() + _LAST_SECONDS, deadline)
                            limit.deadline = last if answer.ended else deadline
                        if events.done:
                            limit.deadline = anyio.current_time() + _CLOSING_SECONDS
                        # What has come already is read without a pause: let the others have their
                        # turn, so that what ends early is seen early if this process is behind.
                        await asyncio.sleep(0)
                    if not events.done:
                        self._take(server, events, events.end(), answer)
        except (ValueError, RecursionError) as error:
            raise _TryAgainError(self.quoted(str(error))) from None
        except TimeoutError:
            failure = _TryAgainError(f"is not done after {config.total_timeout:g} s")
        except httpx.TimeoutException as error:
            gone = isinstance(error, httpx.ConnectTimeout)
            seconds = config.connect_timeout if gone else config.read_timeout
            failure = _TryAgainError(f"says nothing for {seconds:g} s", rests=gone)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            failure = _TryAgainError(self._said(error), rests=not begun)
        if failure is not None and not answer.ended and not events.done:
            raise failure
        if wrong := answer.end(events.done):
            stray = self.quoted(events.stray)
            raise _TryAgainError(f"answers with {stray}" if events.stray else wrong)

    @contextlib.asynccontextmanager
    async def _client(self, server: _Server) -> AsyncIterator[httpx.AsyncClient]:
        """A client with a connection of its own, for one request.

        httpx would share one client out among all of them, but looks at every connection that it
        has for every request, and from each idle one at all others: ten milliseconds at 256.
        """
        now = time.monotonic()
        while server.idle and server.idle[0][0] < now - _IDLE_SECONDS:
            await server.idle.popleft()[1].aclose()
        client = server.idle.pop()[1] if server.idle else self._new_client()
        try:
            yield client
        finally:
            server.idle.append((time.monotonic(), client))

    def _new_client(self) -> httpx.AsyncClient:
        config = self._config
        return httpx.AsyncClient(
            headers={**self._headers, "Content-Type": "application/json"},
            timeout=httpx.Timeout(config.read_timeout, connect=config.connect_timeout, pool=None),
            verify=_certificates(),
        )

    def _take(
        self, server: _Server, events: Events, found: list[dict[str, Any]], answer: Answer
    ) -> bool:
        """Gives an answer what has come, and says whether it was any of it."""
        any_of_it = False
        for event in found:
            error = event if event.get("object") == "error" else event.get("error")
            if any(error.values()) if isinstance(error, dict) else error:
                raise self._failure(server, _status(event, error), {}, json.dumps(event))
            if answer.add(event):
                any_of_it = True
            elif "choices" not in event:
                events.stray = events.stray or json.dumps(event)
        return any_of_it

    def _entry(self, client: httpx.Client, server: _Server) -> dict[str, Any]:
        """What a server's list says of the model; {} if it says nothing.

        Raises:
            _TryAgainError: If the server cannot be reached or is busy; it has a status if so.
            BackendError: If the server refuses the key or has no such model.
        """
        deadline = time.monotonic() + self._config.connect_timeout
        raw = b""
        try:
            with client.stream("GET", server.url("models")) as response:
                for piece in response.iter_bytes():
                    raw += piece
                    if len(raw) > _MOST_BYTES or time.monotonic() > deadline:
                        break
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _TryAgainError(self._said(error)) from None
        text, status = raw.decode(errors="replace"), response.status_code
        # Many have no such list, with whatever status; what they do have, the first request tells.
        if status == 401 or (status in _RETRIED and status != 500):
            raise self._failure(server, status, response.headers, text)
        listed = _listed(text)
        if self._config.vllm and listed and self.model not in listed:
            has = did_you_mean(self.model, listed, "it has")
            raise BackendError(
                self.without_secrets(f"{server.name} does not serve {self.model}{has}")
            )
        return listed.get(self.model, {})

    def _failure(
        self, server: _Server, status: int, headers: Mapping[str, str], text: str
    ) -> Exception:
        """What a status means that is no success, or an error in a stream."""
        reason = _reason(text)
        quoted = self.quoted(reason)
        said = f"answers {status}: {quoted}"
        refusal = f"{server.name} {said}"
        # The text too, without its keys: a code may stand beside the reason.
        with contextlib.suppress(ValueError, RecursionError):
            text = re.sub(r'"\w+": ', " ", json.dumps(json.loads(text), ensure_ascii=False))
        if (_NEVER_FITS if status == 429 else _TOO_LONG).search(text) or status == 413:
            return BadRequestError(refusal, too_long=True, reason=quoted)
        if status in _RETRIED and not (status == 429 and _NO_CREDIT.search(text)):
            return _TryAgainError(said, status=status, wait=_retry_after(headers))
        key = self._config.api_key_env
        if status == 401:
            hint = f"the key in ${key} is refused" if key else "set server.api_key_env to a key's"
            return BackendError(f"{refusal}; {hint}")
        if status == 403:
            hint = f"may the key in ${key} do this?" if key else "set server.api_key_env to a key's"
            return BadRequestError(f"{refusal}; {hint}")
        if status in _OF_THE_REQUEST:
            return BadRequestError(refusal, reason=quoted)
        to = f", to {self.quoted(headers['location'])}" if "location" in headers else ""
        return BackendError(
            f"{refusal}{to}; is server.base_urls right, and the model {self.model}?"
        )

    def _said(self, error: Exception) -> str:
        return f"cannot be reached ({self.quoted(str(error) or type(error).__name__)})"

    # Between tries --------------------------------------------------------------------------------

    def _least_busy(self) -> _Server:
        now = time.monotonic()
        awake = [one for one in self._servers if one.pace.rests_until <= now]
        # Of resting ones the first to wake: after a wait it is due.
        return (
            min(awake, key=lambda one: one.in_flight)
            if awake
            else min(self._servers, key=lambda one: one.pace.rests_until)
        )

    def _backoff(self, attempt: int) -> float:
        most = min(self._config.backoff * 2.0 ** min(attempt - 1, 30), _LONGEST_WAIT_SECONDS)
        # Drawn, so that hundreds of requests do not come back at the same moment.
        return most * random.uniform(0.5, 1.0)

    def _all_gone(self, tries: int) -> BackendError:
        troubles = "; ".join(f"{one.name} {one.trouble or 'rests'}" for one in self._servers)
        after = f"; given up after {tries} tries" if tries > 1 else ""
        return BackendError(f"no server answers: {troubles}{after}")


@functools.cache
def _certificates() -> ssl.SSLContext:
    """What every client trusts: reading it takes longer than all else that makes a client."""
    return httpx.create_ssl_context()


def _base(url: str) -> SplitResult:
    """A base URL with its version's path: /v1, unless it has one of its own."""
    parts = urlsplit(url.strip())
    path = re.sub(r"/*(?:/(?:chat/)?completions|/models)?/*$", "", parts.path)
    return parts._replace(path=path or "/v1", fragment="")


async def _start(response: httpx.Response) -> str:
    raw = b""
    async for piece in response.aiter_bytes():
        raw += piece
        if len(raw) > _MOST_BYTES_OF_AN_ERROR:
            break
    return raw[:_MOST_BYTES_OF_AN_ERROR].decode(errors="replace")


def _key(config: ServerConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise BackendError(f"server.api_key_env: ${config.api_key_env} is not set")
    if not (key.isascii() and key.isprintable()):
        raise BackendError(
            f"server.api_key_env: ${config.api_key_env} holds a line break or another character "
            "that no key has; is it the whole key and nothing else?"
        )
    return key


def _spellings(key: str) -> re.Pattern[str]:
    escaped = json.dumps(key)[1:-1]
    spelt = {key, escaped, escaped.replace("/", r"\/"), quote(key), quote(key, safe="")}
    return re.compile("|".join(map(re.escape, sorted(spelt, key=len, reverse=True))), re.IGNORECASE)


def _listed(text: str) -> dict[str, dict[str, Any]]:
    """The entries of a server's list of models by name, of OpenAI's form or near it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if isinstance(value, dict):
        value = value.get("data") or value.get("models")
    entries = [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
    return {str(one.get("id") or one.get("name") or one.get("model")): one for one in entries}


def _status(event: dict[str, Any], error: Any) -> int:
    """The status that an error in a stream speaks of; 500 if it does not say."""
    within = error if isinstance(error, dict) else {}
    for said in (within.get("code"), within.get("status"), event.get("code"), event.get("status")):
        if re.fullmatch(r"[45]\d\d", str(said)):
            return int(str(said))
    return 500


def _reason(text: str) -> str:
    """What a server's error says: OpenAI's form, FastAPI's, or the text itself."""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, dict):
            error = value.get("error") or value
            inner = error.get("message", error.get("detail")) if isinstance(error, dict) else error
            return str(inner or text)
    return text


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer's headers ask for, which say milliseconds, seconds or a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, OverflowError):
                continue
        if not math.isnan(seconds):
            return min(max(seconds, 0.0), 10 * _LONGEST_WAIT_SECONDS)
    return None
