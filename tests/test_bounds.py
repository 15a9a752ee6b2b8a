"""The bound is exact, for any law, in both precisions; its promise holds, one fewer breaks it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_probability.substrates import jax as tfp

from eval.bench.reference import GivenLogCdf, hard_bounds, least_count
from optscale_jax import (
    BestOfN,
    TruncatedNormal,
    expected_best,
    marginal_gain,
    required_samples,
    success_probability,
)
from optscale_jax.bounds import UNREACHABLE, BoundStatus, bound

tfd = tfp.distributions
KEY = jax.random.key(0)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


@pytest.mark.exact
@pytest.mark.parametrize("cap", [None, 1, 64, 2047, 2048, 10_000, 2**24, UNREACHABLE - 1])
def test_the_bound_is_the_least_count(cap, dtype):
    log_f, log_miss, alpha = hard_bounds(dtype)
    got = jax.jit(lambda f, a: required_samples(GivenLogCdf(f), 0.5, a, cap))(log_f, alpha)
    largest = int(UNREACHABLE) if cap is None else cap
    want = [least_count(float(f), float(m), largest) for f, m in zip(log_f, log_miss, strict=True)]
    np.testing.assert_array_equal(got, want)
    assert got.dtype == jnp.int32


@pytest.mark.exact
@pytest.mark.parametrize(
    "law",
    [
        lambda t: TruncatedNormal(t([0.8, 0.2, 1.3, -3.0, 60.0]), t([0.2, 0.01, 0.1, 1.0, 1e-3])),
        lambda t: tfd.Beta(t([8.0, 0.5]), t([2.0, 0.5])),
        lambda t: tfd.Uniform(t([0.0]), t([1.0])),
        lambda t: BestOfN(TruncatedNormal(t([0.5]), t([0.2])), 3.0),
    ],
    ids=["truncated normal", "beta", "uniform", "best of n"],
)
def test_any_law_fused_with_its_own_log_cdf(law, dtype):
    """Compiled together with its producer, whose arithmetic XLA may then rearrange."""
    d = law(lambda v: jnp.asarray(v, dtype))
    s_min = jnp.linspace(dtype(0.01), dtype(0.999), 97)[:, None, None]
    alpha = jnp.asarray([0.1, 0.5, 0.9, 0.99, 0.999], dtype)[:, None]
    got, log_f = jax.jit(lambda s, a: (required_samples(d, s, a, 100_000), d.log_cdf(s)))(
        s_min, alpha
    )
    log_f, log_miss = np.broadcast_arrays(log_f, jnp.log1p(-alpha))
    want = [
        least_count(float(f), float(m), 100_000)
        for f, m in zip(log_f.flat, log_miss.flat, strict=True)
    ]
    np.testing.assert_array_equal(np.ravel(got), want)


def test_an_exact_tie_needs_no_extra_sample(dtype):
    # F = 1/2 and 1 - alpha = 1/4: two samples miss with probability exactly 1/4.
    uniform = tfd.Uniform(dtype(0), dtype(1))
    assert required_samples(uniform, 0.5, 0.75) == 2
    assert required_samples(uniform, 0.5, np.nextafter(dtype(0.75), dtype(1))) == 3


def test_the_ends_have_names(dtype):
    law = TruncatedNormal(dtype(0.5), dtype(0.1))
    assert bound(law, 0.0, 0.9) == (1, BoundStatus.EXACT)
    assert bound(law, 1.0, 0.9) == (UNREACHABLE, BoundStatus.UNREACHABLE)
    assert bound(law, 1.0, 0.9, 64) == (64, BoundStatus.UNREACHABLE)
    assert bound(law, 0.8, 0.99, 64) == (64, BoundStatus.CAPPED)
    assert bound(law, 0.5, 0.99, 7) == (7, BoundStatus.EXACT)


@settings(derandomize=True, max_examples=60)
@given(
    loc=st.floats(-1, 2),
    scale=st.floats(0.01, 3),
    targets=st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.99)), min_size=2, max_size=2),
)
def test_asking_for_more_never_takes_fewer(loc, scale, targets):
    law = TruncatedNormal(loc, scale)
    (s0, s1), (a0, a1) = (sorted(v) for v in zip(*targets, strict=True))
    assert required_samples(law, s0, a0) <= required_samples(law, s1, a1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 0.0), r"alpha must be inside \(0, 1\), found 0.0"),
        ((0.5, 1.0), r"alpha must be inside \(0, 1\)"),
        ((0.5, np.array([0.5, np.nan])), "alpha must be inside"),
        ((-0.1, 0.5), r"s_min must be in \[0, 1\], found -0.1"),
        ((1.5, 0.5), r"s_min must be in \[0, 1\]"),
        ((0.5, 0.5, 0), "max_samples must be in"),
    ],
)
def test_targets_outside_their_domain_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        required_samples(TruncatedNormal(0.5, 0.1), *arguments)


def test_success_probability_brackets_alpha(dtype):
    law = TruncatedNormal(jnp.linspace(dtype(0.2), dtype(0.9), 40)[:, None], dtype(0.15))
    s_min = jnp.asarray([0.7, 0.85, 0.95], dtype)
    n = required_samples(law, s_min, 0.9)
    # N log F is compared exactly; turning it into a probability rounds.
    eps = 8 * np.finfo(dtype).eps * np.maximum(1, np.log(10))
    assert np.all(success_probability(law, s_min, n) >= 0.9 - eps)
    fewer = n > 1
    assert np.all(np.where(fewer, success_probability(law, s_min, n - 1), 0) < 0.9 + eps)
    assert np.all(success_probability(law, s_min, 0) == 0)


def test_scores_of_a_known_law_keep_the_promise():
    """Coverage: the best of N* reaches s_min as often as claimed, and that of N* - 1 does not."""
    loc = np.array([0.85, 0.85, 0.9, 0.95, 0.95, 1.0], np.float32)
    scale = np.array([0.1, 0.2, 0.05, 0.1, 0.3, 0.2], np.float32)
    law = TruncatedNormal(loc, scale)
    s_min, alpha, trials = 0.9, 0.9, 40_000
    needed = np.asarray(required_samples(law, s_min, alpha))
    # Small N, so that one sample fewer is missed by more than the noise.
    assert needed.tolist() == [8, 9, 4, 3, 9, 5]
    scores = jax.jit(lambda key: law.sample((trials, needed.max()), seed=key))(KEY)
    hits = np.asarray(scores) >= s_min
    drawn = np.arange(needed.max())[:, None]
    reached = (hits & (drawn < needed)).any(1).mean(0)
    missed = (hits & (drawn < needed - 1)).any(1).mean(0)
    error = 5 * math.sqrt(alpha * (1 - alpha) / trials)  # five standard errors, about
    assert np.all(reached >= alpha - error)
    assert np.all(missed < alpha - error)
    np.testing.assert_allclose(reached, success_probability(law, s_min, needed), atol=error)
    np.testing.assert_allclose(missed, success_probability(law, s_min, needed - 1), atol=error)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1000])
def test_expectations_of_uniform_scores(n, dtype):
    uniform = tfd.Uniform(dtype(0), dtype(1))
    tolerance = 1e-5 if dtype is np.float32 else 1e-10
    assert expected_best(uniform, n) == pytest.approx(n / (n + 1), abs=tolerance)
    gain = 1 / ((n + 1) * (n + 2))
    assert marginal_gain(uniform, n) == pytest.approx(gain, rel=100 * tolerance)


def test_a_gain_is_the_difference_it_stands_for():
    with jax.enable_x64(True):
        law = TruncatedNormal(jnp.array([0.8, 0.2, 1.5]), jnp.array([0.2, 0.01, 0.3]))
        n = jnp.array([1.0, 5.0, 60.0])[:, None]
        difference = expected_best(law, n + 1) - expected_best(law, n)
        np.testing.assert_allclose(marginal_gain(law, n), difference, atol=1e-9)
