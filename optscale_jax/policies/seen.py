"""What has been seen of a problem: a completion, the best of them, their votes, all of it."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from optscale_jax.typing import Array

__all__ = ["Best", "Observation", "State", "Votes", "is_eligible"]


class Observation(NamedTuple):
    """One scored completion, every field a scalar but the last."""

    score: Array  # verifier score in [0, 1], floating
    answer: Array  # int32 id of its answer, equal for equal answers of the problem; -1 = no answer
    tokens: Array  # int32 length of the completion; -1 = unknown, 0 = empty
    index: Array  # int32 launch order within the problem, from 0
    signals: Any = None  # floating [M], `Policy.signals` in order, NaN = not known; None for M = 0


def is_eligible(observation: Observation) -> Array:
    """Whether a completion may be returned: an empty or answerless one never is."""
    return (observation.answer != -1) & (observation.tokens != 0)


class Best(NamedTuple):
    """The best eligible completion so far; the earlier one wins a tie."""

    score: Array  # -inf if there is none
    index: Array  # int32 launch order, -1 if there is none

    @classmethod
    def none(cls) -> "Best":
        """Before any observation."""
        return cls(jnp.asarray(-jnp.inf, jnp.result_type(float)), jnp.asarray(-1, jnp.int32))

    def add(self, observation: Observation) -> "Best":
        """With one more observation."""
        better = is_eligible(observation) & (observation.score > self.score)
        return Best(
            jnp.where(better, observation.score, self.score).astype(self.score.dtype),
            jnp.where(better, observation.index, self.index).astype(jnp.int32),
        )


class Votes(NamedTuple):
    """The votes of one problem, a slot for each distinct answer, in order of first appearance."""

    answers: Array  # int32 [slots], the answers' ids; -1 in a free slot
    counts: Array  # int32 [slots], completions with that answer
    weights: Array  # [slots], sum of their scores, added up in launch order
    first: Array  # int32 [slots], launch order of the first of them; -1 in a free slot

    @classmethod
    def none(cls, slots: int) -> "Votes":
        """Before any vote, with room for one answer a completion."""
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
        """Where the answer with most of `counts` or `weights` was first given; -1 if nobody voted.

        The first completion stands for its answer: which one it is does not change as the answer
        gathers votes, and finding it takes no scores, which a pool to be voted on may not have.
        """
        # argmax takes the first of equals; a free slot must not tie with an answer of weight 0.
        return self.first[jnp.argmax(jnp.where(self.counts > 0, votes, -1))]


class State(NamedTuple):
    """What a policy knows of one problem: scalars, but for the last four."""

    count: Array  # int32, completions seen
    tokens: Array  # floating, their tokens as far as known
    best: Best  # the best eligible one
    votes: Any  # `Votes`, where the rule or its selector compares answers; else None
    own: Any  # what the rule itself remembers
    chosen: Any  # what the selector itself remembers
