"""The beta law: exact to stated tolerances in both tails, and a full TFP distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from eval.bench.reference import TOLERANCES, Reference, columns, errors, reference
from eval.bench.reference_laws import LAWS
from optscale_jax.distributions import Beta, LogitNormal
from optscale_jax.special_beta import digamma_gap, softplus_divergence, stirling_remainder

KEY = jax.random.key(0)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"], scope="module")
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


@pytest.fixture(scope="module")
def accuracy(dtype):
    law = LAWS["beta"]
    points = law.points(100, dtype)
    found = jax.jit(columns(law))(*map(jnp.asarray, points))
    return points, found, errors(law, points, found, reference(law, points, found.quantile))


@pytest.mark.exact
@pytest.mark.parametrize("column", Reference._fields)
def test_every_point_is_within_tolerance(column, accuracy, dtype):
    points, found, every = accuracy
    value, error = np.asarray(getattr(found, column)), every[column]
    assert value.dtype == dtype
    worst = int(np.argmax(error))
    place = [float(v[worst]) for v in points]
    tolerance = getattr(TOLERANCES[np.dtype(dtype)], column)
    assert error[worst] <= tolerance, f"{column} at x, u, a, b = {place} is {value[worst]}"


@jax.jit
def everything(law, x, u):
    """(log density, log F, log(1 - F)) at every x, quantiles of every u."""
    x, u = x[:, None], u[:, None]
    tails = law.log_cdf(x), law.log_survival_function(x)
    return law.log_prob(x), *tails, law.quantile(u)


def evaluated(a, b, x, u, dtype=np.float64):
    """`everything` of three laws at five points: one shape, so that it compiles once."""
    a, b = (np.broadcast_to(np.asarray(v, dtype), 3) for v in (a, b))
    x, u = (np.broadcast_to(np.asarray(v, dtype), 5) for v in (x, u))
    return map(np.asarray, everything(Beta(a, b), x, u))


def test_tails_agree_with_scipy_where_scipy_is_right():
    with jax.enable_x64(True):
        other = scipy.stats.beta(4.9, 1.7)
        for x in np.linspace(0.01, 0.99, 25).reshape(5, 5):
            log_prob, log_cdf, log_sf, _ = evaluated(4.9, 1.7, x, x)
            np.testing.assert_allclose(log_prob[:, 0], other.logpdf(x), rtol=1e-11, atol=1e-13)
            np.testing.assert_allclose(log_cdf[:, 0], other.logcdf(x), rtol=1e-11)
            np.testing.assert_allclose(log_sf[:, 0], other.logsf(x), rtol=1e-11)


@settings(max_examples=40, derandomize=True)
@given(u=st.floats(1e-7, 1 - 1e-7), log_a=st.floats(-1, 5), log_b=st.floats(-1, 5))
def test_cdf_undoes_quantile(u, log_a, log_b):
    with jax.enable_x64(True):
        a, b = 10**log_a, 10**log_b
        *_, quantile = evaluated(a, b, 0.5, u)
        x = quantile[0, 0]
        log_prob, log_cdf, *_ = (v[0, 0] for v in evaluated(a, b, x, u))
        # An x of 16 digits holds F to eps * density, no better.
        slack = 64 * np.finfo(float).eps * (1 + np.exp(log_prob) * x)
        np.testing.assert_allclose(np.exp(log_cdf), u, rtol=1e-11, atol=slack)


def test_outside_and_at_the_ends(dtype):
    x, u = [-0.1, 0, 1, 1.1, np.nan], [0, 1, 1.5, -0.1, np.nan]
    log_prob, log_cdf, log_sf, quantile = evaluated([0.5, 1, 2], 3, x, u, dtype)
    np.testing.assert_allclose(log_prob[1], [np.inf, np.log(3), -np.inf], rtol=1e-6)
    np.testing.assert_array_equal(log_prob[[0, 2, 3]], -np.inf)
    np.testing.assert_array_equal(log_cdf[:, 0], [-np.inf, -np.inf, 0, 0, np.nan])
    np.testing.assert_array_equal(log_sf[:, 0], [0, 0, -np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(quantile[:, 0], [0, 1, np.nan, np.nan, np.nan])


def test_second_derivatives_are_those_of_the_first():
    def values(x, a, b):
        law = Beta(a, b)
        return law.log_prob(x), law.log_cdf(x)

    with jax.enable_x64(True):
        point = np.array([0.3, 0.97]), np.array([4.9, 0.4]), np.array([1.7, 0.1])
        check_grads(jax.jit(values), point, order=2, modes=("fwd",), rtol=1e-4, eps=1e-5)


def test_laws_as_narrow_as_the_fits_floor_stay_finite(dtype):
    exponent = [1e7, 1e9, 1e12]
    x = [1e-30, 0.1, 0.5, np.nextafter(dtype(0.5), dtype(1)), 1 - 1e-6]
    log_prob, log_cdf, log_sf, _ = evaluated(exponent, exponent, x, 0.5, dtype)
    for value in (log_prob, log_cdf, log_sf):
        assert np.isfinite(value).all()
    np.testing.assert_allclose(log_cdf[2], np.log(0.5), rtol=1e-4)


def test_samples_follow_the_law():
    law = Beta(np.float32(0.7), np.float32(0.2))
    x = np.asarray(law.sample(5_000, seed=KEY), np.float64)
    # Below the next number to 1, where float32 holds no more of the law.
    inside = x[x < 1 - 1e-6]
    cut = scipy.stats.beta.cdf(1 - 1e-6, 0.7, 0.2)
    u = scipy.stats.beta.cdf(inside, 0.7, 0.2) / cut
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-5
    assert inside.size / x.size == pytest.approx(cut, abs=5 * np.sqrt(0.25 / x.size))


def test_shapes_copies_and_pytrees():
    law = Beta(np.ones((3, 1), np.float32), np.ones(4, np.float32), name="scores")
    assert law.batch_shape == (3, 4)
    x = np.full((2, 1, 1), 0.5)
    methods = (law.log_prob, law.log_cdf, law.log_survival_function, law.quantile)
    assert {jax.eval_shape(method, x).shape for method in methods} == {(2, 3, 4)}
    assert law[1:].batch_shape == (2, 4)
    assert law.copy(a=2.0).name == "scores"
    leaves, structure = jax.tree.flatten(law)
    assert jax.tree.unflatten(structure, leaves).batch_shape == (3, 4)
    # TFP takes a parent's for its own subclass's only where the latter's __init__ is hidden, as it
    # is here, where jaxtyping wraps it.
    assert "_parameter_properties" in vars(Beta)
    assert "_parameter_properties" in vars(LogitNormal)


def test_bad_parameters_are_one_clear_line():
    with pytest.raises(ValueError, match=r"Beta: b must be > 0, found 0.0"):
        Beta(1.0, 0.0)
    with pytest.raises(ValueError, match=r"Beta: a must be > 0, found -1.0"):
        Beta(np.array([1.0, -1.0]), 2.0)


def test_remainders_and_the_divergence_are_exact(dtype):
    import mpmath as mp

    rng = np.random.default_rng(0)
    x = (10 ** rng.uniform(-3, 9, 60)).astype(dtype)
    step = (rng.choice([-1, 1], 60) * 10 ** rng.uniform(-6, 1.5, 60)).astype(dtype)
    p = (10 ** rng.uniform(-6, -0.4, 60)).astype(dtype)
    with mp.workdps(50):
        gap, remainder, divergence = [], [], []
        for v, d, s in zip(map(float, x), map(float, step), map(float, p), strict=True):
            v, s = mp.mpf(v), mp.mpf(s)
            gap.append(float(mp.log(v) - mp.digamma(v)))
            stirling = (v - 0.5) * mp.log(v) - v + mp.log(2 * mp.pi) / 2
            remainder.append(float(mp.loggamma(v) - stirling))
            divergence.append(float(mp.log(1 - s + s * mp.exp(d)) - s * d))
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(digamma_gap(jnp.asarray(x)), gap, rtol=64 * eps)
    np.testing.assert_allclose(stirling_remainder(jnp.asarray(x)), remainder, atol=64 * eps)
    found = softplus_divergence(*map(jnp.asarray, (step, p, 1 - p)))
    np.testing.assert_allclose(found, divergence, rtol=32 * eps)
