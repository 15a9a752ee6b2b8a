"""Choosing a policy's settings without looking at the problems that they are scored on.

The published code searches s_min and alpha on the test set. Here the problems are split into
folds; each fold is scored with the setting that was best, for a stated aim, on the *other* folds
(cross-fitting). What the search on the test set would have claimed is reported beside it, as the
oracle choice, and the difference is its optimism.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from optscale_jax.checks import positive, within

__all__ = ["Aim", "CrossFit", "cross_fit", "folds", "refit"]


@dataclasses.dataclass(frozen=True)
class Aim:
    """What settings are chosen for, on other problems than those that they are scored on.

    Attributes:
        max_loss: Fewest tokens among the settings that lose at most this share of the problems
            against best-of-N with the same N, in [0, 1]; 0.01 is one point. Give this or
            max_tokens; null and null: 0.01.
        max_tokens: Highest accuracy among the settings that spend at most this many tokens a
            problem (completions, where tokens are not known).
    """

    max_loss: float | None = None
    max_tokens: float | None = None

    def __post_init__(self) -> None:
        if self.max_loss is not None and self.max_tokens is not None:
            raise ValueError("an Aim takes exactly one of max_tokens and max_loss")
        positive(self, "max_tokens")
        within(self, "[0, 1]", "max_loss")

    @property
    def loss(self) -> float | None:
        """`max_loss` or its default; None where max_tokens is what counts."""
        return 0.01 if self.max_loss is None and self.max_tokens is None else self.max_loss

    def choose(self, accuracy: np.ndarray, tokens: np.ndarray, baseline: Any) -> Any:
        """Index of the setting that serves the aim best.

        Where no setting is admissible, the nearest to being so: the cheapest (budget) or the most
        accurate (loss). Ties go to fewer tokens, then higher accuracy, then the first.

        Args:
          accuracy: [..., S] mean accuracy of each setting.
          tokens: [..., S] mean tokens of each setting.
          baseline: [...] accuracy of the baseline on the same problems.

        Returns:
          int [...].
        """
        if self.loss is None:
            admissible = tokens <= self.max_tokens
        else:
            # The rounding of two means of the same outcomes must not count as a loss.
            admissible = accuracy >= np.asarray(baseline)[..., None] - self.loss - 1e-9
        some = admissible.any(-1, keepdims=True)
        cheapest_first = some == (self.loss is not None)
        first, second = (
            np.where(cheapest_first, *keys) for keys in ((tokens, -accuracy), (-accuracy, tokens))
        )
        first = np.where(admissible | ~some, first, np.inf)
        tied = first == first.min(-1, keepdims=True)
        return np.where(tied, second, np.inf).argmin(-1)


class CrossFit(NamedTuple):
    """Outcome of tuning F folds of P problems in K orders, with and without peeking."""

    chosen: np.ndarray  # [F] setting used for each fold, chosen on the others
    fold: np.ndarray  # [P] fold of each problem
    correct: np.ndarray  # [K, P] outcomes, every problem under its fold's setting
    tokens: np.ndarray  # [K, P] likewise
    oracle: int  # the setting that the same aim chooses on all problems at once, peeking
    oracle_correct: np.ndarray  # [K, P] outcomes under it
    oracle_tokens: np.ndarray  # [K, P]

    @property
    def of_problem(self) -> np.ndarray:
        """[P] setting of each problem."""
        return self.chosen[self.fold]

    @property
    def optimism_accuracy(self) -> float:
        """Accuracy that peeking claims above the cross-fitted one."""
        return float(self.oracle_correct.mean() - self.correct.mean())

    @property
    def optimism_tokens(self) -> float:
        """Tokens a problem that peeking claims to save against the cross-fitted one."""
        return float(self.tokens.mean() - self.oracle_tokens.mean())


def folds(num_problems: int, num_folds: int, *, seed: int = 0) -> np.ndarray:
    """Assigns problems to folds of equal size (to within one), at random.

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
      baseline: [K, P] outcomes of the baseline that `Aim.max_loss` is measured from; of several,
        [B, K, P], from the one that is best on the problems that are tuned on.
      aim: what the choice is for.
      num_folds: F, number of folds over problems.
      seed: of the assignment to folds.

    Raises:
      ValueError: shapes that do not match, or num_folds outside [2, P].
    """
    correct, tokens = np.asarray(correct, float), np.asarray(tokens, float)
    baseline = np.asarray(baseline, float)
    shape = correct.shape[1:]
    if correct.shape != tokens.shape or correct.ndim != 3 or baseline.shape[-2:] != shape:
        raise ValueError(
            f"correct {correct.shape} and tokens {tokens.shape} must both be [S, K, P], and "
            f"baseline {baseline.shape} must be [K, P] or [B, K, P]"
        )
    problem = np.arange(correct.shape[-1])
    fold = folds(len(problem), num_folds, seed=seed)
    by_problem = _by_problem(correct, tokens, baseline)

    def choose(problems):
        accuracy, spent, base = (part[..., problems].mean(-1) for part in by_problem)
        return int(aim.choose(accuracy, spent, base.max(-1)))

    chosen = np.array([choose(fold != f) for f in range(num_folds)])
    own_correct, own_tokens = (part[chosen[fold], :, problem].T for part in (correct, tokens))
    oracle = choose(np.ones(len(problem), bool))
    return CrossFit(chosen, fold, own_correct, own_tokens, oracle, correct[oracle], tokens[oracle])


def refit(
    aims: Sequence[Aim],
    fit: Sequence[CrossFit],
    correct: np.ndarray,
    tokens: np.ndarray,
    baseline: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """The settings that each fold would be given in resamples of the problems.

    A fold's setting is chosen again, on the resampled problems of the other folds. Where a resample
    leaves none of them, the fold keeps the setting that it has.

    Args:
      aims: A aims.
      fit: the cross-fit of each, over the same folds.
      correct: [S, K, P] as for `cross_fit`, like the next two.
      tokens: [S, K, P].
      baseline: [K, P] or [B, K, P].
      weights: [R, P] how often each resample has each problem.

    Returns:
      int [A, R, F].
    """
    fold, by_problem = fit[0].fold, _by_problem(correct, tokens, baseline)
    chosen = np.empty((len(aims), len(weights), fold.max() + 1), int)
    for f in range(chosen.shape[-1]):
        own = weights[:, fold != f]
        count = own.sum(1, keepdims=True)
        means = [own @ part[:, fold != f].T / np.maximum(count, 1) for part in by_problem]
        for a, (aim, given) in enumerate(zip(aims, fit, strict=True)):
            # Settings that are right as often must tie, whatever the order that they are added in.
            again = aim.choose(means[0].round(12), means[1], means[2].max(-1))
            chosen[a, :, f] = np.where(count[:, 0] > 0, again, given.chosen[f])
    return chosen


def _by_problem(
    correct: np.ndarray, tokens: np.ndarray, baseline: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over orders: [S, P], [S, P] and [B, P]."""
    base = np.asarray(baseline, float).mean(-2)
    return np.mean(correct, 1), np.mean(tokens, 1), base.reshape(-1, base.shape[-1])
