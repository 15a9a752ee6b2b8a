"""The law of the best of n: closed forms, brute force, and any TFP distribution underneath."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
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


@pytest.mark.parametrize("name", CLOSED)
def test_mean_in_closed_form(name, dtype):
    law, mean = LAWS[name]
    value = of(law(dtype)).mean.astype(float)
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


FUNCTIONS = ("log_cdf", "cdf", "log_survival_function", "survival_function", "log_prob", "prob")


class Found(NamedTuple):
    """A law, and the best of DRAWS from it, at points [5, 4].

    At those given, where the best of one, of two and of seven have their mass, and 8 numbers below
    and above the quantiles of LEVELS: [4, 5, 4] by the name of the function.
    """

    mean: np.ndarray
    quantile: np.ndarray
    one: dict[str, np.ndarray]
    best: dict[str, np.ndarray]


@compiled
def _found(law, given, levels, draws):
    best = BestOfN(law, draws)
    x = best.quantile(levels)
    around = [jnp.clip(x + k * jnp.spacing(x), 0, 1) for k in (-8, 8)]
    points = jnp.stack([given, x[:, jnp.array([0, 1, 2, 2])], *around])
    one, best_ = ({f: getattr(d, f)(points) for f in FUNCTIONS} for d in (law, best))
    return Found(best.mean(), x, one, best_)


def of(law, given=0.5):
    """What is asked of a law, in one compilation for all laws of a type."""
    shape = (len(LEVELS), len(DRAWS))
    given = np.broadcast_to(np.asarray(given, law.dtype), shape)
    levels, draws = np.array(LEVELS, law.dtype)[:, None], np.array(DRAWS, law.dtype)
    return jax.tree.map(np.asarray, _found(law, given, levels, draws))


@pytest.mark.parametrize("name", LAWS)
def test_definition(name, dtype):
    found = of(LAWS[name][0](dtype))
    # Not those of a million.
    best, law = ({f: v[1, :, :3] for f, v in d.items()} for d in (found.best, found.one))
    n = np.array(DRAWS[:3])
    # TFP's own laws are good to tens of units in the last place, and the power takes n times that.
    eps = np.finfo(dtype).eps
    close = np.testing.assert_allclose
    close(best["cdf"], law["cdf"] ** n, rtol=500 * eps)
    close(best["log_cdf"], n * law["log_cdf"], rtol=500 * eps, atol=500 * eps)
    close(best["survival_function"], 1 - law["cdf"] ** n, rtol=500 * eps, atol=500 * eps)
    close(np.exp(best["log_survival_function"]), best["survival_function"], rtol=100 * eps)
    density = n * law["cdf"] ** (n - 1) * law["prob"]
    close(best["prob"], density, rtol=1000 * eps, atol=1e-30)


@pytest.mark.parametrize("name", LAWS)
def test_cdf_undoes_quantile(name, dtype):
    found = of(LAWS[name][0](dtype))
    u, x = np.array(LEVELS, dtype)[:, None], found.quantile
    assert x.dtype == dtype
    assert np.all((x >= 0) & (x <= 1))
    # x is one of the two representable numbers around the quantile, or next to them.
    below, above = found.best["cdf"][2:]
    slack = 64 * np.array(DRAWS) * np.finfo(dtype).eps
    assert np.all(below <= u * (1 + 1e-3) + slack)
    assert np.all(above >= u * (1 - 1e-3) - slack)


@pytest.mark.parametrize("name", LAWS)
def test_best_of_one_is_the_law_itself(name):
    found = of(LAWS[name][0](np.float32), np.array([0, 0.2, 0.7, 0.9, 1])[:, None])
    own, best = ({f: v[0] for f, v in d.items()} for d in (found.one, found.best))
    for function in ("log_prob", "log_cdf", "cdf", "log_survival_function"):
        one, same = own[function][:, 0], best[function][:, 0]
        np.testing.assert_allclose(same, one, rtol=1e-5, atol=1e-6, err_msg=function)
    # Two draws are never both at the lower end, however much density is there.
    assert np.isneginf(best["log_prob"][0, 1]) or not np.isfinite(own["log_prob"][0, 0])


def test_large_n_keeps_the_digits_of_single_precision():
    loc, scale = np.float32(0.5), np.float32(0.1)
    with jax.enable_x64(True):
        law = TruncatedNormal(np.float64(loc), np.float64(scale))
        x = of(law).quantile
        exact = of(law, x.astype(np.float32))
    found = of(TruncatedNormal(loc, scale), x)
    np.testing.assert_allclose(found.quantile, x, rtol=1e-6)
    for function in ("log_cdf", "log_prob"):
        one, other = found.best[function][0], exact.best[function][0]
        np.testing.assert_allclose(one, other, rtol=1e-4, err_msg=function)
    np.testing.assert_allclose(found.mean, exact.mean, rtol=1e-6)


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

    both = jax.jit(lambda *p: (evaluate(*p), jax.jacrev(evaluate, (0, 1, 2))(*p)))
    point, step = np.array([0.7, 0.2, 6.0]), 1e-5
    slopes = np.array(both(*point)[1])
    for i, move in enumerate(step * np.eye(3)):
        numeric = np.subtract(both(*(point + move))[0], both(*(point - move))[0]) / (2 * step)
        np.testing.assert_allclose(slopes[:, i], numeric, rtol=1e-6)

    def by_bisection(a, b, n):
        return BestOfN(tfd.Kumaraswamy(a, b), n).quantile(0.3)

    def closed(a, b, n):
        return (1 - (1 - 0.3 ** (1 / n)) ** (1 / b)) ** (1 / a)

    point = tuple(map(jnp.float64, (2.0, 3.0, 6.0)))
    own, other = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*point) for f in (by_bisection, closed))
    np.testing.assert_allclose(own[0], other[0], rtol=1e-14)
    np.testing.assert_allclose(own[1], other[1], rtol=1e-10)


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
    found = jax.jit(lambda: (best.quantile(0.5), best.mean(), best.sample(4, seed=KEY)))()
    np.testing.assert_allclose(found[0], 0.5 ** (1 / 6), rtol=1e-6)
    np.testing.assert_allclose(found[1], 6 / 7, rtol=1e-5)
    np.testing.assert_allclose(best.cdf(0.5), 0.5**6, rtol=1e-5)
    assert found[2].shape == (4,)


def test_law_on_the_whole_line(x64):
    best = BestOfN(tfd.Normal(np.float64(0), np.float64(1)), 1e6)
    x = best.quantile(0.5)
    exact = scipy.stats.norm.isf(-np.expm1(np.log(0.5) / 1e6))
    np.testing.assert_allclose(x, exact, rtol=1e-9)


@pytest.mark.parametrize("n", [0, -1, 0.5, [3, 0]])
def test_n_below_one_is_one_clear_line(n):
    with pytest.raises(ValueError, match=r"^BestOfN: n must be >= 1, found (0|-1|0\.5)$"):
        BestOfN(TruncatedNormal(0.5, 0.1), n)
