"""The checks of the model pass where the model holds and speak up where it does not."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.stats

from optscale_jax import Pool, PoolError, TruncatedNormal, synthetic_pool
from optscale_jax.estimation import Params
from optscale_jax.study.goodness_of_fit import calibrate, realised_alpha, verdict
from optscale_jax.synthetic import synthetic_problems

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def pool():
    return synthetic_pool(KEY, num_problems=100, num_samples=64)


@pytest.fixture(scope="module")
def fitted(pool):
    return calibrate(pool, key=jax.random.key(1))


def test_ks_is_scipys(pool, fitted):
    for p in range(0, 100, 17):
        want = scipy.stats.kstest(fitted.pit[p], "uniform").statistic
        # float32 probabilities carry an error of a few 1e-7.
        assert fitted.ks[p] == pytest.approx(want, abs=1e-5)


def test_scores_of_the_model_are_trusted(fitted):
    # The mean of 100 distances, each with a relative sd below 0.3, against another such mean.
    assert fitted.ks_ratio == pytest.approx(1.0, abs=4 * 0.3 * np.sqrt(2 / 100))
    assert fitted.pit[~np.isnan(fitted.pit)].mean() == pytest.approx(0.5, abs=0.01)
    found = verdict(fitted)
    assert found.trusted
    assert found.reasons == ()
    assert found.sentence.startswith("The truncated normal fits")
    assert "1 is a perfect fit, up to 1.5 a good one" in found.sentence


def test_two_clusters_are_not_trusted(pool):
    rng = np.random.default_rng(0)
    scores = np.where(rng.random((50, 64)) < 0.5, 0.05, 0.9) + 0.01 * rng.random((50, 64))
    other = calibrate(Pool.from_arrays(scores=scores), key=KEY)
    assert other.ks_ratio > 1.5
    found = verdict(other)
    assert not found.trusted
    assert "times as far" in " ".join(found.reasons)
    assert all(reason in found.sentence for reason in found.reasons)


def test_scores_at_the_boundary_are_not_trusted():
    scores = np.where(np.random.default_rng(1).random((50, 64)) < 0.4, 1.0, 0.8)
    found = verdict(calibrate(Pool.from_arrays(scores=scores), key=KEY))
    assert not found.trusted
    assert "at 0 or 1" in found.reasons[0]


def test_a_mask_leaves_missing_completions_out(pool):
    mask = np.arange(64) < 40
    cut = dataclasses.replace(pool, mask=np.broadcast_to(mask, (100, 64)))
    names = ("scores", "correct", "tokens", "answers", "mask")
    short = {name: getattr(pool, name)[:, :40] for name in names}
    whole = calibrate(dataclasses.replace(pool, **short), key=KEY)
    np.testing.assert_allclose(calibrate(cut, key=KEY).ks, whole.ks, atol=1e-5)


@pytest.mark.parametrize(("s_min", "alpha"), [(0.85, 0.9), (0.9, 0.95)])
def test_alpha_is_realised_where_the_law_is_known(s_min, alpha):
    num_problems = 400
    pool = synthetic_pool(KEY, num_problems=num_problems, num_samples=64)
    truth = synthetic_problems(KEY, num_problems=num_problems)
    params = Params(truth.loc.astype(np.float32), truth.scale.astype(np.float32))
    got = realised_alpha(pool, s_min, alpha, TruncatedNormal(*params))
    assert got.checked > 50
    # N* is rounded up, so at least alpha; Monte Carlo error of means of Bernoulli(alpha) at worst.
    assert got.realised >= alpha - 4 * np.sqrt(alpha * (1 - alpha) / got.checked)


def test_realised_alpha_counts_draws_without_replacement():
    scores = np.tile(np.array([0.1, 0.2, 0.3, 0.9]), (1, 1))
    # F(0.5) = 1/2 under this law, so alpha = 0.75 needs exactly 2 samples.
    params = Params(np.array([0.5], np.float32), np.array([0.1], np.float32))
    got = realised_alpha(Pool.from_arrays(scores=scores), 0.5, 0.74, TruncatedNormal(*params))
    assert got.realised == pytest.approx(1 - 3 / 4 * 2 / 3)


def test_a_pool_without_scores_is_refused():
    bare = Pool.from_arrays(scores=None, answers=np.zeros((2, 3), int), gold=np.zeros(2, int))
    with pytest.raises(PoolError, match="no verifier scores"):
        calibrate(bare, key=KEY)
