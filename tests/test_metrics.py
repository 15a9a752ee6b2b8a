"""Metrics: means that never hide the unknown, and intervals that cover what they should."""

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from optscale_jax.records import TokenLedger
from optscale_jax.study import metrics
from optscale_jax.study.metrics import (
    bootstrap,
    known_mean,
    known_tokens,
    paired_intervals,
)

KEY = jax.random.key(0)


def test_ledgers_add_up():
    ledger = TokenLedger(completed=10, aborted=3, verifier=5, predictor=1)
    both = ledger + TokenLedger(completed=1)
    assert both == TokenLedger(completed=11, aborted=3, verifier=5, predictor=1)
    assert both.total == 20
    assert sum([ledger, ledger, ledger]).total == 57


def test_ledger_of_arrays_and_unknowns():
    ledger = TokenLedger(completed=np.array([1.0, np.nan]), verifier=np.array([2.0, 2.0]))
    np.testing.assert_array_equal((ledger + ledger).total, [6, np.nan])
    assert len(jax.tree.leaves(ledger)) == 4


def test_means_are_of_what_is_known():
    score = np.array([[0.5, np.nan, 1.0], [0.5, 0.5, 1.0]])
    np.testing.assert_allclose(known_mean(score), [0.75, 2 / 3])
    assert known_mean(score, (-2, -1)) == 0.7
    np.testing.assert_array_equal(known_mean(np.full((2, 3), np.nan)), [np.nan, np.nan])


def test_one_unknown_count_makes_all_unknown():
    tokens = np.array([[[5, 7]], [[5, -1]]])
    np.testing.assert_array_equal(known_tokens(tokens), [[[5, 7]], [[np.nan, np.nan]]])


def test_resampled_means_are_those_of_explicit_resamples():
    # With one problem and one permutation there is one resample; with constant values, one mean.
    single = bootstrap(np.array([[0.3]]), key=KEY)
    assert (single.mean, single.low, single.high) == (0.3, 0.3, 0.3)
    constant = bootstrap(np.full((4, 9), 0.25), key=KEY)
    np.testing.assert_allclose(constant, 0.25, rtol=1e-15)


def test_interval_of_coin_flips_is_that_of_the_binomial():
    num_problems = 400
    values = (np.arange(num_problems) % 4 == 0)[None]
    interval = bootstrap(values, key=KEY, num_resamples=20_000, level=0.9)
    exact = scipy.stats.binom(num_problems, 0.25).ppf([0.05, 0.95]) / num_problems
    # The resampled count is Binomial(400, 1/4); its estimated quantiles are off by about one.
    np.testing.assert_allclose([interval.low, interval.high], exact, atol=1.01 / num_problems)
    assert interval.mean == 0.25


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_coverage_on_normal_data(level):
    num_experiments, num_problems = 3000, 60
    data = np.random.default_rng(1).normal(0.4, 2.0, (num_experiments, 1, num_problems))
    interval = bootstrap(data, key=KEY, num_resamples=4000, level=level)
    covered = np.mean((interval.low <= 0.4) & (interval.high >= 0.4))
    # The interval is the mean -+ z sd sqrt((n - 1) / n) / sqrt(n), so by Student's law it covers:
    z = scipy.stats.norm.ppf((1 + level) / 2)
    student = scipy.stats.t(num_problems - 1)
    expected = 1 - 2 * student.sf(z * np.sqrt((num_problems - 1) / num_problems))
    # 4 standard errors of the count; the shared resamples' quantiles err by
    # sqrt(tail (1 - tail) / R) in tail mass, on each side.
    tail = (1 - level) / 2
    sampling = np.sqrt(expected * (1 - expected) / num_experiments)
    resampling = np.sqrt(2 * tail * (1 - tail) / 4000)
    assert abs(covered - expected) < 4 * np.hypot(sampling, resampling)


def test_two_way_variance():
    # v_kp = a_k + b_p with unit variances: exactly 1/P from problems and 1/K from permutations.
    def standard(size):
        ranks = scipy.stats.norm.ppf((np.arange(size) + 0.5) / size)
        return ranks / ranks.std()

    values = standard(20)[:, None] + standard(50)[None]
    interval = bootstrap(values, key=KEY, num_resamples=20_000, level=0.6827)
    # The quantile of 20,000 draws has a relative error of about 1 %; no interaction term here.
    half_width = (interval.high - interval.low) / 2
    np.testing.assert_allclose(half_width, np.sqrt(1 / 50 + 1 / 20), rtol=0.04)


@pytest.mark.parametrize("unknown", [False, True])
def test_resamples_in_blocks_of_bounded_memory_are_the_resamples_at_once(monkeypatch, unknown):
    values = np.random.default_rng(5).random((2, 3, 1000))
    if unknown:
        values[0, :, ::7] = np.nan
    whole = np.stack(bootstrap(values, key=KEY))
    monkeypatch.setattr(metrics, "_WEIGHTS_AT_ONCE", 50_000)  # 48 of 2,000 resamples
    # The same draws; a small matrix product may add up in another order.
    np.testing.assert_allclose(np.stack(bootstrap(values, key=KEY)), whole, rtol=1e-14)


def test_the_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    def drawn():
        return np.concatenate(list(metrics._weights(np.random.default_rng(0), 100, 37)))

    whole = drawn()
    np.testing.assert_array_equal(whole.sum(1), 37)
    monkeypatch.setattr(metrics, "_WEIGHTS_AT_ONCE", 37)
    np.testing.assert_array_equal(drawn(), whole)


def test_paired_difference_is_narrower_and_equals_bootstrap_of_the_difference():
    generator = np.random.default_rng(2)
    problems = generator.normal(size=(1, 200))
    values = {
        "best_of_n": problems + 0.1 * generator.normal(size=(5, 200)),
        "optscale": problems + 0.05 + 0.1 * generator.normal(size=(5, 200)),
    }
    table = paired_intervals(values, baseline="best_of_n", key=KEY)
    width = {name: table[name].value.high - table[name].value.low for name in table}
    difference = table["optscale"].difference
    # Unpaired, variances would add: sqrt(2) wider than one. Paired, only the noise is left.
    assert difference.high - difference.low < 0.2 * width["optscale"]
    assert difference.low > 0
    direct = bootstrap(values["optscale"] - values["best_of_n"], key=KEY)
    # The same weights, added up in another order: sums of 200 numbers of order 1, in float64.
    np.testing.assert_allclose(np.stack(difference), np.stack(direct), rtol=0, atol=1e-13)
    np.testing.assert_array_equal(np.stack(table["best_of_n"].difference), 0)


def test_settings_share_resamples_and_calls_are_repeatable():
    values = np.random.default_rng(3).random((4, 3, 30))
    together = bootstrap(values, key=KEY)
    for index in range(4):
        alone = bootstrap(values[index], key=KEY)
        np.testing.assert_allclose(
            np.stack([field[index] for field in together]), np.stack(alone), rtol=1e-12
        )
    other = bootstrap(values, key=jax.random.key(1))
    assert not np.array_equal(together.low, other.low)


def test_settings_broadcast_against_the_baseline():
    values = {"fixed": np.zeros((2, 7)), "swept": np.ones((5, 2, 7))}
    table = paired_intervals(values, baseline="fixed", key=KEY)
    assert table["swept"].difference.mean.shape == (5,)
    assert table["fixed"].value.mean.shape == ()


def test_unknown_values_are_left_out_and_all_unknown_is_nan():
    values = np.random.default_rng(4).random((2, 3, 40))
    values[0, :, 20:] = np.nan
    values[1] = np.nan
    interval = bootstrap(values, key=KEY)
    np.testing.assert_allclose(interval.mean[0], values[0, :, :20].mean())
    assert interval.low[0] < interval.mean[0] < interval.high[0]
    assert np.all(np.isnan([interval.mean[1], interval.low[1], interval.high[1]]))


@settings(max_examples=40)
@given(
    num_permutations=st.integers(1, 4),
    num_problems=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    shift=st.floats(-3, 3),
)
def test_interval_is_ordered_bounded_and_moves_with_the_values(
    num_permutations, num_problems, seed, shift
):
    values = np.random.default_rng(seed).random((num_permutations, num_problems))
    interval = bootstrap(values, key=KEY, num_resamples=200)
    slack = 1e-12
    assert values.min() - slack <= interval.low <= interval.high <= values.max() + slack
    moved = bootstrap(values + shift, key=KEY, num_resamples=200)
    np.testing.assert_allclose(np.stack(moved), np.stack(interval) + shift, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap(np.ones((2, 2)), key=KEY, level=1.0), r"level is 1.0; .* in \(0, 1\)"),
        (lambda: bootstrap(np.ones((2, 2)), key=KEY, num_resamples=0), "num_resamples is 0"),
        (lambda: bootstrap(np.ones((2, 0)), key=KEY), r"shape \(2, 0\)"),
        (
            lambda: paired_intervals({"a": np.ones((1, 2))}, baseline="b", key=KEY),
            "baseline 'b' is not among the policies: a",
        ),
        (
            lambda: paired_intervals(
                {"a": np.ones((1, 2)), "b": np.ones((1, 3))}, baseline="a", key=KEY
            ),
            r"b has \(1, 3\) permutations and problems but a has \(1, 2\)",
        ),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
