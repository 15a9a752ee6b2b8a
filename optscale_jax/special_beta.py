"""Scalar functions of the beta law that stay exact in the tails: `special`, for logits.

A score x has the logit t = log(x / (1 - x)); with p = a / (a + b) the beta law's density of t is

    exp(f),    f = a log x + b log(1 - x) - log B(a, b),

log-concave in t for all a, b > 0, with its mode at logit(p). Everything follows from one function,
`softplus_divergence`: how far log(1 + e^t) is above its own tangent, which is f's fall from its
mode, what a beta fit has to remember of the scores, and the exponent of the tails' integrals. It is
never the difference of two large numbers, so a law as narrow as 1e-6 keeps float32's digits, where
a log x + b log(1 - x) - log B(a, b) has lost them all at a + b = 1e6.
"""

import functools
import math

import jax
import jax.numpy as jnp
from tensorflow_probability.substrates.jax.distributions import StudentT

from optscale_jax.special import Tails, bits, horner, series, split, unit_quadrature
from optscale_jax.typing import Array

__all__ = [
    "beta_tails",
    "digamma_gap",
    "log1p_gap",
    "log_beta_density",
    "log_beta_peak",
    "softplus_divergence",
    "stirling_remainder",
    "student_t_excess",
]

_ASYMPTOTIC_FROM = 8  # least argument at which the asymptotic series reach rounding
_SHIFT = 8  # by which an exponent is raised before its tail is integrated
_KNEE = 0.3  # below (knee / exponent) the lower end of a density is summed as a power series
_NODES = {32: 20, 64: 40}
_SERIES_TERMS = {32: 14, 64: 30}

# Series, highest power first. In 1/x^2: B_2k / (2k (2k - 1)) and B_2k / 2k.
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)
_STIRLING = [v / ((2 * k + 2) * (2 * k + 1)) for k, v in enumerate(_BERNOULLI)][::-1]
_DIGAMMA = [v / (2 * k + 2) for k, v in enumerate(_BERNOULLI)][::-1]
_ATANH = series(lambda k: 1 / (2 * k + 3), 8, 17)  # (atanh(r) / r - 1) / r^2 in r^2
_EXP = series(lambda k: 1 / math.factorial(k + 2), 8, 15)  # (exp(x) - 1 - x) / x^2 in x


@jax.custom_jvp
def log1p_gap(z: Array) -> Array:
    """The gap z - log(1 + z) >= 0 for z > -1, without the cancellation at small z."""
    small = (z > -0.5) & (z < 1.0)
    inner = jnp.where(small, z, 0.0)
    # log(1 + z) = 2 atanh(r), and z - 2 r = z r.
    r = inner / (2.0 + inner)
    series = r * (inner - 2 * r * r * horner(r * r, _ATANH[bits(z)]))
    outer = jnp.where(small, 1.0, z)
    return jnp.where(small, series, outer - jnp.log1p(outer))


@log1p_gap.defjvp
def _(primals, tangents):
    (z,), (z_dot,) = primals, tangents
    return log1p_gap(z), z / (1.0 + z) * z_dot


def _exp_gap(x: Array, rise: Array) -> Array:
    """exp(x) - 1 - x >= 0, given expm1(x)."""
    small = jnp.abs(x) < 0.5
    inner = jnp.where(small, x, 0.0)
    return jnp.where(small, inner * inner * horner(inner, _EXP[bits(x)]), rise - x)


@jax.custom_jvp
def softplus_divergence(step: Array, p: Array, q: Array) -> Array:
    """How far softplus at m + step is above its tangent at m: >= 0, 0 at step = 0.

        log(1 + e^(m + step)) - log(1 + e^m) - p step = log(q + p e^step) - p step,

    with p = sigmoid(m) and q = sigmoid(-m): the Kullback-Leibler divergence of a coin with
    P(heads) = p from one whose log-odds are higher by `step`. Prevents the cancellation of the
    terms written out: they are of the order of step, their sum of p q step^2 / 2. q is given apart
    because next to p = 1 the difference 1 - p has no digits.
    """
    # The same function from the other end, where p is the smaller of the two.
    swap = p > q
    step, p, q = jnp.where(swap, -step, step), jnp.where(swap, q, p), jnp.where(swap, p, q)
    rise = jnp.expm1(step)
    z = p * rise
    # Both terms are of the order of the result, until z is large.
    near = z < 1.0
    inner = jnp.where(near, step, 0.0)
    close = p * _exp_gap(inner, jnp.where(near, rise, 0.0)) - log1p_gap(jnp.where(near, z, 0.0))
    away = jnp.where(near, 1.0, step)
    far = q * away + jnp.log(p + q * jnp.exp(-away))
    return jnp.where(near, close, far)


@softplus_divergence.defjvp
def _(primals, tangents):
    step, p, q = primals
    step_dot, p_dot, _ = tangents
    # d/dstep = sigmoid(m + step) - p; d/dp = expm1(step) / (1 + p expm1(step)) - step.
    rise = jnp.expm1(-jnp.abs(step))
    up = step > 0
    mass = jnp.where(up, p, q) + jnp.where(up, q, p) * (1 + rise)
    slope = jnp.where(up, -rise, rise) / mass
    moved = p * q * slope * step_dot + (slope - step) * p_dot
    return softplus_divergence(step, p, q), moved


def _shifted(x: Array) -> tuple[Array, Array]:
    """(whether x is below the asymptotic series' domain, an argument inside it)."""
    small = x < _ASYMPTOTIC_FROM
    return small, jnp.where(small, x + _ASYMPTOTIC_FROM, x)


def digamma_gap(x: Array) -> Array:
    """The gap log x - digamma(x) > 0 for x > 0: about 1 / (2 x), far below its terms."""
    small, y = _shifted(x)
    inverse = 1.0 / y
    series = inverse * (0.5 + inverse * horner(inverse * inverse, _DIGAMMA))
    # digamma(x) = digamma(x + 8) - sum 1 / (x + k).
    below = jnp.where(small, x, 1.0)
    terms = sum(1.0 / (below + k) for k in range(_ASYMPTOTIC_FROM))
    rest = terms - jnp.log1p(_ASYMPTOTIC_FROM / below)
    return jnp.where(small, rest, 0.0) + series


@jax.custom_jvp
def stirling_remainder(x: Array) -> Array:
    """Error of Stirling's formula, log Gamma(x) - ((x - 1/2) log x - x + log(2 pi) / 2), x > 0."""
    small, y = _shifted(x)
    inverse = 1.0 / y
    series = inverse * horner(inverse * inverse, _STIRLING)
    below = jnp.where(small, x, 1.0)
    # log Gamma(x) = log Gamma(x + 8) - log(x (x + 1) ... (x + 7)), each over x + 8: no large logs.
    quotients = math.prod((below + _ASYMPTOTIC_FROM) / (below + k) for k in range(_ASYMPTOTIC_FROM))
    rest = (below - 0.5) * jnp.log1p(_ASYMPTOTIC_FROM / below) - _ASYMPTOTIC_FROM
    rest = rest + jnp.log(quotients)
    return jnp.where(small, rest, 0.0) + series


@stirling_remainder.defjvp
def _(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return stirling_remainder(x), (0.5 / x - digamma_gap(x)) * x_dot


@jax.custom_jvp
def _mean_gap(x: Array, y: Array, a: Array, b: Array) -> Array:
    """The gap x b - y a = (x - p) (a + b), given y = 1 - x: exact next to x = p.

    Products of halves of the bits each are exact, and so is the difference of nearly equal numbers;
    the plain one is off by half a standard deviation of the law at a + b = 1e13 in float32.
    """
    total = a + b
    # What the sum has rounded away, by Knuth's two-sum.
    virtual = total - a
    lost = (a - (total - virtual)) + (b - virtual)
    xh, xl = split(x)
    th, tl = split(total)
    small = ((((xh * th - a) + xh * tl) + xl * th) + xl * tl) + x * lost
    # Next to x = 1, the same from the other end.
    yh, yl = split(y)
    large = ((((yh * th - b) + yh * tl) + yl * th) + yl * tl) + y * lost
    return jnp.where(x < y, small, -large)


@_mean_gap.defjvp
def _(primals, tangents):
    x, y, a, b = primals
    x_dot, _, a_dot, b_dot = tangents
    return _mean_gap(*primals), (a + b) * x_dot + x * b_dot - y * a_dot


def _log_ratio(gap: Array, share: Array, mean: Array) -> Array:
    """log(share / mean), where gap = share / mean - 1 is exact and small, or large."""
    close = jnp.abs(gap) < 0.5
    return jnp.where(
        close,
        jnp.log1p(jnp.where(close, gap, 0.0)),
        jnp.log(jnp.where(close, 1.0, share)) - jnp.log(jnp.where(close, 1.0, mean)),
    )


def _half_divergence(gap: Array, share: Array, mean: Array) -> Array:
    """The gap of `log1p_gap` at gap, with 1 + gap = share / mean."""
    close = gap > -0.5
    return jnp.where(
        close,
        log1p_gap(jnp.where(close, gap, 0.0)),
        gap - _log_ratio(jnp.where(close, -1.0, gap), jnp.where(close, 1.0, share), mean),
    )


@jax.custom_jvp
def log_beta_density(x: Array, y: Array, a: Array, b: Array) -> Array:
    """Log density of the logit of a beta variable: a log x + b log y - log B(a, b), y = 1 - x.

    References:
      Loader (2000), "Fast and accurate computation of binomial probabilities": the same saddle
      point with Stirling's remainders apart.
    """
    return log_beta_peak(a, b) - _fall(x, y, a, b)


def _fall(x: Array, y: Array, a: Array, b: Array) -> Array:
    """The log density of the logit at its mode, less that at x: >= 0."""
    total = a + b
    gap = _mean_gap(x, y, a, b)
    below = a * _half_divergence(gap / a, x, a / total)
    return below + b * _half_divergence(-gap / b, y, b / total)


def log_beta_peak(a: Array, b: Array) -> Array:
    """Log density of the logit at its mode, by Stirling's formula and its remainders."""
    total = a + b
    product = jnp.minimum(a, b) / total * jnp.maximum(a, b)
    remainders = stirling_remainder(total) - stirling_remainder(a) - stirling_remainder(b)
    return 0.5 * jnp.log(product / (2 * math.pi)) + remainders


@log_beta_density.defjvp
def _(primals, tangents):
    x, y, a, b = primals
    x_dot, _, a_dot, b_dot = tangents
    total = a + b
    gap = _mean_gap(*primals)
    in_total = digamma_gap(total)
    # x and y are no factors of one quotient: a product of two numbers next to 0 underflows.
    return log_beta_density(*primals), (
        -gap / x / y * x_dot
        + (_log_ratio(gap / a, x, a / total) + (digamma_gap(a) - in_total)) * a_dot
        + (_log_ratio(-gap / b, y, b / total) + (digamma_gap(b) - in_total)) * b_dot
    )


def _reach(x: Array, y: Array, a: Array, b: Array, gap: Array, cutoff: float) -> Array:
    """A step in the logit over which x^a y^b falls by exp(-cutoff), or a little longer."""
    total = a + b
    curvature = total * x * y
    slope = jnp.maximum(gap, 0.0)
    # The fall is convex, and above slope t + curvature t^2 / (2 + t) ...
    linear = cutoff - 2 * slope
    root = jnp.sqrt(linear * linear + 8 * cutoff * (slope + curvature))
    reach = jnp.where(linear > 0, linear + root, 8 * cutoff * (slope + curvature) / (root - linear))
    reach = reach / (2 * (slope + curvature))
    for _ in range(4):
        # ... and total log(y + x e^t) - a t, which is solved for the t in the logarithm.
        level = (cutoff + a * reach) / total
        log_rise = level + jnp.log(-jnp.expm1(-level)) - jnp.log(x)
        reach = jnp.minimum(reach, jnp.logaddexp(log_rise, 0.0))
    return reach


def _upper_factor(x: Array, y: Array, a: Array, b: Array) -> Array:
    """P(X > x) B(a, b) / (x^a y^b), the mass above in units of the logit's density at x.

    Raising b by one splits off a positive term, so that eight of them leave an integral whose
    integrand falls at a rate above eight: Gauss-Legendre on the part that matters.
    """
    term, total = jnp.ones_like(y), jnp.ones_like(y)
    for k in range(_SHIFT):
        term = term * ((a + b + k) * y / (b + 1 + k))
        total = total + term if k < _SHIFT - 1 else total
    raised = b + _SHIFT
    gap = _mean_gap(x, y, a, b) + _SHIFT * x
    cutoff = 2.0 - math.log(float(jnp.finfo(a.dtype).eps))
    reach = jax.lax.stop_gradient(_reach(x, y, a, raised, gap, cutoff))

    def add(area, rule):
        node, weight = rule
        step = node * reach
        fall = gap * step + (a + raised) * softplus_divergence(step, x, y)
        return area + weight * jnp.exp(-fall), None

    rule = tuple(jnp.asarray(v, a.dtype) for v in unit_quadrature(_NODES[bits(a)]))
    area, _ = jax.lax.scan(add, jnp.zeros_like(reach), rule)
    return (total + term * raised * reach * area) / b


def _power_series(x: Array, end: Array, a: Array, b: Array) -> Array:
    """The integral of (s / end)^(a - 1) (1 - s)^(b - 1) / end over x < s < end, for b end < 1/3."""
    log_ratio = jnp.log(x) - jnp.log(end)

    def add(carry, n):
        total, factor = carry
        total = total - factor * jnp.expm1((a + n) * log_ratio) / (a + n)
        return (total, factor * ((n + 1 - b) / (n + 1) * end)), None

    orders = jnp.arange(_SERIES_TERMS[bits(a)], dtype=a.dtype)
    (total, _), _ = jax.lax.scan(add, (jnp.zeros_like(a), jnp.ones_like(a)), orders)
    return total


def _is_upper_smaller(x: Array, y: Array, a: Array, b: Array) -> Array:
    """Whether x is above the median, or so near it that it does not matter which tail is smaller.

    The mean is near enough to the median but where most of the mass is within an end's knee, where
    the law is a power of x.
    """
    peak = log_beta_peak(a, b)

    def within_knee(x, a, b):
        end = _KNEE / jnp.maximum(b, 1.0)
        log_mass = peak - _fall(end, 1 - end, a, b) - jnp.log(a)
        above = log_mass + a * (jnp.log(x) - jnp.log(end)) > -math.log(2.0)
        return (log_mass > -math.log(2.0)) & (x < end), above

    in_low, above_low = within_knee(x, a, b)
    in_high, above_high = within_knee(y, b, a)
    upper = x * b > y * a
    return jnp.where(in_low, above_low, jnp.where(in_high, ~above_high, upper))


def _log_smaller_tail(x: Array, y: Array, a: Array, b: Array, upper: Array) -> Array:
    """Log of P(X > x) where `upper`, else of P(X < x): exact where that is not next to 1."""
    # The law of 1 - X has the exponents exchanged: one tail is enough.
    x, y = jnp.where(upper, x, y), jnp.where(upper, y, x)
    a, b = jnp.where(upper, a, b), jnp.where(upper, b, a)
    # Below the knee, x^(a - 1) with a small a runs over many orders of magnitude: a power series.
    end = jax.lax.stop_gradient(_KNEE / jnp.maximum(b, 1.0))
    below = x < end
    series = _power_series(jnp.where(below, x, end), end, a, b) * jnp.exp(-b * jnp.log1p(-end))
    x, y = jnp.where(below, end, x), jnp.where(below, 1 - end, y)
    factor = _upper_factor(x, y, a, b) + jnp.where(below, series, 0.0)
    return log_beta_density(x, y, a, b) + jnp.log(factor)


@jax.custom_jvp
@jax.jit
def beta_tails(x: Array, y: Array, a: Array, b: Array) -> Tails:
    """Logs of the two tails of Beta(a, b) at x: the regularised incomplete beta function.

    The smaller tail is computed, the larger follows from it. Prevents what `betainc` and its
    continued fraction do: tails that underflow, iterations that grow with a and b, no derivative.
    For x inside (0, 1), y = 1 - x and a, b > 0; every field of the broadcast shape.
    """
    x, y, a, b = jnp.broadcast_arrays(x, y, a, b)
    upper = _is_upper_smaller(x, y, a, b)
    return _both_tails(_log_smaller_tail(x, y, a, b, upper), upper)


def _both_tails(smaller: Array, upper: Array) -> Tails:
    """Both tails from the log of the smaller, which is the upper one where `upper`."""
    smaller = jnp.minimum(smaller, 0.0)
    larger = jnp.log1p(-jnp.exp(smaller))
    odds = smaller - larger
    return Tails(
        log_cdf=jnp.where(upper, larger, smaller),
        log_sf=jnp.where(upper, smaller, larger),
        log_odds=jnp.where(upper, odds, -odds),
    )


@beta_tails.defjvp
def _(primals, tangents):
    x, y, a, b = jnp.broadcast_arrays(*primals)
    x_dot, _, a_dot, b_dot = tangents
    upper = _is_upper_smaller(x, y, a, b)
    zero = jnp.zeros_like(x)
    tangents = (zero, zero, *(jnp.broadcast_to(t, x.shape) for t in (a_dot, b_dot)))
    tail = functools.partial(_log_smaller_tail, upper=upper)
    smaller, smaller_dot = jax.jvp(tail, (x, y, a, b), tangents)
    out = _both_tails(smaller, upper)
    # d log(s / (1 - s)) = d log s / (1 - s).
    odds_dot = smaller_dot * jnp.exp(-jnp.where(upper, out.log_cdf, out.log_sf))
    steepness = out.steepness(log_beta_density(x, y, a, b))
    odds_dot = jnp.where(upper, odds_dot, -odds_dot) - steepness / x / y * x_dot
    return out, out.tangent(odds_dot)


def student_t_excess(z: Array, nu: Array) -> Array:
    """How far a Student t variable is above z in expectation, E[max(T - z, 0)], for nu > 1.

        (nu + z^2) / (nu - 1) t_nu(z) - z S_nu(z),    S_nu(z) = I_{nu / (nu + z^2)}(nu / 2, 1/2) / 2

    for z >= 0, and less z, which adds no cancellation, below. The difference loses a factor of
    min(nu, 1 + z^2) of precision at most; a survival function by `betainc` is off by as much again.
    """
    z, nu = jnp.broadcast_arrays(z, nu)
    finfo = jnp.finfo(z.dtype)
    # At 0 the beta law's other end is met, where what it is multiplied by is 0.
    away = jnp.clip(jnp.abs(z), finfo.tiny**0.25, finfo.max**0.25)
    total = nu + away**2
    above = beta_tails(nu / total, away**2 / total, nu / 2, jnp.full_like(nu, 0.5)).log_cdf
    density = StudentT(nu, jnp.zeros_like(nu), jnp.ones_like(nu)).log_prob(away)
    # In logs, because a density may underflow where its product with z^2 does not.
    excess = jnp.exp(density + jnp.log(total / (nu - 1))) - jnp.exp(above + jnp.log(away / 2))
    return jnp.maximum(excess, 0.0) + jnp.maximum(-z, 0.0)
