"""Self-consistency: draw a fixed number, return the answer that most of them agree on."""

from optscale_jax.policies.base import Policy
from optscale_jax.policies.best_of_n import best_of_n
from optscale_jax.typing import Count

__all__ = ["self_consistency", "weighted_self_consistency"]


def self_consistency(n: Count) -> Policy:
    """Draws n completions and returns the most frequent answer.

        argmax_a #{i <= n : a_i = a}

    The first completion with that answer stands for it. An answerless completion does not vote; a
    tie goes to the answer seen first. Reads no scores.

    Args:
      n: number of completions to draw, an integer >= 1; a ValueError otherwise.

    References:
      Wang et al. (2023), "Self-Consistency Improves Chain of Thought Reasoning in Language
      Models", arXiv 2203.11171, section 2.
    """
    return best_of_n(n, selection="majority")


def weighted_self_consistency(n: Count) -> Policy:
    """Draws n completions and returns the answer with the highest sum of scores.

        argmax_a sum_{i <= n : a_i = a} s_i

    Otherwise as `self_consistency`.

    Args:
      n: number of completions to draw, an integer >= 1.

    References:
      Li et al. (2023), "Making Language Models Better Reasoners with Step-Aware Verifier", arXiv
      2206.02336, the voting verifier.
    """
    return best_of_n(n, selection="weighted_vote")
