"""Selectors: which of the completions drawn to return.

When to stop and what to return are separate questions: any rule takes `selection=`, by name or as a
value of one's own. An answerless or empty completion never votes and is never returned, and a tie
goes to the answer seen first.
"""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from optscale_jax.distributions.base import known
from optscale_jax.plugins import make_part
from optscale_jax.policies.seen import Observation, State, is_eligible
from optscale_jax.typing import Array, Number
from optscale_jax.values import Value

__all__ = [
    "SELECTORS",
    "BestScore",
    "Majority",
    "MajorityOfTheBests",
    "Selector",
    "WeightedVote",
    "make_selector",
]


class Selector(Value):
    """Which completion to return, as a pure function of a policy's state.

    `state.best` and, with `uses_answers`, `state.votes` are there already. A selector that needs
    more keeps it in `state.chosen`, with `init` and `update`.
    """

    uses_scores: ClassVar[bool] = True  # whether it reads scores
    uses_answers: ClassVar[bool] = False  # whether it compares answers

    def init(self, slots: int) -> Any:
        """What it keeps before any completion: a pytree, of shapes that `slots` may decide."""
        del slots

    def update(self, chosen: Any, observation: Observation) -> Any:
        """What it keeps with one more completion."""
        del observation
        return chosen

    def index(self, state: State) -> Array:
        """int32, launch order of the completion to return; -1 = none."""
        raise NotImplementedError


class BestScore(Selector):
    """The highest score: argmax_i s_i; the earlier completion wins a tie."""

    def index(self, state: State) -> Array:
        """Launch order of the best eligible completion."""
        return state.best.index


class Majority(Selector):
    """The first completion with the most frequent answer, as `self_consistency`."""

    uses_scores = False
    uses_answers = True

    def index(self, state: State) -> Array:
        """Launch order of the first completion with that answer."""
        return state.votes.first_with_most(state.votes.counts)


class WeightedVote(Selector):
    """The first completion with the highest sum of scores, as `weighted_self_consistency`."""

    uses_answers = True

    def index(self, state: State) -> Array:
        """Launch order of the first completion with that answer."""
        return state.votes.first_with_most(state.votes.weights)


class Eligible(NamedTuple):
    """The eligible completions, by launch order [slots]."""

    scores: Array  # -inf where there is none
    answers: Array  # int32, -1 where there is none


class MajorityOfTheBests(Selector):
    """The answer that best-of-m gives most often, for m random ones of the completions (MoB).

    Of m drawn with replacement from the n eligible ones, the best is that of rank r = 0, 1, ...,
    by falling score, an earlier one before its equals, with probability

        w_r = ((n - r) / n)^m - ((n - r - 1) / n)^m,

    so that argmax_a sum_{i : a_i = a} w_{r_i} is the answer; its best-scored completion is
    returned. m = 1 is the majority, m -> inf the best score.

    Attributes:
      m: how many the best is of, > 0, a ValueError otherwise; None: sqrt(n).

    References:
      Rakhsha et al. (2025), "Majority of the Bests: Improving Best-of-N via Bootstrapping", arXiv
      2511.18630.
    """

    uses_answers = True

    m: Number | None = None

    def __post_init__(self):
        """Checks m, where its value is known."""
        values = None if self.m is None else known(self.m)
        if values is not None and not np.all(values > 0):
            raise ValueError(f"m must be above 0, found {self.m}")

    def init(self, slots: int) -> Eligible:
        """None yet."""
        scores = jnp.full((slots,), -jnp.inf, jnp.result_type(float))
        return Eligible(scores, jnp.full((slots,), -1, jnp.int32))

    def update(self, chosen: Eligible, observation: Observation) -> Eligible:
        """With one more, if it is eligible."""
        here = (jnp.arange(chosen.scores.size) == observation.index) & is_eligible(observation)
        return Eligible(
            jnp.where(here, observation.score, chosen.scores).astype(chosen.scores.dtype),
            jnp.where(here, observation.answer, chosen.answers).astype(jnp.int32),
        )

    def index(self, state: State) -> Array:
        """Launch order of the best completion with that answer."""
        scores, answers = state.chosen
        eligible, order = answers != -1, jnp.arange(scores.size)
        n = jnp.sum(eligible).astype(scores.dtype)
        m = jnp.sqrt(n) if self.m is None else self.m
        earlier = order < order[:, None]
        above = (scores > scores[:, None]) | ((scores == scores[:, None]) & earlier)
        rank = jnp.sum(above & eligible, axis=1)
        # The last one's lower end is 0 and not below it, which a root would not take.
        high, low = (jnp.maximum(n - rank - k, 0) / jnp.maximum(n, 1) for k in (0, 1))
        weight = jnp.where(eligible, high**m - low**m, 0)
        total = jnp.sum(jnp.where(answers == answers[:, None], weight, 0), axis=1)
        # Sums of the same weights in another order may differ in their last digits.
        most = jnp.max(total) * (1 - scores.size * jnp.finfo(scores.dtype).eps)
        answer = answers[jnp.argmax(eligible & (total >= most))]
        best = jnp.argmax(jnp.where(eligible & (answers == answer), scores, -jnp.inf))
        return jnp.where(n > 0, best, -1).astype(jnp.int32)


SELECTORS: dict[str, Selector] = {
    "best_score": BestScore(),
    "majority": Majority(),
    "weighted_vote": WeightedVote(),
    "majority_of_the_bests": MajorityOfTheBests(),
}
"""The selectors by name."""


def make_selector(selection: str | Selector) -> Selector:
    """The selector of a name in `SELECTORS`, or of `module:name`, or the one given.

    Raises:
      ValueError: no selector has that name, or it is no selector.
    """
    return make_part(selection, Selector, what="selection", shipped=SELECTORS)
