"""A law with atoms: what is exactly 0 or 1 counts where it should, in the bound above all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.bench.reference import TOLERANCES, columns, errors, reference
from eval.bench.reference_laws import LAWS
from optscale_jax import (
    BestOfN,
    TruncatedNormal,
    expected_best,
    marginal_gain,
    required_samples,
    success_probability,
)
from optscale_jax.bounds import BoundStatus, bound
from optscale_jax.distributions import Beta, WithAtoms

KEY = jax.random.key(0)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


def law_of(dtype, at_zero=0.1, at_one=0.45):
    inner = TruncatedNormal(dtype(0.6), dtype(0.2))
    return WithAtoms(inner, dtype(at_zero), dtype(at_one)), inner


@jax.jit
def _evaluated(law, x, u):
    of_x = ("cdf", "log_cdf", "survival_function", "log_survival_function", "log_prob")
    found = {name: getattr(law, name)(x) for name in of_x}
    below = getattr(law, "log_cdf_below", law.log_cdf)(x)
    inverse = law.log_cdf_inverse(jnp.log(u))
    return found | {"log_cdf_below": below, "quantile": law.quantile(u), "log_cdf_inverse": inverse}


def evaluated(law, x=0.5, u=0.5):
    """All functions of a law, of x or of u; at 12 of both, so that they compile once."""
    size = max(np.size(x), np.size(u))
    found = _evaluated(law, *(np.resize(np.asarray(v, law.dtype), 12) for v in (x, u)))
    return {name: np.asarray(value)[:size] for name, value in found.items()}


@pytest.mark.exact
def test_every_point_is_within_tolerance(dtype):
    law = LAWS["with_atoms"]
    points = law.points(100, dtype)
    found = jax.jit(columns(law))(*map(jnp.asarray, points))
    for column, error in errors(law, points, found, reference(law, points, found.quantile)).items():
        place = [float(v[np.argmax(error)]) for v in points]
        assert error.max() <= getattr(TOLERANCES[np.dtype(dtype)], column), (column, place)


def test_distribution_function_jumps_at_the_ends(dtype):
    law, inner = law_of(dtype)
    eps = 8 * np.finfo(dtype).eps
    x = np.array([-0.1, 0, 0.3, 0.9, 1, 1.1], dtype)
    found = evaluated(law, x)
    inside = 0.1 + 0.45 * evaluated(inner, x)["cdf"]
    np.testing.assert_allclose(found["cdf"], [0, 0.1, *inside[2:4], 1, 1], rtol=eps)
    below = [0, 0, *inside[2:4], 0.55, 1]
    np.testing.assert_allclose(np.exp(found["log_cdf_below"]), below, rtol=eps)
    above = [1, 0.9, *(1 - inside[2:4]), 0, 0]
    np.testing.assert_allclose(found["survival_function"], above, rtol=eps)
    np.testing.assert_allclose(np.exp(found["log_prob"][[1, 4]]), [0.1, 0.45], rtol=eps)


def test_small_tails_keep_their_digits(dtype):
    inner = Beta(dtype(50), dtype(2))
    law = WithAtoms(inner, dtype(0), dtype(1e-9))
    # Far down the law is 1 - 1e-9 of the inner one; next to 1 the atom is what is left.
    x = [dtype(1e-5), np.nextafter(dtype(1), dtype(0))]
    found, of_inner = evaluated(law, x), evaluated(inner, x)
    np.testing.assert_allclose(found["log_cdf"][0], of_inner["log_cdf"][0], rtol=1e-6)
    rest = np.exp(np.float64(of_inner["log_survival_function"][1])) + 1e-9
    np.testing.assert_allclose(found["log_survival_function"][1], np.log(rest), rtol=1e-6)
    np.testing.assert_allclose(found["log_cdf"][1], np.log1p(-rest), rtol=1e-5)


def test_without_atoms_it_is_the_inner_law(dtype):
    law, inner = law_of(dtype, 0, 0)
    x = np.linspace(0, 1, 11, dtype=dtype)
    eps = 32 * np.finfo(dtype).eps
    found, want = evaluated(law, x, x), evaluated(inner, x, x)
    for method in ("log_cdf", "log_survival_function", "log_prob", "quantile"):
        np.testing.assert_allclose(found[method][1:-1], want[method][1:-1], rtol=eps)


def test_an_atom_at_one_reaches_every_s_min(dtype):
    law, _ = law_of(dtype)
    # P(X >= 1) = .45: .55^N <= .1 first at N = 4 (.55^3 = .166).
    assert bound(law, 1.0, 0.9) == (4, BoundStatus.EXACT)
    np.testing.assert_allclose(success_probability(law, 1.0, 4), 1 - 0.55**4, rtol=1e-6)
    # P(X >= 0) = 1, whatever the atom there.
    assert bound(law, 0.0, 0.9) == (1, BoundStatus.EXACT)
    assert bound(law_of(dtype, 0.1, 0.0)[0], 1.0, 0.9).status == BoundStatus.UNREACHABLE
    only = WithAtoms(TruncatedNormal(dtype(0.6), dtype(0.2)), dtype(0), dtype(1))
    assert bound(only, 1.0, 0.99) == (1, BoundStatus.EXACT)
    assert required_samples(BestOfN(law, 2.0), 1.0, 0.9) == 2


@pytest.mark.parametrize("n", [1, 3, 20])
def test_expected_best_against_samples(n, dtype):
    law, _ = law_of(dtype, 0.3, 0.02)
    scores = np.asarray(law.sample((20_000, n), seed=KEY), np.float64)
    best = scores.max(1)
    error = 5 * best.std() / np.sqrt(best.size)
    assert float(expected_best(law, n)) == pytest.approx(best.mean(), abs=error)
    gain = float(expected_best(law, n + 1)) - float(expected_best(law, n))
    assert float(marginal_gain(law, n)) == pytest.approx(gain, abs=2e-5)


def test_moments_and_samples(dtype):
    law, inner = law_of(dtype)
    x = np.asarray(law.sample(40_000, seed=KEY), np.float64)
    assert (x == 0).mean() == pytest.approx(0.1, abs=5 * np.sqrt(0.09 / x.size))
    assert (x == 1).mean() == pytest.approx(0.45, abs=5 * np.sqrt(0.25 / x.size))
    assert float(law.mean()) == pytest.approx(0.45 + 0.45 * float(inner.mean()), rel=1e-5)
    assert float(law.variance()) == pytest.approx(x.var(), abs=5 * 0.5 / np.sqrt(x.size))


def test_the_best_of_n_has_the_atoms_of_the_best():
    with jax.enable_x64(True):
        law, _ = law_of(np.float64)
        best = BestOfN(law, 3.0)
        np.testing.assert_allclose(best.prob(0.0), 0.1**3, rtol=1e-12)
        np.testing.assert_allclose(best.prob(1.0), 1 - 0.55**3, rtol=1e-12)
        x, w = np.polynomial.legendre.leggauss(60)
        inside = (w / 2 * np.asarray(best.prob((x + 1) / 2))).sum()
        np.testing.assert_allclose(inside, 0.55**3 - 0.1**3, rtol=1e-10)


def test_quantiles_meet_the_distribution_function(dtype):
    law, _ = law_of(dtype)
    u = np.array([0, 0.05, 0.1, 0.2, 0.5, 0.55, 0.8, 1], dtype)
    found = evaluated(law, u=u)
    x = found["quantile"]
    np.testing.assert_array_equal(x[[0, 1, 6, 7]], [0, 0, 1, 1])
    np.testing.assert_allclose(evaluated(law, x)["cdf"][3:5], u[3:5], rtol=1e-5)
    np.testing.assert_allclose(found["log_cdf_inverse"][1:], x[1:], atol=1e-4)


def test_gradients_are_finite_with_empty_atoms(dtype):
    def values(at_zero, at_one, loc):
        law = WithAtoms(TruncatedNormal(loc, 0.2), at_zero, at_one)
        return law.log_cdf(0.7) + law.log_survival_function(0.7) + law.log_cdf_below(1.0)

    slopes = jax.jit(jax.grad(values, (0, 1, 2)))(dtype(0), dtype(0), dtype(0.6))
    assert np.isfinite(slopes).all()


def test_it_is_a_pytree_with_slices():
    inner = TruncatedNormal(np.array([0.2, 0.9], np.float32), np.float32(0.1))
    law = WithAtoms(inner, np.array([0.1, 0.2], np.float32), np.float32(0.3))
    value = law.log_cdf(0.5)
    np.testing.assert_allclose(jax.jit(lambda d: d.log_cdf(0.5))(law), value, rtol=1e-6)
    each = jax.vmap(lambda loc, low: WithAtoms(TruncatedNormal(loc, 0.1), low, 0.3).log_cdf(0.5))(
        inner.loc, law.at_zero
    )
    np.testing.assert_allclose(each, value, rtol=1e-6)
    assert law[1:].batch_shape == (1,)
    assert jnp.shape(law.mean()) == (2,)


@pytest.mark.parametrize("masses", [(-0.1, 0.5), (0.6, 0.6), (0.0, [0.5, 1.5])])
def test_masses_that_are_no_probabilities_are_one_clear_line(masses):
    with pytest.raises(ValueError, match="at_zero and at_one must be >= 0, with a sum of at most"):
        WithAtoms(TruncatedNormal(0.5, 0.1), *masses)
