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


SPIKES = [0.0, 0.5, 1.0, 0.9999995]


def spikes(dtype):
    """11 points each of the laws that the fits' floor on the scale produces."""
    loc, scale = np.repeat(np.array(SPIKES, dtype), 11), np.full(44, 1e-6, dtype)
    x = np.clip(loc + np.tile(np.linspace(-5e-6, 5e-6, 11), 4), 1e-9, 1 - 1e-7).astype(dtype)
    levels = np.tile(np.linspace(0.01, 0.99, 11), 4).astype(dtype)
    return x, levels, loc, scale, np.zeros(44, dtype), np.ones(44, dtype)


@pytest.fixture(scope="module")
def accuracy(dtype):
    """(points, then values and errors, jitted and plain): 400 random ones, hard cases, spikes."""
    points = TRUNCATED_NORMAL.points(400, dtype), spikes(dtype)
    points = tuple(map(np.concatenate, zip(*points, strict=True)))
    on_device = tuple(map(jnp.asarray, points))
    exact = reference(TRUNCATED_NORMAL, points, points[1])
    plain = columns(TRUNCATED_NORMAL)
    both = [made(*on_device) for made in (jax.jit(plain), plain)]
    return points, [(found, errors(TRUNCATED_NORMAL, points, found, exact)) for found in both]


@pytest.mark.exact
@pytest.mark.parametrize("column", Reference._fields)
@pytest.mark.parametrize("compiled", [True, False], ids=["jit", "plain"])
def test_every_point_is_within_tolerance(column, compiled, accuracy, dtype):
    points, (jitted, plain) = accuracy
    found, every = jitted if compiled else plain
    value, error = np.asarray(getattr(found, column)), every[column].copy()
    assert value.dtype == dtype
    # A spike's gradients are of size 1 / scale.
    error[-44:] /= 1e6 if column in GRADIENTS else 1.0
    tolerance = getattr(TOLERANCES[np.dtype(dtype)], column)
    worst = int(np.argmax(error))
    point = [float(v[worst]) for v in points]
    names = "x, u, loc, scale, low, high"
    assert error[worst] <= tolerance, f"{column} at {names} = {point} is {value[worst]}"


# Exactly at a mode on an end of the support (where branches meet), inside, outside, and wide.
POINTS = np.array(
    [
        (0.4, loc, scale, 0.0, 1.0)
        for loc, scale in [(0, 0.3), (1, 0.05), (0.3, 0.2), (-0.4, 0.2), (1.7, 0.5), (0.4, 30)]
    ]
)
METHODS = ("log_prob", "log_cdf", "log_survival_function", "quantile")


@jax.jit
@jax.vmap
def derivatives(point):
    """Values, gradients and second derivatives of all METHODS in (x, loc, scale, low, high)."""

    def values(point):
        law = TruncatedNormal(*point[1:])
        return jnp.stack([getattr(law, method)(point[0]) for method in METHODS])

    def with_gradient(point):
        value, pull = jax.vjp(values, point)
        gradient = jax.vmap(pull)(jnp.eye(len(METHODS)))[0]
        return gradient, (value, gradient)

    second, (value, gradient) = jax.jacfwd(with_gradient, has_aux=True)(point)
    return value, gradient, second


def hard_points():
    loc, scale, low, high = np.array(list(HARD_CASES.values())).T
    x = np.clip(loc, low, high - 0.3 * (high - low)) + 0.1 * (high - low)
    return np.stack([x, loc, scale, low, high], axis=1)


def test_derivatives_in_everything(x64):
    def of(points):
        # One shape for the points, moved or not, and for the hard cases.
        filled = np.concatenate([points, hard_points()[: 25 - len(points)]])
        return [np.asarray(v)[: len(points)] for v in derivatives(filled)]

    def slopes(order, step):
        """Central differences of a derivative, [points, methods, ..., arguments]."""
        moves = step * np.eye(5)
        rows = [(of(POINTS + m)[order] - of(POINTS - m)[order]) / (2 * step) for m in moves]
        return np.stack(rows, axis=-1)

    _, first, second = of(POINTS)
    numeric_first, numeric_second = slopes(0, 1e-5), slopes(1, 3e-6)
    for i, method in enumerate(METHODS):
        atol = 1e-6 * np.abs(first[:, i]).max()
        np.testing.assert_allclose(
            first[:, i], numeric_first[:, i], rtol=1e-5, atol=atol, err_msg=method
        )
        mine = second[:, i]
        size = np.abs(mine).max(axis=(1, 2), keepdims=True)
        # Differences across the point where branches meet are good to the step itself.
        assert np.all(np.abs(mine - numeric_second[:, i]) <= 1e-4 * size), method
        np.testing.assert_allclose(
            mine, mine.swapaxes(1, 2), atol=1e-8 * size.max(), err_msg=method
        )
    _, _, second = of(hard_points())
    for name, rows in zip(HARD_CASES, second, strict=True):
        assert np.isfinite(rows[:2, :3, :3]).all(), name


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


OF_X = ("log_prob", "prob", "cdf", "log_cdf", "survival_function", "log_survival_function")
OF_LAW = ("mean", "variance", "stddev", "mode", "entropy")


@jax.jit
def all_methods(law, x, u, log_u):
    found = {name: getattr(law, name)(x) for name in OF_X}
    found |= {name: getattr(law, name)() for name in OF_LAW}
    return found | {"quantile": law.quantile(u), "log_cdf_inverse": law.log_cdf_inverse(log_u)}


SIZE = 5400


def evaluate(params, x=0.5, u=0.5, log_u=-0.5, *, dtype=np.float64):
    """All methods of laws of `params`, which broadcast against x, u and log_u.

    Every test asks for as many values, so that they compile once a precision.
    """
    given = [np.asarray(v, dtype) for v in (*[*params, 0.0, 1.0][:4], x, u, log_u)]
    given = np.broadcast_arrays(*given)
    shape, size = given[0].shape, given[0].size
    *law, x, u, log_u = (np.resize(v, SIZE) for v in given)
    found = all_methods(TruncatedNormal(*law), x, u, log_u)
    for value in found.values():
        assert value.dtype == dtype
    return {name: np.asarray(value)[:size].reshape(shape) for name, value in found.items()}


TABLE = np.array(list(LAWS.values())).T[:, :, None]  # columns, to broadcast against rows


def assert_rows_close(actual, expected, **tolerance):
    for name, one, other in zip(LAWS, actual, np.broadcast_to(expected, actual.shape), strict=True):
        np.testing.assert_allclose(one, other, **tolerance, err_msg=name)


def test_density_integrates_to_the_quantiles(x64):
    # Without the outer two of 40 cells, whose width is that of the support.
    ends = evaluate(TABLE, u=np.linspace(1 / 40, 39 / 40, 39))["quantile"][..., None]
    nodes, weights = np.polynomial.legendre.leggauss(20)
    half = np.diff(ends, axis=1) / 2
    x = (ends[:, :-1] + half) + half * nodes
    density = evaluate(TABLE[..., None], x)["prob"]
    assert_rows_close((half * weights * density).sum(axis=-1), 1 / 40, rtol=1e-12)


def test_moments_and_entropy_against_quadrature(x64):
    loc, scale, low, high = TABLE
    nodes, weights = np.polynomial.legendre.leggauss(200)
    start = np.maximum(low, np.minimum(loc, high) - 12 * scale)
    half = (np.minimum(high, np.maximum(loc, low) + 12 * scale) - start) / 2
    x = start + half * (1 + nodes)
    law = evaluate(TABLE, x)
    p = half * weights * law["prob"]
    mean = (p * x).sum(1, keepdims=True)
    assert_rows_close(law["mean"], mean, rtol=1e-12)
    variance = (p * (x - mean) ** 2).sum(1, keepdims=True)
    assert_rows_close(law["variance"], variance, rtol=1e-10)
    assert_rows_close(law["stddev"], np.sqrt(variance), rtol=1e-10)
    entropy = -(p * law["log_prob"]).sum(1, keepdims=True)
    assert_rows_close(law["entropy"], entropy, atol=1e-11)
    assert_rows_close(law["mode"], np.clip(loc, low, high), rtol=0)


def test_tails_agree_with_each_other(dtype):
    x = np.linspace(TABLE[2, :, 0], TABLE[3, :, 0], 101, axis=1, dtype=dtype)
    law, eps = evaluate(TABLE, x, dtype=dtype), np.finfo(dtype).eps
    cdf, survival = law["cdf"], law["survival_function"]
    assert_rows_close(cdf + survival, 1, atol=4 * eps)
    assert_rows_close(np.exp(law["log_cdf"]), cdf, rtol=2 * eps)
    assert_rows_close(np.exp(law["log_survival_function"]), survival, rtol=2 * eps)
    assert np.all(np.diff(cdf) >= -2 * eps)


def test_density_is_the_slope_of_the_cdf(x64):
    # One point of each law at a time: the shape of the derivatives' other test.
    for level in np.linspace(0.01, 0.99, 15):
        x = evaluate(TABLE, u=level)["quantile"]
        law = evaluate(TABLE, x)
        points = np.concatenate([x, *TABLE], axis=1)
        first = derivatives(np.resize(points, (25, 5)))[1][:7, 1, :1]
        assert_rows_close(first, np.exp(law["log_prob"] - law["log_cdf"]), rtol=1e-11)


@settings(max_examples=60)
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
    x = evaluate((loc, scale), u=u, dtype=dtype)["quantile"]
    assert x.shape == (49, 11, 9)
    assert np.all((x >= 0) & (x <= 1))
    assert np.all(np.diff(x, axis=-1) >= 0)
    assert np.all(x[..., 0] == 0)
    assert np.all(x[..., -1] == 1)


def test_log_cdf_inverse_keeps_the_digits_that_u_cannot(dtype):
    log_u = -np.logspace(-20, 2, 23).astype(dtype)
    x = evaluate((0.5, 0.1), log_u=log_u, dtype=dtype)["log_cdf_inverse"]
    law = evaluate((0.5, 0.1), x, dtype=dtype)
    # Rounding of x moves log F by its slope; both are taken from the side that is small.
    slack = np.finfo(dtype).eps * np.exp(law["log_prob"] - law["log_cdf"])
    assert np.all(np.abs(law["log_cdf"] - log_u) <= 64 * (slack + np.finfo(dtype).eps * -log_u))
    ends = evaluate((0.5, 0.1), log_u=[-np.inf, 0, 0.1], dtype=dtype)["log_cdf_inverse"]
    np.testing.assert_array_equal(ends, [0, 1, np.nan])


@pytest.mark.parametrize("seed", [KEY, jax.random.PRNGKey(0)], ids=["key", "old key"])
def test_seeds(seed):
    law = TruncatedNormal(0.8, 0.2)
    x = law.sample(3, seed=seed)
    np.testing.assert_array_equal(x, law.sample(3, seed=seed))
    np.testing.assert_array_equal(x, law.sample(3, seed=KEY))
    assert law.sample(seed=seed).shape == ()


@pytest.fixture(params=LAWS)
def case(request):
    return LAWS[request.param]


def test_samples_follow_the_law(case, dtype):
    law = TruncatedNormal(*map(dtype, case))
    x = np.asarray(law.sample(SIZE, seed=KEY), np.float64)
    assert np.all((x >= case[2]) & (x <= case[3]))
    with jax.enable_x64(True):
        u = evaluate([float(dtype(v)) for v in case], x)["cdf"]
    # F(sample) is uniform. Two dtypes of seven laws: a p-value below 1e-5 among the 14 happens to
    # one right program in 7,000.
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-5


def test_samples_are_reparameterised(x64):
    def mean(loc, scale):
        return jnp.mean(TruncatedNormal(loc, scale).sample(20_000, seed=KEY))

    def exact(loc, scale):
        return TruncatedNormal(loc, scale).mean()

    @jax.jit
    def both(*p):
        return mean(*p), [jax.grad(f, (0, 1))(*p) for f in (mean, exact)]

    _, (slope, wanted) = both(0.8, 0.3)
    # Common random numbers on both sides: the standard error of the slope is about 0.003.
    np.testing.assert_allclose(slope, wanted, atol=0.02)
    step = 1e-5
    moved = [both(0.8 + a, 0.3 + b)[0] for a, b in ((step, 0), (-step, 0), (0, step), (0, -step))]
    numeric = np.subtract(moved[::2], moved[1::2]) / (2 * step)
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
    want = evaluate((loc, 0.3), u=0.3, dtype=dtype)["quantile"]
    np.testing.assert_allclose(value, want, rtol=1e-5)


def test_outside_the_support(dtype):
    x = np.array([-np.inf, -0.1, 0.0, 1.0, 1.1, np.inf], dtype)
    law = evaluate((0.8, 0.2), x, dtype=dtype)
    outside = np.array([True, True, False, False, True, True])
    np.testing.assert_array_equal(np.isneginf(law["log_prob"]), outside)
    np.testing.assert_array_equal(law["cdf"], [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(law["survival_function"], [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(law["log_cdf"], [-np.inf] * 3 + [0] * 3)
    np.testing.assert_array_equal(law["log_survival_function"], [0] * 3 + [-np.inf] * 3)


def test_outside_and_next_to_zero_derivatives_stay_finite(dtype):
    def values(x, loc, scale):
        d = TruncatedNormal(loc, scale)
        return jnp.stack([d.log_prob(x), d.log_cdf(x), d.log_survival_function(x), d.cdf(x)])

    @jax.jit
    @jax.vmap
    def evaluate(*point):
        return values(*point), jax.jacrev(values, (0, 1, 2))(*point)

    outside = [(x, 0.8, 0.2) for x in (-np.inf, -0.1, 0.0, 1.0, 1.1, np.inf)]
    tiny = np.finfo(dtype).tiny
    near = [(tiny, loc, scale) for loc in (-60, 0.3, 60) for scale in (1e-3, 1, 100)]
    out, slopes = evaluate(*np.array(outside + near, dtype).T)
    assert np.isfinite(out[len(outside) :, :3]).all()
    assert np.isfinite(slopes).all()


def test_nan_stays_where_it_is(dtype):
    x = np.array([0.2, np.nan, 0.7], dtype)
    # x itself, loc or scale.
    params = np.array([0.8, *x, 0.8, 0.8, 0.8]), np.array([0.2, 0.2, 0.2, 0.2, *x])
    of_law = np.broadcast_to(np.isnan(params).any(0), (3, 7))
    lost = dict.fromkeys(OF_LAW, of_law) | {"mode": of_law & np.isnan(params[0])}
    found = evaluate(params, x[:, None], x[:, None], -x[:, None], dtype=dtype)
    other = np.where(np.isnan(x), 0.5, x)[:, None]
    clean = evaluate(np.where(np.isnan(params), 0.5, params), other, other, -other, dtype=dtype)
    for method, value in found.items():
        missing = lost.get(method, of_law | np.isnan(x)[:, None])
        np.testing.assert_array_equal(np.isnan(value), missing, err_msg=method)
        np.testing.assert_array_equal(value[~missing], clean[method][~missing], err_msg=method)
    outside = evaluate((0.8, 0.2), u=[-0.1, 1.1], dtype=dtype)["quantile"]
    assert np.isnan(outside).all()


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
    found = evaluate((loc, scale), x)
    np.testing.assert_allclose(found["log_prob"], other.logpdf(x), rtol=1e-12)
    np.testing.assert_allclose(found["cdf"], other.cdf(x), rtol=1e-11)
    area, _ = scipy.integrate.quad(lambda v: float(law.prob(v)), 0, 1)
    np.testing.assert_allclose(area, 1, rtol=1e-9)
