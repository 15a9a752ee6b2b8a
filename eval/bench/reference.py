"""Laws to 50 digits, the bound in fractions, and the points to compare them at.

What the tests and the benchmark hold the laws of scores and `required_samples` to. The formulas are
the textbook's, in mpmath (extras `test` and `bench`) with as many digits as they cancel, and the
bound's in rational arithmetic: slow, and sharing nothing with the library. Here are the truncated
normal, from erfc, and what all laws share; `.reference_laws` has the others.
"""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
from tensorflow_probability.substrates.jax import distributions as tfd

from optscale_jax import TruncatedNormal

Points = tuple[np.ndarray, ...]
"""x and u to compare at, and the law's parameters: arrays [points] of the precision under test."""


class Reference(NamedTuple):
    """What is compared: floats at one point, or arrays over many, NumPy's or JAX's.

    `dloc` and `dscale` are derivatives in the law's first two parameters, whatever they are.
    """

    log_prob: Any
    log_cdf: Any
    log_sf: Any
    mean: Any
    variance: Any
    quantile: Any
    log_prob_dloc: Any
    log_prob_dscale: Any
    log_cdf_dloc: Any
    log_cdf_dscale: Any


@dataclasses.dataclass(frozen=True)
class Law:
    """A law under test, its textbook formulas, and the points to compare the two at.

    Attributes:
        make: The parameters to the library's distribution.
        exact: (x, *parameters) to all columns of `Reference` but the quantile, at one point inside.
        quantile: (u, *parameters, guess) to the x with F(x) = u; the guess is the one under test.
        points: (count, dtype, seed) to so many random points and all hard ones.
        slack: By how much u, whose error is relative, leaves the quantile open, in units of
            eps u / f(x); for a law of two ends with next to nothing between them.
        count: Random points that the bench takes.
    """

    make: Callable[..., tfd.Distribution]
    exact: Callable[..., dict[str, Any]]
    quantile: Callable[..., float]
    points: Callable[..., Points]
    slack: float = 0.0
    count: int = 400


def columns(law: Law) -> Callable[..., Reference]:
    """What `reference` computes, from the library: a function of points."""

    def of(x, u, *params):
        def values(*params):
            law_of = law.make(*params)
            return law_of.log_prob(x), law_of.log_cdf(x), law_of.log_survival_function(x)

        # Both slopes at once, so that the values are computed and compiled once.
        along = [
            jnp.stack([jnp.full_like(p, i == j) for j in range(2)]) for i, p in enumerate(params)
        ]
        push = jax.vmap(lambda *t: jax.jvp(values, params, t), out_axes=(None, 0))
        found, slopes = push(*along)
        made = law.make(*params)
        moments = made.mean(), made.variance(), made.quantile(u)
        return Reference._make((*found, *moments, *slopes[0], *slopes[1]))

    return of


def reference(law: Law, points: Points, guesses: Any) -> Reference:
    """The reference at every point, as float64 arrays; `guesses` are the quantiles under test."""
    rows = [
        law.exact(x, *params) | {"quantile": law.quantile(u, *params, guess)}
        for x, u, *params, guess in zip(*points, np.asarray(guesses), strict=True)
    ]
    return Reference(*(np.array([row[name] for row in rows]) for name in Reference._fields))


# Tolerance of each column by precision. Values are relative to |value| where the column is in
# RELATIVE (values of log_cdf and log_sf below 1e-30 in magnitude aside), absolute for mean and
# quantile, and relative to max(1, |value|) for the rest.
TOLERANCES = {
    np.dtype(np.float32): Reference(2e-5, 1e-3, 1e-3, 2e-5, 1e-3, 2e-5, 1e-3, 1e-3, 1e-3, 1e-3),
    np.dtype(np.float64): Reference(1e-11, 1e-9, 1e-9, 1e-12, 1e-8, 1e-11, 1e-8, 1e-8, 1e-8, 1e-8),
}
_RELATIVE = {"log_cdf", "log_sf", "variance"}
_ABSOLUTE = {"mean", "quantile"}
_NEGLIGIBLE = 1e-30

# (loc, scale, low, high), each tried at many x and u.
HARD_CASES = {
    "uniform limit": (0.3, 1e6, 0.0, 1.0),
    "wide": (0.3, 100.0, 0.0, 1.0),
    "typical": (0.8, 0.2, 0.0, 1.0),
    "half-normal at low": (0.0, 0.3, 0.0, 1.0),
    "half-normal at high": (1.0, 0.05, 0.0, 1.0),
    "spike inside": (0.5, 1e-4, 0.0, 1.0),
    "spike at low": (0.0, 1e-4, 0.0, 1.0),
    "spike at high": (1.0, 1e-3, 0.0, 1.0),
    "spike just inside": (0.99, 1e-3, 0.0, 1.0),
    "spike just outside": (1.001, 1e-3, 0.0, 1.0),
    "far below, narrow": (-60.0, 1e-3, 0.0, 1.0),
    "far above, narrow": (60.0, 1e-3, 0.0, 1.0),
    "far below, wide": (-60.0, 10.0, 0.0, 1.0),
    "far above, wide": (41.6, 1.17, 0.0, 1.0),
    "exponential falling": (-1e9, 1e4, 0.0, 1.0),
    "exponential rising": (1e9, 1e4, 0.0, 1.0),
    "exponential, steep": (1e9, 1e3, 0.0, 1.0),
    "exponential, flat": (-1e6, 1e4, 0.0, 1.0),
    "far and narrower still": (-1e3, 1e-3, 0.0, 1.0),
    "other support": (1.5, 2.0, -3.0, 7.0),
    "other support, narrow": (6.9, 0.01, -3.0, 7.0),
    "other support, outside": (-40.0, 0.5, -3.0, 7.0),
    "support far from zero": (10.25, 0.1, 10.0, 11.0),
    "short support": (0.5, 0.1, 0.5, 0.5009765625),
    "long support": (5.0, 1.0, -1e6, 1e6),
}


def errors(law: Law, points: Points, found: Reference, exact: Reference) -> dict[str, np.ndarray]:
    """The errors by column, in the unit in which `TOLERANCES` states them; inf where not finite."""
    _, u, *params = points
    every = {}
    for name in Reference._fields:
        value, truth = np.asarray(getattr(found, name)), getattr(exact, name)
        error = np.abs(value.astype(np.float64) - truth)
        if name == "quantile" and law.slack:
            density = np.exp(np.asarray(law.make(*params).log_prob(value)))
            error -= law.slack * np.finfo(value.dtype).eps * u.astype(float) / density
        if name in _RELATIVE:
            negligible = (np.abs(truth) < _NEGLIGIBLE) & (name != "variance")
            error = np.where(negligible, 0.0, error / np.where(negligible, 1.0, np.abs(truth)))
        elif name not in _ABSOLUTE:
            error = error / np.maximum(1.0, np.abs(truth))
        every[name] = np.where(np.isfinite(value), error, np.inf)
    return every


# The truncated normal -----------------------------------------------------------------------------


def _edge(z):
    return mp.exp(-z * z / 2) / mp.sqrt(2 * mp.pi)


def _mass(a, b):
    """Phi(b) - Phi(a), from the tail that loses fewest digits."""
    r = mp.sqrt(2)
    if a >= 0:
        return (mp.erfc(a / r) - mp.erfc(b / r)) / 2
    if b <= 0:
        return (mp.erfc(-b / r) - mp.erfc(-a / r)) / 2
    return (mp.erf(b / r) - mp.erf(a / r)) / 2


def _digits(loc, scale, low, high, *points) -> int:
    """Working digits: 50, and those that the differences and the variance cancel."""
    widths = [abs(high - low), *(abs(p - e) for p in points for e in (low, high))]
    narrow = min(w for w in widths if w > 0) / scale
    far = max(1.0, abs(low - loc) / scale, abs(high - loc) / scale)
    return int(50 + 4 * np.log10(far) + 3 * max(0.0, -float(np.log10(narrow))))


def _log_ratio(part, rest):
    """log(part / (part + rest)), to full relative precision on either side."""
    total = part + rest
    return mp.log1p(-rest / total) if rest < part else mp.log(part / total)


def _truncated_normal(x, loc, scale, low, high) -> dict[str, float]:
    x, loc, scale, low, high = (float(v) for v in (x, loc, scale, low, high))
    with mp.workdps(_digits(loc, scale, low, high, x)):
        mu, s = mp.mpf(loc), mp.mpf(scale)
        a, z, b = ((mp.mpf(v) - mu) / s for v in (low, x, high))
        below, above = _mass(a, z), _mass(z, b)
        mass = below + above
        pa, pz, pb = (_edge(v) for v in (a, z, b))
        first = (pa - pb) / mass
        second = (a * pa - b * pb) / mass
        values = {
            "log_prob": -z * z / 2 - mp.log(2 * mp.pi) / 2 - mp.log(s * mass),
            "log_cdf": _log_ratio(below, above),
            "log_sf": _log_ratio(above, below),
            "mean": mu + s * first,
            "variance": s * s * (1 + second - first * first),
            "log_prob_dloc": (z - first) / s,
            "log_prob_dscale": (z * z - 1 - second) / s,
            "log_cdf_dloc": ((pa - pz) / below - first) / s,
            "log_cdf_dscale": ((a * pa - z * pz) / below - second) / s,
        }
        return {name: float(value) for name, value in values.items()}


def _quantile(u, loc, scale, low, high, _=None) -> float:
    """By Newton's method on the log odds, inside a bracket; 0 < u < 1."""
    u, loc, scale, low, high = (float(v) for v in (u, loc, scale, low, high))
    with mp.workdps(_digits(loc, scale, low, high) + 10):
        mu, s, left, right = (mp.mpf(v) for v in (loc, scale, low, high))
        a, b = (left - mu) / s, (right - mu) / s
        target = mp.log(mp.mpf(u) / (1 - mp.mpf(u)))
        x = mu + s * (_edge(a) - _edge(b)) / _mass(a, b)
        for _ in range(400):
            z = (x - mu) / s
            below, above = _mass(a, z), _mass(z, b)
            excess = mp.log(below / above) - target
            left, right = (left, x) if excess > 0 else (x, right)
            new = x - excess * s / (_edge(z) * (1 / below + 1 / above))
            if not left < new < right:
                new = (left + right) / 2
            if abs(new - x) <= 1e-20 * min(new - low, high - new):
                return float(new)
            x = new
        raise ArithmeticError(f"no quantile found at {u, loc, scale, low, high}")


def mixed_points(rng: np.random.Generator, size: int) -> tuple[np.ndarray, ...]:
    """(u, kind, edge): u half of them far in the tails, x next to an end, which of three x to take.

    Kind 0 is a uniform x, 1 the one next to an end, 2 a quantile.
    """
    tail = 10 ** rng.uniform(-7, -3, size)
    tail = np.where(rng.random(size) < 0.5, tail, 1 - tail)
    u = np.where(rng.random(size) < 0.5, rng.random(size), tail)
    edge = 10 ** rng.uniform(-30, -1, size)
    edge = np.where(rng.random(size) < 0.5, edge, 1 - edge ** (1 / 4))
    return u, rng.integers(3, size=size), edge


def _points(count: int, dtype: Any, seed: int = 0) -> Points:
    """Points of loc in [-60, 60] or near [0, 1] and scale in [1e-3, 100], and of all hard cases.

    Those are tried at x at the mode, at quantiles, next to both ends and in between. Everything is
    rounded to `dtype`, with every x and u strictly inside, before the reference sees it.
    """
    rng = np.random.default_rng(seed)
    near = rng.random(count) < 0.5
    loc = np.where(near, rng.uniform(-0.5, 1.5, count), rng.uniform(-60, 60, count)).astype(dtype)
    scale = (10 ** rng.uniform(-3, 2, count)).astype(dtype)
    u, kind, edge = mixed_points(rng, count)
    x = np.where(kind == 0, rng.random(count), edge)
    v = rng.permutation(u)
    for i in np.flatnonzero(kind == 2):
        x[i] = _quantile(v[i], loc[i], scale[i], 0.0, 1.0)
    rows: list[tuple[Any, ...]] = [(x, u, loc, scale, np.zeros(count), np.ones(count))]
    levels = (1e-6, 0.01, 0.5, 0.99, 1 - 1e-6)
    us = [*levels, 0.3, 0.9, 1e-3, 1e-30, 1 - 1e-3, 0.7, 0.5]
    for case in HARD_CASES.values():
        loc, scale, low, high = (float(dtype(v)) for v in case)
        width = high - low
        xs = [_quantile(level, loc, scale, low, high) for level in levels]
        xs += [low + 1e-9 * width, high - 1e-5 * width, min(max(loc, low), high)]
        xs += [low + 0.3 * width, 0.5 * (low + high), low, high]
        rows.append((xs, us, *(np.full(len(xs), v) for v in (loc, scale, low, high))))
    x, u, loc, scale, low, high = (np.concatenate(v).astype(dtype) for v in zip(*rows, strict=True))
    x = np.clip(x, np.nextafter(low, high), np.nextafter(high, low))
    # Next to 0, a mass of less than the smallest normal number is out of reach.
    x = np.where(np.abs(x) < _NEGLIGIBLE, np.asarray(_NEGLIGIBLE, dtype), x)
    u = np.clip(u, _NEGLIGIBLE, np.nextafter(np.asarray(1, dtype), 0, dtype=dtype))
    return x, u.astype(dtype), loc, scale, low, high


TRUNCATED_NORMAL = Law(TruncatedNormal, _truncated_normal, _quantile, _points, count=1200)


# The bound ----------------------------------------------------------------------------------------


def least_count(log_f: float, log_miss: float, cap: int) -> int:
    """Least N in 1..cap with N log F <= log(1 - alpha), in fractions of the floats given."""
    if log_f == 0:
        return cap
    if log_f == -math.inf:
        return 1
    return min(max(math.ceil(Fraction(log_miss) / Fraction(log_f)), 1), cap)


class GivenLogCdf(tfd.Distribution):
    """A law that has nothing but a log_cdf: the values it is given, whatever the score.

    With it the bound is measured alone, without the rounding of a law.
    """

    def __init__(self, log_f):
        self.log_f = log_f
        super().__init__(
            dtype=log_f.dtype,
            reparameterization_type=tfd.NOT_REPARAMETERIZED,
            validate_args=False,
            allow_nan_stats=True,
        )

    def _log_cdf(self, x):
        return jnp.broadcast_to(self.log_f, jnp.broadcast_shapes(self.log_f.shape, jnp.shape(x)))


def hard_bounds(dtype, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The log F, log(1 - alpha) and alpha where ceilings go wrong, 20,000 of each.

    Exact ratios and their neighbours, both tails of F, N of every size that int32 holds.
    """
    rng = np.random.default_rng(seed)
    alpha = rng.uniform(0.01, 0.999, 20_000).astype(dtype)
    log_miss = np.asarray(jnp.log1p(-jnp.asarray(alpha)))
    counts = 10 ** rng.uniform(0, 9.4, alpha.size)
    log_f = (log_miss / counts).astype(dtype)
    whole = np.arange(alpha.size) % 2 == 0
    exact = rng.integers(1, 2 ** rng.integers(1, 31, alpha.size))
    log_f[whole] = (log_miss / exact.astype(dtype))[whole]
    near = np.arange(alpha.size) % 5 == 0
    log_f[near] = np.nextafter(log_f, np.asarray(-np.inf, dtype), dtype=dtype)[near]
    log_f[:4] = [0.0, -np.inf, -1e-30, -1e30]
    return log_f, log_miss, alpha
