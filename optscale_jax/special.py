"""Scalar functions that stay exact in the tails: every numerical trick of the project is here.

Everything a truncated normal needs comes from integrals of one function,

    exp(-(slope * t + curvature * t**2)),    slope >= 0, curvature > 0,

on an interval that starts at (or contains) the point t = 0 where it is largest. Anchoring at that
point keeps every exponent non-positive: nothing overflows, and the log of a mass that is as small
as exp(-1e9) is never needed. Two ways to integrate it:

* `gaussian_mass` gives the mass alone in closed form, from a polynomial for the Mills ratio and
  that polynomial's *divided difference*. It has no branches, so nothing goes wrong at a switch
  point, and the difference of two nearly equal Mills ratios (a wide scale) loses no digits.
* `gaussian_moments` gives mass and moments by Gauss-Legendre quadrature on the part of the interval
  that matters. All terms are positive, so the moments keep full relative precision where formulas
  in terms of the mass cancel (1 - x M(x) has lost every float32 digit at x = 3e3).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev, legendre

from optscale_jax.typing import ArrayLike, FloatArray

__all__ = [
    "AdjacentMasses",
    "Moments",
    "Tails",
    "adjacent_masses",
    "bits",
    "gaussian_mass",
    "gaussian_moments",
    "horner",
    "log1p_below_one",
    "log_expm1",
    "mills_ratio",
    "series",
    "split",
    "unit_quadrature",
]

# Chebyshev coefficients of (x + 3) M(x) in t = (x - 3) / (x + 3), which maps [0, inf) to [-1, 1);
# M is the Mills ratio. Interpolated at 31 Chebyshev nodes with 60 digits (the construction of
# Shepherd & Laframboise, Math. Comp. 36, 1981, for erfcx). Thirteen terms reach float32's rounding.
_MILLS_CHEBYSHEV = (
    2.106659127334785, -1.3558955722266175, 0.2761613922438122, -0.024901239690196142,
    -0.002900155428203392, 0.0008539527773487948, 5.3140327795762094e-05, -2.9407438423671717e-05,
    -2.4606249490113193e-06, 1.0972056035320868e-06, 1.7355775825650767e-07,
    -3.721628885406836e-08, -1.2133443315462594e-08, 5.52268503472921e-10, 7.267187353977331e-10,
    7.202805222856688e-11, -3.1372554605069756e-11, -9.618257639341088e-12, 2.431027731409153e-13,
    6.672329696751628e-13, 1.1765205675830984e-13, -2.0757042736000558e-14,
    -1.2798175258914876e-14, -1.4449374434973612e-15, 5.941935288751319e-16,
    2.544389970376521e-16, 1.928134990073886e-17, -1.4768903826584544e-17, -5.504903897878051e-18,
    -3.2170102432689455e-19, 3.502175278592854e-19,
)  # fmt: skip
_MILLS_SHIFT = 3.0
_MILLS_TERMS = {32: 13, 64: 31}
_QUADRATURE_NODES = {32: 20, 64: 40}


def series(term: Callable[[int], float], single: int, double: int) -> dict[int, list[float]]:
    """Coefficients, highest power first, in single and in double precision."""
    return {n: [term(k) for k in reversed(range(m))] for n, m in ((32, single), (64, double))}


_RISE_BELOW = 0.5
_RISE = series(lambda k: (-1) ** k / math.factorial(k + 1), 8, 15)  # (1 - exp(-e)) / e, in e
_ATANH = series(lambda k: 1 / (2 * k + 1), 8, 17)  # atanh(z) / z in z^2, for |z| <= 1/3


def bits(x: Any) -> int:
    """64 for numbers, or a type, of double precision; 32 for any other."""
    return 64 if jnp.finfo(x).bits == 64 else 32


def horner(x: FloatArray, coefficients: Sequence[float]) -> FloatArray:
    """Polynomial with coefficients of the highest power first."""
    highest, *rest = coefficients
    value = jnp.full_like(x, highest)
    for coefficient in rest:
        value = value * x + coefficient
    return value


def split(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Writes x as a sum of two numbers of half the bits each (low bits cleared, not rounded)."""
    width, low = (jnp.int64, 27) if bits(x) == 64 else (jnp.int32, 12)
    cast = jax.lax.bitcast_convert_type
    high = cast(cast(x, width) & jnp.asarray(-1 << low, width), x.dtype)
    return high, x - high


class Tails(NamedTuple):
    """Logs of F(x), of 1 - F(x), and of their ratio, without that difference's cancellation."""

    log_cdf: FloatArray
    log_sf: FloatArray
    log_odds: FloatArray  # log_sf - log_cdf

    def steepness(self, log_density: FloatArray) -> FloatArray:
        """How fast the log odds fall in x, of which this is the log density: > 0."""
        return jnp.exp(log_density - self.log_cdf) + jnp.exp(log_density - self.log_sf)

    def tangent(self, log_odds_dot: FloatArray) -> "Tails":
        """The derivative of all three, given that of the log odds."""
        below, above = jnp.exp(self.log_cdf), jnp.exp(self.log_sf)
        return Tails(-above * log_odds_dot, below * log_odds_dot, log_odds_dot)


@functools.cache
def _mills_coefficients(bits: int) -> tuple[float, ...]:
    """Power-basis coefficients, highest first; they decay, so Horner's rule loses no digits."""
    return tuple(chebyshev.cheb2poly(_MILLS_CHEBYSHEV[: _MILLS_TERMS[bits]])[::-1].tolist())


@functools.cache
def unit_quadrature(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = legendre.leggauss(num_nodes)
    return (nodes + 1) / 2, weights / 2


@functools.cache
def _symmetric_quadrature(num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes >= 0 on [-1, 1], and weights to be given to both node and -node."""
    nodes, weights = legendre.leggauss(num_nodes)
    first = num_nodes // 2
    nodes, weights = np.abs(nodes[first:]), weights[first:]
    # The middle node of an odd number is its own mirror image.
    return nodes, np.where(np.arange(nodes.size) == 0, 1 - 0.5 * (num_nodes % 2), 1.0) * weights


def _as_float(*args: ArrayLike) -> list[jax.Array]:
    """Arrays of the common floating type, not yet broadcast; half precision becomes float32."""
    args = tuple(a if hasattr(a, "dtype") or np.isscalar(a) else np.asarray(a) for a in args)
    dtype = jnp.result_type(*args)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    dtype = jnp.promote_types(dtype, jnp.float32)
    return [jnp.asarray(a, dtype) for a in args]


def log_expm1(x: ArrayLike) -> FloatArray:
    """log(exp(x) - 1) for x >= 0, [...]: the inverse of softplus, without overflow at large x."""
    (x,) = _as_float(x)
    return x + jax.nn.log1mexp(x)


@jax.custom_jvp
def _log1p_below_one(x: FloatArray) -> FloatArray:
    z = x / (2.0 + x)
    return 2.0 * z * horner(z * z, _ATANH[bits(x)])


@_log1p_below_one.defjvp
def _(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return _log1p_below_one(x), x_dot / (1.0 + x)


def log1p_below_one(x: ArrayLike) -> FloatArray:
    """log(1 + x) for x in [0, 1], as 2 atanh(x / (2 + x)), to a few units of rounding, relative.

    Branch-free, at a third of log1p's cost.
    """
    return _log1p_below_one(*_as_float(x))


def _scaled(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(q, t) with M(x) = q P(t), for x >= 0."""
    q = 1.0 / (x + _MILLS_SHIFT)
    return q, 1.0 - 2 * _MILLS_SHIFT * q


def _mills_and_slopes(
    x: FloatArray, *others: FloatArray
) -> tuple[FloatArray, tuple[FloatArray, ...]]:
    """M(x), and (M(x) - M(y)) / (y - x) for every other y, all >= 0.

    P's divided differences come out of Horner's rule run at all points at once, so the difference
    quotients are exact however close the points are; both terms of each are positive.
    """
    q, t = _scaled(x)
    scaled = [_scaled(y) for y in others]
    highest, *rest = _mills_coefficients(bits(x))
    value = jnp.full_like(t, highest)
    divided = [jnp.zeros_like(t)] * len(others)
    for coefficient in rest:
        divided = [d * t_y + value for d, (_, t_y) in zip(divided, scaled, strict=True)]
        value = value * t + coefficient
    slopes = tuple(
        q * q_y * (value - 2 * _MILLS_SHIFT * q_y * d)
        for d, (q_y, _) in zip(divided, scaled, strict=True)
    )
    return value * q, slopes


def _rise_and_decay(energy: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(1 - exp(-energy), exp(-energy)) for energy >= 0, both to full relative precision.

    From one exp: `jnp.expm1` alone costs as much as two and a half of them.
    """
    decay = jnp.exp(-energy)
    small = energy < _RISE_BELOW
    e = jnp.where(small, energy, 0.0)
    return jnp.where(small, e * horner(e, _RISE[bits(e)]), 1.0 - decay), decay


@jax.custom_jvp
def _mills_ratio(x: FloatArray) -> FloatArray:
    return _mills_and_slopes(x)[0]


@_mills_ratio.defjvp
def _(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    # M' = x M - 1 cancels for large x; the mean of exp(-x t - t^2/2) on t > 0 does not.
    m = _mills_ratio(x)
    mean = gaussian_moments(x, 0.5, 0.0, jnp.inf, order=1, unroll=False).mean
    return m, -m * mean * x_dot


def mills_ratio(x: ArrayLike) -> FloatArray:
    """Mills ratio M(x) = (1 - Phi(x)) / phi(x) = integral_0^inf exp(-x t - t^2/2) dt for x >= 0.

    Relative error a few units of rounding for all x >= 0. The derivative is exact too, where the
    derivative of `jax.scipy.special.erfcx` in float32 is wrong by a factor of 180 near x = 13.
    """
    return _mills_ratio(*_as_float(x))


@jax.custom_jvp
def _gaussian_mass(slope: FloatArray, width: FloatArray) -> FloatArray:
    energy = width * (slope + 0.5 * width)
    mills, (quotient,) = _mills_and_slopes(slope, slope + width)
    rise, decay = _rise_and_decay(energy)
    # M(b) - exp(-E) M(b + w), regrouped into two positive terms.
    return rise * mills + decay * (width * quotient)


@_gaussian_mass.defjvp
def _(primals, tangents):
    (slope, width), (slope_dot, width_dot) = primals, tangents
    mass = _gaussian_mass(slope, width)
    mean = gaussian_moments(slope, 0.5, 0.0, width, order=1, unroll=False).mean
    edge = jnp.exp(-width * (slope + 0.5 * width))
    return mass, -mass * mean * slope_dot + edge * width_dot


def gaussian_mass(slope: ArrayLike, width: ArrayLike) -> FloatArray:
    """H(slope, width) = integral_0^width exp(-slope t - t^2/2) dt.

    The mass of a standard normal on [slope, slope + width], divided by its density at `slope`:
    with M the Mills ratio, H = M(b) - exp(-w (b + w/2)) M(b + w), computed as

        (1 - exp(-E)) M(b) + exp(-E) (M(b) - M(b + w)),    E = w (b + w/2),

    whose terms are both positive, the second from an exact divided difference. This prevents the
    cancellation of the first form when E is small (a scale far wider than the interval: float32
    keeps 2 digits at w = 1e-5), and the NaN of `log_ndtr` differences when b is large. Relative
    error a few units of rounding, for a slope >= 0 and a finite width >= 0, of shape [...].
    """
    return _gaussian_mass(*jnp.broadcast_arrays(*_as_float(slope, width)))


class AdjacentMasses(NamedTuple):
    """Masses of two intervals that touch, each in units of the density at its own start."""

    first: FloatArray  # H(start, first width)
    second: FloatArray  # H(start + first width, second width)
    decay: FloatArray  # density at the second's start over the density at the first's


@jax.custom_jvp
def _adjacent_masses(start: FloatArray, first: FloatArray, second: FloatArray) -> AdjacentMasses:
    middle = start + first
    mills, (fall, rest) = _mills_and_slopes(middle, start, middle + second)
    rise, decay = _rise_and_decay(first * (start + 0.5 * first))
    second_rise, second_decay = _rise_and_decay(second * (middle + 0.5 * second))
    # As in `_gaussian_mass`, with M(start) = M(middle) + first * fall.
    after = second_rise * mills + second_decay * (second * rest)
    return AdjacentMasses(rise * mills + first * fall, after, decay)


@_adjacent_masses.defjvp
def _(primals, tangents):
    (start, first, second), (start_dot, first_dot, second_dot) = primals, tangents
    out = _adjacent_masses(*primals)
    middle, middle_dot = start + first, start_dot + first_dot
    _, mass_1 = jax.jvp(_gaussian_mass, (start, first), (start_dot, first_dot))
    _, mass_2 = jax.jvp(_gaussian_mass, (middle, second), (middle_dot, second_dot))
    return out, AdjacentMasses(
        mass_1, mass_2, -out.decay * (first * start_dot + middle * first_dot)
    )


def adjacent_masses(start: ArrayLike, first: ArrayLike, second: ArrayLike) -> AdjacentMasses:
    """`gaussian_mass` of [start, start + first] and of the interval of width `second` after it.

    The two share the Mills ratio between them, so both cost little more than one: this is the
    kernel of the truncated normal's distribution function. Domain and accuracy as there.
    """
    return _adjacent_masses(*jnp.broadcast_arrays(*_as_float(start, first, second)))


class Moments(NamedTuple):
    """Moments of the density proportional to exp(-slope t - curvature t^2) on an interval."""

    log_mass: FloatArray  # log of the integral
    mean: FloatArray  # E[t]
    variance: Any = None  # E[(t - mean)^2]; None below order 2
    third: Any = None  # E[(t - mean)^3]; None below order 4
    fourth: Any = None  # E[(t - mean)^4]; None below order 4


def gaussian_moments(
    slope: ArrayLike,
    curvature: ArrayLike,
    below: ArrayLike,
    above: ArrayLike,
    *,
    order: int = 2,
    num_nodes: int | None = None,
    cutoff: float | None = None,
    unroll: bool = True,
) -> Moments:
    """Mass and central moments of exp(-slope t - curvature t^2) on -below <= t <= above.

    Gauss-Legendre quadrature on the part of the interval where the exponent is above -cutoff.
    The sum has positive terms only, and the moments are taken about the mode t = 0, which is
    inside or at the edge of the interval, so that no moment cancels by more than a small factor.

    Args:
      slope: shape [...], >= 0; must be 0 where below > 0 (then t = 0 is an interior mode).
      curvature: shape [...], > 0. One half for t in units of the scale.
      below: shape [...], >= 0, how far the interval reaches below the mode.
      above: shape [...], >= 0, how far above; may be infinite.
      order: highest moment wanted: 1, 2 or 4.
      num_nodes: quadrature nodes; default 20 in float32, 40 in float64, which with the default
        cutoff gives mass, mean and variance to 8e-6 and 2e-13, relative.
      cutoff: exponents below -cutoff are dropped; default 2 - log(eps).
      unroll: whether the sum over nodes is unrolled, which runs twice as fast (one fused loop) and
        takes many times as long to compile, above all where derivatives are taken of it.
    """
    slope, curvature, below, above = _as_float(slope, curvature, below, above)
    dtype = slope.dtype
    num_nodes = _QUADRATURE_NODES[bits(dtype)] if num_nodes is None else num_nodes
    cutoff = 2.0 - float(np.log(jnp.finfo(dtype).eps)) if cutoff is None else cutoff
    reach = 2 * cutoff / (slope + jnp.sqrt(slope * slope + 4 * cutoff * curvature))
    start, end = -jnp.minimum(below, reach), jnp.minimum(above, reach)
    centre, half = 0.5 * (start + end), 0.5 * (end - start)

    def terms(t, weight):
        powers = [weight * jnp.exp(-t * (slope + curvature * t))]
        for _ in range(order):
            powers.append(powers[-1] * t)
        return powers

    def add(raw, rule):
        # In pairs about the centre: odd moments of a symmetric interval cancel before they are
        # summed, and the rounding of the sum is halved.
        node, weight = rule
        ahead, behind = terms(centre + node * half, weight), terms(centre - node * half, weight)
        return [r + (a + b) for r, a, b in zip(raw, ahead, behind, strict=True)], None

    rule = tuple(jnp.asarray(v, dtype) for v in _symmetric_quadrature(num_nodes))
    shape = jnp.broadcast_shapes(slope.shape, curvature.shape, centre.shape)
    zeros = [jnp.zeros(shape, dtype)] * (order + 1)
    raw, _ = jax.lax.scan(add, zeros, rule, unroll=unroll)
    log_mass = jnp.log(half * raw[0])
    m = [r / raw[0] for r in raw]
    if order == 1:
        return Moments(log_mass, m[1])
    variance = m[2] - m[1] ** 2
    if order == 2:
        return Moments(log_mass, m[1], variance)
    third = m[3] - m[1] * (3 * m[2] - 2 * m[1] ** 2)
    fourth = m[4] - m[1] * (4 * m[3] - m[1] * (6 * m[2] - 3 * m[1] ** 2))
    return Moments(log_mass, m[1], variance, third, fourth)
