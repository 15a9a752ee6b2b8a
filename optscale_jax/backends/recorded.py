r"""A pool in the place of the models: the live loop on completions that were recorded.

A pool knows of a completion its score, its signals, its length and its answer, so that is what
comes back: the text is the answer's id in a box, after as long a time as the tokens would have
taken.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence

import numpy as np

from optscale_jax.backends.base import lost
from optscale_jax.backends.concurrency import as_they_end, cancel_when_set, cancelled
from optscale_jax.derived_signals import VERIFIER_TOKENS
from optscale_jax.errors import PoolError
from optscale_jax.pool import Pool
from optscale_jax.records import Completion, Problem, Score

__all__ = ["RecordedSampler", "RecordedVerifier", "recorded_problems"]


def recorded_problems(pool: Pool) -> list[Problem]:
    """The problems of a pool, whose gold answers are ids.

    Args:
        pool: The pool.

    Returns:
        One problem for each of the pool, in order; its text is its name.
    """
    gold = _gold(pool)
    return [Problem(str(name), str(name), gold[row]) for row, name in enumerate(pool.problem_ids)]


def _gold(pool: Pool) -> list[str | None]:
    if pool.answers is None:
        # Whether it is right is then all that is known of an answer.
        return [None if pool.correct is None else "right"] * pool.num_problems
    if pool.gold is None:
        return [None] * pool.num_problems
    return [None if gold == -1 else str(gold) for gold in pool.gold.tolist()]


class RecordedSampler:
    """Gives a problem's recorded completions, in the pool's order.

    Args:
        pool: The pool.
        seconds_per_token: How long a token takes; the completions of a problem end in the order of
            their lengths, whatever it is.
        max_num_seqs: Completions under way at once, as a server has them; others wait for their
            turn. None = any number.

    Raises:
        PoolError: By `sample`, if the pool lacks the problem or has too few completions of it.
    """

    def __init__(
        self, pool: Pool, *, seconds_per_token: float = 0.0, max_num_seqs: int | None = None
    ):
        self._pool = pool
        self._seconds_per_token = seconds_per_token
        self._turns = None if max_num_seqs is None else asyncio.Semaphore(max_num_seqs)
        self._rows = {str(name): row for row, name in enumerate(pool.problem_ids)}
        self.most_tokens = int(pool.tokens[pool.mask].max()) if pool.has_tokens else None

    async def sample(
        self, problem: Problem, n: int, first_index: int, *, abort: asyncio.Event
    ) -> AsyncIterator[Completion]:
        """Gives n recorded completions, the short ones first; see `Sampler.sample`."""
        row = self._row(problem, first_index + n)
        lengths = self._pool.tokens[row, first_index : first_index + n]
        if self._turns is not None:
            ends = [
                asyncio.create_task(self._turn(self._turns, first_index + place, tokens, abort))
                for place, tokens in enumerate(lengths.tolist())
            ]
            watch = asyncio.create_task(cancel_when_set(abort, ends))
            ended = as_they_end(ends, unread=lambda one: lost(one[2]))
            try:
                async with contextlib.aclosing(ended) as drawn:
                    async for index, tokens, come in drawn:
                        yield self._completion(row, index, tokens, come)
            finally:
                await cancelled(watch)
            return
        start = asyncio.get_running_loop().time()
        left = np.argsort(lengths, kind="stable").tolist()
        try:
            while left:
                tokens = int(lengths[left[0]])
                come = await self._wait(start, tokens, abort)
                yield self._completion(row, first_index + left.pop(0), tokens, come)
        finally:
            for place in left:
                lost(self._come(start, int(lengths[place])))

    def _completion(self, row: int, index: int, tokens: int, come: int) -> Completion:
        if come < tokens:
            return Completion(index, "", come, "abort")
        known = {name: float(a[row, index]) for name, a in self._pool.signals.items()}
        reason = "length" if known.get("finished") == 0 else "stop"
        return Completion(index, self._text(row, index), tokens, reason, signals=known)

    async def _turn(
        self, turns: asyncio.Semaphore, index: int, tokens: int, abort: asyncio.Event
    ) -> tuple[int, int, int]:
        """A completion's index and length, and how far it has come, once that is known."""
        start = math.inf
        try:
            async with turns:
                start = asyncio.get_running_loop().time()
                await asyncio.sleep(tokens * self._seconds_per_token)
        except asyncio.CancelledError:
            come = self._come(start, tokens)
            if not abort.is_set():
                lost(come)
                raise
            return index, tokens, come
        return index, tokens, tokens

    async def _wait(self, start: float, tokens: int, abort: asyncio.Event) -> int:
        """Waits until a completion has come so far, or is aborted; how far it has come then."""
        loop = asyncio.get_running_loop()
        ends = start + tokens * self._seconds_per_token
        if ends <= loop.time():
            # The others of the loop get their turn, as they would while a model is at work.
            await asyncio.sleep(0)
            return 0 if abort.is_set() else tokens
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(ends):
                await abort.wait()
        if not abort.is_set():
            return tokens
        return self._come(start, tokens)

    def _come(self, start: float, tokens: int) -> int:
        """How far a completion of so many tokens has come that was begun at `start`."""
        seconds = max(asyncio.get_running_loop().time() - start, 0.0)
        pace = self._seconds_per_token
        return min(int(seconds / pace), tokens) if pace else 0

    def _row(self, problem: Problem, needed: int) -> int:
        row = self._rows.get(problem.id)
        if row is None:
            raise PoolError(f"pool: no problem {problem.id!r}")
        held = int(self._pool.samples_per_problem[row])
        if held < needed:
            raise PoolError(
                f"pool: problem {problem.id!r} has {held} completions, and the policy asks for "
                f"{needed}; lower its cap on samples, or use a deeper pool"
            )
        return row

    def _text(self, row: int, column: int) -> str:
        pool = self._pool
        if pool.answers is not None:
            answer = int(pool.answers[row, column])
            return "" if answer == -1 else f"\\boxed{{{answer}}}"
        if pool.correct is not None and pool.correct[row, column]:
            return "\\boxed{right}"
        return f"\\boxed{{answer {column}}}"

    async def close(self) -> None:
        """Does nothing."""


class RecordedVerifier:
    """Gives the recorded scores.

    Args:
        pool: The pool.

    Raises:
        PoolError: If the pool has no scores.
    """

    def __init__(self, pool: Pool):
        if pool.scores is None:
            raise PoolError("pool: it has no verifier scores")
        self._scores = pool.scores
        # What is not known of one is counted as nothing.
        none = np.zeros(pool.mask.shape)
        self._tokens = np.nan_to_num(pool.signals.get(VERIFIER_TOKENS, none)).astype(int)
        self.most_tokens = int(self._tokens.max())
        self._rows = {str(name): row for row, name in enumerate(pool.problem_ids)}

    async def score(self, problem: Problem, completions: Sequence[Completion]) -> list[Score]:
        """Gives the recorded score of each completion; see `Verifier.score`."""
        row = self._rows[problem.id]
        return [
            Score(float(self._scores[row, one.index]), tokens=int(self._tokens[row, one.index]))
            for one in completions
        ]

    async def close(self) -> None:
        """Does nothing."""
