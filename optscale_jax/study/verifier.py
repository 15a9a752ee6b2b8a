"""What a pool's verifier can tell, and what it costs: its ROC, and the tokens that it reads."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy.stats import rankdata

from optscale_jax.derived_signals import VERIFIER_TOKENS
from optscale_jax.pool import Pool
from optscale_jax.replay import permutations
from optscale_jax.study.blocks import read_by_verifier
from optscale_jax.study.comparison import Options, Row
from optscale_jax.study.metrics import Interval
from optscale_jax.study.outcomes import Outcomes

__all__ = ["Roc", "roc_of", "tokens_with_verifier"]


class Roc(NamedTuple):
    """How well scores tell right completions from wrong ones, over T false-positive rates.

    The AUC is P(a right completion scores above a wrong one), a tie counting half. Pooled, the two
    are any of the pool's; within problems they are of one problem, and the problems that have both
    right and wrong completions count alike. A policy compares scores of one problem, so what is
    within problems is what it lives on.
    """

    false_positives: np.ndarray  # [T], from 0 to 1
    pooled: np.ndarray  # [T] true-positive rates
    within: np.ndarray  # [T]
    auc: float  # pooled
    auc_within: Interval  # over problems
    num_problems: int  # that have both


def roc_of(pool: Pool, options: Options, *, num_rates: int = 201) -> Roc | None:
    """The ROC of a pool's scores; None without scores or correctness, or if no problem has both.

    It is drawn from the placement of each right completion, the share of wrong ones that score
    above it, U: the true-positive rate at a false-positive rate t is P(U <= t), and its area 1 -
    E U is the AUC, ties included.

    References:
        Pepe (2003), The Statistical Evaluation of Medical Tests for Classification and Prediction,
        section 5.2.5.
    """
    if pool.scores is None or pool.correct is None:
        return None
    mask = pool.mask
    right, wrong = mask & pool.correct, mask & ~pool.correct
    both = right.any(1) & wrong.any(1)
    if not both.any():
        return None
    own = _placements(pool.scores[both], right[both], wrong[both])
    pooled = _placements(pool.scores[mask][None], right[mask][None], wrong[mask][None])
    rates = np.linspace(0, 1, num_rates)
    # Each right completion alike; or each problem.
    share = np.repeat(1 / right[both].sum(1), right[both].sum(1))
    true = [
        np.array([np.average(u <= rate + 1e-12, weights=weights) for rate in rates])
        for u, weights in ((pooled[right[mask][None]], None), (own[right[both]], share))
    ]
    within = options.interval(1 - np.nanmean(own, axis=1)[None])
    auc = 1 - float(np.nanmean(pooled))
    return Roc(rates, true[0], true[1], auc, within, int(both.sum()))


def _placements(scores: np.ndarray, right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """[Q, M] the share of a row's wrong completions above each right one; NaN elsewhere."""

    def ranks(among: np.ndarray) -> np.ndarray:
        # Those that do not count are below all others.
        ranked = rankdata(np.where(among, scores, -1.0), axis=1)
        return ranked - (~among).sum(1, keepdims=True)

    below = ranks(right | wrong) - ranks(right)
    return np.where(right, 1 - below / wrong.sum(1, keepdims=True), np.nan)


def tokens_with_verifier(
    outcomes: Outcomes, rows: Sequence[Row], pool: Pool | None, seed: int
) -> list[float]:
    """Mean tokens of each row with what the verifier reads and writes, NaN where it is not known.

    A rule that reads no scores needs no verifier.

    Args:
        outcomes: what was replayed.
        rows: what is asked for.
        pool: knows the verifier's tokens if it has them as its signal `VERIFIER_TOKENS`.
        seed: that of the replay's orders.
    """
    if outcomes.cost_kind != "tokens":
        return [np.nan] * len(rows)
    orders = None
    if pool is not None and VERIFIER_TOKENS in pool.signals and outcomes.num_grouped is None:
        count = 0 if outcomes.stored_order else outcomes.num_permutations
        orders = permutations(pool, jax.random.key(seed), count)

    def read(row: Row) -> float:
        if not row.method.reads_scores:
            return 0.0
        if orders is not None and pool is not None:
            return float(read_by_verifier(pool, orders, row.num_samples).mean())
        return np.nan if row.verifier_tokens is None else float(row.verifier_tokens.mean())

    return [float(row.cost.mean) + read(row) for row in rows]
