"""The logit-normal law: exact to stated tolerances in both tails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.bench.reference import TOLERANCES, Reference, columns, errors, reference
from eval.bench.reference_laws import LAWS
from optscale_jax.distributions import LogitNormal


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"], scope="module")
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


@pytest.fixture(scope="module")
def accuracy(dtype):
    law = LAWS["logit_normal"]
    points = law.points(150, dtype)
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
