"""Estimates over k-subsets against enumeration, and the summaries of curves by hand."""

import itertools

import numpy as np
import pytest

from optscale_jax import Pool, PoolError
from optscale_jax.study.estimates import (
    area_under_curve,
    best_at_k,
    majority_at_k,
    pass_at_k,
    share_of_saving,
    tokens_to_reach,
)


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(0)
    answers = rng.integers(-1, 3, (6, 7))
    return Pool.from_arrays(
        scores=rng.integers(0, 4, (6, 7)) / 4,  # many ties
        answers=answers,
        gold=np.array([0, 1, 2, 0, 1, 5]),
        tokens=rng.integers(0, 3, (6, 7)),
    )


def subsets(k):
    return list(itertools.combinations(range(7), k))


@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_pass_at_k_is_the_mean_over_all_subsets(pool, k):
    want = np.mean([pool.correct[:, list(s)].any(1) for s in subsets(k)], axis=0)
    np.testing.assert_allclose(pass_at_k(pool, k), want, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_best_at_k_is_the_mean_over_all_subsets(pool, k):
    def one(problem, subset):
        chosen = [i for i in subset if pool.eligible[problem, i]]
        if not chosen:
            return 0.0
        top = max(pool.scores[problem, i] for i in chosen)
        return np.mean([pool.correct[problem, i] for i in chosen if pool.scores[problem, i] == top])

    want = [np.mean([one(p, s) for s in subsets(k)]) for p in range(6)]
    np.testing.assert_allclose(best_at_k(pool, k), want, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_majority_at_k_is_near_the_mean_over_all_subsets(pool, k):
    def one(problem, subset):
        votes = [a for a in pool.answers[problem, list(subset)] if a >= 0]
        if not votes:
            return 0.0
        counts = {a: votes.count(a) for a in votes}
        leading = [a for a, c in counts.items() if c == max(counts.values())]
        return float(pool.gold[problem] in leading) / len(leading)

    want = [np.mean([one(p, s) for s in subsets(k)]) for p in range(6)]
    got = majority_at_k(pool, k, num_subsets=2000)
    # Means of 2,000 values in [0, 1]: five standard errors at most.
    np.testing.assert_allclose(got, want, atol=5 * 0.5 / np.sqrt(2000))


@pytest.mark.parametrize("k", [0, 8])
def test_k_must_be_there(pool, k):
    with pytest.raises(ValueError, match="between 1 and the pool's 7"):
        pass_at_k(pool, k)


def test_what_a_pool_lacks_is_said():
    bare = Pool.from_arrays(scores=np.full((2, 3), 0.5))
    with pytest.raises(PoolError, match="correct"):
        pass_at_k(bare, 1)
    with pytest.raises(PoolError, match="answers"):
        majority_at_k(bare, 1)


def test_area_under_a_curve_by_hand():
    # 0 until 10 tokens, then 0.5, from 100 on 0.8 (the worse point at 300 changes nothing).
    area = area_under_curve([100, 10, 300], [0.8, 0.5, 0.7], low=1.0, high=1000.0)
    assert area == pytest.approx((0 + 0.5 + 0.8) / 3)
    assert area_under_curve([1], [0.4], low=10.0, high=20.0) == pytest.approx(0.4)


def test_tokens_to_reach_a_target():
    assert tokens_to_reach([30, 10, 20], [0.9, 0.5, 0.8], 0.8) == 20
    assert np.isnan(tokens_to_reach([30], [0.9], 0.95))


def test_share_of_the_oracles_saving():
    assert share_of_saving(60.0, 100.0, 20.0) == pytest.approx(0.5)
    assert np.isnan(share_of_saving(60.0, 100.0, 100.0))
