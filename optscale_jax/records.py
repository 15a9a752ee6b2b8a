"""The records of the live loop: a problem, its completions, their scores, and what was decided.

What is not known is said by its type, here and in every array of the library:

    a number that counts or names (tokens, ids, indices)    -1
    a number that is measured (scores, fits, means)         NaN
    anything else (an answer, a truth value, a whole array) None

and is turned into another form only where it leaves the library: null in JSON, an empty cell in
CSV. Counts that may be unknown are added up and averaged as `measured` gives them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax

from optscale_jax.derived_signals import derived_signals

__all__ = [
    "PASSING",
    "Completion",
    "Decision",
    "FinishReason",
    "Problem",
    "Sample",
    "Score",
    "TokenLedger",
    "finish_reason",
    "measured",
]

FinishReason = Literal["stop", "length", "abort", "error"]
"""Why a completion ended: by itself, at the limit on its length, because it was aborted, or for
something that went wrong with it, which leaves it without an answer."""


_FINISH: dict[str, FinishReason] = {
    # What the model ended by itself, with a word of its own or one that it was given.
    **dict.fromkeys(("stop", "eos", "eos_token", "stop_token", "stop_sequence"), "stop"),
    **dict.fromkeys(("end_turn", "complete", "completed", "done", "finished"), "stop"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "function_call"), "stop"),
    **dict.fromkeys(("length", "max_length", "max_tokens", "max_new_tokens"), "length"),
    **dict.fromkeys(("max_output_tokens", "max_completion_tokens", "token_limit"), "length"),
    **dict.fromkeys(("model_length", "context_length", "context_length_exceeded"), "length"),
    **dict.fromkeys(("model_context_window_exceeded", "context_window_exceeded"), "length"),
}

PASSING = {
    "error", "abort", "aborted", "cancelled", "canceled", "interrupted", "timeout", "time_out",
    "overloaded", "unavailable", "server_error", "internal_error", "insufficient_system_resource",
}  # fmt: skip
"""Finish reasons of what may go well another time."""


def finish_reason(word: object) -> FinishReason:
    """Why a completion ended, of a server's, an engine's or a log's word for it.

    Args:
        word: The word; whatever else stands in its place says nothing.

    Returns:
        "stop" or "length" for words that mean it, and "error" for all others: what was filtered,
        aborted or ended for a reason that nobody here knows is not finished.
    """
    return _FINISH.get(word.casefold(), "error") if isinstance(word, str) else "error"


def measured(count: int) -> float | int:
    """A count to add up and average: NaN where it is unknown, itself otherwise."""
    return count if count >= 0 else math.nan


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem of a benchmark."""

    id: str  # unique within a run; seeds and the run's log are keyed by it
    text: str  # the question as it is put to the sampler, before any chat template
    answer: str | None = None  # the gold answer; None = not known


@dataclasses.dataclass(frozen=True)
class Completion:
    """One completion of a problem."""

    # Launch order within the problem, from 0; with the run's seed and the problem's id it makes the
    # completion's seed.
    index: int
    text: str  # without the prompt
    tokens: int  # its length in tokens, of a partial completion too
    finish_reason: FinishReason = "stop"
    prompt_tokens: int = 0  # length of the prompt in tokens; 0 where the sampler does not say
    # What went wrong with it, if its finish reason is "error"; its sample's note then.
    error: str | None = None
    # Mean log-probability of its tokens, at most 0; None where the sampler does not say.
    mean_logprob: float | None = None
    # Its signals by name, NaN = not known, of a sampler that knows them; None: they are derived.
    signals: Mapping[str, float] | None = None
    redrawn: int = 0  # tokens of tries that failed before this one, as far as they are known


@dataclasses.dataclass(frozen=True)
class Score:
    """A verifier's judgement of one completion."""

    value: float  # the score, in [0, 1]
    steps: tuple[float, ...] = ()  # step scores in [0, 1], in order; empty if it has none
    tokens: int = (
        0  # tokens that the verifier read and wrote for it; 0 if it counts none; -1 = unknown
    )
    note: str | None = None  # what was unusual, such as "truncated" or "no step"; None for nothing


@dataclasses.dataclass(frozen=True)
class Sample:
    """One completion with what is known of it."""

    problem_id: str
    completion: Completion
    score: float | None  # the verifier's score, in [0, 1]; None without a verifier
    answer: str | None  # the final answer; None = none
    answer_id: int  # equal within a problem where the answers are; -1 = none
    gold_id: int  # the gold answer's id; -1 = not known
    steps: tuple[float, ...] = ()  # step scores, if the verifier gives them
    verifier_tokens: int = 0  # tokens that the verifier read and wrote for it; -1 = unknown
    note: str | None = None  # what the verifier found unusual

    @property
    def correct(self) -> bool | None:
        """Whether the answer is the gold one; None where that is not known."""
        return None if self.gold_id == -1 else self.answer_id == self.gold_id

    @property
    def signals(self) -> Mapping[str, float]:
        """What is known of it beside the score, by name (`optscale_jax.derived_signals`)."""
        completion = self.completion
        if completion.signals is not None:
            return completion.signals
        return derived_signals(
            steps=self.steps,
            mean_logprob=completion.mean_logprob,
            finished=completion.finish_reason == "stop",
            verifier_tokens=None if self.score is None else self.verifier_tokens,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenLedger:
    """Tokens by what they were spent on; ledgers add up.

    Each entry is a number or an array, in tokens. An unknown entry is NaN, and so is then the
    total.
    """

    completed: Any = 0  # in completions that ran to their end
    aborted: Any = 0  # in completions stopped because the policy had enough, and in failed tries
    verifier: Any = 0  # read and written by the verifier
    predictor: Any = 0  # read by the predictor of priors

    @property
    def total(self) -> Any:
        """All tokens together."""
        return self.completed + self.aborted + self.verifier + self.predictor

    def __add__(self, other: "TokenLedger") -> "TokenLedger":
        if not isinstance(other, TokenLedger):
            return NotImplemented
        return TokenLedger(
            self.completed + other.completed,
            self.aborted + other.aborted,
            self.verifier + other.verifier,
            self.predictor + other.predictor,
        )

    def __radd__(self, other: Any) -> "TokenLedger":
        # sum() starts from the integer 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a policy did with one problem."""

    problem_id: str
    num_samples: int  # completions that it decided on, the first ones in launch order
    tokens: int  # their tokens; -1 = unknown
    selected_index: int  # the completion returned; -1 = none was eligible
    stop_reason: str  # a `StopReason`'s name in small letters
    required: int  # samples that the policy wanted in all
    params: dict[str, float]  # the fitted law's at the stop; {} for policies that fit none
    # All tokens spent on the problem: those of completions beyond the `num_samples` too, that had
    # ended when the policy stopped, and those aborted then.
    ledger: TokenLedger
    error: str | None = None  # why it cannot be sampled or scored, for the stop reason "failed"
    # P(the completion returned is right) as the policy claims it; None if it claims none.
    confidence: float | None = None
    # Where problems share a budget, what one more completion would have gained (`Policy.gain`).
    gain: float | None = None
