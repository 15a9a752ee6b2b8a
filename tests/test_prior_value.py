"""What a prediction is worth, in completions: known where the variances are."""

import numpy as np
import pytest

from optscale_jax import Pool, PoolError
from optscale_jax.report.priors import worth_in_words
from optscale_jax.study.prior_value import worth_of_predictions


@pytest.mark.parametrize("samples", [8, 64])
def test_what_a_prediction_is_worth_does_not_depend_on_the_samples(samples):
    rng = np.random.default_rng(0)
    means = 0.5 + 0.06 * rng.standard_normal(4000)
    scores = means[:, None] + 0.09 * rng.standard_normal((4000, samples))
    pool = Pool.from_arrays(scores=np.clip(scores, 0, 1), tokens=np.full(scores.shape, 50))
    predicted = means + 0.04 * rng.standard_normal(4000)
    found = worth_of_predictions(pool, predicted, np.full(4000, 10))
    assert found is not None
    # Of .06^2, .04^2 is left; one score leaves a share of .09^2 / (.06^2 + .09^2).
    assert found.explained == pytest.approx(1 - 4 / 9, abs=0.03)
    assert found.one == pytest.approx(36 / 117, abs=0.03)
    # A mean of k scores leaves 81 / (36 k + 81): as much for k = 81 / 36 * 5 / 4.
    # The error left is known to 4 in 100, and the worth to three times that.
    assert found.completions == pytest.approx(81 / 36 * 5 / 4, rel=0.15)
    assert found.cost == pytest.approx(0.2)
    unknown = worth_of_predictions(Pool.from_arrays(scores=pool.scores), predicted, np.ones(4000))
    assert unknown is not None
    assert np.isnan(unknown.cost)
    assert worth_in_words(unknown).endswith(f"worth {unknown.completions:.2f} completions.")
    assert f"worth {found.completions:.2f} completions, and costs 0.20." in worth_in_words(found)


def test_a_prediction_that_says_nothing_is_worth_nothing():
    rng = np.random.default_rng(0)
    scores = np.clip(0.5 + 0.05 * rng.standard_normal((200, 1)), 0, 1)
    scores = np.clip(scores + 0.05 * rng.standard_normal((200, 8)), 0, 1)
    pool = Pool.from_arrays(scores=scores)
    assert worth_of_predictions(pool, rng.random(200), np.zeros(200)) is None
    assert "explains nothing of it, or all" in worth_in_words(None)


def test_a_pool_without_scores_is_refused():
    bare = Pool.from_arrays(scores=None, answers=np.zeros((2, 3), int), gold=np.zeros(2, int))
    with pytest.raises(PoolError, match="no scores"):
        worth_of_predictions(bare, np.zeros(2), np.zeros(2))
