"""The law of the best of n: closed forms, brute force, and any TFP distribution underneath."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.test_util import check_grads
from tensorflow_probability.substrates import jax as tfp

from optscale_jax.distributions import BestOfN, TruncatedNormal
from optscale_jax.distributions.base import compiled

tfd = tfp.distributions
KEY = jax.random.key(0)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def mixture(dtype):
    return tfd.MixtureSameFamily(
        tfd.Categorical(probs=np.array([0.3, 0.7], dtype)),
        tfd.Kumaraswamy(np.array([2, 9], dtype), np.array([5, 2], dtype)),
    )


# Name: (law, E of the best of n in closed form or None).
LAWS = {
    "uniform": (lambda t: tfd.Uniform(t(0), t(1)), lambda n: n / (n + 1)),
    "root": (lambda t: tfd.Kumaraswamy(t(0.5), t(1)), lambda n: n / (n + 2)),
    "kumaraswamy": (lambda t: tfd.Kumaraswamy(t(2), t(1)), lambda n: 2 * n / (2 * n + 1)),
    "logit-normal": (lambda t: tfd.LogitNormal(t(0.5), t(0.7)), None),
    "mixture": (mixture, None),
    "truncated normal": (lambda t: TruncatedNormal(t(0.8), t(0.2)), None),
    "narrow": (lambda t: TruncatedNormal(t(0.9), t(1e-3)), None),
    "flat": (lambda t: TruncatedNormal(t(0.9), t(50)), lambda n: n / (n + 1)),
}


CLOSED = [name for name, (_, mean) in LAWS.items() if mean]
ROUNDING = {np.float32: 1e-5, np.float64: 1e-11}
# All at one shape, [5, 4] of u or x and n, so that the laws of a type share their compilations.
DRAWS = (1, 2, 7, 1_000_000)
LEVELS = (1e-4, 0.05, 0.5, 0.95, 0.999)


def best_of(law):
    return BestOfN(law, np.array(DRAWS, law.dtype))


def quantiles(best):
    return np.asarray(best.quantile(np.array(LEVELS, best.dtype)[:, None]))


@pytest.mark.parametrize("name", CLOSED)
def test_mean_in_closed_form(name, dtype):
    law, mean = LAWS[name]
    value = np.asarray(best_of(law(dtype)).mean(), float)
    exact = mean(np.array(DRAWS, float))
    slack = 1e-4 if name == "flat" else 0.0  # uniform only in the limit of an infinite scale
    assert np.all(np.abs(value - exact) <= ROUNDING[dtype] + slack * (1 - exact))


def test_mean_of_truncated_normals(x64):
    loc, scale, n = np.meshgrid(
        [-3.0, 0.0, 0.5, 0.99, 30.0], [1e-3, 0.02, 0.3, 10.0], [1, 2, 5, 64, 1000, 1e6]
    )
    law = TruncatedNormal(loc, scale)
    # Composite rule on 40 equal pieces of a wider range.
    low, high = (np.asarray(law.log_cdf_inverse(u / n)) for u in (-60, -1e-18))
    nodes, weights = np.polynomial.legendre.leggauss(30)
    half = (high - low) / 80
    inner = (np.arange(40)[:, None] * 2 + 1 + nodes).reshape(-1, 1, 1, 1)
    power = np.exp(n * np.asarray(law.log_cdf(low + half * inner)))
    exact = high - half * (np.tile(weights, 40).reshape(-1, 1, 1, 1) * power).sum(axis=0)
    mean = np.asarray(BestOfN(law, n).mean())
    assert np.all(np.abs(mean - exact) <= 1e-13 * exact + 1e-9 * (high - low))
    np.testing.assert_allclose(mean[..., 0], law.mean()[..., 0], rtol=1e-10)


class Values(NamedTuple):
    """A law's functions at some points."""

    log_cdf: np.ndarray
    cdf: np.ndarray
    log_survival_function: np.ndarray
    survival_function: np.ndarray
    log_prob: np.ndarray
    prob: np.ndarray


@compiled
def _evaluated(law, x):
    return Values(*(getattr(law, function)(x) for function in Values._fields))


def evaluated(law, x):
    """All functions at points [5, 4] of scores, or of what is broadcast to them."""
    x = np.broadcast_to(np.asarray(x, law.dtype), (len(LEVELS), len(DRAWS)))
    return Values(*map(np.asarray, _evaluated(law, x)))


@pytest.mark.parametrize("name", LAWS)
def test_definition(name, dtype):
    law = LAWS[name][0](dtype)
    best = best_of(law)
    # Where the best of one, of two and of seven have their mass; not that of a million.
    x = quantiles(best)[:, [0, 1, 2, 2]]
    n = np.array(DRAWS[:3])
    best, law = (Values(*(v[:, :3] for v in evaluated(d, x))) for d in (best, law))
    # TFP's own laws are good to tens of units in the last place, and the power takes n times that.
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(best.cdf, law.cdf**n, rtol=500 * eps)
    np.testing.assert_allclose(best.log_cdf, n * law.log_cdf, rtol=500 * eps, atol=500 * eps)
    np.testing.assert_allclose(
        best.survival_function, 1 - law.cdf**n, rtol=500 * eps, atol=500 * eps
    )
    np.testing.assert_allclose(
        np.exp(best.log_survival_function), best.survival_function, rtol=100 * eps
    )
    np.testing.assert_allclose(
        best.prob, n * law.cdf ** (n - 1) * law.prob, rtol=1000 * eps, atol=1e-30
    )


@pytest.mark.parametrize("name", LAWS)
def test_cdf_undoes_quantile(name, dtype):
    best = best_of(LAWS[name][0](dtype))
    u = np.array(LEVELS, dtype)[:, None]
    x = quantiles(best)
    assert x.dtype == dtype
    assert np.all((x >= 0) & (x <= 1))
    # x is one of the two representable numbers around the quantile, or next to them.
    below, above = (evaluated(best, np.clip(x + k * np.spacing(x), 0, 1)).cdf for k in (-8, 8))
    slack = 64 * np.array(DRAWS) * np.finfo(dtype).eps
    assert np.all(below <= u * (1 + 1e-3) + slack)
    assert np.all(above >= u * (1 - 1e-3) - slack)


@pytest.mark.parametrize("name", LAWS)
def test_best_of_one_is_the_law_itself(name):
    law = LAWS[name][0](np.float32)
    x = np.array([0, 0.2, 0.7, 0.9, 1])[:, None]
    own, best = evaluated(law, x), evaluated(best_of(law), x)
    for function in ("log_prob", "log_cdf", "cdf", "log_survival_function"):
        np.testing.assert_allclose(
            getattr(best, function)[:, 0],
            getattr(own, function)[:, 0],
            rtol=1e-5,
            atol=1e-6,
            err_msg=function,
        )
    # Two draws are never both at the lower end, however much density is there.
    assert np.isneginf(best.log_prob[0, 1]) or not np.isfinite(own.log_prob[0, 0])


def test_large_n_keeps_the_digits_of_single_precision():
    loc, scale = np.float32(0.5), np.float32(0.1)
    best = best_of(TruncatedNormal(loc, scale))
    with jax.enable_x64(True):
        exact = best_of(TruncatedNormal(np.float64(loc), np.float64(scale)))
        x = quantiles(exact)
        wanted = evaluated(exact, x.astype(np.float32))
        mean = np.asarray(exact.mean())
    np.testing.assert_allclose(quantiles(best), x, rtol=1e-6)
    found = evaluated(best, x)
    np.testing.assert_allclose(found.log_cdf, wanted.log_cdf, rtol=1e-4)
    np.testing.assert_allclose(found.log_prob, wanted.log_prob, rtol=1e-4)
    np.testing.assert_allclose(best.mean(), mean, rtol=1e-6)


def kumaraswamy_cdf(x, a, b):
    return 1 - (1 - x**a) ** b


# Of the three ways to a quantile: the law's own, and bisection between its ends or those of [0, 1].
EXACT_CDF = {
    "truncated normal": scipy.stats.truncnorm(-0.8 / 0.2, 0.2 / 0.2, 0.8, 0.2).cdf,
    "logit-normal": lambda x: scipy.stats.norm.cdf(scipy.special.logit(x), 0.5, 0.7),
    "mixture": lambda x: 0.3 * kumaraswamy_cdf(x, 2, 5) + 0.7 * kumaraswamy_cdf(x, 9, 2),
}


@pytest.mark.parametrize("name", EXACT_CDF)
def test_samples_are_maxima(name):
    best = BestOfN(LAWS[name][0](np.float32), np.array([1, 5], np.float32))
    x = np.asarray(best.sample(4000, seed=KEY), float)
    # Six comparisons: a p-value below 1e-5 among them happens to one right program in 16,000.
    for n, drawn in zip((1, 5), x.T, strict=True):
        u = EXACT_CDF[name](drawn) ** n
        assert scipy.stats.kstest(u, "uniform").pvalue > 1e-5


def test_shapes_and_batches_of_n():
    law = TruncatedNormal(np.array([[0.2], [0.8], [0.9]], np.float32), np.float32(0.1))
    best = BestOfN(law, np.array([1, 2, 4, 8]))
    assert best.batch_shape == (3, 4)
    assert best.event_shape == ()
    assert best.dtype == np.float32
    shapes = jax.eval_shape(
        lambda: dict(
            sample=best.sample((2, 5), seed=KEY),
            mean=best.mean(),
            quantile=best.quantile(0.5),
            log_prob=best.log_prob(np.full((2, 1, 1), 0.5)),
            rule=best.integration_rule(),
        )
    )
    points, weights, upper = (part.shape for part in shapes.pop("rule"))
    assert {name: part.shape for name, part in shapes.items()} == dict(
        sample=(2, 5, 3, 4), mean=(3, 4), quantile=(3, 4), log_prob=(2, 3, 4)
    )
    assert points == weights == (points[0], 3, 4)
    assert upper == (3, 4)
    one = BestOfN(TruncatedNormal(np.float32(0.8), np.float32(0.1)), 4)
    whole, slice_, alone = jax.jit(lambda: (best.mean(), best[1, 2].mean(), one.mean()))()
    np.testing.assert_allclose(whole[1, 2], alone, rtol=1e-6)
    np.testing.assert_allclose(slice_, alone, rtol=1e-6)
    assert np.all(np.diff(whole, axis=1) > 0)


def test_distribution_is_a_pytree():
    best = BestOfN(TruncatedNormal(np.array([0.2, 0.8], np.float32), np.float32(0.1)), 5)
    value = best.log_prob(0.7)
    np.testing.assert_allclose(jax.jit(lambda d: d.log_prob(0.7))(best), value, rtol=1e-5)
    slope = jax.grad(lambda d: d.log_cdf(0.7).sum())(best)
    log_cdf = best.distribution.log_cdf(0.7)
    np.testing.assert_allclose(slope.n, log_cdf.sum(), rtol=1e-5)
    batched = jax.tree.map(lambda v: jnp.broadcast_to(v, (2,)), best)
    each = jax.vmap(lambda d: d.log_prob(0.7))(batched)
    np.testing.assert_allclose(each, value, rtol=1e-5)
    assert best.copy(n=9).n == 9


def test_gradients(x64):
    def evaluate(loc, scale, n):
        d = BestOfN(TruncatedNormal(loc, scale), n)
        return d.mean(), d.quantile(0.3), d.log_prob(0.6), d.log_survival_function(0.9)

    check_grads(jax.jit(evaluate), (0.7, 0.2, 6.0), order=1, modes=["rev"], rtol=1e-6)

    def by_bisection(a, b, n):
        return BestOfN(tfd.Kumaraswamy(a, b), n).quantile(0.3)

    def closed(a, b, n):
        return (1 - (1 - 0.3 ** (1 / n)) ** (1 / b)) ** (1 / a)

    point = tuple(map(jnp.float64, (2.0, 3.0, 6.0)))
    np.testing.assert_allclose(by_bisection(*point), closed(*point), rtol=1e-14)
    slopes = jax.jit(jax.grad(by_bisection, (0, 1, 2)))(*point)
    np.testing.assert_allclose(slopes, jax.grad(closed, (0, 1, 2))(*point), rtol=1e-10)


def test_law_with_nothing_but_a_cdf():
    class Square(tfd.Distribution):
        """F(x) = x^2 on [0, 1]: the least that a new law of scores has to say."""

        def __init__(self):
            super().__init__(
                dtype=np.float32,
                reparameterization_type=tfd.NOT_REPARAMETERIZED,
                validate_args=False,
                allow_nan_stats=True,
            )

        @classmethod
        def _parameter_properties(cls, dtype, num_classes=None):
            return {}

        def _event_shape(self):
            return ()

        def _event_shape_tensor(self):
            return np.array([], np.int32)

        def _log_cdf(self, x):
            return 2 * jnp.log(jnp.asarray(x, self.dtype))

    best = BestOfN(Square(), 3)
    np.testing.assert_allclose(best.quantile(0.5), 0.5 ** (1 / 6), rtol=1e-6)
    np.testing.assert_allclose(best.mean(), 6 / 7, rtol=1e-5)
    np.testing.assert_allclose(best.cdf(0.5), 0.5**6, rtol=1e-5)
    assert best.sample(4, seed=KEY).shape == (4,)


def test_law_on_the_whole_line(x64):
    best = BestOfN(tfd.Normal(np.float64(0), np.float64(1)), 1e6)
    x = best.quantile(0.5)
    exact = scipy.stats.norm.isf(-np.expm1(np.log(0.5) / 1e6))
    np.testing.assert_allclose(x, exact, rtol=1e-9)


@pytest.mark.parametrize("n", [0, -1, 0.5, [3, 0]])
def test_n_below_one_is_one_clear_line(n):
    with pytest.raises(ValueError, match=r"^BestOfN: n must be >= 1, found (0|-1|0\.5)$"):
        BestOfN(TruncatedNormal(0.5, 0.1), n)
