"""The truncated normal: exact to stated tolerances everywhere, and a full TFP distribution."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from eval.bench.reference import (
    HARD_CASES,
    TOLERANCES,
    TRUNCATED_NORMAL,
    Reference,
    columns,
    errors,
    reference,
)
from optscale_jax.distributions import TruncatedNormal
from tests.optimised import optimised

DTYPES = [np.float32, np.float64]
KEY = jax.random.key(0)
GRADIENTS = ["log_prob_dloc", "log_prob_dscale", "log_cdf_dloc", "log_cdf_dscale"]


@pytest.fixture(params=DTYPES, ids=["float32", "float64"], scope="module")
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


library_columns = columns(TRUNCATED_NORMAL)
compiled_columns = optimised(library_columns)


@pytest.fixture(scope="module")
def accuracy(dtype):
    """(points, then values and errors, jitted and plain) over 400 random points and hard cases."""
    points = TRUNCATED_NORMAL.points(400, dtype)
    on_device = tuple(map(jnp.asarray, points))
    exact = reference(TRUNCATED_NORMAL, points, points[1])
    both = [made(*on_device) for made in (compiled_columns, library_columns)]
    return points, [(found, errors(TRUNCATED_NORMAL, points, found, exact)) for found in both]


@pytest.mark.parametrize("column", Reference._fields)
@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "plain"])
def test_every_point_is_within_tolerance(column, compiled, accuracy, dtype):
    points, (jitted, plain) = accuracy
    found, every = jitted if compiled else plain
    value, error = np.asarray(getattr(found, column)), every[column]
    assert value.dtype == dtype
    tolerance = getattr(TOLERANCES[np.dtype(dtype)], column)
    worst = int(np.argmax(error))
    point = [float(v[worst]) for v in points]
    names = "x, u, loc, scale, low, high"
    assert error[worst] <= tolerance, f"{column} at {names} = {point} is {value[worst]}"


def test_second_derivatives_are_finite(x64):
    loc, scale, low, high = np.array(list(HARD_CASES.values())).T
    x = np.clip(loc, low, high - 0.3 * (high - low)) + 0.1 * (high - low)

    def both(*point):
        x, *params = point
        d = TruncatedNormal(*params)
        return jnp.stack([d.log_prob(x), d.log_cdf(x)])

    hessian = jax.jit(jax.vmap(jax.hessian(both, (0, 1, 2))))(x, loc, scale, low, high)
    for name, *rows in zip(HARD_CASES, *jax.tree.leaves(hessian), strict=True):
        assert np.isfinite(rows).all(), name


# The spike that the fits' floor on the scale produces. Its gradients are of size 1 / scale.
@pytest.mark.parametrize("loc", [0.0, 0.5, 1.0, 0.9999995])
def test_spike_at_the_floor_of_the_fits(loc, dtype):
    law = TruncatedNormal(dtype(loc), dtype(1e-6))
    x = np.clip(law.loc + np.linspace(-5e-6, 5e-6, 11), 1e-9, 1 - 1e-7).astype(dtype)
    levels = np.linspace(0.01, 0.99, 11).astype(dtype)
    points = (x, levels, *(np.full(11, v) for v in jax.tree.leaves(law)))
    out = compiled_columns(*map(jnp.asarray, points))
    exact = reference(TRUNCATED_NORMAL, points, levels)
    for name, error in errors(TRUNCATED_NORMAL, points, out, exact).items():
        unit = 1e6 if name in GRADIENTS else 1.0
        assert np.all(error <= getattr(TOLERANCES[np.dtype(dtype)], name) * unit), name


# Exactly at a mode on an end of the support (where branches meet), inside, outside, and wide.
POINTS = np.array(
    [
        (0.4, loc, scale, 0.0, 1.0)
        for loc, scale in [(0, 0.3), (1, 0.05), (0.3, 0.2), (-0.4, 0.2), (1.7, 0.5), (0.4, 30)]
    ]
)


def numeric_slopes(function, points, step):
    """Central differences of a function of one point, [points, ..., arguments]."""
    function = jax.jit(jax.vmap(function))
    rows = []
    for i in range(points.shape[1]):
        move = step * np.eye(points.shape[1])[i]
        rows.append((np.array(function(points + move)) - function(points - move)) / (2 * step))
    return np.stack(rows, axis=-1)


@pytest.mark.parametrize("method", ["log_prob", "log_cdf", "log_survival_function", "quantile"])
def test_derivatives_in_everything(method, x64):
    def evaluate(point):
        return getattr(TruncatedNormal(*point[1:]), method)(point[0])

    gradient = jax.grad(evaluate)
    first = np.array(jax.jit(jax.vmap(gradient))(POINTS))
    numeric = numeric_slopes(evaluate, POINTS, 1e-5)
    np.testing.assert_allclose(first, numeric, rtol=1e-5, atol=1e-6 * np.abs(first).max())
    second = np.array(jax.jit(jax.vmap(jax.jacfwd(gradient)))(POINTS))
    numeric = numeric_slopes(gradient, POINTS, 3e-6)
    size = np.abs(second).max(axis=(1, 2), keepdims=True)
    # Differences across the point where branches meet are good to the step itself.
    assert np.all(np.abs(second - numeric) <= 1e-4 * size)
    np.testing.assert_allclose(second, second.swapaxes(1, 2), atol=1e-8 * size.max())


def test_moments_are_differentiable(x64):
    def moments(loc, scale, low, high):
        d = TruncatedNormal(loc, scale, low, high)
        return d.mean(), d.variance(), d.entropy()

    check_grads(jax.jit(moments), (0.8, 0.3, 0.0, 1.0), order=1, rtol=1e-6)


# One table of laws for the contract: (loc, scale, low, high).
LAWS = {
    "typical": (0.8, 0.2, 0.0, 1.0),
    "narrow": (0.93, 0.004, 0.0, 1.0),
    "flat": (0.4, 20.0, 0.0, 1.0),
    "exponential": (41.6, 1.17, 0.0, 1.0),
    "below": (-0.5, 0.3, 0.0, 1.0),
    "on the end": (1.0, 0.1, 0.0, 1.0),
    "wide support": (1.5, 2.0, -3.0, 7.0),
}


@pytest.fixture(params=LAWS)
def case(request):
    return LAWS[request.param]


def test_density_integrates_to_the_quantiles(case, x64):
    law = TruncatedNormal(*case)
    # Without the outer two of 40 cells, whose width is that of the support.
    ends = np.asarray(law.quantile(np.linspace(1 / 40, 39 / 40, 39)))
    nodes, weights = np.polynomial.legendre.leggauss(20)
    half = np.diff(ends)[:, None] / 2
    density = np.asarray(law.prob((ends[:-1, None] + half) + half * nodes))
    pieces = (half * weights * density).sum(axis=1)
    np.testing.assert_allclose(pieces, 1 / 40, rtol=1e-12)


def test_moments_and_entropy_against_quadrature(case, x64):
    law = TruncatedNormal(*case)
    loc, scale, low, high = case
    nodes, weights = np.polynomial.legendre.leggauss(200)
    reach = [max(low, min(loc, high) - 12 * scale), min(high, max(loc, low) + 12 * scale)]
    half = (reach[1] - reach[0]) / 2
    x = reach[0] + half * (1 + nodes)
    p = half * weights * np.asarray(law.prob(x))
    mean = (p * x).sum()
    np.testing.assert_allclose(law.mean(), mean, rtol=1e-12)
    variance = (p * (x - mean) ** 2).sum()
    np.testing.assert_allclose(law.variance(), variance, rtol=1e-10)
    np.testing.assert_allclose(law.stddev(), np.sqrt(variance), rtol=1e-10)
    entropy = -(p * np.asarray(law.log_prob(x))).sum()
    np.testing.assert_allclose(law.entropy(), entropy, atol=1e-11)
    assert law.mode() == np.clip(loc, low, high)


def test_tails_agree_with_each_other(case, dtype):
    law = TruncatedNormal(*map(dtype, case))
    x = np.linspace(case[2], case[3], 101, dtype=dtype)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(law.cdf(x) + law.survival_function(x), 1, atol=4 * eps)
    np.testing.assert_allclose(np.exp(law.log_cdf(x)), law.cdf(x), rtol=2 * eps)
    np.testing.assert_allclose(
        np.exp(law.log_survival_function(x)), law.survival_function(x), rtol=2 * eps
    )
    assert np.all(np.diff(law.cdf(x)) >= -2 * eps)


@jax.jit
def slopes_of_log_cdf(law, x):
    return jax.vmap(jax.grad(law.log_cdf))(x)


def test_density_is_the_slope_of_the_cdf(case, x64):
    law = TruncatedNormal(*case)
    x = np.asarray(law.quantile(np.linspace(0.01, 0.99, 15)))
    slope = slopes_of_log_cdf(law, x)
    np.testing.assert_allclose(slope, np.exp(law.log_prob(x) - law.log_cdf(x)), rtol=1e-11)


@settings(max_examples=60, deadline=None)
@given(
    u=st.floats(1e-7, 1 - 1e-7),
    loc=st.floats(-60, 60),
    log_scale=st.floats(-3, 2),
)
def test_cdf_undoes_quantile(u, loc, log_scale):
    with jax.enable_x64(True):
        law = TruncatedNormal(loc, 10**log_scale)
        x = law.quantile(u)
        # An x of 16 digits next to 1 holds F to eps * density, no better.
        slack = 8 * np.finfo(float).eps * np.exp(float(law.log_prob(x))) * float(x)
        assert 0 < x < 1 or slack > 1e-9
        np.testing.assert_allclose(law.cdf(x), u, rtol=1e-12, atol=slack)
        np.testing.assert_allclose(law.log_cdf_inverse(np.log(u)), x, rtol=1e-9)


def test_quantile_is_monotone_and_inside(dtype):
    loc = np.linspace(-60, 60, 49, dtype=dtype)[:, None, None]
    scale = np.logspace(-3, 2, 11, dtype=dtype)[:, None]
    u = np.array([0, 1e-30, 1e-7, 0.01, 0.3, 0.5, 0.9, 0.999, 1], dtype)
    x = np.asarray(jax.jit(lambda u: TruncatedNormal(loc, scale).quantile(u))(u))
    assert x.shape == (49, 11, 9)
    assert np.all((x >= 0) & (x <= 1))
    assert np.all(np.diff(x, axis=-1) >= 0)
    assert np.all(x[..., 0] == 0)
    assert np.all(x[..., -1] == 1)


def test_log_cdf_inverse_keeps_the_digits_that_u_cannot(dtype):
    law = TruncatedNormal(dtype(0.5), dtype(0.1))
    log_u = -np.logspace(-20, 2, 23).astype(dtype)
    x = law.log_cdf_inverse(log_u)
    # Rounding of x moves log F by its slope; both are taken from the side that is small.
    slack = np.finfo(dtype).eps * np.exp(law.log_prob(x) - law.log_cdf(x))
    assert np.all(np.abs(law.log_cdf(x) - log_u) <= 64 * (slack + np.finfo(dtype).eps * -log_u))
    np.testing.assert_array_equal(law.log_cdf_inverse(dtype([-np.inf, 0])), [0, 1])
    assert np.isnan(law.log_cdf_inverse(dtype(0.1)))


@pytest.mark.parametrize("seed", [KEY, jax.random.PRNGKey(0)], ids=["key", "old key"])
def test_seeds(seed):
    law = TruncatedNormal(0.8, 0.2)
    x = law.sample(3, seed=seed)
    np.testing.assert_array_equal(x, law.sample(3, seed=seed))
    np.testing.assert_array_equal(x, law.sample(3, seed=KEY))
    assert law.sample(seed=seed).shape == ()


def test_samples_follow_the_law(case, dtype):
    law = TruncatedNormal(*map(dtype, case))
    x = np.asarray(law.sample(20_000, seed=KEY), np.float64)
    assert np.all((x >= case[2]) & (x <= case[3]))
    with jax.enable_x64(True):
        u = np.asarray(TruncatedNormal(*(float(dtype(v)) for v in case)).cdf(x))
    # F(sample) is uniform. Two dtypes of seven laws: a p-value below 1e-5 among the 14 happens to
    # one right program in 7,000.
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-5


def test_samples_are_reparameterised(x64):
    def mean(loc, scale):
        return jnp.mean(TruncatedNormal(loc, scale).sample(20_000, seed=KEY))

    def exact(loc, scale):
        return TruncatedNormal(loc, scale).mean()

    slope, wanted = jax.jit(lambda *p: [jax.grad(f, (0, 1))(*p) for f in (mean, exact)])(0.8, 0.3)
    # Common random numbers on both sides: the standard error of the slope is about 0.003.
    np.testing.assert_allclose(slope, wanted, atol=0.02)
    step = 1e-5
    numeric = numeric_slopes(lambda point: mean(*point), np.array([[0.8, 0.3]]), step)[0]
    np.testing.assert_allclose(slope, numeric, rtol=1e-6)


def test_shapes_broadcast():
    law = TruncatedNormal(np.zeros((3, 1), np.float32), np.ones(4, np.float32))
    assert law.batch_shape == (3, 4)
    assert law.event_shape == ()
    plain = ("mean", "variance", "stddev", "mode", "entropy")
    of_x = ("log_prob", "prob", "cdf", "log_cdf", "survival_function", "quantile")

    def shapes(function):
        return jax.tree.map(lambda part: part.shape, jax.eval_shape(function))

    assert shapes(lambda: law.sample((5, 2), seed=KEY)) == (5, 2, 3, 4)
    assert set(shapes(lambda: [getattr(law, m)() for m in plain])) == {(3, 4)}
    assert set(shapes(lambda: [getattr(law, m)(0.5) for m in of_x])) == {(3, 4)}
    x = np.full((2, 1, 1), 0.5)
    assert set(shapes(lambda: [getattr(law, m)(x) for m in of_x])) == {(2, 3, 4)}
    x = np.full(7, 0.5)
    assert shapes(lambda: TruncatedNormal(0.5, 0.1).log_cdf(x)) == (7,)
    assert shapes(lambda: TruncatedNormal(0.5, np.ones((2, 1))).log_cdf(x)) == (2, 7)


def test_slices_copies_and_names():
    law = TruncatedNormal([0.1, 0.2, 0.3], 0.2, name="scores")
    assert law[1:].batch_shape == (2,)
    np.testing.assert_allclose(law[2].loc, 0.3)
    np.testing.assert_allclose(law[2].mean(), law.mean()[2])
    moved = law.copy(loc=0.9)
    assert moved.batch_shape == ()
    np.testing.assert_allclose(moved.scale, 0.2)
    assert moved.name == "scores"
    assert law.parameters["high"] == 1
    bijector = law.experimental_default_event_space_bijector()
    assert np.all(bijector.forward(np.zeros(3, np.float32)) == 0.5)


def test_distribution_is_a_pytree():
    law = TruncatedNormal(np.array([0.2, 0.9], np.float32), np.float32(0.1), name="scores")
    value = law.log_prob(0.5)
    np.testing.assert_allclose(jax.jit(lambda d: d.log_prob(0.5))(law), value, rtol=1e-6)
    leaves, structure = jax.tree.flatten(law)
    back = jax.tree.unflatten(structure, leaves)
    assert (back.name, back.dtype, back.batch_shape) == ("scores", law.dtype, (2,))
    # Gradients and axes are distributions too, whose scale is no scale.
    slope = jax.grad(lambda d: d.log_prob(0.5).sum())(law)
    assert slope.scale.shape == ()
    assert jax.tree.map(lambda v: -v, law).scale < 0
    batched = jax.tree.map(lambda v: jnp.broadcast_to(v, (2,)), law)
    each = jax.vmap(lambda d: d.log_prob(0.5))(batched)
    np.testing.assert_allclose(each, value, rtol=1e-6)
    axes = jax.tree.unflatten(structure, [0, None, None, None])
    each = jax.vmap(lambda d: d.log_prob(0.5), in_axes=(axes,))(law)
    np.testing.assert_allclose(each, value, rtol=1e-6)

    def step(carry, d):
        return carry + d.cdf(0.5), d.mean()

    total, means = jax.lax.scan(step, 0.0, batched)
    np.testing.assert_allclose(total, law.cdf(0.5).sum(), rtol=1e-5)
    np.testing.assert_allclose(means, law.mean(), rtol=1e-6)


def test_vmap_over_parameters(dtype):
    loc = np.linspace(-2, 2, 5, dtype=dtype)
    value = jax.vmap(lambda m: TruncatedNormal(m, dtype(0.3)).quantile(dtype(0.3)))(loc)
    np.testing.assert_allclose(
        value, TruncatedNormal(loc, dtype(0.3)).quantile(dtype(0.3)), rtol=1e-5
    )


def test_outside_the_support(dtype):
    law = TruncatedNormal(dtype(0.8), dtype(0.2))
    x = np.array([-np.inf, -0.1, 0.0, 1.0, 1.1, np.inf], dtype)
    outside = np.array([True, True, False, False, True, True])
    np.testing.assert_array_equal(np.isneginf(law.log_prob(x)), outside)
    np.testing.assert_array_equal(law.cdf(x), [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(law.survival_function(x), [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(law.log_cdf(x), [-np.inf] * 3 + [0] * 3)
    np.testing.assert_array_equal(law.log_survival_function(x), [0] * 3 + [-np.inf] * 3)

    def evaluate(x, loc, scale):
        d = TruncatedNormal(loc, scale)
        return d.log_prob(x), d.log_cdf(x), d.log_survival_function(x), d.cdf(x)

    slopes = jax.jit(jax.vmap(jax.jacrev(evaluate, (0, 1, 2)), (0, None, None)))
    assert all(np.isfinite(s).all() for s in jax.tree.leaves(slopes(x, law.loc, law.scale)))


def test_next_to_zero_everything_stays_finite(dtype):
    x = np.finfo(dtype).tiny
    loc, scale = np.array([[-60, 0.3, 60]], dtype).T, np.array([1e-3, 1, 100], dtype)

    def evaluate(loc, scale):
        d = TruncatedNormal(loc, scale)
        return jnp.stack([d.log_prob(x), d.log_cdf(x), d.log_survival_function(x)])

    tangents = (np.ones_like(loc), np.ones_like(scale))
    out, slopes = jax.jit(lambda *p: jax.jvp(evaluate, p, tangents))(loc, scale)
    assert np.isfinite(out).all()
    assert np.isfinite(slopes).all()


def test_nan_stays_where_it_is(dtype):
    x = np.array([0.2, np.nan, 0.7], dtype)
    law = TruncatedNormal(dtype(0.8), dtype(0.2))
    bad = TruncatedNormal(x, dtype(0.2))
    wide = TruncatedNormal(dtype(0.8), x)
    methods = ("log_prob", "log_cdf", "cdf", "log_survival_function", "quantile")
    for method in methods:
        clean = getattr(law, method)(np.where(np.isnan(x), dtype(0.5), x))
        for value in (
            getattr(law, method)(x),
            getattr(bad, method)(dtype(0.5)),
            getattr(wide, method)(dtype(0.5)),
        ):
            np.testing.assert_array_equal(np.isnan(value), np.isnan(x), err_msg=method)
        np.testing.assert_array_equal(
            np.asarray(getattr(law, method)(x))[::2], np.asarray(clean)[::2]
        )
    for method in ("mean", "variance", "entropy", "mode"):
        np.testing.assert_array_equal(np.isnan(getattr(bad, method)()), np.isnan(x))
    assert np.isnan(law.quantile(dtype([-0.1, 1.1]))).all()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((0.5, 0.0), "TruncatedNormal: scale must be > 0, found 0.0"),
        ((0.5, -1), "TruncatedNormal: scale must be > 0, found -1"),
        ((0.5, np.array([0.1, -0.2])), "TruncatedNormal: scale must be > 0, found -0.2"),
        ((0.5, [0.1, 0.0]), "TruncatedNormal: scale must be > 0, found 0.0"),
        ((0.5, 0.1, 1.0, 0.0), r"TruncatedNormal: low must be < high, found \[1.0, 0.0\]"),
        ((0.5, 0.1, 0.5, 0.5), r"TruncatedNormal: low must be < high, found \[0.5, 0.5\]"),
        ((0.5, 0.1, [0.0, 2.0], 1.0), r"low must be < high, found \[2.0, 1.0\]"),
    ],
)
def test_bad_parameters_are_one_clear_line(args, message):
    with pytest.raises(ValueError, match=message) as caught:
        TruncatedNormal(*args)
    assert "\n" not in str(caught.value)


def test_traced_parameters_are_not_checked():
    assert np.isfinite(jax.jit(lambda s: TruncatedNormal(0.5, s).log_cdf(0.4))(0.1))


@pytest.mark.parametrize("enabled", [False, True])
def test_types_of_parameters(enabled):
    with jax.enable_x64(enabled):
        default = np.float64 if enabled else np.float32
        assert TruncatedNormal(0.5, 0.1).dtype == default
        assert TruncatedNormal(1, 2).dtype == default
        assert TruncatedNormal(1, 2, 0, 3).mean().dtype == default
        assert TruncatedNormal(np.float64(0.5), 0.1).dtype == default
        assert TruncatedNormal([0.5, 0.6], 0.1).dtype == default
        single = TruncatedNormal(np.float32(0.5), 0.1)
        assert single.dtype == np.float32
        for value in (0.3, 1, np.float32(0.3), np.array([0.3], np.float32), [0.3, 0.4]):
            for method in (single.log_prob, single.quantile):
                assert jax.eval_shape(method, value).dtype == np.float32
        assert single.log_cdf_inverse(-0.3).dtype == np.float32
        assert single.sample(3, seed=KEY).dtype == np.float32
        # Half precision holds no score next to 1: it is computed with, and answered, in float32.
        for half in (jnp.bfloat16, np.float16):
            assert TruncatedNormal(jnp.asarray(0.5, half), 0.1).dtype == np.float32


def test_no_warnings_under_jit():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law = TruncatedNormal(-60.0, 1e-3)
        jax.jit(lambda d: (d.log_cdf(0.5), d.quantile(0.5), d.entropy()))(law)


def test_agrees_with_scipy_where_scipy_is_right(x64):
    loc, scale = 0.8, 0.2
    law, other = TruncatedNormal(loc, scale), scipy.stats.truncnorm(-4, 1, loc, scale)
    x = np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(law.log_prob(x), other.logpdf(x), rtol=1e-12)
    np.testing.assert_allclose(law.cdf(x), other.cdf(x), rtol=1e-11)
    area, _ = scipy.integrate.quad(lambda v: float(law.prob(v)), 0, 1)
    np.testing.assert_allclose(area, 1, rtol=1e-9)
