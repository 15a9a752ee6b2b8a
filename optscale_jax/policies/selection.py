"""Selectors: which of the completions drawn to return.

When to stop and what to return are separate questions: any rule takes `selection=`, by name or as a
value of one's own. An answerless or empty completion never votes and is never returned, and a tie
goes to the answer seen first.
"""

from typing import Any, ClassVar

from optscale_jax.plugins import make_part
from optscale_jax.policies.seen import Observation, State
from optscale_jax.typing import Array
from optscale_jax.values import Value

__all__ = ["SELECTORS", "BestScore", "Majority", "Selector", "WeightedVote", "make_selector"]


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


SELECTORS: dict[str, Selector] = {
    "best_score": BestScore(),
    "majority": Majority(),
    "weighted_vote": WeightedVote(),
}
"""The selectors by name."""


def make_selector(selection: str | Selector) -> Selector:
    """The selector of a name in `SELECTORS`, or of `module:name`, or the one given.

    Raises:
      ValueError: no selector has that name, or it is no selector.
    """
    return make_part(selection, Selector, what="selection", shipped=SELECTORS)
