"""How much at once: room for requests, and the share of its budget that each of them gets."""

import asyncio
import collections
import contextlib
import math
from collections.abc import AsyncIterator

from optscale_jax.gateway.metrics import Metrics
from optscale_jax.gateway.protocol import ApiError

__all__ = ["Room", "Share"]


class Room:
    """Room for so many requests at once, and for so many that wait."""

    def __init__(self, metrics: Metrics):
        self.most, self.queued_most = 1, 0
        self.in_flight = 0
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._metrics = metrics
        self._seconds = 1.0  # that a request takes, lately

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def taken(self, seconds: float | int | None) -> AsyncIterator[None]:
        """A place, once there is one within so many seconds.

        Raises:
            ApiError: 429 if too many wait, 503 if none was free in time.
        """
        if self.in_flight >= self.most:
            if len(self._waiting) >= self.queued_most:
                raise self._busy(429, "Too many requests are at work and wait")
            await self._turn(seconds)
        else:
            self.in_flight += 1
        self._show()
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            yield
        finally:
            self._seconds += 0.1 * (loop.time() - started - self._seconds)
            self._leave()

    async def _turn(self, seconds: float | int | None) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._show()
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException as error:
            # The place may have come at the same moment.
            if turn.done() and not turn.cancelled():
                self._leave()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise self._busy(503, f"No room for the request within {seconds:g} s") from None
            raise

    def _leave(self) -> None:
        while self._waiting and self.in_flight <= self.most:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # which takes over the place
                self._show()
                return
        self.in_flight -= 1
        self._show()

    def _busy(self, status: int, why: str) -> ApiError:
        after = max(1.0, self._seconds * (1 + len(self._waiting)) / self.most)
        message = f"{why}; try again in {math.ceil(after)} s."
        return ApiError(status, message, code="overloaded", retry_after=after)

    def _show(self) -> None:
        self._metrics.in_flight.set(self.in_flight)
        self._metrics.queued.set(len(self._waiting))


class Share:
    """The share of its policy's samples and budget that each request gets, one for all, in (0, 1].

    So many tokens a second, over the requests that come in one and those of the queue that are to
    be served within a few, are a request's tokens. What share that is, is learnt from what answers
    have taken at theirs.
    """

    _LATELY = 3.0
    # Requests at nearly the same moment get the same share, whose decisions are made once.
    _STEPS = 64

    def __init__(self, metrics: Metrics):
        self.tokens_per_second: float | None = None
        self._rate = self._at = 0.0
        self._shares = self._tokens = 0.0  # of answers, lately
        self._metrics = metrics

    def _decayed(self, now: float) -> float:
        return self._rate * math.exp(-(now - self._at) / self._LATELY)

    def arrival(self, now: float) -> None:
        """A request has come."""
        self._rate = self._decayed(now) + 1 / self._LATELY
        self._at = now

    def granted(self, now: float, waiting: int = 0) -> float:
        """The share of a request that begins now while others wait, in steps of 1/64."""
        share = 1.0
        if self.tokens_per_second is not None and self._tokens > 0:
            rate = max(self._decayed(now) + waiting / self._LATELY, 1e-9)
            share = self.tokens_per_second / rate * self._shares / self._tokens
        share = min(max(math.floor(share * self._STEPS), 1) / self._STEPS, 1.0)
        self._metrics.share.set(share)
        return share

    def answered(self, share: float, tokens: float) -> None:
        """One that had such a share has been answered for so many tokens."""
        if not math.isnan(tokens):
            weight = 0.1 if self._shares else 1.0
            self._shares += weight * (share - self._shares)
            self._tokens += weight * (tokens - self._tokens)
