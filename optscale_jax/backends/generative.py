"""A language model as a verifier: asked k times whether a completion is correct."""

import asyncio
import dataclasses
import itertools
import math
import re
from collections.abc import Sequence

from optscale_jax.backends.base import Sampler, lost, spent_on
from optscale_jax.backends.config import JudgeConfig
from optscale_jax.errors import ProblemError
from optscale_jax.records import Completion, Problem, Score

__all__ = ["GenerativeVerifier", "Weighed"]

_PLACES = re.compile(r"\{(problem|completion)\}")


@dataclasses.dataclass(frozen=True)
class Weighed(Completion):
    """A completion of a sampler that was asked for log-probabilities.

    Attributes:
        likely: For each token its text, and the log-probabilities of the likeliest in its place.
    """

    likely: tuple[tuple[str, dict[str, float]], ...] = ()


def _tokens(verdicts: Sequence[Completion]) -> int:
    """What verdicts have cost; -1 = unknown."""
    if any(one.tokens < 0 for one in verdicts):
        return -1
    # The question is read once: the verdicts share it in the judge's prefix cache.
    question = max((one.prompt_tokens for one in verdicts), default=0)
    return question + sum(map(spent_on, verdicts))


def _whole(text: str) -> str:
    """A text without parts of characters, which texts and their tokens show in different ways."""
    return text.replace("\ufffd", "")


class GenerativeVerifier:
    """Scores a completion by how probable a judge finds the verdict that it is correct.

    The score is the mean over sampled verdicts of p / (p + q), where p and q are the probabilities
    of the tokens that begin the one and the other word at the verdict's place. A verdict that does
    not say either way counts 0. Where a sampler gives no probabilities, a verdict counts 1 or 0.

    A score's note is "no verdict" where none says either way, "counted" where verdicts had no
    probabilities, "too long" where problem and completion do not fit the judge, and "not judged"
    with the reason where it refuses them otherwise: scores of 0.

    References:
        Zhang et al., Generative Verifiers: Reward Modeling as Next-Token Prediction, ICLR 2025,
        arXiv 2408.15240: the average over chains of thought of the probability of "Yes".
    """

    def __init__(self, config: JudgeConfig, sampler: Sampler):
        self._config = config
        self._sampler = sampler
        self._verdict = re.compile(config.verdict)
        # The question is in the context, too.
        context, most = getattr(sampler, "max_len", None), getattr(sampler, "most_tokens", None)
        self.most_tokens = None
        if context is not None and most is not None:
            self.most_tokens = context + config.samples * most

    async def score(self, problem: Problem, completions: Sequence[Completion]) -> list[Score]:
        """Scores completions of one problem, all at once."""
        return list(await asyncio.gather(*(self._score(problem, one) for one in completions)))

    async def _score(self, problem: Problem, completion: Completion) -> Score:
        notes = [] if completion.finish_reason == "stop" else ["unfinished"]
        texts = {"problem": problem.text, "completion": completion.text}
        # In one pass, so that a completion that spells {problem} stays as it is.
        asked = _PLACES.sub(lambda place: texts[place[1]], self._config.template)
        question = Problem(f"{problem.id}#{completion.index}", asked)
        verdicts: list[Completion] = []
        try:
            drawn = self._sampler.sample(question, self._config.samples, 0, abort=asyncio.Event())
            async for one in drawn:
                verdicts.append(one)
        except ProblemError as error:
            note = "too long" if error.too_long else f"not judged ({error})"
            return Score(0.0, tokens=_tokens(verdicts), note="; ".join([note, *notes]))
        except BaseException:
            lost(_tokens(verdicts))
            raise
        whole = [verdict for verdict in verdicts if verdict.finish_reason != "error"]
        values = [self._value(verdict) for verdict in whole]
        if all(value is None for value in values):
            notes.insert(0, "no verdict")
        elif not any(isinstance(verdict, Weighed) for verdict in verdicts):
            notes.insert(0, "counted")
        value = math.fsum(value or 0.0 for value in values) / max(len(values), 1)
        return Score(value, tokens=_tokens(verdicts), note="; ".join(notes) or None)

    def _value(self, verdict: Completion) -> float | None:
        """What a verdict counts; None if it does not say either way."""
        found = list(self._verdict.finditer(verdict.text))
        if not found:
            return None
        last = found[-1]
        word = last.lastindex or 0
        counted = float(last[word].casefold() == self._config.positive.casefold())
        likely = verdict.likely if isinstance(verdict, Weighed) else ()
        texts = [_whole(text) for text, _ in likely]
        said = _whole(verdict.text[: last.start(word)])
        if not "".join(texts).startswith(said + last[word]):
            return counted
        ends = itertools.accumulate(map(len, texts))
        for end, text, (_, others) in zip(ends, texts, likely, strict=True):
            if end > len(said):
                # Of a token that begins before the word, such as with a blank, that part is given.
                before = text[: len(said) - (end - len(text))]
                return self._expectation(before, others, counted)
        return counted

    def _expectation(self, before: str, likely: dict[str, float], counted: float) -> float:
        config, sums = self._config, {True: 0.0, False: 0.0}
        for token, log_probability in likely.items():
            start = token.removeprefix(before).casefold() if token.startswith(before) else ""
            says = {
                positive
                for positive, word in ((True, config.positive), (False, config.negative))
                if start
                and (word.casefold().startswith(start) or start.startswith(word.casefold()))
            }
            if len(says) == 1:
                sums[says.pop()] += math.exp(log_probability)
        total = sums[True] + sums[False]
        return sums[True] / total if total else counted

    async def close(self) -> None:
        """Releases the judge."""
        await self._sampler.close()
