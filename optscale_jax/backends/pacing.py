"""How often one server is asked, which it alone knows and says only by refusing."""

import asyncio
import math
import random
import time

__all__ = ["Pace"]

# Below it the rests alone set the rate.
_LEAST_RATE = 1.0
_SECONDS_TO_DOUBLE = 5.0
# A refusal among more answers than this is bad luck, or the price of being near the limit.
_ANSWERS_TO_A_STRAY = 8
_REMEMBERED = 64  # answers and refusals
_LATELY_SECONDS = 1.0


class Pace:
    """When the next request may go to a server.

    Without a limit until the server says, more often than now and then, that it is too much. The
    rate, in requests a second, is then halved, and from there on cut in proportion to the share of
    requests that are refused, while it grows with time: it stays near what the server allows,
    whatever that is, and one that refuses a few at any rate is not asked ever more slowly. Requests
    leave one by one, at intervals that are drawn.

    Attributes:
        rate: Requests a second; infinite before the first refusal that is no stray.
        failures: Rests in a row, without an answer in between.
        rests_until: Until when the server is left alone, on the clock of `time.monotonic`.

    References:
        Alizadeh et al., Data Center TCP (DCTCP), SIGCOMM 2010: the cut by half the share.
    """

    def __init__(self) -> None:
        self.rate = math.inf
        self.failures = 0
        self.rests_until = 0.0
        self._held_until = 0.0
        self._grown_until = 0.0
        self._accepted = self._refused = 0.0
        self._gate = asyncio.Lock()  # first come, first served
        self._last = -math.inf
        self._lately = 0.0  # sent, in the time that counts as lately
        self._stretch = 1.0

    async def turn(self) -> float:
        """Waits until the next request may go.

        Returns:
            When that is, on the clock of `time.monotonic`.
        """
        # From one that is gone all learn so at once, not each after the backoff of the one before.
        await asyncio.sleep(max(self.rests_until - time.monotonic(), 0.0))
        async with self._gate:
            # The rate may be cut while the first in the line waits.
            while (now := time.monotonic()) < (due := self._due(now)):
                await asyncio.sleep(due - now)
            self._lately = self._sent_lately(now) + 1
            self._last = now
            self._stretch = random.uniform(0.5, 1.5)
            return now

    def _due(self, now: float) -> float:
        if now > self._grown_until:
            self.rate *= 2 ** min((now - self._grown_until) / _SECONDS_TO_DOUBLE, 64.0)
            self._grown_until = now
        return max(self._held_until, self._last + self._stretch / self.rate)

    def _sent_lately(self, now: float) -> float:
        return self._lately * math.exp((self._last - now) / _LATELY_SECONDS)

    def accepted(self) -> None:
        """Counts a request that the server takes."""
        self._accepted += 1 - self._accepted / _REMEMBERED
        self._refused -= self._refused / _REMEMBERED

    def refused(self) -> bool:
        """Counts a request that is too much for the server.

        Returns:
            Whether that is a stray, after which only who was refused need wait.
        """
        self._refused += 1 - self._refused / _REMEMBERED
        self._accepted -= self._accepted / _REMEMBERED
        stray = self._refused * _ANSWERS_TO_A_STRAY < self._accepted
        if stray:
            self._cut()
        return stray

    def _cut(self) -> None:
        share = self._refused / (self._refused + self._accepted)
        self.rate = max(self.rate * (1 - share / 2), _LEAST_RATE)

    def rest(self, sent: float, seconds: float, *, slower: bool) -> None:
        """Leaves the server alone for a while.

        Args:
            sent: When the request was sent that it failed or refused.
            seconds: For how long.
            slower: Whether there was too much for it to do.
        """
        # Hundreds of requests fail together; that is one failure of the server.
        if sent < self.rests_until:
            return
        now = time.monotonic()
        self.failures += 1
        self.rests_until = now + seconds
        if slower:
            if self.rate == math.inf:
                self.rate = max(self._sent_lately(now) / 2, _LEAST_RATE)
            else:
                self._cut()
            self._held_until = self._grown_until = self.rests_until

    def answered(self) -> None:
        """Counts an answer that has come to its end."""
        self.failures = 0
