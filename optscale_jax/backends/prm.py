"""Process reward models: how a completion becomes steps, a prompt, step scores and a score.

What differs between families of such models is one small class each (`families.py`); what runs the
model, an engine in this process or a server, is a `Pooler`. `PrmVerifier` joins the two.
"""

import asyncio
import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from optscale_jax.backends.base import lost
from optscale_jax.backends.config import VerifierConfig
from optscale_jax.backends.families import FORMATS, StepFormat
from optscale_jax.backends.prompts import place, tokens_of
from optscale_jax.errors import BackendError
from optscale_jax.records import Completion, Problem, Score

__all__ = [
    "AGGREGATES",
    "Pooler",
    "PrmVerifier",
    "StepPrompt",
    "aggregate",
    "split_steps",
    "step_prompt",
]

_REMEMBERED = 1 << 16
# Prompts whose outputs are kept, some hundred bytes each: those of a thousand problems at work.
# What half precision may leave of [0, 1], and of a sum of 1: an eighth bit of bfloat16's.
_ROUNDING = 2.0**-7


def split_steps(completion: str, at: str = StepFormat.steps) -> list[str]:
    """Splits a completion into steps: its paragraphs, which blank lines separate.

    Args:
        completion: The text.
        at: Regular expression of what separates steps; "" for nothing, so that all is one step.

    Returns:
        The steps, without white space around them and none of them empty; no step at all where
        the completion is blank.
    """
    parts = re.split(at, completion) if at else [completion]
    return [step for part in parts if part and (step := part.strip())]


# What the score of a completion is, given step scores in [0, 1], at least one.
AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda steps: math.fsum(steps) / len(steps),
    "last": lambda steps: steps[-1],
    "min": min,
    "product": math.prod,
}


def aggregate(steps: Sequence[float], how: str) -> float:
    """The score of a completion from its steps' scores.

    Args:
        steps: Step scores in [0, 1].
        how: A key of `AGGREGATES`.

    Returns:
        The score in [0, 1]; 0 where there is no step, since nothing speaks for the completion.
    """
    return AGGREGATES[how](steps) if steps else 0.0


class StepPrompt(NamedTuple):
    """What a process reward model reads for one completion.

    Attributes:
        token_ids: The prompt.
        positions: Index of each step's separator in it, ascending.
        truncated: Whether steps were cut off because they are beyond the model's context.
    """

    token_ids: list[int]
    positions: list[int]
    truncated: bool


def step_prompt(
    tokenizer: Any, family: StepFormat, problem: str, steps: Sequence[str], *, max_len: int
) -> StepPrompt:
    """Writes problem and steps the way a family of models wants them.

    What is beyond the model's context is cut off at the end: the models are causal, so the scores
    of the steps that are left are what they would have been.

    Args:
        tokenizer: The model's tokenizer, with its chat template.
        family: The family.
        problem: The problem's text.
        steps: The steps, at least one.
        max_len: The model's context in tokens.

    Returns:
        The prompt.
    """
    asked = family.messages(place(0), [place(i) for i, _ in enumerate(steps, 1)])
    begin = []
    if not isinstance(asked, str):
        asked = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=False)
    elif tokenizer.bos_token_id is not None:
        begin = [tokenizer.bos_token_id]
    tokens = tokens_of(tokenizer)(
        asked,
        [problem, *steps],
        begin=begin,
        mark=family.separator,
        apart=family.apart,
        reserved=family.reserved,
    )
    ends = tokens.ends if family.separator else [len(tokens.ids)]
    positions = [end - 1 - family.before for end in ends]
    within = [position for position in positions if position < max_len]
    return StepPrompt(tokens.ids[:max_len], within, len(within) < len(positions))


# The verifier -------------------------------------------------------------------------------------


@runtime_checkable
class Pooler(Protocol):
    """Runs a process reward model."""

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        ...

    @property
    def max_len(self) -> int:
        """The model's context in tokens."""
        ...

    async def pool(self, prompt: StepPrompt) -> np.ndarray:
        """The model's outputs at the prompt's positions, [steps, outputs], or whatever it gives."""
        ...

    async def close(self) -> None:
        """Releases what it holds."""
        ...


class _Reading:
    """One prompt being read, or read, and how many completions wait for it."""

    def __init__(self, task: "asyncio.Task[np.ndarray]", tokens: int):
        self.task = task
        self.tokens = tokens
        self.waiting = 0
        self.given_up = False

    @property
    def failed(self) -> bool:
        """Whether there is nothing to wait for: it was given up, or ended in an error."""
        task = self.task
        return self.given_up or (task.done() and (task.cancelled() or task.exception() is not None))

    async def rows(self) -> tuple[np.ndarray, int]:
        """The model's outputs, and what reading has cost, for the first that gets them.

        The reading is given up when nobody waits for it any more.
        """
        self.waiting += 1
        try:
            rows = await asyncio.shield(self.task)
            tokens, self.tokens = self.tokens, 0
            return rows, tokens
        finally:
            self.waiting -= 1
            if not self.waiting and not self.failed:
                # It is read all the same, or in part.
                lost(self.tokens)
                self.tokens = 0
                if not self.task.done():
                    self.given_up = True
                    self.task.cancel()


class PrmVerifier:
    """Scores completions by a process reward model; every text is a request of its own.

    A text that a problem's completions repeat, as those of a small or a sure model do, is read
    once: its other completions have the same score and cost no token.

    A score's note says what was unusual: "no step" for a blank completion, which scores 0;
    "truncated" where the verifier's context ended before the completion did, which is scored by
    the steps that it could read, and 0 if it could read none; "unfinished" for a completion that
    ended at its limit on length or was aborted, and is scored as it stands.
    """

    def __init__(self, config: VerifierConfig, pooler: Pooler):
        self._config = config
        self._pooler = pooler
        self.most_tokens = pooler.max_len
        self._family = FORMATS[config.family]
        self._readings: OrderedDict[bytes, _Reading] = OrderedDict()
        tokenizer = pooler.tokenizer
        family = self._family
        mark = family.separator.strip() or family.separator
        if mark and len(tokenizer.encode(mark, add_special_tokens=False)) != 1:
            raise BackendError(
                f"{config.model}: its tokenizer has no token {mark!r}, so it is no model of the "
                f"family {config.family}; give another verifier.family or model"
            )
        if not tokenizer.chat_template and not isinstance(family.messages("", [""]), str):
            raise BackendError(f"{config.model}: its tokenizer has no chat template")

    async def score(self, problem: Problem, completions: Sequence[Completion]) -> list[Score]:
        """Scores completions of one problem, all at once."""
        return list(await asyncio.gather(*(self._score(problem, one) for one in completions)))

    async def _score(self, problem: Problem, completion: Completion) -> Score:
        notes = [] if completion.finish_reason == "stop" else ["unfinished"]
        text = completion.text
        if self._config.after_think:
            text = text.rpartition("</think>")[2]
        at = self._family.steps if self._config.steps is None else self._config.steps
        steps = split_steps(text, at)
        if not steps:
            return Score(0.0, note="; ".join(["no step", *notes]))
        pooler = self._pooler
        prompt = step_prompt(
            pooler.tokenizer, self._family, problem.text, steps, max_len=pooler.max_len
        )
        if prompt.truncated:
            notes.insert(0, "truncated")
        note = "; ".join(notes) or None
        if not prompt.positions:
            return Score(0.0, note=note)
        rows, tokens = await self._reading(prompt).rows()
        scores = tuple(self._scores(rows, len(prompt.positions)))
        value = aggregate(scores, self._config.aggregate)
        # A model that judges the whole has no step scores.
        return Score(value, scores if self._family.separator else (), tokens=tokens, note=note)

    def _scores(self, rows: np.ndarray, steps: int) -> list[float]:
        family, rows = self._family, np.asarray(rows, np.float64)
        fault = _fault(family, rows, steps)
        if fault is None:
            scores = np.asarray(family.scores(rows), np.float64)
            fault = _not_probabilities(scores)
            if fault is None:
                return np.clip(scores, 0.0, 1.0).tolist()
        raise BackendError(
            f"{self._config.model} gives {fault}; is it a model of the family "
            f"{self._config.family}, and is it told to give that family's outputs?"
        )

    def _reading(self, prompt: StepPrompt) -> _Reading:
        """What reads a prompt, or has read it."""
        key = hashlib.blake2b(np.asarray(prompt.token_ids, np.int64).tobytes()).digest()
        reading = self._readings.get(key)
        if reading is not None and not reading.failed:
            self._readings.move_to_end(key)
            return reading
        task = asyncio.ensure_future(self._pooler.pool(prompt))
        reading = _Reading(task, len(prompt.token_ids))
        self._readings[key] = reading
        while len(self._readings) > _REMEMBERED:
            self._readings.popitem(last=False)
        return reading

    def forget(self) -> None:
        """Has texts that it has read cost again what they cost the first time."""
        self._readings.clear()

    async def close(self) -> None:
        """Releases the model."""
        await self._pooler.close()


def _fault(family: StepFormat, rows: np.ndarray, steps: int) -> str | None:
    """What is wrong with a model's outputs, or None."""
    if rows.shape != (steps, family.outputs):
        wanted = f"{family.outputs} for each of {steps} steps"
        return f"an array {list(rows.shape)} of outputs, not {wanted}"
    if not np.isfinite(rows).all():
        return f"the output {rows[~np.isfinite(rows)][0]}"
    if not family.activation:
        return None
    totals = rows.sum(1)
    off = family.outputs > 1 and np.abs(totals - 1).max() > _ROUNDING
    labels = f"labels whose probabilities add up to {totals[np.abs(totals - 1).argmax()]:.4g}"
    return _not_probabilities(rows) or (labels if off else None)


def _not_probabilities(numbers: np.ndarray) -> str | None:
    worst = numbers.flat[np.abs(numbers - 0.5).argmax()]
    if abs(worst - 0.5) <= 0.5 + _ROUNDING:
        return None
    return f"{worst:.4g}, which is no probability (a logit, before softmax or sigmoid?)"
