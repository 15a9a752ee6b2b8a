"""Scalar functions against mpmath, in both precisions, values and derivatives."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.special
from jax.test_util import check_grads

from optscale_jax import special

pytestmark = pytest.mark.exact

# Compiled as wholes, as the library has them: op by op each of their shapes is fifty compilations.
log1mexp = jax.jit(jax.nn.log1mexp)
adjacent_masses = jax.jit(special.adjacent_masses)
gaussian_mass = jax.jit(special.gaussian_mass)
gaussian_moments = jax.jit(
    special.gaussian_moments, static_argnames=("order", "num_nodes", "cutoff")
)
log1p_below_one = jax.jit(special.log1p_below_one)
log_expm1 = jax.jit(special.log_expm1)
mills_ratio = jax.jit(special.mills_ratio)

# Relative error of the quadrature's mass, mean and variance.
QUADRATURE = {np.float32: 8e-6, np.float64: 2e-13}


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


def assert_close(value, exact, dtype, *, units):
    """Relative error within so many units of rounding."""
    value = np.asarray(value)
    assert value.dtype == dtype
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(value.astype(np.float64), exact, rtol=units * eps, atol=0)


def exactly(function, *arrays):
    with mp.workdps(60):
        rows = zip(*(np.ravel(np.asarray(a, np.float64)) for a in arrays), strict=True)
        return np.array([float(function(*(mp.mpf(v) for v in row))) for row in rows])


def mills(x):
    return mp.sqrt(mp.pi / 2) * mp.exp(x * x / 2) * mp.erfc(x / mp.sqrt(2))


def mass(slope, width):
    with mp.workdps(120):
        end = slope + width
        return mills(slope) - mp.exp(-width * (slope + width / 2)) * mills(end)


def positive(dtype, low=-30, high=3, num=200):
    return np.logspace(low, high, num).astype(dtype)


def test_log1mexp(dtype):
    x = positive(dtype, -30, 1.9)
    # XLA's log1p in float64 is good to 20 units.
    assert_close(log1mexp(x), exactly(lambda v: mp.log(-mp.expm1(-v)), x), dtype, units=32)
    assert log1mexp(dtype(0)) == -np.inf
    assert log1mexp(dtype(np.inf)) == 0


def test_log_expm1(dtype):
    x = positive(dtype)
    exact = exactly(lambda v: mp.log(mp.expm1(v)), x)
    eps = np.finfo(dtype).eps
    # Relative next to its zero at log 2 is more than rounding of x allows.
    np.testing.assert_allclose(log_expm1(x), exact, rtol=8 * eps, atol=2 * eps)
    assert log_expm1(dtype(0)) == -np.inf
    assert log_expm1(dtype(3e4)) == 3e4


@pytest.mark.parametrize("function", [jax.nn.log1mexp, special.log_expm1, special.log1p_below_one])
def test_gradients_of_logs(function, dtype):
    closed = {
        jax.nn.log1mexp: lambda v: 1 / mp.expm1(v),
        special.log_expm1: lambda v: -1 / mp.expm1(-v),
        special.log1p_below_one: lambda v: 1 / (1 + v),
    }[function]
    x = np.array([1e-20, 0.3, np.log(2.0), 0.9], dtype)
    slope = jax.jit(jax.vmap(jax.grad(function)))(x)
    assert_close(slope, exactly(closed, x), dtype, units=16)


def test_log1p_below_one(dtype):
    x = np.concatenate([positive(dtype, -30, 0), np.linspace(0, 1, 101, dtype=dtype)])
    assert_close(log1p_below_one(x), exactly(mp.log1p, x), dtype, units=4)


def test_mills_ratio(dtype):
    x = np.concatenate([np.zeros(1), np.logspace(-10, 10, 400)]).astype(dtype)
    assert_close(mills_ratio(x), exactly(mills, x), dtype, units=4)


def test_mills_ratio_derivative_where_erfcx_has_none(dtype):
    x = np.concatenate([np.linspace(0, 20, 81), np.logspace(1.5, 6, 30)]).astype(dtype)
    slope = jax.jit(jax.vmap(jax.grad(special.mills_ratio)))(x)
    exact = exactly(lambda v: v * mills(v) - 1, x)
    np.testing.assert_allclose(slope, exact, rtol=QUADRATURE[dtype])


GRID = np.array(
    [
        (slope, width)
        for slope in (0.0, 1e-8, 1e-3, 0.5, 3.0, 13.0, 40.0, 3e3, 6e4, 1e7)
        for width in (1e-25, 1e-9, 1e-4, 0.02, 0.5, 1.0, 4.0, 30.0, 1e3)
    ]
)


def test_gaussian_mass(dtype):
    slope, width = GRID.astype(dtype).T
    assert_close(gaussian_mass(slope, width), exactly(mass, slope, width), dtype, units=8)
    assert gaussian_mass(dtype(3), dtype(0)) == 0


def test_gaussian_mass_derivatives(dtype):
    slope, width = GRID.astype(dtype).T
    by_slope, by_width = jax.jit(jax.vmap(jax.grad(special.gaussian_mass, (0, 1))))(slope, width)

    def first_moment(a, w):
        with mp.workdps(150):
            # The antiderivative of t exp(-a t - t^2/2).
            return 1 - mp.exp(-w * (a + w / 2)) - a * mass(a, w)

    exact = -exactly(first_moment, slope, width)
    tiny = np.finfo(dtype).tiny
    shown = np.abs(exact) > 1e3 * tiny
    np.testing.assert_allclose(by_slope[shown], exact[shown], rtol=QUADRATURE[dtype])
    edge = exactly(lambda a, w: mp.exp(-w * (a + w / 2)), slope, width)
    shown = edge > 1e3 * tiny
    # exp amplifies the rounding of its argument.
    np.testing.assert_allclose(by_width[shown], edge[shown], rtol=300 * np.finfo(dtype).eps)


def test_adjacent_masses(dtype):
    rng = np.random.default_rng(0)
    start, first, second = (10 ** rng.uniform(-9, 4, (3, 300))).astype(dtype)
    start[:50] = 0
    out = adjacent_masses(start, first, second)
    middle = start.astype(np.float64) + first
    shown = exactly(mass, start, first)
    assert_close(out.first, shown, dtype, units=16)
    # The sum start + first rounds, which the mass after it feels in units of 1.
    np.testing.assert_allclose(
        out.second, exactly(mass, middle, second), rtol=16 * np.finfo(dtype).eps
    )
    energy = first.astype(np.float64) * (start + 0.5 * first.astype(np.float64))
    small = energy < 50
    np.testing.assert_allclose(
        out.decay[small], np.exp(-energy[small]), rtol=200 * np.finfo(dtype).eps
    )


def test_adjacent_masses_gradient():
    with jax.enable_x64(True):
        point = (0.7, 0.4, 1.3)
        check_grads(jax.jit(special.adjacent_masses), point, order=1, rtol=1e-6)


@functools.cache
def moments(slope, curvature, below, above):
    """(log mass, mean, central moments 2 to 4) by mpmath's own quadrature."""
    with mp.workdps(30):
        a, c = mp.mpf(slope), mp.mpf(curvature)

        def f(t):
            return mp.exp(-t * (a + c * t))

        reach = 200 / (a + mp.sqrt(a * a + 200 * c))
        ends = [-min(mp.mpf(below), reach), min(mp.mpf(above), reach)]
        grid = mp.linspace(*ends, 9)
        total = mp.quad(f, grid)
        mean = mp.quad(lambda t: t * f(t), grid) / total
        central = [mp.quad(lambda t, k=k: (t - mean) ** k * f(t), grid) / total for k in (2, 3, 4)]
        return [float(v) for v in (mp.log(total), mean, *central)]


MOMENTS = {
    "narrow": (0.0, 0.5, 30.0, 40.0),
    "half-normal": (0.0, 0.5, 0.0, np.inf),
    "wide": (0.001, 0.5, 0.0, 0.02),
    "exponential": (500.0, 0.5, 0.0, 8.0),
    "limit": (3e3, 1e-3, 0.0, 1.0),
    "skewed": (1.5, 0.5, 0.0, 3.0),
    "inside": (0.0, 2.0, 0.3, 1.1),
}


@pytest.mark.parametrize("order", [1, 2, 4])
def test_gaussian_moments(order, dtype):
    cases = np.array([*MOMENTS.values()], dtype)
    log_mass, mean, *central = np.array([moments(*map(float, case)) for case in cases]).T
    out = gaussian_moments(*cases.T, order=order)
    rtol, sd = QUADRATURE[dtype], np.sqrt(central[0])

    def close(value, exact, absolute, relative=rtol):
        error = np.abs(np.asarray(value, np.float64) - exact)
        assert error.shape == exact.shape
        wrong = error > absolute + relative * np.abs(exact)
        assert not wrong.any(), [*MOMENTS][np.argmax(wrong)]

    close(out.log_mass, log_mass, rtol)
    close(out.mean, mean, rtol * sd)
    assert (out.variance is None) == (order < 2)
    assert (out.third is None) == (order < 4)
    if order >= 2:
        close(out.variance, central[0], 0.0)
    if order == 4:
        # Central moments are differences of raw ones, which costs them a digit or two.
        close(out.third, central[1], 64 * rtol * sd**3, 0.0)
        close(out.fourth, central[2], 0.0, 64 * rtol)


@pytest.mark.parametrize("num_nodes", [9, 16])
def test_gaussian_moments_with_a_rule_of_its_own(num_nodes):
    out = gaussian_moments(0.5, 0.5, 0.0, 0.7, order=4, num_nodes=num_nodes, cutoff=12.0)
    exact = moments(0.5, 0.5, 0.0, 0.7)
    np.testing.assert_allclose(out, exact, rtol=1e-4)


def test_symmetric_interval_has_no_odd_moments():
    out = gaussian_moments(0.0, 0.5, 5.0, 5.0, order=4)
    assert abs(float(out.mean)) < 1e-8
    assert abs(float(out.third)) < 1e-6


def test_types_and_broadcasting():
    def mass(*args):
        return jax.eval_shape(lambda: special.gaussian_mass(*args))

    def ratio(x):
        return jax.eval_shape(lambda: special.mills_ratio(x))

    assert mass(1, 2).dtype == jnp.float32
    assert mass(np.float64(1.0), [0.5, 2]).shape == (2,)
    assert ratio(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32
    assert ratio(np.float16(1)).dtype == jnp.float32
    moments = jax.eval_shape(
        lambda: special.gaussian_moments(np.zeros((3, 1)), 0.5, 0.0, np.ones(4))
    )
    assert moments.variance.shape == (3, 4)
    assert mass(np.zeros((3, 1)), np.ones(4)).shape == (3, 4)
    with jax.enable_x64(True):
        assert ratio(1.0).dtype == jnp.float64
        assert ratio(jnp.float32(1)).dtype == jnp.float32


def test_nan_stays_where_it_is():
    x = jnp.array([0.5, np.nan, 2.0])
    for value in (
        mills_ratio(x),
        log1mexp(x),
        gaussian_mass(x, 1.0),
        gaussian_mass(1.0, x),
        gaussian_moments(x, 0.5, 0.0, 1.0).variance,
    ):
        np.testing.assert_array_equal(np.isnan(value), [False, True, False])


def test_agrees_with_scipy_erfcx():
    x = np.linspace(0, 30, 301)
    with jax.enable_x64(True):
        value = mills_ratio(x)
    exact = np.sqrt(np.pi / 2) * scipy.special.erfcx(x / np.sqrt(2))
    np.testing.assert_allclose(value, exact, rtol=2e-15)
