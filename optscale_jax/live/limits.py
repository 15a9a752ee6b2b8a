"""What one problem may take: once a limit is reached, the best answer so far is its answer.

    limits = Limits(seconds=2.0, money=0.01, prices=Prices(completion=6e-7))
    solution = await engine.solve(problem, limits=limits)
    limits.reason            # "seconds", "money", ...; None where the policy itself had enough

A sampler or a verifier that fails is a limit too ("sampler_failed", "verifier_failed"): there may
be answers already. Whoever wants the answer now, as a server that is being stopped, calls `cut`.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Iterator

from optscale_jax.records import TokenLedger

__all__ = ["Limits", "Prices"]


@dataclasses.dataclass(frozen=True)
class Prices:
    """Prices of a token, in whatever unit `Limits.money` has.

    Attributes:
        prompt: Of the prompt, once a completion.
        completion: Of a completion.
        verifier: Read or written by the verifier.
    """

    prompt: float = 0.0
    completion: float = 0.0
    verifier: float = 0.0


@dataclasses.dataclass(eq=False)
class Limits:
    """The limits of one problem, each None for none, and which of them was reached.

    Tokens and money are those of completions that have ended; what is then in flight comes on top.

    Attributes:
        seconds: From the beginning of the work on it.
        tokens: Drawn for it.
        calls: Completions drawn for it.
        money: Spent on it, at `prices`.
        prices: What tokens cost.
        exactly: Draws so many, whatever the policy asks for.
        reason: The limit that was reached, by its name; None = none.
        error: What failed, if that was the reason.
        ledger: What was spent on a problem whose work was called off; None = it was not.
    """

    seconds: float | int | None = None
    tokens: float | int | None = None
    calls: int | None = None
    money: float | int | None = None
    prices: Prices = Prices()
    exactly: int | None = None
    reason: str | None = None
    error: Exception | None = None
    ledger: TokenLedger | None = None

    def __post_init__(self) -> None:
        self._wake: Callable[[], None] | None = None

    def cut(self, reason: str, error: Exception | None = None) -> None:
        """Has the problem make do with what there is; the first reason stands."""
        if self.reason is None:
            self.reason, self.error = reason, error
        if self._wake is not None:
            self._wake()

    def cost(
        self, *, prompt: float | int, tokens: float | int, verifier: float | int
    ) -> float | int:
        """What so many tokens cost."""
        prices = self.prices
        return prompt * prices.prompt + tokens * prices.completion + verifier * prices.verifier

    def spend(
        self, *, calls: int, tokens: float | int, prompt: float | int, verifier: float | int
    ) -> None:
        """Compares with the limits what has been spent in all, in completions and tokens."""
        money = self.cost(prompt=prompt, tokens=tokens, verifier=verifier)
        for reason, spent in (("tokens", tokens), ("money", money), ("calls", calls)):
            limit = getattr(self, reason)
            if limit is not None and spent >= limit:
                self.cut(reason)

    @contextlib.contextmanager
    def watching(self, wake: Callable[[], None]) -> Iterator[None]:
        """Calls `wake` when a limit is reached, within the running loop."""
        self._wake = wake
        timer = None
        if self.seconds is not None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self.seconds, self.cut, "seconds")
        try:
            yield
        finally:
            self._wake = None
            if timer is not None:
                timer.cancel()
