"""Estimates from a pool that need no stopping rule, and summaries of accuracy-token curves.

What a comparison of policies is read against: pass@k (what any selection could reach), maj@k,
best-of-k, the area under a policy's curve, the tokens at which it reaches best-of-N's accuracy, and
how much of an oracle's saving it realises.
"""

import numpy as np

from optscale_jax.errors import PoolError
from optscale_jax.pool import Pool
from optscale_jax.typing import ArrayLike

__all__ = [
    "area_under_curve",
    "best_at_k",
    "majority_at_k",
    "pass_at_k",
    "share_of_saving",
    "tokens_to_reach",
]


def _subset_ratio(part: np.ndarray, total: np.ndarray, k: int) -> np.ndarray:
    """C(part, k) / C(total, k), elementwise and broadcast."""
    i = np.arange(k)
    ratio = np.clip(part[..., None] - i, 0, None) / np.maximum(total[..., None] - i, 1)
    return ratio.prod(-1)


def _check_k(pool: Pool, k: int) -> None:
    fewest = int(pool.samples_per_problem.min())
    if not 1 <= k <= fewest:
        raise ValueError(f"k must be between 1 and the pool's {fewest} completions, found {k}")


def _correct(pool: Pool) -> np.ndarray:
    if pool.correct is None:
        raise PoolError("pool: it does not say which completions are correct")
    return pool.correct & pool.mask


def pass_at_k(pool: Pool, k: int) -> np.ndarray:
    """Unbiased estimate of P(at least one of k completions is correct), [P] in [0, 1].

        1 - C(n - c, k) / C(n, k),    c correct of n

    Raises:
      PoolError: the pool has no correctness.
      ValueError: k is above the fewest completions that a problem has, or below 1.

    References:
      Chen et al. (2021), "Evaluating Large Language Models Trained on Code", arXiv
        2107.03374, eq. 1.
    """
    _check_k(pool, k)
    total = pool.samples_per_problem
    return 1 - _subset_ratio(total - _correct(pool).sum(1), total, k)


def best_at_k(pool: Pool, k: int) -> np.ndarray:
    """Exact expected accuracy of best-of-k over all k-subsets of each problem's completions, [P].

    The best of a random subset is the r-th best of all n with probability
    C(n - r, k - 1) / C(n, k); completions that tie share their ranks evenly, which is the
    first-drawn rule in expectation.
    Ineligible completions are never returned; a subset of only such ones is not correct.

    Raises:
      PoolError: the pool has no scores or no correctness.
      ValueError: k is above the fewest completions that a problem has, or below 1.
    """
    _check_k(pool, k)
    if pool.scores is None:
        raise PoolError("pool: it has no verifier scores, so there is no best completion")
    correct = _correct(pool)
    # Ineligible completions rank behind all eligible ones and win nothing.
    score = np.where(pool.eligible, pool.scores, -1.0)
    order = np.argsort(-score, axis=1, kind="stable")
    ranked = np.take_along_axis(score, order, 1)
    won = np.take_along_axis((correct & pool.eligible).astype(float), order, 1)
    total = pool.samples_per_problem[:, None]
    better = np.arange(score.shape[1])[None, :]
    # P(the r best are all missed) falls from 1; its steps are the ranks' probabilities.
    worse = np.clip(total - better, 0, None)
    missed = _subset_ratio(worse, total, k)
    after = np.concatenate([missed[:, 1:], np.zeros_like(missed[:, :1])], axis=1)
    chance = np.where(better < total, missed - after, 0.0)
    # Within a tie all members are as likely as each other.
    start = np.concatenate([np.ones((len(ranked), 1), bool), ranked[:, 1:] != ranked[:, :-1]], 1)
    group = np.cumsum(start, axis=1) - 1 + np.arange(len(ranked))[:, None] * ranked.shape[1]
    size = ranked.size
    members = np.bincount(group.ravel(), minlength=size)
    mass = np.bincount(group.ravel(), chance.ravel(), minlength=size)
    wins = np.bincount(group.ravel(), won.ravel(), minlength=size)
    each = np.divide(mass * wins, members, out=np.zeros(size), where=members > 0)
    return each.reshape(ranked.shape).sum(1)


def majority_at_k(pool: Pool, k: int, *, num_subsets: int = 200, seed: int = 0) -> np.ndarray:
    """Unbiased estimate of the accuracy of a majority vote of k completions, [P] in [0, 1].

    The mean over random k-subsets without replacement. Invalid answers do not vote; a tie counts
    as the share of the leading answers that are right, the expectation of a random tie-break and,
    over exchangeable completions, of "the answer seen first".

    Raises:
      PoolError: the pool has no answers or no gold answers.
      ValueError: k is above the fewest completions that a problem has, or below 1.
    """
    _check_k(pool, k)
    if pool.answers is None or pool.gold is None:
        raise PoolError("pool: a vote needs answers and gold answers")
    rng = np.random.default_rng(seed)
    # Dense ids within each problem, so that votes are one matrix of small width.
    dense = np.full(pool.answers.shape, -1)
    gold = np.full(pool.num_problems, -1)
    for p, (row, right) in enumerate(zip(pool.answers, pool.gold, strict=True)):
        names, codes = np.unique(row, return_inverse=True)
        valid = names >= 0
        code = np.where(valid, np.cumsum(valid) - 1, -1)
        dense[p] = code[codes]
        match = np.flatnonzero(names == right)
        if right >= 0 and match.size:
            gold[p] = code[match[0]]
    width = int(dense.max()) + 1
    accuracy = np.zeros(pool.num_problems)
    rows = np.arange(pool.num_problems)
    for _ in range(num_subsets):
        draw = np.argsort(np.where(pool.mask, rng.random(dense.shape), 2.0), axis=1)[:, :k]
        votes = np.take_along_axis(dense, draw, 1)
        index = (rows[:, None] * (width + 1) + votes + 1).ravel()
        counts = np.bincount(index, minlength=len(rows) * (width + 1)).reshape(len(rows), -1)[:, 1:]
        top = counts.max(1, initial=0)
        leading = (counts == top[:, None]) & (top[:, None] > 0)
        right = (gold >= 0) & leading[rows, np.maximum(gold, 0)] if width else np.zeros(len(rows))
        accuracy += right / np.maximum(leading.sum(1), 1)
    return accuracy / num_subsets


def _curve(tokens: ArrayLike, accuracy: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Points sorted by tokens, with the best accuracy that any cheaper point has."""
    tokens, accuracy = np.asarray(tokens, float), np.asarray(accuracy, float)
    if tokens.shape != accuracy.shape or tokens.ndim != 1 or tokens.size == 0:
        raise ValueError(
            f"tokens {tokens.shape} and accuracy {accuracy.shape} must be one vector each, of the "
            "same length and not empty"
        )
    order = np.lexsort((-accuracy, tokens))
    return tokens[order], np.maximum.accumulate(accuracy[order])


def area_under_curve(tokens: ArrayLike, accuracy: ArrayLike, *, low: float, high: float) -> float:
    """Mean of the best accuracy at or below a budget, over log-budgets between low and high.

    Args:
      tokens: [S] mean tokens of each setting of a policy.
      accuracy: [S] accuracy of each.
      low: smallest budget, > 0, in tokens.
      high: largest budget, > low.

    Returns:
      Accuracy in [0, 1]; a budget below the cheapest setting counts as 0.

    Raises:
      ValueError: shapes, or 0 < low < high does not hold.
    """
    if not 0 < low < high:
        raise ValueError(f"budgets must satisfy 0 < low < high, found {low} and {high}")
    cost, best = _curve(tokens, accuracy)
    edges = np.concatenate([[low], np.clip(cost, low, high), [high]])
    levels = np.concatenate([[0.0], best])
    return float(np.sum(np.diff(np.log(edges)) * levels) / np.log(high / low))


def tokens_to_reach(tokens: ArrayLike, accuracy: ArrayLike, target: float) -> float:
    """Fewest mean tokens of a setting [S] with at least this accuracy; NaN if there is none.

    Raises:
      ValueError: shapes that do not match.
    """
    cost, best = _curve(tokens, accuracy)
    reached = np.flatnonzero(best >= target)
    return float(cost[reached[0]]) if reached.size else float("nan")


def share_of_saving(tokens: float, baseline: float, oracle: float) -> float:
    """Share of the tokens that an oracle saves which a policy saves too.

        (baseline - tokens) / (baseline - oracle); NaN where the oracle saves nothing

    All three are mean tokens: the policy's, best-of-N's, and those of the same rule when it knows
    each problem's law of scores from the start.
    """
    saving = baseline - oracle
    return float((baseline - tokens) / saving) if saving > 0 else float("nan")
