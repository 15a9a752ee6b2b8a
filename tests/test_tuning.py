"""Cross-fitting never sees the problems that it scores, and says what peeking would claim."""

import jax
import numpy as np
import pytest

from optscale_jax.study.metrics import bootstrap, resampled_means, retuned_means
from optscale_jax.study.tuning import Aim, cross_fit, folds, refit


def test_folds_are_balanced_and_cover_every_problem():
    fold = folds(103, 5, seed=1)
    assert sorted(np.bincount(fold)) == [20, 20, 21, 21, 21]
    # At random, because a pool's problems may stand in the order of their difficulty.
    assert (fold == folds(103, 5, seed=1)).all()
    assert (fold == folds(103, 5, seed=2)).mean() < 0.5


@pytest.mark.parametrize("num_folds", [0, 1, 11])
def test_folds_refuse_what_cannot_be_split(num_folds):
    with pytest.raises(ValueError, match="between 2 and the 10 problems"):
        folds(10, num_folds)


def test_an_aim_is_exactly_one_thing():
    assert (Aim().loss, Aim(max_loss=0.1).loss, Aim(max_tokens=1.0).loss) == (0.01, 0.1, None)
    with pytest.raises(ValueError, match="exactly one"):
        Aim(max_tokens=1.0, max_loss=0.1)


@pytest.mark.parametrize("given", [{"max_tokens": 0.0}, {"max_loss": -0.1}, {"max_loss": 1.1}])
def test_an_aim_outside_its_domain_is_refused(given):
    (name,) = given
    with pytest.raises(ValueError, match=f"{name} is {given[name]}; it must be"):
        Aim(**given)


def test_aims_choose_by_their_rule():
    accuracy, tokens = np.array([0.5, 0.8, 0.8, 0.9]), np.array([1.0, 3.0, 2.0, 9.0])
    assert Aim(max_tokens=5.0).choose(accuracy, tokens, 0.9) == 2  # cheaper of the equally accurate
    assert Aim(max_tokens=0.5).choose(accuracy, tokens, 0.9) == 0  # none admissible: the cheapest
    assert Aim(max_loss=0.11).choose(accuracy, tokens, 0.9) == 2
    assert Aim(max_loss=0.0).choose(accuracy, tokens, 0.95) == 3  # none: the most accurate


def outcomes(seed, settings=20, permutations=3, problems=60):
    rng = np.random.default_rng(seed)
    correct = rng.random((settings, permutations, problems)) < 0.6
    return correct, rng.integers(10, 20, correct.shape), rng.random(correct.shape[1:]) < 0.6


def test_a_fold_does_not_see_its_own_problems():
    """Changing one fold's outcomes may change any choice but its own."""
    correct, tokens, baseline = outcomes(0)
    aim = Aim(max_tokens=15.0)
    before = cross_fit(correct, tokens, baseline, aim, seed=3)
    changed = correct.copy()
    mine = before.fold == 2
    changed[:, :, mine] = ~changed[:, :, mine]
    after = cross_fit(changed, tokens, baseline, aim, seed=3)
    assert after.chosen[2] == before.chosen[2]


def test_outcomes_are_those_of_the_chosen_setting():
    correct, tokens, baseline = outcomes(1)
    fit = cross_fit(correct, tokens, baseline, Aim(max_loss=0.02))
    for p in range(correct.shape[-1]):
        setting = fit.chosen[fit.fold[p]]
        np.testing.assert_array_equal(fit.correct[:, p], correct[setting, :, p])
        np.testing.assert_array_equal(fit.tokens[:, p], tokens[setting, :, p])
    np.testing.assert_array_equal(fit.oracle_correct, correct[fit.oracle])


def test_peeking_is_optimistic_where_nothing_is_to_be_learned():
    """All settings are alike: what peeking gains is noise, and cross-fitting shows none of it."""
    gains = [
        cross_fit(*outcomes(seed), Aim(max_tokens=100.0), seed=seed).optimism_accuracy
        for seed in range(30)
    ]
    # The best of 20 means of 180 coins is about 1.87 sd = 0.068 above their mean; the mean over 30
    # repetitions is known to 0.0365 * sqrt(1.3 / 30) < 0.008.
    assert np.mean(gains) == pytest.approx(0.068, abs=4 * 0.008)


def test_shapes_must_match():
    correct, tokens, baseline = outcomes(2)
    with pytest.raises(ValueError, match="must both be"):
        cross_fit(correct, tokens[:-1], baseline, Aim(max_loss=0.1))


@pytest.mark.parametrize("aim", [Aim(max_tokens=14.6), Aim(max_loss=0.02)])
def test_a_resample_is_tuned_as_its_problems_written_out_would_be(aim):
    """Problems that are drawn twice stand there twice, in their own fold."""
    correct, tokens, baseline = outcomes(4, settings=6, problems=23)
    several = np.stack([baseline, ~baseline])
    fits = [cross_fit(correct, tokens, base, aim, seed=1) for base in (baseline, several)]
    weights = np.random.default_rng(0).multinomial(23, np.full(23, 1 / 23), 40).astype(float)
    weights[0] = np.where(fits[0].fold == 2, 1.0, 0.0)
    for fit, base in zip(fits, (baseline, several), strict=True):
        (chosen,) = refit([aim], [fit], correct, tokens, base, weights)
        for row, count in zip(chosen, weights.astype(int), strict=True):
            drawn = np.repeat(np.arange(23), count)
            for f in range(5):
                others = drawn[fit.fold[drawn] != f]
                want = fit.chosen[f]
                if others.size:
                    means = [v[..., others].mean((-2, -1)) for v in (correct, tokens)]
                    best = np.max(base[..., others].mean((-2, -1)))
                    want = aim.choose(means[0].round(12), means[1], best)
                assert row[f] == want


def test_means_tuned_again_are_those_of_the_same_resamples():
    rng = np.random.default_rng(3)
    values, fold = rng.random((2, 4, 3, 30)), folds(30, 3)
    key, picked = jax.random.key(8), np.array([2, 0, 3])

    def choose(weights):
        return np.broadcast_to(np.stack([picked, picked[::-1]])[:, None], (2, len(weights), 3))

    got = retuned_means(values, choose, fold, key=key, num_resamples=50)
    for a, settings in enumerate((picked, picked[::-1])):
        own = values[:, settings[fold], :, np.arange(30)].transpose(1, 2, 0)
        want = resampled_means(own, key=key, num_resamples=50)
        np.testing.assert_allclose(got[:, a], want, rtol=1e-12)


def test_an_interval_knows_that_the_choice_might_have_been_another():
    """Two settings that are as good: which is chosen is chance, and so is what is spent."""
    rng = np.random.default_rng(6)
    correct = rng.random((2, 1, 100)) < 0.7
    tokens = np.broadcast_to(np.array([100.0, 200.0])[:, None, None], correct.shape)
    baseline = np.concatenate([correct[:, 0, :50], correct[::-1, 0, 50:]], axis=1)[:1]
    aim = Aim(max_loss=0.0)
    fit = cross_fit(correct, tokens, baseline, aim)
    key = jax.random.key(0)
    (means,) = retuned_means(
        tokens[None],
        lambda weights: refit([aim], [fit], correct, tokens, baseline, weights),
        fit.fold,
        key=key,
        num_resamples=400,
    )
    fixed = bootstrap(fit.tokens, key=key, num_resamples=400)
    low, high = np.quantile(means[0], [0.025, 0.975])
    assert (low, high) == (100, 200)
    assert high - low > 2 * (fixed.high - fixed.low)
