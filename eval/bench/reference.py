"""The truncated normal to 50 digits, the bound in fractions, and the points to compare them at.

What the tests and the benchmark hold `optscale_jax.TruncatedNormal` and `required_samples` to. The
formulas are the textbook's, from erfc, in mpmath (extras `test` and `bench`) with as many digits as
they cancel, and the bound's in rational arithmetic: slow, and sharing nothing with the library.
"""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp
import mpmath as mp
import numpy as np
from tensorflow_probability.substrates.jax import distributions as tfd

__all__ = [
    "HARD_CASES",
    "TOLERANCES",
    "GivenLogCdf",
    "Grid",
    "Reference",
    "hard_bounds",
    "hard_grid",
    "least_count",
    "quantile",
    "random_grid",
    "reference",
    "relative_error",
    "truncated_normal",
]


class Reference(NamedTuple):
    """What is compared: floats at one point, or arrays over many, NumPy's or JAX's."""

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


class Grid(NamedTuple):
    """Points to compare at, all of shape [points] and of the precision under test."""

    x: Any
    u: Any
    loc: Any
    scale: Any
    low: Any
    high: Any


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


def truncated_normal(x: float, loc: float, scale: float, low: float, high: float) -> dict:
    """All columns of `Reference` but the quantile, at one point; low < x < high."""
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


def quantile(u: float, loc: float, scale: float, low: float, high: float) -> float:
    """The x with F(x) = u, 0 < u < 1: Newton's method on the log odds, inside a bracket."""
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


def reference(grid: Grid) -> Reference:
    """The reference at every point of a grid, as float64 arrays."""
    rows = []
    for x, u, *params in zip(*grid, strict=True):
        rows.append(truncated_normal(x, *params) | {"quantile": quantile(u, *params)})
    return Reference(*(np.array([row[name] for row in rows]) for name in Reference._fields))


def relative_error(name: str, value: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The error of one column in the unit in which `TOLERANCES` states it; inf where not finite."""
    error = np.abs(np.asarray(value, np.float64) - exact)
    if name in _RELATIVE:
        negligible = (np.abs(exact) < _NEGLIGIBLE) & (name != "variance")
        error = np.where(negligible, 0.0, error / np.where(negligible, 1.0, np.abs(exact)))
    elif name not in _ABSOLUTE:
        error = error / np.maximum(1.0, np.abs(exact))
    return np.where(np.isfinite(value), error, np.inf)


def _rounded(columns: Iterable, dtype) -> Grid:
    """A grid in the precision under test, with every x and u strictly inside its interval."""
    x, u, loc, scale, low, high = (np.asarray(c, dtype) for c in columns)
    x = np.clip(x, np.nextafter(low, high), np.nextafter(high, low))
    # Next to 0, a mass of less than the smallest normal number is out of reach.
    x = np.where(np.abs(x) < _NEGLIGIBLE, np.asarray(_NEGLIGIBLE, dtype), x)
    u = np.clip(u, _NEGLIGIBLE, np.nextafter(np.asarray(1, dtype), 0, dtype=dtype))
    return Grid(x, u.astype(dtype), loc, scale, low, high)


def random_grid(num_points: int, dtype, *, seed: int = 0) -> Grid:
    """Points of loc in [-60, 60] or near [0, 1], scale in [1e-3, 100], support [0, 1].

    x is uniform, or a quantile of the law (half of those far in its tails), or next to an end of
    the support. Everything is rounded to `dtype` before the reference sees it.
    """
    rng = np.random.default_rng(seed)
    near = rng.random(num_points) < 0.5
    loc = np.where(near, rng.uniform(-0.5, 1.5, num_points), rng.uniform(-60, 60, num_points))
    scale = 10 ** rng.uniform(-3, 2, num_points)
    loc, scale = (v.astype(dtype) for v in (loc, scale))
    low, high = np.zeros_like(loc), np.ones_like(loc)
    tail = 10 ** rng.uniform(-7, -3, num_points)
    tail = np.where(rng.random(num_points) < 0.5, tail, 1 - tail)
    u = np.where(rng.random(num_points) < 0.5, rng.random(num_points), tail)
    edge = 10 ** rng.uniform(-30, -1, num_points)
    edge = np.where(rng.random(num_points) < 0.5, edge, 1 - edge ** (1 / 4))
    kind = rng.integers(3, size=num_points)
    x = np.where(kind == 0, rng.random(num_points), edge)
    v = rng.permutation(u)
    for i in np.flatnonzero(kind == 2):
        x[i] = quantile(float(v[i]), float(loc[i]), float(scale[i]), 0.0, 1.0)
    return _rounded((x, u, loc, scale, low, high), dtype)


def hard_grid(dtype) -> tuple[Grid, list[str]]:
    """Every hard case at x at its mode, its quantiles, next to both ends and in between."""
    columns, names = [], []
    levels = (1e-6, 0.01, 0.5, 0.99, 1 - 1e-6)
    for name, case in HARD_CASES.items():
        loc, scale, low, high = (float(dtype(v)) for v in case)
        ends = [low + 1e-9 * (high - low), high - 1e-5 * (high - low)]
        xs = [*(quantile(u, loc, scale, low, high) for u in levels), *ends]
        xs += [min(max(loc, low), high), low + 0.3 * (high - low), 0.5 * (low + high), low, high]
        us = [*levels, 0.3, 0.9, 1e-3, 1e-30, 1 - 1e-3, 0.7, 0.5]
        columns += [(x, u, loc, scale, low, high) for x, u in zip(xs, us, strict=True)]
        names += [name] * len(xs)
    return _rounded(np.array(columns).T, dtype), names


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
