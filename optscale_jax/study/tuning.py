"""Choosing a policy's settings without looking at the problems that they are scored on.

The published code searches s_min and alpha on the test set. Here the problems are split into
folds; each fold is scored with the setting that was best, for a stated aim, on the *other* folds
(cross-fitting). What the search on the test set would have claimed is reported beside it, as the
oracle choice, and the difference is its optimism.

Works on the outcomes of `replay`: NumPy arrays [S, K, P] of settings, permutations,
problems.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

__all__ = ["Aim", "CrossFit", "cross_fit", "folds"]


@dataclasses.dataclass(frozen=True)
class Aim:
    """What the choice of a setting is for: exactly one of the two is given.

    Attributes:
      max_tokens: highest accuracy among the settings that spend at most this many tokens a problem
        on average (or samples, if those are what is counted).
      max_loss: fewest tokens among the settings whose accuracy is at most this much below the
        baseline's on the same problems, in [0, 1]; 0.01 is one point.
    """

    max_tokens: float | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        if (self.max_tokens is None) == (self.max_loss is None):
            raise ValueError("an Aim needs exactly one of max_tokens and max_loss")
        if self.max_tokens is not None and not self.max_tokens > 0:
            raise ValueError(f"max_tokens must be > 0, found {self.max_tokens}")
        if self.max_loss is not None and not 0 <= self.max_loss <= 1:
            raise ValueError(f"max_loss must be in [0, 1], found {self.max_loss}")

    def choose(self, accuracy: np.ndarray, tokens: np.ndarray, baseline: float) -> int:
        """Index of the setting that serves the aim best.

        Where no setting is admissible, the nearest to being so: the cheapest (budget) or the most
        accurate (loss). Ties go to fewer tokens, then higher accuracy, then the first.

        Args:
          accuracy: [S] mean accuracy of each setting.
          tokens: [S] mean tokens of each setting.
          baseline: accuracy of the baseline on the same problems.

        Returns:
          Index into [S].
        """
        if self.max_tokens is not None:
            admissible = tokens <= self.max_tokens
            keys = (tokens, -accuracy) if admissible.any() else (-accuracy, tokens)
        else:
            # The rounding of two means of the same outcomes must not count as a loss.
            slack = 1e-9
            assert self.max_loss is not None  # __post_init__: one of the two is given
            admissible = accuracy >= baseline - self.max_loss - slack
            keys = (-accuracy, tokens) if admissible.any() else (tokens, -accuracy)
        if not admissible.any():
            admissible = np.ones_like(admissible)
        candidates = np.flatnonzero(admissible)
        # lexsort sorts by its last key first.
        return int(candidates[np.lexsort(tuple(k[candidates] for k in keys))[0]])


class CrossFit(NamedTuple):
    """Outcome of tuning with and without peeking.

    Attributes:
      chosen: [F] setting used for each fold, chosen on the others.
      fold: [P] fold of each problem.
      correct: [K, P] outcomes, every problem under its fold's setting.
      tokens: [K, P] tokens likewise.
      oracle: the setting that the same aim chooses on all problems at once, peeking.
      oracle_correct: [K, P] outcomes under it.
      oracle_tokens: [K, P] tokens under it.
      optimism_accuracy: accuracy that peeking claims above the cross-fitted one.
      optimism_tokens: tokens a problem that peeking claims to save against the cross-fitted one.
    """

    chosen: np.ndarray
    fold: np.ndarray
    correct: np.ndarray
    tokens: np.ndarray
    oracle: int
    oracle_correct: np.ndarray
    oracle_tokens: np.ndarray
    optimism_accuracy: float
    optimism_tokens: float


def folds(num_problems: int, num_folds: int, *, seed: int = 0) -> np.ndarray:
    """Assigns problems to folds of equal size (to within one), at random.

    Args:
      num_problems: P.
      num_folds: F, in [2, P].
      seed: of the assignment.

    Returns:
      int [P], fold of each problem.

    Raises:
      ValueError: fewer than two folds, or more folds than problems.
    """
    if not 2 <= num_folds <= num_problems:
        raise ValueError(
            f"num_folds must be between 2 and the {num_problems} problems, found {num_folds}"
        )
    return np.random.default_rng(seed).permutation(np.arange(num_problems) % num_folds)


def cross_fit(
    correct: np.ndarray,
    tokens: np.ndarray,
    baseline: np.ndarray,
    aim: Aim,
    *,
    num_folds: int = 5,
    seed: int = 0,
) -> CrossFit:
    """Tunes a policy's settings on some problems and scores it on the others.

    Args:
      correct: [S, K, P] whether the completion returned is correct; or its score, where there is
        no correctness.
      tokens: [S, K, P] tokens spent (or samples, where tokens are not known).
      baseline: [K, P] outcomes of the baseline that `Aim.max_loss` is measured from.
      aim: what the choice is for.
      num_folds: F, number of folds over problems.
      seed: of the assignment to folds.

    Returns:
      `CrossFit`.

    Raises:
      ValueError: shapes that do not match, or num_folds outside [2, P].
    """
    correct, tokens = np.asarray(correct, float), np.asarray(tokens, float)
    baseline = np.asarray(baseline, float)
    if correct.shape != tokens.shape or correct.ndim != 3 or baseline.shape != correct.shape[1:]:
        raise ValueError(
            f"correct {correct.shape} and tokens {tokens.shape} must both be [S, K, P], and "
            f"baseline {baseline.shape} must be [K, P]"
        )
    fold = folds(correct.shape[-1], num_folds, seed=seed)

    by_problem = correct.mean(1), tokens.mean(1), baseline.mean(0)

    def choose(problems):
        return aim.choose(*(part[..., problems].mean(-1) for part in by_problem))

    chosen = np.array([choose(fold != f) for f in range(num_folds)])
    of_problem = chosen[fold]
    problem = np.arange(correct.shape[-1])
    own_correct = correct[of_problem, :, problem].T
    own_tokens = tokens[of_problem, :, problem].T
    oracle = choose(np.ones(correct.shape[-1], bool))
    return CrossFit(
        chosen=chosen,
        fold=fold,
        correct=own_correct,
        tokens=own_tokens,
        oracle=oracle,
        oracle_correct=correct[oracle],
        oracle_tokens=tokens[oracle],
        optimism_accuracy=float(correct[oracle].mean() - own_correct.mean()),
        optimism_tokens=float(own_tokens.mean() - tokens[oracle].mean()),
    )
