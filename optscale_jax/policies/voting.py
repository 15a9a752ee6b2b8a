"""Votes among answers, and the selectors: which of the completions drawn to return.

When to stop and what to return are separate questions. A stopping rule takes `selection=` by name
and carries the selector's state beside its own. An answerless or empty completion never votes and
is never returned, and a tie goes to the answer seen first.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp

from optscale_jax.policies.base import Best, Observation, is_eligible
from optscale_jax.typing import Array

__all__ = [
    "Selection",
    "Selector",
    "Votes",
    "best_score",
    "majority",
    "make_selector",
    "weighted_vote",
]

Selection = Literal["best_score", "majority", "weighted_vote"]
"""Names of the selectors."""


class Votes(NamedTuple):
    """The votes of one problem, a slot for each distinct answer, in order of first appearance.

    Attributes:
      answers: int32 [slots], the answers' ids; -1 in a free slot.
      counts: int32 [slots], completions with that answer.
      weights: [slots], sum of their scores, added up in launch order.
      first: int32 [slots], launch order of the first of them; -1 in a free slot.
    """

    answers: Array
    counts: Array
    weights: Array
    first: Array

    @classmethod
    def none(cls, slots: int) -> "Votes":
        """Before any vote.

        Args:
          slots: the most distinct answers that there can be, which is the most completions.

        Returns:
          The state.
        """
        free = jnp.full((slots,), -1, jnp.int32)
        zero = jnp.zeros((slots,), jnp.int32)
        return cls(free, zero, jnp.zeros((slots,), jnp.result_type(float)), free)

    def add(self, observation: Observation) -> "Votes":
        """With one more observation, which votes if it is eligible."""
        # Comparing with every slot, rather than writing to one, because scattered writes do not
        # vectorise over problems.
        same = self.answers == observation.answer
        new = jnp.arange(self.counts.size) == jnp.sum(self.counts > 0)
        here = jnp.where(jnp.any(same), same, new) & is_eligible(observation)
        appears = here & (self.counts == 0)
        score = jnp.asarray(observation.score, self.weights.dtype)
        return Votes(
            jnp.where(appears, observation.answer, self.answers).astype(jnp.int32),
            self.counts + here,
            self.weights + jnp.where(here, score, 0),
            jnp.where(appears, observation.index, self.first).astype(jnp.int32),
        )

    def leaders(self) -> tuple[Array, Array]:
        """The two highest counts of different answers, a >= b >= 0, int32 scalars."""
        leader = jnp.argmax(self.counts)
        others = jnp.where(jnp.arange(self.counts.size) == leader, 0, self.counts)
        return self.counts[leader], jnp.max(others)

    def first_with_most(self, votes: Array) -> Array:
        """Where the answer with most votes was first given.

        The first completion stands for its answer: which one it is does not change as the answer
        gathers votes, and finding it takes no scores, which a pool to be voted on may not have.

        Args:
          votes: [slots], not negative: `counts` or `weights`.

        Returns:
          int32 launch order; -1 if nobody voted.
        """
        # argmax takes the first of equals; a free slot must not tie with an answer of weight 0.
        return self.first[jnp.argmax(jnp.where(self.counts > 0, votes, -1))]


class Selector(NamedTuple):
    """Which completion to return, as pure functions over a fixed-shape state.

    Attributes:
      init: `init() -> state`.
      update: `update(state, observation) -> state`.
      index: `index(state) -> int32`, launch order of the completion to return; -1 = none.
      uses_scores: whether it reads scores.
      uses_answers: whether it compares answers.
    """

    init: Callable[[], Any]
    update: Callable[[Any, Observation], Any]
    index: Callable[[Any], Array]
    uses_scores: bool
    uses_answers: bool


def best_score() -> Selector:
    """The highest score: argmax_i s_i; the earlier completion wins a tie.

    Returns:
      The selector.
    """
    return Selector(Best.none, Best.update, lambda best: best.index, True, False)


def majority(slots: int) -> Selector:
    """The most frequent answer: argmax_a #{i : a_i = a}.

    Args:
      slots: the most completions that will be observed.

    Returns:
      The selector; its state is `Votes`.

    References:
      Wang et al. (2023), arXiv 2203.11171, section 2.
    """
    return Selector(
        lambda: Votes.none(slots),
        Votes.add,
        lambda votes: votes.first_with_most(votes.counts),
        False,
        True,
    )


def weighted_vote(slots: int) -> Selector:
    """The answer with the highest sum of scores: argmax_a sum_{i : a_i = a} s_i.

    Args:
      slots: the most completions that will be observed.

    Returns:
      The selector; its state is `Votes`.

    References:
      Li et al. (2023), "Making Language Models Better Reasoners with Step-Aware Verifier", arXiv
      2206.02336, the voting verifier.
    """
    return Selector(
        lambda: Votes.none(slots),
        Votes.add,
        lambda votes: votes.first_with_most(votes.weights),
        True,
        True,
    )


def make_selector(selection: Selection, max_samples: int) -> Selector:
    """The selector of that name, for a policy that draws at most max_samples.

    Args:
      selection: "best_score", "majority" or "weighted_vote".
      max_samples: the policy's cap.

    Returns:
      The selector.

    Raises:
      ValueError: no selector has that name.
    """
    if selection == "best_score":
        return best_score()
    if selection == "majority":
        return majority(max_samples)
    if selection == "weighted_vote":
        return weighted_vote(max_samples)
    known = ", ".join(map(repr, get_args(Selection)))
    raise ValueError(f"selection must be one of {known}, found {selection!r}")
