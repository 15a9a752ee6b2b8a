"""DSC: one completion for the problems that a search finds easy, ASC for the rest.

The one rule here that couples problems: `Policy.plan` ranks those of a run and searches for the
boundary of the easy ones. Its `Allotment` for each problem goes to the rule of that problem alone.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optscale_jax.policies.adaptive_self_consistency import check_threshold, short_of_certain
from optscale_jax.policies.base import (
    Info,
    Policy,
    Request,
    StopReason,
    check_count,
    check_not_above,
    until,
)
from optscale_jax.policies.seen import Observation, State, Votes
from optscale_jax.policies.selection import Selector, make_selector
from optscale_jax.typing import Array, ArrayLike, Count, Number
from optscale_jax.values import static

__all__ = [
    "Allotment",
    "DifficultyAdaptiveSelfConsistency",
    "difficulty_adaptive_self_consistency",
]


class Allotment(NamedTuple):
    """What the step over all problems decided for one, every field a scalar."""

    easy: Array  # bool, whether it needs no more than what was drawn for it, or one
    first: Array  # int32, completions to draw before the rule first looks at them, >= 1
    presampled: Array  # int32, how many of those the search drew; 0 if it never judged the problem


class DifficultyAdaptiveSelfConsistency(Policy):
    """See `difficulty_adaptive_self_consistency`."""

    couples_problems = True
    rule_uses_answers = True

    threshold: Number
    difficulty: str = static()  # what of the first completion ranks problems; "given" for `ranks`
    ranks: tuple[int, ...] = static(default=())  # the problems, easiest first
    window: int = static()
    judge_window: int = static()
    extension: int = static()

    @property
    def rule_uses_scores(self) -> bool:
        """Only for a ranking by the first score."""
        return self.difficulty == "first_score"

    @property
    def rule_uses_tokens(self) -> bool:
        """Only for a ranking by the first length."""
        return self.difficulty == "first_tokens"

    def _ranking(self, observations: Observation) -> Array:
        """[P] problems, easiest first."""
        if self.difficulty == "given":
            num_problems = observations.answer.shape[0]
            if len(self.ranks) != num_problems:
                raise ValueError(
                    f"difficulty has {len(self.ranks)} entries, but there are {num_problems} "
                    "problems"
                )
            return jnp.asarray(self.ranks)
        by_tokens = self.difficulty == "first_tokens"
        first = observations.tokens if by_tokens else -observations.score
        return jnp.argsort(first[:, 0], stable=True)

    def _is_easy(self, observations: Observation) -> Array:
        """Judges one problem by its first completions, fields [window]."""

        def add(votes, observation):
            return votes.add(observation), None

        votes, _ = jax.lax.scan(add, Votes.none(self.window), observations)
        return short_of_certain(votes, self.threshold, self.slots) <= 0

    def plan(self, observations: Observation) -> Allotment:
        """Ranks the problems and searches for the boundary of the easy ones.

        A window of neighbours is judged together, because a ranking is noisy: one problem that
        happens to be easy says little about those ranked below it.
        """
        num_problems = observations.answer.shape[0]
        problems = self._ranking(observations)
        # Judged for all at once, because that vectorises; only those in a judge window count.
        first = jax.tree.map(lambda field: field[:, : self.window], observations)
        easy_by_rank = jax.vmap(self._is_easy)(first)[problems]
        around = jnp.arange(self.judge_window, dtype=jnp.int32) - self.judge_window // 2

        def judge(_, carry):
            # Ranks below left are easy, those from right on are not.
            left, right, judged = carry
            middle = (left + right) // 2
            ranks = jnp.clip(middle + around, 0, num_problems - 1)
            open_still = left < right
            all_easy = jnp.all(easy_by_rank[ranks])
            judged = judged.at[ranks].max(open_still)
            left = jnp.where(open_still & all_easy, middle + 1, left)
            right = jnp.where(open_still & ~all_easy, middle, right)
            return left, right, judged

        # Every judgment leaves at most half of the ranks, rounded down.
        ends = jnp.zeros((), jnp.int32), jnp.asarray(num_problems, jnp.int32)
        never = jnp.zeros((num_problems,), bool)
        boundary, _, judged = jax.lax.fori_loop(0, num_problems.bit_length(), judge, (*ends, never))
        rank = jnp.zeros_like(problems).at[problems].set(jnp.arange(num_problems))
        easy = rank < boundary
        presampled = jnp.where(judged[rank], self.window, 0).astype(jnp.int32)
        alone = jnp.where(easy, 1, jnp.minimum(self.extension, self.max_samples))
        return Allotment(easy, jnp.maximum(presampled, alone).astype(jnp.int32), presampled)

    def start(self, prior: Any) -> Allotment:
        """The problem's allotment; without a plan, that of one which is not easy."""
        if isinstance(prior, Allotment):
            return prior
        first = jnp.minimum(self.extension, self.max_samples).astype(jnp.int32)
        return Allotment(jnp.zeros((), bool), first, jnp.zeros((), jnp.int32))

    def rule(self, state: State) -> Request:
        """What the allotment says, then ASC, looked at after every few completions."""
        allotment = state.own
        beyond = state.count - allotment.first
        rest = jnp.where(beyond < 0, -beyond, -beyond % self.extension)
        look = rest == 0
        certain = short_of_certain(state.votes, self.threshold, self.slots) <= 0
        more = jnp.where(look, self.extension, rest)
        enough = look & (allotment.easy | certain)
        return until(
            enough,
            jnp.where(allotment.easy, StopReason.EASY_PROBLEM, StopReason.LEAD_CERTAIN),
            more=more,
            required=state.count + jnp.where(enough, 0, more),
        )

    def info(self, state: State) -> Info:
        """With what the search drew."""
        return super().info(state)._replace(presampled=state.own.presampled)


def difficulty_adaptive_self_consistency(
    threshold: Number,
    max_samples: Count,
    difficulty: Literal["first_tokens", "first_score"] | ArrayLike = "first_tokens",
    *,
    window: int = 5,
    judge_window: int = 3,
    extension: int = 1,
    selection: str | Selector = "majority",
) -> Policy:
    """Finds the easy problems by binary search in a difficulty ranking, and saves on them.

    1. Rank the problems by difficulty, easiest first.
    2. Search the ranking for the boundary r*. At a middle rank, the w completions a_1 .. a_w of
       each problem in a window of v ranks around it are drawn (pre-sampling); a problem is easy if
       they already make its leading answer certain, in ASC's sense,

           P(p > 1/2) >= threshold,    p ~ Beta(a + 1, b + 1);

       if all v are easy, the boundary is above the middle, else below.
    3. A problem ranked below r* gets one completion. Any other gets ASC, looked at after every e
       further completions, up to max_samples.

    Nothing is drawn twice: what the search drew are the problem's first completions, and they vote.
    So `num_samples` and `tokens` of a replay contain the search, to the last token, and
    `presampled_tokens` says how much of them it was. The search looks at w completions of about
    v log2(P) problems.

    Nothing is looked at that is not paid for. (The published re-implementation ranks by the mean
    score of all completions that there are, of which most are never drawn.) Driven without a
    `plan`, it takes every problem for one that is not easy.

    Args:
      threshold: probability that the leading answer is the majority, inside (1/2, 1).
      max_samples: most completions to draw, >= 1.
      difficulty: [P] numbers, higher = harder, of each problem of the run; or where to read them
        off the first completion, which every problem draws anyway: "first_tokens", its length, or
        "first_score", one minus its score. A tie goes by the problems' order.
      window: w, completions to judge a problem by, an integer in [1, max_samples].
      judge_window: v, problems to judge together in the search for easy ones, >= 1.
      extension: e, completions to add at a time to a problem that is not easy, >= 1.
      selection: which completion to return, a name in `SELECTORS` or a `Selector`.

    Raises:
      ValueError: an argument outside its domain, an unknown selection; from `plan`, if difficulty
        has another length than the run has problems.

    References:
      Wang et al. (2024), "Make Every Penny Count: Difficulty-Adaptive Self-Consistency for
      Cost-Efficient Reasoning", arXiv 2408.13457, whose ranking comes from the language model. The
      windows' defaults are those of the re-implementation for arXiv 2506.22376.
    """
    check_threshold(threshold)
    max_samples = check_count("max_samples", max_samples)
    window = check_count("window", window)
    check_not_above("window", window, "max_samples", max_samples)
    ranks: tuple[int, ...] = ()
    if isinstance(difficulty, str):
        if difficulty not in ("first_tokens", "first_score"):
            raise ValueError(
                f"difficulty must be numbers, 'first_tokens' or 'first_score', found {difficulty!r}"
            )
    else:
        # The ranks, in NumPy's float64: float32 would tie what differs in the eighth digit.
        given = np.asarray(difficulty, np.float64)
        if given.ndim != 1 or np.isnan(given).any():
            raise ValueError("difficulty must be one number for each problem, none of them NaN")
        ranks, difficulty = tuple(np.argsort(given, kind="stable").tolist()), "given"
    return DifficultyAdaptiveSelfConsistency(
        threshold=threshold,
        max_samples=max_samples,
        difficulty=difficulty,
        ranks=ranks,
        window=window,
        judge_window=check_count("judge_window", judge_window),
        extension=check_count("extension", extension),
        selection=make_selector(selection),
    )
