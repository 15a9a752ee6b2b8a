"""The two protocols that the live loop is built on: a sampler draws, a verifier scores.

Both are asynchronous, so that hundreds of problems in flight share one engine's batches. Neither
knows of policies: what to draw, what to abort and in which order to decide is the engine's.
"""

import asyncio
import contextlib
import contextvars
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Protocol, runtime_checkable

from optscale_jax.errors import BackendError, ProblemError
from optscale_jax.records import Completion, Problem, Score

# All that a sampler or a verifier of one's own is made with.
__all__ = [
    "BackendError",
    "Completion",
    "Problem",
    "ProblemError",
    "Sampler",
    "Score",
    "Verifier",
    "lost",
    "metered",
    "sample_seed",
    "spent_on",
]

_METER: contextvars.ContextVar[list[int] | None] = contextvars.ContextVar("meter", default=None)


def lost(tokens: int) -> None:
    """Says that tokens were drawn, or read, for something that nobody is handed.

    A sampler or verifier that fails or is cancelled calls it, in the coroutine that was at work or
    in one begun by it, so that the ledger has these tokens too.

    Args:
        tokens: How many; -1 (unknown) counts as none.
    """
    meter = _METER.get()
    if meter is not None:
        meter.append(max(tokens, 0))


@contextlib.contextmanager
def metered() -> Iterator[list[int]]:
    """The numbers of tokens that are `lost` as long as it lasts, by this coroutine's work."""
    tokens: list[int] = []
    before = _METER.set(tokens)
    try:
        yield tokens
    finally:
        _METER.reset(before)


def spent_on(completion: Completion) -> int:
    """The tokens that a completion has cost, as far as they are known."""
    return max(completion.tokens, 0) + completion.redrawn


def sample_seed(run_seed: int, problem_id: str, index: int) -> int:
    """Seed of one completion: the same for the same three arguments, else as good as unrelated.

    It has 53 bits, which every JSON reader of a server keeps exactly. An engine's own way, seed +
    index, would give neighbouring runs and problems the same draws.

    Args:
        run_seed: Seed of the run.
        problem_id: The problem's id.
        index: Launch index of the completion within the problem, from 0.

    Returns:
        An integer in [0, 2^53).
    """
    key = json.dumps([run_seed, problem_id, index]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 11


@runtime_checkable
class Sampler(Protocol):
    """Draws completions of a problem.

    One that says how many tokens a completion takes at most, as `most_tokens`, can be given a
    budget; so can a verifier that says it of one score.
    """

    def sample(
        self, problem: Problem, n: int, first_index: int, *, abort: asyncio.Event
    ) -> AsyncIterator[Completion]:
        """Draws n independent completions, each a request of its own.

        Args:
            problem: What to complete.
            n: How many, at least 1.
            first_index: Launch index of the first; the others follow it. Seeds are a function of
                (run seed, problem id, index), so a second round never repeats the first.
            abort: Once it is set, requests that have not ended are aborted and come back as they
                stand, with finish reason "abort" and the tokens that they have cost; no other
                completion has that reason. What an error or a cancellation ends is `lost`.

        Yields:
            Exactly n completions, each as soon as it ends, in whatever order they do.

        Raises:
            BackendError: If the backend cannot go on; requests that have not ended are aborted.
            ProblemError: If it is only this problem that it cannot sample.
        """
        ...

    async def close(self) -> None:
        """Releases what the sampler holds; it is of no use afterwards."""
        ...


@runtime_checkable
class Verifier(Protocol):
    """Scores completions."""

    async def score(self, problem: Problem, completions: Sequence[Completion]) -> list[Score]:
        """Scores completions of one problem.

        Args:
            problem: The problem; its gold answer is never looked at.
            completions: What to score, at least one.

        Returns:
            One score a completion, in order.

        Raises:
            BackendError: If the backend cannot go on.
            ProblemError: If it is only this problem that it cannot score.
        """
        ...

    async def close(self) -> None:
        """Releases what the verifier holds; it is of no use afterwards."""
        ...
