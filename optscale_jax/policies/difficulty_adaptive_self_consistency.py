"""DSC: one completion for the problems that a search finds easy, ASC for the rest.

The one rule here that couples problems. What couples them is a step over all of a run's problems,
`Policy.plan`, that ranks them by difficulty and searches for the boundary of the easy ones; what it
yields, an `Allotment` for each problem, goes to the rule of that problem alone. The search itself
is `start_search`, `judged_ranks` and `narrow`, pure functions of two numbers: `plan` runs them in a
loop, and a live run can call them one at a time, drawing what they ask for in between.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optscale_jax.policies.adaptive_self_consistency import certain_lead
from optscale_jax.policies.base import Best, Policy, StopReason, check_count, no_info
from optscale_jax.policies.voting import Selection, Votes, make_selector
from optscale_jax.typing import Array, ArrayLike

__all__ = [
    "Allotment",
    "Search",
    "difficulty_adaptive_self_consistency",
    "judged_ranks",
    "narrow",
    "start_search",
]


class Allotment(NamedTuple):
    """What the step over all problems decided for one, every field a scalar.

    Attributes:
      easy: bool, whether the problem needs no more than what was drawn for it, or one.
      first: int32, completions to draw before the rule first looks at them, >= 1.
      presampled: int32, how many of those the search drew; 0 if it never judged the problem.
    """

    easy: Array
    first: Array
    presampled: Array


class Search(NamedTuple):
    """Where the boundary of the easy problems still may be: int32 scalars, left <= right.

    Attributes:
      left: ranks below it are easy.
      right: ranks from it on are not.
    """

    left: Array
    right: Array


def start_search(num_problems: int) -> Search:
    """The search before any problem is judged; ranks are 0 .. num_problems - 1."""
    return Search(jnp.zeros((), jnp.int32), jnp.asarray(num_problems, jnp.int32))


def judged_ranks(search: Search, judge_window: int, num_problems: int) -> Array:
    """The ranks to judge next: a window around the middle of what is left.

    Several neighbours are judged, because a ranking is noisy: one problem that happens to be easy
    says little about those ranked below it.

    Args:
      search: where the boundary may be; left < right.
      judge_window: how many problems to judge together, >= 1.
      num_problems: how many problems are ranked.

    Returns:
      int32 [judge_window]; at either end of the ranking, its last rank repeated.
    """
    around = jnp.arange(judge_window, dtype=jnp.int32) - judge_window // 2
    return jnp.clip((search.left + search.right) // 2 + around, 0, num_problems - 1)


def narrow(search: Search, all_easy: Array) -> Search:
    """The search after a judgment; it ends when left == right.

    Args:
      search: the search that `judged_ranks` was asked of.
      all_easy: bool, whether every problem judged is easy.

    Returns:
      The search on the other side of the middle: above it if all are easy, else below.
    """
    middle = (search.left + search.right) // 2
    return Search(
        jnp.where(all_easy, middle + 1, search.left).astype(jnp.int32),
        jnp.where(all_easy, search.right, middle).astype(jnp.int32),
    )


class DifficultyAdaptiveState(NamedTuple):
    """Completions seen (a scalar), the problem's allotment, the votes, and the best score."""

    count: Array
    allotment: Allotment
    votes: Votes
    best: Best


def difficulty_adaptive_self_consistency(
    threshold: ArrayLike,
    max_samples: int,
    difficulty: ArrayLike | Literal["first_tokens", "first_score"] = "first_tokens",
    *,
    window: int = 5,
    judge_window: int = 3,
    extension: int = 1,
    selection: Selection = "majority",
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
    score of all completions that there are, of which most are never drawn.)

    Args:
      threshold: inside (1/2, 1); may be traced.
      max_samples: cap, >= 1.
      difficulty: [P] numbers, higher = harder, of each problem of the run; or where to read them
        off the first completion, which every problem draws anyway: "first_tokens", its length, or
        "first_score", one minus its score. A tie goes by the problems' order.
      window: w, in [1, max_samples].
      judge_window: v, >= 1.
      extension: e, >= 1: how many completions a problem that is not easy gets at a time.
      selection: which completion to return.

    Returns:
      The policy, with a `plan`. Driven without one, it takes every problem for one that is not
      easy.

    Raises:
      ValueError: an argument outside its domain (threshold where its value is known), an unknown
        selection; from `plan`, if difficulty has another length than the run has problems.

    References:
      Wang et al. (2024), "Make Every Penny Count: Difficulty-Adaptive Self-Consistency for
      Cost-Efficient Reasoning", arXiv 2408.13457, whose ranking comes from the language model. The
      windows' defaults are those of the re-implementation for arXiv 2506.22376.
    """
    max_samples = check_count("max_samples", max_samples)
    window = check_count("window", window)
    judge_window = check_count("judge_window", judge_window)
    extension = check_count("extension", extension)
    if window > max_samples:
        raise ValueError(f"window must be at most max_samples, found {window} > {max_samples}")
    given, read_off = None, None
    if isinstance(difficulty, str):
        read_off = difficulty
        if read_off not in ("first_tokens", "first_score"):
            raise ValueError(
                f"difficulty must be numbers, 'first_tokens' or 'first_score', found {read_off!r}"
            )
    else:
        # The ranks, in NumPy's float64: float32 would tie what differs in the eighth digit.
        given = np.asarray(difficulty, np.float64)
        if given.ndim != 1 or np.isnan(given).any():
            raise ValueError("difficulty must be one number for each problem, none of them NaN")
        given = np.argsort(given, kind="stable")
    selector = make_selector(selection, max_samples)
    needed = certain_lead(threshold, max_samples)

    def short_of_certain(votes):
        leader, runner_up = votes.leaders()
        return needed[runner_up] - leader

    def is_easy(observations):
        """Judges one problem by its first completions, fields [window]."""

        def add(votes, observation):
            return votes.add(observation), None

        votes, _ = jax.lax.scan(add, Votes.none(window), observations)
        return short_of_certain(votes) <= 0

    def ranking(observations):
        """[P] problems, easiest first."""
        if given is not None:
            num_problems = observations.answer.shape[0]
            if given.size != num_problems:
                raise ValueError(
                    f"difficulty has {given.size} entries, but there are {num_problems} problems"
                )
            return jnp.asarray(given)
        first = observations.tokens if read_off == "first_tokens" else -observations.score
        return jnp.argsort(first[:, 0], stable=True)

    def plan(observations):
        num_problems = observations.answer.shape[0]
        problems = ranking(observations)
        # Judged for all at once, because that vectorises; only those in a judge window count.
        first = jax.tree.map(lambda field: field[:, :window], observations)
        easy_by_rank = jax.vmap(is_easy)(first)[problems]

        def judge(_, carry):
            search, judged = carry
            ranks = judged_ranks(search, judge_window, num_problems)
            narrowed = narrow(search, jnp.all(easy_by_rank[ranks]))
            open_still = search.left < search.right
            search = jax.tree.map(
                lambda new, old: jnp.where(open_still, new, old), narrowed, search
            )
            return search, judged.at[ranks].max(open_still)

        # Every judgment leaves at most half of the ranks, rounded down.
        search, judged = jax.lax.fori_loop(
            0,
            num_problems.bit_length(),
            judge,
            (start_search(num_problems), jnp.zeros((num_problems,), bool)),
        )
        rank = jnp.zeros_like(problems).at[problems].set(jnp.arange(num_problems))
        easy = rank < search.left
        presampled = jnp.where(judged[rank], window, 0).astype(jnp.int32)
        alone = jnp.where(easy, 1, min(extension, max_samples))
        return Allotment(easy, jnp.maximum(presampled, alone).astype(jnp.int32), presampled)

    def init(prior=None):
        allotment = prior
        if not isinstance(allotment, Allotment):
            allotment = Allotment(
                jnp.zeros((), bool),
                jnp.asarray(min(extension, max_samples), jnp.int32),
                jnp.zeros((), jnp.int32),
            )
        return DifficultyAdaptiveState(
            jnp.zeros((), jnp.int32), allotment, Votes.none(max_samples), Best.none()
        )

    def observe(state, observation):
        return DifficultyAdaptiveState(
            state.count + 1,
            state.allotment,
            state.votes.add(observation),
            state.best.update(observation),
        )

    def request(state):
        beyond = state.count - state.allotment.first
        rest = jnp.where(beyond < 0, -beyond, -beyond % extension)
        look = rest == 0
        enough = look & (state.allotment.easy | (short_of_certain(state.votes) <= 0))
        more = jnp.where(look, extension, rest)
        more = jnp.clip(more, 0, jnp.maximum(max_samples - state.count, 0))
        return jnp.where(enough, 0, more)

    def select(state):
        # The state of either vote is the votes that the rule has already.
        return selector.index(state.votes if selector.uses_answers else state.best)

    def info(state):
        reason = jnp.where(
            request(state) > 0,
            StopReason.RUNNING,
            jnp.where(
                state.allotment.easy,
                StopReason.EASY_PROBLEM,
                jnp.where(
                    short_of_certain(state.votes) <= 0,
                    StopReason.LEAD_CERTAIN,
                    StopReason.MAX_SAMPLES,
                ),
            ),
        )
        required = no_info(state.count + request(state), reason)
        return required._replace(presampled=state.allotment.presampled)

    return Policy(
        init,
        observe,
        request,
        select,
        info,
        max_samples=max_samples,
        uses_scores=selector.uses_scores or read_off == "first_score",
        uses_answers=True,
        uses_tokens=read_off == "first_tokens",
        plan=plan,
    )
