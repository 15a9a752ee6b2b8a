"""What problems say about a prior: marginal likelihoods, and the pooled prior of them all.

A problem's scores are i.i.d. TruncatedNormal(loc, scale), and (loc, scale) is drawn from the
problem's prior. The marginal likelihood integrates the law out,

    p(D | prior) = integral p(D | loc, scale) p(loc, scale | prior) d loc d scale,

and is what an honest prior maximises: it pays for a prior that is wrong, for one that is narrower
than its errors and for one that is wider. Quadrature nodes are laid out once, for the posterior
under a reference prior p0; the marginal likelihood of every other prior is then

    p(D | prior) = p(D | p0) E[ p(loc, scale | prior) / p(loc, scale | p0) | D, p0 ],

a logsumexp over the nodes that is smooth in the prior and costs no likelihood. `fit_pooled_prior`
maximises it over one prior for all problems (empirical Bayes), which needs no features of a
problem: it is the floor for a predictor, and a better start than the authors' (0.8, 0.2).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, logsumexp, ndtr, ndtri

from optscale_jax.distributions import TruncatedNormal
from optscale_jax.estimation import (
    Params,
    Prior,
    ScoreStats,
    negative_log_likelihood,
    negative_log_prior,
)
from optscale_jax.typing import Array, ArrayLike

__all__ = [
    "Posterior",
    "Predictive",
    "fit_pooled_prior",
    "log_marginal",
    "log_prior",
    "posterior_nodes",
    "predictive",
    "predictive_interval",
    "predictive_spread",
]

_SCALES = 20
# Nodes over log scale. The trapezoid rule converges geometrically on a smooth peak; 20 nodes over a
# range that holds all but e^-_DEPTH of it leave an error below float32's.
_LOCS = 7  # Gauss-Hermite nodes over loc for each scale, where the posterior is log-concave
_DEPTH = 14.0  # nats below the peak at which a scale is left out
_REFINEMENTS = 2
_NEWTON_STEPS = 16
# Newton's method in loc starts on the side from which it converges without overshooting, doubling
# its distance where loc is far outside the interval.
_MIN_WIDTH = 1e-4  # least sd of a pooled prior: problems that are all alike have none
_ROUNDS = 3  # of laying out nodes and fitting; the prior moves by less and less


class Posterior(NamedTuple):
    """Quadrature nodes [..., K] of each problem's posterior under a reference prior."""

    loc: Array
    scale: Array  # > 0
    # Log posterior mass of each node minus the reference prior's log density there: adding another
    # prior's log density gives the log marginal likelihood.
    log_weight: Array


class Predictive(NamedTuple):
    """Moments of a problem's law of scores, averaged over its prior; each of shape [...]."""

    mean: Array  # in [0, 1]
    sd: Array


def log_prior(loc: ArrayLike, scale: ArrayLike, prior: Prior) -> Array:
    """Log density [...] of a prior: independent normals, the scale's restricted to > 0."""
    params = Params(jnp.asarray(loc), jnp.asarray(scale))
    return -negative_log_prior(params, prior) - log_ndtr(prior.scale / prior.scale_sd)


def _given_scale(stats: ScoreStats, prior: Prior, log_scale: Array) -> tuple[Array, Array, Array]:
    """(mode, sd, log mass by Laplace) of loc in the posterior at one scale; all scalars."""
    scale = jnp.exp(log_scale)
    precision = 1 / prior.loc_sd**2

    def derivatives(loc):
        law = TruncatedNormal(loc, scale)
        gradient = stats.n * (law.mean() - stats.mean) / scale**2 + (loc - prior.loc) * precision
        return gradient, stats.n * law.variance() / scale**4 + precision

    def newton(_, loc):
        gradient, curvature = derivatives(loc)
        return loc - gradient / curvature

    loc = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, stats.mean)
    sd = 1 / jnp.sqrt(derivatives(loc)[1])
    return loc, sd, _log_joint(stats, prior, loc, scale) + log_scale + jnp.log(sd)


def _log_joint(stats: ScoreStats, prior: Prior, loc: Array, scale: Array) -> Array:
    likelihood = -negative_log_likelihood(stats, Params(loc, scale))
    return likelihood + log_prior(loc, scale, prior)


def _nodes_of_one(stats: ScoreStats, prior: Prior) -> Posterior:
    dtype = stats.mean.dtype
    spread = jnp.sqrt(stats.m2 / jnp.maximum(stats.n, 1))
    # Below a sixth of the scores' own spread the likelihood is e^-18 of its peak per score. Without
    # a spread (n = 1) the integrand falls like the scale itself.
    top = prior.scale + 7 * prior.scale_sd
    least = jnp.where(spread > 0, jnp.minimum(spread / 6, top / 4), top * 1e-4)
    ends = jnp.log(least), jnp.log(jnp.maximum(top, 2 * least))
    fractions = jnp.asarray(np.linspace(0.0, 1.0, _SCALES), dtype)

    def at(ends):
        grid = ends[0] + (ends[1] - ends[0]) * fractions
        return grid, jax.vmap(lambda t: _given_scale(stats, prior, t))(grid)

    def refine(_, state):
        ends = state[0]
        grid, (mode, sd, mass) = at(ends)
        inside = mass > jnp.max(mass) - _DEPTH
        first = jnp.argmax(inside)
        last = _SCALES - 1 - jnp.argmax(inside[::-1])
        inner = grid[jnp.maximum(first - 1, 0)], grid[jnp.minimum(last + 1, _SCALES - 1)]
        return inner, ends, grid, mode, sd

    # The last round lays out the nodes themselves: one loop, which is compiled once.
    nothing = jnp.zeros(_SCALES, dtype)
    state = ends, ends, nothing, nothing, nothing
    _, ends, grid, mode, sd = jax.lax.fori_loop(0, _REFINEMENTS + 1, refine, state)
    x, w = np.polynomial.hermite_e.hermegauss(_LOCS)
    loc = mode[:, None] + sd[:, None] * jnp.asarray(x, dtype)
    scale = jnp.broadcast_to(jnp.exp(grid)[:, None], loc.shape)
    # d loc = sd e^(x^2 / 2) (weight), d scale = scale d log scale.
    step = (ends[1] - ends[0]) / (_SCALES - 1)
    log_volume = jnp.asarray(np.log(w) + 0.5 * x**2, dtype) + jnp.log(sd * step)[:, None]
    each = jax.vmap(jax.vmap(lambda a, b: negative_log_likelihood(stats, Params(a, b))))
    log_weight = -each(loc, scale) + (log_volume + grid[:, None])
    return Posterior(loc.reshape(-1), scale.reshape(-1), log_weight.reshape(-1))


@jax.jit
def posterior_nodes(stats: ScoreStats, prior: Prior) -> Posterior:
    """Lays out quadrature nodes for each problem's posterior under a reference prior.

    For a fixed scale the posterior is log-concave in loc: Newton's method finds its mode, and
    Gauss-Hermite nodes cover it. Over the scale it is the trapezoid rule in log scale, on the range
    that holds the mass.

    Args:
      stats: statistics of shape [P], n >= 1. Without a spread (equal scores, n >= 2) the marginal
        likelihood is infinite and the nodes mean nothing.
      prior: the reference, with scalar fields or fields of shape [P]. Another prior's marginal
        likelihood is accurate as long as that prior is not much narrower, over a problem's
        posterior, than the nodes' spacing (about half a posterior sd).

    Returns:
      Nodes of shape [P, K].
    """
    dtype = jnp.result_type(float, stats.mean)
    shape = jnp.shape(stats.mean)
    stats, prior = jax.tree.map(
        lambda v: jnp.broadcast_to(jnp.asarray(v, dtype), shape), (stats, prior)
    )
    return jax.vmap(_nodes_of_one)(stats, prior)


@jax.jit
def log_marginal(posterior: Posterior, prior: Prior) -> Array:
    """Log marginal likelihood of each problem's scores, in their order, under a prior, in nats.

    Args:
      posterior: nodes of shape [..., K].
      prior: prior of scalar fields or of shape [...].
    """
    prior = jax.tree.map(lambda v: jnp.asarray(v)[..., None], prior)
    log_density = log_prior(posterior.loc, posterior.scale, prior)
    return logsumexp(posterior.log_weight + log_density, axis=-1)


def fit_pooled_prior(stats: ScoreStats) -> Prior:
    """One prior for all problems, by maximum marginal likelihood (empirical Bayes).

    Args:
      stats: statistics of shape [P], P >= 2, each with n >= 2 scores that are not all equal.

    Returns:
      The prior, scalar fields.

    Raises:
      ValueError: fewer than two problems, or one whose scores have no spread.

    References:
      Robbins (1956), "An empirical Bayes approach to statistics"; Morris (1983), "Parametric
      empirical Bayes inference".
    """
    n, mean, m2 = (np.atleast_1d(np.asarray(v)) for v in (stats.n, stats.mean, stats.m2))
    if len(mean) < 2:
        raise ValueError(f"a pooled prior needs two problems or more, found {len(mean)}")
    flat = ~((n >= 2) & (m2 > 0))
    if flat.any():
        raise ValueError(
            f"problem {int(np.argmax(flat))} has no spread (n = {n[flat][0]:g}, m2 = "
            f"{m2[flat][0]:g}); leave such problems out"
        )
    sd = np.sqrt(m2 / n)
    # Twice as wide as the statistics themselves, so that no problem is beyond the nodes' reach.
    widths = (max(2 * each.std(), 10 * _MIN_WIDTH) for each in (mean, sd))
    prior = Prior(*map(jnp.float32, (mean.mean(), sd.mean(), *widths)))
    for _ in range(_ROUNDS):
        prior = _maximise(posterior_nodes(stats, prior), prior)
    return prior


@jax.jit
def _maximise(posterior: Posterior, start: Prior) -> Prior:
    def unpack(x):
        widths = _MIN_WIDTH + jnp.exp(x[2:])
        return Prior(x[0] * start.loc_sd + start.loc, start.scale * jnp.exp(x[1]), *widths)

    def loss(x):
        return -jnp.mean(log_marginal(posterior, unpack(x)))

    # Newton's method on four numbers. Where the curvature is not positive its absolute value makes
    # a descent direction; the longest step of the line search that goes down is taken.
    def newton(_, x):
        gradient, hessian = jax.grad(loss)(x), jax.hessian(loss)(x)
        values, vectors = jnp.linalg.eigh(hessian)
        values = jnp.maximum(jnp.abs(values), 1e-3 * jnp.max(jnp.abs(values)) + 1e-9)
        step = -vectors @ ((vectors.T @ gradient) / values)
        step = step / jnp.maximum(1.0, jnp.max(jnp.abs(step)))
        sizes = 0.5 ** jnp.arange(0.0, 8.0, dtype=x.dtype)
        losses = jax.lax.map(lambda size: loss(x + size * step), sizes)
        best = jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
        return jnp.where(losses[best] < loss(x), x + sizes[best] * step, x)

    widths = jnp.log(jnp.stack([start.loc_sd, start.scale_sd]) - 0.5 * _MIN_WIDTH)
    x = jnp.concatenate([jnp.zeros(2, widths.dtype), widths])
    return unpack(jax.lax.fori_loop(0, 12, newton, x))


# What a prior predicts ----------------------------------------------------------------------------


def _prior_nodes(prior: Prior, num_locs: int, num_scales: int) -> tuple[Array, Array]:
    """(loc, scale) at equally probable points of a prior, shape [..., num_locs * num_scales]."""
    prior = jax.tree.map(lambda v: jnp.asarray(v)[..., None, None], prior)
    dtype = jnp.result_type(prior.loc)
    z = ndtri(jnp.asarray((np.arange(num_locs) + 0.5) / num_locs, dtype))
    u = jnp.asarray((np.arange(num_scales) + 0.5) / num_scales, dtype)
    # The scale's normal is cut at 0.
    mass = ndtr(prior.scale / prior.scale_sd)
    loc = prior.loc + prior.loc_sd * z[:, None]
    scale = prior.scale - prior.scale_sd * ndtri((1 - u) * mass)
    scale = jnp.maximum(scale, jnp.finfo(dtype).eps)
    loc, scale = jnp.broadcast_arrays(loc, scale)
    return tuple(v.reshape(*v.shape[:-2], -1) for v in (loc, scale))  # pyright: ignore[reportReturnType]


@functools.partial(jax.jit, static_argnames=("num_locs", "num_scales"))
def predictive(prior: Prior, *, num_locs: int = 16, num_scales: int = 8) -> Predictive:
    """Expected mean and standard deviation of a problem's scores, over its prior [...].

    Args:
      prior: fields of shape [...].
      num_locs: points of loc to average over.
      num_scales: points of scale.
    """
    law = TruncatedNormal(*_prior_nodes(prior, num_locs, num_scales))
    return Predictive(jnp.mean(law.mean(), axis=-1), jnp.mean(law.stddev(), axis=-1))


@jax.jit
def predictive_spread(prior: Prior) -> Predictive:
    """How sure a prior [...] is of what `predictive` expects: standard deviations over it."""
    # More points than an expectation needs: they leave out the outermost part of a prior.
    law = TruncatedNormal(*_prior_nodes(prior, 32, 12))
    return Predictive(jnp.std(law.mean(), axis=-1), jnp.std(law.stddev(), axis=-1))


@jax.jit
def predictive_interval(prior: Prior, coverage: ArrayLike = 0.8, n: ArrayLike = np.inf) -> Array:
    """Central interval for the mean of n scores of a problem, over its prior.

    Args:
      prior: fields of shape [...].
      coverage: probability of the interval, in (0, 1).
      n: number of scores whose mean it is for, broadcastable to [...]; infinite for the law's own
        mean.

    Returns:
      Shape [..., 2]: lower and upper end, with (1 - coverage) / 2 below and above.
    """
    law = TruncatedNormal(*_prior_nodes(prior, 32, 12))
    centre = law.mean()
    # The mean of n scores is normal about the law's mean by the central limit theorem.
    width = jnp.maximum(law.stddev() / jnp.sqrt(jnp.asarray(n)[..., None]), 1e-6)

    def quantile(level):
        def halve(_, ends):
            low, high = ends
            middle = 0.5 * (low + high)
            below = jnp.mean(ndtr((middle[..., None] - centre) / width), axis=-1) < level
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        zero = jnp.zeros(centre.shape[:-1], centre.dtype)
        low, high = jax.lax.fori_loop(0, 22, halve, (zero, zero + 1))
        return 0.5 * (low + high)

    half = jnp.asarray(coverage) / 2
    return jnp.stack([quantile(0.5 - half), quantile(0.5 + half)], axis=-1)
