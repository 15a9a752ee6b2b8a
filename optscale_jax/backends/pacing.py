"""How often one server is asked, which it alone knows and says only by refusing."""

import asyncio
import math
import random
import time

__all__ = ["Pace"]

# Below it the rests alone set the rate.
_LEAST_RATE = 1.0
_SECONDS_TO_DOUBLE = 10.0


class Pace:
    """When the next request may go to a server.

    Without a limit until the server says that it is too much. From then on the rate, in requests a
    second, is halved each time that it says so again, and in between grows by the same amount with
    every second of answers, so that it stays near what the server allows, whatever that is and
    however many share it. Requests leave one by one, at intervals that are drawn.

    Attributes:
        rate: Requests a second; infinite before the first refusal.
        failures: Rests in a row, without an answer in between.
        rests_until: Until when the server is left alone, on the clock of `time.monotonic`.

    References:
        Chiu and Jain, Analysis of the increase and decrease algorithms for congestion avoidance in
        computer networks, Computer Networks and ISDN Systems 17, 1989.
    """

    def __init__(self) -> None:
        self.rate = math.inf
        self.failures = 0
        self.rests_until = 0.0
        self._held_until = 0.0
        self._growth = 0.0
        self._gate = asyncio.Lock()  # first come, first served
        self._last = -math.inf
        self._first = math.inf
        self._sent = 0
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
            while (now := time.monotonic()) < (due := self._due()):
                await asyncio.sleep(due - now)
            self._last, self._first = now, min(self._first, now)
            self._sent += 1
            self._stretch = random.uniform(0.5, 1.5)
            return now

    def _due(self) -> float:
        return max(self._held_until, self._last + self._stretch / self.rate)

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
            self._held_until = self.rests_until
            if self.rate == math.inf:
                self.rate = self._sent / max(now - self._first, 1.0)
            self.rate = max(self.rate / 2, _LEAST_RATE)
            self._growth = self.rate / _SECONDS_TO_DOUBLE

    def answered(self) -> None:
        """Counts an answer."""
        self.failures = 0
        # There are `rate` answers a second.
        self.rate += self._growth / self.rate
