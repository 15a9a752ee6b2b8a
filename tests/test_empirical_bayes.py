"""Marginal likelihoods against brute force, and the pooled prior against known truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from optscale_jax import Prior, ScoreStats, TruncatedNormal, synthetic_pool
from optscale_jax.empirical_bayes import (
    fit_pooled_prior,
    log_marginal,
    log_prior,
    posterior_nodes,
    predictive,
    predictive_interval,
    predictive_spread,
)
from optscale_jax.estimation import Params, negative_log_likelihood
from optscale_jax.synthetic import SyntheticConfig, synthetic_problems

REFERENCE = Prior(1.5, 0.2, 0.6, 0.08)
# (n, mean, sd) of scores, from nothing known to everything, inside and at the ends.
CASES = [
    (2, 0.9, 0.02),
    (3, 0.5, 0.16),
    (8, 0.97, 0.02),
    (64, 0.93, 0.07),
    (64, 0.985, 0.05),
    (64, 0.5, 0.2),
    (1000, 0.9, 0.07),
]


def stats_of(cases, dtype=jnp.float32) -> ScoreStats:
    n, mean, sd = (np.array(column) for column in zip(*cases, strict=True))
    return ScoreStats(*(jnp.asarray(v, dtype) for v in (n, mean, n * sd**2)))


def brute_force(stats: ScoreStats, prior: Prior) -> float:
    """The marginal likelihood by the trapezoid rule on two grids, the second where the mass is."""

    def log_joint(loc, log_scale):
        loc, log_scale = np.meshgrid(loc, log_scale)
        law = Params(jnp.asarray(loc, jnp.float32), jnp.exp(jnp.asarray(log_scale, jnp.float32)))
        return np.float64(log_prior(*law, prior) - negative_log_likelihood(stats, law)) + log_scale

    box = (-4.0, 6.0, np.log(1e-4), 0.0)
    for _ in range(3):
        loc, log_scale = np.linspace(*box[:2], 240), np.linspace(*box[2:], 240)
        value = log_joint(loc, log_scale)
        rows, columns = np.nonzero(value > value.max() - 15)
        box = (
            loc[max(columns.min() - 1, 0)],
            loc[min(columns.max() + 1, 239)],
            log_scale[max(rows.min() - 1, 0)],
            log_scale[min(rows.max() + 1, 239)],
        )
    cell = (loc[1] - loc[0]) * (log_scale[1] - log_scale[0])
    return logsumexp(value) + np.log(cell)


@pytest.mark.parametrize(
    ("prior", "tolerance"),
    [(REFERENCE, 2e-3), (Prior(1.2, 0.17, 0.4, 0.05), 1e-2)],
    ids=["reference", "another"],
)
def test_marginal_likelihood_is_the_integral(prior, tolerance):
    stats = stats_of(CASES)
    found = log_marginal(posterior_nodes(stats, REFERENCE), prior)
    expected = [
        brute_force(jax.tree.map(lambda v, i=i: v[i], stats), prior) for i in range(len(CASES))
    ]
    # float32 resolves a likelihood of several thousand nats to a few thousandths.
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=1e-6)


def test_one_score_has_a_marginal_likelihood():
    stats = stats_of([(1, 0.7, 0.0)])
    found = log_marginal(posterior_nodes(stats, REFERENCE), REFERENCE)
    # A single score: average the density over the prior.
    rng = np.random.default_rng(0)
    scale = 0.2 + 0.08 * rng.standard_normal(200_000)
    loc = 1.5 + 0.6 * rng.standard_normal(scale.shape)
    density = TruncatedNormal(loc[scale > 0], scale[scale > 0]).prob(0.7)
    error = density.std() / np.sqrt(density.size) / density.mean()
    # The posterior is as wide and as skewed as the prior; the rule over loc is good to 3% there.
    np.testing.assert_allclose(found[0], np.log(density.mean()), atol=float(4 * error) + 0.03)


def test_pooled_prior_finds_what_the_laws_were_drawn_from():
    config = SyntheticConfig(score_logit=0.4, score_slope=0.4, score_scale_spread=0.2)
    key = jax.random.key(3)
    pool = synthetic_pool(key, num_problems=200, num_samples=32, config=config)
    truth = synthetic_problems(key, num_problems=200, config=config)
    prior = fit_pooled_prior(ScoreStats.from_scores(pool.scores))
    # Standard errors of a mean and of an sd over 200 problems, four of them.
    for found, values in ((prior.loc, truth.loc), (prior.scale, truth.scale)):
        np.testing.assert_allclose(found, values.mean(), atol=4 * values.std() / 200**0.5)
    for found, values in ((prior.loc_sd, truth.loc), (prior.scale_sd, truth.scale)):
        np.testing.assert_allclose(found, values.std(), rtol=4 / (2 * 200) ** 0.5 + 0.05)


def test_pooled_prior_beats_its_neighbours():
    pool = synthetic_pool(jax.random.key(0), num_problems=200, num_samples=32)
    stats = ScoreStats.from_scores(pool.scores)
    prior = fit_pooled_prior(stats)
    nodes = posterior_nodes(stats, prior)
    score = jax.jit(lambda prior: log_marginal(nodes, prior).mean())
    best = score(prior)
    for name in ("loc", "scale", "loc_sd", "scale_sd"):
        for factor in (0.9, 1.1):
            fields = {f: getattr(prior, f) for f in ("loc", "scale", "loc_sd", "scale_sd")}
            other = Prior(**{**fields, name: factor * fields[name]})
            assert score(other) < best


@pytest.mark.parametrize(
    ("cases", "says"),
    [
        ([(5, 0.5, 0.1)], "two problems or more"),
        ([(5, 0.5, 0.1), (1, 0.5, 0.0)], "problem 1 has no spread"),
        ([(5, 0.5, 0.0), (5, 0.4, 0.1)], "problem 0 has no spread"),
    ],
)
def test_pooled_prior_refuses_what_has_no_spread(cases, says):
    with pytest.raises(ValueError, match=says):
        fit_pooled_prior(stats_of(cases))


@pytest.mark.parametrize("prior", [Prior(0.9, 0.1, 0.2, 0.05), Prior(3.0, 0.3, 1.3, 0.11)])
def test_predictive_is_the_average_over_the_prior(prior):
    rng = np.random.default_rng(1)
    scale = prior.scale + prior.scale_sd * rng.standard_normal(1_000_000)
    loc = prior.loc + prior.loc_sd * rng.standard_normal(scale.shape)
    law = TruncatedNormal(loc[scale > 0], scale[scale > 0])
    mean, sd = np.asarray(law.mean()), np.asarray(law.stddev())
    found = predictive(prior)
    # 128 equally probable points leave out the outermost 1/32 of loc, where the mean bends.
    np.testing.assert_allclose(found.mean, mean.mean(), atol=0.05 * mean.std())
    np.testing.assert_allclose(found.sd, sd.mean(), atol=0.05 * sd.std())
    spread = predictive_spread(prior)
    np.testing.assert_allclose(spread.mean, mean.std(), rtol=0.05)
    np.testing.assert_allclose(spread.sd, sd.std(), rtol=0.05)

    for n in (np.inf, 4.0):
        noise = 0 if np.isinf(n) else sd / np.sqrt(n) * rng.standard_normal(sd.shape)
        low, high = predictive_interval(prior, 0.8, n)
        np.testing.assert_allclose(np.mean(mean + noise < low), 0.1, atol=0.01)
        np.testing.assert_allclose(np.mean(mean + noise > high), 0.1, atol=0.01)


def test_interval_broadcasts_over_problems():
    prior = Prior(jnp.array([0.5, 0.9]), jnp.array([0.1, 0.2]), 0.1, 0.05)
    both = predictive_interval(prior, 0.8, jnp.array([4.0, np.inf]))
    second = predictive_interval(Prior(0.9, 0.2, 0.1, 0.05), 0.8)
    assert both.shape == (2, 2)
    np.testing.assert_allclose(both[1], second, atol=1e-6)
