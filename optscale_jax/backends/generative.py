"""A language model as a verifier: asked k times whether a completion is correct."""

import asyncio
import re
from collections.abc import Sequence

from optscale_jax.backends.base import Sampler
from optscale_jax.backends.config import JudgeConfig
from optscale_jax.errors import ProblemError
from optscale_jax.records import Completion, Problem, Score

__all__ = ["GenerativeVerifier"]

_PLACES = re.compile(r"\{(problem|completion)\}")


class GenerativeVerifier:
    """Scores a completion by the share of sampled verdicts that call it correct.

    A verdict that does not say either way counts as one against. A score's note is "no verdict"
    where none of them says either way, and "too long" where problem and completion do not fit the
    judge, which is a score of 0.

    References:
        Zhang et al., Generative Verifiers: Reward Modeling as Next-Token Prediction, ICLR 2025,
        arXiv 2408.15240: the score is an average over sampled chains of thought.
    """

    def __init__(self, config: JudgeConfig, sampler: Sampler):
        self._config = config
        self._sampler = sampler
        self._verdict = re.compile(config.verdict)

    async def score(self, problem: Problem, completions: Sequence[Completion]) -> list[Score]:
        """Scores completions of one problem, all at once."""
        return list(await asyncio.gather(*(self._score(problem, one) for one in completions)))

    async def _score(self, problem: Problem, completion: Completion) -> Score:
        notes = [] if completion.finish_reason == "stop" else ["unfinished"]
        texts = {"problem": problem.text, "completion": completion.text}
        # In one pass, so that a completion that spells {problem} stays as it is.
        asked = _PLACES.sub(lambda place: texts[place[1]], self._config.template)
        question = Problem(f"{problem.id}#{completion.index}", asked)
        try:
            drawn = self._sampler.sample(question, self._config.samples, 0, abort=asyncio.Event())
            verdicts = [one async for one in drawn]
        except ProblemError:
            return Score(0.0, note="; ".join(["too long", *notes]))
        answers = [self._answer(verdict.text) for verdict in verdicts]
        if all(answer is None for answer in answers):
            notes.insert(0, "no verdict")
        # The question is read once: the verdicts share it in the judge's prefix cache.
        tokens = sum(one.tokens for one in verdicts) + max(one.prompt_tokens for one in verdicts)
        return Score(
            sum(answer is True for answer in answers) / len(answers),
            tokens=tokens,
            note="; ".join(notes) or None,
        )

    def _answer(self, verdict: str) -> bool | None:
        """Whether a verdict says correct; None if it does not say either way."""
        found = list(self._verdict.finditer(verdict))
        if not found:
            return None
        last = found[-1]
        return last[last.lastindex or 0].casefold() == self._config.positive.casefold()

    async def close(self) -> None:
        """Releases the judge."""
        await self._sampler.close()
