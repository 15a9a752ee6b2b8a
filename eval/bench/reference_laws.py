"""The beta and the logit-normal law, and laws with atoms, for `.reference` to compare with.

Textbook formulas in mpmath to 50 digits and more, sharing nothing with the library.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import scipy.special
import scipy.stats

from optscale_jax.distributions import Beta, LogitNormal, TruncatedNormal, WithAtoms

from .reference import TRUNCATED_NORMAL, Law, Points, mixed_points

_BETA_CASES = {
    "uniform": (1.0, 1.0),
    "typical": (4.9, 1.7),
    "arcsine": (0.5, 0.5),
    "saturated": (0.7, 0.02),
    "all at both ends": (0.01, 0.01),
    "power": (0.01, 1.0),
    "rising": (300.0, 1.0),
    "steep at one": (1e6, 0.05),
    "like a gamma": (2.5, 1e6),
    "narrow at the end": (9.8e3, 99.0),
    "spike inside": (1e6, 1e6),
    "narrow, uneven": (1e6, 1e4),
}
_LOGIT_NORMAL_CASES = {
    "typical": (1.2, 1.0),
    "narrow": (4.6, 0.1),
    "narrow in the middle": (0.0, 0.03),
    "wide": (0.0, 100.0),
    "far up": (12.0, 0.5),
    "far down": (-12.0, 3.0),
    "two modes": (0.3, 3.0),
}


def _series(x, y, a, b, bits: int):
    """Log of the integral of s^(a-1) (1-s)^(b-1) over [0, x], and its derivatives in a and b.

    A series of positive terms (DLMF 8.17.7 after Euler's transformation), in integers.
    """
    one = 1 << bits

    def fixed(v) -> int:
        return int(mp.floor(mp.ldexp(v, bits)))

    term = total = one
    by_a = by_b = log_a = log_b = k = 0
    top, bottom, ratio = fixed(a + b), fixed(a + 1), fixed(x)
    while True:
        inverse = (one << bits) // (top + k * one)
        log_a += inverse - (one << bits) // (bottom + k * one)
        log_b += inverse
        term = (term * (top + k * one) // (bottom + k * one)) * ratio >> bits
        k += 1
        total += term
        by_a += term * log_a >> bits
        by_b += term * log_b >> bits
        left = one - (top + k * one) * ratio // (bottom + k * one)
        size = term * (abs(log_a) + abs(log_b) + one) >> bits
        if left > 0 and size < (total >> (bits - 60)) * left >> bits:
            break

    def number(v):
        return mp.ldexp(mp.mpf(v), -bits)

    return (
        a * mp.log(x) + b * mp.log(y) - mp.log(a) + mp.log(number(total)),
        mp.log(x) - 1 / a + number(by_a) / number(total),
        mp.log(y) + number(by_b) / number(total),
    )


def _ways(x: float, a: float, b: float):
    """(work, whether from above, bits) of the series from either end.

    The one from the end nearer x gives the smaller tail; the other's complement cancels, and so
    needs more bits, but it may be far shorter.
    """
    share = a / (a + b)
    fall = a * math.log(share / x) + b * (math.log(b / (a + b)) - math.log1p(-x))
    for upper, part in ((False, x), (True, 1 - x)):
        bits = 240 + (0 if upper == (x > share) else int(2 * fall))
        terms = part * (a + b) + 0.7 * bits / max(-math.log(part), 1e-300)
        yield terms * (bits + 1000), upper, bits


def _beta(x, a, b) -> dict[str, float]:
    x, a, b = float(x), float(a), float(b)
    upper, bits = min(_ways(x, a, b), key=lambda way: way[0])[1:]
    with mp.workdps(int(bits * 0.30103)):
        x, a, b = mp.mpf(x), mp.mpf(a), mp.mpf(b)
        y = 1 - x
        log_beta = mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(a + b)
        beta_a, beta_b = (mp.digamma(v) - mp.digamma(a + b) for v in (a, b))
        if upper:
            one, one_b, one_a = _series(y, x, b, a, bits)
        else:
            one, one_a, one_b = _series(x, y, a, b, bits)
        one, one_a, one_b = one - log_beta, one_a - beta_a, one_b - beta_b
        part = mp.exp(one)
        other = mp.log1p(-part)
        # d log F where F = 1 - part.
        factor = -part / (1 - part) if upper else 1
        values = {
            "log_prob": (a - 1) * mp.log(x) + (b - 1) * mp.log(y) - log_beta,
            "log_cdf": other if upper else one,
            "log_sf": one if upper else other,
            "mean": a / (a + b),
            "variance": a * b / ((a + b) ** 2 * (a + b + 1)),
            "log_prob_dloc": mp.log(x) - beta_a,
            "log_prob_dscale": mp.log(y) - beta_b,
            "log_cdf_dloc": factor * one_a,
            "log_cdf_dscale": factor * one_b,
        }
        return {name: float(value) for name, value in values.items()}


def _logit_normal(x, loc, scale) -> dict[str, float]:
    with mp.workdps(50):
        x, loc, scale = (mp.mpf(float(v)) for v in (x, loc, scale))
        z = (mp.log(x) - mp.log(1 - x) - loc) / scale

        def log_normal(v):
            below = mp.erfc(-v / mp.sqrt(2)) / 2
            return mp.log(below) if v < 0 else mp.log1p(-mp.erfc(v / mp.sqrt(2)) / 2)

        log_cdf = log_normal(z)
        rate = mp.exp(-z * z / 2 - log_cdf) / mp.sqrt(2 * mp.pi)
        values = {
            "log_prob": -z * z / 2 - mp.log(2 * mp.pi) / 2 - mp.log(scale * x * (1 - x)),
            "log_cdf": log_cdf,
            "log_sf": log_normal(-z),
            "log_prob_dloc": z / scale,
            "log_prob_dscale": (z * z - 1) / scale,
            "log_cdf_dloc": -rate / scale,
            "log_cdf_dscale": -rate * z / scale,
        }
    # Means of logistic(t) P(T > t), and so on, by the trapezoidal rule with a tenth of its step.
    mean, variance = _logit_normal_moments(float(loc), float(scale))
    values |= {"mean": mean, "variance": variance}
    return {name: float(value) for name, value in values.items()}


def _logit_normal_moments(loc: float, scale: float) -> tuple[float, float]:
    step = min(0.05, 0.3 / scale)
    z = np.arange(-9.0, 9.0, step)
    weight = step * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    x = scipy.special.expit(loc + scale * z)
    mean = math.fsum(weight * x)
    return mean, math.fsum(weight * (x - mean) ** 2)


def _beta_quantile(u, a, b, guess) -> float:
    """By one exact Newton step from a guess that is nearly right."""
    guess, u = min(max(float(guess), 1e-30), 1 - 2.0**-53), float(u)
    at = _beta(guess, a, b)
    # From the smaller tail, for u next to 1 leaves no digits of F - u.
    excess = math.exp(at["log_cdf"]) - u if u < 0.5 else (1 - u) - math.exp(at["log_sf"])
    return guess - excess / math.exp(at["log_prob"]) if excess else guess


def _logit_normal_quantile(u, loc, scale, _) -> float:
    with mp.workdps(50):
        z = mp.sqrt(2) * mp.erfinv(2 * mp.mpf(float(u)) - 1)
        return float(1 / (1 + mp.exp(-(mp.mpf(float(loc)) + mp.mpf(float(scale)) * z))))


def _points_of(
    cases: dict[str, tuple[float, float]],
    draw: Callable[[np.random.Generator, int], np.ndarray],
    quantiles: Callable[..., Any],
    count: int,
    dtype: Any,
    seed: int = 0,
) -> Points:
    """Points of random parameters, each tried at one x, and of hard cases, each tried at seven.

    Args:
        cases: Name to parameters.
        draw: (generator, count) to random parameters [count, 2].
        quantiles: (u, first, second) to x, good to a digit or so.
        count: How many random ones.
        dtype: What everything is rounded to.
        seed: Of the parameters and the points.
    """
    random = draw(np.random.default_rng(seed), count)
    rng = np.random.default_rng(seed)
    levels = [1e-6, 0.01, 0.5, 0.99, 1 - 1e-6, 0.3, 0.9]
    params = np.concatenate([random, np.repeat(list(cases.values()), len(levels), axis=0)])
    first, second = params.astype(dtype).T
    u, kind, edge = mixed_points(rng, count)
    u = np.concatenate([u, np.tile(levels, len(cases))])
    x = np.array(quantiles(u, np.asarray(first, float), np.asarray(second, float)))
    x[:count] = np.choose(kind, [rng.random(count), edge, x[:count]])
    # The last two of a hard case are next to the ends.
    x[count + 5 :: len(levels)], x[count + 6 :: len(levels)] = 1e-9, 1 - 1e-5
    x, u = (
        np.clip(v.astype(dtype), dtype(1e-30), np.nextafter(dtype(1), dtype(0))) for v in (x, u)
    )
    return x, u, first, second


def _with_atoms(at_zero: float, at_one: float) -> Law:
    """The truncated normal with masses at 0 and 1; each column from the exact one of the inside."""
    inside, both = 1 - at_zero - at_one, (at_zero, at_one)

    def exact(x, *params):
        inner = TRUNCATED_NORMAL.exact(x, *params)
        below, above = (inside * math.exp(inner[name]) for name in ("log_cdf", "log_sf"))
        mean = at_one + inside * inner["mean"]
        between = (
            at_zero * mean**2 + at_one * (1 - mean) ** 2 + inside * (inner["mean"] - mean) ** 2
        )

        def log(part, rest):
            return math.log(part) if part < 0.5 else math.log1p(-rest)

        share = below / (at_zero + below)
        return inner | {
            "log_prob": inner["log_prob"] + math.log(inside),
            "log_cdf": log(at_zero + below, at_one + above),
            "log_sf": log(at_one + above, at_zero + below),
            "mean": mean,
            "variance": inside * inner["variance"] + between,
            "log_cdf_dloc": share * inner["log_cdf_dloc"],
            "log_cdf_dscale": share * inner["log_cdf_dscale"],
        }

    def quantile(u, *rest):
        if not at_zero < u < 1 - at_one:
            return float(u >= 1 - at_one)
        return TRUNCATED_NORMAL.quantile((float(u) - at_zero) / inside, *rest)

    def points(count, dtype, seed=0):
        x, u, *params = TRUNCATED_NORMAL.points(count, dtype, seed)
        unit = (params[2] == 0) & (params[3] == 1)  # the support of scores
        return tuple(v[unit] for v in (x, u, *params))

    def make(*params):
        return WithAtoms(TruncatedNormal(*params), *(params[0].dtype.type(v) for v in both))

    return Law(make, exact, quantile, points)


LAWS = {
    "truncated_normal": TRUNCATED_NORMAL,
    "beta": Law(
        Beta,
        _beta,
        _beta_quantile,
        functools.partial(
            _points_of,
            _BETA_CASES,
            lambda rng, count: 10 ** rng.uniform(-2, 5, (count, 2)),
            scipy.stats.beta.ppf,
        ),
        slack=4.0,
    ),
    "logit_normal": Law(
        LogitNormal,
        _logit_normal,
        _logit_normal_quantile,
        functools.partial(
            _points_of,
            _LOGIT_NORMAL_CASES,
            lambda rng, count: np.stack(
                [rng.uniform(-12, 12, count), 10 ** rng.uniform(-1.5, 2, count)], axis=1
            ),
            lambda u, loc, scale: scipy.special.expit(loc + scale * scipy.stats.norm.ppf(u)),
        ),
    ),
    "with_atoms": _with_atoms(0.125, 0.25),
}
"""The laws of scores by name."""
