"""Statistics against NumPy's own, fits against SciPy's optimum of an objective written here."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from optscale_jax import TruncatedNormal
from optscale_jax.estimation import (
    MIN_SCALE,
    Boundary,
    Params,
    Prior,
    ScoreStats,
    fit_map,
    fit_mle,
    negative_log_likelihood,
    negative_log_prior,
)

COUNTS = (3, 5, 10, 20, 64)
# What issue and README state: our objective never exceeds SciPy's by more than this, relatively.
OBJECTIVE_RTOL = 1e-6


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"], scope="module")
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# --- The objective, without the library's code -----------------------------------------------

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(80)


def truncated_moments(loc, scale):
    """(log Z, E[x - mode], E[(x - mode)^2], mode), Z the integral of the kernel over its peak."""
    mode = min(max(loc, 0.0), 1.0)
    slope = (mode - loc) / scale**2
    points, masses = [], []
    for width in (-mode, 1.0 - mode):
        uphill = width * slope < 0  # leads out of the support, unless the width is 0
        if width != 0 and not uphill:
            # Beyond 40 units of the exponent there is less than 1e-17 of the mass.
            reach = 80.0 / (abs(slope) + np.sqrt(slope**2 + 80.0 / scale**2))
            reach = np.sign(width) * min(abs(width), reach)
            t = 0.5 * reach * (_NODES + 1)
            points.append(t)
            weights = 0.5 * abs(reach) * _WEIGHTS
            masses.append(weights * np.exp(-t * (slope + 0.5 * t / scale**2)))
    t, mass = np.concatenate(points), np.concatenate(masses)
    total = mass.sum()
    return np.log(total), mass @ t / total, mass @ t**2 / total, mode


def objective_and_gradient(loc, scale, n, mean, m2, prior=None):
    """Negative log posterior but for n log sqrt(2 pi), with d/dloc and d/dlog(scale)."""
    log_z, first, second, mode = truncated_moments(loc, scale)
    offset = mean - mode
    value = (0.5 * m2 + n * offset * (0.5 * offset + mode - loc)) / scale**2 + n * log_z
    by_loc = n * (first - offset) / scale**2
    by_log_scale = (n * (second - offset**2 + 2 * (mode - loc) * (first - offset)) - m2) / scale**2
    if prior is not None:
        p_loc, p_scale, loc_sd, scale_sd = prior
        z_loc, z_scale = (loc - p_loc) / loc_sd, (scale - p_scale) / scale_sd
        value += 0.5 * (z_loc**2 + z_scale**2) + np.log(2 * np.pi * loc_sd * scale_sd)
        by_loc += z_loc / loc_sd
        by_log_scale += z_scale * scale / scale_sd
    return value, np.array([by_loc, by_log_scale])


def objective(*args):
    return objective_and_gradient(*args)[0]


@pytest.mark.parametrize(("loc", "scale"), [(0.8, 0.2), (1.2, 0.1), (-0.3, 0.5), (0.5, 0.01)])
def test_the_objective_of_these_tests_is_scipys(loc, scale):
    rng = np.random.default_rng(0)
    x = np.clip(loc + scale * rng.standard_normal(20), 0.01, 0.99)
    law = scipy.stats.truncnorm(-loc / scale, (1 - loc) / scale, loc, scale)
    statistics = (x.size, x.mean(), np.sum((x - x.mean()) ** 2), (0.5, 0.3, 0.2, 0.1))
    exact = -law.logpdf(x).sum()
    exact -= scipy.stats.norm.logpdf([loc, scale], [0.5, 0.3], [0.2, 0.1]).sum()
    assert objective(loc, scale, *statistics) == pytest.approx(exact, rel=1e-11)

    def of_log_scale(point):
        return objective_and_gradient(point[0], np.exp(point[1]), *statistics)

    point = np.array([loc, np.log(scale)])
    numeric = scipy.optimize.approx_fprime(point, lambda p: of_log_scale(p)[0], 1e-7)
    gradient = of_log_scale(point)[1]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-4 * np.abs(gradient).max())


def scipy_optimum(n, mean, m2, starts, prior=None):
    """Least objective that L-BFGS-B finds from several starts."""

    def of_log_scale(point):
        return objective_and_gradient(point[0], np.exp(point[1]), n, mean, m2, prior)

    bounds = [(None, None), (np.log(MIN_SCALE), np.log(1e4))]
    found = [
        scipy.optimize.minimize(
            of_log_scale,
            (loc, np.log(max(scale, MIN_SCALE))),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            # Along the exponential limit it would creep on for thousands of evaluations.
            options={"maxfun": 200},
        ).fun
        for loc, scale in starts
    ]
    return min(found)


# --- Problems ----------------------------------------------------------------------------------


def draws(kind, n, rng):
    """n scores as verifiers give them."""
    if kind == "truncated normal":
        loc, scale = rng.uniform(-0.3, 1.3), 10 ** rng.uniform(-2.5, 0)
        u = rng.random(n)
        lo, hi = scipy.stats.norm.cdf([-loc / scale, (1 - loc) / scale])
        return np.clip(loc + scale * scipy.stats.norm.ppf(lo + u * (hi - lo)), 0, 1)
    if kind == "beta":
        return rng.beta(*(10 ** rng.uniform(-0.8, 1.5, 2)), size=n)
    if kind == "clusters":
        return np.clip(rng.choice([0.1, 0.92], n) + 0.01 * rng.standard_normal(n), 0, 1)
    if kind == "outlier":
        x = 0.97 + 0.01 * rng.random(n)
        x[0] = 0.05
        return x
    if kind == "tiny spread near 1":
        return 1 - 10 ** rng.uniform(-4, -2) * rng.random(n)
    if kind == "near the end":
        return 1 - 1e-5 * rng.exponential(size=n)
    if kind == "judge":
        return rng.binomial(32, rng.beta(4, 1.5), size=n) / 32
    if kind == "half ones":
        x = rng.beta(5, 1, size=n)
        x[: n // 2 + 1] = 1.0
        return rng.permutation(x)
    raise AssertionError(kind)


KINDS = (
    "truncated normal",
    "beta",
    "clusters",
    "outlier",
    "tiny spread near 1",
    "near the end",
    "judge",
    "half ones",
)


class Cases(NamedTuple):
    names: list
    n: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    prior: np.ndarray  # [cases, 4]


@pytest.fixture(scope="module")
def cases():
    """Statistics of many score sets, exact in float32, and a prior for each."""
    rng = np.random.default_rng(1)
    names, rows, priors = [], [], []
    for kind in KINDS:
        for n in (2, *COUNTS):
            for _ in range(3):
                x = draws(kind, n, rng).astype(np.float32)
                stats = ScoreStats.from_scores(x)
                names.append(f"{kind}, n = {n}")
                rows.append([float(v) for v in (stats.n, stats.mean, stats.m2)])
                wild = rng.random() < 0.4
                priors.append(
                    [
                        rng.normal(x.mean(), 0.5 if wild else 0.15),
                        10 ** rng.uniform(-2, 0),
                        10 ** rng.uniform(-2, 1) if wild else 0.1,
                        10 ** rng.uniform(-2, 0) if wild else 0.1,
                    ]
                )
    # Statistics of a million scores, which no array has to hold.
    for mean, sd in ((0.7, 0.2), (0.99, 0.01), (0.995, 1e-4), (0.5, 0.2886)):
        names.append(f"a million, mean {mean}, sd {sd}")
        rows.append([1e6, *map(float, np.float32([mean, 1e6 * sd**2]))])
        priors.append([0.5, 0.3, 0.1, 0.1])
    n, mean, m2 = np.array(rows).T
    return Cases(names, n, mean, m2, np.float32(priors).astype(float))


# L-BFGS-B stops where the objective moves by 2e-9 of itself; the better of its runs is compared.
@pytest.fixture(scope="module")
def scipy_mle(cases):
    return np.array(
        [
            scipy_optimum(n, mean, m2, [(mean, np.sqrt(m2 / n)), (0.8, 0.2)])
            for n, mean, m2 in zip(cases.n, cases.mean, cases.m2, strict=True)
        ]
    )


@pytest.fixture(scope="module")
def scipy_map(cases):
    """From four starts: the posterior can have two modes."""
    best = []
    for n, mean, m2, p in zip(cases.n, cases.mean, cases.m2, cases.prior, strict=True):
        bridge = max(abs(mean - p[0]), 0.01)
        starts = [(p[0], p[1]), (mean, np.sqrt(m2 / n)), (p[0], bridge), (mean, bridge)]
        best.append(scipy_optimum(n, mean, m2, starts, p))
    return np.array(best)


_BATCH = 160


def fit(stats, prior=None, **interval):
    """`fit_mle` or `fit_map` of up to _BATCH statistics: one shape, so that each compiles once."""
    shape = jnp.shape(stats.mean)
    size = int(np.prod(shape))
    dtype = stats.mean.dtype

    # In NumPy, whose operations are not compiled anew for every shape.
    def pad(v):
        v = np.broadcast_to(np.asarray(v, dtype), shape).reshape(-1)
        return np.pad(v, (0, _BATCH - size), constant_values=0.5)

    def cut(v):
        return np.asarray(v)[:size].reshape(shape)

    stats = jax.tree.map(pad, stats)
    if prior is None:
        result = jax.jit(fit_mle)(stats, **interval)
    else:
        result = jax.jit(fit_map)(stats, jax.tree.map(pad, prior), **interval)
    return jax.tree.map(cut, result)


def library_stats(cases, dtype):
    return ScoreStats(*(jnp.asarray(v, dtype) for v in (cases.n, cases.mean, cases.m2)))


def excess(cases, params, best, priors=None):
    """By how much our objective is above SciPy's, relative to it."""
    ours = np.array(
        [
            objective(float(loc), float(scale), n, mean, m2, prior)
            for loc, scale, n, mean, m2, prior in zip(
                *params,
                cases.n,
                cases.mean,
                cases.m2,
                priors if priors is not None else [None] * cases.n.size,
                strict=True,
            )
        ]
    )
    return (ours - best) / np.abs(best)


@pytest.mark.exact
def test_fit_mle_is_never_above_scipy(cases, scipy_mle, dtype):
    params, info = fit(library_stats(cases, dtype))
    # A fit without spread, all scores equal to an end, has no optimum: the density there is
    # unbounded, and how far an optimiser follows it says nothing.
    judged = (cases.m2 > 0) | ((cases.mean > 0) & (cases.mean < 1))
    assert np.isfinite(np.asarray(params)).all()
    above = np.where(judged, excess(cases, params, scipy_mle), 0.0)
    worst = above.argmax()
    assert above[worst] < OBJECTIVE_RTOL, (cases.names[worst], above[worst])
    # The Newton step that is left: the square of it is what the objective could still gain.
    interior = np.asarray(info.boundary) == Boundary.NONE
    assert np.asarray(info.gradient)[interior].max() < 1e-3


@pytest.mark.exact
def test_fit_map_is_never_above_scipy(cases, scipy_map, dtype):
    prior = Prior(*jnp.asarray(cases.prior.T, dtype))
    params, _ = fit(library_stats(cases, dtype), prior)
    assert np.isfinite(np.asarray(params)).all()
    # Rounding of loc to float32 costs n (eps / scale)^2 / 8: visible at scales below 1e-5 only.
    judged = (cases.m2 > 0) & (np.asarray(params.scale) > 1e-5)
    assert judged.mean() > 0.9
    above = np.where(judged, excess(cases, params, scipy_map, cases.prior), 0.0)
    worst = above.argmax()
    assert above[worst] < OBJECTIVE_RTOL, (cases.names[worst], cases.prior[worst], above[worst])


def objective_of(stats, params, prior=None):
    value = negative_log_likelihood(stats, params)
    return value if prior is None else value + negative_log_prior(params, prior)


def profile(stats, prior, scale):
    """The least posterior objective of a problem at a scale: convex in loc, by ternary search."""

    def at(loc):
        return objective_of(stats, Params(loc, scale), prior)

    def shrink(_, ends):
        low, high = ends
        left, right = low + (high - low) / 3, high - (high - low) / 3
        lower = at(left) < at(right)
        return jnp.where(lower, low, left), jnp.where(lower, right, high)

    # The optimum is between the prior's loc and wherever the scores pull it.
    far = 20 * prior.loc_sd + 10
    low, high = jax.lax.fori_loop(0, 60, shrink, (prior.loc - far, prior.loc + far))
    return at(0.5 * (low + high))


def test_the_lower_of_two_modes_is_found(x64):
    """Priors of every width and place, far from the scores too, against a scan of 60 scales.

    The docstring claims that 2 problems in 32,000 are missed; 2,000 are looked at.
    """
    rng, count = np.random.default_rng(8), 2000
    n = rng.choice([2, 3, 5, 10, 20, 64], count)
    centre, width = rng.uniform(0, 1, count), np.exp(rng.uniform(np.log(0.005), 0, count))
    scores = np.clip(rng.normal(centre[:, None], width[:, None], (count, 64)), 0.001, 0.999)
    stats = ScoreStats.from_scores(scores, np.arange(64) < n[:, None])
    prior = Prior(
        rng.uniform(-2, 3, count),
        np.exp(rng.uniform(np.log(0.01), np.log(2), count)),
        np.exp(rng.uniform(np.log(0.01), np.log(10), count)),
        np.exp(rng.uniform(np.log(0.01), 0, count)),
    )
    params, _ = fit_map(stats, prior)
    ours = jax.jit(objective_of)(stats, params, prior)
    scales = jnp.geomspace(1e-3, 30, 60)
    find = jax.jit(lambda scale: profile(stats, prior, scale))
    # Any scale's optimum is above the posterior's but for rounding.
    least = np.min([find(scale) for scale in scales], axis=0)
    assert np.sum(np.asarray(ours) - least > 1e-6 * (1 + np.abs(least))) <= 1


def strange(name, count, rng):
    """(scores [count, 64], how many of each are seen, prior) of problems that are hard for MAP."""
    n = rng.choice([2, 3, 5, 10, 20, 64], count)
    scores = rng.beta(*(10 ** rng.uniform(-0.5, 1.5, (2, count, 1))), size=(count, 64))
    loc, scale = rng.uniform(0, 1, count), np.exp(rng.uniform(np.log(0.02), np.log(0.6), count))
    loc_sd, scale_sd = np.full((2, count), 0.1)
    if name == "prior far from the scores":
        loc = rng.uniform(-5, 6, count)
    elif name == "few scores":
        n = rng.choice([1, 2, 3], count)
    elif name == "scores at 0 and 1":
        scores = np.where(rng.random((count, 64)) < 0.7, np.round(scores), scores)
    elif name == "strong prior":
        loc_sd, scale_sd = 10 ** rng.uniform(-4, -2, (2, count))
    elif name == "weak prior":
        loc_sd, scale_sd = 10 ** rng.uniform(0, 2, (2, count))
    elif name == "scores next to an end":
        scores = 1 - 10 ** rng.uniform(-4, -1, (count, 1)) * scores
    return scores, n, Prior(loc, scale, loc_sd, scale_sd)


STRANGE = (
    "prior far from the scores",
    "few scores",
    "scores at 0 and 1",
    "strong prior",
    "weak prior",
    "scores next to an end",
)


def test_map_is_never_above_a_dense_grid(dtype):
    rng, count = np.random.default_rng(11), 100
    scores, n, priors = zip(*(strange(name, count, rng) for name in STRANGE), strict=True)
    scores, n = np.concatenate(scores).astype(np.float32), np.concatenate(n)
    # Exact in float32, so that both precisions have the same problems.
    prior = jax.tree.map(lambda *each: np.concatenate(each).astype(np.float32), *priors)
    rounded = ScoreStats.from_scores(scores, np.arange(64) < n[:, None])
    stats, prior = jax.tree.map(lambda v: jnp.asarray(np.asarray(v), dtype), (rounded, prior))
    params, _ = fit_map(stats, prior)
    with jax.enable_x64(True):
        stats, prior, params = jax.tree.map(
            lambda v: jnp.asarray(np.asarray(v), jnp.float64), (stats, prior, params)
        )
        ours = np.asarray(jax.jit(objective_of)(stats, params, prior))
        find = jax.jit(lambda scale: profile(stats, prior, scale))
        least = np.min([find(scale) for scale in np.geomspace(MIN_SCALE, 300, 100)], axis=0)
    # What rounding of a law's loc alone can cost, at scales of a few units of it.
    loc, scale = map(np.asarray, params)
    rounding = n * (np.finfo(dtype).eps * (1 + np.abs(loc)) / scale) ** 2
    above = (ours - least - rounding) / (1 + np.abs(least))
    worst = above.argmax()
    assert above[worst] < OBJECTIVE_RTOL, (STRANGE[worst // count], above[worst])


def test_reported_objective_is_the_objective(cases, dtype):
    stats, prior = library_stats(cases, dtype), Prior(*jnp.asarray(cases.prior.T, dtype))
    spread = cases.m2 > 0
    mle, mle_info = fit(stats)
    posterior, map_info = fit(stats, prior)
    with jax.enable_x64(True):
        exact = ScoreStats(*map(jnp.float64, (cases.n, cases.mean, cases.m2)))
        wide = [
            Params(*(jnp.asarray(np.asarray(v), jnp.float64) for v in p)) for p in (mle, posterior)
        ]
        belief = Prior(*jnp.asarray(cases.prior.T))
        of = jax.jit(objective_of)
        values = [np.asarray(of(exact, *p)) for p in ((wide[0],), (wide[1], belief))]
    own = [
        objective(*map(float, p), *row)
        for p, row in zip(
            zip(*wide[0], strict=True), zip(cases.n, cases.mean, cases.m2, strict=True), strict=True
        )
    ]
    np.testing.assert_allclose(values[0][spread], np.array(own)[spread], rtol=1e-9, atol=1e-9)
    # float32: the objective is a sum of terms of the size of n log(scale), each rounded.
    rtol = 1e-5 if dtype is np.float32 else 1e-9
    judged = spread & (np.asarray(mle.scale) > 1e-4) & (np.asarray(posterior.scale) > 1e-4)
    for info, value in ((mle_info, values[0]), (map_info, values[1])):
        size = np.abs(value) + cases.n
        off = np.abs(np.asarray(info.objective, np.float64) - value) / size
        assert off[judged].max() < rtol


# --- Boundaries --------------------------------------------------------------------------------


def test_boundaries_are_named(dtype):
    two = ScoreStats.from_scores(np.array([[0.2, 0.8], [0.7, 0.7]], dtype))
    one = ScoreStats.from_scores(np.array([0.3], dtype))
    none = ScoreStats.empty(dtype)
    # Wider than uniform, and an exponential's mean with an exponential's spread and more.
    wide = ScoreStats.from_scores(np.array([0.0, 0.0, 1.0, 1.0], dtype))
    steep = ScoreStats.from_scores(np.array([1.0, 1.0, 1.0, 1.0, 0.9], dtype))
    inside = ScoreStats.from_scores(np.array([0.5, 0.6, 0.65, 0.4], dtype))

    def boundary(stats):
        return fit(stats)[1].boundary.tolist()

    assert boundary(two) == [Boundary.EXPONENTIAL_LIMIT, Boundary.SCALE_FLOOR]
    assert boundary(one) == Boundary.SCALE_FLOOR
    assert boundary(none) == Boundary.NO_SCORES
    assert boundary(wide) == Boundary.EXPONENTIAL_LIMIT
    assert boundary(steep) == Boundary.EXPONENTIAL_LIMIT
    assert boundary(inside) == Boundary.NONE

    params, _ = fit(one)
    # The floor is MIN_SCALE, and the law sits on the score to rounding.
    assert float(params.scale) == pytest.approx(MIN_SCALE, rel=1e-5)
    assert float(params.loc) == pytest.approx(0.3, abs=1e-6)
    assert np.isnan(np.asarray(fit(none)[0])).all()


def test_map_without_spread_or_scores(dtype):
    prior = Prior(*map(dtype, (0.6, 0.3, 0.1, 0.1)))
    params, info = fit(ScoreStats.empty(dtype), prior)
    assert info.boundary == Boundary.NO_SCORES
    np.testing.assert_array_equal(np.asarray(params), np.array([0.6, 0.3], dtype))
    # Ten equal scores far inside: the likelihood gains log(1 / scale) each, the prior loses 4.5.
    params, info = fit(ScoreStats.from_scores(np.full(10, 0.55, dtype)), prior)
    assert info.boundary == Boundary.SCALE_FLOOR
    assert float(params.loc) == pytest.approx(0.55, abs=1e-6)


@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 3, 100])
def test_all_scores_at_an_end(end, n, dtype):
    """No optimum there, but a finite answer whose law is at that end."""
    stats = ScoreStats.from_scores(np.full(n, end, dtype))
    prior = Prior(*map(dtype, (0.7, 0.2, 0.1, 0.1)))
    for params, info in (fit(stats), fit(stats, prior)):
        assert np.isfinite(np.asarray([*params, *info])).all()
        assert params.scale > 0
    law = TruncatedNormal(*fit(stats)[0])
    assert abs(float(law.mean()) - end) <= 2e-6


@pytest.mark.parametrize("scores", [[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.9], [0.0, 0.02, 0.001]])
def test_limit_is_the_truncated_exponential(scores, dtype):
    x = np.array(scores, dtype)
    params, info = fit(ScoreStats.from_scores(x))
    assert info.boundary == Boundary.EXPONENTIAL_LIMIT
    mean = float(np.mean(x.astype(float)))

    def mean_of(rate):  # of exp(rate x) on [0, 1]
        return 0.5 if abs(rate) < 1e-6 else 1 / -np.expm1(-rate) - 1 / rate

    rate = scipy.optimize.brentq(lambda r: mean_of(r) - mean, -500, 500)
    points = np.linspace(0.01, 0.99, 25)
    exact = points if abs(rate) < 1e-6 else np.expm1(rate * points) / np.expm1(rate)
    cdf = np.asarray(TruncatedNormal(*params).cdf(jnp.asarray(points, dtype)))
    # The fit stops at a scale of 1e4 times the mean's distance from the end: 1e-8 in log-density
    # per squared distance. In float32, loc / scale^2 carries the rate with a few units of rounding.
    np.testing.assert_allclose(cdf, exact, atol=2e-6 if dtype is np.float32 else 1e-6)


# --- Laws ----------------------------------------------------------------------------------------


def test_equivariance(dtype):
    rng = np.random.default_rng(2)
    x = np.stack([draws(k, 20, rng) for k in ("truncated normal", "beta", "judge")]).astype(dtype)
    prior = Prior(*map(dtype, (0.7, 0.2, 0.1, 0.1)))
    mapped = Prior(*map(dtype, (4.0, 2.0, 1.0, 1.0)))
    stats = ScoreStats.from_scores(x)
    # The same statistics in other units, so that only the fit is compared.
    other = ScoreStats(stats.n, -3 + 10 * stats.mean, 100 * stats.m2)
    tol = 2e-3 if dtype is np.float32 else 1e-6  # sqrt(eps): the objective is flat at its optimum
    for here, there in (
        (fit(stats), fit(other, low=-3.0, high=7.0)),
        (fit(stats, prior), fit(other, mapped, low=-3.0, high=7.0)),
    ):
        assert (here[1].boundary == there[1].boundary).all()
        free = np.asarray(here[1].boundary) == Boundary.NONE
        assert free.any()
        np.testing.assert_allclose(
            np.asarray(there[0].loc)[free],
            -3 + 10 * np.asarray(here[0].loc)[free],
            rtol=tol,
            atol=tol,
        )
        np.testing.assert_allclose(
            np.asarray(there[0].scale)[free], 10 * np.asarray(here[0].scale)[free], rtol=tol
        )


def test_order_and_merging_do_not_matter(dtype):
    rng = np.random.default_rng(3)
    x = rng.beta(6, 2, 40).astype(dtype)
    prior = Prior(*map(dtype, (0.7, 0.2, 0.1, 0.1)))
    whole = ScoreStats.from_scores(x)
    one_by_one = functools.reduce(ScoreStats.add, rng.permutation(x), ScoreStats.empty(dtype))
    in_parts = ScoreStats.from_scores(x[30:]).merge(ScoreStats.from_scores(x[:30]))
    tol = 1e-5 if dtype is np.float32 else 1e-12  # a hundred units of rounding
    for other in (one_by_one, in_parts):
        for belief in (None, prior):
            here, there = (np.asarray(fit(s, belief)[0]) for s in (whole, other))
            np.testing.assert_allclose(there, here, rtol=tol)


def test_batch_shapes_jit_vmap_scan():
    rng = np.random.default_rng(4)
    x = rng.beta(6, 2, (4, 3, 10)).astype(np.float32)
    stats = ScoreStats.from_scores(x)
    priors = Prior(
        np.float32([0.6, 0.7, 0.8]), np.float32(0.2), 0.1, np.full((4, 1), 0.2, np.float32)
    )
    params, info = jax.eval_shape(fit_map, stats, priors)
    assert params.loc.shape == params.scale.shape == info.objective.shape == (4, 3)
    plain, _ = fit(stats)
    # The same kernel in every wrapping: equal to a few units of rounding, which an objective that
    # is flat at its optimum turns into sqrt(eps) in the parameters at most.
    close = functools.partial(np.testing.assert_allclose, rtol=3e-4)
    jax.tree.map(close, jax.jit(jax.vmap(fit_mle))(stats)[0], plain)

    def step(stats, score):
        stats = stats.add(score)
        return stats, fit_mle(stats)[0]

    _, scanned = jax.lax.scan(step, ScoreStats.empty(), jnp.asarray(x[0, 0]))
    prefixes, _ = fit(jax.jit(ScoreStats.prefixes)(x[0, 0]))
    # From three scores on: two can have the exponential limit, whose loc is any large number.
    close(scanned.loc[2:], prefixes.loc[2:])
    close(scanned.scale[2:], prefixes.scale[2:])


def test_map_mapped_over_is_map_of_the_whole_batch():
    """More problems than are searched for at once, most of which need the search, and none."""
    rng = np.random.default_rng(12)
    scores = rng.random((4, 400, 3)).astype(np.float32)
    stats = ScoreStats.from_scores(scores, np.arange(3) < rng.choice([0, 1, 2, 3], (4, 400, 1)))
    prior = Prior(rng.uniform(0, 1, 400).astype(np.float32), np.float32(0.2))
    whole = fit_map(stats, prior)
    over_priors = Prior(0, None, None, None)
    mapped = jax.vmap(jax.vmap(fit_map, (0, over_priors)), (0, None))(stats, prior)
    _, scanned = jax.lax.scan(lambda _, one: (None, fit_map(one, prior)), None, stats)
    close = functools.partial(np.testing.assert_allclose, rtol=3e-4, atol=1e-6)
    for other in (mapped, scanned):
        jax.tree.map(close, other[0], whole[0])
        np.testing.assert_array_equal(other[1].boundary, whole[1].boundary)
    none = jax.tree.map(lambda v: v[:, :0], stats)
    assert fit_map(none, Prior(0.5, 0.2))[0].loc.shape == (4, 0)


def test_precision_follows_the_statistics(x64):
    """float32 statistics give float32 fits also where float64 is enabled."""
    for dtype in (jnp.float32, jnp.float64):
        stats = ScoreStats.from_scores(jnp.asarray([0.1, 0.5, 0.6], dtype))
        prior = Prior(*map(dtype, (0.5, 0.2, 0.1, 0.1)))
        params, info = jax.eval_shape(fit_mle, stats)
        posterior, _ = jax.eval_shape(fit_map, stats, prior)
        assert {v.dtype for v in (*params, *posterior, info.objective)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", ["scale", "loc_sd", "scale_sd"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.array([0.1, 0.0])])
def test_bad_priors_are_refused(name, value):
    fields = {"loc": 0.5, "scale": 0.2, "loc_sd": 0.1, "scale_sd": 0.1, name: value}
    with pytest.raises(ValueError, match=rf"^Prior: {name} must be > 0 everywhere, found .*$"):
        fit_map(ScoreStats.empty(), Prior(**fields))


# --- ScoreStats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.25, 1.5])
def test_scores_that_are_none_are_refused_by_name(wrong):
    scores = np.full((2, 3), 0.5)
    scores[1, 2] = wrong
    for make in (ScoreStats.from_scores, ScoreStats.prefixes):
        with pytest.raises(
            ValueError, match=rf"^scores\[1, 2\] is {wrong}; scores are in \[0, 1\]"
        ):
            make(scores)
    masked = ScoreStats.from_scores(scores, scores == 0.5)
    np.testing.assert_array_equal(masked.n, [3, 2])
    np.testing.assert_array_equal(masked.mean, [0.5, 0.5])


def exact(x):
    x = np.asarray(x, np.float64)
    return x.size, x.mean(), np.sum((x - x.mean()) ** 2)


def test_statistics_keep_their_digits(dtype):
    x = (0.99 + 1e-3 * np.random.default_rng(5).standard_normal(256)).clip(0, 1).astype(dtype)
    n, mean, m2 = exact(x)
    eps = np.finfo(dtype).eps
    one_by_one = jax.lax.scan(lambda s, v: (s.add(v), None), ScoreStats.empty(dtype), x)[0]
    last = jax.tree.map(lambda v: v[-1], jax.jit(ScoreStats.prefixes)(x))
    for stats in (ScoreStats.from_scores(x), last, one_by_one):
        assert stats.n == n
        # Every addition rounds the mean by eps / 2; deviations of 1e-3 carry eps / 1e-3 of that.
        assert abs(float(stats.mean) - mean) <= 100 * eps
        assert abs(float(stats.m2) - m2) <= 2e3 * eps * m2
    assert float(ScoreStats.from_scores(x).m2) == pytest.approx(m2, rel=20 * float(eps))


def test_mask_and_empty(dtype):
    x = np.array([[0.1, np.nan, 0.7], [0.3, 0.4, 0.5]], dtype)
    mask = np.array([[True, False, True], [False, False, False]])
    stats = ScoreStats.from_scores(x, mask)
    np.testing.assert_array_equal(stats.n, [2, 0])
    np.testing.assert_allclose(stats.mean, [0.4, 0.0], rtol=1e-6)
    np.testing.assert_allclose(stats.m2, [0.18, 0.0], rtol=1e-5)
    assert stats.n.dtype == stats.mean.dtype == stats.m2.dtype == dtype
    empty = ScoreStats.from_scores(np.zeros((4, 0), dtype))
    np.testing.assert_array_equal(np.asarray([empty.n, empty.mean, empty.m2]), np.zeros((3, 4)))
    # The identity of merge, on either side.
    for merged in (stats.merge(ScoreStats.empty(dtype)), ScoreStats.empty(dtype).merge(stats)):
        jax.tree.map(np.testing.assert_array_equal, merged, stats)


def test_integer_scores_are_read_as_floats():
    stats = ScoreStats.from_scores([0, 1, 1])
    assert (float(stats.n), float(stats.mean)) == (3, pytest.approx(2 / 3))


def test_prefixes(dtype):
    x = np.random.default_rng(6).random((2, 7)).astype(dtype)
    prefixes = jax.jit(ScoreStats.prefixes)(x)
    for k in (0, 1, 2, 6):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            jax.tree.map(lambda v, k=k: v[:, k], prefixes),
            ScoreStats.from_scores(x[:, : k + 1]),
        )


scores = st.lists(st.floats(0, 1, width=32), max_size=12)


@settings(max_examples=60, derandomize=True)
@given(scores, scores, scores)
def test_merge_is_associative_and_commutative(a, b, c):
    with jax.enable_x64(True):
        # One shape, so that nothing is compiled anew.
        x, y, z = (
            ScoreStats.from_scores(np.array(v + [0.0] * (12 - len(v))), np.arange(12) < len(v))
            for v in (a, b, c)
        )
        n, mean, m2 = exact(a + b + c) if a + b + c else (0, 0.0, 0.0)
        for merged in (x.merge(y).merge(z), x.merge(y.merge(z)), z.merge(x.merge(y))):
            assert merged.n == n
            # A few dozen operations on numbers of size 1.
            assert float(merged.mean) == pytest.approx(mean, abs=1e-14)
            assert float(merged.m2) == pytest.approx(m2, abs=1e-13)
