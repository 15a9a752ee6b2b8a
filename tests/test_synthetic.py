"""Synthetic pools: the law is the documented one, and the same key gives the same pool."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.stats

from optscale_jax.synthetic import SyntheticConfig, synthetic_pool, synthetic_problems

KEY = jax.random.key(7)


def config(**changes) -> SyntheticConfig:
    return dataclasses.replace(SyntheticConfig(), **changes)


def test_same_key_same_pool_other_key_other_pool():
    one, two = (synthetic_pool(KEY, num_problems=3, num_samples=5) for _ in range(2))
    other = synthetic_pool(jax.random.key(8), num_problems=3, num_samples=5)
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))
    assert not np.array_equal(one.scores, other.scores)


def test_old_style_key_gives_the_same_pool():
    new = synthetic_pool(jax.random.key(3), num_problems=3, num_samples=5)
    old = synthetic_pool(jax.random.PRNGKey(3), num_problems=3, num_samples=5)
    np.testing.assert_array_equal(new.scores, old.scores)


def test_shapes_and_ids():
    pool = synthetic_pool(KEY, num_problems=3, num_samples=5)
    assert pool.scores.shape == (3, 5)
    assert pool.problem_ids.tolist() == ["synthetic/0", "synthetic/1", "synthetic/2"]
    assert pool.correct is not None
    assert pool.has_answers
    assert pool.has_tokens


@pytest.mark.parametrize("quality", [0.0, 0.6, 0.95])
@pytest.mark.parametrize("score_logit", [-2.5, 0.0, 2.5])
def test_scores_are_exactly_truncated_normal(quality, score_logit):
    chosen = config(verifier_quality=quality, score_logit=score_logit, score_scale=0.15)
    num_samples = 4000
    truth = synthetic_problems(KEY, num_problems=12, config=chosen)
    pool = synthetic_pool(KEY, num_problems=12, num_samples=num_samples, config=chosen)
    loc, scale = (np.asarray(field, np.float64)[:, None] for field in (truth.loc, truth.scale))
    law = scipy.stats.truncnorm(-loc / scale, (1 - loc) / scale, loc, scale)
    # Under the law, F(score) is uniform: one Kolmogorov-Smirnov test a problem. The least of 12
    # p-values falls below 1e-5 once in 8,000 correct programs.
    p_values = [scipy.stats.kstest(row, "uniform").pvalue for row in law.cdf(pool.scores)]
    assert min(p_values) > 1e-5
    assert np.all((pool.scores >= 0) & (pool.scores <= 1))


@pytest.mark.parametrize("score_law", ["truncated_normal", "mixture"])
def test_accuracy_is_that_of_the_problem(score_law):
    chosen = config(score_law=score_law, answerless=0.0)
    num_samples = 4000
    truth = synthetic_problems(KEY, num_problems=12, config=chosen)
    pool = synthetic_pool(KEY, num_problems=12, num_samples=num_samples, config=chosen)
    accuracy = np.asarray(truth.accuracy, np.float64)
    spread = np.sqrt(accuracy * (1 - accuracy) / num_samples)
    # 5 standard errors, and one count for the discreteness at accuracies next to 0 or 1.
    error = np.abs(pool.correct.mean(axis=1) - accuracy)
    assert np.all(error <= 5 * spread + 1 / num_samples)


def correlation(pool) -> float:
    scores = pool.scores - pool.scores.mean(axis=1, keepdims=True)
    correct = pool.correct - pool.correct.mean(axis=1, keepdims=True)
    return float((scores * correct).sum() / np.sqrt((scores**2).sum() * (correct**2).sum()))


@pytest.mark.parametrize("quality", [0.0, 0.3, 0.8])
@pytest.mark.parametrize(
    # At P(correct) = 1/2, dichotomising a normal multiplies a correlation by sqrt(2 / pi).
    ("score_law", "factor"),
    [("truncated_normal", np.sqrt(2 / np.pi)), ("mixture", 1.0)],
)
def test_quality_is_the_correlation_with_correctness(score_law, factor, quality):
    chosen = config(
        score_law=score_law,
        verifier_quality=quality,
        accuracy_logit=0.0,
        accuracy_slope=0.0,
        # Narrow and central, so that truncation changes nothing.
        score_logit=0.0,
        score_slope=0.0,
        score_scale=0.03,
        score_scale_spread=0.0,
        answerless=0.0,
    )
    pool = synthetic_pool(KEY, num_problems=100, num_samples=400, config=chosen)
    # The standard error of a correlation over 40,000 pairs is at most 1/200.
    assert abs(correlation(pool) - factor * quality) < 5 / 200


def test_hard_problems_are_longer_and_score_less():
    pool = synthetic_pool(KEY, num_problems=500, num_samples=64)
    difficulty = np.asarray(synthetic_problems(KEY, num_problems=500).difficulty)
    for values, sign in ((pool.scores, -1), (pool.tokens, 1), (pool.correct, -1)):
        rank_correlation = scipy.stats.spearmanr(difficulty, values.mean(axis=1)).statistic
        assert sign * rank_correlation > 0.8
    wrong = ~pool.correct & (pool.answers != -1)
    assert np.mean(pool.tokens[wrong]) > np.mean(pool.tokens[pool.correct])


def test_answers_tokens_and_answerless_completions():
    chosen = config(answerless=0.1, max_tokens=1000, num_distractors=3, distractor_skew=1.0)
    pool = synthetic_pool(KEY, num_problems=500, num_samples=64, config=chosen)
    none = pool.answers == -1
    # 32,000 Bernoulli(0.1) draws have a standard error of 0.0017.
    assert abs(none.mean() - 0.1) < 5 * 0.0017
    assert np.all(pool.tokens[none] == 1000)
    assert not np.any(pool.eligible[none])
    assert np.all((pool.tokens >= 1) & (pool.tokens <= 1000))
    np.testing.assert_array_equal(pool.correct, pool.answers == pool.gold[:, None])
    wrong = pool.answers[pool.answers > 0]
    shares = np.bincount(wrong, minlength=4)[1:] / wrong.size
    expected = np.array([6, 3, 2]) / 11
    np.testing.assert_allclose(shares, expected, atol=5 * np.sqrt(0.25 / wrong.size))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verifier_quality": 1.0}, r"verifier_quality is 1.0; it must be in \[0, 1\)"),
        ({"score_scale": 0.0}, "score_scale is 0.0; it must be above 0"),
        ({"tokens_spread": -1.0}, "tokens_spread is -1.0; it must be at least 0"),
        ({"accuracy_logit": float("nan")}, "accuracy_logit is nan; it must be finite"),
        ({"num_distractors": 0}, "num_distractors is 0; it must be at least 1"),
    ],
)
def test_bad_parameter_is_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_unknown_score_law_is_one_clear_line():
    chosen = config()
    # Around the constructor, whose types are checked already while tests run.
    object.__setattr__(chosen, "score_law", "beta")
    with pytest.raises(
        ValueError, match=r"score_law is 'beta'; .* one of truncated_normal, mixture"
    ):
        chosen.__post_init__()


@pytest.mark.parametrize("size", [{"num_problems": 0}, {"num_samples": 0}])
def test_empty_pool_is_refused(size):
    with pytest.raises(ValueError, match="it must be at least 1"):
        synthetic_pool(KEY, **size)
