"""Laws of scores as a policy uses them: memory, fits against SciPy's, and a law of one's own."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from jax.scipy.special import betaln
from tensorflow_probability.substrates.jax import distributions as tfd

from optscale_jax import Pool, PoolError, Prior, ScoreStats, laws, required_samples
from optscale_jax.distributions import TruncatedNormal
from optscale_jax.estimation import Boundary, FitInfo, fit_map, fit_mle
from optscale_jax.laws import Law
from optscale_jax.study.goodness_of_fit import realised_alpha
from optscale_jax.study.law_comparison import compare_laws, log_cell

KEY = jax.random.key(0)
LAWS = {
    "truncated normal": laws.truncated_normal(),
    "beta": laws.beta(),
    "logit-normal": laws.logit_normal(),
    "beta with atoms": laws.with_atoms(laws.beta()),
}


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"], scope="module")
def dtype(request):
    with jax.enable_x64(request.param is np.float64):
        yield request.param


def fit_rows(law, rows, dtype):
    """`laws.fit_rows` of up to 30 rows of up to 20 scores: one shape, one compilation a law."""
    scores, mask = np.full((30, 20), 0.5, dtype), np.zeros((30, 20), bool)
    for i, row in enumerate(rows):
        scores[i, : len(row)], mask[i, : len(row)] = row, True
    params, info = laws.fit_rows(law, scores, mask)
    assert tuple(params) == law.parameters
    return jax.tree.map(lambda v: np.asarray(v)[: len(rows)], (params, info))


class Kumaraswamy(Law):
    """F(x) = 1 - (1 - x^a)^b, fitted by its mean and second moment; it remembers `ScoreStats`."""

    parameters = ("a", "b")

    def start(self, prior, dtype):
        self.refuse_prior(prior)
        return {"a": jnp.asarray(3.8, dtype), "b": jnp.asarray(1.8, dtype)}

    def fit(self, memory, prior=None):
        self.refuse_prior(prior)
        mean = jnp.clip(memory.mean, 0.02, 0.98)
        variance = jnp.clip(memory.m2 / jnp.maximum(memory.n, 1), 1e-5, 0.9 * mean * (1 - mean))

        def excess(point):
            a, b = jnp.exp(point)
            first, second = (b * jnp.exp(betaln(1 + k / a, b)) for k in (1, 2))
            return jnp.stack([first / mean - 1, (second - first**2) / variance - 1])

        def newton(_, point):
            step = jnp.linalg.solve(jax.jacfwd(excess)(point), excess(point))
            return point - jnp.clip(step, -0.5, 0.5)

        point = jax.lax.fori_loop(0, 40, newton, jnp.log(jnp.asarray([3.8, 1.8], mean.dtype)))
        a, b = jnp.exp(point)
        size = jnp.linalg.norm(excess(point))
        return {"a": a, "b": b}, FitInfo(jnp.int32(0), jnp.zeros_like(a), size)

    def distribution(self, params):
        return tfd.Kumaraswamy(params["a"], params["b"])


def test_a_law_of_ones_own_from_any_tfp_distribution():
    scores = np.random.default_rng(0).beta(5, 2, (60, 64)).astype(np.float32)
    params, info = laws.fit_rows(Kumaraswamy(), scores)
    assert np.all(info.gradient < 1e-3)
    a, b = (np.asarray(params[name], float) for name in "ab")
    mean, square = (b * scipy.special.beta(1 + k / a, b) for k in (1, 2))
    np.testing.assert_allclose(mean, scores.mean(1), rtol=2e-3)
    np.testing.assert_allclose(np.sqrt(square - mean**2), scores.std(1), rtol=5e-3)
    pool = Pool.from_arrays(scores=scores)
    found = compare_laws(
        pool, {"own": Kumaraswamy(), "truncated normal": laws.truncated_normal()}, key=KEY
    )
    assert abs(found.laws["own"].difference.mean) < 0.1
    law = laws.with_atoms(Kumaraswamy())
    assert law.parameters == ("at_zero", "at_one", "a", "b")
    params, _ = laws.fit_rows(law, np.where(scores > 0.9, 1, scores))
    needed = required_samples(law.distribution(params), 1.0, 0.9)
    shares = (scores > 0.9).mean(1)
    np.testing.assert_array_equal(needed, np.ceil(np.log(0.1) / np.log1p(-shares)))


def test_the_truncated_normal_is_the_policys_bit_for_bit(dtype):
    scores = np.random.default_rng(0).beta(5, 2, 12).astype(dtype)
    law = laws.truncated_normal()
    memory, stats = law.init(16, dtype), ScoreStats.empty(dtype)
    for score in scores:
        memory, stats = law.add(memory, score), stats.add(score)
    for prior in (None, Prior(0.7, 0.1)):
        params, _ = law.fit(memory, prior)
        want, _ = fit_mle(stats) if prior is None else fit_map(stats, prior)
        assert (params["loc"], params["scale"]) == want
        assert law.scores_for_a_fit(prior) == (2 if prior is None else 1)
    assert law.start(None, dtype) == {"loc": dtype(0.8), "scale": dtype(0.2)}
    assert law.start(Prior(0.7, 0.1), dtype) == {"loc": dtype(0.7), "scale": dtype(0.1)}
    whole = law.memory_of(scores)
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, ScoreStats.from_scores(scores)))


@pytest.mark.parametrize("name", LAWS)
def test_one_score_after_the_other_is_the_whole_row(name, dtype):
    """Both ways to a memory, with scores missing, at the ends, and narrow next to 1."""
    law = LAWS[name]
    rng = np.random.default_rng(1)
    scores = rng.beta(0.3, 0.2, (3, 20)).astype(dtype)
    scores[1] = 0.99 + 1e-3 * rng.standard_normal(20)
    scores[2, ::3] = 1
    mask = rng.random((3, 20)) < 0.8
    both = jax.jit(lambda *rows: (Law.memory_of(law, *rows), law.memory_of(*rows)))
    by_scan, whole = both(scores, mask)
    for one, other in zip(jax.tree.leaves(by_scan), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=500 * np.finfo(dtype).eps, atol=1e-12)


def hard_problems(num_problems: int, num_scores: int) -> np.ndarray:
    """Beta of every shape, logit-normal, narrow next to 1, with exact ends, on a lattice."""
    rng = np.random.default_rng(num_scores)
    shape = (num_problems, num_scores)
    a, b = 10 ** rng.uniform(-0.7, 2.5, (2, num_problems, 1))
    scores = rng.beta(a, b, shape)
    logits = rng.normal(0, 3, (num_problems, 1)) + 10 ** rng.uniform(
        -2, 0.7, (num_problems, 1)
    ) * rng.standard_normal(shape)
    kind = np.arange(num_problems)[:, None] % 5
    scores = np.where(kind == 1, scipy.special.expit(logits), scores)
    scores = np.where(kind == 2, 0.99 + 1e-3 * rng.standard_normal(shape), scores)
    ends = np.where(rng.random(shape) < 0.8, 1, 0)
    scores = np.where((kind == 3) & (rng.random(shape) < 0.4), ends, scores)
    return np.clip(np.where(kind == 4, np.round(8 * scores) / 8, scores), 0, 1).astype(np.float32)


def beta_objective(a, b, scores, margin=1e-6):
    """Minus the log-likelihood of scores moved to the margin, without what a and b leave alone."""
    end = np.log1p(-margin) - np.log(margin)
    with np.errstate(divide="ignore"):
        logits = np.clip(np.log(scores) - np.log1p(-scores), -end, end)
    log_x, log_y = -np.log1p(np.exp(-logits)), -np.log1p(np.exp(logits))
    n = scores.shape[-1]
    return n * scipy.special.betaln(a, b) - a * log_x.sum(-1) - b * log_y.sum(-1)


@pytest.mark.parametrize("num_scores", [3, 20])
def test_a_beta_fit_is_never_above_scipys(num_scores, dtype):
    scores = hard_problems(30, num_scores)
    params, info = fit_rows(laws.beta(), scores, dtype)
    a, b = (np.asarray(params[name], np.float64) for name in ("a", "b"))
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    for i in np.flatnonzero(np.asarray(info.boundary) == Boundary.NONE):

        def objective(point, i=i):
            return beta_objective(*np.exp(point), scores[i].astype(float))

        best = np.inf
        for start in (np.log([a[i], b[i]]), (1.0, 1.0)):
            options = dict(xatol=1e-10, fatol=1e-12, maxiter=2000)
            found = scipy.optimize.minimize(objective, start, method="Nelder-Mead", options=options)
            best = min(best, found.fun)
        own = objective(np.log([a[i], b[i]]))
        assert own - best <= 1e-6 * max(1, abs(best)), (i, a[i], b[i])


def test_a_logit_normal_fit_is_the_mean_and_deviation_of_the_log_odds(dtype):
    scores = np.random.default_rng(0).beta(5, 2, (4, 20)).astype(dtype)
    params, info = fit_rows(laws.logit_normal(), scores, dtype)
    logits = scipy.special.logit(scores.astype(float))
    rtol = 100 * np.finfo(dtype).eps
    np.testing.assert_allclose(params["loc"], logits.mean(1), rtol=rtol)
    np.testing.assert_allclose(params["scale"], logits.std(1), rtol=rtol)
    law = laws.logit_normal()
    each = -law.distribution(params).log_prob(scores.T).sum(0)
    np.testing.assert_allclose(info.objective, each, rtol=rtol, atol=20 * rtol)


DEGENERATE = [[0.7], [0.7] * 3, [1, 1, 1], [0, 0], [0, 1], [1, 0.5], [0.999999, 1], []]


@pytest.mark.parametrize("name", LAWS)
def test_degenerate_scores_have_finite_fits(name, dtype):
    law = LAWS[name]
    params, _ = fit_rows(law, DEGENERATE, dtype)
    some = np.array([len(row) > 0 for row in DEGENERATE])
    for value in params.values():
        assert np.isfinite(value[some]).all()
    log_cdf = np.asarray(law.distribution(params).log_cdf(np.array([[0.5], [0.99]], dtype)))
    assert not np.isnan(log_cdf[:, some]).any()


def test_info_names_what_happened(dtype):
    rows = [[0.7, 0.7, 0.7], [1.0, 1.0, 0.0], [0.2, 0.5, 0.6], []]
    for law in (laws.beta(), laws.logit_normal()):
        _, info = fit_rows(law, rows, dtype)
        boundary = [Boundary.SCALE_FLOOR, Boundary.NONE, Boundary.NONE, Boundary.NO_SCORES]
        np.testing.assert_array_equal(info.boundary, boundary)
        np.testing.assert_array_equal(info.moved, [0, 3, 0, 0])


def test_atoms_are_shares_and_the_rest_is_fitted_alone(dtype):
    scores = np.array([0, 0.5, 1, 0.6, 1, 0.8, 1, 1], dtype)
    rows = [scores, scores[[0, 1, 2, 4]], scores[[2, 4, 6]]]
    params, info = fit_rows(LAWS["beta with atoms"], rows, dtype)
    # One score between the ends is no fit: the start stands in.
    np.testing.assert_allclose(params["at_zero"], [1 / 8, 1 / 4, 0])
    np.testing.assert_allclose(params["at_one"], [4 / 8, 2 / 4, 1])
    law = laws.beta()
    (want, _), start = fit_rows(law, [scores[[1, 3, 5]]], dtype), law.start(None, dtype)
    for name in law.parameters:
        np.testing.assert_allclose(params[name][:2], [want[name][0], start[name]], rtol=1e-4)
    np.testing.assert_array_equal(info.between, [3, 1, 0])


def test_a_prior_is_taken_or_refused_in_one_line():
    prior = Prior(0.7, 0.1)
    assert laws.truncated_normal().takes_prior
    assert laws.with_atoms(laws.truncated_normal()).takes_prior
    for law in (laws.beta(), laws.logit_normal(), laws.with_atoms(laws.beta())):
        assert not law.takes_prior
        with pytest.raises(ValueError, match="takes no prior") as caught:
            law.start(prior, np.float32)
        assert "\n" not in str(caught.value)


def test_laws_are_values():
    for law in LAWS.values():
        assert hash(law) == hash(dataclasses.replace(law))
        again = jax.tree.unflatten(jax.tree.structure(law), jax.tree.leaves(law))
        assert again == law
    with pytest.raises(ValueError, match="has atoms already"):
        laws.with_atoms(laws.with_atoms(laws.beta()))
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="with_atoms"):
        laws.with_atoms(tfd.Beta(1.0, 1.0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"margin must be inside \(0, 1/2\)"):
        laws.beta(0.5)


def test_cells_add_up_to_one(dtype):
    law = laws.with_atoms(laws.truncated_normal())
    values = (0.1, 0.3, 0.8, 0.2)
    params = {name: dtype(v) for name, v in zip(law.parameters, values, strict=True)}
    x = np.linspace(0, 1, 101, dtype=dtype)
    cell = jax.jit(log_cell)
    cells = np.exp(np.asarray(cell(law.distribution(params), x, 0.01), np.float64))
    assert cells.sum() == pytest.approx(1, abs=1e-5)
    half = float(TruncatedNormal(dtype(0.8), dtype(0.2)).cdf(dtype(0.005)))
    assert cells[0] == pytest.approx(0.1 + 0.6 * half, rel=1e-4)
    # Far in a tail the cell is the density times its width.
    spike = TruncatedNormal(dtype(0.5), dtype(0.02))
    found = cell(spike, dtype(0.99), 1e-4)
    assert float(found) == pytest.approx(
        float(spike.log_prob(dtype(0.99))) + np.log(1e-4), rel=1e-2
    )


@pytest.mark.parametrize("truth", ["truncated normal", "with atoms"])
def test_the_law_that_the_scores_follow_is_found(truth):
    rng = np.random.default_rng(0)
    if truth == "truncated normal":
        law = TruncatedNormal(rng.uniform(0.6, 1.1, 60).astype(np.float32), np.float32(0.2))
        scores = np.asarray(law.sample(64, seed=KEY)).T
    else:
        scores = rng.beta(2, 2, (60, 64))
        scores = np.where(rng.random((60, 64)) < 0.4, 1, scores)
    plain = laws.truncated_normal()
    tried = {"truncated normal": plain, "with atoms": laws.with_atoms(plain)}
    found = compare_laws(Pool.from_arrays(scores=scores.astype(np.float32)), tried, key=KEY)
    assert found.best == truth or truth in found.tied
    if truth == "with atoms":
        assert found.tied == ()
        assert found.laws["truncated normal"].difference.high < -0.5
    assert found.best in found.sentence
    assert found.num_scores == 60 * 64


def test_a_pool_that_cannot_be_judged_is_refused():
    bare = Pool.from_arrays(scores=None, answers=np.zeros((2, 3), int), gold=np.zeros(2, int))
    with pytest.raises(PoolError, match="no verifier scores"):
        compare_laws(bare, LAWS, key=KEY)
    with pytest.raises(PoolError, match="no problem has 4 scores"):
        compare_laws(Pool.from_arrays(scores=np.full((2, 3), 0.5)), LAWS, key=KEY)


def test_realised_alpha_of_any_law_on_the_scores_that_it_has_not_seen():
    rng = np.random.default_rng(0)
    scores = rng.beta(2, 1, (60, 64)).astype(np.float32)
    scores = np.where(rng.random(scores.shape) < 0.3, 1, scores).astype(np.float32)
    pool = Pool.from_arrays(scores=scores)
    law = laws.with_atoms(laws.truncated_normal())
    first = np.arange(64) < 32
    params, _ = laws.fit_rows(law, scores, np.broadcast_to(first, scores.shape))
    got = realised_alpha(pool, 1.0, 0.9, law.distribution(params), mask=~first)
    assert got.checked > 50
    assert got.promised >= 0.9
    # The law's own noise costs some: 32 scores give P(X = 1) = .3 with a deviation of .08.
    assert got.realised == pytest.approx(0.9, abs=0.05)
    # A law without atoms says that a score of 1 is never reached.
    inner = law.distribution(params).distribution
    nothing = realised_alpha(pool, 1.0, 0.9, inner)
    assert nothing.checked == 0
