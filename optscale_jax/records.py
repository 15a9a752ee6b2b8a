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
from typing import Any, Literal

import jax

__all__ = [
    "Completion",
    "Decision",
    "FinishReason",
    "Problem",
    "Sample",
    "Score",
    "TokenLedger",
    "measured",
]

FinishReason = Literal["stop", "length", "abort"]
"""Why a completion ended: by itself, at the limit on its length, or because it was aborted."""


def measured(count: int) -> float | int:
    """A count to add up and average: NaN where it is unknown, itself otherwise."""
    return count if count >= 0 else math.nan


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem of a benchmark.

    Attributes:
        id: Unique within a run; seeds and the run's log are keyed by it.
        text: The question as it is put to the sampler, before any chat template.
        answer: The gold answer; None = not known.
    """

    id: str
    text: str
    answer: str | None = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """One completion of a problem.

    Attributes:
        index: Launch order within the problem, from 0; with the run's seed and the problem's id it
            determines the completion's seed.
        text: The completion, without the prompt.
        tokens: Its length in tokens, those of a partial completion too.
        finish_reason: Why it ended.
        prompt_tokens: Length of the prompt in tokens; 0 where the sampler does not say.
    """

    index: int
    text: str
    tokens: int
    finish_reason: FinishReason = "stop"
    prompt_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Score:
    """A verifier's judgement of one completion.

    Attributes:
        value: The score, in [0, 1].
        steps: Step scores in [0, 1], in order; empty for verifiers that judge the whole.
        tokens: Tokens that the verifier read and wrote for it.
        note: What was unusual, such as "truncated" or "no step"; None for nothing.
    """

    value: float
    steps: tuple[float, ...] = ()
    tokens: int = 0
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """One completion with what is known of it.

    Attributes:
        problem_id: The problem.
        completion: The completion.
        score: The verifier's score, in [0, 1]; None without a verifier.
        answer: The final answer; None = none.
        answer_id: Equal within a problem where the answers are; -1 = none.
        gold_id: The gold answer's id; -1 = not known.
        steps: Step scores, if the verifier gives them.
        verifier_tokens: Tokens that the verifier read and wrote for it.
        note: What the verifier found unusual.
    """

    problem_id: str
    completion: Completion
    score: float | None
    answer: str | None
    answer_id: int
    gold_id: int
    steps: tuple[float, ...] = ()
    verifier_tokens: int = 0
    note: str | None = None

    @property
    def correct(self) -> bool | None:
        """Whether the answer is the gold one; None where that is not known."""
        return None if self.gold_id == -1 else self.answer_id == self.gold_id


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenLedger:
    """Tokens by what they were spent on; ledgers add up.

    Each entry is a number or an array, in tokens. An unknown entry is NaN, and so is then the
    total.

    Attributes:
        completed: In completions that ran to their end.
        aborted: In completions that were stopped because the policy had enough.
        verifier: Read and written by the verifier.
        predictor: Read by the predictor of priors.
    """

    completed: Any = 0
    aborted: Any = 0
    verifier: Any = 0
    predictor: Any = 0

    @property
    def total(self) -> Any:
        """All tokens together."""
        return self.completed + self.aborted + self.verifier + self.predictor

    def __add__(self, other: "TokenLedger") -> "TokenLedger":
        if not isinstance(other, TokenLedger):
            return NotImplemented
        return jax.tree.map(lambda a, b: a + b, self, other)

    def __radd__(self, other: Any) -> "TokenLedger":
        # sum() starts from the integer 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a policy did with one problem.

    Attributes:
        problem_id: The problem.
        num_samples: Completions that it decided on, the first ones in launch order.
        tokens: Their tokens; -1 = unknown.
        selected_index: The completion returned; -1 = none was eligible.
        stop_reason: A `StopReason`'s name in small letters.
        required: Samples that the policy wanted in all.
        params: The fitted law's parameters at the stop, by name; {} for policies that fit none.
        ledger: All tokens spent on the problem: those of completions beyond the `num_samples` too,
            that had ended when the policy stopped, and those aborted then.
        error: Why there is none, if the problem cannot be sampled or scored; its stop reason is
            "failed" then.
    """

    problem_id: str
    num_samples: int
    tokens: int
    selected_index: int
    stop_reason: str
    required: int
    params: dict[str, float]
    ledger: TokenLedger
    error: str | None = None
