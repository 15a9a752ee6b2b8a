"""The logit-normal law: exact to stated tolerances in both tails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from eval.bench.reference import TOLERANCES, Reference, relative_error
from eval.bench.reference_laws import (
    LOGIT_NORMAL_CASES,
    law_grid,
    logit_normal,
    logit_normal_quantile,
    reference,
)
from optscale_jax.distributions import LogitNormal


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"], scope="module")
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


@jax.jit
def columns(x, u, loc, scale):
    def values(loc, scale):
        law = LogitNormal(loc, scale)
        return law.log_prob(x), law.log_cdf(x), law.log_survival_function(x)

    one, zero = jnp.ones_like(loc), jnp.zeros_like(loc)
    (log_prob, log_cdf, log_sf), by_loc = jax.jvp(values, (loc, scale), (one, zero))
    _, by_scale = jax.jvp(values, (loc, scale), (zero, one))
    law = LogitNormal(loc, scale)
    return Reference(
        log_prob=log_prob,
        log_cdf=log_cdf,
        log_sf=log_sf,
        mean=law.mean(),
        variance=law.variance(),
        quantile=law.quantile(u),
        log_prob_dloc=by_loc[0],
        log_prob_dscale=by_scale[0],
        log_cdf_dloc=by_loc[1],
        log_cdf_dscale=by_scale[1],
    )


def quantiles(u, loc, scale):
    return scipy.special.expit(loc + scale * scipy.stats.norm.ppf(u))


@pytest.fixture(scope="module")
def accuracy(dtype):
    rng = np.random.default_rng(0)
    random = np.stack([rng.uniform(-12, 12, 150), 10 ** rng.uniform(-1.5, 2, 150)], axis=1)
    points = law_grid(LOGIT_NORMAL_CASES, random, quantiles, dtype)
    found = columns(*map(jnp.asarray, points))
    exact = reference(logit_normal, logit_normal_quantile, points, found.quantile)
    return points, found, exact


@pytest.mark.parametrize("column", Reference._fields)
def test_every_point_is_within_tolerance(column, accuracy, dtype):
    points, found, exact = accuracy
    value = np.asarray(getattr(found, column))
    assert value.dtype == dtype
    error = relative_error(column, value, getattr(exact, column))
    worst = int(np.argmax(error))
    place = [float(v[worst]) for v in points]
    tolerance = getattr(TOLERANCES[np.dtype(dtype)], column)
    assert error[worst] <= tolerance, f"{column} at x, u, loc, scale = {place} is {value[worst]}"


def test_outside_and_at_the_ends(dtype):
    law = LogitNormal(dtype(1.2), np.array([0.3, 3.0], dtype))
    for x in (-0.1, 0.0, 1.0, 1.1):
        np.testing.assert_array_equal(law.log_prob(dtype(x)), -np.inf)
    np.testing.assert_array_equal(law.log_cdf(dtype([0])), -np.inf)
    np.testing.assert_array_equal(law.log_cdf(dtype([1])), 0)
    np.testing.assert_array_equal(law.quantile(dtype([[0], [1]])), [[0] * 2, [1] * 2])
    assert np.isfinite(jax.jit(jax.grad(lambda s: LogitNormal(1.2, s).log_cdf(0.0)))(dtype(0.3)))


def test_bad_parameters_are_one_clear_line():
    with pytest.raises(ValueError, match=r"LogitNormal: scale must be > 0, found 0.0"):
        LogitNormal(1.0, 0.0)
