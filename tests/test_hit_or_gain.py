"""Hit or gain against the equations in plain Python, and the prior that it learns from others."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from optscale_jax import InputError, NormalInverseGamma, Pool, ScoreStats, replay, synthetic_pool
from optscale_jax.policies import Observation, StopReason, first_hit, hit_or_gain, run, stack
from optscale_jax.policies.hit_or_gain import WEAK_PRIOR
from optscale_jax.special_beta import student_t_excess
from optscale_jax.study import PolicyConfig
from optscale_jax.study.entries import entries_of, replay_comparison
from optscale_jax.study.tuning import folds

N = 16
PRIOR = NormalInverseGamma(loc=0.7, strength=0.5, shape=2.0, rate=0.02)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"], scope="module")
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


@pytest.fixture(scope="module")
def pool():
    made = synthetic_pool(jax.random.key(5), num_problems=50, num_samples=N)
    answers = np.array(made.answers)
    answers[::7, :5] = -1
    answers[3] = -1
    return Pool.from_arrays(scores=made.scores, answers=answers, tokens=made.tokens)


# The equations in plain Python --------------------------------------------------------------------


def plain_predictive(scores, prior):
    """Degrees of freedom, loc and scale of the next score's Student t, one score at a time."""
    loc, strength, shape, rate = vars(prior).values()
    for x in scores:
        rate += strength * (x - loc) ** 2 / (2 * (strength + 1))
        loc = (strength * loc + x) / (strength + 1)
        strength, shape = strength + 1, shape + 0.5
    return 2 * shape, loc, math.sqrt(rate * (strength + 1) / (strength * shape))


def plain_improvement(best, df, loc, scale):
    z = (best - loc) / scale
    law = scipy.stats.t(df)
    return scale * ((df + z * z) / (df - 1) * law.pdf(z) - z * law.sf(z))


def plain_rule(row, s_hi, gain, cap, prior):
    """Count and reason, of a row of (score, whether it is eligible)."""
    best = -math.inf
    for n in range(1, cap + 1):
        score, eligible = row[n - 1]
        best = max(best, score) if eligible else best
        if best >= s_hi:
            return n, StopReason.SCORE_REACHED
        scores = [score for score, _ in row[:n]]
        if best > -math.inf and plain_improvement(best, *plain_predictive(scores, prior)) <= gain:
            return n, StopReason.GAIN_SMALL
    return cap, StopReason.MAX_SAMPLES


# The expected excess of a Student t ---------------------------------------------------------------


def test_excess_is_exact_to_what_its_difference_loses(dtype):
    grid = itertools.product(
        [1.05, 1.5, 2, 3.7, 10, 66, 300], [-1e6, -30, -1.5, -1e-3, 0, 1e-4, 0.4, 2, 5, 12, 40, 1e4]
    )
    nu, z = np.array(list(grid), dtype).T
    found = np.asarray(student_t_excess(jnp.asarray(z), jnp.asarray(nu)))
    assert found.dtype == dtype
    with mpmath.workdps(60):
        for value, df, x in zip(found, nu, z, strict=True):
            df, x = mpmath.mpf(float(df)), mpmath.mpf(float(x))
            density = (1 + x * x / df) ** (-(df + 1) / 2) / (
                mpmath.sqrt(df) * mpmath.beta(df / 2, 0.5)
            )
            first = (df + x * x) / (df - 1) * density
            ratio = df / (df + x * x)
            tail = mpmath.betainc(df / 2, 0.5, 0, ratio, regularized=True) / 2
            exact = first - x * (tail if x >= 0 else 1 - tail)
            # The larger term's rounding: its logarithm is the sum of a quadrature's and a series'
            # terms, a hundred at most, and of nu log(1 + z^2 / nu), which is off by as many units.
            depth = 100 + abs(mpmath.log(ratio)) * df
            tolerance = float(np.finfo(dtype).eps * depth * (first if x > 0 else exact))
            assert abs(float(value) - float(exact)) <= tolerance + float(np.finfo(dtype).tiny)


@settings(max_examples=50)
@given(st.floats(-50, 50), st.floats(0, 5), st.floats(1.1, 200))
def test_excess_falls_with_the_threshold_and_is_above_that_of_its_mean(z, step, nu):
    low, high = (float(student_t_excess(jnp.float32(x), jnp.float32(nu))) for x in (z, z + step))
    assert 0 <= high <= low * (1 + 1e-4) + 1e-30
    assert low >= max(-z, 0) * (1 - 1e-6)  # Jensen's inequality; E T = 0


# The prior ----------------------------------------------------------------------------------------


def test_posterior_predictive_and_improvement_are_those_of_scipy(dtype):
    scores = np.random.default_rng(0).beta(4, 2, (20, 7)).astype(dtype)
    after = PRIOR.given(ScoreStats.from_scores(scores))
    law = after.predictive()
    best = scores.max(1)
    rtol = 100 * np.finfo(dtype).eps  # tens of operations, cancellation up to (df + z^2) / (df - 1)
    for p, row in enumerate(scores.tolist()):
        wanted = plain_predictive(row, PRIOR)
        np.testing.assert_allclose((law.df[p], law.loc[p], law.scale[p]), wanted, rtol=rtol)
        found = after.expected_improvement(best)[p]
        np.testing.assert_allclose(found, plain_improvement(float(best[p]), *wanted), rtol=rtol)
    # By the definition of an expectation.
    t = scipy.stats.t(*wanted)
    by_integral = t.expect(lambda x: x - float(best[-1]), lb=float(best[-1]))
    np.testing.assert_allclose(found, by_integral, rtol=max(rtol, 1e-7))
    assert after.expected_improvement(-jnp.inf).tolist() == [math.inf] * 20


def test_pooled_prior_has_the_moments_of_the_problems():
    rng = np.random.default_rng(0)
    truth = NormalInverseGamma(loc=0.6, strength=0.4, shape=6.0, rate=0.005)
    sd = np.sqrt(scipy.stats.invgamma(truth.shape, scale=truth.rate).rvs((4000, 1), rng))
    mean = rng.normal(truth.loc, sd / np.sqrt(truth.strength))
    scores = np.clip(rng.normal(mean, sd, (4000, 12)), 0, 1)
    mask = np.arange(12) < rng.integers(1, 13, (4000, 1))
    pooled = NormalInverseGamma.pooled(scores, mask)
    # Standard errors over 4000 problems: a few hundredths, and a tenth of the variances' variance.
    for name, tolerance in (("loc", 0.01), ("strength", 0.1), ("rate", 0.2), ("shape", 0.2)):
        assert getattr(pooled, name) == pytest.approx(getattr(truth, name), rel=tolerance)
    # As many scores of each: the moments are those of scipy's laws.
    whole = NormalInverseGamma.pooled(scores)
    law = scipy.stats.invgamma(whole.shape, scale=whole.rate)
    each = scores.var(1, ddof=1)
    assert law.mean() == pytest.approx(each.mean(), rel=1e-5)
    assert law.var() == pytest.approx(np.mean(each**2) * 11 / 13 - each.mean() ** 2, rel=1e-4)
    between = scores.mean(1).var(ddof=1) - each.mean() / 12
    assert law.mean() / whole.strength == pytest.approx(between, rel=1e-5)


@pytest.mark.parametrize(
    ("scores", "found"),
    [([[0.2, 0.4]], "found 1 of 1"), ([[0.2], [0.3]], "0 of 2"), ([[0.5] * 3] * 4, "4 of 4")],
)
def test_problems_that_say_nothing_of_a_spread_are_one_clear_line(scores, found):
    with pytest.raises(ValueError, match=f"^a pooled prior needs two problems .* {found}"):
        NormalInverseGamma.pooled(np.array(scores))


def test_problems_that_are_all_alike_or_without_spread_still_give_a_prior():
    alike = NormalInverseGamma.pooled(np.tile([[0.2, 0.4, 0.6]], (5, 1)))
    law = alike.given(ScoreStats.from_scores(np.array([0.3]))).predictive()
    np.testing.assert_allclose((law.loc, law.scale), (0.4, 0.2), rtol=0.01)
    # Most of them equal, which no likelihood has a maximum for.
    scores = np.full((40, 8), 1.0)
    scores[:10] = np.random.default_rng(0).uniform(0.2, 0.9, (10, 8))
    law = NormalInverseGamma.pooled(scores).predictive()
    assert 0.05 < law.scale < 0.5


# The rule -----------------------------------------------------------------------------------------


def test_rule_is_that_of_plain_python_in_replay_and_one_at_a_time(pool):
    grid = [(0.95, 0.002), (1.0, 0.01), (None, 0.03), (0.8, 1e-4), (0.9, 0.0)]
    made = [hit_or_gain(s_hi, gain, N, PRIOR) for s_hi, gain in grid]
    result = replay(pool, stack(made))
    reasons = set()
    for p in range(pool.num_problems):
        eligible = pool.answers[p] != -1
        row = list(zip(pool.scores[p].tolist(), eligible.tolist(), strict=True))
        for s, (s_hi, gain) in enumerate(grid):
            hit = math.inf if s_hi is None else np.float32(s_hi)
            wanted = plain_rule(row, hit, gain or -1, N, PRIOR)
            assert (result.num_samples[s, 0, p], result.stop_reason[s, 0, p]) == wanted
            reasons.add(wanted[1])
            if p < 4:
                columns = pool.scores[p], pool.answers[p], pool.tokens[p], np.arange(N)
                alone = run(made[s], itertools.starmap(Observation, zip(*columns, strict=True)))
                assert (alone.num_samples, int(alone.info.stop_reason)) == wanted
                assert alone.selected_index == result.selected_index[s, 0, p]
                seen = [score for score, _ in row[: wanted[0]]]
                law = [float(alone.info.params[name]) for name in ("df", "loc", "scale")]
                np.testing.assert_allclose(law, plain_predictive(seen, PRIOR), rtol=1e-5)
    assert reasons == {StopReason.SCORE_REACHED, StopReason.GAIN_SMALL, StopReason.MAX_SAMPLES}


def test_without_a_gain_it_is_first_hit_and_with_a_large_one_it_takes_the_first(pool):
    hit, other = replay(pool, first_hit(0.9, N)), replay(pool, hit_or_gain(0.9, 0, N, PRIOR))
    for field in ("num_samples", "selected_index", "stop_reason"):
        np.testing.assert_array_equal(getattr(hit, field), getattr(other, field))
    large = replay(pool, hit_or_gain(None, 10.0, N))
    # The first eligible one: there is no best before it.
    drawn = np.where((pool.answers != -1).any(1), np.argmax(pool.answers != -1, 1) + 1, N)
    np.testing.assert_array_equal(large.num_samples[0], drawn)


def test_more_is_drawn_the_less_an_improvement_has_to_be(pool):
    gains = [0.0, 1e-4, 1e-3, 1e-2, 0.1]
    grid = replay(pool, stack([hit_or_gain(1.0, gain, N) for gain in gains]))
    assert np.all(np.diff(grid.num_samples, axis=0) <= 0)


def test_a_prior_for_each_problem_is_that_problems(pool):
    locs = np.linspace(0.2, 0.9, pool.num_problems)
    each = dataclasses.replace(PRIOR, loc=locs)
    result = replay(pool, hit_or_gain(0.95, 0.01, N), prior=each)
    for p in (0, 20, 49):
        one = pool.subset(pool.problem_ids[[p]])
        prior = dataclasses.replace(PRIOR, loc=float(locs[p]))
        alone = replay(one, hit_or_gain(0.95, 0.01, N, prior))
        assert alone.num_samples[0, 0] == result.num_samples[0, p]
    weak = replay(pool, hit_or_gain(0.95, 0.01, N))
    stated = replay(pool, hit_or_gain(0.95, 0.01, N, WEAK_PRIOR))
    np.testing.assert_array_equal(weak.num_samples, stated.num_samples)


def test_a_comparison_learns_each_problems_prior_on_the_other_folds(pool):
    gains = [0.002, 0.02]
    config = PolicyConfig("hit_or_gain", s_hi=0.95, gain=gains, max_samples=N)
    outcomes = replay_comparison(pool, entries_of([config]), seed=3, num_permutations=0)
    fold, scores = folds(pool.num_problems, 5, seed=3), np.asarray(pool.scores)
    for f in range(5):
        prior = NormalInverseGamma.pooled(scores[fold != f])
        left_out = pool.subset(pool.problem_ids[fold == f])
        alone = replay(left_out, stack([hit_or_gain(0.95, gain, N, prior) for gain in gains]))
        counts = outcomes.methods[0].num_samples[..., fold == f]
        np.testing.assert_array_equal(counts, alone.num_samples)
    few = pool.subset(pool.problem_ids[:3])
    with pytest.raises(InputError, match="pool: it has 3 problems, fewer than the 5 folds"):
        replay_comparison(few, entries_of([config]), seed=3, num_permutations=0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: hit_or_gain(1.2, 0.01, 8), r"s_hi must be in \[0, 1\], found 1\.2"),
        (lambda: hit_or_gain(0.9, -0.01, 8), r"gain must be at least 0, found -0\.01"),
        (lambda: hit_or_gain(0.9, math.nan, 8), "gain must be at least 0, found nan"),
        (
            lambda: dataclasses.replace(PRIOR, shape=0.5),
            r"prior: shape must be above 0\.5, found 0\.5",
        ),
        (lambda: dataclasses.replace(PRIOR, rate=0), "prior: rate must be above 0, found 0"),
        (lambda: dataclasses.replace(PRIOR, loc=math.nan), "prior: loc must be finite, found nan"),
    ],
)
def test_an_argument_outside_its_domain_is_one_clear_line(make, says):
    with pytest.raises(ValueError, match=f"^{says}$"):
        make()
